"""Whoever plants links in the folder of a run gets none of them followed when it is written."""

import contextlib
import pathlib
import shutil
import tempfile

from absl.testing import absltest
import pytest

from hmm_jax.experiment import config as configs
from hmm_jax.experiment.launch import train
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.report.screen import Screen
from hmm_jax.types import InputError, SaveError

SETTINGS = {
    'dataset': 'synthetic', 'synthetic.rows': 80, 'synthetic.shape': (4, 4, 1), 'clients': 3,
    'participation': 0, 'partition.kind': 'iid', 'mlp.hidden': (), 'local.epochs': 1, 'seeds': 1,
    'eval_every': 1, 'track': 'tensorboard', 'mapper': 'map', 'keep_best': True}
# All that a run writes, by pattern.
WRITTEN = ('config.json', 'model.json', 'metrics.csv', 'clients.csv', 'partition.csv',
           'summary.json', 'track.json', 'report.html', '.lock', 'plots/*', 'initial/*',
           'manifests/*', 'checkpoints/*/**/*', 'events/*/*')
# What a run will write, or may be thought to, and where a link there leads to. Names of a line are
# planted together, for one that is refused would hide others.
PLANTED = (
    (('file', 'nothing'), ('config.json.new', '.config.json.new', 'metrics.csv.part', '.new-0',
                           'plots/new.png', 'manifests/4.json', 'manifests/4.npz')),
    (('folder', 'nothing'), ('checkpoints/4',)),
    (('folder', 'file'), ('events',)))


def files(folder: pathlib.Path, pattern: str) -> list[pathlib.Path]:
  return [path for path in folder.glob(pattern) if path.is_file()]


def tried(path: pathlib.Path, rounds: int):
  """Trains on, as far as that goes."""
  with contextlib.suppress(InputError, SaveError):
    train(configs.configure(SETTINGS, rounds=rounds), Workdir(str(path)), Screen(silent=True))


@pytest.mark.slow
class LinksTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    train(configs.configure(SETTINGS, rounds=2), Workdir(str(cls.folder / 'whole')),
          Screen(silent=True))

  def copied(self) -> tuple[pathlib.Path, pathlib.Path]:
    """Returns a copy of the run, and a folder for what the links lead to."""
    new = pathlib.Path(tempfile.mkdtemp(dir=self.folder))
    shutil.copytree(self.folder / 'whole', new / 'run')
    (new / 'mine').mkdir()
    return new / 'run', new / 'mine'

  def test_the_table_has_all_that_is_written(self):
    whole = self.folder / 'whole'
    listed = {path for pattern in WRITTEN for path in files(whole, pattern)}
    self.assertEqual({path for path in whole.rglob('*') if path.is_file()}, listed)
    self.assertEqual([p for p in WRITTEN if not files(whole, p)], [])

  def test_what_is_written_replaces_links_or_is_refused(self):
    for pattern in WRITTEN:
      run, mine = self.copied()
      before = {}
      for number, path in enumerate(files(run, pattern)):
        before[mine / str(number)] = path.read_bytes()
        shutil.move(path, mine / str(number))
        path.symlink_to(mine / str(number))
      tried(run, rounds=4)
      with self.subTest(pattern):
        self.assertEqual({path: path.read_bytes() for path in before}, before)
        self.assertCountEqual(mine.iterdir(), before)

  def test_links_in_the_place_of_what_will_be_written(self):
    for kinds, names in PLANTED:
      for kind in kinds:
        run, mine = self.copied()
        (mine / 'folder').mkdir()
        (mine / 'file').write_text('mine')
        for name in names:
          shutil.rmtree(run / name, ignore_errors=True)
          (run / name).symlink_to(mine / kind)
        tried(run, rounds=4)
        with self.subTest(names, kind=kind):
          self.assertCountEqual(mine.rglob('*'), [mine / 'folder', mine / 'file'])
          self.assertEqual((mine / 'file').read_text(), 'mine')


if __name__ == '__main__':
  absltest.main()
