"""The pictures of a run are written, one a kind of metric."""

import os
import tempfile

from absl.testing import absltest
import numpy as np
from PIL import Image

from hmm_jax import plots


class PlotsTest(absltest.TestCase):

  def test_learning_curves_make_a_picture_a_kind(self):
    rows = [{'round': r, 'seed': s, 'train/loss': 1.0 / r, 'global/test/accuracy': 0.1 * r + s}
            for r in (1, 2) for s in (0, 1)]
    with tempfile.TemporaryDirectory() as folder:
      plots.learning_curves(rows, folder)
      self.assertCountEqual(os.listdir(folder), ['accuracy.png', 'loss.png'])

  def test_the_heat_map_shows_who_holds_what(self):
    with tempfile.TemporaryDirectory() as folder:
      pictures = []
      for counts in (np.eye(3), np.ones((3, 3)) - np.eye(3)):
        path = os.path.join(folder, 'partition.png')
        plots.partition(counts, path)
        with Image.open(path) as image:
          pictures.append(np.asarray(image))
      self.assertTrue((pictures[0] != pictures[1]).any())


if __name__ == '__main__':
  absltest.main()
