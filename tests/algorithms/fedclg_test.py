"""Tests of FedCLG's two forms and of CLG-SGD against hand computations."""

from functools import cache

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
from reference import fedper, rounds, toys

from hmm_jax import tree
from hmm_jax.algorithms import fedavg, fedclg
from hmm_jax.client import losses, mappers
from hmm_jax.client.local import full_gradient, local_training
from hmm_jax.client.sampling import central
from hmm_jax.server import objectives, training

LR = rounds.LR
SIZES = (6, 3, 0, 8, 1)
FEDERATION = toys.hybrid(SIZES)
LOSS = losses.supervised(toys.norm())
OWN = full_gradient(LOSS, batch=99)


@cache
def server_local():
  return local_training(
      objectives.training_loss(objectives.labels(toys.norm())), optax.sgd(0.2), batch=5, steps=4)


def idle(variables, models, server, key):
  """A server that leaves the model alone, at a cost."""
  del models, server, key
  return variables, None, training.spent(gradients=7)


@cache
def make(kind):
  objective = objectives.labels(toys.norm())
  guided = {
      'clg_sgd': lambda: fedclg.unguided(rounds.training(toys.norm)),
      'fedclg_c': lambda: fedclg.corrected_steps(local_training(
          losses.corrected(LOSS), optax.sgd(LR), batch=99, epochs=3), OWN),
      'fedclg_s': lambda: fedclg.corrected_aggregate(rounds.training(toys.norm), OWN, lr=LR),
  }[kind]()
  if kind == 'clg_sgd':
    gradient, server = None, training.server_training(objective, server_local())
  else:
    gradient, server = training.server_gradient(objective, batch=99), idle
  return fedclg.fedclg(toys.norm(), guided, gradient=gradient, server=server,
                       mapper=mappers.one_by_one(), participation=3)


def play(kind, count):
  return rounds.play(make(kind), count, federation=FEDERATION)


def twin(variables):
  """Returns a normalized softmax regression as the NumPy twin names it."""
  layer = variables['params']['trunk']['BatchNorm_0']
  named = {'scale': layer['scale'], 'shift': layer['bias'],
           **variables['batch_stats']['trunk']['BatchNorm_0']}
  return toys.twin(variables) | {
      name: np.asarray(value, np.float64) for name, value in named.items()}


def gradients(params):
  """Returns the gradient of the server's rows, and those of the clients' own (0 of none)."""
  whole = fedper.norm_gradient(params, *toys.central(FEDERATION))
  return whole, [fedper.norm_gradient(params, x, y) if len(y) else
                 {name: 0 * slope for name, slope in whole.items()}
                 for x, y in toys.tables(FEDERATION)]


class FedCLGTest(parameterized.TestCase):

  def test_clg_sgd_is_federated_averaging_and_then_the_server(self):
    states, metrics = play('clg_sgd', 2)
    average = rounds.compiled(fedavg.fedavg(
        toys.norm(), rounds.training(toys.norm), mapper=mappers.one_by_one(),
        participation=3).round)
    after = toys.jit(server_local())
    variables = toys.start(toys.norm)
    for r, measured in enumerate(metrics):
      toys.assert_close(states[r].variables, variables, rtol=1e-4, atol=1e-5)
      mean, wanted = average(
          fedavg.FedAvgState(jnp.int32(r), variables), rounds.FEDERATION, toys.key(r))
      variables, _, report = after(
          mean.variables, FEDERATION.server.examples, central(FEDERATION.server), (),
          jax.random.split(toys.key(r), 4)[3])
      toys.assert_close(measured['train/loss'], wanted['train/loss'], rtol=1e-4)
      toys.assert_close(measured['server/loss'], report.loss, rtol=1e-4)
      self.assertEqual(measured['cohort'].id.tolist(), wanted['cohort'].id.tolist())
    toys.assert_close(states[-1].variables, variables, rtol=1e-4, atol=1e-5)
    self.assertEqual(states[-1].round, 2)

  def test_fedclg_c_corrects_each_of_several_steps(self):
    states, metrics = play('fedclg_c', 2)
    wanted = twin(states[0].variables)
    for state, cohort in zip(states[1:], rounds.positions(metrics), strict=True):
      whole, own = gradients(wanted)
      models = []
      for k in cohort:
        (x, y), y_k = toys.tables(FEDERATION)[k], wanted
        for _ in range(3 if len(y) else 0):
          here = fedper.norm_gradient(y_k, x, y)
          y_k = y_k | {n: y_k[n] - LR * (here[n] + whole[n] - own[k][n]) for n in here}
        models.append(fedper.move_statistics(y_k, x, 3) if len(y) else y_k)
      total = sum(SIZES[k] for k in cohort)
      wanted = {n: sum(SIZES[k] / total * m[n] for k, m in zip(cohort, models, strict=True))
                for n in wanted}
      toys.assert_close(twin(state.variables), wanted, rtol=1e-4, atol=1e-5)
      self.assertGreater(np.abs(whole['kernel'] - own[0]['kernel']).max(), 0.05)

  def test_fedclg_s_corrects_the_aggregate_for_all_steps(self):
    (start, state), [metrics] = play('fedclg_s', 1)
    plain, _ = rounds.averaged()
    whole, own = gradients(twin(start.variables))
    [cohort] = rounds.positions([metrics])
    # Two epochs of batches of 2.
    steps = {k: 2 * -(-SIZES[k] // 2) for k in cohort}
    self.assertEqual(metrics['cohort'].steps.tolist(), [*steps.values()])
    wanted = twin(plain[1].variables)  # Statistics are averaged, and never corrected.
    for k, count in steps.items():
      share = SIZES[k] / sum(SIZES[j] for j in cohort) * count * LR
      wanted |= {n: wanted[n] - share * (whole[n] - own[k][n]) for n in whole}
    toys.assert_close(twin(state.variables), wanted, rtol=1e-4, atol=1e-5)
    toys.assert_far(state.variables['params'], plain[1].variables['params'], least=0.1)

  @parameterized.named_parameters(
      ('clg_sgd', 'clg_sgd', 0, 0, 4), ('fedclg_c', 'fedclg_c', 0, 1, 7 + 1),
      ('fedclg_s', 'fedclg_s', 1, 0, 7 + 1))
  def test_traffic_messages_and_minibatches(self, kind, up, down, minibatches):
    start = jax.eval_shape(toys.norm().init, toys.key(0))
    size, gradient = tree.nbytes(start), tree.nbytes(start['params'])
    self.assertGreater(size, gradient)
    self.assertEqual(make(kind).traffic, (size + up * gradient, size + down * gradient))
    _, [metrics] = play(kind, 1)
    self.assertEqual((metrics['messages_up'], metrics['messages_down']), (3, 3))
    self.assertEqual((metrics['server/gradients'], metrics['server/forwards']), (minibatches, 0))
    self.assertEqual(metrics['server/gradients'].dtype, np.float32)

  def test_the_view_is_the_global_model(self):
    [state], _ = play('clg_sgd', 0)
    views = make('clg_sgd').views(state, FEDERATION)
    toys.assert_close(views, {'global': toys.start(toys.norm)})


if __name__ == '__main__':
  absltest.main()
