"""From a federation to a model in one's hand: what a user types, in processes of their own."""

import os
import subprocess
import sys
import tempfile

from absl.testing import absltest
import numpy as np
from PIL import Image
import pytest
from sklearn import datasets

PROGRAM = 'from hmm_jax.main.app import entry; entry()'
FEW = ('--config.clients=6', '--config.participation=0', '--config.eval_every=2', '--cpu_devices=1')


@pytest.mark.slow
class TakeHomeTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())

  def type(self, *words, code=0):
    done = subprocess.run([sys.executable, '-c', PROGRAM, *words], cwd=self.folder, text=True,
                          capture_output=True, timeout=300,
                          env={**os.environ, 'PYTHONPATH': os.path.dirname(os.path.dirname(
                              os.path.abspath(__file__)))})
    self.assertEqual(done.returncode, code, done.stderr)
    return done.stdout + done.stderr

  def test_the_best_clients_model_is_trained_on_and_merged(self):
    self.type('run', '--workdir=merged_runs', '--config.algorithm=fedmerge', *FEW,
              '--config.fedmerge.models=2', '--config.rounds=10',
              '--config.seeds=1', '--config.partition.test_rows=alike')
    self.assertIn('the model of client', self.type('export', 'merged_runs', '--client=best',
                                                   '--out=best'))
    self.type('run', '--workdir=on', '--config.init=best', '--config.rounds=1', *FEW,
              '--config.seeds=1')
    self.type('export', 'merged_runs', '--client=0', '--out=other')
    said = self.type('merge', '--method=uniform', '--models=on,other', '--out=both',
                     '--evaluate=on')
    self.assertRegex(said, r'uniform +│ 0\.[6-9]')
    images = datasets.load_digits().images[:20]
    os.mkdir(f'{self.folder}/images')
    for i, image in enumerate(images):
      pixels = (image * (255 / 16)).round().astype(np.uint8)
      Image.fromarray(pixels).save(f'{self.folder}/images/{i:02}.png')
    said = self.type('predict', 'both', '--inputs=images', '--out=p.csv')
    self.assertIn('scaled to 0 to 16', said)
    with open(f'{self.folder}/p.csv') as file:
      rows = file.read().splitlines()[1:]
    right = np.mean([row.split(',')[1] == str(k) for row, k in zip(
        rows, datasets.load_digits().target[:20], strict=True)])
    self.assertGreater(right, 0.7)
    self.assertRegex(self.type('predict', 'both', '--inputs=none.png', code=2),
                     r'\Ahmm_jax: got none.png; expected [^\n]*\n\Z')


if __name__ == '__main__':
  absltest.main()
