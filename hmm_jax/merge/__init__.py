"""Merges saved models: `python -m hmm_jax.merge`, or `hmm_jax.merge(...)` as a function."""

import sys
import types


class _Callable(types.ModuleType):
  """A callable package: `hmm_jax.merge('ties', ['a.npz', 'b.npz'], base='p.npz')`."""

  def __call__(self, *args, **kwargs):
    from hmm_jax.merge.models import merge
    return merge(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
