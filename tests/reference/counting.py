"""A method that counts its rounds, and what is to be known of a run of it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from reference import toys

from hmm_jax.experiment.trainer import in_turn
from hmm_jax.types import Algorithm, Cohort, Experiment, Scores, Traffic

FEDERATION = toys.federation((2, 4, 1))  # The clients 7, 2 and 9.


class State(NamedTuple):
  round: Any
  value: Any


def counting(blow_up=10**6, finish=None):
  """Adds one a round; from round `blow_up` on, client 7's model is infinite."""

  def play(state, federation, key):
    value = state.value + 1
    bad = value >= blow_up
    cohort = Cohort(id=jnp.array([3, 7]), loss=jnp.ones(2),
                    finite=jnp.stack([jnp.bool_(True), ~bad]), size=jnp.ones(2, int),
                    steps=jnp.ones(2, int))
    metrics = {'train/loss': value, 'messages_up': jnp.float32(2),
               'messages_down': jnp.float32(1), 'cohort': cohort}
    return State(state.round + 1, jnp.where(bad, jnp.inf, value)), metrics

  return Algorithm(
      init=lambda key, federation: State(jnp.int32(0), jnp.float32(0)), round=play,
      views=lambda state, _: {'global': state.value}, traffic=Traffic(up=10, down=100),
      finish=finish)


def one_number(views):
  return Scores({'global/validation/accuracy': float(views['global'])}, {})


def of_clients(views):
  """Scores three clients, of which the second holds no row."""
  value = float(views['global'])
  accuracy = np.array([value, np.nan, value / 10])
  return Scores(one_number(views).metrics,
                {'test/rows': np.array([3, 0, 1]), 'test/accuracy': accuracy})


def experiment(algorithm, **settings):
  values = {'rounds': 5, 'eval_every': 2, 'seeds': (0, 1), 'evaluate': one_number,
            'criterion': 'global/validation/accuracy', **settings}
  return Experiment(
      algorithm, federation=FEDERATION, seed_map=in_turn,
      sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]), **values)


def adding(amount):
  """Returns a finish that adds to the value, and sends nothing."""
  return lambda state, federation, key: (state._replace(value=state.value + amount), {
      'messages_up': jnp.float32(0), 'messages_down': jnp.float32(0)})


def weighing(state):
  """Returns gauges of a run, of each client, and of each client and two models."""
  return {'height': 2 * state.value, 'cluster': jnp.array([0., 2., 1.]),
          'weight': state.value * jnp.array([[1., 2.], [3., 4.], [5., 6.]])}
