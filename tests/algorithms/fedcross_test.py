"""Tests of FedCross against its pseudo-code, and of its choice of partners."""

from functools import cache, partial
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
from reference import fedavg as averaging
from reference import fedcross as reference
from reference import rounds, toys, two_layer

from hmm_jax import tree
from hmm_jax.algorithms import fedcross
from hmm_jax.client import losses, mappers
from hmm_jax.client.local import local_training
from hmm_jax.types import Cohort

LR = rounds.LR
STEPS = 2
COLLABORATORS = {'in_order': fedcross.in_order, 'highest': fedcross.most_similar,
                 'lowest': fedcross.least_similar}
TWINS = {'in_order': reference.in_order, 'highest': reference.most_similar,
         'lowest': reference.least_similar}


def adding(start, examples, client, extra, key):
  """Stands for training where it does not matter: adds the client's size to all it is sent."""
  trained = jax.tree.map(lambda x: x + client.size, start)
  return trained, extra, Cohort(client.id, 0.0, True, client.size, 1)


def make(network=toys.perceptron, train=None, collaborator=fedcross.in_order, **settings):
  train = train or local_training(
      losses.supervised(network()), optax.sgd(LR), batch=99, epochs=STEPS)
  return fedcross.fedcross(network(), train, mapper=mappers.one_by_one(),
                           collaborator=collaborator, **settings)


@cache
def program(participation):
  """Returns a compiled round, whose first arguments say who collaborates, and alpha."""
  def round(which, alpha, *given):
    collaborator = lambda *told: jax.lax.switch(which, [*COLLABORATORS.values()], *told)
    return make(collaborator=collaborator, alpha=alpha, participation=participation).round(*given)

  return toys.jit(round)


def play(collaborator, count, *, alpha=0.6, participation=3):
  """Returns the states from the start on, and the clients in the slots of each round."""
  which = [*COLLABORATORS].index(collaborator)
  states, metrics = rounds.play(make(participation=participation), count,
                                program=partial(program(participation), which, alpha))
  return states, rounds.positions(metrics)


@cache
def added():
  """Plays many rounds without training."""
  return rounds.play(make(train=adding, participation=3), 30)


class FedCrossTest(parameterized.TestCase):

  @parameterized.named_parameters(*((name, name) for name in COLLABORATORS))
  def test_equals_the_pseudo_code(self, collaborator):
    states, slots = play(collaborator, 6)
    self.assertEqual(states[-1].round, 6)
    history = reference.fedcross(
        toys.twin(toys.start(toys.perceptron)), toys.tables(rounds.FEDERATION), cohorts=slots,
        collaborator=TWINS[collaborator], alpha=0.6, epochs=STEPS, lr=LR)
    self.assertGreater(len({tuple(partners) for *_, partners in history}), 1)
    for state, (glob, pool, _) in zip(states[1:], history, strict=True):
      toys.assert_close(toys.twin(make().views(state, rounds.FEDERATION)['global']), glob,
                        rtol=1e-4, atol=1e-5)
      for model, other in zip(tree.unstack(state.pool), pool, strict=True):
        toys.assert_close(toys.twin(model), other, rtol=1e-4, atol=1e-5)

  def test_all_slots_begin_as_one_model(self):
    state = make(participation=3).init(toys.key(0), rounds.FEDERATION)
    self.assertEqual(state.round, 0)
    self.assertLen(tree.unstack(state.pool), 3)
    for model in tree.unstack(state.pool):
      toys.assert_close(model, toys.start(toys.perceptron))

  @parameterized.named_parameters(
      ('that_keep', 'lowest', 1.0, 3), ('alone', 'lowest', 0.6, 1),
      ('alone_in_order', 'in_order', 0.6, 1))
  def test_slots_train_in_sequence(self, collaborator, alpha, participation):
    states, slots = play(collaborator, 3, alpha=alpha, participation=participation)
    tables = toys.tables(rounds.FEDERATION)
    for s in range(participation):
      params = toys.twin(toys.start(toys.perceptron))
      for state, cohort in zip(states[1:], slots, strict=True):
        x, y = tables[cohort[s]]
        params = averaging.client_update(
            params, x, y, averaging.full_batches(y, STEPS), lr=LR, gradient=two_layer.gradient)
        toys.assert_close(toys.twin(tree.take(state.pool, s)), params, rtol=1e-4, atol=1e-5)

  def test_partners_are_told_by_parameters_and_mix_statistics_too(self):
    federation, seen = toys.federation((6, 3, 5)), []

    def collaborator(number, pool):
      seen.append(jax.tree.structure(pool))
      return jnp.array([1, 2, 0])

    algorithm = lambda alpha: make(toys.norm, adding, collaborator, alpha=alpha)
    program = toys.jit(lambda alpha, *given: algorithm(alpha).round(*given)[0].pool)
    start = algorithm(0.5).init(toys.key(0), federation)
    own, other, both = (program(alpha, start, federation, toys.key(1))
                        for alpha in (1.0, 0.0, 0.75))
    toys.assert_far(own['batch_stats'], start.pool['batch_stats'])
    toys.assert_close(other, tree.take(own, np.array([1, 2, 0])))
    toys.assert_close(both, jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, own, other))
    self.assertEqual(set(seen), {jax.tree.structure(start.pool['params'])})

  def test_clients_come_to_slots_in_random_order(self):
    slots = rounds.positions(added()[1])
    self.assertGreater(len({tuple(clients) for clients in slots}), 15)
    for clients in slots:
      self.assertLen(set(clients), 3)
    self.assertLen({clients[0] for clients in slots}, 5)

  def test_who_comes_and_how_it_trains_have_keys_of_their_own(self):
    keys = []

    def shuffled(clients, count, key):
      keys.append(key)
      return np.arange(len(clients.id)), clients

    def train(start, examples, clients, extra, key):
      keys.append(key)
      cohort = Cohort(clients.id, np.zeros(2), np.ones(2, bool), clients.size, np.ones(2, int))
      return start, extra, cohort

    federation = toys.federation((6, 3))
    with (mock.patch.object(fedcross.sampling, 'shuffled', shuffled),
          mock.patch.object(fedcross.mappers, 'map_clients', return_value=train)):
      algorithm = make()
      algorithm.round(algorithm.init(toys.key(0), federation), federation, toys.key(1))
    numbers = {tuple(jax.random.key_data(key).tolist()) for key in (*keys, toys.key(1))}
    self.assertLen(numbers, 3)

  def test_messages_are_those_of_federated_averaging(self):
    size = tree.nbytes(jax.eval_shape(toys.perceptron().init, toys.key(0)))
    self.assertEqual(make(participation=3).traffic, (size, size))
    for metrics in added()[1]:
      self.assertEqual((metrics['messages_up'], metrics['messages_down']), (3, 3))


class CollaboratorTest(parameterized.TestCase):

  @parameterized.parameters(2, 3, 4, 5)
  def test_in_order_takes_every_other_slot_in_turn(self, slots):
    pool = {'w': jnp.zeros((slots, 2))}
    partners = [fedcross.in_order(jnp.int32(r), pool).tolist() for r in range(2 * slots)]
    for r, partner in enumerate(partners):
      self.assertEqual(partner, reference.in_order(r, range(slots)))
      self.assertEqual(sorted(partner), [*range(slots)])
      self.assertEqual(partner, partners[(r + slots - 1) % (2 * slots - 2)])
    for i in range(slots):
      self.assertEqual({partner[i] for partner in partners[:slots - 1]}, {*range(slots)} - {i})

  def test_similarity_is_the_angle_between_whole_models(self):
    # Angles to the first: 10, 100 and 170 degrees; in leaves of several shapes.
    angles = np.deg2rad([0, 10, 100, 170])
    length = np.array([1.0, 0.01, 100.0, 3.0])
    pool = {'a': jnp.asarray((length * np.cos(angles))[:, None, None]),
            'b': {'c': jnp.asarray((length * np.sin(angles))[:, None])}}
    for r in (0, 5):
      self.assertEqual(fedcross.most_similar(jnp.int32(r), pool).tolist(), [1, 0, 3, 2])
      self.assertEqual(fedcross.least_similar(jnp.int32(r), pool).tolist(), [3, 3, 0, 0])

  @parameterized.parameters(1, 2)
  def test_few_slots(self, slots):
    pool = {'w': jnp.asarray(np.eye(slots) + 1)}
    for collaborator in COLLABORATORS.values():
      self.assertEqual(collaborator(jnp.int32(3), pool).tolist(), [*range(slots)][::-1])


if __name__ == '__main__':
  absltest.main()
