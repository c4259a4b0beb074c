"""Generates from the records the reference page of the docs, and the catalog of `hmm_jax list`.

  python -m hmm_jax.experiment.reference
"""

from collections.abc import Mapping
import pathlib

import hmm_jax
from hmm_jax.algorithms import METHODS
from hmm_jax.data import storage
from hmm_jax.data.partition import PARTITIONERS
from hmm_jax.data.sources import SOURCES
from hmm_jax.experiment import catalog
from hmm_jax.experiment import config as configs
from hmm_jax.merging import OPERATORS
from hmm_jax.models import NETWORKS
from hmm_jax.registry import KINDS, NEEDS, REQUIRED, Setting
from hmm_jax.report.comparison.table import markdown as table
from hmm_jax.tasks import TASKS


def page() -> str:
  """Returns the reference page as Markdown."""
  settings = configs.settings(configs.get_config())
  return '\n'.join([
      '# Reference', '',
      'All methods, operators, networks, data sources, partitioners and settings. '
      'Generated from the code by `python -m hmm_jax.experiment.reference`.', '',
      '## Methods', '', '`--config.algorithm=NAME`', '',
      table(('name', 'kind', 'what it does', 'needs', 'paper'), (
          (f'`{m.name}`', m.kind, m.summary, ', '.join(m.needs), m.paper)
          for m in METHODS.values())), '',
      *(f'- *{kind}*: {meaning}' for kind, meaning in KINDS.items()),
      *(f'- needs *{need}*: {meaning}' for need, meaning in NEEDS.items()), '',
      '## Merge operators', '', '`hmm_jax merge --method=NAME`', '', operators(), '',
      '## Networks', '', '`--config.model=NAME`', '',
      table(('name', 'what it is', 'takes', 'paper'), (
          (f'`{n.name}`', n.summary, ', '.join(n.takes), n.paper) for n in NETWORKS.values())), '',
      '## Tasks', '', '`--config.task=NAME`', '',
      table(('name', 'what is learned', 'metrics'), (
          (f'`{t.name}`', t.summary, ', '.join(t.metrics)) for t in TASKS.values())), '',
      '## Data sources', '', '`--config.dataset=NAME`', '',
      table(('name', 'what it is', 'paper'), (
          (f'`{s.form}`', s.summary, s.paper) for s in SOURCES.values())), '',
      '## Partitioners', '', '`--config.partition.kind=NAME`', '',
      table(('name', 'what it does', 'paper'), (
          (f'`{p.name}`', p.summary, p.paper) for p in PARTITIONERS.values())), '',
      '## Settings', '', '`--config.KEY=VALUE`. A name in brackets says for which choice a setting '
      'counts, such as (dirichlet) for `partition.kind=dirichlet`.', '',
      settings_table(settings), '',
      '## Settings of merge operators', '', '`--set KEY=VALUE`', '',
      settings_table({f'{o.name}: {key}': setting for o in OPERATORS.values()
                      for key, setting in o.settings.items()}), ''])


def operators() -> str:
  """Returns the table of the merge operators."""
  return table(('operator', 'needs', 'what it gives', 'paper'), (
      (f'`{o.name}`', ', '.join(o.needs), o.summary, o.paper) for o in OPERATORS.values()))


def settings_table(settings: Mapping[str, Setting]) -> str:
  """Returns a table of settings."""
  return table(('key', 'default', 'meaning', 'values'), (
      (f'`{key}`', '' if s.default in (REQUIRED, None) else f'`{s.default!r}`', s.meaning,
       s.expected)
      for key, s in settings.items()))


def files() -> dict[pathlib.Path, str]:
  """Returns what is generated, by its path in the checkout."""
  package = pathlib.Path(hmm_jax.__file__).parent
  return {package.parent / 'docs' / 'reference.md': page(),
          package / 'main' / 'catalog.json': catalog.text()}


if __name__ == '__main__':
  for path, content in files().items():
    with storage.replacing(str(path)) as new:
      pathlib.Path(new).write_text(content)
