"""Fisher merging: parameters averaged by weights of their Fisher information."""

from collections.abc import Callable
import math

import jax
from jax import lax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.merging.batches import take
from hmm_jax.merging.delta import wide
from hmm_jax.registry import Operator, Setting
from hmm_jax.types import Array, Examples, InputError, Key, Model, PyTree, Task


def fisher(*, floor: float = 1e-6, labels: str = 'given', chunk: int = 8) -> Callable:
  """Returns Fisher merging, as (model, stacked, base, examples, rows, key) -> params.

  Args:
    floor: lower bound of a diagonal entry.
    labels: one of `LABELS`.
    chunk: examples whose gradients are held at a time.

  Raises:
    InputError: a setting is out of range.

  Reference: Matena, Raffel. Merging Models with Fisher-Weighted Averaging. NeurIPS 2022.
    arXiv:2111.09832.
  """
  if not 0 < floor < math.inf:
    raise InputError(f'got floor={floor}; expected a finite number above 0')
  if labels not in LABELS:
    raise InputError(f'got labels={labels}; expected one of {", ".join(LABELS)}')
  if chunk < 1:
    raise InputError(f'got chunk={chunk}; expected at least 1')

  def apply(model, stacked, base, examples, rows, key):
    del base
    count = tree.count(stacked)
    own = jnp.broadcast_to(rows, (count, *rows.shape[-2:]))
    of = lambda one: diagonal(model, one[0], examples, one[1].ravel(), one[2],
                              labels=LABELS[labels], chunk=chunk)
    diagonals = lax.map(of, (stacked, own, jax.random.split(key, count)))
    return merge(stacked['params'], diagonals, floor=floor)

  return apply


def merge(stacked: PyTree, diagonals: PyTree, *, floor: float) -> PyTree:
  """Returns sum_k F_k theta_k / sum_k F_k.

  Args:
    stacked: parameters [K, ...].
    diagonals: F, [K, ...].
    floor: lower bound of the entries of F, in every model (the authors' code applies it to the
      first model only, so that its result depends on the order).
  """

  def leaf(x, diagonal):
    weight = jnp.maximum(diagonal, floor)
    return (weight / weight.sum(axis=0, keepdims=True) * wide(x)).sum(axis=0).astype(x.dtype)

  return jax.tree.map(leaf, stacked, diagonals)


def diagonal(model: Model, variables: PyTree, examples: Examples, rows: Array, key: Key, *,
             labels: Callable, chunk: int) -> PyTree:
  """Estimates the diagonal of a model's Fisher information, shaped as its parameters.

  That is the mean over examples of the squared gradient of log p(label | x), the negative loss.

  Args:
    model: the network.
    variables: of one model, whose running statistics normalize.
    examples: flat data.
    rows: [T], indices, of which -1 is padding.
    key: of labels that are drawn.
    labels: (task, outputs [1, C], y [1], key) -> labels [1]: `given` or `drawn`.
    chunk: examples that are differentiated at a time.
  """
  params, task = variables['params'], model.task
  statistics = tree.statistics(variables)

  def log_likelihood(params, x, y, key):
    x = jax.tree.map(lambda leaf: leaf[None], x)
    outputs = model.apply({'params': params, **statistics}, x)[0]
    return -task.loss(outputs, labels(task, outputs, y[None], key))[0]

  gradients = jax.vmap(jax.grad(log_likelihood), (None, 0, 0, 0))

  def add(total, batch):
    own, key = batch
    x, y, mask, _ = take(examples, own)
    each = gradients(params, x, y, jax.random.split(key, chunk))
    counts = mask.astype(jnp.float32)
    return jax.tree.map(lambda t, g: t + jnp.tensordot(counts, jnp.square(g), 1), total, each), None

  batches = jnp.pad(rows, (0, -len(rows) % chunk), constant_values=-1).reshape(-1, chunk)
  total, _ = lax.scan(add, tree.zeros(params), (batches, jax.random.split(key, len(batches))))
  return tree.scale(1 / (rows >= 0).sum(), total)


def given(task: Task, outputs: Array, y: Array, key: Key) -> Array:
  """Returns the example's label: the empirical Fisher."""
  del task, outputs, key
  return y


def drawn(task: Task, outputs: Array, y: Array, key: Key) -> Array:
  """Returns a label drawn from the model's prediction: the true Fisher; `y` is not read."""
  del y
  return jax.lax.stop_gradient(task.draw(outputs, key))


LABELS = {'given': given, 'drawn': drawn}


OPERATOR = Operator(
    'fisher', fisher, ('shared init', 'network', 'data', 'labels'),
    {'floor': Setting(1e-6, 'lower bound of the entries of the Fisher information', above=0),
     'labels': Setting(
         'given', 'given: those of the examples; drawn: from predictions', choices=LABELS),
     'chunk': Setting(8, 'examples whose gradients are held at a time', at_least=1)},
    summary='the mean of each parameter, weighted by its Fisher information',
    paper='Matena, Raffel. NeurIPS 2022. arXiv:2111.09832')
