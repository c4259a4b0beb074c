"""Grids: settings with several values each, and a config for every combination."""

from collections.abc import Mapping, Sequence
import itertools
import os
import re
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from hmm_jax.experiment import config as configs
from hmm_jax.experiment.launch import default_workdir
from hmm_jax.registry import Setting, literal
from hmm_jax.types import InputError


class Point(NamedTuple):
  """One combination of a grid.

  name: what differs, such as `fedavg,local.lr=0.1`, and its folder; '' where nothing does.
  config: its settings.
  texts: of the command, {'local.lr': '0.1', ...}, with one value each.
  """

  name: str
  config: ConfigDict
  texts: dict[str, str]


def points(base: ConfigDict, texts: Mapping[str, str]) -> list[Point]:
  """Returns the combinations of all values of a command; one point if no key has several.

  Several values are written with commas: numbers, yes or no, names among choices, and names of
  methods, networks, data sources and partitioners. Tuples are several if each has its brackets:
  `(64,),(32,)`. Anything else, such as a name or a schedule, is one value.

  Args:
    base: the settings of all points.
    texts: {'local.lr': '0.01,0.1', ...}.

  Raises:
    InputError: an unknown key, a value that is none of its type, or the same value twice.
  """
  texts = configs.renamed(texts)
  named = {key: _split(text) if key in configs.REFERENCES else [text]
           for key, text in texts.items()}
  known: dict[str, Setting] = {}
  for one in _combinations(named):
    known |= _settings(base, one)
  values = {key: several(key, text, known[key]) if key in known and key not in configs.REFERENCES
            else named[key] for key, text in texts.items()}
  keys = [key for key in texts if len(values[key]) > 1]
  made = [_point(base, one, keys, known) for one in _combinations(values)]
  distinct = {tuple(point.texts.items()): point for point in made}
  made = [*distinct.values()]  # Points without a section have no values of its keys.
  for place, point in enumerate(made):
    if point.name in [other.name for other in made[:place]]:
      raise InputError(f'got {point.name} twice; expected different values in '
                       + ', '.join(f'{key}={texts[key]}' for key in keys))
  return made


def several(key: str, text: str, setting: Setting) -> list[str]:
  """Splits the values of a key that may have several at commas."""
  if key in configs.COSMETIC | configs.OF_ONE_CALL:
    return [text]
  if isinstance(setting.default, tuple):
    each = literal(text)
    many = isinstance(each, tuple) and len(each) > 1 and all(isinstance(x, tuple) for x in each)
    return [repr(value) for value in each] if many else [text]
  if isinstance(setting.default, str) and not setting.choices:
    return [text]
  return _split(text)


def workdir(points: Sequence[Point]) -> str:
  """Returns where a grid lives by default: runs/KEYS-DATA."""
  config = points[0].config
  keys = [key for key in points[0].texts if len({point.texts.get(key) for point in points}) > 1]
  if 'dataset' in keys:
    return os.path.join('runs', config.name or ','.join(keys))
  return default_workdir(configs.updated(config, {'name': config.name or ','.join(keys)}, 'name'))


def _split(text: str) -> list[str]:
  """Splits at commas, unless the text names a file that has some."""
  if os.path.exists(os.path.expanduser(text.partition(':')[2] or text)):
    return [text]
  return [value.strip() for value in text.split(',')]


def _combinations(values: Mapping[str, Sequence[str]]):
  """Yields {key: value} for every combination; the last key changes fastest."""
  for one in itertools.product(*values.values()):
    yield dict(zip(values, one))


def _settings(base: ConfigDict, texts: Mapping[str, str]) -> dict[str, Setting]:
  given = configs.flat(base) | dict(texts)
  return configs.settings(configs.get_config(configs.references(given)))


def _point(base, texts, keys, known) -> Point:
  if keys:  # The settings of a record of one's own are nothing to the points without it.
    here = _settings(base, texts)
    texts = {key: text for key, text in texts.items() if key in here or key not in known}
  what = ', '.join(f'{key}={texts[key]}' for key in keys if key in texts) or 'the command'
  config = configs.from_texts(base, texts, what)
  values = configs.flat(config)
  return Point(','.join(_named(config, key, values[key]) for key in keys if key in values),
               config, texts)


def _named(config: ConfigDict, key: str, value: Any) -> str:
  """Names a value as a folder can be named."""
  if key == 'algorithm':
    return configs.method(config).name
  if isinstance(value, tuple):
    value = '-'.join(map(str, value)) or 'none'
  elif key in configs.REFERENCES:
    value = os.path.basename(str(value))
  return f'{key}=' + re.sub(r'[^-+.%@~\w]', '_', str(value))
