"""What stands for data in distillation: its shapes, and whose statistics or rows it has."""

from functools import cache

from absl.testing import absltest
import jax.numpy as jnp
import numpy as np
from reference import toys

from hmm_jax import tree
from hmm_jax.merging.data_free import invert
from hmm_jax.models.classifier import preprocessed
from hmm_jax.server import pseudo_data

FEDERATION = toys.federation()
MEANS = np.array([-3.0, 0.0, 5.0])


@cache
def raw():
  """Returns a network of inputs that are twice what it is fed."""
  return preprocessed(toys.norm(), normalize=lambda x: x / 2)


def with_mean(mean):
  """Returns the network's variables with running statistics of that mean and a variance of 1."""
  start = toys.start(toys.norm)
  running = {'mean': jnp.full(4, mean), 'var': jnp.ones(4)}
  return {**start, 'batch_stats': {'trunk': {'BatchNorm_0': running}}}


@cache
def inversion(whose, lift='map', batches=2):
  search = invert.inversion(toys.norm(), steps=150, lr=0.3, terms=invert.Terms(),
                            augment=invert.as_they_are)
  make = pseudo_data.inverted(
      raw(), search, whose=whose, each=toys.lifts()[lift].each, batch=6, batches=batches)
  return toys.jit(make)


def inverted(whose, lift='map', federation=FEDERATION):
  stacked = tree.stack([with_mean(mean) for mean in MEANS])
  return inversion(whose, lift)(with_mean(8.0), stacked, federation, toys.key(0))


class PseudoDataTest(absltest.TestCase):

  def test_inverts_the_merge(self):
    x, facts = inverted(pseudo_data.of_merged, 'sharded-vmap')
    self.assertEqual(x.shape, (2 * 6, 4))
    for batch in (x[:6], x[6:]):
      np.testing.assert_allclose(batch.mean(axis=0), 8, atol=0.1)
      np.testing.assert_allclose(batch.var(axis=0), 1, atol=0.1)
    toys.assert_far(x[:6], x[6:])
    reported = {name: facts[f'inversion/{name}_loss'] for name in ('noise', 'found', 'real')}
    self.assertLess(reported['found'], reported['noise'] / 50)
    loss = toys.jit(lambda x: invert.statistics_loss(toys.norm(), with_mean(8.0), x))
    toys.assert_close(reported['found'], (loss(x[:6]) + loss(x[6:])) / 2)

  def test_reports_the_loss_of_real_examples(self):
    everybody = np.concatenate(toys.rows(FEDERATION.clients))
    same = FEDERATION._replace(examples=FEDERATION.examples._replace(
        x=FEDERATION.examples.x.at[everybody].set(3.0)))
    _, facts = inverted(pseudo_data.of_each, federation=same)
    # A row of 3 is fed as 1.5, and of equal rows the variance is 0: 4 units each.
    wanted = np.mean([2 * abs(1.5 - mean) + 2 for mean in MEANS])
    np.testing.assert_allclose(facts['inversion/real_loss'], wanted, rtol=1e-3)

  def test_labels_are_of_all_classes(self):
    shown = lambda variables, x, labels, key: (jnp.zeros_like(x) + labels[:, None], jnp.zeros(1))
    make = pseudo_data.inverted(
        raw(), shown, whose=pseudo_data.of_merged, each=toys.lifts()['map'].each, batch=60,
        batches=1)
    x, _ = toys.jit(make)(with_mean(8.0), (), FEDERATION, toys.key(0))
    self.assertEqual(set(x[:, 0].tolist()), set(range(toys.CLASSES)))

  def test_inverts_each_model(self):
    x, _ = inverted(pseudo_data.of_each)
    self.assertEqual(x.shape, (3 * 2 * 6, 4))
    means = x.reshape(6, 6, 4).mean(axis=1)
    np.testing.assert_allclose(means, np.tile(np.repeat(MEANS, 2)[:, None], 4), atol=0.1)

  def test_noise_is_of_the_shape_of_the_rows(self):
    x, facts = pseudo_data.noise(raw(), count=400)(with_mean(0.0), (), FEDERATION, toys.key(0))
    self.assertEqual((x.shape, facts), ((400, 4), {}))
    np.testing.assert_allclose([x.mean(), x.std()], [0, 1], atol=0.1)

  def test_real_examples_are_the_clients_own_and_normalized(self):
    x, facts = pseudo_data.real_examples(raw(), count=300)((), (), FEDERATION, toys.key(0))
    self.assertEqual((x.shape, facts), ((300, 4), {}))
    held = np.concatenate(toys.rows(FEDERATION.clients))
    rows = {row.tobytes() for row in np.asarray(FEDERATION.examples.x[held] / 2)}
    self.assertEqual({row.tobytes() for row in np.asarray(x)}, rows)


if __name__ == '__main__':
  absltest.main()
