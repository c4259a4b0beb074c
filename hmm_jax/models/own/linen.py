"""Linen modules as a `Net`."""

from flax.core.tracers import current_trace
import flax.linen as nn

from hmm_jax.models.own.net import Net, by_example, is_watched, modes
from hmm_jax.types import InputError, PyTree

_KEPT = ('params', 'batch_stats')
_PASSING = ('intermediates', 'perturbations')  # Collections that nothing depends on.


def linen_net(module: nn.Module, example: PyTree, *, mask_too: bool) -> Net:
  """Returns the `Net` of a linen module.

  Args:
    module: called as module(x), with modes where it takes them.
    example: the shapes and dtypes of a batch.
    mask_too: whether the module is given the mask as well, if it takes one.
  """
  call = module.__call__

  def init(key):
    made = nn.meta.unbox(module.lazy_init(
        {'params': key, 'dropout': key}, example, **modes(call, train=False, key=None)))
    if other := made.keys() - {*_KEPT, *_PASSING}:
      raise InputError(f'got variables of {", ".join(sorted(other))}; expected only those of '
                       f'{" and ".join(_KEPT)}')
    return {'params': made.get('params', {})} | {
        name: made[name] for name in _KEPT[1:] if made.get(name)}

  def run(variables, x, *, train, mask=None, key=None, watch=None):
    here = current_trace()

    def intercept(method, args, kwargs, context):
      layer = context.module
      if context.method_name != '__call__':
        return method(*args, **kwargs)
      if isinstance(layer, nn.Dropout) and key is None:
        return args[0]
      if isinstance(layer, nn.BatchNorm) and mask is not None:
        kwargs = {'mask': by_example(mask, args[0])} | kwargs
      out = method(*args, **kwargs)
      # What is inside of a transformation, such as nn.remat, can't be handed out of it.
      if watch and is_watched(layer) and current_trace() == here:
        watch('/'.join(layer.path), layer, args[0], out)
      return out

    given = modes(call, train=train, key=key, mask=mask if mask_too else None)
    with nn.intercept_methods(intercept):
      out, updated = module.apply(
          variables, x, rngs={} if key is None else {'dropout': key},
          mutable=['batch_stats'] if train else [], **given)
    return out, {**variables, **updated}

  def apply_layer(variables, path, layer, inputs):
    own = variables['params']
    for name in path.split('/'):
      own = own[name]
    return layer.clone(parent=None, name=None).apply({'params': own}, inputs)

  return Net(init, run, apply_layer)
