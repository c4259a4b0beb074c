"""What a comparison reads of the folders of runs."""

import os
import tempfile

from absl.testing import absltest, parameterized

from hmm_jax.experiment import config as configs
from hmm_jax.experiment import recorded
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.types import InputError


class RecordedTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder, self.said = self.enterContext(tempfile.TemporaryDirectory()), []

  def leave(self, name, *, evaluations=2, merged=False, **changes):
    """Leaves a folder as a run would; returns its path."""
    config = configs.configure({key.replace('__', '.'): v for key, v in changes.items()})
    workdir = Workdir(os.path.join(self.folder, name))
    workdir.make()
    workdir.write_json('config.json', config.to_dict())
    places = [*range(1, evaluations + 1), *([evaluations] if merged else [])]
    rows = [{'round': r, 'seed': seed, 'seconds': 6.0 * r, 'bytes_up': 10 * r, 'bytes_down': r,
             'global/test/accuracy': 0.1 * r + seed / 100,
             'global/validation/accuracy': -r, 'global/validation/loss': 1.0}
            for r in places for seed in range(config.seed, config.seed + config.seeds)]
    if rows:
      workdir.table('metrics').write(rows)
    return workdir.path

  def read(self, *folders, **options):
    return recorded.entries(folders, self.said.append, **options)

  def test_a_run_is_read_by_its_seeds(self):
    entry, = self.read(self.leave('a', seeds=2, rounds=7))
    self.assertEqual((entry.name, entry.rounds, entry.criterion),
                     ('a', 7, 'global/validation/accuracy'))
    self.assertEqual([*entry.seeds], [(0, 0), (0, 1)])
    seed = entry.seeds[0, 1]
    last = seed.rows[-1]
    # Bytes go both ways, and the seconds are those of both seeds.
    self.assertEqual((last['round'], last['bytes'], last['seconds']), (2, 22, 6.0))
    self.assertEqual(seed.selected['round'], 1)

  def test_runs_that_differ_only_in_their_seeds_are_one(self):
    paths = [self.leave('fedavg,seed=0', seeds=1), self.leave('fedavg,seed=4', seed=4, seeds=2),
             self.leave('fedavg,seed=0,partition', seeds=1, partition__seed=1, keep=5),
             self.leave('other', seeds=1, local__lr=0.5)]
    entries = self.read(*paths)
    self.assertEqual([entry.name for entry in entries], ['fedavg', 'other'])
    self.assertEqual([*entries[0].seeds], [(0, 0), (0, 4), (0, 5), (1, 0)])
    self.assertEqual(entries[0].partitions, 2)

  def test_copies_of_a_run_are_no_further_seeds(self):
    entries = self.read(self.leave('x/a', seeds=1), self.leave('y/a', seeds=1))
    self.assertEqual([(entry.name, len(entry.seeds)) for entry in entries],
                     [('x/a', 1), ('y/a', 1)])
    path = self.leave('a')
    self.assertLen(self.read(path, f'{path}/', path), 1)

  def test_seeds_are_compared_up_to_the_round_that_all_have_reached(self):
    entry, = self.read(self.leave('a', evaluations=5, merged=True, seeds=1),
                       self.leave('b', evaluations=3, seed=1, seeds=1))
    self.assertEqual([(seed.rows[-1]['round'], seed.finished) for seed in entry.seeds.values()],
                     [(3, False), (3, False)])

  def test_a_folder_without_a_run_is_skipped_and_told(self):
    path, empty = self.leave('a'), self.leave('b', evaluations=0)
    self.assertLen(self.read(path, empty, __file__, '/nowhere'), 1)
    self.assertLen(self.said, 3)
    with self.assertRaisesRegex(InputError, f'got {empty}; expected folders of runs'):
      self.read(empty)
    self.assertLen(self.said, 3)

  def test_a_folder_of_runs_stands_for_them_and_references_are_asked_for(self):
    path = self.leave('grid/a')
    self.leave('grid/a/references/local', algorithm='local')
    self.leave('grid/b', local__lr=0.5)
    os.makedirs(os.path.join(self.folder, 'grid', recorded.RESULTS))
    names = lambda *args, **options: [entry.name for entry in self.read(*args, **options)]
    self.assertEqual(names(os.path.dirname(path)), ['a', 'b'])
    self.assertEqual(names(path), ['a'])
    self.assertEqual(names(path, references=True), ['a', 'local'])

  def test_a_run_is_read_without_the_file_of_its_method(self):
    path = self.leave('a')
    settings = Workdir(path).read_json('config.json')
    Workdir(path).write_json('config.json', settings | {
        'algorithm': '/gone.py:METHOD', 'mine': {'rate': 1}})
    self.assertLen(self.read(path), 1)

  @parameterized.parameters(
      ({}, {}, 'global'), ({'selection': 'loss'}, {}, 'global'),
      ({'algorithm': 'ditto'}, {}, 'clients'), ({'fine_tune.epochs': 1}, {}, 'clients'),
      ({'algorithm': 'local'}, {'global/validation/loss'}, 'clients'))
  def test_the_criterion_of_an_unfinished_run(self, changes, lacks, view):
    settings = configs.flat(configs.configure(changes))
    row = {name: 1 for name in ('global/validation/loss', 'clients/validation/loss')
           if name not in lacks}
    self.assertEqual(recorded.criterion_of(settings, [row]),
                     f'{view}/validation/{changes.get("selection", "accuracy")}')


if __name__ == '__main__':
  absltest.main()
