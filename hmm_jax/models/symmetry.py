"""Permutation symmetries: which axes of which parameters belong to the same hidden units.

A wiring describes how a network's layers are connected: (paths of the layers, in the order of
execution) -> {path: (the group of units it reads, the group it writes)}, with None for the
inputs. Group names are arbitrary. A normalization has the units of the layer before it.
"""

from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import jax

from hmm_jax.types import PyTree, Symmetry

_NORMALIZATIONS = nn.BatchNorm | nn.GroupNorm | nn.LayerNorm


def chain(layers: Sequence[str]) -> dict[str, tuple]:
  """Returns the wiring of consecutive layers: each reads what the previous one wrote."""
  return dict(zip(layers, zip((None, *layers), layers)))


def symmetry(
    modules: Mapping[str, nn.Module], owners: PyTree, shapes: PyTree, wiring: Callable
) -> Symmetry:
  """Returns the permutation symmetry of a network.

  Channels that GroupNorm normalizes together stay together: see `Symmetry.runs`. The other
  normalizations, over one channel or over all, permit any permutation.

  Args:
    modules: by their paths, in the order of execution.
    owners: the module path of each leaf.
    shapes: of the leaves.
    wiring: the network's.
  """
  wires = wiring([path for path, module in modules.items()
                  if not isinstance(module, _NORMALIZATIONS)])
  wires['head'] = wires['head'][0], None  # Classes keep their order.
  runs, last = {}, None
  for path, module in modules.items():
    if isinstance(module, _NORMALIZATIONS):
      wires[path] = last, last
    if isinstance(module, nn.GroupNorm):
      runs[last] = module.num_groups
    last = wires[path][1]
  axes = jax.tree.map_with_path(
      lambda where, owner, leaf: _axes(where[-1].key, leaf.ndim, *wires[owner]), owners, shapes)
  lengths = _lengths(shapes, axes)
  groups = [group for group in dict.fromkeys(wires[path][1] for path in modules) if group]
  # On the shortest axis of a group, each unit occurs once.
  return Symmetry(axes, {group: min(lengths[group]) for group in groups},
                  {group: runs.get(group, 1) for group in groups})


def _axes(name, rank, reads, writes):
  """Returns the group of each axis of a leaf."""
  match name:
    case 'kernel':
      return (*[None] * (rank - 2), reads, writes)
    case 'recurrent':
      return writes, writes
    case 'embedding':
      return None, writes
    case _:  # A bias, or a leaf of a normalization.
      return (writes,)


def _lengths(shapes, axes):
  """Returns the lengths of all axes of each group."""
  lengths = {}
  for leaf, names in zip(jax.tree.leaves(shapes),
                         jax.tree.structure(shapes).flatten_up_to(axes), strict=True):
    for name, length in zip(names, leaf.shape, strict=True):
      lengths.setdefault(name, []).append(length)
  return lengths
