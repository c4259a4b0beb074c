"""Sampling of the clients of a round, and their weights in an average."""

import jax
from jax import lax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.types import Array, Clients, Cohort, InputError, Key, Server


def sample(clients: Clients, count: int, key: Key) -> tuple[Array, Clients]:
  """Draws `count` of K clients without replacement; 0 means all, in their order.

  The draw is keyed by the ids, so it does not depend on the order of the clients.

  Returns:
    Their positions [m] and the clients themselves.

  Raises:
    InputError: `count` is negative or more than K.
  """
  total = len(clients.id)
  if not 0 <= count <= total:
    raise InputError(f'got participation={count}; expected 0 (all) to clients={total}')
  if count in (0, total):
    return jnp.arange(total), clients
  return shuffled(clients, count, key)


def shuffled(clients: Clients, count: int, key: Key) -> tuple[Array, Clients]:
  """Draws `count` of K clients without replacement, in random order; 0 means all.

  The draw is keyed by the ids, so it does not depend on the order of the clients.

  Returns:
    Their positions [m] and the clients themselves.
  """
  draws = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i)))(clients.id)
  _, positions = lax.top_k(draws, count or len(clients.id))
  return positions, tree.take(clients, positions)


def pool(clients: Clients) -> Clients:
  """Pools the examples of all clients in one client, with id 0: index [1, K N].

  Indices are sorted, so the result does not depend on the partition.
  """
  valid = jnp.arange(clients.index.shape[1])[None] < clients.size[:, None]
  padding = jnp.iinfo(jnp.int32).max
  index = jnp.sort(jnp.where(valid, clients.index, padding).ravel())
  index = jnp.where(index == padding, 0, index)
  return clients._replace(id=jnp.zeros(1, jnp.int32), index=index[None],
                          size=clients.size.sum()[None],
                          round=None if clients.round is None else clients.round[:1])


def by_size(clients: Clients) -> Array:
  """Returns weights by number of examples, n_i / sum n, [m]; equal ones if no client has any."""
  total = clients.size.sum()
  return jnp.where(total > 0, clients.size / jnp.maximum(total, 1), 1 / len(clients.size))


def uniform(clients: Clients) -> Array:
  """Returns equal weights: 1 / m, [m]."""
  return jnp.full(clients.size.shape, 1 / len(clients.size))


def by_size_within(clients: Clients, group: Array, groups: int) -> tuple[Array, Array]:
  """Returns weights by number of examples within each group of clients.

  Args:
    clients: m of them.
    group: [m] int32, the group of each.
    groups: number of groups, M.

  Returns:
    Weights [M, m], in which a row sums to 1 if the group holds any examples, else to 0;
    and [M] bool, whether it does.
  """
  held = jnp.where(group[None] == jnp.arange(groups)[:, None], clients.size[None], 0)
  total = held.sum(axis=1, keepdims=True)
  return held / jnp.maximum(total, 1), total[:, 0] > 0


def label_counts(clients: Clients, labels: Array, classes: int) -> Array:
  """Counts each client's examples of each class, [K, C] float32, by the labels [D]."""
  valid = jnp.arange(clients.index.shape[1])[None] < clients.size[:, None]
  return jax.vmap(lambda own, valid: jnp.zeros(classes).at[own].add(valid))(
      labels[clients.index], valid)


def round_metrics(cohort: Cohort) -> dict:
  """Returns the standard metrics of a round, with one message up and down per participant."""
  messages = jnp.float32(len(cohort.id))
  loss = (cohort.loss * cohort.size).sum() / jnp.maximum(cohort.size.sum(), 1)
  return {'train/loss': loss, 'messages_up': messages, 'messages_down': messages,
          'cohort': cohort}


def central(server: Server) -> Clients:
  """Returns the server as a client with all of its examples: one element of Clients."""
  count = len(server.examples.y)
  return Clients(jnp.int32(-1), jnp.arange(count), jnp.int32(count))
