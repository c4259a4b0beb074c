"""The compiled program of a run: chunks of rounds over all seeds.

No random state is saved: the key of a round is fold_in(root, round), so a resumed
run is bit-identical to an uninterrupted one. Several seeds are one program, whose
states have a leading axis of seeds.
"""

from collections.abc import Callable, Iterator, Mapping
import time
from typing import NamedTuple

import jax
from jax import lax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from hmm_jax import tree
from hmm_jax.types import Algorithm, Experiment, PyTree


class Diverged(RuntimeError):
  """A round gave non-finite values; the message names the round and the clients."""


def in_turn(f: Callable, in_axes: tuple) -> Callable:
  """Maps like jax.vmap over the arguments whose axis is 0, but sequentially."""

  def mapped(*args):
    looped = [a for a, axis in zip(args, in_axes) if axis == 0]

    def one(members):
      members = iter(members)
      return f(*(next(members) if axis == 0 else a for a, axis in zip(args, in_axes)))

    return lax.map(one, looped)

  return mapped


def advance(algorithm: Algorithm, length: int) -> Callable:
  """Returns (state, root, federation, count) -> (state, alive, metrics [length]).

  Runs `count` <= `length` rounds. After a round that gives non-finite values none is run and
  `alive` is False. To go back to the state before it would take a copy of the state in each round.
  """

  def chunk(state, root, federation, count):
    def go(state):
      new, metrics = algorithm.round(state, federation, jax.random.fold_in(root, state.round))
      searched = new._replace(**dict.fromkeys(algorithm.stacks)) if algorithm.stacks else new
      return new, tree.all_finite(searched) & metrics['cohort'].finite.all(), metrics

    def skip(state):
      shapes = jax.eval_shape(go, state)
      return state, jnp.bool_(True), jax.tree.map(
          lambda x: jnp.zeros(x.shape, x.dtype), shapes[2])

    def body(carry, i):
      state, alive = carry
      state, good, metrics = lax.cond(alive & (i < count), go, skip, state)
      return (state, alive & good), metrics

    (state, alive), metrics = lax.scan(body, (state, jnp.bool_(True)), jnp.arange(length))
    return state, alive, metrics

  return chunk


class Chunk(NamedTuple):
  """The rounds since the last evaluation."""

  states: PyTree  # after them, with a leading axis of seeds
  done: int  # rounds done in all
  metrics: dict  # [seeds, rounds of the chunk]
  seconds: float

  def unfinished(self) -> dict[str, np.ndarray]:
    """Returns what `Trainer.rounds` takes to go on from a chunk that was cut short."""
    leaves = jax.tree.leaves(self.metrics)
    return {'seconds': np.array(self.seconds)} | {str(i): x for i, x in enumerate(leaves)}


class _Pace:
  """How many rounds to train between two looks at a request to stop: about a second of them."""

  def __init__(self):
    self._seconds = np.inf  # of a round

  def rounds(self, most: int) -> int:
    return min(most, max(1, int(1 / max(self._seconds, 1e-9))))

  def agree(self, seconds: float, stop: bool) -> bool:
    """Notes the seconds of a round; returns whether any process was asked to stop."""
    # All processes must train equally many rounds.
    each = multihost_utils.process_allgather(np.array([seconds, stop]))
    self._seconds, any_stop = each.reshape(-1, 2).max(axis=0)
    return bool(any_stop)


class Trainer:
  """The compiled program of an experiment."""

  def __init__(self, experiment: Experiment):
    self._experiment = experiment

    def keys(seeds):
      made = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed), 3))(seeds)
      return made[:, 0], made[:, 1], made[:, 2]

    # Created with their sharding: keys cannot be put on the devices of other processes.
    self._init_keys, self._roots, self._finish_keys = jax.jit(
        keys, out_shardings=experiment.sharding)(jnp.array(experiment.seeds))
    init = experiment.seed_map(experiment.algorithm.init, in_axes=(0, None))
    self._init = jax.jit(init, out_shardings=experiment.sharding)
    if finish := experiment.algorithm.finish:
      self._finish = jax.jit(experiment.seed_map(finish, in_axes=(0, None, 0)),
                             out_shardings=experiment.sharding)
    self._views = jax.jit(experiment.algorithm.views, out_shardings=experiment.sharding)
    self._gauges = jax.jit(experiment.algorithm.gauges, out_shardings=experiment.sharding)
    self.shapes = jax.eval_shape(self._init, self._init_keys, experiment.federation)
    # A chunk has at most as many rounds as the run.
    self._length = min(experiment.eval_every, experiment.rounds)
    placed, chunk = experiment.sharding, advance(experiment.algorithm, self._length)
    # Without its sharding, XLA may lay out a donated input otherwise than the output it becomes.
    self._program = jax.jit(
        experiment.seed_map(chunk, in_axes=(0, 0, None, None)), donate_argnums=0,
        in_shardings=(placed, placed, placed, None), out_shardings=placed)
    self._pace = _Pace()
    self.compile_seconds = 0.0
    self._compiled = None

  def initial(self) -> PyTree:
    """Returns the states before the first round, with a leading axis of seeds."""
    return self._init(self._init_keys, self._experiment.federation)

  def initial_models(self, init: Callable) -> Iterator[PyTree]:
    """Yields the initial model of each seed, on the host; `init` is the network's."""
    make = jax.jit(lambda keys, s: init(keys[s]), out_shardings=self._experiment.sharding)
    for s in range(len(self._experiment.seeds)):
      yield jax.tree.map(np.asarray, make(self._init_keys, s))

  def place(self, states: PyTree) -> PyTree:
    """Puts restored host arrays on the devices of the program."""
    return jax.device_put(states, self._experiment.sharding)

  def compile(self) -> jax.stages.Compiled:
    """Compiles one chunk, for any number of rounds up to eval_every."""
    start = time.perf_counter()
    compiled = self._program.lower(
        self.shapes, self._roots, self._experiment.federation, jnp.int32(0)).compile()
    self.compile_seconds = time.perf_counter() - start
    return compiled

  def rounds(self, states: PyTree, done: int, unfinished: Mapping[str, np.ndarray] | None = None,
             stop: Callable[[], bool] = lambda: False) -> Iterator[Chunk]:
    """Yields the rounds up to each evaluation; if asked to stop, what there is, as the last.

    Args:
      states: after the rounds done.
      done: rounds done.
      unfinished: of a chunk that was cut short, whose rounds are among those done.
      stop: whether to stop; asked after every second or so of training.

    Raises:
      Diverged: a round gave non-finite values.
    """
    total, every = self._experiment.rounds, self._experiment.eval_every
    if self._compiled is None and done < total:
      self._compiled = self.compile()
    parts, seconds = [], 0.0
    if unfinished:
      metrics, seconds = self._unpack(unfinished)
      parts = [metrics]
    while done < total:
      goal = min(done - done % every + every, total)
      count = self._pace.rounds(goal - done)
      start = time.perf_counter()
      assert self._compiled
      states, alive, metrics = self._compiled(
          states, self._roots, self._experiment.federation, jnp.int32(count))
      alive = np.asarray(alive)
      took = time.perf_counter() - start
      metrics = jax.tree.map(np.asarray, metrics)
      if not alive.all():
        raise Diverged(_divergence(
            metrics['cohort'], alive, np.asarray(states.round), done, self._experiment.seeds))
      stopped = self._pace.agree(took / count, stop())
      done, seconds = done + count, seconds + took
      parts.append(_first(metrics, count))
      if done == goal or stopped:
        joined = jax.tree.map(lambda *each: np.concatenate(each, axis=1), *parts)
        yield Chunk(states, done, joined, seconds)
        parts, seconds = [], 0.0
      if stopped:
        return

  def finish(self, states: PyTree) -> tuple[PyTree, dict]:
    """Runs the algorithm's `finish`, once after the last round: (states, metrics [seeds])."""
    states, metrics = self._finish(states, self._experiment.federation, self._finish_keys)
    return states, jax.tree.map(np.asarray, metrics)

  def _unpack(self, unfinished):
    """Returns the metrics and seconds of an unfinished chunk."""
    shapes = jax.eval_shape(self._program, self.shapes, self._roots, self._experiment.federation,
                            jnp.int32(0))[2]
    leaves = [unfinished[str(i)] for i in range(len(jax.tree.leaves(shapes)))]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves), float(unfinished['seconds'])

  def views(self, states: PyTree, s: int) -> dict:
    """Returns the models of one seed to evaluate."""
    return self._views(tree.take(states, s), self._experiment.federation)

  def gauges(self, states: PyTree, s: int) -> dict:
    """Returns the diagnostics of one seed's state."""
    return self._gauges(tree.take(states, s))


def _first(metrics, count: int):
  return jax.tree.map(lambda x: x[:, :count], metrics)


def _divergence(cohort, alive: np.ndarray, rounds: np.ndarray, done: int, seeds: tuple) -> str:
  """Returns an error message that names the first round that diverged, and its clients."""
  s = min(np.flatnonzero(~alive), key=lambda i: rounds[i])
  at = rounds[s] - 1 - done
  bad = sorted(cohort.id[s, at][~cohort.finite[s, at]].tolist())
  what = f'clients {bad} turned non-finite' if bad else 'the server update turned non-finite'
  return (f'diverged in round {rounds[s]}, seed {seeds[s]}: {what}; a smaller local.lr or '
          'local.clip may help')
