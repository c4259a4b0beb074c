"""Tests of FedCross against its pseudo-code, and of its choice of partners."""

from unittest import mock

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
from reference import fedavg as averaging
from reference import fedcross as reference
from reference import toys, two_layer

from hmm_jax import tree
from hmm_jax.algorithms import fedcross
from hmm_jax.client import losses, mappers
from hmm_jax.client.local import local_training
from hmm_jax.types import Cohort

LR = 0.3
STEPS = 2
SIZES = (6, 3, 0, 8, 1)
COLLABORATORS = {'in_order': fedcross.in_order, 'highest': fedcross.most_similar,
                 'lowest': fedcross.least_similar}
TWINS = {'in_order': reference.in_order, 'highest': reference.most_similar,
         'lowest': reference.least_similar}


def local():
  return local_training(
      losses.cross_entropy(toys.perceptron()), optax.sgd(LR), batch=99, epochs=STEPS)


def adding(start, examples, client, extra, key):
  """Stands for training where it does not matter: adds the client's size to all it is sent."""
  trained = jax.tree.map(lambda x: x + client.size, start)
  return trained, extra, Cohort(client.id, 0.0, True, client.size, 1)


def make(collaborator='in_order', train=None, **settings):
  return fedcross.fedcross(
      toys.perceptron(), train or local(), mapper=mappers.one_by_one(),
      collaborator=COLLABORATORS[collaborator], **settings)


def play(algorithm, federation, rounds):
  """Returns the states from the start on, and the clients in the slots of each round."""
  states, slots = [toys.jit(algorithm.init)(toys.key(0), federation)], []
  program = toys.jit(algorithm.round)
  for r in range(rounds):
    state, metrics = program(states[-1], federation, toys.key(r))
    states.append(state)
    slots.append([toys.IDS.index(i) for i in metrics['cohort'].id.tolist()])
  return states, slots


class FedCrossTest(parameterized.TestCase):

  @parameterized.parameters(('in_order', 0), ('in_order', 3), ('highest', 0), ('lowest', 3))
  def test_equals_the_pseudo_code(self, collaborator, cohort, alpha=0.6):
    federation = toys.federation(SIZES)
    algorithm = make(collaborator=collaborator, participation=cohort, alpha=alpha)
    states, slots = play(algorithm, federation, 6)
    self.assertEqual(states[-1].round, 6)
    history = reference.fedcross(
        toys.twin(toys.start(toys.perceptron)), toys.tables(federation), cohorts=slots,
        collaborator=TWINS[collaborator], alpha=alpha, epochs=STEPS, lr=LR)
    self.assertGreater(len({tuple(partners) for *_, partners in history}), 1)
    for state, (glob, pool, _) in zip(states[1:], history, strict=True):
      toys.assert_close(toys.twin(algorithm.views(state, federation)['global']), glob,
                        rtol=1e-4, atol=1e-5)
      for model, other in zip(tree.unstack(state.pool), pool, strict=True):
        toys.assert_close(toys.twin(model), other, rtol=1e-4, atol=1e-5)

  def test_all_slots_begin_as_one_model(self):
    algorithm = make(participation=3, train=adding)
    state = algorithm.init(toys.key(0), toys.federation(SIZES))
    self.assertEqual(state.round, 0)
    self.assertLen(tree.unstack(state.pool), 3)
    for model in tree.unstack(state.pool):
      toys.assert_close(model, toys.start(toys.perceptron))

  @parameterized.parameters(
      ('lowest', {'alpha': 1.0}), ('lowest', {'alpha': 0.6, 'participation': 1}),
      ('in_order', {'alpha': 0.6, 'participation': 1}))
  def test_slots_that_keep_or_are_alone_train_in_sequence(self, collaborator, settings):
    federation = toys.federation(SIZES)
    states, slots = play(make(collaborator, **settings), federation, 3)
    tables = toys.tables(federation)
    for s in range(len(slots[0])):
      params = toys.twin(toys.start(toys.perceptron))
      for state, cohort in zip(states[1:], slots, strict=True):
        x, y = tables[cohort[s]]
        params = averaging.client_update(
            params, x, y, averaging.full_batches(y, STEPS), lr=LR, gradient=two_layer.gradient)
        toys.assert_close(toys.twin(tree.take(state.pool, s)), params, rtol=1e-4, atol=1e-5)

  def test_two_slots_at_one_half_are_their_mean(self):
    federation = toys.federation((6, 3))
    states, _ = play(make(train=adding, alpha=0.5), federation, 2)
    for state in states[1:]:
      toys.assert_close(*tree.unstack(state.pool))
      toys.assert_far(state.pool, states[0].pool)

  def test_partners_are_told_by_parameters_and_mix_statistics_too(self):
    federation, seen = toys.federation((6, 3, 5)), []

    def collaborator(number, pool):
      seen.append(jax.tree.structure(pool))
      return jnp.array([1, 2, 0])

    alone, given, mixed = (
        fedcross.fedcross(toys.norm(), adding, mapper=mappers.vectorized(),
                          collaborator=collaborator, alpha=alpha)
        for alpha in (1.0, 0.0, 0.75))
    start = toys.jit(alone.init)(toys.key(0), federation)
    own, other, both = (toys.jit(algorithm.round)(start, federation, toys.key(1))[0].pool
                        for algorithm in (alone, given, mixed))
    toys.assert_far(own['batch_stats'], start.pool['batch_stats'])
    toys.assert_close(other, tree.take(own, np.array([1, 2, 0])))
    toys.assert_close(both, jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, own, other))
    self.assertEqual(seen, [jax.tree.structure(start.pool['params'])] * 3)

  @parameterized.parameters(0, 3)
  def test_clients_come_to_slots_in_random_order(self, cohort):
    _, slots = play(make(participation=cohort, train=adding), toys.federation(SIZES), 30)
    self.assertGreater(len({tuple(clients) for clients in slots}), 15)
    for clients in slots:
      self.assertLen(set(clients), cohort or 5)
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
    with (mock.patch.object(fedcross.participate, 'shuffled', shuffled),
          mock.patch.object(fedcross.mappers, 'map_clients', return_value=train)):
      algorithm = make()
      algorithm.round(algorithm.init(toys.key(0), federation), federation, toys.key(1))
    numbers = {tuple(jax.random.key_data(key).tolist()) for key in (*keys, toys.key(1))}
    self.assertLen(numbers, 3)

  def test_messages_are_those_of_federated_averaging(self):
    algorithm = make(participation=2, train=adding)
    federation = toys.federation(SIZES)
    _, metrics = toys.jit(algorithm.round)(
        algorithm.init(toys.key(0), federation), federation, toys.key(0))
    size = tree.nbytes(toys.start(toys.perceptron))
    self.assertEqual((algorithm.traffic.up, algorithm.traffic.down), (size, size))
    self.assertEqual((metrics['messages_up'], metrics['messages_down']), (2, 2))
    self.assertLen(metrics['cohort'].id, 2)


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

  def test_equals_the_reference(self):
    rng = np.random.default_rng(0)
    models = [{'v': rng.normal(size=(3, 2)), 'w': rng.normal(size=4)} for _ in range(7)]
    pool = tree.stack([jax.tree.map(jnp.float32, model) for model in models])
    for name, collaborator in COLLABORATORS.items():
      self.assertEqual(collaborator(jnp.int32(2), pool).tolist(), TWINS[name](2, models))


if __name__ == '__main__':
  absltest.main()
