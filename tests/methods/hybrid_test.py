"""Methods that learn on the server's rows get the settings that they name."""

from unittest import mock

from absl.testing import absltest, parameterized
from hmm_jax.methods import hybrid
from hmm_jax.methods.setup import Setup
import jax.numpy as jnp
import numpy as np
import optax
from reference import toys
from reference.configs import experiment, tiny

from hmm_jax.algorithms import fedclg, feddf, feddle, server_as_client, server_only
from hmm_jax.client import local, losses, mappers
from hmm_jax.experiment import build
from hmm_jax.merging import atlas, recombine, search
from hmm_jax.server import guided_search, objectives
from hmm_jax.types import InputError

SURROGATES = {'labels': 'labels', 'entropy': 'entropy', 'distil': 'distil', 'head': 'fresh_head'}


def settings_of(module, factory, name, **values):
  """Returns the call of an algorithm's factory."""
  with mock.patch.object(module, factory, wraps=getattr(module, factory)) as made:
    experiment(tiny(algorithm=name, **values))
  [call] = made.call_args_list
  return call


def calls(module, factory, name, **values):
  """Returns how often a part was made, and how: the calls."""
  with mock.patch.object(module, factory, wraps=getattr(module, factory)) as made:
    experiment(tiny(algorithm=name, **values))
  return made.call_args_list


def first_steps(optimizer, count):
  """Returns what an optimizer makes of gradients of 1."""
  state, steps = optimizer.init(jnp.ones(1)), []
  for _ in range(count):
    step, state = optimizer.update(jnp.ones(1), state, jnp.ones(1))
    steps.append(float(step[0]))
  return steps


def setup_of(federation=None, **values):
  return Setup(tiny(**values), toys.norm(), mappers.one_by_one(), federation or toys.hybrid())


class FeddleTest(parameterized.TestCase):

  def test_defaults(self):
    made = settings_of(feddle, 'feddle', 'feddle').kwargs
    self.assertEqual((made['slots'], made['participation'], made['tau_max'], made['strikes'],
                      made['memory']), (50, 3, 0, 5, 0.9))
    self.assertIs(made['units'], atlas.whole)
    self.assertIs(made['lengths'], atlas.to_median)
    self.assertIs(made['first_to_go'], atlas.oldest)
    self.assertIs(made['calibrate'], hybrid.averaged)
    guide = made['guide']
    self.assertIs(guide.project, atlas.any_weights)
    self.assertIs(guide.fallback, guided_search.HELD_OUT)
    self.assertEqual((guide.steps, guide.batch), (100, 50))
    self.assertEqual((guide.search.gradients, guide.search.forwards), (1, 0))
    self.assertIs(guide.mapper, made['mapper'])

  @parameterized.parameters(
      ('coefficients', 'layer', 'units', recombine.layers),
      ('normalize', 'none', 'lengths', atlas.as_they_are),
      ('evict', 'worst', 'first_to_go', atlas.worst),
      ('tau_max', 4, 'tau_max', 4), ('strikes', 2, 'strikes', 2), ('memory', 0.3, 'memory', 0.3),
      ('atlas', 4, 'slots', 4))
  def test_choices(self, key, value, argument, wanted):
    made = settings_of(feddle, 'feddle', 'feddle', **{f'feddle.{key}': value}).kwargs
    self.assertEqual(made[argument], wanted)

  def test_lengths_of_layers(self):
    made = settings_of(feddle, 'feddle', 'feddle', **{
        'feddle.coefficients': 'layer', 'feddle.normalize': 'layer'}).kwargs
    self.assertIs(made['lengths'], atlas.to_median_by_unit)
    self.assertIs(made['units'], recombine.layers)

  def test_choices_of_the_guide(self):
    values = {'server.steps': 7, 'server.batch': 3, 'feddle.fallback': 'none'}
    made = settings_of(feddle, 'feddle', 'feddle', **values, **{
        'feddle.constraint': 'convex'}).kwargs['guide']
    self.assertIs(made.project, atlas.convex)
    self.assertIs(made.fallback, guided_search.NEVER)
    self.assertEqual((made.steps, made.batch), (7, 3))
    made = settings_of(feddle, 'feddle', 'feddle', **{
        'feddle.constraint': 'box', 'feddle.bound': 0.7}).kwargs['guide']
    np.testing.assert_allclose(
        made.project(jnp.array([[-1.], [.5], [9.]]), np.ones((3, 1), bool)), [[0], [.5], [.7]])

  def test_searches(self):
    [call] = calls(search, 'gradient_search', 'feddle', **{'feddle.lr': 0.3, 'feddle.pull': 0.4})
    self.assertEqual(call.kwargs, {'pull': 0.4})
    [optimizer] = call.args
    np.testing.assert_allclose(first_steps(optimizer, 2), [-0.3, -0.29992], rtol=1e-4)
    [call] = calls(search, 'gradient_search', 'feddle', **{
        'feddle.search': 'sgd', 'feddle.lr': 0.3, 'server.steps': 4})
    steps = first_steps(call.args[0], 5)  # Half a wave over the search.
    np.testing.assert_allclose(
        steps, -0.15 * (1 + np.cos(np.pi * np.arange(5) / 4)), rtol=1e-4, atol=1e-7)
    [call] = calls(search, 'evolution_search', 'feddle', **{
        'feddle.search': 'evolution', 'feddle.sigma': 0.2, 'feddle.population': 5,
        'feddle.pull': 0.1})
    self.assertEqual(call.kwargs, {'sigma': 0.2, 'population': 5, 'pull': 0.1})

  def test_without_a_search_nothing_guides(self):
    made = settings_of(feddle, 'feddle', 'feddle', **{'feddle.search': 'none'}).kwargs
    self.assertIsNone(made['guide'])

  @parameterized.parameters(*SURROGATES)
  def test_surrogates(self, name):
    for other, factory in SURROGATES.items():
      made = calls(surrogates, factory, 'feddle', **{'server.surrogate': name})
      self.assertLen(made, other == name)
    if name == 'head':
      made = calls(surrogates, 'fresh_head', 'feddle', **{'server.surrogate': 'head'})
      self.assertEqual(made[0].args[1], 10)

  def test_a_head_has_the_servers_classes_and_labels_the_networks(self):
    federation = toys.hybrid()
    far = federation._replace(server=federation.server._replace(
        examples=federation.server.examples._replace(y=federation.server.examples.y + 4)))
    with self.assertRaisesRegex(
        InputError, 'got server.surrogate=labels with server labels up to 6; expected labels below '
        '3, those of the clients, or one of head, distil, entropy'):
      hybrid.surrogate(setup_of(far))
    hybrid.surrogate(setup_of())
    for name in ('entropy', 'distil'):
      hybrid.surrogate(setup_of(far, **{'server.surrogate': name}))
    head = hybrid.surrogate(setup_of(far, **{'server.surrogate': 'head'})).context(
        toys.start(toys.norm), far.server.examples)
    self.assertEqual(head['kernel'].shape, (4, 7))

  def test_statistics_may_be_those_of_the_servers_rows(self):
    made = settings_of(feddle, 'feddle', 'feddle', **{'feddle.statistics': 'server'}).kwargs
    federation, start = toys.hybrid(), toys.start(toys.norm)
    self.assertIs(made['calibrate'].func, hybrid.recalibrated)
    self.assertIs(hybrid.averaged(start, federation), start)
    setup = setup_of(**{'server.batch': 99})
    got = toys.jit(lambda v, f: hybrid.recalibrated(setup, v, f))(start, federation)
    x, _ = toys.central(federation, np.asarray(federation.server.search))
    norm = got['batch_stats']['trunk']['BatchNorm_0']
    np.testing.assert_allclose(norm['mean'], x.mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(norm['var'], x.var(axis=0), rtol=1e-4)
    toys.assert_close(got['params'], start['params'], rtol=0, atol=0)

  def test_statistics_are_estimated_in_batches(self):
    federation, start = toys.hybrid(), toys.start(toys.norm)
    with mock.patch.object(search, 'minibatches', wraps=search.minibatches) as made:
      hybrid.recalibrated(setup_of(**{'server.batch': 4}), start, federation)
    [call] = made.call_args_list
    self.assertEqual(call.kwargs, {'batch': 4, 'steps': 32})


class MergingTest(parameterized.TestCase):

  def test_a_soup(self):
    made = settings_of(feddle, 'feddle', 'learned_soup').kwargs
    guide = made['guide']
    self.assertEqual((made['slots'], made['participation']), (3, 3))
    self.assertNotIn('tau_max', made)
    self.assertNotIn('strikes', made)
    self.assertIs(made['units'], atlas.whole)
    self.assertIs(made['lengths'], atlas.as_they_are)
    self.assertIs(guide.project, atlas.convex)
    self.assertIs(guide.fallback, guided_search.NEVER)
    made = settings_of(feddle, 'feddle', 'learned_soup', participation=0).kwargs
    self.assertEqual((made['slots'], made['participation']), (6, 0))

  def test_adamerging(self):
    made = settings_of(feddle, 'feddle', 'adamerging').kwargs
    self.assertIs(made['units'], recombine.layers)
    self.assertIs(made['lengths'], atlas.as_they_are)
    self.assertEqual((made['slots'], made['guide'].fallback), (3, guided_search.NEVER))
    np.testing.assert_allclose(made['guide'].project(
        jnp.array([[-1.], [.5], [9.]]), np.ones((3, 1), bool)), [[0], [.5], [1]])

  def test_their_optimizers(self):
    for name, optimizer, rate in (('learned_soup', optax.adamw, 0.05),
                                  ('adamerging', optax.adam, 1e-3)):
      [call] = calls(search, 'gradient_search', name)
      self.assertEmpty(call.kwargs)
      np.testing.assert_allclose(
          first_steps(call.args[0], 3), first_steps(optimizer(rate), 3), rtol=1e-5)
      [call] = calls(search, 'gradient_search', name, **{f'{name}.lr': 0.3})
      np.testing.assert_allclose(first_steps(call.args[0], 1), [-0.3], rtol=1e-3)

  def test_which_surrogate(self):
    # AdaMerging is by entropy, whatever is named.
    self.assertLen(calls(surrogates, 'entropy', 'adamerging'), 1)
    self.assertEmpty(calls(surrogates, 'labels', 'adamerging'))
    self.assertLen(calls(surrogates, 'labels', 'learned_soup'), 1)
    self.assertLen(calls(surrogates, 'distil', 'learned_soup', **{
        'server.surrogate': 'distil'}), 1)


class ServerTest(parameterized.TestCase):

  def training(self, name, **values):
    """Returns the call of local training that is on the server's rows."""
    [call] = calls(local, 'local_training', name, **values)
    [surrogate] = calls(surrogates, 'training_loss', name, **values)[-1].args
    self.assertIsInstance(surrogate, objectives.Surrogate)
    return call

  @parameterized.parameters('server_only', 'server_as_client', 'clg_sgd', 'fedclg_c', 'fedclg_s')
  def test_trains_by_sgd(self, name):
    values = {'server.lr': 0.7, 'server.steps': 9, 'server.batch': 11}
    own = self.training(name, **values)
    self.assertEqual(own.kwargs, {'batch': 11, 'steps': 9})
    np.testing.assert_allclose(first_steps(own.args[1], 2), [-0.7, -0.7], rtol=1e-6)

  def test_distils_by_adam_along_a_cosine(self):
    own = self.training('feddf', **{'feddf.lr': 0.5, 'server.steps': 4})
    self.assertEqual(own.kwargs, {'batch': 50, 'steps': 4})
    wanted = [-0.5 * (1 + np.cos(np.pi * t / 4)) / 2 for t in range(5)]
    np.testing.assert_allclose(first_steps(own.args[1], 5), wanted, rtol=1e-4, atol=1e-7)
    self.assertLen(calls(surrogates, 'distil', 'feddf'), 1)
    self.assertLen(calls(surrogates, 'distil', 'feddf', **{'server.surrogate': 'entropy'}), 1)

  @parameterized.parameters('server_as_client', 'clg_sgd', 'fedclg_c', 'fedclg_s')
  def test_teaches_what_is_named(self, name):
    for kind, factory in (('labels', 'labels'), ('entropy', 'entropy'), ('head', 'fresh_head')):
      self.assertNotEmpty(calls(surrogates, factory, name, **{'server.surrogate': kind}))

  @parameterized.parameters(
      (server_as_client, 'server_as_client', 'server_as_client'), (feddf, 'feddf', 'feddf'),
      (fedclg, 'fedclg', 'clg_sgd'), (fedclg, 'fedclg', 'fedclg_c'),
      (fedclg, 'fedclg', 'fedclg_s'))
  def test_takes_a_cohort(self, module, factory, name):
    self.assertEqual(settings_of(module, factory, name).kwargs['participation'], 3)

  def test_alone_takes_nobody(self):
    self.assertEqual([*settings_of(server_only, 'server_only', 'server_only').kwargs], ['server'])
    # So it does not matter how many would take part.
    self.assertEqual(build.cohort(tiny(algorithm='server_only', participation=7)), 6)
    experiment(tiny(algorithm='server_only', participation=7))


class FedCLGTest(parameterized.TestCase):

  def test_which_gradients_travel(self):
    for name, up, down in (('clg_sgd', 0, 0), ('fedclg_c', 0, 1), ('fedclg_s', 1, 0)):
      call = settings_of(fedclg, 'fedclg', name)
      self.assertEqual((call.args[1].up, call.args[1].down), (up, down))
      self.assertEqual(call.kwargs['gradient'] is None, name == 'clg_sgd')

  def test_a_correction_of_steps_is_of_the_clients_loss(self):
    self.assertLen(calls(losses, 'corrected', 'fedclg_c'), 1)
    for name in ('clg_sgd', 'fedclg_s'):
      self.assertEmpty(calls(losses, 'corrected', name))

  def test_gradients_are_in_the_batches_of_their_rows(self):
    values = {'local.batch': 7, 'server.batch': 11}
    for name in ('fedclg_c', 'fedclg_s'):
      [own] = calls(local, 'full_gradient', name, **values)
      self.assertEqual(own.kwargs, {'batch': 7})
      [central] = calls(guidance, 'server_gradient', name, **values)
      self.assertEqual(central.kwargs, {'batch': 11})

  def test_the_aggregate_knows_the_clients_rate(self):
    [call] = calls(fedclg, 'corrected_aggregate', 'fedclg_s', **{'local.lr': 0.3})
    self.assertEqual(call.kwargs, {'lr': 0.3})


if __name__ == '__main__':
  absltest.main()
