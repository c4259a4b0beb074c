"""What a screen prints: everything that it is given, whatever its width, encoding and end."""

import contextlib
import io
import itertools
import os
import re
import subprocess
import sys
import tempfile

from absl.testing import absltest, parameterized

from hmm_jax.report import screen, tables
from hmm_jax.types import InputError

NUMBERS = [round(0.1234 + 0.0101 * k, 4) for k in range(20)]
NASTY = 'a\x1b[31m\r\n\x07\u202e\x9b2Jz'


def measured(numbers):
  """Returns what a summary says of metrics."""
  return {name: {'mean': numbers[0], 'std': numbers[1], 'seeds': numbers[2:8]} for name in (
      'global/test/accuracy', 'clients/test/accuracy', 'clients_weighted/test/accuracy',
      'clients_worst/test/accuracy', 'a/long/name/of/a/metric/of/clients')}


def summary():
  return {'rounds': 40, 'seeds': range(6), 'train_seconds': 1.0, 'compile_seconds': 1.0,
          'peak_memory_bytes': 1, 'device': 'one', 'selected_on_validation': measured(NUMBERS),
          'before_finish': measured(NUMBERS[6:]), 'last': measured(NUMBERS[12:])}


def printed(show, width=160, stream=None):
  """Returns what is printed on a screen of a width."""
  stream = stream or io.StringIO()
  with contextlib.redirect_stdout(stream):
    paper = screen.Screen()
    paper._console.width = width
    show(paper)
  return stream.getvalue() if isinstance(stream, io.StringIO) else stream.buffer.getvalue()


class TableTest(parameterized.TestCase):

  @parameterized.product(width=(20, 40, 80, 120, 300), name=('fedavg', 'a-name-of-23-characters'))
  def test_no_number_is_cut_at_any_width(self, width, name):
    said = printed(lambda paper: tables.show({name: summary(), 'another': summary()}, paper), width)
    numbers = re.findall(r'\d\.\d{4} ± \d\.\d{4}|\d\.\d{4}', said)
    for values in (measured(NUMBERS), measured(NUMBERS[6:]), measured(NUMBERS[12:])):
      for value in values.values():
        self.assertIn(tables.spread(value), numbers)
    rows = [row for table in (tables.of_global_models, tables.of_own_models)
            for row in table({name: summary()}, 'accuracy')]
    for cell in {cell for row in rows for cell in row if '.' in cell}:
      self.assertIn(cell, numbers)
    for row in tables.main_metrics({name: summary()}):
      self.assertContainsSubset({cell for cell in row if '.' in cell}, re.findall(
          r'\d\.\d{4} ± \d\.\d{4}', printed(
              lambda paper: tables.brief({name: summary(), 'another': summary()}, paper), width)))
    # A name that is longer than half of a line is folded in tables, but never in lines.
    self.assertTrue(name in said or (name[:width // 2] in said and name[width // 2:] in said))
    self.assertIn(f'{name}, mean ± std over seeds\n', said)

  @parameterized.parameters(5, 20, 40, 80, 120, 300)
  def test_tables_fit(self, width):
    said = printed(lambda paper: tables.show({'fedavg': summary()}, paper), width)
    lines = [line for line in said.splitlines() if line[:1] in '┏┃┡│└']
    self.assertLessEqual(max(map(len, lines), default=0), width)

  def test_tables_repeat_what_tells_rows_apart(self):
    rows = [['talk', 'merged', *NUMBERS], ['talk', 'locals', *NUMBERS]]
    said = printed(lambda paper: paper.table('t', ['run', 'model', *map(str, range(20))], rows), 80)
    self.assertLen(re.findall('talk +│ locals', said), said.count('run'))
    self.assertGreater(said.count('run'), 1)

  def test_sentences_are_wrapped(self):
    why = 'a reason that is long ' * 10
    said = printed(lambda paper: paper.table('t', ['law', 'why'], [['one', why]]), 80)
    self.assertEqual(said.count('reason'), 10)
    self.assertEqual(said.count('law'), 1)

  @parameterized.parameters(
      ([3], 20, 1, [{0: 3}]), ([30], 20, 1, [{0: 10}]), ([3, 5, 5], 23, 1, [{0: 3, 1: 5, 2: 5}]),
      ([3, 5, 5], 22, 1, [{0: 3, 1: 5}, {0: 3, 2: 5}]), ([3, 5, 5], 14, 1, []),
      ([3, 99], 80, 1, [{0: 3, 1: 70}]), ([50, 29], 63, 1, []),
      ([2, 2, 3], 20, 2, [{0: 2, 1: 2, 2: 3}]))
  def test_columns_are_dealt(self, widths, room, names, wanted):
    self.assertEqual(screen.fit(widths, room, names=names), wanted)

  @parameterized.parameters(20, 80)
  def test_rows_may_be_short_or_long(self, width):
    rows = [['one', '0.1111'], ['two', '0.2222', '0.3333'], ['three', '0.4444', '0.5555', '0.6666']]
    said = printed(lambda paper: paper.table('t', ['run', 'a', 'b'], rows), width)
    for cell in itertools.chain(*rows):
      self.assertIn(cell, said)

  @parameterized.parameters(([],), ([['a', 1]],), ([['a', 1], ['a', 2]],))
  def test_tables_of_few_rows(self, rows):
    for width in 5, 80:
      self.assertIn('t\n', printed(lambda paper: paper.table('t', ['x', 'y'], rows), width))


class CharactersTest(parameterized.TestCase):

  def check(self, said):
    self.assertEqual([c for c in said if not c.isprintable() and c != '\n'], [])
    self.assertIn(r'a\x1b[31m', said)

  def test_control_characters_are_shown_and_not_obeyed(self):
    self.check(printed(lambda paper: paper.say(NASTY)))
    for width in 20, 160:
      self.check(printed(lambda paper: paper.table(NASTY, [NASTY, 'y'], [[NASTY, NASTY]]), width))

    def progress(paper):
      with paper.progress(0, 2) as show:
        show(1, NASTY)

    self.check(printed(progress))
    with contextlib.redirect_stderr(io.StringIO()) as said:
      self.assertEqual(screen.fail(InputError(f'got {NASTY}; expected b'), 2), 2)
    self.check(said.getvalue())
    self.assertEqual(said.getvalue().count('\n'), 1)

  @parameterized.parameters('ascii', 'latin-1', 'cp1252', 'utf-8')
  def test_what_an_encoding_lacks_is_replaced(self, encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding)

    def show(paper):
      paper.say('0.5 ± 0.1, é, 漢')
      tables.show({'漢': summary()}, paper)

    said = printed(show, stream=stream).decode(encoding)
    self.assertIn('0.5 ? 0.1, ?, ?' if encoding == 'ascii' else '0.5 ± 0.1, é, ', said)
    self.assertRegex(said, r'0.2446 . 0.2547')


class Closed(io.StringIO):
  """A stream whose reader has gone."""

  def write(self, text):
    raise BrokenPipeError(32, 'Broken pipe')


class ClosedTest(parameterized.TestCase):

  def test_work_goes_on_without_a_reader(self):
    with contextlib.redirect_stdout(Closed()), contextlib.redirect_stderr(io.StringIO()) as said:
      paper = screen.Screen()
      for _ in range(3):
        paper.say('hello')
        paper.table('t', ['x'], [[1]])
      screen.Screen().say('hello')
    self.assertRegex(said.getvalue(), r'^hmm_jax: standard output is closed .*Broken pipe.*\n$')

  @parameterized.parameters(None, True)
  def test_without_any_streams(self, closed):
    streams = closed and io.StringIO()
    if streams:
      streams.close()
    with contextlib.redirect_stdout(streams), contextlib.redirect_stderr(streams):
      screen.Screen().say('hello')
      self.assertEqual(screen.fail(InputError('no'), 2), 2)

  def test_a_process_ends_well(self):
    program = ('from hmm_jax.report.screen import Screen\n'
               'for n in range(5000): Screen().say("x" * 100)\n'
               'open("done", "w").close()')
    folder = self.enterContext(tempfile.TemporaryDirectory())
    process = subprocess.Popen(
        [sys.executable, '-c', program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=folder, env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)})
    process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    self.assertEqual(process.wait(), 0)
    process.stderr.close()
    self.assertRegex(said, r'^hmm_jax: standard output is closed .*\n$')
    self.assertTrue(os.path.exists(os.path.join(folder, 'done')))


if __name__ == '__main__':
  absltest.main()
