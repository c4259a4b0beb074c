"""Names of metrics in words, for axes, labels and tables."""

from collections.abc import Iterable
from typing import NamedTuple

from hmm_jax.tasks import TASKS

# Columns of metrics.csv that are not measurements.
BOOKKEEPING = ('round', 'seed', 'seconds', 'bytes_up', 'bytes_down')

SPLITS = {'test': 'test examples', 'validation': 'validation examples',
          'train': 'training examples'}
VIEWS = {
    'global': 'global model', 'merged': 'merged model', 'clients': 'mean over clients',
    'clients_weighted': 'clients, weighted by size', 'clients_worst': 'worst tenth of clients',
    'locals': 'mean of local models', 'locals_min': 'worst local model',
    'locals_max': 'best local model', 'mergeability': '',
    'agent_sent': 'mean sent', 'agent_sent_max': 'most sent',
    'agent_received': 'mean received', 'agent_received_max': 'most received',
    'realised': 'realized',
}
KINDS = {
    'rmse': 'root mean squared error', 'mae': 'mean absolute error', 'r2': 'R²',
    'f1_micro': 'F1, micro average', 'f1_macro': 'F1, macro average', 'auroc': 'AUROC',
    'bytes': 'megabytes of an agent',
    'server_loss': "loss on the server's examples", 'found_loss': 'loss of what is found',
    'fallback': 'searches without effect, share', 'gap': 'mean local less merged loss',
    'consensus': 'distance from the mean model',
    'contraction': 'contraction of the distance',
    'share_of_allreduce': 'bytes / those of AllReduce',
}

# The main metrics of tasks: a run has one of these, which tables and clients' figures show.
MAIN = tuple(kind.metrics[0] for kind in TASKS.values())

# Metrics that are called otherwise than their names are made: kind, split, and what of.
NAMED = {
    'train/loss': ('loss', 'train', 'mean over clients'),
    'server/average_loss': ('server_loss', '', 'plain average'),
    'server/found_loss': ('server_loss', '', 'found by the search'),
}
# Figures of a run that are no learning curves, by the names of their files.
FIGURES = {
    'partition': 'training examples of each client, by class',
    'clients': "the clients' own scores", 'weight': 'weights of the shared models for each client',
    'coefficients': "coefficients of the clients' updates", 'staleness': 'delays of the updates',
    'search': 'the search for coefficients',
}
UNITS = {'bytes': 1e6}  # of a kind's words, where they are not those of metrics.csv


class Metric(NamedTuple):
  """A column of metrics.csv, VIEW/SPLIT/KIND, VIEW/KIND or KIND, as words.

  kind, split: of the name; '' for none.
  of: what has it, in words; '' if the kind says it.
  """

  kind: str
  split: str
  of: str


def main(names: Iterable[str]) -> str:
  """Returns the main metric that is among the names, VIEW/SPLIT/METRIC; 'accuracy' if none is."""
  kinds = {name.rpartition('/')[2] for name in names}
  return next((kind for kind in MAIN if kind in kinds), MAIN[0])


def metric(name: str) -> Metric:
  """Reads the name of a metric."""
  if name in NAMED:
    return Metric(*NAMED[name])
  *path, kind = name.split('/')
  split = path.pop() if len(path) > 1 and path[-1] in SPLITS else ''
  view = '/'.join(path)
  return Metric(kind, split, VIEWS.get(view, spoken(view)))


def kind(name: str) -> str:
  """Returns a kind of metric in words."""
  return KINDS.get(name) or spoken(name)


def unit(name: str) -> float:
  """Returns what the values of a metric are divided by to be in the unit of its words."""
  return UNITS.get(metric(name).kind, 1)


def spoken(name: str) -> str:
  return name.replace('_', ' ').replace('/', ', ')


def sentence(name: str) -> str:
  """Returns a metric's full name in words: 'accuracy, global model, test examples'."""
  found = metric(name)
  return ', '.join(filter(None, [kind(found.kind), found.of, SPLITS.get(found.split)]))


def seeds_drawn(seeds: int) -> str:
  """Says how lines show several seeds."""
  if seeds == 1:
    return 'one seed'
  if seeds == 2:
    return 'mean (bold) and both of 2 seeds (thin)'
  return f'mean ± std over {seeds} seeds'


def counted(number: int, noun: str) -> str:
  """Writes '1 seed', '2 seeds'."""
  return f'{number:,} {noun}' if number == 1 else f'{number:,} {noun}s'
