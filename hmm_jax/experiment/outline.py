"""A federation without its data, with which the models of a saved state are made.

The clients' ids and numbers of examples are known, of all other arrays the shape and the type: a
method that makes a model from examples raises a TypeError or an AttributeError.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from hmm_jax.types import Clients, Examples, Federation, Server, Split


def outline(federated: Federation) -> dict[str, Any]:
  """Returns what is kept of a federation on the host, in JSON."""
  held, corrupted = federated.server, federated.corrupted
  return {
      'examples': _shapes(federated.examples),
      'clients': _clients(federated.clients),
      'validation': _split(federated.validation),
      'test': _split(federated.test),
      'server': held and {
          'examples': _shapes(held.examples), 'search': len(held.search),
          'held_out': len(held.held_out), 'largest_label': int(np.max(held.examples.y))},
      'corrupted': None if corrupted is None else np.asarray(corrupted).tolist(),
  }


def rebuild(kept: Mapping[str, Any]) -> Federation:
  """Returns the federation without its data."""
  held = kept['server']
  return Federation(
      _examples(kept['examples']), _known(kept['clients']), _known_split(kept['validation']),
      _known_split(kept['test']), held and _known_server(held),
      None if kept['corrupted'] is None else np.array(kept['corrupted'], bool))


def _shapes(examples):
  of = lambda leaf: {'shape': list(leaf.shape), 'dtype': str(leaf.dtype)}
  x = examples.x
  return {'x': {name: of(leaf) for name, leaf in x.items()} if isinstance(x, dict) else of(x),
          'y': of(examples.y)}


def _clients(clients):
  return {'id': np.asarray(clients.id).tolist(), 'size': np.asarray(clients.size).tolist(),
          'width': clients.index.shape[1]}


def _split(split):
  return {'rows': len(split.rows), 'clients': _clients(split.clients)}


def _examples(kept) -> Examples:
  of: Any = lambda leaf: jax.ShapeDtypeStruct(tuple(leaf['shape']), leaf['dtype'])
  x = kept['x']
  return Examples(of(x) if 'dtype' in x else {name: of(leaf) for name, leaf in x.items()},
                  of(kept['y']))


def _known(kept) -> Clients:
  ids, sizes = (np.array(kept[name], np.int32) for name in ('id', 'size'))
  return Clients(ids, _integers(len(ids), kept['width']), sizes)


def _known_split(kept) -> Split:
  return Split(_integers(kept['rows']), _known(kept['clients']))


def _known_server(kept) -> Server:
  examples = _examples(kept['examples'])
  labels = np.full(examples.y.shape, kept['largest_label'], np.int32)
  return Server(examples._replace(y=labels), _integers(kept['search']),
                _integers(kept['held_out']))


def _integers(*shape: int) -> Any:
  return jax.ShapeDtypeStruct(shape, np.int32)
