"""What the site takes from the code when it is built: `{{ settings:feddle }}` and its like.

MkDocs calls `on_page_markdown` for every page. A mark stands alone on its line; an unknown one ends
the build.
"""

import importlib
import inspect
import re
import textwrap

import hmm_jax
from hmm_jax.algorithms import FILES, METHODS
from hmm_jax.data.partition import PARTITIONERS
from hmm_jax.data.sources import SOURCES
from hmm_jax.experiment import config as configs
from hmm_jax.experiment.reference import settings_table, table
from hmm_jax.merging import OPERATORS
from hmm_jax.models import NETWORKS
from hmm_jax.models.own.factory import GIVEN
from hmm_jax.registry import KINDS, NEEDS
from hmm_jax.tasks import TASKS

MARK = re.compile(r'^\{\{ *(\w+)(?::([\w.,]+))? *\}\}$', re.M)
# The headings of the Python API, by the room in which a name stands; others are named by it.
ROOMS = {'experiment': 'Runs, and what a config makes', 'types': 'Contracts',
         'registry': 'Records', 'data': 'Data', 'models': 'Networks', 'client': 'Local training',
         'algorithms': 'Methods', 'merging': 'Merge operators', 'merge': 'Saved models',
         'tree': 'Arithmetic on models'}
# Modules that are called like functions.
CALLED = {'merge': 'merge.models:merge'}


def on_page_markdown(markdown: str, *, page, **_) -> str:
  """Replaces the marks of a page by Markdown, links papers, and keeps figures on one line."""
  filled = MARK.sub(lambda mark: MAKERS[mark[1]](*filter(None, [mark[2]])), markdown)
  if page.file.src_uri == 'reference.md':  # Generated, without links.
    filled = papers(filled)
  return re.sub(r'(?<=\d) (?=[±%])|(?<=±) (?=\d)', '\N{NO-BREAK SPACE}', filled)


def methods() -> str:
  """Lists the methods by kind: what each does and needs, and its paper."""
  return '\n\n'.join(
      f'### {kind.capitalize()}\n\n{_sentence(meaning)}\n\n' + table(
          ('method', 'what it does', 'needs', 'paper'),
          ((f'[`{m.name}`]({_file(m.name)}.md)', m.summary, ', '.join(m.needs), papers(m.paper))
           for m in METHODS.values() if m.kind == kind))
      for kind, meaning in KINDS.items())


def method(names: str) -> str:
  """Says what the records say of some methods."""
  return '\n'.join(
      f'- `algorithm={m.name}` (*{m.kind}*): {m.summary}.'
      + (f' Needs: {", ".join(m.needs)}.' if m.needs else '')
      + (f' {papers(m.paper)}' if m.paper else '') for m in map(METHODS.get, names.split(',')))


def formula(file: str) -> str:
  """Shows the indented paragraphs of a method's docstring: its steps."""
  steps = [p for p in _paragraphs(file) if p.startswith('  ')]
  return '```text\n' + '\n\n'.join(map(textwrap.dedent, steps)) + '\n```'


def notes(file: str) -> str:
  """Shows the prose of a method's docstring: details, and what is our choice."""
  prose = [p for p in _paragraphs(file)[1:] if not p.startswith((' ', 'Reference'))]
  return papers('\n\n'.join(map(_escaped, prose)))


def reference(file: str) -> str:
  """Shows the references of a method's docstring."""
  cited = [p for p in _paragraphs(file) if p.startswith('Reference')]
  return papers(' '.join(' '.join(cited).split()).partition(': ')[2])


def settings(sections: str) -> str:
  """Tables the settings of some sections, or of the keys without a section: `run`."""
  every = configs.settings(configs.get_config())
  names = sections.split(',')
  kept = {key: setting for key, setting in every.items()
          if (key.partition('.')[0] if '.' in key else 'run') in names}
  return settings_table(kept) if kept else 'None of its own.'


def operators() -> str:
  """Tables the merge operators: what each gives, and its paper."""
  return table(('operator', 'what it gives', 'paper'), (
      (f'`{o.name}`', o.summary, papers(o.paper)) for o in OPERATORS.values()))


def operator_needs() -> str:
  """Tables the merge operators side by side, with a column for each need."""
  columns = [need for need in NEEDS if any(need in o.needs for o in OPERATORS.values())]
  return table(('operator', *columns), (
      (f'`{o.name}`', *('●' if need in o.needs else '' for need in columns))
      for o in OPERATORS.values()))


def operator_settings() -> str:
  """Tables the settings of the merge operators."""
  return settings_table({f'{o.name}: {key}': setting for o in OPERATORS.values()
                         for key, setting in o.settings.items()})


def needs() -> str:
  """Says what the words in a column of needs mean."""
  return '\n'.join(f'- *{need}*: {meaning}' for need, meaning in NEEDS.items())


def networks() -> str:
  """Tables the networks."""
  return table(('network', 'what it is', 'takes', 'paper'), (
      (f'`{n.name}`', n.summary, ', '.join(n.takes), papers(n.paper)) for n in NETWORKS.values()))


def sources() -> str:
  """Tables the data sources."""
  return table(('source', 'what it is', 'paper'), (
      (f'`{s.form}`', s.summary, papers(s.paper)) for s in SOURCES.values()))


def tasks() -> str:
  """Tables the tasks."""
  return table(('task', 'what is learned', 'metrics'), (
      (f'`{kind.name}`', kind.summary, ', '.join(f'`{name}`' for name in kind.metrics))
      for kind in TASKS.values()))


def partitioners() -> str:
  """Tables the partitioners."""
  return table(('partitioner', 'what it does', 'paper'), (
      (f'`{p.name}`', p.summary, papers(p.paper)) for p in PARTITIONERS.values()))


def api() -> str:
  """Documents every name of the package's face, by the room in which it stands."""
  rooms = {}
  for name, home in hmm_jax._HOME.items():
    home = CALLED.get(name, home)
    rooms.setdefault(re.split('[.:]', home)[0], {})[name] = home
  order = [*(room for room in ROOMS if room in rooms), *(rooms.keys() - ROOMS)]
  return '\n\n'.join(f'## {ROOMS.get(room, room)}\n\n' + (
      _linked(rooms[room]) if room == 'types' else
      '\n\n'.join(map(_documented, rooms[room], rooms[room].values()))) for room in order)


def papers(text: str) -> str:
  """Links the arXiv numbers of a text."""
  return re.sub(r'arXiv:(\d{4}\.\d{4,5})', r'[arXiv:\1](https://arxiv.org/abs/\1)', text)


def _linked(names):
  """Refers to a page of their own, which has each name once."""
  return '\n'.join(f'- [hmm.{name}](contracts.md#hmm_jax.types.{name})' for name in names)


def _documented(name, home):
  module, _, attribute = home.partition(':')
  path = f'hmm_jax.{module}' + (f'.{attribute}' if attribute else '')
  # Of a module, what it defines; of the rest, the docstring says all.
  members = 'null\n      filters: public' if not attribute else '[]'
  heading = f'hmm.{name}'
  return (f'::: {path}\n    options:\n      heading: {heading}\n      toc_label: {heading}\n'
          f'      members: {members}')


def _paragraphs(file):
  module = importlib.import_module(f'hmm_jax.algorithms.{file}')
  return (inspect.getdoc(module) or '').split('\n\n')


def _escaped(text):
  """Escapes what Markdown would take for its own, but in code."""
  code = re.split(r'(`[^`]*`)', text)
  return ''.join(part if i % 2 else re.sub(r'([*_<>\\])', r'\\\1', part)
                 for i, part in enumerate(code))


def _file(name):
  """Returns the file of a method, whose name its page has."""
  module = METHODS[name].build.__module__.rpartition('.')[2]
  assert module in FILES, module
  return module


def _sentence(text):
  return text[0].upper() + text[1:] + '.'


def parameters() -> str:
  """Tables the names of parameters by which a network of one's own is told what it needs."""
  return table(('what', 'names'), (
      (what, ', '.join(f'`{name}`' for name in names)) for what, names in GIVEN.items()))


MAKERS = {maker.__name__: maker for maker in (
    methods, method, formula, notes, reference, settings, operators, operator_needs,
    operator_settings, needs, networks, parameters, sources, tasks, partitioners, api)}
