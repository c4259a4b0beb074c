"""Comparison runs of a config: named references, and variants with changed settings."""

from collections.abc import Collection
import re

from ml_collections import ConfigDict

from hmm_jax.experiment import config as configs
from hmm_jax.registry import suggestion
from hmm_jax.types import InputError

NAME = re.compile(r'\w[\w-]*')  # of a variant, and of its folder
# Choices of `references`: the same run with these settings.
REFERENCES = {
    'iid': {'partition.kind': 'iid'},
    'linear': {'model': 'mlp', 'mlp.hidden': (), 'init': ''},
    'local': {'algorithm': 'local'},
    'fedavg': {'algorithm': 'fedavg'},
}


def comparisons(config: ConfigDict) -> dict[str, ConfigDict]:
  """Returns the configs of the comparison runs, by name.

  Raises:
    InputError: an unknown reference, or an invalid variant.
  """
  others, first = {}, config.name or configs.method(config).name
  for name in filter(None, config.references.split(',')):
    if name not in REFERENCES:
      raise InputError(f'got references={name}; expected names among {", ".join(REFERENCES)}'
                       + suggestion(name, tuple(REFERENCES)))
    others[name] = REFERENCES[name]
  alone = configs.updated(config, {'name': '', 'references': '', 'variants': ()}, 'the run')
  others = {name: configs.updated(alone, changes, name) for name, changes in others.items()}
  for name, changes in map(_variant, config.variants):
    if name in others:
      raise InputError(f'got {name} twice in references and variants; expected different names')
    others[name] = configs.from_texts(alone, changes, name)
  if first in others:
    raise InputError(f'got {first} in references or variants, which is the name of the run itself; '
                     'expected another name')
  for other in others.values():
    configs.check(other)
  return others


def variant(name: str, changes: dict) -> str:
  """Formats a variant for `config.variants`: 'NAME key=value key=value'."""
  return ' '.join([name, *(f'{key}={value}' for key, value in changes.items())])


def arguments(text: str, **choices: Collection[str]) -> dict[str, str]:
  """Parses the arguments of a config file, 'name=value,name=value'.

  Args:
    text: the arguments, which follow the file's name and a colon.
    choices: valid values of each name; the first is the default.

  Raises:
    InputError: an unknown name or value.
  """
  given = {name: next(iter(values)) for name, values in choices.items()}
  for item in filter(None, text.split(',')):
    name, _, value = item.partition('=')
    if value not in choices.get(name, ()):
      expected = ' or '.join(f'{name}={"|".join(values)}' for name, values in choices.items())
      raise InputError(f'got {item!r}; expected {expected}')
    given[name] = value
  return given


def _variant(text: str) -> tuple[str, dict]:
  """Parses 'NAME key=value key=value'.

  Raises:
    InputError: the text is invalid.
  """
  name, *changes = str(text).split() or ['']
  if not NAME.fullmatch(name) or not changes or not all('=' in c for c in changes):
    raise InputError(f'got {text!r} in variants; expected NAME key=value key=value')
  return name, dict(change.split('=', 1) for change in changes)
