"""Laws that every algorithm obeys; a new one is a line in TABLE."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from absl.testing import absltest, parameterized
import jax
import numpy as np
import optax
from reference import toys

from hmm_jax import tree
from hmm_jax.algorithms import (
  apfl,
  centralized,
  clusamp,
  ditto,
  dmm,
  fedavg,
  fedclg,
  fedcross,
  feddf,
  feddle,
  fedem,
  fedgen,
  fedmerge,
  fedmr,
  fedopt,
  fedper,
  fedrep,
  fesem,
  gossip,
  ifca,
  local,
  moon,
  one_shot,
  pfedme,
  scaffold,
  server_as_client,
  server_only,
)
from hmm_jax.client import losses, sampling
from hmm_jax.client.initial import initial_models
from hmm_jax.client.local import continued_training, full_gradient, local_training
from hmm_jax.decentralized import topology
from hmm_jax.decentralized.schedule import schedule
from hmm_jax.experiment.evaluate import STACKED
from hmm_jax.merging import atlas, recombine, search
from hmm_jax.merging.data_free import distill, invert
from hmm_jax.models import generator, mlp
from hmm_jax.server import guided_search, objectives, pseudo_data
from hmm_jax.types import Algorithm, Cohort, Federation, Mixture, Model, PyTree, Traffic

LR = 0.3
ROUNDS = 25
COHORT = 2  # of K = 5
NET = toys.linear()
CROSS_ENTROPY = losses.cross_entropy(NET)
# For methods that need a trunk; no layer is as wide as there are clients.
DEEP = mlp.mlp((6,), classes=toys.CLASSES, input_shape=(4,))
NORM = toys.norm()
FEDERATION = toys.hybrid()
K = len(toys.SIZES)


def training(loss=CROSS_ENTROPY, *, lr=LR):
  return local_training(loss, optax.sgd(lr), batch=4, epochs=2)


def gossiping(graph, **on):
  """Returns gossip from different starts; optimizers with momentum live on."""
  optimizer, complete = optax.sgd(LR, momentum=0.5), topology.topology('complete', K)
  return gossip.gossip(
      NET, continued_training(CROSS_ENTROPY, optimizer, batch=4, epochs=2),
      topology=topology.topology(graph, K), schedule=schedule('', rate=0.8, rounds=ROUNDS),
      init_private=optimizer.init, begin=gossip.different_starts, share=gossip.everything,
      final=(complete, 1), calibrate=lambda variables, _: variables, **on)


def merging(optimizer, **on):
  """Returns FedMerge with three models."""
  settings = {'rule': fedmerge.max_normalized, 'scope': fedmerge.head,
              'weigh': fedmerge.column_normalized} | on
  return fedmerge.fedmerge(
      DEEP, training(losses.proximal(losses.cross_entropy(DEEP), 0.02)), models=3,
      begin=initial_models, optimizer=optimizer, **settings)


def generating(**on):
  """Returns FedGen with a small generator, none of whose layers is as wide as K."""
  made = generator.generator(classes=toys.CLASSES, features=4, hidden=6, noise=4)
  return fedgen.fedgen(
      NET, training(fedgen.taught(CROSS_ENTROPY, NET, made, batch=8)), generator=made,
      server=optax.sgd(0.3), alpha=1.0, steps=4, batch=8, **on)


def guided(find, **on):
  """Returns Feddle with a short search."""
  guide = guided_search.Guide(objectives.labels(NET), find, atlas.any_weights, guided_search.HELD_OUT,
                         on['mapper'], steps=8, batch=4)
  settings = {'slots': K, 'units': atlas.whole, 'lengths': atlas.to_median,
              'first_to_go': atlas.oldest} | on
  return feddle.feddle(NET, training(), guide=guide, **settings)


def server(surrogate):
  """Returns the server's training."""
  return guided_search.server_training(surrogate, training(objectives.training_loss(surrogate)))


def cooperating(work, **on):
  """Returns FedCLG."""
  gradient = guided_search.server_gradient(objectives.labels(NET), batch=4)
  return fedclg.fedclg(NET, work, gradient=gradient, server=server(objectives.labels(NET)), **on)


def adapting(**on):
  """Returns DMM, which merges after every third round; short of steps."""
  each, augment = on['mapper'].each, invert.as_they_are
  search = invert.inversion(NORM, steps=4, lr=0.1, terms=invert.Terms(), augment=augment)
  lessons = distill.distillation(
      NORM, optax.sgd(0.02), order=distill.jointly, steps=4, batch=8, temperature=1.0, keep=0.1,
      augment=augment, each=each)
  return one_shot.one_shot(
      NORM, training(losses.cross_entropy(NORM)), every=3, merge=dmm.dmm(
          NORM, align=lambda core, stacked, key: stacked, buffers=dmm.pooled, teach=dmm.divergent,
          combine=lambda weights, stacked, base, key: tree.mix(weights, stacked['params']),
          inputs=pseudo_data.inverted(
              NORM, search, whose=pseudo_data.of_each, each=each, batch=8, batches=1),
          weigh=distill.by_counts, distillation=lessons, settle=lambda variables, x: variables),
      **on)


class Case(NamedTuple):
  """One algorithm of the table.

  make: (mapper=, participation=) -> Algorithm; `participation` only if it samples.
  mark: (name): fails if the method's own step were replaced by plain averaging.
  samples: whether it draws clients.
  net: its network.
  slots: whether its state has slots, as many as clients in a round, that follow nobody.
  repeats: whether a client may be drawn twice.
  """

  make: Callable
  mark: Callable
  samples: bool = True
  net: Model = NET
  slots: bool = False
  repeats: bool = False


def far_from(other: str) -> Callable:
  """Returns a mark: the global model after two rounds is not the other method's."""
  return lambda name: toys.assert_far(
      *(play(method)[2].views['global'] for method in (name, other)), least=0.01)


def far_from_plain(make: Callable) -> Callable:
  """Returns a mark: like `far_from`, but of an algorithm that is not in the table."""

  def mark(name):
    algorithm = make(mapper=toys.lifts()['map'])
    state, program = algorithm.init(toys.key(0), FEDERATION), toys.jit(algorithm.round)
    for r in range(2):
      state, _ = program(state, FEDERATION, round_key(0, r))
    toys.assert_far(play(name)[2].views['global'],
                    algorithm.views(state, FEDERATION)['global'], least=0.01)

  return mark


def nearer_than(other: str) -> Callable:
  """Returns a mark: two rounds move the global model less than the other method's."""

  def mark(name):
    start = play(name)[0].views['global']
    near, far = (tree.sub(play(method)[2].views['global'], start) for method in (name, other))
    assert tree.dot(near, near) < 0.8 * tree.dot(far, far)

  return mark


def clients_differ(name: str):
  """A mark: after two rounds no two clients have the same model."""
  models = tree.unstack(play(name)[2].views['clients'])
  for k, model in enumerate(models):
    for other in models[:k]:
      toys.assert_far(model, other)


def clients_share(same: str, own: str) -> Callable:
  """Returns a mark: after two rounds clients have one part in common, and another not."""

  def mark(name):
    first, *others = tree.unstack(play(name)[2].views['clients']['params'])
    for other in others:
      toys.assert_close(other[same], first[same], atol=0)
      toys.assert_far(other[own], first[own], least=0.01)

  return mark


def mixtures_differ(name: str):
  """A mark: after two rounds no two models are the same, nor two clients' weights."""
  models, weights = play(name)[2].views['clients']
  for stacked in (models, weights):
    members = tree.unstack(stacked)
    for k, member in enumerate(members):
      for other in members[:k]:
        toys.assert_far(member, other, least=0.01)


def clients_cluster(name: str):
  """A mark: after two rounds some clients have the same model, and some another."""
  models = [jax.tree.leaves(model) for model in tree.unstack(play(name)[2].views['clients'])]
  distinct = {b''.join(leaf.tobytes() for leaf in model) for model in models}
  assert 1 < len(distinct) < K, f'got {len(distinct)} models; expected fewer than clients'


def clients_approach(name: str):
  """A mark: after two rounds clients are nearer to each other than at first, but not one."""
  start, end = (sum(leaf.var(axis=0).sum() for leaf in jax.tree.leaves(moment.views['clients']))
                for moment in (play(name)[0], play(name)[2]))
  assert 0.01 < end / start < 0.7, f'got a spread of {end} from {start}'


TABLE = {
    'fedavg': Case(lambda **on: fedavg.fedavg(NET, training(), **on), far_from('uniform')),
    'uniform': Case(lambda **on: fedavg.fedavg(
        NET, training(), weigh=sampling.uniform, **on), far_from('fedavg')),
    'fedprox': Case(lambda **on: fedavg.fedavg(
        NET, training(losses.proximal(CROSS_ENTROPY, 1.0)), **on), nearer_than('fedavg')),
    'fedopt': Case(lambda **on: fedopt.fedopt(
        NET, training(), server=optax.adam(0.1, b2=0.99, eps=1e-3), **on), far_from('fedavg')),
    'scaffold': Case(lambda **on: scaffold.scaffold(
        NET, training(losses.corrected(CROSS_ENTROPY)), lr=LR, **on), far_from('uniform')),
    'fedmr': Case(lambda **on: fedmr.fedmr(
        NET, training(), units=recombine.tensors, **on), far_from('uniform'), slots=True),
    'fedmr-partly': Case(lambda **on: fedmr.fedmr(
        DEEP, training(losses.cross_entropy(DEEP)), units=recombine.layers, dropout=0.2,
        select=lambda r, count: np.linspace(1, 0.5, count), **on),
        far_from_plain(lambda **on: fedavg.fedavg(
            DEEP, training(losses.cross_entropy(DEEP)), weigh=sampling.uniform, **on)),
        net=DEEP, slots=True),
    'fedcross': Case(lambda **on: fedcross.fedcross(
        NET, training(), collaborator=fedcross.least_similar, alpha=0.9, **on),
        far_from('uniform'), slots=True),
    'fedmerge': Case(lambda **on: merging(optax.sgd(0.5), **on), clients_differ, net=DEEP),
    'fedmerge-momentum': Case(lambda **on: merging(
        optax.sgd(5.0, momentum=0.9), rule=fedmerge.plain, scope=fedmerge.everything,
        weigh=fedmerge.exact, **on), clients_differ, net=DEEP),
    'gossip': Case(lambda **on: gossiping('ring', **on), clients_approach, samples=False),
    'matching': Case(lambda **on: gossiping('matching', **on), clients_approach, samples=False),
    'moon': Case(
        lambda **on: moon.moon(
            DEEP, training(moon.contrastive(losses.cross_entropy(DEEP), DEEP)), **on),
        far_from_plain(lambda **on: fedavg.fedavg(
            DEEP, training(losses.cross_entropy(DEEP)), **on)), net=DEEP),
    'clusamp': Case(
        lambda **on: clusamp.clusamp(NET, training(), **on), far_from('uniform'), repeats=True),
    'clusamp-similarity': Case(
        lambda **on: clusamp.clusamp(NET, training(), order='similarity', **on),
        lambda name: [far_from(other)(name) for other in ('uniform', 'clusamp')], repeats=True),
    'fedgen': Case(generating, far_from('fedavg')),
    'ifca': Case(lambda **on: ifca.ifca(NET, training(), models=4, **on), clients_cluster),
    'fesem': Case(lambda **on: fesem.fesem(NET, training(), models=2, **on), clients_cluster),
    'ditto': Case(
        lambda **on: ditto.ditto(NET, training(), personal=training(
            losses.proximal(CROSS_ENTROPY, 1.0, anchor=ditto.received)), **on), clients_differ),
    'apfl': Case(lambda **on: apfl.apfl(NET, apfl.mixture_training(
        CROSS_ENTROPY, optax.sgd(LR), alpha_lr=LR, batch=4, epochs=2), **on), clients_differ),
    'fedper': Case(
        lambda **on: fedper.fedper(
            DEEP, training(losses.cross_entropy(DEEP)), private=fedper.head, **on),
        clients_share('trunk', 'head'), net=DEEP),
    'fedrep': Case(
        lambda **on: fedper.fedper(DEEP, fedrep.head_first(
            losses.cross_entropy(DEEP), optax.sgd(LR), head=fedper.head(DEEP), head_epochs=2,
            batch=4), private=fedper.head, **on),
        clients_share('trunk', 'head'), net=DEEP),
    'fedbn': Case(
        lambda **on: fedper.fedper(
            NORM, training(losses.cross_entropy(NORM)), private=fedper.batch_norm, **on),
        clients_share('head', 'trunk'), net=NORM),
    'pfedme': Case(lambda **on: pfedme.pfedme(NET, pfedme.moreau_training(
        CROSS_ENTROPY, optax.sgd(LR), lr=LR, batch=4, epochs=2, lam=1.0), **on), clients_differ),
    'fedem': Case(lambda **on: fedem.fedem(NET, fedem.component_training(
        NET, optax.sgd(LR), batch=4, epochs=2), models=3, **on), mixtures_differ),
    'feddle': Case(
        lambda **on: guided(search.gradient_search(optax.adam(0.1)), **on), far_from('fedavg'),
        slots=True),
    'feddle-late': Case(
        lambda **on: guided(
            search.evolution_search(sigma=0.1, population=4), units=recombine.layers,
            lengths=atlas.to_median_by_unit, first_to_go=atlas.worst, tau_max=2, strikes=1, **on),
        far_from('fedavg'), slots=True),
    'server_only': Case(
        lambda **on: server_only.server_only(NET, server=server(objectives.labels(NET))),
        far_from('fedavg'), samples=False),
    'server_as_client': Case(
        lambda **on: server_as_client.server_as_client(
            NET, training(), server=server(objectives.labels(NET)), **on), far_from('fedavg')),
    'clg_sgd': Case(
        lambda **on: cooperating(fedclg.unguided(training()), **on), far_from('fedavg')),
    'fedclg_c': Case(
        lambda **on: cooperating(fedclg.corrected_steps(
            training(losses.corrected(CROSS_ENTROPY)), full_gradient(CROSS_ENTROPY, batch=4)),
            **on), far_from('clg_sgd')),
    'fedclg_s': Case(
        lambda **on: cooperating(fedclg.corrected_aggregate(
            training(lr=0.1), full_gradient(CROSS_ENTROPY, batch=4), lr=0.1), **on),
        far_from_plain(lambda **on: cooperating(fedclg.unguided(training(lr=0.1)), **on))),
    'feddf': Case(
        lambda **on: feddf.feddf(NET, training(), server=server(objectives.distil(NET)), **on),
        far_from('fedavg')),
    'dmm': Case(adapting, far_from_plain(lambda **on: fedavg.fedavg(
        NORM, training(losses.cross_entropy(NORM)), **on)), samples=False, net=NORM),
    'local': Case(lambda **on: local.local(NET, training(), **on), clients_differ),
    'centralized': Case(lambda **on: centralized.centralized(
        NET, training(), **on), far_from('fedavg'), samples=False),
}
FULL = tuple((name, 0) for name in TABLE)
ALL = FULL + tuple((name, COHORT) for name, case in TABLE.items() if case.samples)
# Where compiling takes the time, once for each: with a cohort where it draws one.
EACH = tuple((name, COHORT if case.samples else 0) for name, case in TABLE.items())


class Moment(NamedTuple):
  """A run after some rounds, on the host; no metrics before the first."""

  state: PyTree
  views: dict
  metrics: dict | None


def make(name: str, cohort: int, lift: str = 'map') -> Algorithm:
  on = {'participation': cohort} if TABLE[name].samples else {}
  return TABLE[name].make(mapper=toys.lifts()[lift], **on)


class Program(NamedTuple):
  """An algorithm, compiled; `traces` grows by one with every trace of a round."""

  init: Callable
  round: Callable
  traces: list


@cache
def program(name: str, cohort: int, lift: str = 'map') -> Program:
  algorithm, traces = make(name, cohort, lift), []

  def round_(*args):
    traces.append(None)
    return algorithm.round(*args)

  return Program(toys.jit(algorithm.init), toys.jit(round_), traces)


def placed(values: PyTree, lift: str = 'map') -> PyTree:
  """Puts values where `build` puts them: what a round returns lies on every device it ran on."""
  return jax.device_put(values, toys.sharding(lift))


def rounds(name: str, cohort: int, count: int, *, lift: str = 'map', seed: int = 0,
           federation: Federation = FEDERATION) -> list[Moment]:
  """Plays one round after another, the start included."""
  algorithm, run = make(name, cohort, lift), program(name, cohort, lift)
  state, federation = placed((run.init(toys.key(seed), federation), federation), lift)
  moments = [Moment(state, algorithm.views(state, federation), None)]
  for r in range(count):
    state, metrics = run.round(state, federation, round_key(seed, r))
    moments.append(Moment(state, algorithm.views(state, federation), metrics))
  return [jax.tree.map(np.asarray, moment) for moment in moments]


@cache
def play(name: str, cohort: int = 0) -> list[Moment]:
  return rounds(name, cohort, ROUNDS)


def round_key(seed, r):
  return jax.random.fold_in(toys.key(seed + 50), r)


def rearranged(view: str, variables: PyTree, order: np.ndarray) -> PyTree:
  """Returns a view as it is when the clients come in another order."""
  if isinstance(variables, Mixture):
    return variables._replace(weights=variables.weights[order])
  return tree.take(variables, order) if view in STACKED else variables


def assert_moment(got: Moment, wanted: Moment):
  toys.assert_close(got.state, wanted.state)
  toys.assert_close(got.metrics, wanted.metrics)


class LawsTest(parameterized.TestCase):

  @parameterized.parameters(*TABLE)
  def test_jit_is_eager(self, name):
    cohort = COHORT if TABLE[name].samples else 0
    algorithm = make(name, cohort)
    with jax.disable_jit():
      state = algorithm.init(toys.key(0), FEDERATION)
      state, metrics = algorithm.round(state, FEDERATION, round_key(0, 0))
    assert_moment(Moment(state, {}, metrics), play(name, cohort)[1])

  @parameterized.parameters(*EACH)
  def test_scan_is_round_by_round(self, name, cohort):
    algorithm = make(name, cohort)

    def run(state, federation):
      return jax.lax.scan(lambda state, r: algorithm.round(state, federation, round_key(0, r)),
                          state, np.arange(3))

    state, metrics = toys.jit(run)(play(name, cohort)[0].state, FEDERATION)
    alone = play(name, cohort)
    assert_moment(Moment(state, {}, tree.take(metrics, 2)), alone[3])
    assert_moment(Moment(state, {}, tree.take(metrics, 0)), alone[1]._replace(state=state))

  @parameterized.parameters(*EACH)
  def test_seeds_together_are_one_by_one(self, name, cohort):
    algorithm, seeds = make(name, cohort), (0, 7)
    states = tree.stack([algorithm.init(toys.key(seed), FEDERATION) for seed in seeds])
    together = toys.jit(jax.vmap(algorithm.round, (0, None, 0)))
    for r in range(2):
      keys = jax.numpy.stack([round_key(seed, r) for seed in seeds])
      states, metrics = together(states, FEDERATION, keys)
    for s, alone in enumerate((play(name, cohort)[2], rounds(name, cohort, 2, seed=7)[2])):
      assert_moment(Moment(tree.take(states, s), {}, tree.take(metrics, s)), alone)
    toys.assert_far(*(tree.take(states, s) for s in range(2)))

  @parameterized.parameters(*FULL)
  def test_does_not_depend_on_the_mapper(self, name, cohort):
    # Both at once, for two of all clients share a device: the mappers' own tests have each.
    assert_moment(rounds(name, cohort, 2, lift='sharded-vmap')[2], play(name, cohort)[2])

  @parameterized.parameters(*EACH)
  def test_is_compiled_once(self, name, cohort):
    run = program(name, cohort)
    state, federation = placed((play(name, cohort)[0].state, FEDERATION))
    state, _ = run.round(state, federation, round_key(0, 0))
    count = len(run.traces)
    run.round(state, federation, round_key(0, 1))
    self.assertLen(run.traces, count)

  @parameterized.parameters(*ALL)
  def test_state_keeps_its_shape_and_counts_rounds(self, name, cohort):
    algorithm = make(name, cohort)
    state = jax.eval_shape(algorithm.init, toys.key(0), FEDERATION)
    after, _ = jax.eval_shape(algorithm.round, state, FEDERATION, toys.key(0))
    self.assertEqual(jax.tree.structure(after), jax.tree.structure(state))
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
      self.assertEqual((old.shape, old.dtype, old.weak_type), (new.shape, new.dtype, new.weak_type))
    self.assertEqual(state.round.dtype, np.int32)
    self.assertEqual([moment.state.round for moment in play(name, cohort)], [*range(ROUNDS + 1)])
    if algorithm.finish:
      last, metrics = jax.eval_shape(algorithm.finish, state, FEDERATION, toys.key(0))
      self.assertEqual(last, state)
      self.assertContainsSubset({'messages_up', 'messages_down'}, metrics)

  @parameterized.parameters(*ALL)
  def test_follows_clients_when_their_rows_are_permuted(self, name, cohort):
    order = np.array([3, 0, 4, 1, 2])
    permuted = FEDERATION._replace(clients=tree.take(FEDERATION.clients, order))
    moved, still = rounds(name, cohort, 3, federation=permuted)[3], play(name, cohort)[3]
    # What a state holds of each client has a leading K; nothing else here has one.
    follows = not TABLE[name].slots
    toys.assert_close(moved.state, jax.tree.map(
        lambda x: x[order] if follows and x.shape[:1] == (K,) else x, still.state))
    for view, variables in still.views.items():
      toys.assert_close(moved.views[view], rearranged(view, variables, order))
    toys.assert_close(moved.metrics['train/loss'], still.metrics['train/loss'])

  @parameterized.parameters(*FULL)
  def test_a_round_has_draws_of_its_own(self, name, cohort):
    state, federation = placed((play(name, cohort)[0].state, FEDERATION))
    afters = [program(name, cohort).round(state, federation, round_key(0, r))[0]
              for r in (0, 0, 1)]
    jax.tree.map(np.testing.assert_array_equal, *afters[:2])
    toys.assert_far(*afters[1:])

  @parameterized.parameters(*ALL)
  def test_views_are_models(self, name, cohort):
    algorithm = make(name, cohort)
    state = jax.eval_shape(algorithm.init, toys.key(0), FEDERATION)
    views = jax.eval_shape(algorithm.views, state, FEDERATION)
    self.assertNotEmpty(views)
    model = jax.eval_shape(TABLE[name].net.init, toys.key(0))
    stack = jax.eval_shape(lambda m: tree.repeat(m, K), model)
    for view, variables in views.items():
      wanted = stack if view in STACKED else model
      if isinstance(variables, Mixture):
        shares = play(name, cohort)[2].views[view].weights
        several = jax.eval_shape(lambda m, M=shares.shape[1]: tree.repeat(m, M), model)
        wanted = Mixture(several, jax.ShapeDtypeStruct((K, shares.shape[1]), np.float32))
        self.assertEqual(view, 'clients')
        toys.assert_close(shares.sum(axis=1), np.ones(K, np.float32))
        self.assertTrue((shares >= 0).all())
      self.assertEqual(variables, wanted, view)

  @parameterized.parameters(*ALL)
  def test_metrics(self, name, cohort):
    everyone = dict(zip(toys.IDS, toys.SIZES, strict=False))
    for moment in play(name, cohort)[1:4]:
      metrics = dict(moment.metrics)
      who = metrics.pop('cohort')
      self.assertEqual(tuple(metrics.pop('records', ())), make(name, cohort).tables)
      self.assertContainsSubset({'train/loss', 'messages_up', 'messages_down'}, metrics)
      for metric, value in metrics.items():
        self.assertEqual((value.shape, value.dtype), ((), np.float32), metric)
        self.assertTrue(np.isfinite(value), metric)
      self.assertGreater(metrics['train/loss'], 0)

      self.assertIsInstance(who, Cohort)
      self.assertEqual([x.dtype for x in who], ['int32', 'float32', 'bool', 'int32', 'int32'])
      self.assertTrue(who.finite.all())
      if TABLE[name].samples:
        self.assertEqual({x.shape for x in who}, {(cohort or K,)})
        if not TABLE[name].repeats:
          self.assertLen(set(who.id.tolist()), cohort or K)
        self.assertEqual(who.size.tolist(), [everyone[i] for i in who.id])

  @parameterized.parameters(*ALL)
  def test_messages_have_a_size(self, name, cohort):
    traffic = make(name, cohort).traffic
    some = [moment.metrics for moment in play(name, cohort)[1:]]
    self.assertIsInstance(traffic, Traffic)
    for way in ('up', 'down'):
      size = getattr(traffic, way)
      self.assertIsInstance(size, int)
      self.assertEqual(size > 0, any(metrics[f'messages_{way}'] > 0 for metrics in some))

  @parameterized.parameters(*ALL)
  def test_loss_falls(self, name, cohort):
    values = [moment.metrics['train/loss'] for moment in play(name, cohort)[1:]]
    self.assertLess(np.mean(values[-5:]), 0.7 * np.mean(values[:2]))

  @parameterized.parameters(*TABLE)
  def test_is_not_plain_averaging(self, name):
    TABLE[name].mark(name)


if __name__ == '__main__':
  absltest.main()
