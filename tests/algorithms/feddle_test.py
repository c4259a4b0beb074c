"""Tests of Feddle against its twin, and of its laws."""

from functools import cache, partial

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import feddle as reference
from reference import rounds, toys
from reference.configs import tiny

from hmm_jax import tree
from hmm_jax.algorithms import feddle
from hmm_jax.algorithms.parts import Parts
from hmm_jax.client import losses, mappers
from hmm_jax.client.local import local_training
from hmm_jax.merging import atlas as anchors
from hmm_jax.merging import recombine, search
from hmm_jax.server import guided_search, objectives
from hmm_jax.types import InputError, Search, Trace

LR = rounds.LR
EPOCHS = 2
SIZES = (6, 3, 0, 8, 1)
BATCH = 4
STEPS = 6
RATE = 0.1  # of Adam
UNITS = {'global': anchors.whole, 'layer': recombine.layers}
LENGTHS = {'whole': anchors.to_median, 'layer': anchors.to_median_by_unit,
           'none': anchors.as_they_are}
EVICT = {'came': anchors.oldest, 'score': anchors.worst}
FEDERATION = toys.hybrid(SIZES)
TABLE = ('client', 'delay', 'age', 'coefficient', 'average')
BY_LAYER = {'slots': 3, 'coefficients': 'layer', 'lengths': 'layer', 'participation': 2,
            'tau_max': 1, 'evict': 'score', 'strikes': 1, 'memory': 0.2}
LATE = {'slots': 4, 'participation': 2, 'tau_max': 2}


def guide(network=toys.perceptron, *, find=None, objective=None):
  return guided_search.Guide(
      objective or objectives.labels(network()),
      find or search.gradient_search(optax.adam(RATE)), anchors.any_weights,
      guided_search.HELD_OUT, mappers.one_by_one(), STEPS, BATCH)


def make(network=toys.perceptron, *, train=None, leads=None, slots=5, coefficients='global',
         lengths='whole', evict='came', **settings):
  train = train or local_training(
      losses.supervised(network()), optax.sgd(LR), batch=99, epochs=EPOCHS)
  return feddle.feddle(
      network(), train, mapper=mappers.one_by_one(), guide=leads, slots=slots,
      units=UNITS[coefficients], lengths=LENGTHS[lengths], eviction=EVICT[evict], **settings)


@cache
def searching(**settings):
  return make(leads=guide(), **settings)


def play(algorithm, count, federation=FEDERATION, **given):
  return rounds.play(algorithm, count, federation=federation, **given)


@cache
def searched(**settings):
  """Plays rounds with a search: (states, metrics of each round)."""
  return play(searching(**settings), 6)


def model(state):
  return tree.take(state.past, 0)


def anchors_of(metrics):
  """Returns the records of one round: {client: {column: value}}."""
  table = {name: np.asarray(column) for name, column in metrics['records']['anchors'].items()}
  return {int(table['client'][i]): {name: table[name][i] for name in TABLE}
          for i in np.flatnonzero(table['valid'])}


def delays_of(metrics):
  """Returns {position: rounds traveled} of the arrivals of one round."""
  return {toys.IDS.index(client): int(row['delay'])
          for client, row in anchors_of(metrics).items() if not np.isnan(row['delay'])}


def drawn(r):
  """Returns what the server draws in a round, its data, its held-out rows and Adam's rate."""
  search_key = jax.random.split(toys.key(r), 4)[3]
  batches = search.minibatches(jax.random.split(search_key)[0], FEDERATION.server.search,
                               batch=BATCH, steps=STEPS)
  return (np.asarray(batches), toys.central(FEDERATION),
          np.asarray(FEDERATION.server.held_out), RATE)


class TwinTest(parameterized.TestCase):

  @parameterized.named_parameters(('by_layer', BY_LAYER), ('late', LATE))
  def test_rounds_with_a_search_equal_the_twins(self, settings):
    states, metrics = searched(**settings)
    cohorts, delays = rounds.positions(metrics), [delays_of(m) for m in metrics]
    self.assertEqual([sorted(d) for d in delays], [sorted(cohort) for cohort in cohorts])
    self.assertIn(2, set().union(*cohorts))  # This client has no rows.
    # Every delay is seen: an update comes from an older model, and goes to the newest.
    self.assertEqual({d for each in delays for d in each.values()},
                     {*range(settings['tau_max'] + 1)})
    same = {name: value for name, value in settings.items()
            if name not in ('tau_max', 'participation', 'slots')}
    versions, twin, seen = reference.feddle(
        toys.twin(toys.start(toys.perceptron)), toys.tables(FEDERATION), toys.IDS,
        count=settings['slots'], cohorts=cohorts, delays=delays, epochs=EPOCHS, lr=LR,
        search=drawn, **same)
    for state, wanted in zip(states, versions, strict=True):
      toys.assert_close(toys.twin(model(state)), wanted, rtol=1e-4, atol=1e-4)
    for measured, rows in zip(metrics, seen, strict=True):
      found = anchors_of(measured)
      self.assertEqual(found.keys(), rows.keys())
      for client, (c, average, age) in rows.items():
        np.testing.assert_allclose(found[client]['coefficient'], np.mean(c), atol=1e-4)
        np.testing.assert_allclose(found[client]['average'], np.mean(average), atol=1e-4)
        self.assertEqual(found[client]['age'], age)
        self.assertEqual(np.isnan(found[client]['delay']), age > 0)
        if client == toys.IDS[2]:
          self.assertEqual(found[client]['coefficient'], 0)
    self.assertIn(0, [measured['server/fallback'] for measured in metrics])
    atlas = states[-1].atlas
    self.assertEqual(atlas.owner.tolist(), [e['owner'] if e else -1 for e in twin.values()])
    np.testing.assert_allclose(atlas.score, [e['score'] if e else 0 for e in twin.values()],
                               atol=1e-4)
    self.assertEqual(atlas.strikes.tolist(), [e['strikes'] if e else 0 for e in twin.values()])
    for slot, entry in twin.items():
      if entry:
        toys.assert_close(toys.twin({'params': tree.take(atlas.updates, slot)}), entry['update'],
                          rtol=1e-4, atol=1e-4)

  def test_the_new_model_is_never_worse_on_the_held_out_rows_than_the_average(self):
    x, y = toys.central(FEDERATION, np.asarray(FEDERATION.server.held_out))
    for settings in (BY_LAYER, LATE):
      states, metrics = searched(**settings)
      for after, measured in zip(states[1:], metrics, strict=True):
        loss = reference.two_layer.losses(toys.twin(model(after)), x, y).mean()
        self.assertLessEqual(loss, measured['server/average_loss'] * (1 + 1e-5))
        taken = 'average' if measured['server/fallback'] else 'found'
        np.testing.assert_allclose(loss, measured[f'server/{taken}_loss'], rtol=1e-4)

  def test_all_versions_are_kept_as_long_as_they_may_be_asked_for(self):
    states, _ = searched(**LATE)
    for r, state in enumerate(states):
      for age in range(3):
        toys.assert_close(tree.take(state.past, age), model(states[max(r - age, 0)]),
                          rtol=0, atol=0)

  def test_a_round_in_which_nobody_has_rows_changes_nothing(self):
    nobody = FEDERATION._replace(clients=FEDERATION.clients._replace(size=np.zeros(5, np.int32)))
    (before, after), _ = play(searching(**BY_LAYER), 1, nobody)
    toys.assert_close(model(after), model(before), rtol=0, atol=0)

  def test_the_order_of_the_clients_does_not_matter(self):
    order = np.array([3, 0, 4, 2, 1])
    moved = FEDERATION._replace(clients=jax.tree.map(lambda x: x[order], FEDERATION.clients))
    states, metrics = searched(**BY_LAYER)
    others, measured = play(searching(**BY_LAYER), 6, moved)
    toys.assert_close(others, states, rtol=0, atol=0)
    for got, wanted in zip(measured, metrics, strict=True):
      toys.assert_close(got['records'], wanted['records'], rtol=0, atol=0)

  @pytest.mark.slow
  def test_distills_the_models_that_the_clients_sent(self):
    # An update is not a model, and its model began where it was sent from.
    teach = objectives.distill(toys.perceptron())
    seen = []
    made = teach._replace(targets=lambda models, examples: (
        seen.append(models), teach.targets(models, examples))[1])
    algorithm = make(leads=guide(objective=made), **LATE)
    state = searched(**LATE)[0][-1]
    program = toys.jit(lambda *given: (algorithm.round(*given)[1], seen[0]))
    lags = set()
    for r in range(4):
      measured, models = program(state, FEDERATION, toys.key(r))
      delays = delays_of(measured)
      lags |= {*delays.values()}
      for i, k in enumerate(sorted(delays, key=lambda k: toys.IDS[k])):
        start = toys.twin(tree.take(state.past, delays[k]))
        update = reference.local_update(start, *toys.tables(FEDERATION)[k], epochs=EPOCHS, lr=LR)
        wanted = {name: start[name] + update[name] for name in start}
        toys.assert_close(toys.twin(tree.take(models, i)), wanted, rtol=1e-4, atol=1e-5)
    self.assertGreater(len(lags), 1)


class AverageTest(absltest.TestCase):

  def test_without_a_guide_it_is_federated_averaging(self):
    algorithm = make(toys.norm, train=rounds.training(toys.norm), coefficients='layer',
                     lengths='layer', participation=3)
    states, metrics = play(algorithm, 2)
    others, reports = rounds.averaged()
    for state, other in zip(states, others, strict=True):
      toys.assert_close(model(state), other.variables, rtol=1e-4, atol=1e-5)
      self.assertEqual({leaf.shape[0] for leaf in jax.tree.leaves(state.past)}, {1})
    for got, wanted in zip(metrics, reports, strict=True):
      self.assertEqual({*got} - {*wanted}, {'records'})
      for name in wanted.keys() - {'cohort'}:
        toys.assert_close(got[name], wanted[name], rtol=1e-4)
      self.assertEqual(got['cohort'].id.tolist(), sorted(wanted['cohort'].id.tolist()))
      self.assertEqual({*got['records']}, {*algorithm.tables})
      self.assertEqual({*delays_of(got).values()}, {0})
      for row in anchors_of(got).values():
        self.assertEqual(row['coefficient'], row['average'])
    self.assertEqual(states[-1].round, 2)

  def test_statistics_come_from_the_arrivals(self):
    # After several rounds the running mean is a decay of the arrivals' own, not a sum.
    states, metrics = play(make(toys.norm, tau_max=1, participation=2), 4)
    for r, (measured, cohort) in enumerate(zip(metrics, rounds.positions(metrics), strict=True)):
      wanted, total = 0, sum(SIZES[k] for k in cohort)
      for k, delay in delays_of(measured).items():
        x, y = toys.tables(FEDERATION)[k]
        before = states[max(r - delay, 0)].past['batch_stats']['trunk']['BatchNorm_0']['mean'][0]
        decay = 0.9**EPOCHS if len(y) else 1
        own = decay * np.asarray(before) + (1 - decay) * (x.mean(axis=0) if len(y) else 0)
        wanted = wanted + len(y) / total * own
      got = model(states[r + 1])['batch_stats']['trunk']['BatchNorm_0']['mean']
      np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)


@cache
def told():
  """Returns a round whose search finds -2 of everything, at a loss that is its first argument.

  The second argument is added to the statistics.
  """
  def round(found, more, *given):
    def run(loss, evaluate, start, batches, key, project):
      c = jnp.where(start > 0, -2.0, start)
      return Trace(jnp.array([1]), c[None], jnp.zeros(1), jnp.full(1, found))

    def calibrate(variables, federation):
      assert len(federation.server.examples.y) == 13
      return {**variables, 'batch_stats': jax.tree.map(
          lambda x: x + more, variables['batch_stats'])}

    return make(toys.norm, train=rounds.training(toys.norm), lengths='none', participation=3,
                leads=guide(toys.norm, find=Search(run, 0, 0)), calibrate=calibrate).round(*given)

  return toys.jit(round)


class FoundTest(absltest.TestCase):

  def play(self, count, found, more=0.0):
    return play(make(toys.norm), count, program=partial(told(), found, more))

  def test_negative_coefficients_leave_statistics_alone(self):
    (before, after), [measured] = self.play(1, found=-1.0)
    rows = anchors_of(measured)
    self.assertEqual({row['coefficient'] for row in rows.values()}, {-2, 0})
    toys.assert_close(model(after)['batch_stats'],
                      rounds.averaged()[0][1].variables['batch_stats'])
    # The parameters went the other way.
    usable = np.array([rows[owner]['coefficient'] != 0 if owner >= 0 else False
                       for owner in after.atlas.owner.tolist()])
    moved = jax.tree.map(lambda x, a: x - 2 * a[usable].sum(axis=0),
                         model(before)['params'], after.atlas.updates)
    toys.assert_close(model(after)['params'], moved, rtol=1e-4, atol=1e-5)

  def test_falls_back_to_federated_averaging(self):
    states, metrics = self.play(2, found=np.nan)
    toys.assert_close(model(states[-1]), rounds.averaged()[0][-1].variables, rtol=1e-4, atol=1e-5)
    self.assertEqual([m['server/fallback'] for m in metrics], [1, 1])

  def test_statistics_may_be_estimated_anew(self):
    (_, after), _ = self.play(1, found=np.nan, more=3.0)
    wanted = rounds.averaged()[0][1].variables
    toys.assert_close(model(after), {**wanted, 'batch_stats': jax.tree.map(
        lambda x: x + 3, wanted['batch_stats'])}, rtol=1e-4, atol=1e-5)


class DelayTest(absltest.TestCase):

  @pytest.mark.slow
  def test_is_uniform_up_to_the_most(self):
    algorithm = make(toys.linear, tau_max=3)
    state = algorithm.init(toys.key(0), FEDERATION)
    many = toys.jit(lambda federation, keys: jax.vmap(lambda key: algorithm.round(
        state, federation, key)[1]['records']['anchors']['delay'])(keys))(
            FEDERATION, jax.random.split(toys.key(5), 240))
    counts = np.bincount(np.ravel(many).astype(int), minlength=4)
    self.assertLen(counts, 4)
    expected = 5 * 240 / 4
    # Less than one in a thousand draws is that far off.
    self.assertLessEqual(((counts - expected)**2 / expected).sum(), 16.3)
    # Two clients of a round draw apart.
    self.assertLess(np.abs(np.corrcoef(np.transpose(many)[:2])[0, 1]), 0.25)


class ContractTest(parameterized.TestCase):

  def test_no_more_slots_than_clients(self):
    state = jax.eval_shape(make(slots=50).init, toys.key(0), FEDERATION)
    self.assertEqual(state.atlas.owner.shape, (5,))

  def test_traffic_tables_messages_and_costs(self):
    size = tree.nbytes(jax.eval_shape(toys.perceptron().init, toys.key(0)))
    self.assertEqual(searching(**LATE).traffic, (size, size))
    self.assertEqual(make().tables, ('anchors',))
    self.assertEqual(searching(**LATE).tables, ('anchors', 'search'))
    for metrics in searched(**LATE)[1]:
      self.assertEqual((metrics['messages_up'], metrics['messages_down']), (2, 2))
      self.assertEqual(set(metrics['records']), {'anchors', 'search'})
      self.assertEqual(set(metrics['records']['anchors']), {'valid', *TABLE})
      # Three checkpoints after the start; 4 examples are evaluated 4 times.
      self.assertEqual({len(column) for column in metrics['records']['search'].values()}, {4})
      self.assertEqual((metrics['server/gradients'], metrics['server/forwards']), (STEPS, 4 * 4))

  def test_the_view_is_the_newest_model(self):
    states, _ = searched(**LATE)
    views = searching(**LATE).views(states[1], FEDERATION)
    toys.assert_close(views, {'global': model(states[1])})
    toys.assert_far(views['global'], model(states[0]))

  @parameterized.parameters(
      ({'slots': 0}, 'atlas=0'), ({'tau_max': -1}, 'tau_max=-1'), ({'strikes': -1}, 'strikes=-1'),
      ({'slots': 2, 'participation': 3}, 'got atlas=2'),
      ({'slots': 4, 'participation': 0}, 'got atlas=4'))
  def test_refuses(self, settings, message):
    with self.assertRaisesRegex(InputError, message):
      make(**settings).init(toys.key(0), FEDERATION)


def built(build, network, **values):
  """Returns the algorithm that a config makes."""
  config = tiny(**{'local.batch': 99, 'local.epochs': 1, 'server.batch': 99, 'server.steps': 5,
                   **values})
  name = build.__name__.removeprefix('build_')
  return build(Parts(config, network(), mappers.one_by_one(), FEDERATION), config[name])


def recorded(algorithm):
  """Returns (state, the coefficients of those with rows) of one round."""
  (_, state), [metrics] = play(algorithm, 1)
  return state, np.array([row['coefficient'] for row in anchors_of(metrics).values()
                          if row['average'] > 0])


class ConfigTest(absltest.TestCase):

  def test_statistics_may_be_those_of_the_servers_rows(self):
    algorithm = built(feddle.build_feddle, toys.norm, **{
        'feddle.search': 'none', 'feddle.statistics': 'server', 'feddle.batches': 2})
    (_, state), _ = play(algorithm, 1)
    x, _ = toys.central(FEDERATION, np.asarray(FEDERATION.server.search))
    norm = model(state)['batch_stats']['trunk']['BatchNorm_0']
    np.testing.assert_allclose(norm['mean'], x.mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(norm['var'], x.var(axis=0), rtol=1e-4)

  @pytest.mark.slow
  def test_learned_soup_is_a_convex_merge_of_the_arrivals(self):
    algorithm = built(feddle.build_learned_soup, toys.linear, **{'learned_soup.lr': 0.5})
    state, weights = recorded(algorithm)
    self.assertEqual(state.atlas.owner.shape, (3,))
    self.assertGreaterEqual(weights.min(), 0)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)

  @pytest.mark.slow
  def test_adamerging_is_boxed_and_reads_no_labels(self):
    algorithm = built(feddle.build_adamerging, toys.linear, **{'adamerging.lr': 0.5})
    state, weights = recorded(algorithm)
    self.assertBetween(weights.min(), 0, 1)
    self.assertBetween(weights.max(), 0, 1)
    server = FEDERATION.server
    unlabeled = FEDERATION._replace(server=server._replace(
        examples=server.examples._replace(y=server.examples.y * 0 + 999)))
    (_, other), _ = play(algorithm, 1, unlabeled)
    toys.assert_close(other, state, rtol=0, atol=0)


if __name__ == '__main__':
  absltest.main()
