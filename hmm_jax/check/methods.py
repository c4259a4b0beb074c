"""Laws of methods: what every one obeys, whatever it computes.

A law takes a Trial, a method on a tiny federation, and raises AssertionError with a sentence that
says what is broken. Those of LIFTING are about how a round is compiled and mapped.
"""

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np

from hmm_jax import tree
from hmm_jax.algorithms.parts import Parts, in_rounds
from hmm_jax.check import tasks, toys
from hmm_jax.client import mappers
from hmm_jax.experiment import config as configs
from hmm_jax.experiment.evaluate import STACKED
from hmm_jax.types import Algorithm, Cohort, Federation, Mapper, Mixture, Model, PyTree, Traffic

ROUNDS = 25
TINY = {
    'clients': len(toys.SIZES), 'participation': 0, 'rounds': ROUNDS, 'eval_batch': 4,
    'local.lr': 0.3, 'local.batch': 4, 'local.epochs': 2, 'server.lr': 0.3, 'server.steps': 8,
    'server.batch': 4}

# Compiling is nearly all of the time; without optimization it takes far less.
jit = partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


class Moment(NamedTuple):
  """A run after some rounds, on the host; {} for metrics before the first."""

  state: PyTree
  views: dict
  metrics: dict


class Trial:
  """A method on a tiny federation of 5 clients, compiled once.

  Args:
    name: of the method, or a reference to one of somebody's own.
    changes: to the tiny config.
    model: the network; chosen by what the method needs if None.
    federation: the data.
    task: what is learned.
  """

  def __init__(self, name: str, changes: Mapping[str, Any] | None = None, *,
               model: Model | None = None, federation: Federation | None = None,
               task: str = 'classification'):
    self.name, self.changes, self.task = name, dict(changes or {}), task
    self.config = configs.configure({
        'algorithm': name, 'task': task, **TINY, **tasks.RATES.get(task, {}), **self.changes})
    self.method = configs.method(self.config)
    self.federation = tasks.federation(federation or toys.hybrid(), task)
    self.model = tasks.network(model or _network(self.method.needs), task)
    self.traces = 0

  def make(self, mapper: Mapper | None = None) -> Algorithm:
    """Builds the method, with another mapper than one by one if it is given."""
    parts = Parts(self.config, self.model, mapper or mappers.one_by_one(), self.federation)
    made = self.method.build(parts, configs.section(self.config, self.method))
    return in_rounds(made, self.config)

  @property
  def samples(self) -> bool:
    """Whether rounds draw some of the clients."""
    return 'all clients' not in self.method.needs

  @cached_property
  def algorithm(self) -> Algorithm:
    return self.make()

  @cached_property
  def init(self) -> Callable:
    return jit(self.algorithm.init)

  @cached_property
  def round(self) -> Callable:
    def traced(*args):
      self.traces += 1
      return self.algorithm.round(*args)

    return jit(traced)

  @cached_property
  def views(self) -> Callable:
    return jit(self.algorithm.views)

  @cached_property
  def moments(self) -> list[Moment]:
    """The run of ROUNDS rounds, the beginning included."""
    return self.play(ROUNDS)

  def play(self, rounds: int, *, seed: int = 0, federation: Federation | None = None,
           ) -> list[Moment]:
    """Plays one round after another."""
    federation = jax.device_put(federation or self.federation)
    state = self.init(key(seed), federation)
    moments = [Moment(state, self.views(state, federation), {})]
    for r in range(rounds):
      state, metrics = self.round(state, federation, round_key(seed, r))
      moments.append(Moment(state, self.views(state, federation), metrics))
    return [jax.tree.map(np.asarray, moment) for moment in moments]


def _network(needs):
  if 'BatchNorm' in needs:
    return toys.norm()
  return toys.deep() if 'trunk' in needs else toys.linear()


def key(number: int) -> jax.Array:
  """Returns the key of a seed."""
  return jax.random.key(100 + number)


def round_key(seed: int, r: Any) -> jax.Array:
  """Returns the key of a round."""
  return jax.random.fold_in(key(seed + 50), r)


def state_keeps_its_shape(trial: Trial):
  """A state has the same structure, shapes and types after a round and after the finish."""
  state = jax.eval_shape(trial.algorithm.init, key(0), trial.federation)
  after, _ = jax.eval_shape(trial.algorithm.round, state, trial.federation, key(0))
  _same_shapes(after, state, 'a round changes the state')
  if trial.algorithm.finish:
    last, metrics = jax.eval_shape(trial.algorithm.finish, state, trial.federation, key(0))
    _same_shapes(last, state, 'finish changes the state')
    missing = {'messages_up', 'messages_down'} - metrics.keys()
    assert not missing, f'the metrics of finish lack {", ".join(sorted(missing))}'


def stacks_hold_all_clients(trial: Trial):
  """The fields of the state that are named as stacks have a member for each client."""
  state = jax.eval_shape(trial.algorithm.init, key(0), trial.federation)
  count = len(trial.federation.clients.id)
  for name in trial.algorithm.stacks:
    assert hasattr(state, name), f'stacks names {name}, which the state lacks'
    sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(getattr(state, name))}
    assert sizes <= {(count,)}, (
        f'stacks names {name}, whose arrays have no leading axis of the {count} clients')


def rounds_are_counted(trial: Trial):
  """`state.round` is the number of rounds done, an int32."""
  rounds = [moment.state.round for moment in trial.moments[:4]]
  assert all(r.dtype == np.int32 for r in rounds), f'state.round is {rounds[0].dtype}, not int32'
  assert [int(r) for r in rounds] == [0, 1, 2, 3], (
      f'state.round goes {", ".join(map(str, rounds))} in the first rounds, not 0, 1, 2, 3')


def views_are_models(trial: Trial):
  """A view is a model of the network, or a stack of K, or a Mixture whose weights sum to 1."""
  views = trial.moments[1].views
  assert views, 'there is no view to evaluate'
  model = jax.eval_shape(trial.model.init, key(0))
  count = len(trial.federation.clients.id)
  for name, variables in views.items():
    wanted = jax.eval_shape(lambda m: tree.repeat(m, count), model) if name in STACKED else model
    if isinstance(variables, Mixture):
      assert name == 'clients', f'the view {name} is a Mixture; only clients can be one'
      weights = variables.weights
      assert np.allclose(weights.sum(axis=1), 1, atol=1e-5), (
          'the weights of a Mixture do not sum to 1')
      assert (weights >= 0).all(), 'the weights of a Mixture are negative'
      wanted, several = Mixture(model, weights), weights.shape[1]
      wanted = Mixture(jax.eval_shape(lambda m, M=several: tree.repeat(m, M), model), weights)
    _same_shapes(variables, wanted, f'the view {name} is no model of the network')


def metrics_are_finite(trial: Trial):
  """Metrics are finite float32 scalars; the loss and the messages are among them."""
  for moment in trial.moments[1:4]:
    metrics = {name: value for name, value in moment.metrics.items()
               if name not in ('cohort', 'records')}
    missing = {'train/loss', 'messages_up', 'messages_down'} - metrics.keys()
    assert not missing, f'a round does not report {", ".join(sorted(missing))}'
    for name, value in metrics.items():
      assert (value.shape, value.dtype) == ((), np.float32), (
          f'{name} is {value.dtype} of shape {value.shape}, not a float32 scalar')
      assert np.isfinite(value), f'{name} is {value} in an early round'
    assert metrics['train/loss'] > 0, f'the loss is {metrics["train/loss"]}'
    tables = tuple(moment.metrics.get('records', ()))
    assert tables == trial.algorithm.tables, f'records {tables} are not {trial.algorithm.tables}'


def cohort_is_reported(trial: Trial):
  """'cohort' has one entry for each participant, with its id and its number of examples."""
  cohort = trial.moments[1].metrics['cohort']
  assert isinstance(cohort, Cohort), f'cohort is a {type(cohort).__name__}, not a Cohort'
  types = [str(x.dtype) for x in cohort]
  assert types == ['int32', 'float32', 'bool', 'int32', 'int32'], f'cohort has the types {types}'
  assert cohort.finite.all(), 'a client is not finite in the first round'
  if trial.samples:
    clients = trial.federation.clients
    wanted = trial.config.participation or len(clients.id)
    assert cohort.id.shape == (wanted,), f'{len(cohort.id)} clients take part, not {wanted}'
    sizes = dict(zip(np.asarray(clients.id).tolist(), np.asarray(clients.size).tolist()))
    assert [sizes[i] for i in cohort.id.tolist()] == cohort.size.tolist(), (
        'the numbers of examples in cohort are not those of its clients')


def messages_have_a_size(trial: Trial):
  """Traffic is in whole bytes, and above 0 if and only if messages are sent."""
  traffic = trial.algorithm.traffic
  assert isinstance(traffic, Traffic), f'traffic is a {type(traffic).__name__}, not a Traffic'
  for way in ('up', 'down'):
    size = getattr(traffic, way)
    sent = any(moment.metrics[f'messages_{way}'] > 0 for moment in trial.moments[1:])
    assert isinstance(size, int), f'traffic.{way} is {size!r}, not an int'
    assert (size > 0) == sent, (
        f'traffic.{way} is {size}, but messages are {"" if sent else "not "}sent')


def keys_decide(trial: Trial):
  """Equal keys repeat a round exactly, another key makes another."""
  federation = jax.device_put(trial.federation)
  state = trial.init(key(0), federation)
  afters = [trial.round(state, federation, round_key(0, r))[0] for r in (0, 0, 1)]
  first, again, other = (jax.tree.map(np.asarray, after) for after in afters)
  same(again, first, 'the same key gives another round', rtol=0, atol=0)
  assert _distance(other, first) > 1e-4, 'another key gives the same round: the key is not used'


def clients_draw_for_themselves(trial: Trial):
  """Clients with the same examples shuffle them differently: keys are folded with their ids."""
  clients = trial.federation.clients
  longest = int(np.argmax(clients.size))
  alike = clients._replace(
      index=np.repeat(np.asarray(clients.index)[longest:longest + 1], len(clients.id), axis=0),
      size=np.full_like(clients.size, clients.size[longest]))
  cohort = trial.play(1, federation=trial.federation._replace(clients=alike))[1].metrics['cohort']
  if len(cohort.loss) > 1:
    assert np.ptp(cohort.loss) > 1e-6, (
        "clients with the same examples train in exactly the same way: a client's key is not "
        'folded with its id (mappers.client_key)')


def order_of_clients_does_not_matter(trial: Trial):
  """Models follow the clients when these come in another order."""
  order = np.array([3, 0, 4, 1, 2])
  permuted = trial.federation._replace(clients=tree.take(trial.federation.clients, order))
  moved, still = trial.play(3, federation=permuted)[3], trial.moments[3]
  for view, variables in still.views.items():
    same(moved.views[view], _rearranged(view, variables, order),
          f'the view {view} depends on the order of the clients: a draw or a key follows the '
          'position and not the id')
  same(moved.metrics['train/loss'], still.metrics['train/loss'],
        'the loss depends on the order of the clients')


def nothing_learned_changes_nothing(trial: Trial):
  """Where local training at rate 0 returns what it was given, the global model stays."""
  exempt = {'server examples', 'plain sgd'} & set(trial.method.needs)
  if exempt or trial.method.kind in ('decentralized', 'one-shot'):
    return
  idle = Trial(trial.name, trial.changes, model=trial.model, federation=trial.federation)
  idle.config = idle.config.copy_and_resolve_references().unlock()
  idle.config.local.lr = 0.0
  before, after = idle.play(1)
  view = 'global' if 'global' in before.views else 'clients'
  same(_params(after.views[view]), _params(before.views[view]),
        f'the parameters of the view {view} change though no client has learned anything: do the '
        'weights of a mean sum to 1?', rtol=1e-4, atol=1e-5)


def loss_falls(trial: Trial):
  """The training loss falls clearly in 25 rounds."""
  values = [moment.metrics['train/loss'] for moment in trial.moments[1:]]
  first, last = np.mean(values[:2]), np.mean(values[-5:])
  assert last < 0.7 * first, f'the loss goes from {first:.3f} to {last:.3f} in {ROUNDS} rounds'


def differs_from_fedavg(trial: Trial):
  """After some rounds the models are not those of federated averaging."""
  plain = Trial('fedavg', {'participation': trial.config.participation}, model=trial.model,
                federation=trial.federation)
  views = trial.moments[5].views
  average = plain.play(5)[5].views['global']
  if 'global' in views:
    gap = _distance(views['global'], average)
  else:
    own = next(iter(views.values()))
    own = own.models if isinstance(own, Mixture) else own
    gap = _distance(own, tree.repeat(average, tree.count(own)))
  assert gap > 1e-3, 'the models are those of fedavg: is its own step left out?'


def compiled_is_eager(trial: Trial):
  """A compiled round gives what an eager one gives."""
  with jax.disable_jit():
    state = trial.algorithm.init(key(0), trial.federation)
    state, metrics = trial.algorithm.round(state, trial.federation, round_key(0, 0))
  wanted = trial.moments[1]
  same((state, metrics), (wanted.state, wanted.metrics),
        'a compiled round differs from an eager one')


def scan_is_round_by_round(trial: Trial):
  """Rounds in a scan give what rounds one by one give."""

  def run(state, federation):
    return jax.lax.scan(
        lambda state, r: trial.algorithm.round(state, federation, round_key(0, r)), state,
        np.arange(3))

  state, metrics = jit(run)(trial.moments[0].state, trial.federation)
  same(state, trial.moments[3].state, 'three rounds in a scan end in another state')
  same(tree.take(metrics, 2), trial.moments[3].metrics,
        'the third round in a scan reports otherwise')


def mapper_does_not_matter(trial: Trial):
  """Clients on several devices, vectorized, give what clients one by one give."""
  devices = min(4, len(jax.devices()))
  mesh = jax.make_mesh((devices,), ('clients',), axis_types=(AxisType.Auto,),
                       devices=jax.devices()[:devices])
  algorithm = trial.make(mappers.sharded(mesh, mappers.vectorized()))
  placed = NamedSharding(mesh, PartitionSpec())
  federation = jax.device_put(trial.federation, placed)
  state = jax.device_put(trial.moments[0].state, placed)
  run = jit(algorithm.round)
  for r in range(2):
    state, metrics = run(state, federation, round_key(0, r))
  wanted = trial.moments[2]
  same((state, metrics), (wanted.state, wanted.metrics),
        'results depend on the mapper: a traced array is closed over, or a draw is made inside')


def is_compiled_once(trial: Trial):
  """A second round does not compile again."""
  federation = jax.device_put(trial.federation)
  state, _ = trial.round(jax.device_put(trial.moments[0].state), federation, round_key(0, 0))
  traces = trial.traces
  trial.round(state, federation, round_key(0, 1))
  assert trial.traces == traces, (
      'the second round is compiled again: a shape, type or weak type changes')


OWN = {
    'the state keeps its structure, shapes and types': state_keeps_its_shape,
    'stacks hold all clients': stacks_hold_all_clients,
    'rounds are counted': rounds_are_counted,
    'views are models': views_are_models,
    'metrics are finite': metrics_are_finite,
    'the cohort is reported': cohort_is_reported,
    'messages have a size': messages_have_a_size,
    'keys decide all draws': keys_decide,
    'clients draw for themselves': clients_draw_for_themselves,
    'the order of the clients does not matter': order_of_clients_does_not_matter,
    'the loss falls': loss_falls,
}
# Each compiles a program of its own.
LIFTING = {
    'clients that learn nothing change nothing': nothing_learned_changes_nothing,
    'compiled is eager': compiled_is_eager,
    'a scan is round by round': scan_is_round_by_round,
    'the mapper does not matter': mapper_does_not_matter,
    'a round is compiled once': is_compiled_once,
}
LAWS = OWN | LIFTING | {'it differs from fedavg': differs_from_fedavg}


def _same_shapes(got, wanted, broken):
  """Compares structures, shapes and types."""
  assert jax.tree.structure(got) == jax.tree.structure(wanted), f'{broken}: another structure'
  describe = lambda x: (
      f'{x.dtype}{list(x.shape)}' + (' (weak)' if getattr(x, 'weak_type', False) else ''))
  for (path, new), old in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(wanted), strict=True):
    assert describe(new) == describe(old), (
        f'{broken}: {jax.tree_util.keystr(path)} is {describe(new)}, expected {describe(old)}')


def same(got, wanted, broken, *, rtol=2e-5, atol=2e-6):
  """Compares values leaf by leaf."""
  assert jax.tree.structure(got) == jax.tree.structure(wanted), f'{broken}: another structure'
  leaves = zip(jax.tree.leaves_with_path(wanted), jax.tree.leaves(got), strict=True)
  for (path, other), leaf in leaves:
    leaf, other = np.asarray(leaf), np.asarray(other)
    close = leaf.shape == other.shape and np.allclose(
        leaf, other, rtol=rtol, atol=atol, equal_nan=True)
    assert close, f'{broken} ({jax.tree_util.keystr(path)})'


def _params(view):
  """Returns the parameters of a view: BatchNorm statistics and weights of a Mixture may move."""
  return (view.models if isinstance(view, Mixture) else view)['params']


def _distance(a, b):
  """Returns the largest difference of an entry."""
  wide = lambda x: np.asarray(x, np.float64)
  gaps = jax.tree.map(lambda x, y: np.abs(wide(x) - wide(y)).max(initial=0), a, b)
  return max(jax.tree.leaves(gaps))


def _rearranged(view, variables, order):
  """Returns a view as it is when the clients come in another order."""
  if isinstance(variables, Mixture):
    return variables._replace(weights=variables.weights[order])
  return tree.take(variables, order) if view in STACKED else variables
