"""The catalog of `hmm_jax list`: what the records say, as JSON that is read without JAX.

It is generated with the reference page, by `python -m hmm_jax.experiment.reference`.
"""

from collections.abc import Mapping
import json

from hmm_jax.algorithms import METHODS
from hmm_jax.data.partition import PARTITIONERS
from hmm_jax.data.sources import SOURCES
from hmm_jax.decentralized import topology
from hmm_jax.experiment import config as configs
from hmm_jax.merging import OPERATORS
from hmm_jax.models import NETWORKS, OWN
from hmm_jax.registry import (
  KINDS,
  NEEDS,
  REQUIRED,
  Method,
  Network,
  Operator,
  Partitioner,
  Setting,
  Source,
  load,
)
from hmm_jax.tasks import TASKS


def catalog() -> dict[str, list[dict[str, str]]]:
  """Returns {kind: rows}, each {column: text} of the kind's own columns."""
  return {
      'methods': [
          {'name': m.name, 'kind': m.kind, 'what it does': m.summary, 'needs': ', '.join(m.needs),
           'paper': m.paper} for m in METHODS.values()],
      'operators': [
          {'name': o.name, 'what it gives': o.summary, 'needs': ', '.join(o.needs),
           'paper': o.paper} for o in OPERATORS.values()],
      'datasets': [
          {'name': s.form, 'what it is': s.summary, 'paper': s.paper} for s in SOURCES.values()],
      'models': [
          {'name': n.name, 'what it is': n.summary, 'needs': ', '.join(n.takes),
           'paper': n.paper} for n in NETWORKS.values()],
      'tasks': [
          {'name': t.name, 'what is learned': t.summary, 'metrics': ', '.join(t.metrics)}
          for t in TASKS.values()],
      'partitions': [
          {'name': p.name, 'what it does': p.summary,
           'needs': '' if p.labels else "examples' owners or domains", 'paper': p.paper}
          for p in PARTITIONERS.values()],
      'topologies': [
          {'name': name, 'what it is': about.summary, 'needs': about.needs, 'paper': about.paper}
          for name, about in topology.ABOUT.items()],
      'settings': setting_rows(configs.settings(configs.get_config())),
      'settings of operators': setting_rows({
          f'{o.name}.{key}': setting for o in OPERATORS.values()
          for key, setting in o.settings.items()}),
      'words used': [{'name': word, 'what it means': meaning}
                     for word, meaning in (KINDS | NEEDS).items()],
  }


def setting_rows(settings: Mapping[str, Setting]) -> list[dict[str, str]]:
  """Returns the rows of some settings."""
  return [{'name': key, 'default': _typed(s.default), 'meaning': s.meaning, 'values': s.expected}
          for key, s in settings.items()]


def _typed(default) -> str:
  """Writes a default as in a command; '' if there is none."""
  if default in (REQUIRED, None):
    return ''
  return default or "''" if isinstance(default, str) else repr(default)


def own_settings(reference: str) -> list[dict[str, str]]:
  """Returns the rows of the settings of a record of one's own, FILE.py:RECORD.

  Raises:
    InputError: there is no such record.
  """
  record = load('the record', reference, Method, Network, Source, Partitioner, Operator, stand=OWN)
  return setting_rows({f'{record.name}.{key}': setting for key, setting in
                       record.settings.items()})


def text() -> str:
  """Returns the content of catalog.json, one line per row."""
  kinds = [f'{json.dumps(kind)}: [\n' + ',\n'.join(map(json.dumps, rows)) + '\n]'
           for kind, rows in catalog().items()]
  return '{\n' + ',\n'.join(kinds) + '\n}\n'
