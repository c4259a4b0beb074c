"""Maps local training over all clients, with or without keeping their models.

A `Mapper` is the strategy: one by one, vectorized in chunks, or sharded over devices.
Results do not depend on it, up to float rounding. Its two functions take
`f(shared, one)`, where `shared` is the same for every member and `one` is one
member of the pytree `stacked`; `f` must not close over traced arrays.
"""

from collections.abc import Callable
import math

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from hmm_jax import tree
from hmm_jax.types import Array, Cohort, InputError, Key, Local, Mapper, PyTree


def map_clients(local: Local, mapper: Mapper, *, start_axis: int | None = None) -> Callable:
  """Returns a function that runs `local` on every client and keeps every model.

  Args:
    local: one client's training.
    mapper: how clients are mapped.
    start_axis: None if all clients have the same initial model, 0 if `start` is stacked.

  Returns:
    (start, examples, clients, extra, key) -> (stacked, extra, Cohort), where
    `extra` has a leading axis K.
  """

  local = _searched(local)

  def run(start, examples, clients, extra, key):
    if start_axis is None:
      work = lambda shared, one: local(
          shared[0], shared[1], one[0], one[1], client_key(shared[2], one[0].id))
      return mapper.each(work, (start, examples, key), (clients, extra), clients.size)
    work = lambda shared, one: local(
        one[2], shared[0], one[0], one[1], client_key(shared[1], one[0].id))
    return mapper.each(work, (examples, key), (clients, extra, start), clients.size)

  return run


def mix_clients(local: Local, mapper: Mapper) -> Callable:
  """Returns a function that runs `local` on every client and keeps only M mixtures of the models.

  Memory is O(M) models instead of O(K), so cohorts of thousands fit. The mixing weights
  `rows` must be known before training; `map_clients` with `tree.mix` gives the same result.

  Returns:
    (rows [M, K], start, examples, clients, extra, key) -> (mixed [M, ...],
    extra, Cohort).
  """

  local = _searched(local)

  def run(rows, start, examples, clients, extra, key):
    def work(shared, one):
      start, examples, key = shared
      client, extra = one
      variables, extra, report = local(start, examples, client, extra,
                                       client_key(key, client.id))
      return variables, (extra, report)

    mixed, (extra, report) = mapper.mix(
        work, rows, (start, examples, key), (clients, extra), clients.size)
    return mixed, extra, report

  return run


def _searched(local: Local) -> Local:
  """Also reports whether what a client keeps is finite, as `local` does of its model."""

  def work(start, examples, client, extra, key):
    variables, extra, report = local(start, examples, client, extra, key)
    if isinstance(report, Cohort):  # Who calls a mapper may report something else.
      report = report._replace(finite=report.finite & tree.all_finite(extra))
    return variables, extra, report

  return work


def batch_mean(values: Callable, mapper: Mapper) -> Callable:
  """Returns (params, shared, batch) -> the mean of values(params, shared, batch), [B].

  The batch is split over the devices, as evenly as B allows. The gradient with respect to
  `params` is computed with the mean, on the same devices; other arguments get no gradient.
  """
  mean = lambda params, shared, part: values(params, shared, part).mean()

  def shared_out(work, params, shared, batch):
    rows = tree.count(batch)
    count = math.gcd(rows, mapper.devices)
    parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)
    mixed, _ = mapper.mix(lambda given, part: (work(*given, part), ()),
                          jnp.full((1, count), 1 / count), (params, shared), parts)
    return tree.take(mixed, 0)

  @jax.custom_vjp
  def total(params, shared, batch):
    return shared_out(mean, params, shared, batch)

  def forward(params, shared, batch):
    return shared_out(jax.value_and_grad(mean), params, shared, batch)

  def backward(gradient, value):
    return tree.scale(value, gradient), None, None

  total.defvjp(forward, backward)
  return total


def client_key(key: Key, client_id: Array) -> Key:
  """Derives a client's key from the round's; it depends on the id, not the position."""
  return jax.random.fold_in(key, client_id)


def one_by_one() -> Mapper:
  """Maps sequentially; each client runs its own number of steps. Best on a CPU."""

  def each(f, shared, stacked, cost=None):
    del cost
    return lax.map(lambda one: f(shared, one), stacked)

  def mix(f, rows, shared, stacked, cost=None):
    del cost

    def body(total, item):
      weights, one = item
      result, rest = f(shared, one)
      return jax.tree.map(lambda t, x: t + _outer(weights, x), total, result), rest

    return lax.scan(body, _mixture(f, rows, shared, stacked), (rows.T, stacked))

  return Mapper(each, mix)


def vectorized(chunk: int = 0) -> Mapper:
  """Maps by vmap over `chunk` members at a time (0: all at once). For accelerators.

  A chunk runs as many steps as its largest member, so members are sorted by cost.

  Raises:
    InputError: `chunk` is negative.
  """
  if chunk < 0:
    raise InputError(f'got chunk={chunk}; expected 0 (all clients at once) or more')

  def chunks(stacked, cost):
    width = min(chunk, tree.count(stacked)) or tree.count(stacked)
    arranged, restore = _arrange(stacked, cost, width)
    return jax.tree.map(lambda x: x.reshape(-1, width, *x.shape[1:]), arranged), restore

  def flatten(chunked, restore):
    return tree.take(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), chunked), restore)

  def each(f, shared, stacked, cost=None):
    chunked, restore = chunks(stacked, cost)
    return flatten(lax.map(jax.vmap(lambda one: f(shared, one)), chunked), restore)

  def mix(f, rows, shared, stacked, cost=None):
    chunked, restore = chunks((rows.T, stacked), cost)

    def body(total, chunk):
      weights, members = chunk
      results, rest = jax.vmap(lambda one: f(shared, one))(members)
      return tree.add(total, tree.mix(weights.T, results)), rest

    total, rest = lax.scan(body, _mixture(f, rows, shared, stacked), chunked)
    return total, flatten(rest, restore)

  return Mapper(each, mix)


def sharded(mesh: Mesh, inner: Mapper) -> Mapper:
  """Shards members over the mesh axis `clients`; each device maps its own by `inner`.

  Members are distributed by cost, and padded with empty ones to a multiple of the device
  count. Shared arrays, such as the data set, are replicated on every device. On a CPU, where
  a convolution inside a loop runs on one thread, one device per core is fastest.
  """
  member, replicated = PartitionSpec('clients'), PartitionSpec()

  # Ranked members are dealt in a zigzag: of 2 devices, the first gets 0, 3, 4, 7, ...
  def deal(ranks):
    rounds = ranks.reshape(-1, mesh.size)
    return rounds.at[1::2].set(rounds[1::2, ::-1]).T.ravel()

  def spread(work, shared, stacked, out_specs):
    return jax.shard_map(work, mesh=mesh, in_specs=(replicated, member),
                         out_specs=out_specs, check_vma=False)(shared, stacked)

  def each(f, shared, stacked, cost=None):
    arranged, restore = _arrange(stacked, cost, mesh.size, deal)
    work = lambda shared, members: inner.each(f, shared, members)
    return tree.take(spread(work, shared, arranged, member), restore)

  def mix(f, rows, shared, stacked, cost=None):
    def work(shared, members):
      weights, members = members
      mixed, rest = inner.mix(f, weights.T, shared, members)
      return lax.psum(mixed, 'clients'), rest

    arranged, restore = _arrange((rows.T, stacked), cost, mesh.size, deal)
    mixed, rest = spread(work, shared, arranged, (replicated, member))
    return mixed, tree.take(rest, restore)

  return Mapper(each, mix, mesh.size)


def _mixture(f: Callable, rows: Array, shared: PyTree, stacked: PyTree) -> PyTree:
  """Returns zeros in the shape of the M mixed results."""
  result, _ = jax.eval_shape(f, shared, jax.eval_shape(lambda s: tree.take(s, 0), stacked))
  return jax.tree.map(lambda x: jnp.zeros((len(rows), *x.shape), x.dtype), result)


def _outer(weights: Array, x: Array) -> Array:
  return weights.reshape(-1, *[1] * x.ndim) * x[None]


def _arrange(stacked: PyTree, cost: Array | None, multiple: int,
             deal: Callable = lambda order: order) -> tuple[PyTree, Array]:
  """Pads the members to a multiple of `multiple`, then sorts them by decreasing cost.

  Padding members are zero: empty clients of weight 0, which train nothing.

  Returns:
    The arranged members [K', ...], and the positions [K] that restore the original order.
  """
  count = tree.count(stacked)
  extra = -count % multiple
  padded = jax.tree.map(
      lambda x: jnp.pad(x, [(0, extra)] + [(0, 0)] * (x.ndim - 1)), stacked)
  cost = jnp.zeros(count) if cost is None else cost
  order = deal(jnp.argsort(-jnp.pad(cost, (0, extra), constant_values=-1)))
  return tree.take(padded, order), jnp.argsort(order)[:count]
