"""The contracts of the library, read first.

A round is local work followed by a mixing: K client models are one pytree with
a leading axis K, and every aggregation is a map on that axis.

Axis letters, used in names and docstrings throughout:
  K clients      M shared models    N examples a client    D rows of the data set
  B batch        S steps            R rounds               C classes

`stacked` has a leading axis K, `variables` is one model ({'params': ...} and,
for a network with BatchNorm, {'batch_stats': ...}). `start` is the model a
client begins from, `local` the one it ends with, `mixed` their aggregate. Leaves of a
model are float32, whatever it computes in.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

Array = jax.Array | np.ndarray
Key = jax.Array
PyTree = Any


class InputError(ValueError):
  """Bad input from the user: `main` prints it as one line and exits with 2.

  The message names the value, what was expected and the choices:
  `got partition.alpha=-1; expected a number above 0`.
  """


class Examples(NamedTuple):
  """Rows of data. `x` is a pytree of [D, ...] arrays, `y` is [D] int32."""

  x: PyTree
  y: Array


class Clients(NamedTuple):
  """Who holds which rows of a flat data set; a pytree with a leading axis K.

  Keys and per-client state follow `id`, never the position. Rows may repeat and
  overlap between clients. `index[k, size[k]:]` is padding and never read.
  """

  id: Array  # [K] int32
  index: Array  # [K, N] int32
  size: Array  # [K] int32


class Split(NamedTuple):
  """Held-out rows: for a global model, and each client's own."""

  rows: Array  # [T] int32
  clients: Clients  # index [K, N'], size 0 where a client holds none


class Server(NamedTuple):
  """The centralized data, inputs in the clients' shape.

  The row numbers are into these `examples`; each of them is in one of the two.
  """

  examples: Examples  # [S]
  search: Array  # [S'] int32, rows to learn from
  held_out: Array  # [S''] int32, rows to judge by


class Federation(NamedTuple):
  """Everything a run may touch; an argument of `Algorithm.round`.

  Every row of the clients lives once in `examples` ([D]); `clients`, `validation` and
  `test` are row numbers into it.
  """

  examples: Examples
  clients: Clients
  validation: Split
  test: Split
  server: Server | None = None
  corrupted: Array | None = None  # [K] bool, whose labels or inputs were changed; None: nobody's


class Dataset(NamedTuple):
  """What a loader returns: NumPy arrays on the host, before any partition.

  `x_test` has no rows where the set has no test split of its own. `client` and
  `domain` ([D] int) name the natural owner and the domain of each training row;
  `relabeled` ([D] int) are other labels of these rows, such as people gave them.
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

  def keep(self, rows: np.ndarray) -> 'Dataset':
    """Returns the set with these training rows only; its test split stays as it is."""
    take = lambda x: jax.tree.map(lambda leaf: leaf[rows], x)
    return self._replace(
        x_train=take(self.x_train), y_train=self.y_train[rows], client=take(self.client),
        domain=take(self.domain), relabeled=take(self.relabeled))


class Linear(NamedTuple):
  """A linear layer at work: outputs = inputs @ kernel.reshape(F, G) + bias.

  Of a convolution a row is one place of one image, and `inputs` are the patches under it.
  """

  inputs: Array  # [R, F] float32
  outputs: Array  # [R, G] float32


class Symmetry(NamedTuple):
  """Which hidden units may change places: what a network computes stays the same.

  Units that have to move alike are one group, by name. An axis of r n entries holds the n
  units of its group r times over: a flattened image once a pixel, a gated layer once a gate.

  A permutation of a group says from which unit each place takes. Any one is allowed unless
  the units stand in several `runs` of equal length, such as channels normalized together: then
  places change within a run, and whole runs change places.
  """

  axes: PyTree  # as `variables`: of each leaf a tuple, the group or None of each axis
  size: dict[str, int]  # units of each group; groups are in the network's order
  runs: dict[str, int]  # of each group


class Embedded(NamedTuple):
  """An input that is past its embedding: what the first normalization sees of a text."""

  x: Array  # [B, E]


class Model(NamedTuple):
  """A network as pure functions; flax stays behind it.

  init:       (key) -> variables
  apply:      (variables, x, *, train=False, mask=None, key=None)
              -> (logits [B, C] float32, variables). `mask` [B] bool: masked rows
              count nowhere, BatchNorm included. `key` drives dropout and
              augmentation; None switches both off.
  features:   (variables, x, *, train=False, mask=None, key=None) -> [B, F], the
              input of the classifier head.
  head:       (variables, features [B, F]) -> logits [B, C]: the rest of `apply`.
  statistics: (variables, x) -> what the batch's own statistics would make of
              `variables` less 'params': mean and variance at each BatchNorm.
  groups:     (variables) -> a tree of the same structure whose leaves are module
              paths such as 'trunk/Conv_0' or 'head': what "layer" and "head" mean.
  modules:    () -> the module paths in the order in which an input meets them.
  linear:     (variables, x) -> {module path: Linear} of its dense layers and convolutions.
  symmetry:   () -> Symmetry. Raises InputError where nobody has said what it is.
  normalize:  (x) -> x as `bare` takes it: floats, each about N(0, 1).
  bare:       the same network on inputs that are normalized already; None: this one.
  embed:      (variables, x) -> x of `bare`, texts Embedded; `apply` takes both forms.
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
  normalize: Callable = lambda x: x
  bare: 'Model | None' = None
  embed: Callable = lambda variables, x: x


class Generator(NamedTuple):
  """A generator of features as pure functions.

  init:    (key) -> params
  apply:   (params, labels [B], key) -> (features [B, F], the noise they came from [B, Z])
  classes: C
  """

  init: Callable
  apply: Callable
  classes: int


class Mixture(NamedTuple):
  """A view whose k-th prediction is a mean of M models' probabilities."""

  models: PyTree  # [M, ...]
  weights: Array  # [K, M], rows sum to 1


class Traffic(NamedTuple):
  """Bytes of one message from a client and of one message to it."""

  up: int
  down: int


class Cohort(NamedTuple):
  """What one round says of each of its m participants, all [m]."""

  id: Array  # int32
  loss: Array  # float32, mean training loss over the rows it saw
  finite: Array  # bool: its loss and the norm of its model are finite numbers
  size: Array  # int32, rows it holds
  steps: Array  # int32, optimizer steps it took


class Algorithm(NamedTuple):
  """One method, as pure functions that close over its hyper-parameters.

  init:    (key, federation) -> state
  round:   (state, federation, key) -> (state, metrics): scannable, one compile.
           metrics holds float32 scalars ('train/loss', 'messages_up',
           'messages_down', ...), 'cohort', a Cohort, and, where there are `tables`,
           'records', {table: {column: [n]}} for TABLE.csv; of a column 'valid' ([n]
           bool), if there is one, rows that are False are left out.
  views:   (state, federation) -> {'global': variables, 'clients': stacked, ...},
           the models worth evaluating (`evaluate` says on what), made only then.
           'clients' may be a Mixture.
  traffic: Traffic of one message.
  gauges:  (state) -> {name: float32 array}, what else to report at an evaluation: a
           scalar, such as a sum since the start, or a value ([K]) or several ([K, M])
           of each client.
  finish:  (state, federation, key) -> (state, metrics with the messages sent), once,
           after the last round; a run that has finished cannot be extended. None:
           nothing to do.
  length:  the rounds a run must have, where a schedule reads it: such a run can't
           be extended either. None: any.
  facts:   (what, figures) pairs worth showing before the first round.
  tables:  the names of what 'records' holds.

  A state has a field `round`, the number of rounds done. The shortest method, which draws one
  client in each round and keeps what it has trained:

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


class Batch(NamedTuple):
  """One minibatch; rows with mask False are padding."""

  x: PyTree  # [B, ...]
  y: Array  # [B] int32
  mask: Array  # [B] bool


class Local(Protocol):
  """One client's work, written without a client axis.

  `client` is one element of Clients, `extra` the client's private pytree (a control variate, a
  head, an optimizer state; () for none), which comes back as the second result; the third is one
  element of Cohort.
  """

  def __call__(self, start: PyTree, examples: Examples, client: Clients, extra: PyTree,
               key: Key, /) -> tuple[PyTree, PyTree, Cohort]:
    ...


class Loss(Protocol):
  """What a client minimizes.

  `statistics` is `variables` less 'params', `start` the model that the client received. The last
  result is the loss worth logging, without regularizers.
  """

  def __call__(self, params: PyTree, statistics: PyTree, batch: Batch, start: PyTree,
               extra: PyTree, key: Key, /) -> tuple[Array, tuple[PyTree, Array]]:
    ...


class Merge(Protocol):
  """A merge of K models without data, as an operator's `make` returns it.

  `stacked` is a tree of [K, ...], `base` the parameters that the models were trained from, or
  None where the operator needs none, `key` drives what is drawn.
  """

  def __call__(self, stacked: PyTree, base: PyTree, key: Key, /) -> PyTree:
    ...


class Mapper(NamedTuple):
  """How work on one member is lifted over the members of a stack.

  `f(shared, one)` is the work: `shared` is the same for every member and `one` is one member of
  the pytree `stacked`; f must not close over traced arrays. `cost` [K] (say, examples of each
  client) balances the load.

  each: (f, shared, stacked, cost=None) -> f's results, stacked [K, ...].
  mix:  (f, rows [M, K], shared, stacked, cost=None) -> (mixed [M, ...], rest [K, ...]) for f's
        results (tree, rest): the trees are mixed as they appear and never exist together.
  devices: how many share the members.
  """

  each: Callable
  mix: Callable
  devices: int = 1


class Objective(NamedTuple):
  """A loss on the server's examples.

  targets: (models [m, ...], examples) -> examples, whose y is what predictions are compared to.
  context: (variables, examples) -> what else `rows` needs, made once in a round.
  rows:    (variables, x, y, context, **mode) -> (losses [B], variables); `mode` is what
           `Model.apply` takes: train, mask and key.
  """

  targets: Callable
  context: Callable
  rows: Callable


class Search(NamedTuple):
  """A search for the coefficients of a merge, and what it costs.

  run:       (loss, judge, start, batches, key, project) -> Trace.
  gradients: how often it differentiates the loss of a batch.
  forwards:  how often it evaluates one besides.
  """

  run: Callable
  gradients: int
  forwards: int


class Trace(NamedTuple):
  """Candidates along a search, at P points; the start is not included."""

  step: Array  # [P] int32
  c: Array  # [P, ...] the candidates
  loss: Array  # [P], mean of the minibatches since the last point
  judged: Array  # [P], their loss on held-out examples


class Topology(NamedTuple):
  """Mixing matrices of decentralized learning; a rate may be a float or traced.

  matrix:       (step, key, rate=1.0) -> [K, K] float32, pure.
  spectral_gap: (rate=1.0) -> 1 - |lambda_2| of E[W].
  contraction:  (rate=1.0) -> p, 1 - lambda_max of E[W^T (I - J) W], over draws and period.
  messages:     (rate=1.0) -> expected models an agent sends in a round, the mean over agents.

  The rate of `matching` and `pull` is how often an agent exchanges. Elsewhere (our choice) it is
  the probability that a round communicates at all, drawn once for all agents; a sequence goes on
  while nothing is sent. Rates above `max_rate` are the caller's to refuse; `matching` takes them
  for `max_rate`.
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
  """When agents communicate.

  at:     (round) -> (rate, dense): float32 and bool scalars.
  length: the run's rounds, if a piece reads them; else None.
  """

  at: Callable
  length: int | None


class Scores(NamedTuple):
  """The results of an evaluation.

  metrics: {<view>/<split>/<metric>: float}.
  clients: {<split>/<metric>: [K]} of the clients' models on their own splits, `rows` for the
           number of examples; accuracy and loss are NaN where a client holds none.
  """

  metrics: dict
  clients: dict


class Experiment(NamedTuple):
  """Everything that a run needs; `experiment.build` makes it from a config."""

  algorithm: Algorithm
  federation: Federation
  evaluate: Callable[[dict], Scores]  # of views
  criterion: str  # the validation metric that selects a round: the highest accuracy or lowest loss
  seeds: tuple[int, ...]
  seed_map: Callable  # jax.vmap (together) or a loop (in turn)
  sharding: jax.sharding.Sharding  # where states and data live
  rounds: int
  eval_every: int
  patience: int = 0  # evaluations without a better criterion; 0: no stop
  keep_best: bool = False
  keep: int = 2  # checkpoints
  tensorboard: bool = False
