"""Tests of FedCLG's two forms and of CLG-SGD against hand computations."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
from reference import softmax_regression, toys

from hmm_jax import tree
from hmm_jax.algorithms import fedavg, fedclg
from hmm_jax.client import losses, mappers
from hmm_jax.client.local import full_gradient, local_training
from hmm_jax.client.sampling import central
from hmm_jax.server import guided_search, objectives
from hmm_jax.types import Server

LR = 0.3
SERVER_LR = 0.2
SIZES = (6, 3, 0, 8, 1)
FEDERATION = toys.hybrid(SIZES)
FULL = {'batch': 99, 'epochs': 1}


def training(network=toys.linear, *, corrected=False, batch=3, epochs=2):
  loss = losses.cross_entropy(network())
  return local_training(losses.corrected(loss) if corrected else loss, optax.sgd(LR), batch=batch,
                        epochs=epochs)


def server(network=toys.linear, *, lr=SERVER_LR, **settings):
  surrogate = objectives.labels(network())
  return guided_search.server_training(surrogate, local_training(
      objectives.training_loss(surrogate), optax.sgd(lr),
      **{'batch': 5, 'steps': 4} | settings))


def guided(kind, network=toys.linear, *, gradient_batch=2, **batches):
  own = full_gradient(losses.cross_entropy(network()), batch=gradient_batch)
  return {'unguided': lambda: fedclg.unguided(training(network, **batches)),
          'steps': lambda: fedclg.corrected_steps(
              training(network, corrected=True, **batches), own),
          'aggregate': lambda: fedclg.corrected_aggregate(
              training(network, **batches), own, lr=LR)}[kind]()


def make(kind, network=toys.linear, *, train=None, participation=0, central_batch=4, **batches):
  gradient = guided_search.server_gradient(objectives.labels(network()), batch=central_batch)
  return fedclg.fedclg(
      network(), guided(kind, network, **batches),
      gradient=None if kind == 'unguided' else gradient, server=train or server(network),
      mapper=mappers.one_by_one(), participation=participation)


def play(algorithm, federation=FEDERATION, rounds=3):
  states, metrics = [toys.jit(algorithm.init)(toys.key(0), federation)], []
  program = toys.jit(algorithm.round)
  for r in range(rounds):
    state, measured = program(states[-1], federation, toys.key(r))
    states.append(state)
    metrics.append(measured)
  return states, metrics


def idle(variables, models, server, key):
  """A server that does nothing."""
  del models, server, key
  return variables, None, guided_search.spent(gradients=0)


def gradients(params):
  """Returns the gradient of the server's rows, and those of the clients' own (0 of none)."""
  nil = jax.tree.map(np.zeros_like, params)
  return (softmax_regression.gradient(params, *toys.central(FEDERATION)),
          [softmax_regression.gradient(params, x, y) if len(y) else nil
           for x, y in toys.tables(FEDERATION)])


def combine(weights, models):
  return {name: sum(w * m[name] for w, m in zip(weights, models, strict=True))
          for name in models[0]}


class FedCLGTest(parameterized.TestCase):

  @parameterized.product(network=[toys.linear, toys.norm], participation=[0, 2])
  def test_unguided_is_federated_averaging_and_then_the_server(self, network, participation):
    states, metrics = play(make('unguided', network, participation=participation))
    plain = fedavg.fedavg(network(), training(network), mapper=mappers.one_by_one(),
                          participation=participation)
    average = toys.jit(plain.round)
    after = toys.jit(local_training(
        losses.cross_entropy(network()), optax.sgd(SERVER_LR), batch=5, steps=4))
    variables = toys.start(network)
    for r, measured in enumerate(metrics):
      toys.assert_close(states[r].variables, variables, rtol=1e-4, atol=1e-5)
      mean, wanted = average(fedavg.FedAvgState(jnp.int32(r), variables), FEDERATION, toys.key(r))
      variables, _, report = after(
          mean.variables, FEDERATION.server.examples, central(FEDERATION.server), (),
          jax.random.split(toys.key(r), 4)[3])
      toys.assert_close(measured['train/loss'], wanted['train/loss'], rtol=1e-4)
      toys.assert_close(measured['server/loss'], report.loss, rtol=1e-4)
      self.assertEqual(measured['cohort'].id.tolist(), wanted['cohort'].id.tolist())
    toys.assert_close(states[-1].variables, variables, rtol=1e-4, atol=1e-5)
    self.assertEqual(states[-1].round, 3)

  @parameterized.product(kind=['steps', 'aggregate'], participation=[0, 3])
  def test_of_one_full_step_by_hand(self, kind, participation):
    states, metrics = play(make(kind, train=idle, participation=participation, **FULL))
    params = toys.twin(toys.start(toys.linear))
    for state, measured in zip(states[1:], metrics, strict=True):
      cohort = [toys.IDS.index(i) for i in measured['cohort'].id.tolist()]
      whole, own = gradients(params)
      weights = np.array([SIZES[k] for k in cohort]) / sum(SIZES[k] for k in cohort)
      # Who holds no row stays where it began, uncorrected: g_k + (g_s - g_k) for others.
      steps = [combine([1, -LR], [params, whole]) if SIZES[k] else params for k in cohort]
      params = combine(weights, steps)
      toys.assert_close(toys.twin(state.variables), params, rtol=1e-4, atol=1e-5)
      self.assertGreater(np.abs(whole['kernel'] - own[0]['kernel']).max(), 0.05)

  def test_each_of_several_steps_is_corrected(self):
    [_, state], _ = play(make('steps', train=idle, batch=99, epochs=3), rounds=1)
    start = toys.twin(toys.start(toys.linear))
    whole, own = gradients(start)
    models = []
    for (x, y), slope in zip(toys.tables(FEDERATION), own, strict=True):
      y_k = start
      for _ in range(3 if len(y) else 0):
        here = softmax_regression.gradient(y_k, x, y)
        y_k = combine([1, -LR, -LR, LR], [y_k, here, whole, slope])
      models.append(y_k)
    wanted = combine(np.array(SIZES) / sum(SIZES), models)
    toys.assert_close(toys.twin(state.variables), wanted, rtol=1e-4, atol=1e-5)

  def test_the_aggregate_is_corrected_for_all_steps(self):
    [_, state], [metrics] = play(make('aggregate', train=idle), rounds=1)
    [_, plain], _ = play(make('unguided', train=idle), rounds=1)
    whole, own = gradients(toys.twin(toys.start(toys.linear)))
    # Two epochs of batches of 3.
    steps = [4, 2, 0, 6, 2]
    self.assertEqual(metrics['cohort'].steps.tolist(), steps)
    wanted = toys.twin(plain.variables)
    for size, count, slope in zip(SIZES, steps, own, strict=True):
      share = size / sum(SIZES) * count * LR
      wanted = combine([1, -share, share], [wanted, whole, slope])
    toys.assert_close(toys.twin(state.variables), wanted, rtol=1e-4, atol=1e-5)
    toys.assert_far(state.variables, plain.variables, least=0.1)

  @parameterized.parameters('steps', 'aggregate')
  def test_without_drift_corrections_vanish(self, kind):
    # The server and every client hold the same rows.
    rows = np.arange(8)
    examples = FEDERATION.examples
    same = FEDERATION._replace(
        clients=toys.clients([rows] * 3),
        server=Server(jax.tree.map(lambda x: x[rows], examples), rows[:6], rows[6:]))
    (states, _), (plain, _) = (play(make(name), same) for name in (kind, 'unguided'))
    toys.assert_close(states[-1].variables, plain[-1].variables, rtol=1e-4, atol=1e-5)
    (states, _), (plain, _) = (play(make(name)) for name in (kind, 'unguided'))
    toys.assert_far(states[-1].variables, plain[-1].variables, least=0.01)

  def test_statistics_are_averaged_and_never_corrected(self):
    federation = toys.hybrid((6, 3))
    for kind in ('steps', 'aggregate'):
      [_, state], _ = play(make(kind, toys.norm, train=idle, **FULL), federation, rounds=1)
      mean = np.concatenate([x for x, _ in toys.tables(federation)]).mean(axis=0)
      norm = state.variables['batch_stats']['trunk']['BatchNorm_0']
      toys.assert_close(norm['mean'], 0.1 * mean, rtol=1e-4)
      self.assertGreater(float(norm['var'].min()), 0)

  @parameterized.parameters(('unguided', 0, 0), ('steps', 0, 1), ('aggregate', 1, 0))
  def test_traffic_and_messages(self, kind, up, down):
    algorithm = make(kind, toys.norm, participation=2)
    start = toys.start(toys.norm)
    size, gradient = tree.nbytes(start), tree.nbytes(start['params'])
    self.assertGreater(size, gradient)
    self.assertEqual((algorithm.traffic.up, algorithm.traffic.down),
                     (size + up * gradient, size + down * gradient))
    _, [metrics] = play(algorithm, rounds=1)
    self.assertEqual((metrics['messages_up'], metrics['messages_down']), (2, 2))

  @parameterized.parameters(('unguided', 4, 4), ('steps', 4, 4 + 4), ('steps', 99, 4 + 1),
                            ('aggregate', 13, 4 + 1), ('aggregate', 1, 4 + 13))
  def test_counts_the_servers_minibatches(self, kind, batch, wanted):
    _, metrics = play(make(kind, central_batch=batch), rounds=2)
    for measured in metrics:
      self.assertEqual((measured['server/gradients'], measured['server/forwards']), (wanted, 0))
      self.assertEqual(measured['server/gradients'].dtype, np.float32)

  def test_the_servers_gradient_is_of_its_rows_and_at_the_start(self):
    # Its labels are read, those that are held out too.
    [_, state], _ = play(make('steps', train=idle), rounds=1)
    row = int(FEDERATION.server.held_out[0])
    y = FEDERATION.server.examples.y.at[row].set((FEDERATION.server.examples.y[row] + 1) % 3)
    other = FEDERATION._replace(server=FEDERATION.server._replace(
        examples=FEDERATION.server.examples._replace(y=y)))
    [_, moved], _ = play(make('steps', train=idle), other, rounds=1)
    toys.assert_far(moved.variables, state.variables)

  def test_the_view_is_the_global_model(self):
    algorithm = make('unguided')
    [state], _ = play(algorithm, rounds=0)
    views = algorithm.views(state, FEDERATION)
    self.assertEqual([*views], ['global'])
    toys.assert_close(views['global'], toys.start(toys.linear))


if __name__ == '__main__':
  absltest.main()
