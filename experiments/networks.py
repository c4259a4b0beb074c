"""Every network against PyTorch: seconds of 2 clients that train side by side on two cores.

  python -m venv ../torch && ../torch/bin/pip install torch numpy
  python experiments/speed.py --workload=nets --torch=../torch/bin/python [--nets=lenet,vgg16]
    [--batches=10,50] [--optimizers=momentum]

PyTorch trains by a plain loop in two processes of one thread, hmm_jax runs a round of
federated averaging on two devices. Rounds alternate; a row shows the median of five of each
and their ratio. The last column is the largest difference of the losses of three steps from
equal variables on equal batches, without dropout.
"""

from collections.abc import Callable, Sequence
import json
import os
import pathlib
import subprocess
import tempfile
from typing import NamedTuple

import jax
import numpy as np

from hmm_jax.algorithms.parts import Parts
from hmm_jax.client import losses
from hmm_jax.client.local import descent
from hmm_jax.experiment import build
from hmm_jax.types import Batch, Dataset, InputError

CLASSES, ROUNDS = 10, 5
BATCHES, OPTIMIZERS = ('10', '32', '50', '128'), ('sgd', 'momentum', 'adamw')


class Net(NamedTuple):
  """A network: its settings, the shape of an example, and how many steps are timed at batch 32."""

  model: str
  setting: tuple
  shape: tuple[int, ...]
  steps: int


NETS = {
    'mlp': Net('mlp', ('mlp.hidden', (200,)), (32, 32, 3), 200),
    'lenet': Net('cnn', ('cnn.size', 'lenet'), (32, 32, 3), 60),
    'pfllib': Net('cnn', ('cnn.size', 'pfllib'), (32, 32, 3), 20),
    'small': Net('cnn', ('cnn.size', 'small'), (32, 32, 3), 20),
    'pfl': Net('cnn', ('cnn.size', 'pfl'), (32, 32, 3), 10),
    'resnet9': Net('resnet', ('resnet.size', '9-narrow'), (32, 32, 3), 20),
    'resnet20': Net('resnet', ('resnet.size', '20'), (32, 32, 3), 10),
    'resnet18': Net('resnet', ('resnet.size', '18'), (32, 32, 3), 2),
    'vgg16': Net('vgg16', ('vgg16.norm', 'batch'), (32, 32, 3), 3),
    'lstm': Net('lstm', ('lstm.hidden', (256, 256)), (80,), 6),
    'vit': Net('vit', ('vit.size', 'micro'), (28, 28, 1), 10),
    'gpt': Net('gpt', ('gpt.layers', 4), (80,), 5),
}


def examples(shape: tuple[int, ...], rows: int) -> Dataset:
  """Draws examples without meaning for two clients: images, or tokens of 90 kinds."""
  rng = np.random.default_rng(0)
  count = 2 * rows
  if len(shape) == 1:
    x = rng.integers(90, size=(count, *shape), dtype=np.int32)
    x[0, 0] = 89
  else:
    x = rng.normal(size=(count, *shape)).astype(np.float32)
  y = rng.integers(CLASSES, size=count).astype(np.int32)
  y[:CLASSES] = np.arange(CLASSES)
  return Dataset('speed', x, y, x[:10], y[:10], classes=CLASSES,
                 client=np.repeat([0, 1], rows))


def changes(net: Net, batch: int, optimizer: str) -> dict:
  """Returns what a config changes for one row of the table."""
  step = {'sgd': {'local.lr': 0.01}, 'momentum': {'local.lr': 0.01, 'local.momentum': 0.9},
          'adamw': {'local.optimizer': 'adamw', 'local.lr': 1e-3, 'local.weight_decay': 0.01}}
  return {'model': net.model, net.setting[0]: net.setting[1], 'participation': 0,
          'local.batch': batch, 'local.steps': max(2, net.steps * 32 // batch), 'local.epochs': 0,
          'rounds': ROUNDS + 1,
          'partition.min_size': 1, **step[optimizer]}


def check(nets: Sequence[str], batches: Sequence[str], optimizers: Sequence[str]):
  """Raises InputError if a row is asked for that there isn't."""
  for flag, given, choices in (('nets', nets, NETS), ('optimizers', optimizers, OPTIMIZERS)):
    for name in given:
      if name not in choices:
        raise InputError(f'got --{flag}={name}; expected any of {",".join(choices)}')
  for batch in batches:
    if not batch.isdecimal() or int(batch) < 1:
      raise InputError(f'got --batches={batch}; expected numbers of examples, such as 10,50')


class Torch:
  """A PyTorch process that answers tasks.

  Raises:
    InputError: the interpreter has no PyTorch.
  """

  def __init__(self, python: str):
    script = pathlib.Path(__file__).with_name('torch_networks.py')
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    try:
      subprocess.run([python, '-c', 'import torch'], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
      raise InputError(f'got --torch={python}; expected a Python interpreter that has PyTorch, as '
                       'experiments/networks.py shows') from error
    self._process = subprocess.Popen([python, str(script)], stdin=subprocess.PIPE,
                                     stdout=subprocess.PIPE, text=True, env=environment)

  def answer(self, net: Net, optimizer: str, **task):
    shape = (90,) if len(net.shape) == 1 else (net.shape[-1], *net.shape[:-1])
    settings = [] if net.model in ('vgg16', 'lstm') else [net.setting[1]]
    task |= {'model': net.model, 'settings': settings, 'shape': shape, 'classes': CLASSES,
             'optimizer': optimizer}
    self._process.stdin.write(json.dumps(task) + '\n')
    self._process.stdin.flush()
    return json.loads(self._process.stdout.readline())

  def close(self):
    self._process.stdin.close()
    self._process.wait()


def difference(parts: Parts, net: Net, optimizer: str, peer: Torch, batch: int) -> float:
  """Returns the largest difference between the losses of three steps here and in PyTorch."""
  network = parts.model
  undropped = network._replace(
      apply=lambda *args, key=None, **mode: network.apply(*args, key=None, **mode))
  update = jax.jit(descent(losses.supervised(undropped), parts.optimizer()))
  data, start = examples(net.shape, 2 * batch), network.init(jax.random.key(0))
  x = data.x_train[:3 * batch].reshape(3, batch, *net.shape)
  y = data.y_train[:3 * batch].reshape(3, batch)
  carry, ours = (start, parts.optimizer().init(start['params'])), []
  for one in zip(x, y, strict=True):
    carry, value = update(carry, (start, ()), Batch(*one, np.ones(batch, bool)), None)
    ours.append(float(value))
  with tempfile.TemporaryDirectory() as folder:
    file = os.path.join(folder, 'start.npz')
    np.savez(file, x=x, y=y, **{'/'.join(step.key for step in path): np.asarray(leaf)
                                for path, leaf in jax.tree_util.tree_leaves_with_path(start)})
    theirs = peer.answer(net, optimizer, file=file)
  return float(np.abs(np.subtract(ours, theirs)).max())


def table(configure: Callable, trained: Callable, python: str, *, nets: Sequence[str],
          batches: Sequence[str], optimizers: Sequence[str]):
  """Prints a row for each network, batch size and optimizer, and the mean of the ratios.

  Args:
    configure: (changes) -> the config of a run.
    trained: (config, data) -> (federation, experiment, iterator over seconds of rounds).
    python: the interpreter that has PyTorch.
  """
  peer, ratios = Torch(python), []
  print(f'{"network":9} {"batch":>5} {"optimizer":9} {"steps":>5}  PyTorch  hmm_jax  ratio  '
        'difference', flush=True)
  for name in nets:
    for batch in map(int, batches):
      for optimizer in optimizers:
        config = configure(changes(NETS[name], batch, optimizer))
        ratios.append(ratio(name, optimizer, config, trained, peer))
  peer.close()
  mean = np.exp(np.mean(np.log(ratios)))
  print(f'{len(ratios)} ratios: geometric mean {mean:.2f}, largest {max(ratios):.2f}')


def ratio(name: str, optimizer: str, config, trained: Callable, peer: Torch) -> float:
  """Measures and prints one row; returns the seconds here, as a share of PyTorch's."""
  net, batch, steps = NETS[name], config.local.batch, config.local.steps
  rows = max(CLASSES, 2 * batch)
  data = examples(net.shape, rows)
  federated, _, rounds = trained(config, data)
  parts = Parts(config, build.model(config, data, federated), build.mapper(config), federated)
  apart = difference(parts, net, optimizer, peer, batch)
  task = {'batch': batch, 'steps': steps, 'rows': rows}
  next(rounds)  # Compiles.
  peer.answer(net, optimizer, begin=True, **task)
  ours, theirs = np.median([
      (next(rounds), peer.answer(net, optimizer, begin=False, **task)) for _ in range(ROUNDS)],
      axis=0)
  print(f'{name:9} {batch:5} {optimizer:9} {steps:5} {theirs:8.3f} {ours:8.3f} '
        f'{ours / theirs:6.2f}  {apart:.1e}', flush=True)
  jax.clear_caches()
  return ours / theirs
