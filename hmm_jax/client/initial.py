"""Initialization of several models, and from a given one."""

import jax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.types import Key, Model, PyTree


def initial_models(model: Model, key: Key, count: int) -> PyTree:
  """Initializes M models independently: [M, ...].

  The first is model.init(key), the initial model of methods with one model, so that runs
  with M = 1 are comparable to these.
  """
  first, further = model.init(key), further_models(model, jax.random.split(key, count)[1:])
  return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, further)


def further_models(model: Model, keys: Key) -> PyTree:
  """Initializes a model for each key, none of which is to be equal to another: [M, ...]."""
  return jax.vmap(model.further or model.init)(keys)


def begun_from(model: Model, variables: PyTree, spread: float) -> Model:
  """Returns the network with given variables as its initial ones.

  Of several models, the first is the given one, and the others lie around it, as equal ones would
  stay equal in methods such as FedEM (our choice: the papers draw all at random).

  Args:
    model: the network.
    variables: one model.
    spread: how far the others lie, as a share of the difference between two random models.
  """

  def further(key):
    one, other = (model.init(k) for k in (key, jax.random.fold_in(key, 1)))
    return tree.add(variables, tree.scale(spread, tree.sub(one, other)))

  return model._replace(init=lambda key: variables, further=further)
