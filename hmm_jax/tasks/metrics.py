"""Further metrics, of predictions on the host: scikit-learn's by name, and somebody's own."""

from collections.abc import Callable, Mapping
import math
import textwrap

import numpy as np

from hmm_jax.registry import is_reference, load, suggestion
from hmm_jax.tasks import TASKS
from hmm_jax.types import InputError, Task

# Metrics of which less is better; of all others, a person's own included, more is.
LOWER = ('loss', 'rmse', 'mae', 'perplexity', 'calibration_error', 'median_absolute_error')
_BINS = 15

# (y, predictions) -> float
Metric = Callable[[np.ndarray, np.ndarray], float]


def lower_is_better(metric: str) -> bool:
  """Tells whether less is better of a metric, VIEW/SPLIT/NAME or NAME."""
  return metric.rpartition('/')[2] in LOWER


def balanced_accuracy(y: np.ndarray, p: np.ndarray) -> float:
  """Returns the mean recall over the classes that occur."""
  from sklearn import metrics
  return metrics.recall_score(y, p.argmax(1), labels=np.unique(y), average='macro')


def f1_macro(y: np.ndarray, p: np.ndarray) -> float:
  """Returns the mean F1 over the classes that occur or are predicted."""
  from sklearn import metrics
  return metrics.f1_score(y, p.argmax(1), average='macro', zero_division=0)


def auroc(y: np.ndarray, p: np.ndarray) -> float:
  """Returns the mean area under the ROC curve of each class, or label, against the others.

  Over those that some examples have and others have not; NaN if there are none.
  """
  from sklearn import metrics
  true = y if y.ndim == 2 else y[:, None] == np.arange(p.shape[1])
  both = [c for c in range(p.shape[1]) if 0 < true[:, c].sum() < len(true)]
  return float(np.mean([metrics.roc_auc_score(true[:, c], p[:, c]) for c in both] or [math.nan]))


def average_precision(y: np.ndarray, p: np.ndarray) -> float:
  """Returns the mean average precision of the labels that occur; NaN if there are none."""
  from sklearn import metrics
  some = [c for c in range(p.shape[1]) if y[:, c].any()]
  return float(np.mean([metrics.average_precision_score(y[:, c], p[:, c]) for c in some]
                       or [math.nan]))


def calibration_error(y: np.ndarray, p: np.ndarray) -> float:
  """Returns the expected calibration error of the predicted class, over 15 bins of equal width.

  Reference: Guo, Pleiss, Sun, Weinberger. On Calibration of Modern Neural Networks. ICML 2017.
    arXiv:1706.04599.
  """
  confidence, right = p.max(1), p.argmax(1) == y
  # As in the paper, bin m holds confidences above (m - 1) / M, and up to m / M.
  place = np.clip(np.ceil(confidence * _BINS) - 1, 0, _BINS - 1).astype(int)
  gap = np.bincount(place, np.float64(confidence) - right, _BINS)
  return float(np.abs(gap).sum() / len(y))


def median_absolute_error(y: np.ndarray, values: np.ndarray) -> float:
  """Returns the median size of the errors, mean over targets."""
  from sklearn import metrics
  return metrics.median_absolute_error(y, values)


NAMED: Mapping[str, Mapping[str, Metric]] = {
    'classification': {'balanced_accuracy': balanced_accuracy, 'f1_macro': f1_macro,
                       'auroc': auroc, 'calibration_error': calibration_error},
    'multilabel': {'auroc': auroc, 'average_precision': average_precision},
    'regression': {'median_absolute_error': median_absolute_error},
    'next_token': {},
}

# Every metric that a run can have, whatever its task.
BUILT_IN = tuple(dict.fromkeys(
    name for kind in TASKS.values() for name in (*kind.metrics, *NAMED[kind.name])))


def named(text: str, task: Task, y: np.ndarray, classes: int) -> dict[str, Metric]:
  """Returns the metrics that a text names, separated by commas: {name: metric}.

  Each is a name in NAMED, or refers to a function (y, predictions) -> number of one's own, which
  is tried on random predictions.

  Args:
    text: such as 'auroc,my_metrics.py:cost'.
    task: of the run.
    y: labels or targets of some examples, to try it on.
    classes: width of the outputs.

  Raises:
    InputError: a name is unknown, or a function fails.
  """
  known, chosen = NAMED[task.name], {}
  for name in filter(None, (part.strip() for part in text.split(','))):
    if name in known:
      chosen[name] = known[name]
    elif is_reference(name):
      chosen[name.rpartition(':')[2]] = _own(name, task, y, classes)
    else:
      raise InputError(f'got metrics={name} with task={task.name}; expected any of '
                       f'{", ".join([*known, "package.module:FUNCTION, path/file.py:FUNCTION"])}'
                       + suggestion(name, known))
  return chosen


def _own(reference, task, y, classes) -> Metric:
  function = load('metrics', reference, Callable)

  def metric(y, predictions):
    try:
      return float(function(y, predictions))
    except Exception as error:  # It is the user's own code.
      raise InputError(f'got metrics={reference}, which fails with {type(error).__name__}: '
                       f'{textwrap.shorten(str(error), 200)}; expected a function (y, predictions) '
                       '-> number') from error

  shape = (*y.shape, classes) if y.dtype.kind == 'i' else y.shape
  drawn = np.random.default_rng(0).uniform(0.1, 1, shape).astype(np.float32)
  if task.name in ('classification', 'next_token'):
    drawn /= drawn.sum(-1, keepdims=True)
  metric(y, drawn)
  return metric
