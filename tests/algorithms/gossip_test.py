"""Tests of gossip against its pseudo-code, counts by hand, and from a config."""

from functools import cache
import itertools

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import gossip as reference
from reference import rounds, softmax_regression, toys
from reference.configs import experiment, tiny

from hmm_jax import tree
from hmm_jax.algorithms import gossip
from hmm_jax.algorithms.parts import Parts
from hmm_jax.client import losses, mappers, sampling
from hmm_jax.client.local import continued_training
from hmm_jax.decentralized import topology
from hmm_jax.decentralized.schedule import schedule
from hmm_jax.merging.batch_norm import recalibrate
from hmm_jax.types import Cohort

LR, BETA = rounds.LR, 0.8
FEDERATION = toys.federation()
PLACES = (3, 1, 4, 0, 2)  # The ranks of toys.IDS[:5].
OPTIMIZERS = {
    'sgd': optax.sgd(LR),
    'momentum': optax.sgd(LR, momentum=BETA),
}
MODEL_BYTES = 4 * (4 * 3 + 3)


def rest(start, examples, client, extra, key):
  """Local work that changes nothing."""
  del examples, key
  return start, extra, Cohort(client.id, jnp.float32(1), jnp.bool_(True), client.size,
                              jnp.int32(0))


def averaged(variables, federation):
  """Leaves the averaged statistics alone."""
  del federation
  return variables


@cache
def make(graph='ring', network=toys.linear, *, agents=5, optimizer=None, batch=99, epochs=1,
         rate=1.0, text='', begin=gossip.different_inits, share=gossip.everything, final=None,
         fix=averaged):
  """Returns gossip; agents rest unless they have an optimizer."""
  work = continued_training(losses.supervised(network()), OPTIMIZERS[optimizer], batch=batch,
                            epochs=epochs) if optimizer else rest
  graph = topology.topology(graph, agents)
  return gossip.gossip(
      network(), work, topology=graph,
      schedule=schedule(text, rate=rate, rounds=300, max_rate=graph.max_rate),
      mapper=mappers.one_by_one(),
      init_private=OPTIMIZERS[optimizer].init if optimizer else lambda params: (),
      begin=begin, share=share, calibrate=fix,
      final=final and (topology.topology(final[0], agents), final[1]))


def crowd(agents, ids=None):
  """Returns a federation of so many agents, whose ids are in no order."""
  ids = ids or tuple(np.random.default_rng(0).permutation(3 * agents)[:agents])
  return FEDERATION._replace(clients=toys.clients([[0]] * agents, ids=ids))


@cache
def play(algorithm, count, *, crowded=0, ids=None):
  """Returns the states after 0, 1, ... rounds and the metrics of each round."""
  federation = crowd(crowded, ids) if crowded else FEDERATION
  return rounds.play(algorithm, count, federation=federation)


def close(algorithm, state, federation=FEDERATION):
  """Returns the state after the final merge and its metrics."""
  return rounds.compiled(algorithm.finish)(state, federation, toys.key(99))


def flat(stacked):
  """Returns the parameters of each agent in one row, [K, P] float64."""
  leaves = jax.tree.leaves(stacked['params'])
  return np.concatenate([np.asarray(x, np.float64).reshape(len(x), -1) for x in leaves], axis=1)


def matrix(before, after):
  """Finds what mixed the models of one state into those of another, [K, K]."""
  found = flat(after.stacked) @ np.linalg.pinv(flat(before.stacked))
  return np.where(np.abs(found) < 1e-4, 0, found)


def apart(stacked):
  """Returns the agents' mean squared distance to their mean."""
  models = flat(stacked)
  return ((models - models.mean(axis=0)) ** 2).sum() / len(models)


def off_diagonal(matrix):
  return (matrix != 0) & ~np.eye(len(matrix), dtype=bool)


def twins(stacked):
  return [toys.twin(model) for model in tree.unstack(stacked)]


@cache
def scheduled():
  """Returns gossip on a ring which falls silent, and is complete then."""
  return make(optimizer='momentum', epochs=2, text='constant:0@3:5,dense@5:6')


class RoundTest(parameterized.TestCase):

  def test_equals_the_pseudo_code(self):
    # Three rounds of the ring, two in silence, in which agents train alone, and one of all.
    algorithm = scheduled()
    states, metrics = play(algorithm, 6)
    mixing = [reference.ring(PLACES)] * 3 + [np.eye(5)] * 2 + [np.full((5, 5), 0.2)]
    models, velocities = reference.gossip(
        twins(states[0].stacked), toys.tables(FEDERATION), mixing, steps=2, lr=LR, beta=BETA,
        gradient=softmax_regression.gradient)
    kept = states[-1].private[0].trace
    for got, wanted in ((twins(states[-1].stacked), models),
                        (twins({'params': kept}), velocities)):
      for k in range(5):
        toys.assert_close(got[k], wanted[k], rtol=1e-4, atol=1e-5)
    spread = [apart(state.stacked) for state in states[1:]]
    self.assertLess(spread[5], 1e-10)
    self.assertGreater(min(spread[:5]), 0.01)
    np.testing.assert_allclose(
        [m['messages_up'] for m in metrics], [10, 10, 10, 0, 0, 8], rtol=1e-6)
    np.testing.assert_allclose(
        np.diff([s.expected for s in states]), [2, 2, 2, 0, 0, 1.6], rtol=1e-5)
    ring = topology.topology('ring', 5).contraction(1.0)
    np.testing.assert_allclose(
        [m['expected/contraction'] for m in metrics], [ring] * 3 + [0, 0, 1], rtol=1e-6)
    np.testing.assert_allclose(
        [m['realised/contraction'] for m in metrics[3:]], [0, 0, 1], atol=1e-6)

  def test_reports_the_mean_loss_of_the_rows(self):
    states, metrics = play(scheduled(), 6)
    start, rows = twins(states[0].stacked), toys.tables(FEDERATION)
    seen = []
    for model, (x, y) in zip(start, rows, strict=True):
      still = {name: np.zeros_like(value) for name, value in model.items()}
      after, _ = reference.momentum_steps(model, still, x, y, 1, lr=LR, beta=BETA,
                                          gradient=softmax_regression.gradient)
      seen += [softmax_regression.losses(m, x, y) for m in (model, after)]
    toys.assert_close(metrics[0]['train/loss'], np.concatenate(seen).mean())
    self.assertEqual(metrics[0]['cohort'].id.tolist(), list(toys.IDS[:5]))

  def test_the_place_of_an_agent_is_the_rank_of_its_id(self):
    # These ranks are not their own inverse.
    places, those = (2, 3, 0, 4, 1), {'crowded': 5, 'ids': (5, 8, 1, 9, 3)}
    states, _ = play(make('star'), 1, **those)
    expected, hub = 0.8 * np.eye(5), 2
    expected[hub] = expected[:, hub] = 0.2
    np.testing.assert_allclose(matrix(*states), expected, atol=1e-5)
    states, _ = play(make('one_peer_exponential'), 3, **those)
    for r, hop in enumerate((1, 2, 4)):
      peers = [[float((b - a) % 5 == hop) for b in places] for a in places]
      np.testing.assert_allclose(
          matrix(*states[r:r + 2]), (np.eye(5) + peers) / 2, atol=1e-4)

  def test_every_round_draws_anew(self):
    algorithm, federation = make('matching', agents=8), crowd(8)
    start = play(algorithm, 0, crowded=8)[0][0]
    drawn = [matrix(start, rounds.compiled(algorithm.round)(start, federation, toys.key(r))[0])
             for r in (0, 0, 1, 2)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    self.assertGreater(max(np.abs(w - drawn[0]).max() for w in drawn[2:]), 0.4)

  @parameterized.named_parameters(('matching', 'matching'), ('pull', 'pull'))
  def test_the_mean_stays_but_for_pull(self, graph):
    states, _ = play(make(graph, rate=0.5), 4)
    before, after = (flat(states[r].stacked).mean(axis=0) for r in (0, -1))
    self.assertLess(apart(states[-1].stacked), 0.8 * apart(states[0].stacked))
    if graph == 'pull':
      self.assertGreater(np.abs(after - before).max(), 0.01)
    else:
      np.testing.assert_allclose(after, before, rtol=0, atol=1e-6)

  def test_contraction_is_of_what_training_left(self):
    states, metrics = play(make('pull', rate=0.5), 4)
    spread = [apart(state.stacked) for state in states]
    for r, report in enumerate(metrics):
      np.testing.assert_allclose(
          report['realised/contraction'], 1 - spread[r + 1] / spread[r], rtol=1e-4, atol=1e-5)
      np.testing.assert_allclose(
          report['expected/contraction'], topology.topology('pull', 5).contraction(0.5), rtol=1e-6)
    # Models that are one have nothing to lose.
    alike = states[0]._replace(stacked=gossip.same_init(
        toys.linear(), toys.key(0), FEDERATION.clients))
    _, [report] = rounds.play(make('pull', rate=0.5), 1, federation=FEDERATION, state=alike)
    self.assertEqual(report['realised/contraction'], 0)

  def test_starts(self):
    alike, _ = play(make(begin=gossip.same_init), 0)
    toys.assert_close(alike[0].stacked, tree.repeat(toys.start(toys.linear), 5))
    unlike, _ = play(make(), 0)
    for k, agent in enumerate(toys.IDS[:5]):
      expected = toys.linear().init(jax.random.fold_in(toys.key(0), agent))
      toys.assert_close(tree.take(unlike[0].stacked, k), expected)


class FinishTest(parameterized.TestCase):

  def test_a_uniform_merge_ends_with_one_model_and_an_allreduce(self):
    algorithm = make('matching', agents=8, rate=0.5, final=('complete', 1))
    states, _ = play(algorithm, 2, crowded=8)
    after, metrics = close(algorithm, states[-1], crowd(8))
    mean = flat(states[-1].stacked).mean(axis=0)
    np.testing.assert_allclose(flat(after.stacked), np.tile(mean, (8, 1)), rtol=0, atol=1e-6)
    for name in ('sent', 'received'):
      grown = getattr(after, name) - getattr(states[-1], name)
      np.testing.assert_allclose(grown, np.full(8, 2 * 7 / 8), rtol=1e-6)
    self.assertAlmostEqual(float(after.expected - states[-1].expected), 2 * 7 / 8, places=5)
    self.assertEqual(metrics.keys(), {'messages_up', 'messages_down'})
    np.testing.assert_allclose(list(metrics.values()), 2 * 7, rtol=1e-6)
    self.assertEqual(after.round, 2)

  def test_rounds_of_a_sequence(self):
    algorithm = make(agents=8, final=('one_peer_exponential', 3))
    states, _ = play(algorithm, 0, crowded=8)
    after, metrics = close(algorithm, states[0], crowd(8))
    self.assertLess(apart(after.stacked), 1e-6)
    self.assertEqual(after.sent.tolist(), [3] * 8)
    self.assertEqual(float(after.expected), 3)
    self.assertEqual([float(m) for m in metrics.values()], [8 * 3] * 2)

  def test_every_round_draws_anew_at_rate_one(self):
    algorithm = make(agents=8, rate=0.0, final=('matching', 2))
    states, _ = play(algorithm, 0, crowded=8)
    after, _ = close(algorithm, states[0], crowd(8))
    # Twice the same matching would leave one partner each.
    self.assertGreater(off_diagonal(matrix(states[0], after)).sum(axis=1).max(), 1)
    self.assertEqual(after.sent.tolist(), [2] * 8)

  def test_places_follow_ids(self):
    algorithm, ids = make('star', final=('ring', 1)), (5, 8, 1, 9, 3)
    states, _ = play(algorithm, 0, crowded=5, ids=ids)
    after, _ = close(algorithm, states[0], crowd(5, ids))
    np.testing.assert_allclose(
        matrix(states[0], after), reference.ring((2, 3, 0, 4, 1)), atol=1e-5)

  def test_there_may_be_none(self):
    self.assertIsNone(make().finish)

  @parameterized.parameters(('', None), ('linear:0:1', 300))
  def test_says_whether_the_length_is_read(self, text, expected):
    self.assertEqual(make(text=text).length, expected)


class LedgerTest(parameterized.TestCase):

  def test_costs_of_a_run_are_those_expected_matching(self):
    self.assert_expected('matching', 16)

  @pytest.mark.slow
  def test_costs_of_a_run_are_those_expected_pull(self):
    self.assert_expected('pull', 32)

  def assert_expected(self, graph, agents):
    algorithm = make(graph, agents=agents, rate=0.2, final=('complete', 1))
    federation = crowd(agents)

    def run(key):
      state = algorithm.init(key, federation)
      keys = jax.random.split(key, 300)
      state, metrics = jax.lax.scan(
          lambda state, k: algorithm.round(state, federation, k), state, keys)
      state, last = algorithm.finish(state, federation, key)
      return state, metrics, last, algorithm.gauges(state)

    state, metrics, last, gauges = toys.jit(run)(toys.key(0))
    every, final = 300 * 2 * (agents - 1) / agents, 2 * (agents - 1) / agents
    share = (0.2 * 300 + final) / every
    np.testing.assert_allclose(gauges['expected/share_of_allreduce'], share, rtol=1e-4)
    self.assertAlmostEqual(share, {16: 0.110, 32: 0.1066}[agents], places=4)

    # A pair exchanges two models at once, a pull is one.
    alike = 2 if graph == 'matching' else 1
    draws = 300 * agents / alike
    error = alike * np.sqrt(draws * 0.2 * 0.8) / agents / every
    self.assertLess(abs(gauges['realised/share_of_allreduce'] - share), 4 * error)
    self.assertGreater(abs(gauges['realised/share_of_allreduce'] - share), 0)

    for way, ledger in (('up', state.sent), ('down', state.received)):
      total = metrics[f'messages_{way}'].sum() + last[f'messages_{way}']
      np.testing.assert_allclose(total, ledger.sum(), rtol=1e-6)
    np.testing.assert_allclose(state.sent.sum(), state.received.sum(), rtol=1e-6)
    for way in ('sent', 'received'):
      self.assertGreater(gauges[f'agent_{way}_max/bytes'], gauges[f'agent_{way}/bytes'])

  def test_counts_by_hand(self):
    algorithm = make('pull', rate=0.5)
    states, metrics = play(algorithm, 4)
    edges = [off_diagonal(matrix(*states[r:r + 2])) for r in range(4)]
    sent, received = (sum(e.sum(axis=axis) for e in edges) for axis in (0, 1))
    self.assertNotEqual(sent.tolist(), received.tolist())
    self.assertEqual(states[-1].sent.tolist(), sent.tolist())
    self.assertEqual(states[-1].received.tolist(), received.tolist())
    self.assertEqual([float(m['messages_up']) for m in metrics], [e.sum() for e in edges])
    self.assertEqual([float(m['messages_down']) for m in metrics], [e.sum() for e in edges])
    gauges = {name: float(value) for name, value in algorithm.gauges(states[-1]).items()}
    toys.assert_close(gauges, {
        'consensus': apart(states[-1].stacked),
        'agent_sent/bytes': sent.mean() * MODEL_BYTES,
        'agent_sent_max/bytes': sent.max() * MODEL_BYTES,
        'agent_received/bytes': received.mean() * MODEL_BYTES,
        'agent_received_max/bytes': received.max() * MODEL_BYTES,
        'realised/share_of_allreduce': sent.mean() / (4 * 1.6),
        'expected/share_of_allreduce': 4 * 0.5 / (4 * 1.6)})
    start = algorithm.gauges(states[0])
    self.assertEqual(start['realised/share_of_allreduce'], 0)

  @parameterized.named_parameters(
      ('statistics_too', gossip.everything, 4 * 31), ('parameters', gossip.parameters, 4 * 23))
  def test_a_message_is_what_is_shared(self, share, size):
    # Kernel, bias, scale and shift of four inputs; mean and variance of each.
    algorithm = make(network=toys.norm, share=share)
    self.assertEqual(algorithm.traffic, (size, size))
    [state], _ = play(algorithm, 0)
    counted = np.full(5, 2, np.float32)
    gauges = algorithm.gauges(state._replace(sent=counted, received=counted))
    self.assertEqual({float(gauges[f'agent_{way}/bytes']) for way in
                      ('sent', 'sent_max', 'received', 'received_max')}, {2 * size})


def own_statistics():
  """Returns running mean and variance [K, 4] after one full-batch step of each agent."""
  x = [x for x, _ in toys.tables(FEDERATION)]
  return {'mean': np.stack([0.1 * rows.mean(axis=0) for rows in x]),
          'var': np.stack([0.9 + 0.1 * rows.var(axis=0) for rows in x])}


def statistics(variables):
  return variables['batch_stats']['trunk']['BatchNorm_0']


def pooled(federation):
  clients = sampling.pool(federation.clients)
  return clients.index[0], clients.size[0]


recalibrated = recalibrate.calibration(toys.norm(), pooled, batches=3, batch=4)


def recalibrated_statistics():
  """Returns mean and variance over the same random batches of training rows, in NumPy."""
  rows = np.sort(np.concatenate(toys.rows(FEDERATION.clients)))
  draws = rows[np.asarray(jax.random.randint(jax.random.key(0), (3, 4), 0, len(rows)))]
  x = np.asarray(FEDERATION.examples.x, np.float64)[draws]
  return {'mean': x.mean(axis=1).mean(axis=0), 'var': x.var(axis=1).mean(axis=0)}


class StatisticsTest(absltest.TestCase):

  def test_are_mixed(self):
    algorithm = make('complete', toys.norm)
    [state], _ = play(algorithm, 0)
    rng = np.random.default_rng(0)
    own = {name: rng.uniform(1, 2, (5, 4)).astype(np.float32) for name in ('mean', 'var')}
    (_, after), _ = rounds.play(algorithm, 1, federation=FEDERATION, state=state._replace(
        stacked={**state.stacked, 'batch_stats': {'trunk': {'BatchNorm_0': own}}}))
    self.assertLess(apart(after.stacked), 1e-10)
    toys.assert_close(statistics(after.stacked), {
        name: np.tile(value.mean(axis=0), (5, 1)) for name, value in own.items()})

  def test_are_kept_and_averaged_in_the_merge(self):
    algorithm = make('complete', toys.norm, optimizer='sgd', share=gossip.parameters,
                     final=('complete', 1))
    state = play(algorithm, 1)[0][-1]
    self.assertLess(apart(state.stacked), 1e-10)
    toys.assert_close(statistics(state.stacked), own_statistics())
    views = algorithm.views(state, FEDERATION)
    self.assertEqual(views.keys(), {'clients', 'locals', 'merged'})
    mean = {name: value.mean(axis=0) for name, value in own_statistics().items()}
    toys.assert_close(statistics(views['merged']), mean)
    toys.assert_close(views['merged']['params'], tree.take(state.stacked['params'], 2))
    for view in ('clients', 'locals'):
      toys.assert_close(views[view], state.stacked, rtol=0, atol=0)

    after, sent = close(algorithm, state)
    toys.assert_close(statistics(after.stacked), {
        name: np.tile(value, (5, 1)) for name, value in mean.items()})
    # An AllReduce among five is eight models in all, here with their statistics.
    self.assertAlmostEqual(float(sent['messages_up']) * algorithm.traffic.up, 8 * 4 * 31, places=3)

  def test_a_merged_model_is_recalibrated_after_some_gossip_too(self):
    algorithm = make(network=toys.norm, final=('ring', 1), fix=recalibrated)
    state = play(algorithm, 0)[0][0]
    after, _ = close(algorithm, state)
    self.assertGreater(apart(after.stacked), 0.01)
    toys.assert_close(statistics(after.stacked), {
        name: np.tile(value, (5, 1)) for name, value in recalibrated_statistics().items()})
    merged = rounds.compiled(algorithm.views)(state, FEDERATION)['merged']
    toys.assert_close(statistics(merged), recalibrated_statistics())
    np.testing.assert_allclose(
        flat(tree.stack([merged]))[0], flat(state.stacked).mean(axis=0), rtol=0, atol=1e-6)


def settings(**values):
  """Returns a tiny config of gossip; values are gossip's unless they have a dot."""
  values = {name if '.' in name else f'gossip.{name}': value for name, value in values.items()}
  return tiny(algorithm='gossip', **{
      'synthetic.shape': (4,), 'synthetic.classes': 3, 'normalize': 'none', 'mlp.hidden': (),
      **values})


@cache
def data():
  return experiment(settings()).federation


def built(network=toys.linear, **values):
  """Returns the algorithm that a config makes of a network."""
  config = settings(**values)
  return gossip.build_gossip(
      Parts(config, network(), mappers.one_by_one(), data()), config.gossip)


class ConfigTest(parameterized.TestCase):

  @parameterized.parameters(('none', None), ('uniform', ('complete', 1)), ('ring:12', ('ring', 12)),
                            ('edges:/a:b:2', ('edges:/a:b', 2)))
  def test_final_merges(self, name, expected):
    self.assertEqual(gossip.final_merge(name, lambda graph: graph), expected)

  def test_without_a_final_merge_there_is_nothing_to_finish(self):
    self.assertIsNone(built(final_merge='none').finish)
    self.assertIsNotNone(built(final_merge='ring:2').finish)

  def test_says_what_the_graph_promises(self):
    facts = dict(built(topology='ring', rate=0.5).facts)
    self.assertEqual(facts['topology'], 'ring at rate 0.5')
    self.assertEqual(facts['models an agent sends a round'], '1')

  def test_the_schedule_has_its_rate_and_the_rounds(self):
    self.assertEqual(built(topology='matching', rate=1.0, schedule='cosine:0:1').length, 2)
    self.assertIsNone(built(schedule='constant:0.5@1:').length)

  @parameterized.named_parameters(('same', 'same', 1), ('different', 'different', 6))
  def test_starts(self, start, distinct):
    kernel = built(start=start).init(
        jax.random.key(0), data()).stacked['params']['head']['kernel']
    self.assertLen(np.unique(np.asarray(kernel).reshape(6, -1), axis=0), distinct)

  def test_the_optimizer_is_the_local_one_and_lives_on(self):
    algorithm = built(**{
        'topology': 'matching', 'rate': 0.0, 'local.momentum': 0.5, 'local.lr': 0.1,
        'local.batch': 999, 'local.epochs': 1})
    states, _ = rounds.play(algorithm, 2, federation=data())
    for before, after in itertools.pairwise(states):
      old, new = (s.stacked['params']['head']['kernel'] for s in (before, after))
      velocity = after.private[0][0].trace['head']['kernel']
      np.testing.assert_allclose(new, old - 0.1 * velocity, rtol=1e-5, atol=1e-6)

  @parameterized.named_parameters(('mixed', 'mixed', 31), ('kept', 'kept', 23))
  def test_statistics_are(self, which, size):
    self.assertEqual(built(toys.norm, statistics=which).traffic.up, 4 * size)

  @parameterized.named_parameters(
      ('averaged', None), ('of_validation', 'validation'))
  def test_merged_statistics_and_their_data(self, source):
    values = {'merge_data': source} if source else {'merged_statistics': 'averaged'}
    algorithm, federation = built(
        toys.norm, merge_batches=3, **{'local.batch': 4}, **values), data()
    state = algorithm.init(jax.random.key(0), federation)
    merged = toys.jit(algorithm.views)(state, federation)['merged']
    expected = {'mean': np.zeros(4), 'var': np.ones(4)}
    if source:
      rows = np.asarray(federation.validation.rows)
      draws = rows[np.asarray(jax.random.randint(jax.random.key(0), (3, 4), 0, len(rows)))]
      x = np.asarray(federation.examples.x, np.float64)[draws]
      expected = {'mean': x.mean(axis=1).mean(axis=0), 'var': x.var(axis=1).mean(axis=0)}
    toys.assert_close(statistics(merged), expected)


if __name__ == '__main__':
  absltest.main()
