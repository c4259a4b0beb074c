"""TIES against its twin entry by entry, and votes that tie."""

from absl.testing import absltest
import numpy as np
from reference import flat_models, toys
from reference import task_vectors as reference

from hmm_jax.merging.ties import ties

DEFAULTS = {'density': 0.2, 'scope': 'model', 'scale': 1.0, 'weights': None}
CHANGES = [{}, dict(density=0.0), dict(density=1.0, scale=0.9), dict(scope='tensor'),
           dict(density=0.4, weights=(0.5, 2.0, 1.0))]


class TiesTest(absltest.TestCase):

  def test_ties_equals_the_twin(self):
    merge = flat_models.merger(*[ties(**own) for own in CHANGES])
    for grain in (None, 2):
      models, base = flat_models.drawn(3, grain=grain)
      deltas, wanted = flat_models.subtract(models, base), []
      for own in CHANGES:
        density, scope, scale, weights = (DEFAULTS | own).values()
        kept = [reference.largest(delta, density, scope) for delta in deltas]
        wanted.append(reference.merge(base, kept, weights or (1, 1, 1), 'majority', 'elected',
                                      scale))
      toys.assert_close(merge(models, base), wanted, rtol=1e-5, atol=1e-5)

  def test_nobody_wins_a_vote_that_ties(self):
    models = [{'a': np.float32([3, 3, 3])}, {'a': np.float32([-3, -1, 0])}]
    (got,) = flat_models.merger(ties(density=1.0))(models, {'a': np.zeros(3, np.float32)})
    self.assertEqual(got['a'].tolist(), [0, 3, 3])


if __name__ == '__main__':
  absltest.main()
