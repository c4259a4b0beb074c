"""Learning rates over rounds and steps, optimizers by name, and gradients that are added up.

The oracle is a loop in NumPy, for a linear model with a quadratic loss.
"""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hmm_jax.algorithms import METHODS
from hmm_jax.check.methods import Trial
from hmm_jax.client import losses, schedule
from hmm_jax.client.local import local_training
from hmm_jax.client.optimizers import local_optimizer
from hmm_jax.experiment import config as configs
from hmm_jax.types import Clients, Examples, InputError

X = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=11).astype(np.float32)


def square(params, statistics, batch, start, extra, key):
  """Half the mean squared error of a linear model, on the valid examples."""
  del start, extra, key
  value = losses.masked_mean((batch.x @ params['w'] - batch.y)**2 / 2, batch.mask)
  return value, ({'params': params, **statistics}, value)


def trained(optimizer, *, loss=square, round=None, size=11, **loop):
  client = Clients(jnp.int32(0), jnp.arange(12), jnp.int32(size),
                   None if round is None else jnp.int32(round))
  start = {'params': {'w': jnp.zeros(3)}}
  pad = lambda x: jnp.asarray(np.append(x, 0 * x[:1], axis=0))
  model, _, cohort = jax.jit(local_training(loss, optimizer, **loop))(
      start, Examples(pad(X), pad(Y)), client, (), jax.random.key(0))
  return np.asarray(model['params']['w']), int(cohort.steps)


def numpy_sgd(rates, size=11):
  """Full-batch gradient descent with a learning rate for each step."""
  w = np.zeros(3)
  for rate in rates:
    w -= rate * X[:size].T @ (X[:size] @ w - Y[:size]) / size
  return w


def local(**changes):
  return configs.configure({f'local.{key}': value for key, value in changes.items()}).local


FACTORS = {  # of 5 steps, with an end of 0.01
    'constant': [1, 1, 1, 1, 1],
    'linear': [1, 0.7525, 0.505, 0.2575, 0.01],
    'cosine': [1, 0.01 + 0.99 * 0.8535534, 0.505, 0.01 + 0.99 * 0.1464466, 0.01],
    'exponential': [1, 0.31622777, 0.1, 0.031622777, 0.01],
    'step': [1, 1, 0.1, 0.01, 0.01],
}


class ScheduleTest(parameterized.TestCase):

  @parameterized.parameters(*FACTORS)
  def test_factors(self, kind):
    at = schedule.factor(kind, 0, 0.01)
    np.testing.assert_allclose([at(i, 5) for i in range(5)], FACTORS[kind], rtol=1e-5)

  @parameterized.parameters(*FACTORS)
  def test_a_warm_up_comes_before(self, kind):
    at = schedule.factor(kind, 3, 0.01)
    np.testing.assert_allclose([at(i, 8) for i in range(8)], [0.25, 0.5, 0.75, *FACTORS[kind]],
                               rtol=1e-5)

  @parameterized.parameters(*FACTORS)
  def test_one_step_has_the_learning_rate(self, kind):
    self.assertEqual(schedule.factor(kind, 0, 0.01)(0, 1), 1)

  def test_steps_of_a_round_by_numpy(self):
    settings = local(step_schedule='cosine', lr=0.3, steps=5, batch=11)
    optimizer = schedule.of_settings(optax.sgd(0.3), settings, rounds=7)
    got, _ = trained(optimizer, batch=11, steps=5)
    np.testing.assert_allclose(got, numpy_sgd(0.3 * np.array(FACTORS['cosine'])), atol=1e-6)

  def test_rounds_and_steps_by_numpy(self):
    settings = local(schedule='linear', step_schedule='exponential', warmup_steps=1)
    optimizer = schedule.of_settings(optax.sgd(0.3), settings, rounds=5)
    got, _ = trained(optimizer, round=3, batch=11, steps=6)
    rates = 0.3 * 0.2575 * np.array([0.5, *FACTORS['exponential']])
    np.testing.assert_allclose(got, numpy_sgd(rates), atol=1e-6)

  def test_a_run_by_numpy(self):
    """FedAvg on one client: each round starts from a fresh momentum."""
    changes = {'local.schedule': 'cosine', 'local.momentum': 0.5, 'rounds': 5,
               'local.warmup_rounds': 1, 'local.epochs': 1, 'local.batch': 100,
               'participation': 0, 'clients': 5}
    trial = Trial('centralized', changes)
    x, y = (np.asarray(leaf) for leaf in trial.federation.examples)
    index = np.concatenate(trial.federation.clients.valid())
    x, y = x[index], np.eye(3)[y[index]]
    moments = trial.play(5)
    params = jax.tree.map(np.float64, moments[0].views['global']['params']['head'])
    share = np.array([0, 1, 2, 3]) / 3
    factors = [0.5, *(0.01 + 0.99 * (1 + np.cos(np.pi * share)) / 2)]
    for factor in factors:  # The first of a fresh momentum's steps is a plain one.
      logits = x @ params['kernel'] + params['bias']
      p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
      gap = (p - y) / len(x)
      params['kernel'] -= 0.3 * factor * x.T @ gap
      params['bias'] -= 0.3 * factor * gap.sum(axis=0)
    got = moments[-1].views['global']['params']['head']
    for name in params:
      np.testing.assert_allclose(got[name], params[name], atol=2e-6)

  @parameterized.parameters(*(name for name, method in METHODS.items()
                              if not {'plain sgd', 'constant lr'} & set(method.needs)))
  def test_every_method_tells_its_clients_the_round(self, name):
    trial = Trial(name, {'local.schedule': 'cosine', 'local.step_schedule': 'linear',
                         'local.accumulate': 2, 'merging.rows': 'train'})
    made = trial.algorithm
    self.assertEqual(made.length, trial.config.rounds)
    state = jax.eval_shape(made.init, jax.random.key(0), trial.federation)
    jax.eval_shape(made.round, state, trial.federation, jax.random.key(0))

  @parameterized.parameters(*(name for name, method in METHODS.items()
                              if {'plain sgd', 'constant lr'} & set(method.needs)))
  def test_methods_with_one_learning_rate_say_so(self, name):
    for key, value in (('schedule', 'cosine'), ('step_schedule', 'step'), ('warmup_rounds', 2),
                       ('warmup_steps', 1)):
      with self.assertRaisesRegex(InputError, f'{key}={value}.* expected constant, constant, 0'):
        configs.configure({'algorithm': name, f'local.{key}': value})

  def test_a_warm_up_is_shorter_than_the_run(self):
    with self.assertRaisesRegex(InputError, 'warmup_rounds=5 with rounds=5'):
      configs.configure({'rounds': 5, 'local.warmup_rounds': 5})

  def test_a_warm_up_alone_leaves_the_length_open(self):
    self.assertIsNone(Trial('fedavg', {'local.warmup_rounds': 2}).algorithm.length)


class AccumulationTest(parameterized.TestCase):

  @parameterized.parameters((2, 2), (2, 3), (3, 4), (4, 1), (5, 2), (1, 11))
  def test_equals_one_large_batch(self, batch, parts):
    """11 examples, so that the last batch and its last part are ragged."""
    loop = dict(epochs=3, batch=batch * parts)
    whole, steps = trained(optax.sgd(0.2), **loop)
    parts, same = trained(optax.sgd(0.2), loss=losses.accumulated(square, batch), **loop)
    np.testing.assert_allclose(parts, whole, atol=1e-6)
    self.assertEqual(steps, same)

  def test_by_numpy(self):
    got, steps = trained(optax.sgd(0.2), loss=losses.accumulated(square, 4), batch=12, epochs=4)
    np.testing.assert_allclose(got, numpy_sgd([0.2] * 4), atol=1e-6)
    self.assertEqual(steps, 4)

  def test_wrappers_go_around_it_or_within(self):
    pull = lambda loss: losses.proximal(loss, 0.7)
    around, _ = trained(optax.sgd(0.2), loss=pull(losses.accumulated(square, 3)), batch=8)
    within, _ = trained(optax.sgd(0.2), loss=losses.accumulated(pull(square), 3), batch=8)
    whole, _ = trained(optax.sgd(0.2), loss=pull(square), batch=8)
    np.testing.assert_allclose(around, whole, atol=1e-6)
    np.testing.assert_allclose(within, whole, atol=1e-6)

  def test_the_setting_makes_larger_batches(self):
    large = Trial('fedavg', {'local.batch': 4}).play(2)[-1]
    added = Trial('fedavg', {'local.batch': 2, 'local.accumulate': 2}).play(2)[-1]
    for a, b in zip(jax.tree.leaves(large.views), jax.tree.leaves(added.views), strict=True):
      np.testing.assert_allclose(a, b, atol=1e-5)


class OptimizerTest(parameterized.TestCase):

  def test_sgd_and_adamw_are_those_of_optax(self):
    for settings, wanted in (
        (local(momentum=0.5, lr=0.1), optax.sgd(0.1, momentum=0.5)),
        (local(lr=0.1), optax.sgd(0.1)),
        (local(optimizer='adamw', lr=0.1, weight_decay=0.2), optax.adamw(0.1, weight_decay=0.2)),
        (local(optimizer='rmsprop', lr=0.1, momentum=0.3), optax.rmsprop(0.1, momentum=0.3)),
        (local(optimizer='lion', lr=0.1), optax.lion(0.1, weight_decay=0)),
        (local(optimizer='adam', lr=0.1, weight_decay=0.2),
         optax.chain(optax.add_decayed_weights(0.2), optax.adam(0.1)))):
      np.testing.assert_array_equal(trained(local_optimizer(settings), batch=4)[0],
                                    trained(wanted, batch=4)[0])

  def test_one_line_for_what_does_not_exist(self):
    for changes, line in (
        ({'optimizer': 'addam'}, 'local.optimizer=addam; expected .*did you mean adam'),
        ({'optimizer': 'lbfgs'}, 'local.optimizer=lbfgs'),
        ({'optimizer': 'adam', 'momentum': 0.5}, 'local.momentum=0.5 with local.optimizer=adam'),
        ({'optimizer': ''}, 'local.optimizer=;')):
      with self.subTest(line), self.assertRaisesRegex(InputError, line):
        local(**changes)


FUNCTIONS = '''
import optax

def mine(learning_rate):
  return optax.chain(optax.scale_by_sign(), optax.scale(-learning_rate))

def fixed():
  return optax.sgd(0.5)

def strange(depth):
  return optax.sgd(depth)

def nothing():
  return 3

VALUE = 4
'''


def test_a_function_of_ones_own(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(FUNCTIONS)
  made = lambda name: local_optimizer(local(optimizer=f'{path}:{name}', lr=0.25))
  np.testing.assert_array_equal(trained(made('mine'), batch=11)[0] % 0.25, 0)
  np.testing.assert_array_equal(trained(made('fixed'), batch=11)[0],
                                trained(optax.sgd(0.5), batch=11)[0])
  for name, line in (
      ('strange', "fails with TypeError: strange.. missing .*'depth'.*; expected a function"),
      ('nothing', 'which returns a int; expected a function that returns an optax'),
      ('VALUE', 'expected a function; .* has mine, fixed, strange, nothing'),
      ('mien', 'did you mean mine?')):
    with pytest.raises(InputError, match=line):
      made(name)


def test_its_file_is_found_from_anywhere(tmp_path, monkeypatch):
  (tmp_path / 'other.py').write_text(FUNCTIONS)
  monkeypatch.chdir(tmp_path)
  config = configs.configure({'local.optimizer': 'other.py:fixed'})
  assert config.local.optimizer == f'{tmp_path}/other.py:fixed'


if __name__ == '__main__':
  absltest.main()
