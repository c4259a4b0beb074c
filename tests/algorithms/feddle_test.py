"""Tests of Feddle against its twin, and of its laws."""

from absl.testing import absltest, parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from reference import feddle as reference
from reference import toys

from hmm_jax import tree
from hmm_jax.algorithms import fedavg, feddle
from hmm_jax.client import losses, mappers
from hmm_jax.client.local import local_training
from hmm_jax.merging import atlas as anchors
from hmm_jax.merging import recombine, search
from hmm_jax.server import guided_search, objectives
from hmm_jax.types import InputError

LR = 0.3
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


def guide(network=toys.perceptron, *, find=None, surrogate=None, **settings):
  values = {'project': anchors.any_weights, 'fallback': guided_search.HELD_OUT,
            'mapper': mappers.one_by_one(), 'steps': STEPS, 'batch': BATCH}
  return guided_search.Guide(
      surrogate or objectives.labels(network()),
      find or search.gradient_search(optax.adam(RATE)), **values | settings)


def training(network, **batches):
  return local_training(losses.cross_entropy(network()), optax.sgd(LR),
                        **batches or {'batch': 99, 'epochs': EPOCHS})


def make(network=toys.perceptron, *, leads=None, slots=5, coefficients='global', lengths='whole',
         evict='came', batches=None, **settings):
  return feddle.feddle(
      network(), training(network, **batches or {}), mapper=mappers.one_by_one(), guide=leads,
      slots=slots, units=UNITS[coefficients], lengths=LENGTHS[lengths], first_to_go=EVICT[evict],
      **settings)


def play(algorithm, federation=FEDERATION, rounds=3, state=None):
  """Returns the states from the start on, and the metrics of each round."""
  states, metrics = [state or toys.jit(algorithm.init)(toys.key(0), federation)], []
  program = toys.jit(algorithm.round)
  for r in range(rounds):
    state, measured = program(states[-1], federation, toys.key(r))
    states.append(state)
    metrics.append(measured)
  return states, metrics


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


def cohort_of(metrics):
  return [toys.IDS.index(i) for i in metrics['cohort'].id.tolist()]


class TwinTest(parameterized.TestCase):

  @parameterized.parameters(
      {'slots': 5},
      {'slots': 5, 'coefficients': 'layer', 'lengths': 'layer'},
      {'slots': 3, 'coefficients': 'layer', 'participation': 2, 'evict': 'score', 'strikes': 1},
      {'slots': 3, 'lengths': 'none', 'participation': 2, 'tau_max': 2},
      {'slots': 4, 'coefficients': 'layer', 'lengths': 'layer', 'participation': 3, 'tau_max': 1,
       'strikes': 2, 'memory': 0.2})
  def test_rounds_with_a_search_equal_the_twins(self, **settings):
    self.assert_equal_to_twin(rounds=5, leads=guide(), search=True, **settings)

  @parameterized.parameters((1, 0), (3, 2))
  def test_an_update_comes_from_an_older_model_and_goes_to_the_newest(
      self, tau_max, participation):
    delays = self.assert_equal_to_twin(
        rounds=10, tau_max=tau_max, participation=participation, search=False, slots=5)
    # Every delay is seen while so many versions exist.
    self.assertEqual({d for round in delays[tau_max:] for d in round.values()},
                     {*range(tau_max + 1)})

  def assert_equal_to_twin(self, *, search, slots, rounds, leads=None, **settings):
    states, metrics = play(make(leads=leads, slots=slots, **settings), rounds=rounds)
    delays = [delays_of(m) for m in metrics]
    self.assertEqual([sorted(d) for d in delays], [sorted(cohort_of(m)) for m in metrics])
    same = {name: value for name, value in settings.items()
            if name not in ('tau_max', 'participation')}
    versions, twin, seen = reference.feddle(
        toys.twin(toys.start(toys.perceptron)), toys.tables(FEDERATION), toys.IDS, count=slots,
        cohorts=[cohort_of(m) for m in metrics], delays=delays, epochs=EPOCHS, lr=LR,
        search=drawn if search else None, **same)
    for state, wanted in zip(states, versions, strict=True):
      toys.assert_close(toys.twin(model(state)), wanted, rtol=1e-4, atol=1e-4)
    fallbacks = set()
    for measured, rows in zip(metrics, seen, strict=True):
      found = anchors_of(measured)
      self.assertEqual(found.keys(), rows.keys())
      for client, (c, average, age) in rows.items():
        np.testing.assert_allclose(found[client]['coefficient'], np.mean(c), atol=1e-4)
        np.testing.assert_allclose(found[client]['average'], np.mean(average), atol=1e-4)
        self.assertEqual(found[client]['age'], age)
        self.assertEqual(np.isnan(found[client]['delay']), age > 0)
      fallbacks.add(float(measured.get('server/fallback', 1)))
    if search:
      self.assertIn(0, fallbacks)
    atlas = states[-1].atlas
    self.assertEqual(atlas.owner.tolist(), [e['owner'] if e else -1 for e in twin.values()])
    np.testing.assert_allclose(atlas.score, [e['score'] if e else 0 for e in twin.values()],
                               atol=1e-4)
    self.assertEqual(atlas.strikes.tolist(), [e['strikes'] if e else 0 for e in twin.values()])
    for slot, entry in twin.items():
      if entry:
        toys.assert_close(toys.twin({'params': tree.take(atlas.updates, slot)}), entry['update'],
                          rtol=1e-4, atol=1e-4)
    return delays


def drawn(r):
  """Returns what the server draws in a round, its data, its held-out rows and Adam's rate."""
  search_key = jax.random.split(toys.key(r), 4)[3]
  batches = search.minibatches(jax.random.split(search_key)[0], FEDERATION.server.search,
                               batch=BATCH, steps=STEPS)
  return (np.asarray(batches), toys.central(FEDERATION),
          np.asarray(FEDERATION.server.held_out), RATE)


class AverageTest(parameterized.TestCase):

  @parameterized.parameters(
      (toys.perceptron, 0, 'global', 'whole'), (toys.perceptron, 2, 'layer', 'layer'),
      (toys.perceptron, 2, 'global', 'none'), (toys.norm, 0, 'layer', 'layer'),
      (toys.norm, 2, 'global', 'whole'))
  def test_without_a_guide_it_is_federated_averaging(
      self, network, participation, coefficients, lengths):
    federation, batches = toys.federation(SIZES), {'batch': 3, 'epochs': 2}
    states, metrics = play(
        make(network, coefficients=coefficients, lengths=lengths, participation=participation,
             batches=batches), federation)
    plain = fedavg.fedavg(network(), training(network, **batches), mapper=mappers.one_by_one(),
                          participation=participation)
    others, plain_metrics = play(plain, federation)
    for state, other in zip(states, others, strict=True):
      toys.assert_close(model(state), other.variables, rtol=1e-4, atol=1e-5)
    for got, wanted in zip(metrics, plain_metrics, strict=True):
      self.assertEqual({*got} - {*wanted}, {'records'})
      for name in wanted.keys() - {'cohort'}:
        toys.assert_close(got[name], wanted[name], rtol=1e-4)
      self.assertEqual(got['cohort'].id.tolist(), sorted(wanted['cohort'].id.tolist()))
    self.assertEqual(states[-1].round, 3)

  @parameterized.parameters('global', 'layer')
  def test_its_coefficients_are_the_shares_times_relative_lengths(self, coefficients):
    lengths = {'global': 'whole', 'layer': 'layer'}[coefficients]
    states, metrics = play(make(participation=2, coefficients=coefficients, lengths=lengths),
                           rounds=4)
    older = 0
    for before, after, measured in zip(states, states[1:], metrics, strict=False):
      table, cohort = anchors_of(measured), cohort_of(measured)
      atlas, updates = after.atlas, {}
      for slot, owner in enumerate(atlas.owner.tolist()):
        if owner >= 0:
          updates[owner] = toys.twin({'params': tree.take(atlas.updates, slot)})
      wanted = {owner: [] for owner in updates}
      for names in reference.UNITS[coefficients]:
        size = {owner: np.sqrt(sum(np.square(update[name]).sum() for name in names))
                for owner, update in updates.items()}
        median = np.median([length for length in size.values() if length > 0])
        total = sum(SIZES[k] for k in cohort)
        for owner in updates:
          k = toys.IDS.index(owner)
          wanted[owner].append(SIZES[k] / total * size[owner] / median if k in cohort else 0)
      for owner, row in table.items():
        for column in ('coefficient', 'average'):
          np.testing.assert_allclose(row[column], np.mean(wanted[owner]), rtol=1e-4, atol=1e-7)
        older += toys.IDS.index(owner) not in cohort
      self.assertEqual(before.round + 1, after.round)
    self.assertGreater(older, 3)

  def test_all_versions_are_kept_as_long_as_they_may_be_asked_for(self):
    states, _ = play(make(toys.norm, tau_max=2), rounds=4)
    for r, state in enumerate(states):
      for age in range(3):
        toys.assert_close(tree.take(state.past, age), model(states[max(r - age, 0)]),
                          rtol=0, atol=0)

  def test_statistics_come_from_the_arrivals(self):
    # After several rounds the running mean is a decay of the arrivals' own, not a sum.
    states, metrics = play(make(toys.norm, tau_max=1, participation=2), rounds=4)
    for r, measured in enumerate(metrics):
      wanted, total = 0, sum(SIZES[k] for k in cohort_of(measured))
      for k, delay in delays_of(measured).items():
        x, y = toys.tables(FEDERATION)[k]
        before = states[max(r - delay, 0)].past['batch_stats']['trunk']['BatchNorm_0']['mean'][0]
        decay = 0.9**EPOCHS if len(y) else 1
        own = decay * np.asarray(before) + (1 - decay) * (x.mean(axis=0) if len(y) else 0)
        wanted = wanted + len(y) / total * own
      got = model(states[r + 1])['batch_stats']['trunk']['BatchNorm_0']['mean']
      np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)


class SearchTest(parameterized.TestCase):

  def test_negative_coefficients_leave_variances_alone(self):
    def run(loss, judge, start, batches, key, project):
      c = jnp.where(start > 0, -2.0, start)
      return search.Trace(jnp.array([1]), c[None], jnp.zeros(1), jnp.zeros(1))

    leads = guide(toys.norm, find=search.Search(run, 0, 0), fallback=guided_search.NEVER)
    states, metrics = play(make(toys.norm, leads=leads, lengths='none'), rounds=1)
    plain, _ = play(make(toys.norm, lengths='none'), rounds=1)
    rows = anchors_of(metrics[0])
    self.assertEqual({row['coefficient'] for row in rows.values()}, {-2, 0})
    statistics = model(states[1])['batch_stats']
    toys.assert_close(statistics, model(plain[1])['batch_stats'], rtol=0, atol=0)
    self.assertGreater(float(statistics['trunk']['BatchNorm_0']['var'].min()), 0)
    # The parameters went the other way.
    start = toys.start(toys.norm)['params']
    updates = states[1].atlas.updates
    moved = jax.tree.map(lambda x, a: x - 2 * a[np.flatnonzero(
        states[1].atlas.owner != 9)].sum(axis=0), start, updates)
    toys.assert_close(model(states[1])['params'], moved, rtol=1e-4, atol=1e-5)

  def test_the_new_model_is_never_worse_on_the_held_out_rows_than_the_average(self):
    leads = guide(find=search.gradient_search(optax.adam(0.4)), batch=1)
    states, metrics = play(make(leads=leads), rounds=6)
    x, y = toys.central(FEDERATION, np.asarray(FEDERATION.server.held_out))
    self.assertEqual({float(measured['server/fallback']) for measured in metrics}, {0, 1})
    for after, measured in zip(states[1:], metrics, strict=True):
      loss = reference.two_layer.losses(toys.twin(model(after)), x, y).mean()
      self.assertLessEqual(loss, measured['server/average_loss'] * (1 + 1e-5))
      taken = 'average' if measured['server/fallback'] else 'found'
      np.testing.assert_allclose(loss, measured[f'server/{taken}_loss'], rtol=1e-4)

  def test_falls_back_to_federated_averaging(self):
    def run(loss, judge, start, batches, key, project):
      return search.Trace(jnp.array([1]), start[None] + 1, jnp.zeros(1), jnp.full(1, jnp.nan))

    states, metrics = play(make(leads=guide(find=search.Search(run, 0, 0))))
    others, _ = play(make())
    toys.assert_close(model(states[-1]), model(others[-1]), rtol=1e-5)
    self.assertEqual([m['server/fallback'] for m in metrics], [1, 1, 1])

  def test_a_client_without_rows_does_no_harm(self):
    evolution = search.evolution_search(sigma=0.3, population=8)
    empty = toys.IDS[2]
    leads = guide(find=evolution, fallback=guided_search.NEVER)
    states, metrics = play(make(leads=leads, lengths='layer', coefficients='layer'))
    for measured in metrics:
      self.assertEqual(anchors_of(measured)[empty]['coefficient'], 0)
    self.assertTrue(tree.all_finite(states[-1]))
    slot = states[-1].atlas.owner.tolist().index(empty)
    self.assertEqual((states[-1].atlas.score[slot], states[-1].atlas.strikes[slot]), (0, 0))

  def test_a_round_in_which_nobody_has_rows_changes_nothing(self):
    nobody = FEDERATION._replace(clients=FEDERATION.clients._replace(size=np.zeros(5, np.int32)))
    states, _ = play(make(leads=guide(fallback=guided_search.NEVER)), nobody, rounds=1)
    toys.assert_close(model(states[1]), model(states[0]), rtol=0, atol=0)

  def test_the_order_of_the_clients_does_not_matter(self):
    order = np.array([3, 0, 4, 2, 1])
    moved = FEDERATION._replace(clients=jax.tree.map(lambda x: x[order], FEDERATION.clients))
    algorithm = make(leads=guide(), participation=2, slots=3, tau_max=1)
    states, metrics = zip(*(play(algorithm, f, rounds=4) for f in (FEDERATION, moved)))
    toys.assert_close(states[1], states[0], rtol=0, atol=0)
    for got, wanted in zip(metrics[1], metrics[0], strict=True):
      toys.assert_close(got['records'], wanted['records'], rtol=0, atol=0)

  def test_distils_the_models_that_the_clients_sent(self):
    # An update is not a model, and its model began where it was sent from.
    teach = objectives.distil(toys.perceptron())
    seen = []
    made = teach._replace(targets=lambda models, examples: (
        seen.append(models), teach.targets(models, examples))[1])
    algorithm = make(leads=guide(surrogate=made), tau_max=2)
    state = play(make(tau_max=2), rounds=3)[0][-1]
    measured, models = toys.jit(lambda *given: (algorithm.round(*given)[1], seen[0]))(
        state, FEDERATION, toys.key(7))
    order = np.argsort(toys.IDS[:5])
    delays = delays_of(measured)
    self.assertGreater(len(set(delays.values())), 1)
    for i, k in enumerate(order):
      start = toys.twin(tree.take(state.past, delays[k]))
      update = reference.local_update(start, *toys.tables(FEDERATION)[k], epochs=EPOCHS, lr=LR)
      wanted = {name: start[name] + update[name] for name in start}
      toys.assert_close(toys.twin(tree.take(models, i)), wanted, rtol=1e-4, atol=1e-5)

  def test_statistics_may_be_estimated_anew(self):
    def calibrate(variables, federation):
      self.assertLen(federation.server.examples.y, 13)
      return {**variables, 'batch_stats': jax.tree.map(lambda x: x + 3, variables['batch_stats'])}

    states, _ = play(make(toys.norm, calibrate=calibrate), rounds=1)
    plain, _ = play(make(toys.norm), rounds=1)
    toys.assert_close(model(states[1]), calibrate(model(plain[1]), FEDERATION))


class DelayTest(parameterized.TestCase):

  @parameterized.parameters((1, 10.9), (3, 16.3))
  def test_is_uniform_up_to_the_most(self, tau_max, quantile):
    algorithm = make(toys.linear, tau_max=tau_max)
    state = toys.jit(algorithm.init)(toys.key(0), FEDERATION)
    many = toys.jit(lambda federation, keys: jax.vmap(lambda key: algorithm.round(
        state, federation, key)[1]['records']['anchors']['delay'])(keys))(
            FEDERATION, jax.random.split(toys.key(5), 240))
    counts = np.bincount(np.ravel(many).astype(int), minlength=tau_max + 1)
    self.assertLen(counts, tau_max + 1)
    expected = 5 * 240 / (tau_max + 1)
    # Less than one in a thousand draws is that far off.
    self.assertLessEqual(((counts - expected)**2 / expected).sum(), quantile)
    # Two clients of a round draw apart.
    self.assertLess(np.abs(np.corrcoef(np.transpose(many)[:2])[0, 1]), 0.25)

  def test_none_equals_the_synchronous_form(self):
    states, metrics = play(make(leads=guide(), tau_max=0))
    for measured in metrics:
      self.assertEqual(set(delays_of(measured).values()), {0})
    self.assertEqual({leaf.shape[0] for leaf in jax.tree.leaves(states[-1].past)}, {1})


class ContractTest(parameterized.TestCase):

  def test_shapes_stay_and_one_program_serves_all_rounds(self):
    traces, algorithm = [], make(leads=guide(), participation=2, slots=3, tau_max=1, strikes=1)

    def round(state, federation, key):
      traces.append(key)
      return algorithm.round(state, federation, key)

    program, state = toys.jit(round), toys.jit(algorithm.init)(toys.key(0), FEDERATION)
    for r in range(6):
      after, _ = program(state, FEDERATION, toys.key(r))
      chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
      state = after
    self.assertLen(traces, 1)

  def test_no_more_slots_than_clients(self):
    state = make(slots=50).init(toys.key(0), FEDERATION)
    self.assertEqual(state.atlas.owner.shape, (5,))

  def test_traffic_tables_and_messages(self):
    algorithm = make(toys.norm, participation=2)
    size = tree.nbytes(toys.start(toys.norm))
    self.assertEqual((algorithm.traffic.up, algorithm.traffic.down), (size, size))
    self.assertEqual(algorithm.tables, ('anchors',))
    self.assertEqual(make(leads=guide()).tables, ('anchors', 'search'))
    for leads in (None, guide()):
      made = make(leads=leads, participation=2)
      _, [metrics] = play(made, rounds=1)
      self.assertEqual((metrics['messages_up'], metrics['messages_down']), (2, 2))
      self.assertEqual(set(metrics['records']), set(made.tables))
      self.assertEqual(set(metrics['records']['anchors']), {'valid', *TABLE})
    # Three marks after the start.
    self.assertEqual({len(column) for column in metrics['records']['search'].values()}, {4})

  def test_costs(self):
    find = search.evolution_search(sigma=0.1, population=3)
    _, [metrics] = play(make(leads=guide(find=find)), rounds=1)
    self.assertEqual(metrics['server/gradients'], 0)
    # 4 rows are judged by 4 times.
    self.assertEqual(metrics['server/forwards'], 3 * STEPS * BATCH + 4 * 4)

  def test_the_view_is_the_newest_model(self):
    algorithm = make(tau_max=2)
    states, _ = play(algorithm, rounds=1)
    views = algorithm.views(states[1], FEDERATION)
    self.assertEqual([*views], ['global'])
    toys.assert_close(views['global'], model(states[1]))
    toys.assert_far(views['global'], model(states[0]))

  @parameterized.parameters(
      ({'slots': 0}, 'got feddle.atlas=0, feddle.tau_max=0, feddle.strikes=0; expected'),
      ({'tau_max': -1}, 'got feddle.atlas=5, feddle.tau_max=-1'),
      ({'strikes': -1}, 'feddle.strikes=-1; expected at least 1, and 0 or more'),
      ({'slots': 2, 'participation': 3}, 'got feddle.atlas=2 with 3 clients a round; expected at'),
      ({'slots': 4, 'participation': 0}, 'got feddle.atlas=4 with 5 clients a round; expected at'))
  def test_refuses(self, settings, message):
    with self.assertRaisesRegex(InputError, message):
      make(**settings).init(toys.key(0), FEDERATION)


if __name__ == '__main__':
  absltest.main()
