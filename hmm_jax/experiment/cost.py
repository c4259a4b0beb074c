"""What a run will cost, found without training it: messages, steps, memory, time of a sample."""

import time
from typing import NamedTuple

import jax
from jax import core, lax
from jax.interpreters import partial_eval
import jax.numpy as jnp
import numpy as np

from hmm_jax import tree
from hmm_jax.experiment.evaluate import STACKED
from hmm_jax.experiment.run import peak_memory
from hmm_jax.experiment.trainer import Trainer
from hmm_jax.types import Examples, Experiment, Mixture, PyTree


class Sent(NamedTuple):
  """Messages and steps of the first seed.

  up, down: [R + 1] messages of each round, and of the final step.
  steps:    [R] optimizer steps of all participants of each round.

  Each is None where it depends on what is learned.
  """

  up: np.ndarray | None
  down: np.ndarray | None
  steps: np.ndarray | None


class Sample(NamedTuple):
  """Measurements of two rounds: seconds, and the peak memory in bytes."""

  compiling: float
  a_round: float  # of all seeds
  an_evaluation: float  # of one seed
  memory: int


def sent(experiment: Experiment) -> Sent:
  """Counts the messages and steps of every round.

  The whole run is traced, and all that a number does not depend on is dropped from its program,
  as a rule the training: then what is left takes no time.
  """
  algorithm = experiment.algorithm

  def play(federation, key):
    init_key, root, finish_key = jax.random.split(key, 3)

    def step(state, _):
      state, metrics = algorithm.round(state, federation, jax.random.fold_in(root, state.round))
      steps = metrics['cohort'].steps.sum()
      return state, (metrics['messages_up'], metrics['messages_down'], steps)

    first = algorithm.init(init_key, federation)
    state, (up, down, steps) = lax.scan(step, first, length=experiment.rounds)
    last = {'messages_up': jnp.float32(0), 'messages_down': jnp.float32(0)}
    if algorithm.finish:
      last = algorithm.finish(state, federation, finish_key)[1]
    return (jnp.append(up, last['messages_up']), jnp.append(down, last['messages_down']), steps)

  given = (experiment.federation, jax.random.key(experiment.seeds[0]))
  program = jax.make_jaxpr(play)(*given)
  return Sent(*(_untrained(program, number, given, experiment.federation.examples)
                for number in range(len(Sent._fields))))


def _untrained(program, output: int, given: PyTree, examples: Examples) -> np.ndarray | None:
  """Returns one output of a program; None if it depends on the examples."""
  wanted = [number == output for number in range(len(program.jaxpr.outvars))]
  rest, needed = partial_eval.dce_jaxpr(program.jaxpr, wanted)
  inputs = [leaf for leaf, used in zip(jax.tree.leaves(given), needed) if used]
  learned_from = {id(leaf) for leaf in jax.tree.leaves(examples)}
  if any(id(leaf) in learned_from for leaf in inputs):
    return None
  found, = jax.jit(lambda *leaves: core.eval_jaxpr(rest, program.consts, *leaves))(*inputs)
  return np.asarray(found, np.float64)


def parameters(experiment: Experiment) -> int:
  """Returns the number of parameters of one model, without running statistics."""
  algorithm, federation = experiment.algorithm, experiment.federation
  views = jax.eval_shape(lambda key, f: algorithm.views(algorithm.init(key, f), f),
                         jax.random.key(0), federation)
  name, view = next(iter(views.items()))
  models = view.models if isinstance(view, Mixture) else view
  stacked = isinstance(view, Mixture) or name in STACKED
  count = tree.count(models) if stacked else 1
  return tree.size(models['params']) // count


def memory(experiment: Experiment) -> dict[str, int]:
  """Returns the bytes that the run holds at least: {what: bytes}."""
  states = jax.eval_shape(experiment.algorithm.init, jax.random.key(0), experiment.federation)
  return {'the data': tree.nbytes(experiment.federation),
          'the states of all seeds': len(experiment.seeds) * tree.nbytes(states)}


def sample(experiment: Experiment) -> Sample:
  """Compiles the run, and trains and evaluates two rounds of it, which are not saved.

  Raises:
    Diverged: a round gave non-finite values.
  """
  short = experiment._replace(rounds=2, eval_every=2)
  trainer = Trainer(short)
  chunk, = trainer.rounds(trainer.initial(), 0)
  seconds = []
  for _ in range(2):  # The first time compiles.
    start = time.perf_counter()
    experiment.evaluate(trainer.views(chunk.states, 0))
    seconds.append(time.perf_counter() - start)
  return Sample(trainer.compile_seconds + seconds[0] - seconds[1], chunk.seconds / 2, seconds[1],
                peak_memory())
