# ---
# jupyter:
#   jupytext:
#     cell_markers: '"""'
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
"""
# Recombining models instead of averaging them

Federated averaging sends one mean model to everybody. FedMR keeps a pool of models: what
comes back from the clients is taken apart, and every part is dealt to another slot of the
pool. The mean is looked at, but never trained: Hu et al., *Is Aggregation the Only Choice?
Federated Learning via Layer-wise Model Recombination*, KDD 2024,
[arXiv:2305.10730](https://arxiv.org/abs/2305.10730).
"""

# %%
try:
  import hmm_jax
except ImportError:
  import pathlib
  # The checkout that this notebook lies in; the released package, where it lies alone.
  source = '..' if pathlib.Path('../setup.cfg').exists() else 'hmm_jax'
  print(f'installing {source}')
  # %pip install -q {source}
  import hmm_jax  # noqa: F401

# %%
import os

import jax
import matplotlib.pyplot as plt
import numpy as np

from hmm_jax import tree
from hmm_jax.client import mappers
from hmm_jax.client.scoring import score_rows
from hmm_jax.experiment import build, federation
from hmm_jax.experiment import config as configs
from hmm_jax.experiment.trainer import Trainer
from hmm_jax.merging import recombine

# The project's tests run this notebook with few rounds.
SMOKE = os.environ.get('HMM_SMOKE') == '1'
ROUNDS = 10 if SMOKE else 150

# %% [markdown]
"""
## What moves

Six models, each filled with its own number, are recombined once. A column is a tensor of
the network, a row a slot of the pool, the color the model that a value came from. By
`tensors`, every column is shuffled by itself; `layers` keep a module's weight and bias
together; one segment is the whole model, which only changes slots.
"""

# %%
config = configs.configure({
    'algorithm': 'fedmr', 'model': 'cnn', 'cnn.size': 'small', 'partition.alpha': 0.1,
    'partition.min_size': 1 if SMOKE else 5, 'participation': 6, 'rounds': ROUNDS,
    'eval_every': ROUNDS // 10, 'local.epochs': 2, 'local.lr': 0.02, 'seeds': 3,
    'subset': 0.2 if SMOKE else 1.0})
data = federation.dataset(config)
federated = federation.federation(config, data)
model = build.model(config, data, federated)

shapes = jax.eval_shape(model.init, jax.random.key(0))
pool = jax.tree.map(lambda x: np.arange(6, dtype=np.float32), shapes)
kinds = {'tensors': recombine.tensors, 'layers': recombine.layers,
         'one segment': recombine.segments(1)}
figure, axes = plt.subplots(1, len(kinds), figsize=(3 * len(kinds), 2.5), sharey=True)
for axis, (name, units) in zip(axes, kinds.items(), strict=True):
  unit = units(model, shapes)
  moved = recombine.recombine(
      jax.random.key(0), pool, unit, returned=np.ones(6, bool),
      chance=np.ones(1 + max(jax.tree.leaves(unit))))
  axis.imshow(np.stack(jax.tree.leaves(moved), axis=1), cmap='tab10')
  axis.set(title=name, xlabel='tensor', xticks=[], yticks=range(6))
axes[0].set(ylabel='slot')
plt.show()

# %% [markdown]
"""
Nothing is made or lost: in every column each number is there once, so the mean of the
pool is what it was. What changes is where the next local training begins.

## Training

Twenty clients hold skewed shares of scikit-learn's digits; six of them train in a round.
FedMR and federated averaging send the same bytes.
"""


# %%
def train(**settings):
  """Returns the rounds, test accuracies [seeds, evaluations] and the last models of the seeds."""
  changed = configs.updated(config, settings, 'the settings')
  experiment = build.experiment(changed, data, federated)
  trainer, accuracy = Trainer(experiment), {}
  for states, r, _, _ in trainer.rounds(trainer.initial(), 0):
    views = [trainer.views(states, s) for s in range(3)]
    accuracy[r] = [experiment.evaluate(v).metrics['global/test/accuracy'] for v in views]
  return list(accuracy), np.array(list(accuracy.values())).T, [v['global'] for v in views]


settings = {
    'FedAvg': {'algorithm': 'fedavg'},
    'FedMR, tensors': {},
    'FedMR, layers': {'fedmr.granularity': 'layer'},
    'FedMR, whole models': {'fedmr.granularity': 'segment', 'fedmr.segments': 1},
}
runs = {name: train(**settings[name]) for name in list(settings)[:2 if SMOKE else None]}
for name, (rounds, accuracy, _) in runs.items():
  mean, std = accuracy.mean(0), accuracy.std(0, ddof=1)
  plt.errorbar(rounds, mean, std, capsize=2, label=name)
  print(f'{name:20} {mean[-1]:.3f} ± {std[-1]:.3f}')
plt.xlabel('round')
plt.ylabel('test accuracy of the mean model, ± std over 3 seeds')
plt.grid(alpha=0.3)
plt.legend()
plt.show()

# %% [markdown]
"""
## How flat is the minimum?

The paper says that FedMR ends in a flatter minimum. We move each final model along random
directions, scaled tensor by tensor to its own length, and see how the loss on all training
examples grows.
"""

# %%
train_rows = np.unique(np.concatenate([
    index[:size] for index, size in zip(federated.clients.index, federated.clients.size)]))
examples = jax.device_put(federated.examples)
distances = np.linspace(0, 0.5, 2 if SMOKE else 6)
DRAWS = 1 if SMOKE else 5


@jax.jit
def moved_loss(variables, distance, key):
  """Returns the loss after a random step of so many times each tensor's length."""
  keys = jax.random.split(key, len(jax.tree.leaves(variables)))
  noise = jax.tree.map(lambda x, k: jax.random.normal(k, x.shape), variables,
                       jax.tree.unflatten(jax.tree.structure(variables), list(keys)))
  step = jax.tree.map(lambda x, n: distance * n * (x**2).mean()**0.5, variables, noise)
  scores = score_rows(model, mappers.one_by_one(), tree.add(variables, step),
                      examples, train_rows, 512)
  return scores['loss'].mean()


for name, (_, _, finals) in runs.items():
  loss = np.array([[np.mean([moved_loss(v, d, jax.random.key(k)) for k in range(DRAWS)])
                    for d in distances] for v in finals])
  plt.errorbar(distances, loss.mean(0), loss.std(0, ddof=1), capsize=2, label=name)
plt.xlabel('distance, relative to the length of each tensor')
plt.ylabel('training loss, ± std over 3 seeds')
plt.grid(alpha=0.3)
plt.legend()
plt.show()

# %% [markdown]
"""
On this small problem, and after so few rounds, shuffling tensors or layers gains no
accuracy over averaging. But the loss around what FedMR finds rises more slowly.

From the command line, with checkpoints and plots:
`python -m hmm_jax.main --config.algorithm=fedmr --config.fedmr.granularity=layer`; the study
on Fashion-MNIST is `experiments/fedmr.py`.
"""
