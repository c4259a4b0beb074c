"""Classifiers: a `Model` from a flax trunk and a linear head."""

from collections.abc import Callable, Collection

import flax.linen as nn
import jax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.models import layer_io, layers
from hmm_jax.models import symmetry as symmetries
from hmm_jax.tasks.classification import CLASSIFICATION
from hmm_jax.types import Array, InputError, Model, PyTree, Task


class Classifier(nn.Module):
  """A trunk, [B, ...] -> [B, F], and a linear head; [B, T, F] if it has outputs at T positions."""

  trunk: nn.Module
  classes: int

  def __call__(self, x: PyTree, *, train: bool, mask: Array | None) -> Array:
    return self.logits(self.features(x, train=train, mask=mask))

  @nn.compact
  def logits(self, features: Array) -> Array:
    return layers.dense(features, self.classes, name='head')

  def features(self, x: PyTree, *, train: bool, mask: Array | None) -> Array:
    # Float32 from here on: bfloat16 logits would have three digits only.
    return self.trunk(x, train=train, mask=mask).astype(jnp.float32)


def classifier(
    trunk: nn.Module,
    *,
    classes: int,
    input_shape: PyTree,
    dtype: jnp.dtype = jnp.float32,
    wiring: Callable | None = None,
    task: Task = CLASSIFICATION,
) -> Model:
  """Returns the `Model` of a trunk with a linear head.

  The trunk is called as trunk(x, train=..., mask=...). Parameters and statistics
  stay float32. A batch in which every example is masked changes no statistic; its outputs
  are finite and meaningless.

  Args:
    input_shape: the shape of one example, or a pytree of jax.ShapeDtypeStruct.
    dtype: what the trunk computes in, float32 or bfloat16. Inputs are cast to it,
      but for leaves whose jax.ShapeDtypeStruct is not floating.
    wiring: how the layers are connected, see models/symmetry.py; None if unknown.
    task: what the outputs mean.
  """
  network = Classifier(trunk, classes)
  example = _example(input_shape, dtype)

  @jax.jit
  def init(key):
    return network.lazy_init(key, example, train=False, mask=None)

  def cast(x):
    # A part of x may be Embedded where the example has an array.
    return jax.tree.map(
        lambda like, part: jax.tree.map(lambda leaf: leaf.astype(like.dtype), part), example, x)

  def run(method, variables, x, train, mask, key):
    x = cast(x)
    if mask is not None:
      counts = mask.any()
      mask = mask | ~counts  # A mean over no examples is NaN.
    out, updated = network.apply(
        variables, x, train=train, mask=mask, rngs={} if key is None else {'dropout': key},
        mutable=['batch_stats'], method=method)
    if mask is not None:
      updated = tree.where(counts, updated, {name: variables[name] for name in updated})
    return out, {**variables, **updated}

  def apply(variables, x, *, train=False, mask=None, key=None):
    return run(Classifier.__call__, variables, x, train, mask, key)

  def features(variables, x, *, train=False, mask=None, key=None):
    return run(Classifier.features, variables, x, train, mask, key)[0]

  def head(variables, features):
    return network.apply(variables, features, method=Classifier.logits)

  def statistics(variables, x, *, mask=None):
    # After one training step from zero, running statistics are a known multiple of the
    # batch's own.
    running = tree.statistics(variables)
    _, updated = apply({**variables, **tree.zeros(running)}, x, train=True, mask=mask)
    return {name: tree.scale(1 / (1 - layers.MOMENTUM), updated[name]) for name in running}

  def record_layers(variables, x):
    return layer_io.record(network, variables, cast(x))

  def trace():
    called, shapes = {}, jax.eval_shape(init, jax.random.key(0))

    def record(call, args, kwargs, context):
      called.setdefault('/'.join(context.module.path), context.module)
      return call(*args, **kwargs)

    with nn.intercept_methods(record):
      jax.eval_shape(lambda v, x: network.apply(v, x, train=False, mask=None), shapes, example)
    owners = groups(shapes)
    names = set(jax.tree.leaves(owners))
    return {path: module for path, module in called.items() if path in names}, owners, shapes

  def modules():
    return tuple(trace()[0])

  def symmetry():
    if wiring is None:
      raise InputError(f'got trunk={type(trunk).__name__}, whose wiring is unknown; expected mlp, '
                       'cnn, vgg16, resnet, vit, lstm, gpt, or fusion with one branch; or a '
                       'merge that permutes no hidden units')
    return symmetries.symmetry(*trace(), wiring)

  return Model(
      init, apply, features, head, statistics, groups, modules, linear=record_layers,
      symmetry=symmetry, task=task)


def _example(input_shape, dtype):
  """Returns the shapes and dtypes of a batch of one."""
  if all(isinstance(n, int) for n in jax.tree.leaves(input_shape)):
    input_shape = jax.ShapeDtypeStruct(tuple(input_shape), dtype)

  def batch(leaf):
    floating = jnp.issubdtype(leaf.dtype, jnp.floating)
    return jax.ShapeDtypeStruct((1, *leaf.shape), dtype if floating else leaf.dtype)

  return jax.tree.map(batch, input_shape)


def groups(variables: PyTree) -> PyTree:
  """Returns the module path of each leaf, such as 'trunk/Conv_0'."""
  return jax.tree.map_with_path(
      lambda path, _: '/'.join(step.key for step in path[1:-1]), variables)


def preprocessed(
    model: Model, *, normalize: Callable, augment: Callable | None = None
) -> Model:
  """Returns a `Model` that takes raw inputs, such as uint8 images.

  Args:
    model: on inputs that `normalize` returns.
    normalize: (x) -> x, raw inputs to floats.
    augment: (key, x) -> x on raw inputs, applied in training if there is a key.
  """

  def prepare(x, train, key):
    if augment is None or not train or key is None:
      return normalize(x), key
    key_augment, key = jax.random.split(key)
    return normalize(augment(key_augment, x)), key

  def wrap(function):
    def wrapped(variables, x, *, train=False, mask=None, key=None):
      x, key = prepare(x, train, key)
      return function(variables, x, train=train, mask=mask, key=key)
    return wrapped

  def on_normalized(function):
    return lambda variables, x, **mode: function(variables, normalize(x), **mode)

  return model._replace(
      apply=wrap(model.apply), features=wrap(model.features),
      statistics=on_normalized(model.statistics), linear=on_normalized(model.linear),
      normalize=normalize, bare=model)


def check_choice(key: str, value: str, choices: Collection[str]) -> None:
  """Raises InputError unless the value of config key `key` is one of the choices."""
  if value not in choices:
    raise InputError(f'got {key}={value}; expected one of {", ".join(choices)}')


def check_tokens(network: str, input_shape: PyTree):
  """Raises InputError unless examples are sequences of tokens [T]."""
  if not isinstance(input_shape, tuple) or len(input_shape) != 1:
    raise InputError(f'got model={network} with inputs of shape {input_shape}; expected tokens [T]')


def check_images(network: str, input_shape: PyTree, least: int) -> None:
  """Raises InputError unless examples are images [H, W, C] of at least least x least."""
  if not isinstance(input_shape, tuple) or len(input_shape) != 3:
    raise InputError(f'got {network} with inputs of shape {input_shape}; expected images [H, W, C]')
  height, width, _ = input_shape
  if min(height, width) < least:
    raise InputError(
        f'got {network} with images of {height}x{width}; expected at least {least}x{least}')
