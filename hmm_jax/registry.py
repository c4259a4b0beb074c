"""Records: what a config can name, each declared once, beside the code that does it.

A record stands at the end of the file that does the work: a method, a merge operator, a network,
a data source or a partitioner, with its settings. Defaults, checks, suggestions, lists and the
tables of the docs are derived from records. A name in a config may also refer to a record of
one's own, `package.module:RECORD` or `path/to/file.py:RECORD`.
"""

import ast
from collections.abc import Callable, Collection, Generator, Mapping
import contextlib
import difflib
import functools
import hashlib
import importlib
import importlib.util
import math
import os
import re
import sys
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple, TypeVar

from hmm_jax.types import InputError

NOTHING = MappingProxyType({})
REQUIRED = type('Required', (), {'__repr__': lambda self: 'required'})()

# The sizes of what float32 holds without loss of precision.
_LEAST, _MOST = 1.1755e-38, 3.4028e38
_PLURALS = {int: 'whole numbers', float: 'numbers', str: 'texts'}

# What a method can be, and what it or an operator can need; tables and checks go by these words.
KINDS = {
    'global': 'trains one model for all clients',
    'personal': 'trains a model for each client',
    'hybrid': 'learns on data of the server as well',
    'decentralized': 'needs no server',
    'one-shot': 'trains clients apart and merges their models',
    'bound': 'shows what is possible without federated learning',
}
NEEDS = {
    'all clients': 'every client takes part in every round',
    'server examples': 'the server holds examples of its own',
    'own examples': 'each client holds examples to evaluate its own model on',
    'plain sgd': 'clients train by SGD without momentum',
    'plain loss': 'clients minimize the plain cross-entropy',
    'no prox': 'clients train without local.prox',
    'constant lr': 'clients train at one learning rate',
    'BatchNorm': 'the network has BatchNorm',
    'trunk': 'the network is more than its head',
    'classes': 'each example has one class: task=classification',
    'any init': 'models may be trained from different initial ones',
    'shared init': 'models were trained from one initial model',
    'base': 'the parameters that the models were trained from',
    'two models': 'exactly two models',
    'network': 'the network that the parameters belong to',
    'data': 'inputs to run it on',
    'labels': 'the labels of these inputs',
}


class Setting(NamedTuple):
  """One value that a user may set.

  default: what it is otherwise, in its type; REQUIRED if there is none.
  meaning: one line: unit, special values.
  choices: the names that it may have; () for any.
  above, at_least, below, at_most: bounds of a number; None for none.
  """

  default: Any
  meaning: str
  choices: Collection[str] = ()
  above: float | None = None
  at_least: float | None = None
  below: float | None = None
  at_most: float | None = None

  @property
  def expected(self) -> str:
    """Says in words what a value must be; '' if any value of the type suits."""
    if self.choices:
      return f'one of {", ".join(self.choices)}'
    if self.at_least is not None and self.at_most is not None:
      return f'a number from {_plain(self.at_least)} to {_plain(self.at_most)}'
    bounds = {'above': self.above, 'of at least': self.at_least, 'below': self.below,
              'of at most': self.at_most}
    words = [f'{word} {_plain(bound)}' for word, bound in bounds.items() if bound is not None]
    return f'a number {" and ".join(words)}' if words else ''

  def check(self, key: str, value: Any):
    """Raises InputError unless a value of the right type is a choice, or within the bounds.

    Those of a tuple hold for each element, which has the type of the default's, or is a text.
    """
    if isinstance(value, tuple):
      kind = type(self.default[0]) if self.default else str
      for element in value:
        if type(element) is not kind:
          raise InputError(f'got {key}={value}; expected {_PLURALS[kind]}')
        self.check(key, element)
      return
    if isinstance(value, float) and not math.isfinite(value):
      raise InputError(f'got {key}={value}; expected a finite number')
    if isinstance(value, float) and value and not _LEAST <= abs(value) <= _MOST:
      raise InputError(f'got {key}={value}; expected 0 or a number from {_LEAST:g} to {_MOST:g} '
                       'in size, as float32 has no other')
    if type(value) is int and abs(value) >= 2**31:
      raise InputError(f'got {key}={value}; expected a whole number below 2**31')
    suits = (not self.choices or value in self.choices) and all(
        bound is None or holds(value, bound) for bound, holds in (
            (self.above, lambda v, b: v > b), (self.at_least, lambda v, b: v >= b),
            (self.below, lambda v, b: v < b), (self.at_most, lambda v, b: v <= b)))
    if not suits:
      raise InputError(f'got {key}={value}; expected {self.expected}'
                       + suggestion(str(value), self.choices))

  def coerce(self, key: str, value: Any) -> Any:
    """Returns a value in the type of the default.

    Raises:
      InputError: it can't be.
    """
    wanted = type(self.default)
    if wanted is float and type(value) is int:
      value = _float(value)
    if self.default is not REQUIRED and type(value) is not wanted:
      expected = self.expected if self.choices else f'a value like {self.default}'
      raise InputError(f'got {key}={value}; expected {expected}: {self.meaning}')
    return value


class Method(NamedTuple):
  """A federated method.

  name:     what configs call it.
  build:    (parts, settings) -> Algorithm; `parts` is a `Parts` of algorithms/parts.py,
            `settings` the config's section of the method's name.
  settings: {key: Setting} of that section.
  kind:     one of KINDS.
  needs:    of NEEDS.
  check:    (config) -> None; raises InputError where settings don't go together.
  summary:  one line.
  paper:    authors, venue, arXiv number.
  """

  name: str
  build: Callable
  settings: Mapping[str, Setting] = NOTHING
  kind: str = 'global'
  needs: tuple[str, ...] = ()
  check: Callable[[Any], None] | None = None
  summary: str = ''
  paper: str = ''


class Operator(NamedTuple):
  """A merge operator.

  name:     what commands and configs call it.
  make:     (**settings) -> the merge, a pure function that jit takes:
            (stacked, base, key) -> params if it needs no network, else
            (model, stacked, base, examples, indices, key) -> params.
  needs:    of NEEDS.
  settings: {key: Setting}, the arguments of `make`.
  summary:  one line.
  paper:    authors, venue, arXiv number.

  A merge without a network takes parameters: any tree of [K, ...], and one of [...]. One with a
  network takes variables, whose running statistics normalize where a model runs by itself, and
  returns parameters: the merged model's statistics are recalibrated afterwards. `indices` into
  the examples are [S, B] batches, or [K, S, B], each model's own; -1 is padding, and
  `merging.batches.take` gives a mask. A base that is not needed may be None.
  """

  name: str
  make: Callable
  needs: tuple[str, ...]
  settings: Mapping[str, Setting] = NOTHING
  summary: str = ''
  paper: str = ''


class Inputs(NamedTuple):
  """What a network is built for."""

  shape: Any  # of one example; {name: shape} of several modalities
  classes: int  # C: classes, labels, target values or tokens; the width of the outputs
  dtype: Any  # what it computes in
  vocabulary: int = 0  # number of tokens, of token inputs
  positions: bool = False  # outputs at each position of a sequence, [B, T, C], for next tokens


class Network(NamedTuple):
  """A network.

  name:     what configs call it.
  build:    (inputs, settings) -> Model; `inputs` is an `Inputs`.
  settings: {key: Setting} of the config's section of its name.
  takes:    which inputs, of arrays, tokens, modalities.
  summary:  one line.
  paper:    authors, venue, arXiv number.
  """

  name: str
  build: Callable
  settings: Mapping[str, Setting] = NOTHING
  takes: tuple[str, ...] = ('arrays',)
  summary: str = ''
  paper: str = ''


class Source(NamedTuple):
  """A data source: how configs name it, and how it loads a data set.

  name:     what configs call it; NAME:PATH if it has a path.
  load:     (path, settings, data_dir) -> Dataset; `path` is '' without one, and `data_dir` the
            config's, '' for the source's own default.
  settings: {key: Setting} of the config's section of its name.
  path:     whether a path follows the name.
  summary:  one line.
  paper:    authors, venue, arXiv number.
  """

  name: str
  load: Callable
  settings: Mapping[str, Setting] = NOTHING
  path: bool = False
  summary: str = ''
  paper: str = ''

  @property
  def form(self) -> str:
    """How a config names it."""
    return f'{self.name}:PATH' if self.path else self.name


class Partitioner(NamedTuple):
  """A way to deal examples to clients.

  name:     what configs call it.
  assign:   (pool, clients, rng, settings) -> K arrays of indices into the pool, a Dataset
            without inputs.
  settings: {key: Setting}; the built-in ones share the section `partition`.
  overlaps: whether clients may hold the same example.
  labels:   whether it needs neither owners nor domains of the examples.
  classes:  whether it goes by the examples' classes.
  summary:  one line.
  paper:    authors, venue, arXiv number.
  """

  name: str
  assign: Callable
  settings: Mapping[str, Setting] = NOTHING
  overlaps: bool = False
  labels: bool = True
  classes: bool = False
  summary: str = ''
  paper: str = ''


class TaskKind(NamedTuple):
  """A task: what networks learn of the examples.

  name:      what configs call it.
  make:      (about, loss) -> Task; `about` as experiment/blueprint.py says, `loss` (outputs, y) ->
             [B] in place of the task's own, or None.
  prepare:   (dataset) -> the set with y as the task learns them; raises InputError.
  groups:    what partitions by class go by: 'classes', 'quantiles' of the first target, or '' for
             nothing.
  metrics:   the names of its metrics, the main one first.
  losses:    {name: loss} that `loss` may name.
  positions: whether there are outputs at each position of a sequence.
  settings:  {key: Setting} of the config's section of its name.
  summary:   one line.
  """

  name: str
  make: Callable
  prepare: Callable
  groups: str = ''
  metrics: tuple[str, ...] = ()
  losses: Mapping[str, Callable] = NOTHING
  positions: bool = False
  settings: Mapping[str, Setting] = NOTHING
  summary: str = ''


Record = TypeVar('Record')


class NoModule(InputError):
  """A reference to a module that does not exist."""


def records(package: str, files: Collection[str], kind: type[Record]) -> dict[str, Record]:
  """Returns the records of one kind in some files of a package, {name: record}, in order."""
  found = {}
  for file in files:
    module = importlib.import_module(f'{package}.{file}')
    found |= {record.name: record for record in vars(module).values() if type(record) is kind}
  return found


class Stand(NamedTuple):
  """What may stand for a record of a kind: a flax module for a `Network`.

  words:  what it is.
  fits:   (value) -> whether it is such.
  record: (reference, value) -> the record.
  """

  words: str
  fits: Callable[[Any], bool]
  record: Callable[[str, Any], Any]


def find(key: str, name: str, known: Mapping[str, Record], kind: type[Record],
         stand: Stand | None = None) -> Record:
  """Returns the record of a known name, or of a reference such as `file.py:RECORD`.

  Args:
    key: of the config, for errors.
    name: of a known record, or a reference to one of somebody's own.
    known: {name: record}.
    kind: of record.
    stand: what a reference may name instead.

  Raises:
    InputError: an unknown name, or a reference to what is not there.
  """
  if name in known:
    return known[name]
  missing = ''
  if is_reference(name):
    try:
      return load(key, name, kind, stand=stand)
    except NoModule:
      missing = '; there is no such module'
  forms = [getattr(record, 'form', known_name) for known_name, record in known.items()]
  raise InputError(f'got {key}={name}; expected one of {", ".join(forms)}, or '
                   f'package.module:RECORD or path/to/file.py:RECORD{missing}'
                   + suggestion(name, known))


def is_reference(name: str) -> bool:
  """Tells `package.module:RECORD` and `path/to/file.py:RECORD` from other names."""
  place, _, attribute = name.rpartition(':')
  module = all(part.isidentifier() for part in place.split('.'))
  return attribute.isidentifier() and (place.endswith('.py') or module)


def absolute(name: str) -> str:
  """Returns a reference that names its file from anywhere; other names stay."""
  if not is_reference(name) or not name.rpartition(':')[0].endswith('.py'):
    return name
  return os.path.abspath(os.path.expanduser(name))


def load(key: str, reference: str, *kinds: type[Record], stand: Stand | None = None) -> Record:
  """Returns the record that a reference names, which is of one of the kinds.

  Args:
    key: of the config, for errors.
    reference: `package.module:RECORD` or `path/to/file.py:RECORD`.
    *kinds: of records.
    stand: what may stand for one.

  Raises:
    InputError: there is no such file, module or record, or it fails when it is imported.
  """
  place, _, attribute = reference.rpartition(':')
  wanted = f'got {key}={reference}; expected'
  try:
    module = _file(os.path.abspath(os.path.expanduser(place))) if place.endswith('.py') else (
        importlib.import_module(place))
  except FileNotFoundError as error:
    raise InputError(f'{wanted} a file, but there is no {place}') from error
  except ModuleNotFoundError as error:
    if not f'{place}.'.startswith(f'{error.name}.'):  # It imports what is not installed.
      raise InputError(f'{wanted} a module that can be imported, but {place} imports {error.name}, '
                       'which is not installed') from error
    raise NoModule(f'{wanted} a module, but there is no {error.name}') from error
  except InputError:
    raise
  except (Exception, SystemExit) as error:  # It is the user's own code.
    raise InputError(f'{wanted} a module that can be imported, but {place} fails with '
                     f'{type(error).__name__}: {error}') from error
  record = getattr(module, attribute, None)
  if isinstance(record, kinds):
    return record
  if stand and stand.fits(record):
    return stand.record(reference, record)
  # Classes and functions that it imports are hardly meant.
  own = [name for name, value in vars(module).items()
         if (isinstance(value, kinds) or (stand and stand.fits(value)))
         and (not hasattr(value, '__qualname__') or value.__module__ == module.__name__)]
  names = ' or '.join(['function' if kind is Callable else kind.__name__ for kind in kinds]
                      + ([stand.words] if stand else []))
  raise InputError(f'{wanted} a {names}; {place} has {", ".join(own) or "none"}'
                   + suggestion(attribute, own))


@functools.cache
def _file(path: str) -> ModuleType:
  """Imports a Python file as a module, once per path."""
  if not os.path.isfile(path):
    raise FileNotFoundError(path)
  name = f'plugin_{hashlib.sha256(path.encode()).hexdigest()[:12]}'
  spec = importlib.util.spec_from_file_location(name, path)
  if spec is None or spec.loader is None:
    raise FileNotFoundError(path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module
  try:
    spec.loader.exec_module(module)
  except BaseException:
    del sys.modules[name]
    raise
  return module


def is_file_name(name: str) -> bool:
  """Tells whether a text may be the name of one file or folder, or is empty."""
  return name.isprintable() and not set(name) & set('/\\:*?"<>|') and not name.startswith('.')


def suggestion(name: str, names: Collection[str]) -> str:
  """Returns '; did you mean X?' for the nearest name, or nothing."""
  near = difflib.get_close_matches(name, names, n=1)
  return f'; did you mean {near[0]}?' if near else ''


def read_pairs(pairs: Collection[str]) -> dict[str, Any]:
  """Reads 'key=value' of each; a value as Python does, or as text.

  Raises:
    InputError: one can't be read.
  """
  for pair in pairs:
    if '=' not in pair:
      raise InputError(f'got the setting {pair!r}; expected key=value')
  return {key: literal(value) for key, value in (pair.split('=', 1) for pair in pairs)}


def read_settings(operator: Operator, pairs: Collection[str], key: str) -> dict[str, Any]:
  """Reads settings of an operator, 'name=value' of each, and checks them.

  Raises:
    InputError: one can't be read, or is not of this operator, or out of range.
  """
  return checked(operator, read_pairs(pairs), key)


def checked(operator: Operator, given: Mapping[str, Any], key: str) -> dict[str, Any]:
  """Returns settings of an operator in their types; arguments and errors as `read_settings`."""
  given = dict(given)
  for name in given:
    if name not in operator.settings:
      raise InputError(f'got the setting {name} in {key} for {operator.name}; expected '
                       f'{", ".join(operator.settings) or "none"}'
                       + suggestion(name, operator.settings))
    if name != 'weights':
      given[name] = operator.settings[name].coerce(name, given[name])
      operator.settings[name].check(name, given[name])
  return given


def literal(text: str) -> Any:
  """Reads a value as Python does, or as text."""
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
    return text  # Not a value: `x`, `{[]: 1}`, or brackets in brackets without end.


@contextlib.contextmanager
def section(name: str, keys: Collection[str]) -> Generator[None]:
  """Prefixes settings in errors with their section: 'got alpha=2' -> 'got apfl.alpha=2'."""
  try:
    yield
  except InputError as error:
    full = lambda found: f'{name}.{found[1]}' if found[1] in keys else found[1]
    raise InputError(re.sub(r'(?<![\w.])(\w+)(?==)', full, str(error))) from error


def _plain(number: float) -> str:
  return str(number) if isinstance(number, int) else f'{number:g}'


def _float(value: int) -> float:
  try:
    return float(value)
  except OverflowError:
    return math.inf
