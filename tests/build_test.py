"""Every name in the config builds what it says."""

import os
import tempfile

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from hmm_jax import build
from hmm_jax import config as defaults
from hmm_jax.types import InputError


def tiny(**values):
  config = defaults.get_config()
  config.update_from_flattened_dict({
      'dataset': 'synthetic', 'synthetic.rows': 300, 'clients': 6, 'participation': 3,
      'partition.alpha': 1.0, 'partition.min_size': 2, 'mlp.hidden': (4,), 'rounds': 2,
      'eval_every': 1, 'seeds': 1, **values})
  defaults.check(config)
  return config


def experiment(config):
  data = build.dataset(config)
  return build.experiment(config, data, build.federation(config, data))


class BuildTest(parameterized.TestCase):

  @parameterized.parameters(*defaults.CHOICES['algorithm'])
  def test_every_algorithm_has_a_state(self, name):
    made = experiment(tiny(algorithm=name))
    state = jax.eval_shape(made.algorithm.init, jax.random.key(0), made.federation)
    self.assertEqual(state.round.shape, ())

  @parameterized.parameters('iid', 'dirichlet', 'shards', 'quantity', 'resample')
  def test_every_partition_of_labels(self, kind):
    config = tiny(**{'partition.kind': kind})
    federation = build.federation(config, build.dataset(config))
    self.assertLen(federation.clients.id, 6)
    held_out = set(federation.test.rows) | set(federation.validation.rows)
    trained = {row for index, size in zip(federation.clients.index, federation.clients.size)
               for row in index[:size]}
    self.assertEqual(trained & held_out, set())

  @parameterized.parameters('natural', 'domain')
  def test_every_partition_of_owners(self, kind):
    with tempfile.TemporaryDirectory() as folder:
      path = os.path.join(folder, 'own.npz')
      rng = np.random.default_rng(0)
      np.savez(path, x=rng.normal(size=(90, 5)), y=np.arange(90) % 3,
               client=np.arange(90) % 6, domain=np.arange(90) % 2)
      config = tiny(**{'dataset': f'npz:{path}', 'partition.kind': kind})
      federation = build.federation(config, build.dataset(config))
    self.assertLen(federation.clients.id, 6)

  @parameterized.parameters(
      ('sgd', optax.sgd(0.01, momentum=0.9)), ('adam', optax.adam(0.01, b1=0.9, b2=0.99, eps=1e-3)),
      ('yogi', optax.yogi(0.01, b1=0.9, b2=0.99, eps=1e-3)),
      ('adagrad', optax.adagrad(0.01, eps=1e-3)),
      ('lion', optax.lion(0.01, b1=0.9, b2=0.99)))
  def test_server_optimizers_get_the_settings_they_take(self, name, expected):
    made = build.server_optimizer(tiny(**{'fedopt.optimizer': name}))
    params, gradient = {'w': jnp.arange(3.0)}, {'w': jnp.array([1.0, -2.0, 0.5])}
    steps = []
    for optimizer in (made, expected):
      _, state = optimizer.update(gradient, optimizer.init(params), params)
      steps.append(optimizer.update(gradient, state, params)[0]['w'])  # Momentum shows now.
    np.testing.assert_array_equal(*steps)

  @parameterized.parameters(
      ('auto', 4, 0), ('sharded', 4, 0), ('map', 1, 0), ('vmap', 1, 0), ('vmap', 1, 2),
      ('auto', 4, 2))
  def test_every_mapper_and_its_devices(self, name, count, chunk):
    made = experiment(tiny(mapper=name, chunk=chunk))
    self.assertLen(made.sharding.device_set, count)
    state = made.algorithm.init(jax.random.key(0), made.federation)
    text = str(jax.make_jaxpr(made.algorithm.round)(state, made.federation, jax.random.key(0)))
    self.assertEqual('shard_map' in text, count > 1)

  def test_clipping_and_decay_come_before_the_step(self):
    made = build.optimizer(tiny(**{'local.clip': 1.0, 'local.weight_decay': 0.1, 'local.lr': 0.5}))
    params, gradient = {'w': jnp.array([2.0, 0.0])}, {'w': jnp.array([30.0, 40.0])}
    step, _ = made.update(gradient, made.init(params), params)
    np.testing.assert_allclose(step['w'], [-0.5 * (0.6 + 0.2), -0.5 * 0.8], rtol=1e-6)

  def test_adamw(self):
    made = build.optimizer(tiny(**{'local.optimizer': 'adamw', 'local.weight_decay': 0.1}))
    expected = optax.adamw(0.05, weight_decay=0.1)
    params, gradient = {'w': jnp.arange(3.0)}, {'w': jnp.array([1.0, -2.0, 0.5])}
    steps = [o.update(gradient, o.init(params), params)[0] for o in (made, expected)]
    np.testing.assert_array_equal(steps[0]['w'], steps[1]['w'])

  @parameterized.parameters(
      ({'participation': 7}, 'got participation=7; expected 0'),
      ({'clients': 3000}, 'clients=3000'),
      ({'partition.min_size': 60}, 'min_size=60'),
      ({'partition.kind': 'shards', 'partition.shards': 11}, 'partition.shards=11'),
      ({'partition.kind': 'natural'}, 'natural'),
      ({'algorithm': 'scaffold', 'local.momentum': 0.9}, 'momentum=0.9 with algorithm=scaffold'),
      ({'algorithm': 'scaffold', 'local.optimizer': 'adamw'}, 'adamw'),
      ({'algorithm': 'fedprox', 'local.prox': 0.1}, 'local.prox=0.1'),
      ({'algorithm': 'fedopt', 'fedopt.optimizer': 'adm'}, 'did you mean adam'),
      ({'algorithm': 'fedopt', 'fedopt.optimizer': 'chain'}, 'expected an optax optimiser'),
      ({'keep_best': True, 'partition.validation': 0.0}, 'keep_best=True'),
      ({'model': 'cnn', 'cnn.size': 'lenet'}, 'cnn.size=lenet with images of 8x8'),
      ({'model': 'cnn', 'cnn.size': 'alexnet'}, 'cnn.size=alexnet'),
      ({'model': 'resnet', 'resnet.norm': 'bath'}, 'resnet.norm=bath'),
      ({'dataset': 'npz:/nowhere.npz'}, 'nowhere.npz'),
      ({'local.epochs': 0}, 'local.epochs=0'),
  )
  def test_bad_input_is_one_line(self, values, expected):
    with self.assertRaises(InputError) as caught:
      experiment(tiny(**values))
    self.assertIn(expected, str(caught.exception))
    self.assertNotIn('\n', str(caught.exception))


if __name__ == '__main__':
  absltest.main()
