"""Communication schedules: the rate at which agents communicate in each round.

A schedule is a list of pieces, `NAME[:VALUES][@FROM:TO]`, over a constant rate. A piece
covers the rounds FROM <= t < TO, counted from 0 (default: all); where several pieces cover a
round, the last one counts.

  constant:R    at rate R
  linear:A:B    from rate A in the piece's first round to B in its last
  cosine:A:B    the same along half a cosine
  dense         uniform average of all agents

`constant:1@150:` is a switch at round 150, `dense@270:300` a dense window.
"""

import re
from typing import NamedTuple

import jax.numpy as jnp

from hmm_jax.types import Array, InputError, Schedule

# The number of values, and the rate at u, which rises from 0 to 1 over the piece.
SHAPES = {
    'constant': (1, lambda u, a: a),
    'linear': (2, lambda u, a, b: a + (b - a) * u),
    'cosine': (2, lambda u, a, b: a + (b - a) * (1 - jnp.cos(jnp.pi * u)) / 2),
    'dense': (0, lambda u: 1.0),
}


class Piece(NamedTuple):
  """One piece of a schedule: rounds start <= t < stop; `stop` is None for the run's end."""

  name: str
  values: tuple[float, ...]
  start: int
  stop: int | None


def schedule(text: str, *, rate: float, rounds: int, max_rate: float = 1.0) -> Schedule:
  """Parses a schedule.

  Args:
    text: pieces separated by commas, possibly none.
    rate: in rounds that no piece covers.
    rounds: of the run.
    max_rate: highest rate of the topology.

  Raises:
    InputError: a piece that can't be read, a rate out of range or a window outside the run.
  """
  _check_rate('rate', rate, max_rate)
  pieces = [_piece(piece.strip(), rounds, max_rate) for piece in text.split(',') if piece.strip()]

  def at(t: Array):
    now, dense = jnp.float32(rate), jnp.bool_(False)
    for name, values, start, stop in pieces:
      last = (rounds if stop is None else stop) - 1
      here = (t >= start) & ((t <= last) if stop is not None else True)
      u = (t - start) / max(last - start, 1)
      now = jnp.where(here, SHAPES[name][1](u, *values), now)
      dense = jnp.where(here, name == 'dense', dense)
    return now.astype(jnp.float32), dense

  reads = any(p.stop is None and p.name in ('linear', 'cosine') for p in pieces)
  return Schedule(at, rounds if reads else None)


def _piece(text: str, rounds: int, max_rate: float) -> Piece:
  shape, at, span = text.partition('@')
  name, *values = shape.split(':')
  window = re.fullmatch(r'(\d{0,9}):(\d{0,9})', span if at else ':')
  try:
    numbers = tuple(map(float, values))
    readable = len(numbers) == SHAPES[name][0]
  except (ValueError, KeyError):
    numbers, readable = (), False
  if not window or not readable:
    raise InputError(f'got {text!r} in the schedule; expected constant:R, linear:A:B, '
                     'cosine:A:B or dense, each optionally with @FROM:TO')
  for value in numbers:
    _check_rate(f'{text!r} in the schedule, rate', value, max_rate)
  start, stop = (int(edge) if edge else None for edge in window.groups())
  start = start or 0
  if not start < (rounds if stop is None else stop) <= rounds:
    raise InputError(f'got {text!r} in the schedule; expected @FROM:TO with '
                     f'0 <= FROM < TO <= rounds={rounds}')
  return Piece(name, numbers, start, stop)


def _check_rate(what: str, value: float, max_rate: float):
  if not 0 <= value <= 1:
    raise InputError(f'got {what}={value}; expected a number from 0 to 1')
  if value > max_rate:
    raise InputError(f'got {what}={value}; expected at most {max_rate}, the highest '
                     'rate of the topology')
