"""The files of a run's folder: what is written is read, and what is damaged is refused."""

import os
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest, parameterized
import numpy as np

from hmm_jax.experiment.workdir import Workdir
from hmm_jax.types import InputError


class WorkdirTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.workdir = Workdir(os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'run'))
    self.workdir.make()

  def put(self, name, content):
    pathlib.Path(self.workdir.file(name)).write_bytes(content)

  def content(self, name):
    return pathlib.Path(self.workdir.file(name)).read_bytes()

  def test_clients_are_read_as_they_were_written(self):
    first = [{'round': 1, 'seed': 0, 'client': 7, 'test/rows': 3, 'test/accuracy': 1 / 3},
             {'round': 1, 'seed': 0, 'client': 2, 'test/rows': 0, 'test/accuracy': np.nan}]
    second = [{'round': 2, 'seed': 0, 'client': 7, 'test/rows': 3, 'test/accuracy': np.inf}]
    for rows in (first, [], second):
      self.workdir.table('clients').append(rows)
    self.assertEqual(self.content('clients.csv').decode().splitlines(), [
        'round,seed,client,test/rows,test/accuracy', '1,0,7,3,0.3333333333333333', '1,0,2,0,',
        '2,0,7,3,inf'])
    without = {name: value for name, value in first[1].items() if name != 'test/accuracy'}
    self.assertEqual(self.workdir.read_table('clients'), [first[0], without, *second])

  def test_clients_keep_their_columns(self):
    row = {'round': 1, 'seed': 0, 'client': 7, 'a': 1, 'b': 2}
    for fresh in (row, {**dict(reversed(row.items())), 'round': 2}, {**row, 'round': 3, 'c': 3.5},
                  {**row, 'round': 4}):
      self.workdir.table('clients').append([fresh])
    self.assertEqual(self.content('clients.csv').decode().splitlines(), [
        'round,seed,client,a,b,c', '1,0,7,1,2,', '2,0,7,1,2,', '3,0,7,1,2,3.5', '4,0,7,1,2,'])

  HEADER = b'round,seed,client,test/loss\r\n'

  @parameterized.parameters(
      (None, None), (b'', None), (HEADER, None), (HEADER[:9], None), (HEADER + b'3,0', None),
      (HEADER + b'3,0,7,1.5\r\n', None), (HEADER + b'2,0,7,1.50\r\n3,0', b'2,0,7,1.50\r\n'),
      (HEADER + b'2,0,7,\r\n2,0,8,1\r\n3,0,7,1\r\n3,0,8,1\r\n', b'2,0,7,\r\n2,0,8,1\r\n'),
      (HEADER + b'1,0,7,1\r\n2,0,7,0.', b'1,0,7,1\r\n'),
      (HEADER + b'1,0,7,1\r\n2,0,7,0.5\r', b'1,0,7,1\r\n'),
      (HEADER + b'1,0,7,1\r\n\r\n2,0,7,2\r\n', b'1,0,7,1\r\n\r\n2,0,7,2\r\n'),
      (HEADER + b'1,0,7,1\r\n2,0,7,2\r\n', b'1,0,7,1\r\n2,0,7,2\r\n'))
  def test_clients_of_later_rounds_are_dropped(self, content, kept):
    if content is not None:
      self.put('clients.csv', content)
    for _ in range(2):
      self.workdir.table('clients').cut(2)
      if kept is None:
        self.assertFalse(os.path.exists(self.workdir.file('clients.csv')))
        self.assertEmpty(self.workdir.read_table('clients'))
      else:
        self.assertEqual(self.content('clients.csv'), self.HEADER + kept)
    self.workdir.table('clients').append([{'round': 3, 'seed': 0, 'client': 7, 'test/loss': 0.5}])
    self.assertEqual(self.content('clients.csv'), self.HEADER + (kept or b'') + b'3,0,7,0.5\r\n')

  @parameterized.parameters(
      (b'1,0,?,1\r\n', 'damaged'), (b'1,0\r\n', 'damaged'), (b'1,0,7,1,5\r\n', 'damaged'),
      (b'x,0,7,1\r\n', 'damaged'), (b'\xff\xfe\r\n', 'damaged'), (b',0,7,1\r\n', 'foreign'))
  def test_damaged_clients_are_refused(self, line, expected):
    content = self.HEADER + b'1,0,3,1\r\n' + line + b'2,0,7,1\r\n9,0,7,1'
    self.put('clients.csv', content)
    for use in (lambda: self.workdir.table('clients').cut(1),
                lambda: self.workdir.read_table('clients')):
      with self.assertRaisesRegex(InputError, f'got a {expected} .*clients.csv; expected'):
        use()
    self.assertEqual(self.content('clients.csv'), content)

  @parameterized.parameters(
      b'a,b\n1,2\n', b'round,seed,seconds\n1,2\n', b'round,seed,seconds\n1,2,3,4\n',
      b'round,seed,seconds\n1,x,3\n', b'\xff\xfe\x00\x01')
  def test_damaged_metrics_are_refused(self, content):
    self.put('metrics.csv', content)
    with self.assertRaisesRegex(InputError, 'metrics.csv'):
      self.workdir.read_metrics()

  def test_tables_lie_side_by_side(self):
    self.workdir.table('a').append([{'round': 1, 'seed': 0, 'x': 2}])
    self.workdir.table('b').append([{'round': 1, 'seed': 0, 'y': 0.5}])
    self.workdir.table('a').append([{'round': 2, 'seed': 0, 'x': np.nan}])
    self.assertEqual(self.content('a.csv').decode().splitlines(), ['round,seed,x', '1,0,2', '2,0,'])
    self.assertEqual(self.workdir.read_table('b'), [{'round': 1, 'seed': 0, 'y': 0.5}])
    self.workdir.table('a').cut(1)
    self.assertEqual(self.workdir.read_table('a'), [{'round': 1, 'seed': 0, 'x': 2}])
    self.assertLen(self.workdir.read_table('b'), 1)
    self.workdir.table('b').cut(0)
    self.assertFalse(os.path.exists(self.workdir.file('b.csv')))
    self.workdir.table('b').cut(0)
    self.assertEqual(self.workdir.read_table('b'), [])

  def test_one_process_owns_it_until_it_is_killed(self):
    code = ("import sys, time; from hmm_jax.experiment.workdir import Workdir\n"
            "with Workdir(sys.argv[1]).owned(): print('mine', flush=True); time.sleep(100)")
    other = subprocess.Popen([sys.executable, '-c', code, self.workdir.path],
                             stdout=subprocess.PIPE, text=True)
    with other:
      self.assertEqual(other.stdout.readline(), 'mine\n')
      with (self.assertRaisesRegex(InputError, 'in which another process is training; expected'),
            self.workdir.owned()):
        self.fail('two processes own one folder')
      other.kill()
    for _ in range(2):
      with self.workdir.owned():
        pass

  def test_no_rows_make_no_file(self):
    self.workdir.table('a').append([])
    self.assertFalse(os.path.exists(self.workdir.file('a.csv')))

  def test_columns_of_a_table(self):
    self.put('a.csv', b'round,seed,x\r\n1,0,2\r\n')
    self.assertEqual(self.workdir.read_table('a'), [{'round': 1, 'seed': 0, 'x': 2}])
    # That of the clients has one more that it can't do without.
    self.put('clients.csv', b'round,seed,x\r\n1,0,2\r\n')
    self.put('b.csv', b'round,x\r\n1,2\r\n')
    for name in ('clients', 'b'):
      for use in (self.workdir.read_table, lambda name: self.workdir.table(name).cut(5)):
        with self.assertRaisesRegex(InputError, f'got a foreign .*{name}.csv; expected one'):
          use(name)


if __name__ == '__main__':
  absltest.main()
