"""What an algorithm records of every round: tables of its own, on disk beside clients.csv."""

import pathlib
import tempfile
from typing import Any, NamedTuple
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
from reference import toys

from hmm_jax.experiment.checkpoint import Checkpoints
from hmm_jax.experiment.run import run
from hmm_jax.experiment.trainer import in_turn
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.report.screen import Screen
from hmm_jax.types import Algorithm, Cohort, Experiment, InputError, Scores, Traffic

IDS = (4, 7, 9)


class State(NamedTuple):
  round: Any


def recording(finish=None):
  """Records draws of three clients, of whom one is left out in turn, and of a search."""

  def play(state, federation, key):
    del federation
    draws = jax.random.normal(key, (5,))
    cohort = Cohort(jnp.array(IDS), jnp.ones(3), jnp.ones(3, bool), jnp.ones(3, int),
                    jnp.ones(3, int))
    anchors = {'valid': jnp.arange(3) != state.round % 3, 'client': jnp.array(IDS),
               'weight': draws[:3]}
    search = {'step': jnp.array([0, 5]), 'loss': jnp.append(jnp.nan, draws[3])}
    metrics = {'train/loss': jnp.float32(1), 'messages_up': jnp.float32(2),
               'messages_down': jnp.float32(1), 'cohort': cohort,
               'records': {'anchors': anchors, 'search': search}}
    return State(state.round + 1), metrics

  return Algorithm(
      init=lambda key, federation: State(jnp.int32(0)), round=play,
      views=lambda state, _: {'global': state.round}, traffic=Traffic(up=10, down=100),
      finish=finish, tables=('anchors', 'search'))


def experiment(algorithm, **settings):
  values = {'rounds': 5, 'eval_every': 2, 'seeds': (3, 4), **settings}
  return Experiment(
      algorithm, federation=toys.federation((2, 4, 1)), seed_map=in_turn,
      sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]),
      evaluate=lambda views: Scores({'global/validation/accuracy': float(views['global'])}, {}),
      criterion='global/validation/accuracy', **values)


def drawn(seed, number):
  """Returns what is drawn in a round: its key is the seed's, folded with the rounds before."""
  root = jax.random.split(jax.random.key(seed), 3)[1]
  return np.asarray(jax.random.normal(jax.random.fold_in(root, number - 1), (5,)))


class RecordsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = folder.name
    self.workdir = self.another('run')

  def another(self, name):
    return Workdir(f'{self.folder}/{name}')

  def path(self, name, workdir=None):
    return pathlib.Path((workdir or self.workdir).file(name))

  def put(self, name, content):
    pathlib.Path(self.workdir.path).mkdir(exist_ok=True)
    self.path(name).write_bytes(content)

  def run_it(self, algorithm=None, *, workdir=None, **settings):
    return run(experiment(algorithm or recording(), **settings), {}, workdir or self.workdir,
               Screen(silent=True))

  def tables(self, workdir=None):
    return {name: self.path(f'{name}.csv', workdir).read_bytes() for name in ('anchors', 'search')}

  def test_a_row_a_round_seed_and_valid_entry(self):
    self.run_it()
    header, *lines = self.path('anchors.csv').read_text().splitlines()
    self.assertEqual(header, 'round,seed,client,weight')
    wanted = [(number, seed, IDS[i], drawn(seed, number)[i])
              for numbers in ((1, 2), (3, 4), (5,)) for seed in (3, 4) for number in numbers
              for i in range(3) if i != (number - 1) % 3]
    self.assertLen(lines, 5 * 2 * 2)
    for line, (number, seed, client, weight) in zip(lines, wanted, strict=True):
      self.assertTrue(line.startswith(f'{number},{seed},{client},'), line)
      np.testing.assert_allclose(float(line.split(',')[3]), weight, rtol=1e-6)

  def test_without_validity_all_count_and_what_is_no_number_is_empty(self):
    self.run_it()
    rows = self.workdir.read_table('search')
    self.assertEqual([row['step'] for row in rows], [0, 5] * 10)
    self.assertEqual(['loss' in row for row in rows], [False, True] * 10)
    self.assertEqual({row['round'] for row in rows}, {1, 2, 3, 4, 5})
    self.assertEqual(rows[0], {'round': 1, 'seed': 3, 'step': 0})
    self.assertTrue(np.isfinite([row['loss'] for row in rows if 'loss' in row]).all())

  def test_metrics_know_nothing_of_them(self):
    self.run_it()
    [*_, last] = self.workdir.read_metrics()
    self.assertEqual(set(last), {'round', 'seed', 'seconds', 'bytes_up', 'bytes_down', 'train/loss',
                                 'global/validation/accuracy'})

  def test_a_table_is_the_same_whatever_the_chunks(self):
    self.run_it()
    other = self.another('other')
    self.run_it(workdir=other, eval_every=5)
    for name in ('anchors', 'search'):
      rows, others = (w.read_table(name) for w in (self.workdir, other))
      key = lambda row: (row['seed'], row['round'])
      self.assertEqual(sorted(rows, key=key), sorted(others, key=key))

  def test_finishing_repeats_nothing(self):
    self.run_it()
    other = self.another('finished')
    self.run_it(recording(finish=lambda state, federation, key: (state, {
        'messages_up': jnp.float32(0), 'messages_down': jnp.float32(0)})), workdir=other)
    self.assertEqual(self.tables(other), self.tables())

  def test_more_rounds_go_on(self):
    self.run_it()
    before = self.tables()
    self.run_it(rounds=8)
    for name, content in self.tables().items():
      self.assertTrue(content.startswith(before[name]))
    self.assertEqual({row['round'] for row in self.workdir.read_table('search')}, {*range(1, 9)})
    self.run_it(rounds=8)  # There is nothing left to do.
    self.assertEqual({name: len(self.workdir.read_table(name)) for name in ('anchors', 'search')},
                     {'anchors': 32, 'search': 32})

  @parameterized.parameters((2, ''), (4, '5,3,7,0.'), (5, '5,'))
  def test_a_kill_before_the_checkpoint_leaves_no_trace(self, last, half):
    self.run_it()
    whole = self.tables()
    self.workdir = self.another('killed')
    save = Checkpoints.save

    def killed(checkpoints, number, progress):
      if number == last:
        raise KeyboardInterrupt
      save(checkpoints, number, progress)

    with mock.patch.object(Checkpoints, 'save', killed), self.assertRaises(KeyboardInterrupt):
      self.run_it()
    for name in whole:
      # There is a trace to drop, in each of the tables.
      self.assertEqual(self.workdir.read_table(name)[-1]['round'], last)
      self.put(f'{name}.csv', self.path(f'{name}.csv').read_bytes() + half.encode())
    self.run_it()
    self.assertEqual(self.tables(), whole)

  def test_a_damaged_table_changes_nothing(self):
    self.run_it()
    for name in ('anchors', 'search'):
      sound = self.path(f'{name}.csv').read_bytes()
      self.put(f'{name}.csv', sound.replace(b'\n4,', b'\n?,'))
      before = {path: path.read_bytes() for path in pathlib.Path(self.workdir.path).rglob('*')
                if path.is_file()}
      with self.assertRaisesRegex(InputError, f'got a damaged .*{name}.csv; expected numbers'):
        self.run_it(rounds=6)
      after = {path: path.read_bytes() for path in pathlib.Path(self.workdir.path).rglob('*')
               if path.is_file()}
      self.assertEqual(after, before)
      self.put(f'{name}.csv', sound)


if __name__ == '__main__':
  absltest.main()
