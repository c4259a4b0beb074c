"""Lists of methods, operators, settings and the like, from the catalog, without JAX."""

from collections.abc import Mapping, Sequence
from typing import Any

from hmm_jax.report.screen import Screen

Rows = Sequence[Mapping[str, str]]
# How a command names one of a kind.
FLAGS = {
    'methods': '--config.algorithm=NAME',
    'operators': 'hmm_jax merge --method=NAME',
    'datasets': '--config.dataset=NAME',
    'models': '--config.model=NAME',
    'tasks': '--config.task=NAME',
    'partitions': '--config.partition.kind=NAME',
    'topologies': '--config.gossip.topology=NAME',
    'settings': '--config.NAME=VALUE',
    'settings of operators': 'of operator.NAME: hmm_jax merge --method=OPERATOR --set NAME=VALUE',
}


def show_kinds(catalog: Mapping[str, Rows], screen: Screen):
  """Prints how many there are of each kind, and how one is named."""
  screen.table('hmm_jax list KIND', ['kind', 'how many', 'is named by'],
               [[kind, len(rows), FLAGS[kind]] for kind, rows in catalog.items()
                if ' ' not in kind])


def show(catalog: Mapping[str, Rows], kind: str, part: str, screen: Screen):
  """Prints those of a kind whose name begins with a text, or else contains it.

  Raises:
    InputError: there is no such kind, or none of such a name.
  """
  kinds = [name for name in catalog if ' ' not in name]
  if kind not in kinds:
    raise _unknown(f'the kind {kind!r}', f'one of {", ".join(kinds)}', kind, kinds)
  groups = {name: rows for name, rows in catalog.items() if name.split()[0] == kind}
  for matches in (str.startswith, str.__contains__):
    found = {name: [row for row in rows if matches(row['name'], part)]
             for name, rows in groups.items()}
    if any(found.values()):
      break
  else:
    names = [row['name'] for rows in groups.values() for row in rows]
    sections = dict.fromkeys(name.rpartition('.')[0] for name in names)
    raise _unknown(f'{part!r}', f'the beginning or a part of a name of {kind}', part,
                   [*names, *filter(None, sections)])
  for name, rows in found.items():
    show_rows(f'{name}: {FLAGS[name]}', rows, screen)
  used = {word for rows in found.values() for row in rows
          for word in (row.get('kind'), *row.get('needs', '').split(', '))}
  show_rows('in these words', [row for row in catalog['words used'] if row['name'] in used], screen)


def show_rows(title: str, rows: Rows, screen: Screen):
  """Prints one table of rows: short columns, and sentences that fold on any screen."""
  if not rows:
    return
  if 'default' in rows[0]:
    screen.table(title, ['name=default', 'meaning'], [
        [f'{row["name"]}={row["default"]}' if row['default'] else row['name'],
         _sentence(row, 'meaning', 'values')] for row in rows])
    return
  said = next(column for column in rows[0] if column.startswith('what'))
  screen.table(title, ['name', said], [
      [row['name'], _sentence(row, said, 'needs', 'paper')] for row in rows])


def _sentence(row, first, *others) -> str:
  """Joins the cells of a row that are not empty."""
  kind = f'{row["kind"]}: ' if 'kind' in row else ''
  rest = [('needs ' if column == 'needs' else '') + row[column]
          for column in others if row.get(column)]
  return kind + '; '.join([row[first], *rest])


def _unknown(given: str, expected: str, name: str, names: Sequence[str]) -> Any:
  """Returns the error of a name that is unknown; only then it is worth importing JAX."""
  from hmm_jax.registry import suggestion
  from hmm_jax.types import InputError
  return InputError(f'got {given}; expected {expected}' + suggestion(name, names))
