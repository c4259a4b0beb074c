"""Tests of FedPer and FedBN against their pseudo-code."""

from absl.testing import absltest, parameterized
import jax
import numpy as np
import optax
from reference import fedper as reference
from reference import toys, two_layer

from hmm_jax import tree
from hmm_jax.algorithms import fedper
from hmm_jax.client import losses, mappers
from hmm_jax.client.local import local_training
from hmm_jax.types import InputError

LR = 0.3
FEDERATION = toys.federation((6, 3, 0, 8, 1))
CLOSE = {'rtol': 1e-4, 'atol': 1e-5}
HEAD = ('kernel', 'bias')
HIDDEN = ('hidden_kernel', 'hidden_bias')


def make(network, private, **settings):
  local = local_training(losses.cross_entropy(network()), optax.sgd(LR), batch=99, epochs=2)
  return fedper.fedper(
      network(), local, private=private, mapper=mappers.one_by_one(), **settings)


def play(algorithm, rounds, federation=FEDERATION):
  """Returns (the last state, the views then, the positions of each round's cohort)."""
  state, cohorts = toys.jit(algorithm.init)(toys.key(0), federation), []
  program = toys.jit(algorithm.round)
  for r in range(rounds):
    state, metrics = program(state, federation, toys.key(r))
    cohorts.append([toys.IDS.index(i) for i in metrics['cohort'].id.tolist()])
  return state, algorithm.views(state, federation), cohorts


def norm_twin(variables):
  """Returns a normalized softmax regression as the NumPy twin names it."""
  layer = variables['params']['trunk']['BatchNorm_0']
  named = {'scale': layer['scale'], 'shift': layer['bias'],
           **variables['batch_stats']['trunk']['BatchNorm_0']}
  return toys.twin(variables) | {
      name: np.asarray(value, np.float64) for name, value in named.items()}


class FedPerTest(parameterized.TestCase):

  @parameterized.parameters(0, 2)
  def test_private_heads_equal_the_pseudo_code(self, participation):
    _, views, cohorts = play(
        make(toys.perceptron, fedper.head, participation=participation), rounds=4)
    models = reference.fedper(
        toys.twin(toys.start(toys.perceptron)), toys.tables(FEDERATION), private=HEAD,
        phases=[(HEAD + HIDDEN, 2)], cohorts=cohorts, lr=LR, gradient=two_layer.gradient)
    for got, wanted in zip(tree.unstack(views['clients']), models, strict=True):
      toys.assert_close(toys.twin(got), wanted, **CLOSE)

  @parameterized.parameters(0, 2)
  def test_private_normalization_equals_the_pseudo_code(self, participation):
    _, views, cohorts = play(
        make(toys.norm, fedper.batch_norm, participation=participation), rounds=4)
    models = reference.fedper(
        norm_twin(toys.start(toys.norm)), toys.tables(FEDERATION),
        private=('scale', 'shift', 'mean', 'var'), phases=[(HEAD + ('scale', 'shift'), 2)],
        cohorts=cohorts, lr=LR, gradient=reference.norm_gradient,
        after=reference.move_statistics)
    for got, wanted in zip(tree.unstack(views['clients']), models, strict=True):
      toys.assert_close(norm_twin(got), wanted, **CLOSE)

  def test_fedper_averages_the_statistics(self):
    _, views, _ = play(make(toys.norm, fedper.head), rounds=1)
    means = views['clients']['batch_stats']['trunk']['BatchNorm_0']['mean']
    inputs = np.concatenate([x for x, _ in toys.tables(FEDERATION)])
    for mean in means:
      toys.assert_close(mean, (1 - 0.9**2) * inputs.mean(axis=0))

  def test_batch_norm_is_what_owns_statistics(self):
    private, _ = tree.split(fedper.batch_norm(toys.cnn()), toys.start(toys.cnn))
    paths = {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(private)}
    layer = "['trunk']['BatchNorm_0']"
    self.assertEqual(paths, {
        f"['params']{layer}['scale']", f"['params']{layer}['bias']",
        f"['batch_stats']{layer}['mean']", f"['batch_stats']{layer}['var']"})

  @parameterized.parameters((toys.perceptron, fedper.head), (toys.norm, fedper.batch_norm))
  def test_what_is_private_never_leaves_its_client(self, network, private):
    x = np.array(FEDERATION.examples.x)
    x[toys.rows(FEDERATION.clients)[3]] *= -2  # One client's rows change.
    other = FEDERATION._replace(examples=FEDERATION.examples._replace(x=x))
    before, after = (
        play(make(network, private), 1, federation)[0] for federation in (FEDERATION, other))
    toys.assert_far(after.shared, before.shared)
    for k in range(5):
      own, old = (tree.take(state.private, k) for state in (after, before))
      if k == 3:
        toys.assert_far(own, old)
      else:
        toys.assert_close(own, old, atol=0)

  @parameterized.parameters((toys.perceptron, fedper.head), (toys.cnn, fedper.batch_norm))
  def test_only_the_shared_part_is_sent_and_kept_at_the_server(self, network, private):
    algorithm = make(network, private, participation=2)
    stays, start = private(network()), toys.start(network)
    own, shared = tree.split(stays, start)
    size = tree.nbytes(start) - tree.nbytes(own)
    self.assertEqual((algorithm.traffic.up, algorithm.traffic.down), (size, size))
    state = jax.eval_shape(algorithm.init, toys.key(0), FEDERATION)
    self.assertEqual(jax.tree.structure(state.shared), jax.tree.structure(shared))
    self.assertEqual(tree.nbytes(state.shared), size)
    self.assertEqual(jax.eval_shape(algorithm.views, state, FEDERATION).keys(), {'clients'})

  def test_refuses_networks_without_such_a_part(self):
    with self.assertRaisesRegex(InputError, 'got a network that is all head; expected .* trunk'):
      fedper.head(toys.linear())
    with self.assertRaisesRegex(InputError, 'got algorithm=fedbn with a network without Bat'):
      fedper.batch_norm(toys.linear())


if __name__ == '__main__':
  absltest.main()
