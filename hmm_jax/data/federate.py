"""Federation of a data set: its partition over clients and its validation and test splits."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from hmm_jax.data import numbering, values
from hmm_jax.registry import Setting
from hmm_jax.types import Clients, Dataset, Examples, Federation, InputError, Split

# A partition with its options bound, (pool, rng) -> K arrays of indices into the pool: a
# Dataset without inputs, with the labels, owners and domains of the examples to deal.
Assign = Callable[[Dataset, np.random.Generator], Sequence[np.ndarray]]
# For training, validation and test: the indices of each of K clients.
Parts = Sequence[Sequence[np.ndarray]]
# Where test examples come from: (dataset, assign, divide, fractions=, seed=, held_out=) ->
# parts as indices into the training split followed by the test split, and the indices of the
# global test examples.
Source = Callable[..., tuple[Parts, np.ndarray]]

_ALIGNMENT = 64  # bytes
_GLOBAL, _DEAL, _LOCAL, _ALIKE, _SUBSET = range(5)  # streams of random numbers under one seed


def subset(dataset: Dataset, share: float, seed: int) -> Dataset:
  """Keeps a random share of the training examples, and the same share of the test examples.

  Raises:
    InputError: the share is out of range, or leaves no training example.
  """
  if share == 1:
    return dataset
  rng = np.random.default_rng([seed, _SUBSET])
  train, test = (np.sort(rng.permutation(len(y))[:round(share * len(y))])
                 for y in (dataset.y_train, dataset.y_test))
  if not (0 < share < 1 and len(train)):
    raise InputError(f'got subset={share}; expected a number above 0 and of at most 1 that '
                     f'keeps at least one of {len(dataset.y_train)} training examples')
  return dataset.keep(train)._replace(
      x_test=jax.tree.map(lambda leaf: leaf[test], dataset.x_test), y_test=dataset.y_test[test])


def own_test(dataset: Dataset, assign: Assign, divide: Callable[..., Parts], *,
             fractions: tuple[float, float], seed: int,
             held_out: float = 0.2) -> tuple[Parts, np.ndarray]:
  """Lets clients test on a fraction of their own examples; global test examples are not dealt."""
  rows, test = _hold_out_test(dataset, seed, held_out)
  parts = divide(_pool(dataset, rows), assign, fractions=fractions, seed=seed)
  return tuple([rows[own] for own in part] for part in parts), test


def alike_test(dataset: Dataset, assign: Assign, divide: Callable[..., Parts], *,
               fractions: tuple[float, float], seed: int,
             held_out: float = 0.2) -> tuple[Parts, np.ndarray]:
  """Deals the global test examples to the clients in the proportions of their own, by class.

  A client that holds a tenth of a class gets a tenth of its test examples, to within one:
  the rounding is random. A class that no client holds is in the global test only. The test
  fraction is not used: a client trains or validates on all that it is dealt.

  Reference: the cluster setting of S. Chen, T. Zhou, G. Long, J. Jiang, C. Zhang.
  "FedMerge: Federated Personalization via Model Merging". AAAI 2026. arXiv:2504.06768.
  The authors' code draws other shares for the test examples; equal ones are our choice, so
  that a client is tested on the distribution that it trained on.
  """
  (train, validation, _), global_test = own_test(
      dataset, assign, divide, fractions=(fractions[0], 0), seed=seed, held_out=held_out)
  labels = _labels(dataset)
  held = np.stack([np.bincount(labels[np.concatenate(own)], minlength=dataset.classes)
                   for own in zip(train, validation, strict=True)])
  rng = np.random.default_rng([seed, _ALIKE])
  test = [[] for _ in train]
  for c in np.flatnonzero(held.any(axis=0)):
    rows = rng.permutation(global_test[labels[global_test] == c])
    ends = np.cumsum(held[:, c]) * len(rows) / held[:, c].sum()
    for own, dealt in zip(test, np.split(rows, (ends[:-1] + rng.random()).astype(int)),
                          strict=True):
      own.append(dealt)
  return (train, validation, [np.concatenate(own) for own in test]), global_test


def pooled_test(dataset: Dataset, assign: Assign, divide: Callable[..., Parts], *,
                fractions: tuple[float, float], seed: int,
             held_out: float = 0.2) -> tuple[Parts, np.ndarray]:
  """Deals all examples, the test split included; clients test on a fraction of their own.

  The global test examples are those of all clients together. A test split has no owners,
  domains or alternative labels, so a set with a test split is dealt without them.

  Raises:
    InputError: no client has a test example.

  Reference: the client-wise setting of S. Chen, T. Zhou, G. Long, J. Jiang, C. Zhang.
  "FedMerge: Federated Personalization via Model Merging". AAAI 2026. arXiv:2504.06768.
  """
  if len(dataset.y_test):
    dataset = dataset._replace(
        y_train=_labels(dataset), client=None, domain=None, relabeled=None)
  parts = divide(_pool(dataset, np.arange(len(dataset.y_train))), assign, fractions=fractions,
                 seed=seed)
  del held_out
  rows = np.unique(np.concatenate(parts[2]))
  if not len(rows):
    raise InputError(f'got test={fractions[1]} with test_rows=pooled; no '
                     'client has an example to test on, expected a larger fraction')
  return parts, rows


def federate(dataset: Dataset, assign: Assign, *, divide: Callable[..., Parts],
             validation: float, test: float, seed: int,
             test_rows: Source = own_test, held_out: float = 0.2,
             groups: tuple[np.ndarray, np.ndarray] | None = None) -> Federation:
  """Deals a data set to clients and splits off validation and test examples.

  The global test examples are the set's own test split or, if it has none, a stratified
  share of all examples. The others are dealt by `divide`; the validation examples of all
  clients together are the global ones.

  Args:
    dataset: as loaded. All examples are copied, so it can be freed afterwards.
    assign: the partition.
    divide: `deal_then_split` or, if clients share examples, `split_then_deal`.
    validation: fraction of its examples that a client keeps for validation.
    test: fraction of its examples that a client keeps for its own test.
    seed: of every draw.
    test_rows: where test examples come from: `own_test`, `alike_test` or `pooled_test`.
    held_out: share of all examples for the global test, if the set has no test split.
    groups: ([D] int32, the same of the test split), numbers of the groups that take the place of
      classes, where labels are no classes.

  Returns:
    A Federation of NumPy arrays; examples that no client holds stay unused.

  Raises:
    InputError: impossible fractions, a client without examples, no test example, or arrays that
      would have to be cast: labels that are no classes, or inputs of a wider type.
  """
  _check(validation, test, seed)
  values.check(dataset)
  parts, global_test = test_rows(
      grouped(dataset, groups), assign, divide, fractions=(validation, test), seed=seed,
      held_out=held_out)
  train, own_validation, own_test = map(_clients, parts)
  return Federation(
      examples=Examples(x=jax.tree.map(_join, dataset.x_train, dataset.x_test),
                        y=_join(*map(numbering.compact, (dataset.y_train, dataset.y_test)))),
      clients=train,
      validation=Split(np.unique(np.concatenate(own_validation.valid())), own_validation),
      test=Split(global_test.astype(np.int32), own_test))


def grouped(dataset: Dataset, groups: tuple[np.ndarray, np.ndarray] | None) -> Dataset:
  """Returns the set without inputs, with the numbers of groups as labels, if there are any."""
  bare = dataset._replace(x_train=(), x_test=())
  if groups is None:
    return bare
  count = 1 + max(int(each.max(initial=0)) for each in groups)
  return bare._replace(y_train=groups[0], y_test=groups[1], classes=count)


def deal_then_split(pool: Dataset, assign: Assign, *, fractions: tuple[float, float],
                    seed: int) -> Parts:
  """Deals the pool, then splits off fractions of each client's own examples."""
  rng = np.random.default_rng([seed, _LOCAL])
  return tuple(zip(*(_cut(rng.permutation(rows), fractions) for rows in _deal(pool, assign, seed)),
                   strict=True))


def split_then_deal(pool: Dataset, assign: Assign, *, fractions: tuple[float, float],
                    seed: int) -> Parts:
  """Splits the pool by class, then deals each part with the same random draws.

  For partitions whose clients share examples: no client trains on what another holds out.
  A partition that draws the clients' class distributions first gives them the same ones in
  all parts; of what it deals, a client keeps the fraction that belongs to the part.
  """
  splits = _stratify(pool.y_train, fractions, np.random.default_rng([seed, _LOCAL]))
  parts = []
  for i, split in enumerate(splits):
    if len(split):
      dealt = _deal(_pool(pool, split), assign, seed)
      parts.append([split[_cut(rows, fractions)[i]] for rows in dealt])
    else:
      parts.append([split] * len(parts[0]))
  return tuple(parts)


def label_counts(federation: Federation, classes: int,
                 groups: np.ndarray | None = None) -> np.ndarray:
  """Counts the training examples of each client by class, or by group ([D]): [K, C]."""
  y = np.asarray(federation.examples.y if groups is None else groups)
  return np.stack([np.bincount(y[rows], minlength=classes) for rows in federation.clients.valid()])


def describe(federation: Federation, dataset: Dataset, counts: np.ndarray | None = None, *,
             source: str = '') -> list[tuple[str, str]]:
  """Returns a summary of a federation as (name, figures) pairs, for a short table.

  Args:
    federation: on the host.
    dataset: that it was made of; its inputs are not looked at.
    counts: of the clients' training examples by group, [K, C]; None: by class.
    source: where the server's examples come from, if it is to be shown.
  """
  counts = label_counts(federation, dataset.classes) if counts is None else counts
  train, validation, test = (
      np.concatenate(clients.valid()) for clients in
      (federation.clients, federation.validation.clients, federation.test.clients))
  total = len(federation.examples.y)
  used = np.unique(np.concatenate([train, validation, test, federation.test.rows]))
  return [
      ('clients', f'{len(counts):,}'),
      ('training examples', f'{len(np.unique(train)):,} of {total:,}'),
      ('training examples per client', _spread(counts.sum(axis=1))),
      *_describe_labels(dataset, counts),
      ('validation examples', f'{len(federation.validation.rows):,}'),
      ('test examples',
       f"{len(federation.test.rows):,}, and {len(np.unique(test)):,} of clients' own"),
      ('unused examples', f'{total - len(used):,}'),
      *_describe_server(federation.server, source),
      *([] if federation.corrupted is None else
        [('corrupted clients', f'{federation.corrupted.sum():,}')]),
      *dataset.facts,
  ]


def _describe_labels(dataset, counts):
  """Says what is learned: classes and how many a client has, or the targets."""
  named = [('classes' if dataset.y_train.ndim == 1 else 'targets', numbering.listed(
      dataset.names))] if dataset.names else []
  if dataset.y_train.ndim == 1:
    return [*named, ('classes per client', _spread((counts > 0).sum(axis=1)))]
  return named


def _describe_server(server, source):
  if server is None:
    return []
  figures = f'{len(server.search):,} to learn from, {len(server.held_out):,} held out'
  return [('server examples', ', from '.join(filter(None, [figures, source])))]


def _check(validation, test, seed):
  for name, fraction in (('validation', validation), ('test', test)):
    if not 0 <= fraction < 1:
      raise InputError(f'got {name}={fraction}; expected a fraction from 0 to below 1')
    values.check_share(name, fraction)
  if validation + test >= 1:
    raise InputError(f'got validation={validation} and test={test}; expected '
                     'a sum below 1')
  if seed < 0:
    raise InputError(f'got seed={seed}; expected at least 0')


def _labels(dataset):
  return np.concatenate([dataset.y_train, dataset.y_test])


def _hold_out_test(dataset, seed, share):
  """Returns the indices to deal and the global test indices; training split before test split."""
  rows = np.arange(len(dataset.y_train))
  if len(dataset.y_test):
    return rows, len(rows) + np.arange(len(dataset.y_test))
  rows, _, held_out = _stratify(
      dataset.y_train, (0, share), np.random.default_rng([seed, _GLOBAL]))
  if not len(held_out):
    raise InputError(f'got dataset={dataset.name!r}; expected test examples, or classes large '
                     f'enough to hold out a share of {share}; it has {len(rows)} examples in all')
  return rows, held_out


def _pool(dataset, rows):
  """Returns the labels, owners and domains at indices `rows`, without inputs."""
  return dataset._replace(x_train=(), x_test=()).keep(rows)


def _deal(pool, assign, seed):
  dealt = assign(pool, np.random.default_rng([seed, _DEAL]))
  values.check_counts(len(dealt), pool.classes)
  for k, rows in enumerate(dealt):
    if not len(rows):
      raise InputError(f'got clients={len(dealt)}; client {k} holds no examples, expected '
                       'fewer clients')
  return dealt


def _stratify(labels, fractions, rng):
  """Returns training, validation and test indices, stratified by class."""
  cuts = [_cut(rng.permutation(np.flatnonzero(labels == c)), fractions) for c in np.unique(labels)]
  return [np.sort(np.concatenate(part)) for part in zip(*cuts, strict=True)]


def _cut(rows, fractions):
  """Splits off validation and test indices, but always keeps one to train on."""
  validation = min(round(fractions[0] * len(rows)), len(rows) - 1)
  test = min(round(fractions[1] * len(rows)), len(rows) - 1 - validation)
  train = len(rows) - validation - test
  held_out = train + validation
  return rows[:train], rows[train:held_out], rows[held_out:]  # np.split takes 20 times as long.


def _clients(rows):
  size = np.array([len(own) for own in rows], np.int32)
  index = np.zeros((len(rows), max(1, size.max())), np.int32)
  for k, own in enumerate(rows):
    index[k, :size[k]] = own
  return Clients(np.arange(len(rows), dtype=np.int32), index, size)


def _join(train, test):
  """Concatenates both splits in aligned memory."""
  # jax.device_put on CPU shares an aligned buffer with all devices of the process;
  # any other it copies to each of them.
  shape = (len(train) + len(test), *train.shape[1:])
  nbytes = int(np.prod(shape)) * train.itemsize
  memory = np.empty(nbytes + _ALIGNMENT, np.uint8)
  start = -memory.ctypes.data % _ALIGNMENT
  joined = memory[start:start + nbytes].view(train.dtype).reshape(shape)
  return np.concatenate([train, test], out=joined)


def _spread(values):
  return f'{values.min():,} to {values.max():,}, median {np.median(values):,.0f}'


TESTS = {'own': own_test, 'alike': alike_test, 'pooled': pooled_test}
SETTINGS = {
    'seed': Setting(0, 'seed of the partition and of related draws, such as splits', at_least=0),
    'validation': Setting(0.1, "share of each client's examples held out for validation"),
    'test': Setting(0.1, "share of each client's examples held out for test; not used by "
                    'test_rows=alike'),
    'test_rows': Setting(
        'own', "own: a share of the client's examples; alike: global test examples, dealt in its "
        "class proportions; pooled: as own, with the data set's test split dealt as well",
        choices=TESTS),
    'global_test': Setting(0.2, 'share of all examples for the global test, if the set has no '
                           'test split', above=0, below=1),
}
