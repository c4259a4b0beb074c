"""Perceptrons of any depth layer by layer, and merges by what their layers take in and put out."""

import numpy as np


def layers(variables):
  """Returns {path: (kernel, bias)} in float64, the head last."""
  params = variables['params']
  found = {f'trunk/{name}': params['trunk'][name] for name in sorted(params.get('trunk', ()))}
  found['head'] = params['head']
  return {path: tuple(np.asarray(layer[name], np.float64) for name in ('kernel', 'bias'))
          for path, layer in found.items()}


def run(net, x):
  """Returns {path: (inputs, outputs)} of each layer."""
  seen = {}
  for path, (kernel, bias) in net.items():
    seen[path] = x, x @ kernel + bias
    x = np.maximum(seen[path][1], 0)
  return seen


def correlations(a, b, path, x):
  """Returns the correlation of each output of a layer of a with each of b's."""
  both = [run(net, x)[path][1] for net in (a, b)]
  count = both[0].shape[1]
  return np.corrcoef(*both, rowvar=False)[:count, count:]


def ridge_regression(inputs, outputs, start, ridge):
  """Fits outputs by inputs [R, F]; `ridge` times their mean square pulls the weights to `start`.

  The pull is F rows more, whose error is the way from the start.
  """
  weight = np.sqrt(ridge * np.square(inputs).sum() / inputs.shape[1])
  rows = np.vstack([inputs, weight * np.eye(inputs.shape[1])])
  return np.linalg.lstsq(rows, np.vstack([outputs, weight * start]), rcond=None)[0]


def repair(merged, nets, weights, x):
  """Rescales the outputs of all layers but the last, from the inputs on."""
  merged, runs = dict(merged), [run(net, x) for net in nets]
  for path in [*merged][:-1]:
    now = run(merged, x)[path][1]
    mean, deviation = (np.dot(weights, [of(seen[path][1], axis=0) for seen in runs])
                       for of in (np.mean, np.std))
    factor = deviation / now.std(axis=0)
    kernel, bias = merged[path]
    merged[path] = kernel * factor, (bias - now.mean(axis=0)) * factor + mean
  return merged
