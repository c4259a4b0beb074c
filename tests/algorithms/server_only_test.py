"""The server alone: nobody sends, and nobody's data are read."""

from functools import cache

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
import optax
from reference import rounds, toys

from hmm_jax.algorithms import server_only
from hmm_jax.client import losses
from hmm_jax.client.local import local_training
from hmm_jax.client.sampling import central
from hmm_jax.server import objectives, training

FEDERATION = toys.hybrid()
LOOP = {'batch': 4, 'steps': 7}


@cache
def make():
  objective = objectives.labels(toys.norm())
  train = local_training(objectives.training_loss(objective), optax.sgd(rounds.LR), **LOOP)
  return server_only.server_only(toys.norm(), server=training.server_training(objective, train))


def play(federation=FEDERATION):
  return rounds.play(make(), 3, federation=federation)


class ServerOnlyTest(absltest.TestCase):

  def test_trains_on_the_servers_rows_round_after_round(self):
    states, metrics = play()
    train = toys.jit(
        local_training(losses.supervised(toys.norm()), optax.sgd(rounds.LR), **LOOP))
    variables = toys.start(toys.norm)
    for r, measured in enumerate(metrics):
      variables, _, report = train(variables, FEDERATION.server.examples,
                                   central(FEDERATION.server), (), toys.key(r))
      toys.assert_close(states[r + 1].variables, variables)
      for name in ('train/loss', 'server/loss'):
        toys.assert_close(measured[name], report.loss)
    self.assertEqual(states[-1].round, 3)

  def test_nobody_sends(self):
    self.assertEqual(make().traffic, (0, 0))
    for measured in play()[1]:
      self.assertEqual((measured['messages_up'], measured['messages_down']), (0, 0))
      cohort = measured['cohort']
      self.assertEqual((cohort.id.tolist(), cohort.size.tolist(), cohort.steps.tolist(),
                        cohort.finite.tolist()), ([-1], [13], [7], [True]))
      self.assertEqual((measured['server/gradients'], measured['server/forwards']), (7, 0))

  def test_the_clients_data_are_not_read(self):
    unreadable = FEDERATION._replace(
        examples=jax.tree.map(lambda x: jnp.full_like(x, -99), FEDERATION.examples),
        clients=jax.tree.map(np.zeros_like, FEDERATION.clients))
    (states, metrics), (others, measured) = (play(f) for f in (FEDERATION, unreadable))
    toys.assert_close((others, measured), (states, metrics), rtol=0, atol=0)
    toys.assert_far(states[-1].variables, states[0].variables, least=0.01)

  def test_the_view_is_the_model(self):
    state = play()[0][1]
    toys.assert_close(make().views(state, FEDERATION), {'global': state.variables})


if __name__ == '__main__':
  absltest.main()
