"""What runs along the axes of arrays: units of a group, or what must keep its order.

An axis is a tuple of `Units`, the outer first: a flattened image of 7x7 pixels with 64 channels has
an axis of (49 in order, 64 units). Where two axes meet in an operation they are unified, and all
axes that were ever unified belong to one group. An axis of length 1 is ().
"""

from collections.abc import Sequence

MOVABLE, ORDERED, CONSTANT = 'movable', 'ordered', 'constant'

Axis = tuple['Units', ...]


class Units:
  """Consecutive entries of an axis; movable ones may still be split, bound or put in order."""

  def __init__(self, size: int, kind: str):
    self.size, self.kind = size, kind
    self._parts: Axis | None = None  # What these are found to be.

  def parts(self) -> Axis:
    """Returns what these units are now."""
    return (self,) if self._parts is None else resolved(self._parts)

  def bind(self, parts: Axis):
    """Says that these units are the given ones."""
    self._parts = parts


def axis(size: int, kind: str) -> Axis:
  """Returns an axis whose entries are of one kind: MOVABLE, ORDERED, or CONSTANT along it."""
  return () if size == 1 else (Units(size, kind),)


def resolved(given: Axis) -> Axis:
  """Returns an axis as it is known now."""
  return tuple(part for units in given for part in units.parts())


def put_in_order(given: Axis):
  """Makes all units of an axis, and with them their groups, keep their order."""
  for units in resolved(given):
    if units.kind == MOVABLE:
      units.kind = ORDERED


def unify(a: Axis, b: Axis) -> Axis:
  """Returns the axis that two of one length are, where an operation joins their entries."""
  if not a or not b:
    return a or b  # Of length 1: the same for all entries.
  left, right, joined = [*resolved(a)], [*resolved(b)], []
  while left and right:
    (p, *left), (q, *right) = resolved((*left,)), resolved((*right,))
    if p.size != q.size:
      small, large, rest = (p, q, right) if p.size < q.size else (q, p, left)
      if large.size % small.size:
        put_in_order((*a, *b))
        return (*joined, p, *left)
      first, second = split(large, small.size)
      rest.insert(0, second)
      p, q = small, first
    joined.append(_join(p, q))
  return (*joined,)


def split(units: Units, outer: int) -> tuple[Units, Units]:
  """Splits units of an axis: the outer number of them, and those within each."""
  first, second = (Units(size, units.kind) for size in (outer, units.size // outer))
  if units.kind == MOVABLE:
    units.bind((first, second))
  return first, second


def reshape(given: Sequence[Axis], shape: Sequence[int]) -> list[Axis]:
  """Returns the axes of an array in another shape; row-major, as arrays are."""
  rest, made = [*resolved(tuple(units for one in given for units in one))], []
  for size in shape:
    mine = []
    while size > 1:
      (now, *rest) = resolved((*rest,))
      if now.size > size and now.size % size == 0:
        now, later = split(now, size)
        rest.insert(0, later)
      if size % now.size:
        for one in given:
          put_in_order(one)
        return [axis(n, ORDERED) for n in shape]
      mine.append(now)
      size //= now.size
    made.append((*mine,))
  return made


def _join(p: Units, q: Units) -> Units:
  if p is q or q.kind == CONSTANT:
    return p
  if p.kind == CONSTANT:
    return q
  if q.kind == MOVABLE:
    q.bind((p,))
    return p
  if p.kind == MOVABLE:
    p.bind((q,))
  return q
