"""Images of several kinds, such as inverted ones above real ones."""

from collections.abc import Mapping

from matplotlib.figure import Figure
import numpy as np

from hmm_jax.report.style import new, styled


@styled
def images(kinds: Mapping[str, np.ndarray], columns: int = 16) -> Figure:
  """Draws images [N, H, W, C] of each kind under its name, with each image's contrast stretched.

  If there are neither one nor three channels, the first channel is drawn.
  """
  heights = [-(-len(x) // columns) for x in kinds.values()]
  figure = new(columns / 2, (sum(heights) + len(kinds)) / 2)
  grid = figure.subplots(len(kinds), 1, squeeze=False, height_ratios=heights)
  for axes, (name, stack) in zip(grid[:, 0], kinds.items(), strict=True):
    axes.imshow(_mosaic(np.asarray(stack), columns), cmap='gray', vmin=0, vmax=1)
    axes.set_title(name)
    axes.axis('off')
  return figure


def _mosaic(stack: np.ndarray, columns: int) -> np.ndarray:
  """Puts images [N, H, W, C] beside each other, in white frames."""
  x = stack if stack.shape[-1] == 3 else stack[..., :1]
  low, high = (f(x, axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
  x = np.pad((x - low) / np.maximum(high - low, 1e-12), [(0, 0), (1, 1), (1, 1), (0, 0)],
             constant_values=1)
  x = np.pad(x, [(0, -len(x) % columns), (0, 0), (0, 0), (0, 0)], constant_values=1)
  rows = x.reshape(-1, columns, *x.shape[1:]).swapaxes(1, 2)
  return rows.reshape(rows.shape[0] * rows.shape[1], -1, x.shape[-1]).squeeze()
