"""Built-in data sets without files: scikit-learn's digits, and a Gaussian mixture."""

import math

import numpy as np

from hmm_jax.registry import Setting, Source
from hmm_jax.types import Dataset, InputError

_MOST_NUMBERS = 2**30  # 4 GiB


def digits() -> Dataset:
  """Returns scikit-learn's 1,797 hand-written digits: uint8 [D, 8, 8, 1], 0 to 16.

  Reference: E. Alpaydin, C. Kaynak. "Optical Recognition of Handwritten Digits".
  UCI Machine Learning Repository, 1998.
  """
  from sklearn import datasets
  images, labels = datasets.load_digits(return_X_y=True)
  x = images.astype(np.uint8).reshape(-1, 8, 8, 1)
  y = labels.astype(np.int32)
  return Dataset('digits', x, y, x[:0].copy(), y[:0].copy(), classes=10)


def synthetic(*, rows: int, classes: int, shape: tuple[int, ...], seed: int) -> Dataset:
  """Draws a balanced Gaussian mixture: one prototype per class, plus unit noise.

  Args:
    rows: D training examples; D // 5 more form the test split.
    classes: C.
    shape: of one example, such as (8, 8, 1).
    seed: of the prototypes and the examples.

  Returns:
    A Dataset of float32 inputs.

  Raises:
    InputError: an axis is no whole number above 0, or the numbers are too many.
  """
  if not shape or any(type(size) is not int or size < 1 for size in shape):
    raise InputError(f'got synthetic.shape={shape}; expected whole numbers of at least 1')
  if (numbers := (rows + rows // 5 + classes) * math.prod(shape)) > _MOST_NUMBERS:
    raise InputError(f'got synthetic.rows={rows} with synthetic.classes={classes} and '
                     f'synthetic.shape={shape}, which is {numbers:,} numbers; expected at most '
                     f'{_MOST_NUMBERS:,}')
  rng = np.random.default_rng(seed)
  prototypes = rng.standard_normal((classes, *shape), np.float32)
  # Of norm about 3, so that the task is as hard in many dimensions as in few.
  prototypes *= np.float32(3 / np.sqrt(np.prod(shape)))

  def split(count):
    y = rng.permutation(np.arange(count, dtype=np.int32) % classes)
    return prototypes[y] + rng.standard_normal((count, *shape), np.float32), y

  x_train, y_train = split(rows)
  x_test, y_test = split(rows // 5)
  return Dataset('synthetic', x_train, y_train, x_test, y_test, classes)


DIGITS = Source(
    'digits', lambda path, settings, data_dir: digits(),
    summary="scikit-learn's 1,797 hand-written digits, 8x8 pixels, 10 classes",
    paper='Alpaydin, Kaynak. UCI Machine Learning Repository 1998')
SYNTHETIC = Source(
    'synthetic', lambda path, settings, data_dir: synthetic(**settings),
    {'rows': Setting(2000, 'training examples; the test split is a fifth of that', at_least=1),
     'classes': Setting(10, 'number of classes', at_least=1),
     'shape': Setting((8, 8, 1), 'shape of one example'),
     'seed': Setting(0, 'seed of the examples', at_least=0)},
    summary='a Gaussian mixture with one component per class')
