"""Shared types of the library: data, models, algorithms and the protocols between them.

A round is local training followed by mixing: the K client models are one pytree with
a leading axis K, and every aggregation is a map on that axis.

Axis letters, used in names and docstrings throughout:
  K clients      M shared models    N examples per client    D examples of the data set
  B batch        S steps            R rounds                 C classes

`stacked` has a leading axis K, `variables` is one model ({'params': ...} and,
for a network with BatchNorm, {'batch_stats': ...}). `start` is a client's initial model
in a round, `local` its model after local training, `mixed` the aggregate. Leaves of a
model are float32, whatever the compute dtype.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

Array = jax.Array | np.ndarray
Key = jax.Array
PyTree = Any


class InputError(ValueError):
  """Invalid user input; `main` prints it as one line and exits with code 2.

  The message gives the value, then what was expected, with the choices listed:
  `got partition.alpha=-1; expected a number above 0`.
  """


class SaveError(RuntimeError):
  """A result that could not be saved; `main` prints it as one line and exits with code 1."""


class Examples(NamedTuple):
  """Examples of a data set: `x` is a pytree of [D, ...] arrays, `y` is [D, ...], as in Dataset."""

  x: PyTree
  y: Array


class Clients(NamedTuple):
  """Assignment of a flat data set's examples to clients; a pytree with a leading axis K.

  Keys and per-client state depend on `id`, never on the position. An example may occur
  more than once and in several clients. `index[k, size[k]:]` is padding and never read.
  `round` is the number of rounds before the one they train in, where a schedule goes by it.
  """

  id: Array  # [K] int32
  index: Array  # [K, N] int32
  size: Array  # [K] int32
  round: Array | None = None  # [K] int32

  def valid(self) -> list[np.ndarray]:
    """Returns the indices of each client without the padding, on the host."""
    return [np.asarray(index[:size]) for index, size in zip(self.index, self.size, strict=True)]


class Split(NamedTuple):
  """Indices of held-out examples: for a global model, and for each client."""

  rows: Array  # [T] int32, indices for a global model
  clients: Clients  # index [K, N'], size 0 where a client holds none


class Server(NamedTuple):
  """The server's own data, with inputs in the clients' shape.

  Each of the `examples` is in exactly one of the two index arrays.
  """

  examples: Examples  # [S]
  search: Array  # [S'] int32, indices to learn from
  held_out: Array  # [S''] int32, indices to evaluate on


class Federation(NamedTuple):
  """All data of a run; an argument of `Algorithm.round`.

  Each example of the clients is stored once, in `examples` ([D]); `clients`, `validation`
  and `test` hold indices into it.
  """

  examples: Examples
  clients: Clients
  validation: Split
  test: Split
  server: Server | None = None
  corrupted: Array | None = None  # [K] bool, True for clients with corrupted data; None: no client
  owner: Array | None = None  # [K] int32, number of the natural owner of each client; None: none


class Dataset(NamedTuple):
  """A loaded data set: NumPy arrays on the host, before any partition.

  Inputs are uint8, int32 or floats of at most 32 bits. What `y` holds depends on the task: class
  numbers from 0 to C - 1 ([D] int32), labels that apply or not ([D, C] uint8), values ([D, C]
  float32) or the next tokens ([D, T] int32). A source that does not know the task returns what it
  read, [D] or [D, C] of strings or numbers, with classes=0: tasks make the above of it.
  `x_test` is empty where the set has no test split of its own. `client` and
  `domain` ([D] int) are the natural owner and the domain of each training example;
  `relabeled` ([D] int) are alternative labels, such as those of human annotators.
  `names` are what the files call the C classes, () for their numbers; `titles` are what people
  call them where files have numbers, () if unknown. `owners` are the names of the natural owners
  that `client` numbers from 0, () for the numbers themselves. `columns` are those of a table that
  the inputs were made of, with the strings that each may have, () for numbers. `facts` are shown
  before the first round, as (name, value) pairs.
  """

  name: str
  x_train: PyTree
  y_train: np.ndarray
  x_test: PyTree
  y_test: np.ndarray
  classes: int
  client: np.ndarray | None = None
  domain: np.ndarray | None = None
  relabeled: np.ndarray | None = None
  names: tuple[str, ...] = ()
  facts: tuple[tuple[str, str], ...] = ()
  titles: tuple[str, ...] = ()
  owners: tuple[str, ...] = ()
  columns: tuple[tuple[str, tuple[str, ...]], ...] = ()

  def keep(self, rows: np.ndarray) -> 'Dataset':
    """Returns the set with the training examples at `rows` only; the test split is unchanged."""
    take = lambda x: jax.tree.map(lambda leaf: leaf[rows], x)
    return self._replace(
        x_train=take(self.x_train), y_train=self.y_train[rows], client=take(self.client),
        domain=take(self.domain), relabeled=take(self.relabeled))


class Linear(NamedTuple):
  """Inputs and outputs of a linear layer: outputs = inputs @ kernel.reshape(F, G) + bias.

  For a convolution, a row is one spatial position of one image, and its inputs are the patch.
  """

  inputs: Array  # [R, F] float32
  outputs: Array  # [R, G] float32


class Symmetry(NamedTuple):
  """Permutation symmetry of a network: permutations of hidden units that keep its function.

  Units that must be permuted together are one group, with a name. An axis of r n entries
  repeats the n units of its group r times: a flattened image once per pixel, a gated layer
  once per gate.

  A permutation of a group gives the source unit of each position. Any one is allowed unless
  the units form several `runs` of equal length, such as channels normalized together: then
  units are permuted within a run, and whole runs are permuted. The runs of tied groups, such as
  the queries and the values of the heads of attention, are permuted alike.
  """

  axes: PyTree  # like `variables`: for each leaf a tuple with the group, or None, of each axis
  size: dict[str, int]  # units per group; groups are in the network's order
  runs: dict[str, int]  # runs per group
  ties: tuple[tuple[str, ...], ...] = ()  # groups of as many runs, which are permuted alike


class Embedded(NamedTuple):
  """Marks a text as embedded already, so that the network skips its embedding layer."""

  x: Array  # [B, E]


class Task(NamedTuple):
  """What a network's outputs mean: their loss, metrics and predictions, as pure functions.

  Outputs are [B, C] float32, or [B, T, C] for next tokens; `y` are the examples' labels, targets
  or tokens, as in Dataset.

  name:     of its record.
  loss:     (outputs, y) -> [B]: what is minimized.
  scores:   (outputs, y) -> {name: [B] or [B, C]}: what the metrics are made from. Means of them
            over any examples are.
  metrics:  ({name: [...] or [..., C]}) -> {metric: [...]}, on the host, from means of the scores.
  names:    of the metrics, the main one first, which tables show.
  predict:  (outputs) -> probabilities, or values in the unit of y, of the outputs' shape.
  mix:      (outputs [M, B, ...], weights [M]) -> the outputs of an ensemble, [B, ...].
  draw:     (outputs, key) -> y, drawn from what is predicted.
  entropy:  (outputs) -> [B], of what is predicted; None: it has none.
  smooth:   (outputs) -> [B], the loss of labels that are spread evenly over all classes; None: y
            holds no classes.
  """

  name: str
  loss: Callable
  scores: Callable
  metrics: Callable
  names: tuple[str, ...]
  predict: Callable
  mix: Callable
  draw: Callable
  entropy: Callable | None
  smooth: Callable | None

  @property
  def main(self) -> str:
    """The main metric."""
    return self.names[0]


class Model(NamedTuple):
  """A network as pure functions; callers do not depend on flax.

  init:       (key) -> variables
  apply:      (variables, x, *, train=False, mask=None, key=None)
              -> (outputs [B, C] float32, variables). `mask` [B] bool: examples with
              False are ignored, in BatchNorm too. `key` seeds dropout and
              augmentation; None switches both off.
  features:   (variables, x, *, train=False, mask=None, key=None) -> [B, F], the
              input of the head.
  head:       (variables, features [B, F]) -> outputs [B, C]: the rest of `apply`. A network
              built for `Inputs.positions` has [B, T, F] and [B, T, C].
  statistics: (variables, x, *, mask=None) -> `variables` less 'params' with the
              statistics of this batch: mean and variance at each BatchNorm.
  groups:     (variables) -> a tree of the same structure whose leaves are module
              paths such as 'trunk/Conv_0' or 'head': what "layer" and "head" mean.
  modules:    () -> the module paths in the order of the forward pass.
  linear:     (variables, x) -> {module path: Linear} of its dense layers and convolutions.
  symmetry:   () -> Symmetry. Raises InputError if the network does not define it.
  task:       what its outputs mean.
  normalize:  (x) -> inputs of `bare`: floats, each about N(0, 1).
  bare:       the same network on normalized inputs; None: this one takes them.
  embed:      (variables, x of `bare`) -> x, texts Embedded; `bare.apply` takes both forms.
  further:    (key) -> initial variables of a second or later model, for methods that begin with
              several different ones; None: `init`.
  """

  init: Callable
  apply: Callable
  features: Callable
  head: Callable
  statistics: Callable
  groups: Callable
  modules: Callable
  linear: Callable
  symmetry: Callable
  task: Task
  normalize: Callable = lambda x: x
  bare: 'Model | None' = None
  embed: Callable = lambda variables, x: x
  further: Callable | None = None

  @property
  def shapes(self) -> PyTree:
    """The shapes and dtypes of `variables`."""
    return jax.eval_shape(self.init, jax.random.key(0))

  @property
  def nbytes(self) -> int:
    """The bytes of `variables`, the size of a message with a whole model."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self.shapes))


class Generator(NamedTuple):
  """A generator of features as pure functions.

  init:    (key) -> params
  apply:   (params, labels [B], key) -> (features [B, F], their input noise [B, Z])
  classes: C
  """

  init: Callable
  apply: Callable
  classes: int


class Mixture(NamedTuple):
  """A view with an ensemble per client: the weighted mean of M models' probabilities."""

  models: PyTree  # [M, ...]
  weights: Array  # [K, M], rows sum to 1


class Traffic(NamedTuple):
  """Bytes of one message from a client (up) and of one message to it (down)."""

  up: int
  down: int


class Cohort(NamedTuple):
  """Results of one round for each of its m participants, all [m]."""

  id: Array  # int32
  loss: Array  # float32, mean training loss over the examples it trained on
  finite: Array  # bool: its loss and the norm of its model are finite numbers
  size: Array  # int32, examples it holds
  steps: Array  # int32, optimizer steps it took


class Algorithm(NamedTuple):
  """One method, as pure functions that close over its hyper-parameters.

  init:    (key, federation) -> state
  round:   (state, federation, key) -> (state, metrics): scannable, one compile.
           metrics holds float32 scalars ('train/loss', 'messages_up',
           'messages_down', ...), 'cohort', a Cohort, and, where there are `tables`,
           'records', {table: {column: [n]}} for TABLE.csv; table rows in which the
           optional column 'valid' ([n] bool) is False are left out.
  views:   (state, federation) -> {'global': variables, 'clients': stacked, ...},
           the models to evaluate (experiment/evaluate.py defines the splits), computed
           at evaluations only. 'clients' may be a Mixture.
  traffic: Traffic of one message.
  gauges:  (state) -> {name: float32 array}, diagnostics reported at each evaluation: a
           scalar, such as a sum since the first round, or one value ([K]) or several
           ([K, M]) per client.
  finish:  (state, federation, key) -> (state, metrics with the messages sent), called
           once after the last round; a finished run cannot be extended. None: no
           final step.
  length:  required number of rounds, where a schedule depends on it: such a run cannot
           be extended either. None: any number.
  facts:   diagnostics shown before the first round, as (name, value) pairs.
  tables:  the names of the tables in 'records'.
  stacks:  the names of the state's fields that hold a model or more of every client,
           [K, ...], where a round replaces those of its participants only. The rest of
           the state is searched for non-finite values after each round; of these, what
           a client returns is searched, so that a round costs what its cohort costs.

  A state has a field `round`, the number of completed rounds. A minimal method, which samples
  one client per round and keeps its trained model:

    def relay(model, local):
      train = mappers.map_clients(local, mappers.one_by_one())

      def init(key, federation):
        return State(jnp.int32(0), model.init(key))

      def round(state, federation, key):
        _, client = sampling.sample(federation.clients, 1, key)
        models, _, cohort = train(state.variables, federation.examples, client, (), key)
        return State(state.round + 1, tree.take(models, 0)), sampling.round_metrics(cohort)

      return Algorithm(init, round, views=lambda state, _: {'global': state.variables},
                       traffic=Traffic(up=1, down=1))
  """

  init: Callable
  round: Callable
  views: Callable
  traffic: Traffic
  gauges: Callable = lambda state: {}
  finish: Callable | None = None
  length: int | None = None
  facts: tuple = ()
  tables: tuple[str, ...] = ()
  stacks: tuple[str, ...] = ()


class Moment(NamedTuple):
  """Where in a run a client's local step is; int32 scalars.

  round: rounds before this one; None where no schedule goes by it.
  step:  local steps before this one, in this round.
  steps: all local steps of this client in this round.
  """

  round: Array | None
  step: Array
  steps: Array


class Batch(NamedTuple):
  """One minibatch; examples with mask False are padding."""

  x: PyTree  # [B, ...]
  y: Array  # [B] int32
  mask: Array  # [B] bool
  moment: Moment | None = None


class Local(Protocol):
  """Local training of one client, written without a client axis.

  `client` is one element of Clients, `extra` the client's private pytree (a control variate, a
  head, an optimizer state; () for none), whose new value is the second result; the third is one
  element of Cohort.
  """

  def __call__(self, start: PyTree, examples: Examples, client: Clients, extra: PyTree,
               key: Key, /) -> tuple[PyTree, PyTree, Cohort]:
    ...


class Loss(Protocol):
  """Training loss of a client.

  `statistics` is `variables` less 'params', `start` the model that the client received. The last
  result is the loss to log, without regularizers.
  """

  def __call__(self, params: PyTree, statistics: PyTree, batch: Batch, start: PyTree,
               extra: PyTree, key: Key, /) -> tuple[Array, tuple[PyTree, Array]]:
    ...


class Merge(Protocol):
  """Data-free merge of K models, as returned by an operator's `make`.

  `stacked` is a tree of [K, ...], `base` the parameters that the models were trained from, or
  None where the operator needs none, `key` seeds random draws.
  """

  def __call__(self, stacked: PyTree, base: PyTree, key: Key, /) -> PyTree:
    ...


class Mapper(NamedTuple):
  """A strategy for mapping a function over the members of a stack, such as clients.

  The function is `f(shared, one)`: `shared` is the same for every member and `one` is one member
  of the pytree `stacked`; f must not close over traced arrays. `cost` [K] (say, examples per
  client) balances the load.

  each: (f, shared, stacked, cost=None) -> f's results, stacked [K, ...].
  mix:  (f, rows [M, K], shared, stacked, cost=None) -> (mixed [M, ...], rest [K, ...]) for f's
        results (tree, rest) and mixing weights `rows`: the trees are mixed as they are computed,
        so that they are never all in memory.
  devices: number of devices that share the members.
  """

  each: Callable
  mix: Callable
  devices: int = 1


class Objective(NamedTuple):
  """A loss on the server's examples.

  targets: (models [m, ...], examples) -> examples whose y are the targets of the predictions.
  context: (variables, examples) -> further inputs of `rows`, computed once per round.
  rows:    (variables, x, y, context, **mode) -> (losses [B], variables); `mode` holds the
           arguments train, mask and key of `Model.apply`.
  """

  targets: Callable
  context: Callable
  rows: Callable


class Search(NamedTuple):
  """A search for the coefficients of a merge, and its cost.

  run:       (loss, evaluate, start, batches, key, project) -> Trace; see merging/search.py.
  gradients: gradients of the loss per minibatch.
  forwards:  further evaluations of the loss per minibatch.
  """

  run: Callable
  gradients: int
  forwards: int


class Trace(NamedTuple):
  """P candidates along a search; the initial coefficients are not included."""

  step: Array  # [P] int32
  c: Array  # [P, ...] the candidates
  loss: Array  # [P], mean over the minibatches since the previous candidate
  held_out_loss: Array  # [P], their loss on held-out examples


class Topology(NamedTuple):
  """A communication topology as mixing matrices; rates may be Python floats or traced.

  matrix:       (step, key, rate=1.0) -> [K, K] float32, pure.
  spectral_gap: (rate=1.0) -> 1 - |lambda_2| of E[W].
  contraction:  (rate=1.0) -> p, 1 - lambda_max of E[W^T (I - J) W], over draws and period.
  messages:     (rate=1.0) -> expected models that an agent sends per round, mean over agents.

  The rate of `matching` and `pull` is the probability that an agent communicates. Elsewhere (our
  choice) it is the probability that a round communicates at all, drawn once for all agents; a
  sequence of graphs also advances in rounds without communication. Callers must reject rates
  above `max_rate`; `matching` clips them to `max_rate`.
  """

  name: str
  agents: int  # K
  matrix: Callable
  symmetric: bool  # every matrix is symmetric
  stochastic: str  # 'doubly' or 'row'
  spectral_gap: Callable
  contraction: Callable
  messages: Callable
  period: int = 1  # steps after which a sequence repeats
  max_rate: float = 1.0


class Schedule(NamedTuple):
  """Communication schedule of decentralized learning.

  at:     (round) -> (rate, dense): float32 and bool scalars; dense rounds average all agents.
  length: the number of rounds of the run, if the schedule depends on it; else None.
  """

  at: Callable
  length: int | None


class Scores(NamedTuple):
  """The results of an evaluation.

  metrics: {<view>/<split>/<metric>: float}.
  clients: {<split>/<metric>: [K]} of the clients' models on their own splits, `rows` for the
           number of examples; the others are NaN for a client without examples.
  """

  metrics: dict
  clients: dict


class Experiment(NamedTuple):
  """All inputs of a run; `experiment.build` makes it from a config."""

  algorithm: Algorithm
  federation: Federation
  evaluate: Callable[[dict], Scores]  # of views
  criterion: str  # validation metric that selects a round
  seeds: tuple[int, ...]
  seed_map: Callable  # jax.vmap (together) or a loop (in turn)
  sharding: jax.sharding.Sharding  # of states and data
  rounds: int
  eval_every: int
  patience: int = 0  # evaluations without improvement before early stopping; 0: no early stopping
  keep_best: bool = False
  keep: int = 2  # number of checkpoints kept
  track: tuple[str, ...] = ()  # names of trackers
  classes: int = 0  # C; 0: unknown
  client_names: tuple[str, ...] = ()  # of the clients' natural owners; () if they have none
  warnings: tuple[str, ...] = ()  # of what is allowed but hardly meant
  init: Callable | None = None  # (key) -> the initial model of a seed, which the run keeps
  about: Mapping[str, Any] = MappingProxyType({})  # what model.json says of network and data
  given: Mapping[str, str] = MappingProxyType({})  # digests of what was given beside the data
