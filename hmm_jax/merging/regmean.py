"""RegMean: linear layers whose outputs are nearest to each model's own, on its own inputs."""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.merging.batches import mean_over_batches, row_weights
from hmm_jax.merging.delta import wide
from hmm_jax.registry import Operator, Setting
from hmm_jax.types import Array, Examples, InputError, Model, PyTree

_RIDGE = 1e-6  # Times the trace, ten times its rounding error: with less, Cholesky fails.


def regmean(*, factor: float = 0.9) -> Callable:
  """Returns RegMean, as (model, stacked, base, examples, rows, key) -> params.

  Args:
    factor: of the off-diagonal entries of a Gram matrix, from 0 to 1.

  Raises:
    InputError: the factor is out of range.

  Reference: Jin, Ren, Preotiuc-Pietro, Cheng. Dataless Knowledge Fusion by Merging Weights of
    Language Models. ICLR 2023. arXiv:2212.09849.
  """
  if not 0 <= factor <= 1:
    raise InputError(f'got factor={factor}; expected a number from 0 to 1')

  def apply(model, stacked, base, examples, rows, key):
    del base, key
    return merge(stacked['params'], grams(model, stacked, examples, rows), factor=factor)

  return apply


def merge(stacked: PyTree, grams: dict, *, factor: float) -> PyTree:
  """Merges the kernels of linear layers by their Gram matrices, and averages the rest.

  Args:
    stacked: parameters [K, ...].
    grams: {module path: [K, F, F]}.
    factor: as above.
  """

  def leaf(path, x):
    gram = gram_of(grams, path)
    if gram is None:
      return wide(x).mean(axis=0).astype(x.dtype)
    kernels = wide(x).reshape(len(x), -1, x.shape[-1])
    return kernel(kernels, gram, factor).reshape(x.shape[1:]).astype(x.dtype)

  return jax.tree.map_with_path(leaf, stacked)


def kernel(kernels: Array, grams: Array, factor: float) -> Array:
  """Returns (sum_k G_k)^-1 sum_k G_k W_k: [F, G].

  For factor 1 it minimizes sum_k |X_k (W - W_k)|^2. It is computed as a correction of the mean, by
  Cholesky with a ridge as small as rounding allows: in directions without inputs, where G is
  singular, the mean stays (our choice; the paper's inverse does not exist there).

  Args:
    kernels: W_k, [K, F, G].
    grams: G_k, [K, F, F].
    factor: of the off-diagonal entries.
  """
  own = jnp.eye(grams.shape[-1])
  grams = grams * (factor + (1 - factor) * own)[None]
  mean = kernels.mean(axis=0)
  change = jnp.matmul(grams, kernels - mean[None], precision='highest').sum(axis=0)
  gram = grams.sum(axis=0)
  ridge = _RIDGE * jnp.trace(gram) + jnp.finfo(gram.dtype).tiny
  return mean + jax.scipy.linalg.solve(gram + ridge * own, change, assume_a='pos')


def grams(model: Model, stacked: PyTree, examples: Examples, rows: Array) -> dict:
  """Returns X^T X of each linear layer's inputs X, per row: {module path: [K, F, F]}.

  Each model has its own inputs.

  Args:
    model: the network.
    stacked: variables [K, ...], whose running statistics normalize.
    examples: flat data.
    rows: indices of each batch, [S, B] for all models or each model's own, [K, S, B].
  """

  gram = lambda x, weights: jnp.matmul(x.T, weights * x, precision='highest')

  def of_model(one):
    variables, rows = one

    def measure(batch):
      return {path: gram(x, row_weights(batch.mask, len(x)))
              for path, (x, _) in model.linear(variables, batch.x).items()}

    return mean_over_batches(measure, examples, rows)

  count = tree.count(stacked)
  return lax.map(of_model, (stacked, jnp.broadcast_to(rows, (count, *rows.shape[-2:]))))


def gram_of(grams: dict, path: tuple) -> Array | None:
  """Returns the Gram matrices of a kernel's inputs; None for other parameters."""
  *module, name = (step.key for step in path)
  return grams.get('/'.join(module)) if name == 'kernel' else None


OPERATOR = Operator(
    'regmean', regmean, ('shared init', 'network', 'data'),
    {'factor': Setting(0.9, 'scaling factor of the off-diagonal entries of a Gram matrix',
                       at_least=0, at_most=1)},
    summary="linear layers that fit every model's outputs on its own inputs",
    paper='Jin et al. ICLR 2023. arXiv:2212.09849')
