"""The compiled program of a run: chunks of rounds over all seeds.

No random state is saved: the key of a round is fold_in(root, round), so a resumed
run is bit-identical to an uninterrupted one. Several seeds are one program, whose
states have a leading axis of seeds.
"""

from collections.abc import Callable, Iterator
import time

import jax
from jax import lax
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

  Runs `count` <= `length` rounds. If a round gives a non-finite state, the state before
  that round is returned and `alive` is False.
  """

  def chunk(state, root, federation, count):
    def go(state):
      new, metrics = algorithm.round(state, federation, jax.random.fold_in(root, state.round))
      good = tree.all_finite(new) & metrics['cohort'].finite.all()
      return tree.where(good, new, state), good, metrics

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
    self._init = experiment.seed_map(experiment.algorithm.init, in_axes=(0, None))
    self._views = jax.jit(experiment.algorithm.views, out_shardings=experiment.sharding)
    self._gauges = jax.jit(experiment.algorithm.gauges, out_shardings=experiment.sharding)
    self.shapes = jax.eval_shape(self._init, self._init_keys, experiment.federation)
    self.compile_seconds = 0.0
    self._compiled = None

  def initial(self) -> PyTree:
    """Returns the states before the first round, with a leading axis of seeds."""
    return jax.jit(self._init, out_shardings=self._experiment.sharding)(
        self._init_keys, self._experiment.federation)

  def place(self, states: PyTree) -> PyTree:
    """Puts restored host arrays on the devices of the program."""
    return jax.device_put(states, self._experiment.sharding)

  def compile(self) -> jax.stages.Compiled:
    """Compiles one chunk, for any number of rounds up to eval_every."""
    experiment, start = self._experiment, time.perf_counter()
    chunk = advance(experiment.algorithm, experiment.eval_every)
    program = jax.jit(
        experiment.seed_map(chunk, in_axes=(0, 0, None, None)), donate_argnums=0,
        out_shardings=experiment.sharding)
    compiled = program.lower(
        self.shapes, self._roots, experiment.federation, jnp.int32(0)).compile()
    self.compile_seconds = time.perf_counter() - start
    return compiled

  def rounds(self, states: PyTree, done: int) -> Iterator[tuple[PyTree, int, dict, float]]:
    """Yields (states, rounds done, metrics [seeds, count], seconds) per chunk.

    Raises:
      Diverged: a round gave non-finite values.
    """
    total, every = self._experiment.rounds, self._experiment.eval_every
    if self._compiled is None and done < total:
      self._compiled = self.compile()
    while done < total:
      count = min(every - done % every, total - done)
      start = time.perf_counter()
      assert self._compiled
      states, alive, metrics = self._compiled(
          states, self._roots, self._experiment.federation, jnp.int32(count))
      alive = np.asarray(alive)
      seconds = time.perf_counter() - start
      metrics = jax.tree.map(np.asarray, metrics)
      if not alive.all():
        raise Diverged(_divergence(
            metrics['cohort'], alive, np.asarray(states.round), done, self._experiment.seeds))
      done += count
      yield states, done, _first(metrics, count), seconds

  def finish(self, states: PyTree) -> tuple[PyTree, dict]:
    """Runs the algorithm's `finish`, once after the last round: (states, metrics [seeds])."""
    algorithm = self._experiment.algorithm
    assert algorithm.finish
    finish = self._experiment.seed_map(algorithm.finish, in_axes=(0, None, 0))
    states, metrics = jax.jit(finish, out_shardings=self._experiment.sharding)(
        states, self._experiment.federation, self._finish_keys)
    return states, jax.tree.map(np.asarray, metrics)

  def views(self, states: PyTree, s: int) -> dict:
    """Returns the models of one seed to evaluate."""
    return self._views(tree.take(states, s), self._experiment.federation)

  def gauges(self, states: PyTree, s: int) -> dict:
    """Returns the diagnostics of one seed's state."""
    return self._gauges(tree.take(states, s))


def _first(metrics, count: int):
  return jax.tree.map(lambda x: x[:, :count], metrics)


def _divergence(cohort, alive: np.ndarray, frozen: np.ndarray, done: int, seeds: tuple) -> str:
  """Returns an error message that names the first round that diverged, and its clients."""
  s = min(np.flatnonzero(~alive), key=lambda i: frozen[i])
  at = frozen[s] - done
  bad = sorted(cohort.id[s, at][~cohort.finite[s, at]].tolist())
  what = f'clients {bad} turned non-finite' if bad else 'the server update turned non-finite'
  return (f'diverged in round {frozen[s] + 1}, seed {seeds[s]}: {what}; the last checkpoint is '
          'kept, a smaller local.lr or local.clip may help')
