"""Whatever happens to a file of a run, who reads or resumes it says so in one line, or is right."""

import json
import pathlib
import tempfile

from absl.testing import absltest
import pytest
from reference import damage

from hmm_jax.experiment import config as configs
from hmm_jax.experiment import launch
from hmm_jax.experiment.saved import Run
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.report.screen import Screen
from hmm_jax.types import InputError

DRAWS = 20  # of each file
SETTINGS = {
    'dataset': 'synthetic', 'synthetic.rows': 60, 'synthetic.shape': (4, 4, 1), 'clients': 3,
    'participation': 0, 'partition.kind': 'iid', 'mlp.hidden': (), 'local.epochs': 1, 'seeds': 1,
    'rounds': 2, 'eval_every': 1, 'mapper': 'map'}
TABLES = ('metrics.csv', 'clients.csv')
JSON = ('config.json', 'summary.json', 'manifests/2.json')


@pytest.mark.slow
class DamageTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()), 'run')
    launch.train(configs.configure(SETTINGS), Workdir(str(cls.folder)), Screen(silent=True))
    for name in JSON:  # As an earlier release or a stranger writes them: no digest tells damage.
      content = json.loads((cls.folder / name).read_text())
      del content['digest']
      (cls.folder / name).write_text(json.dumps(content, indent=2))

  def read(self, folder: str):
    """Reads all that a run says of itself, without building its network."""
    run = Run.load(folder)
    rows, summary = run.metrics, run.summary
    run.folder.read_table('clients')
    launch.read_summary(run.folder)
    launch.compare(configs.configure(SETTINGS), run.folder)
    return rows, summary, run.rounds

  def tried(self, names, generate) -> dict[str, int]:
    """Counts the damaged files of each name that are refused in one line."""
    refused = {}
    for name in names:
      path = self.folder / name
      good, said = path.read_bytes(), []
      self.addCleanup(path.write_bytes, good)
      for bad in generate(good, DRAWS):
        path.write_bytes(bad)
        with self.subTest(name, bad=bad[:200]):
          try:
            self.read(str(self.folder))
          except InputError as error:
            said.append(str(error))
      path.write_bytes(good)
      self.assertNotIn('\n', ''.join(said))
      refused[name] = len(said)
    return refused

  def test_files_of_a_run(self):
    for generate in damage.changed, damage.mutated:
      refused = self.tried(TABLES + JSON, generate)
      self.assertGreater(min(refused.values()), DRAWS / 4, refused)


if __name__ == '__main__':
  absltest.main()
