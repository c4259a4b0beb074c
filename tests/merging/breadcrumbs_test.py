"""Breadcrumbs against its twin entry by entry."""

from absl.testing import absltest
from reference import flat_models, toys
from reference import task_vectors as reference

from hmm_jax.merging.breadcrumbs import breadcrumbs

WEIGHTS = (0.5, 2.0, 1.0)


class BreadcrumbsTest(absltest.TestCase):

  def test_breadcrumbs_equals_the_twin(self):
    models, base = flat_models.drawn(3)
    deltas = [reference.middle(delta, 0.4, 0.1) for delta in flat_models.subtract(models, base)]
    (got,) = flat_models.merger(breadcrumbs(
        smallest=0.4, largest=0.1, scale=0.5, weights=WEIGHTS))(models, base)
    toys.assert_close(got, reference.merge(base, deltas, WEIGHTS, 'any', 'total', 0.5), rtol=1e-5,
                      atol=1e-5)


if __name__ == '__main__':
  absltest.main()
