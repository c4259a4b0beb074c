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
# Merging what agrees, distilling what diverges, without data

Models that were trained apart are merged where they have learned alike; the others teach the
merge what they know, on inputs made up from the statistics that their normalization layers have
kept: Liu et al., *Domain-Adaptive Model Merging across Disconnected Modes*, ICASSP 2026,
[arXiv:2603.05957](https://arxiv.org/abs/2603.05957). The paper's text and code were not at
hand; what runs here is a reconstruction.
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
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from hmm_jax import tree
from hmm_jax.experiment import build, federation
from hmm_jax.experiment import config as configs
from hmm_jax.experiment.trainer import Trainer
from hmm_jax.merging import cluster
from hmm_jax.merging.batch_norm import pool
from hmm_jax.merging.data_free import invert
from hmm_jax.server import pseudo_data

# The project's tests run this notebook with few rounds.
SMOKE = os.environ.get('HMM_SMOKE') == '1'
ROUNDS = 1 if SMOKE else 10
STEPS = 5 if SMOKE else 300
SEEDS = 1 if SMOKE else 3

# %% [markdown]
"""
## Ten clients who never meet

They hold skewed shares of scikit-learn's digits and train one small convolutional network with
BatchNorm, from one start. The cosines between what they have learned say who is like whom; the
largest cluster is the core.
"""

# %%
config = configs.configure({
    'algorithm': 'dmm', 'model': 'fusion', 'clients': 10, 'participation': 0,
    'partition.alpha': 0.3, 'partition.min_size': 8, 'local.epochs': 2, 'local.batch': 16,
    'local.lr': 0.05, 'rounds': ROUNDS, 'eval_every': ROUNDS, 'seeds': SEEDS,
    'dmm.batch': 128, 'dmm.batches': 2, 'dmm.shift': 1, 'dmm.steps': 10 * STEPS // 6,
    'inversion.steps': STEPS, **({'fusion.channels': (4,), 'subset': 0.5} if SMOKE else {})})
data = federation.dataset(config)
federated = federation.federation(config, data)
experiment = build.experiment(config, data, federated)
trainer = Trainer(experiment)
start = trainer.initial()
*_, last = trainer.rounds(trainer.initial(), 0)
trained = last[0]

first, stacked = (tree.take(states, 0) for states in (start.base, trained.stacked))
deltas = jax.tree.map(lambda x, start: x - start[None], stacked['params'], first['params'])
similarity = cluster.similarities(deltas)
core = cluster.largest_cluster(similarity)
plt.figure(figsize=(4, 3))
plt.imshow(jnp.where(jnp.eye(len(core), dtype=bool), jnp.nan, similarity), cmap='viridis')
plt.colorbar(label='cosine of what two clients have learned')
plt.yticks(range(len(core)))
for label, inside in zip(plt.gca().get_yticklabels(), core, strict=True):
  label.set_color('red' if inside else 'black')
plt.title('the core in red')
plt.show()

# %% [markdown]
"""
## What normalization layers remember

From noise, a batch of images is moved until its statistics at every BatchNorm are the running
ones: those of the clients' average, pooled over all of them, or those of one client. Above, what
is found; the numbers are the distances of noise, of what was found and of real images.
"""

# %%
net = build.model(config, data, federated)
share = federated.clients.size / federated.clients.size.sum()
pooled = {'params': tree.mix(share, stacked['params']),
          **pool.pool(share, {'batch_stats': stacked['batch_stats']})}
invert_batch = invert.inversion(net.bare, steps=STEPS, lr=0.1, terms=invert.Terms(),
                                augment=invert.as_they_are)
real, _ = pseudo_data.real_examples(net, count=64)(pooled, stacked, federated, jax.random.key(1))
noise = invert.noise(jax.random.key(2), real, 64)
labels = jnp.zeros(64, jnp.int32)
pictures = {'real': real}
for name, model in {'the merge': pooled, 'client 0': tree.take(stacked, 0)}.items():
  found, _ = jax.jit(invert_batch)(model, noise, labels, jax.random.key(3))
  distances = [float(invert.statistics_loss(net.bare, model, x)) for x in (noise, found, real)]
  print(f'{name:10}', *(f'{d:8.2f}' for d in distances))
  pictures[name] = found

figure, grid = plt.subplots(len(pictures), 1, figsize=(9, 3))
for axes, (name, images) in zip(grid, pictures.items(), strict=True):
  axes.imshow(np.hstack(images[:14, ..., 0]), cmap='gray')
  axes.set_title(name, fontsize='small')
  axes.axis('off')
plt.show()

# %% [markdown]
"""
## Ablation

The same trained clients are merged again and again. Noise is the baseline, without which nobody
would know what inverted inputs do; real examples, which the method does not have, are the upper
bound.
"""

# %%
variants = {
    'core': {'dmm.inputs': 'none', 'dmm.buffers': 'core'},
    'pooled buffers': {'dmm.inputs': 'none'},
    'distilled on noise': {'dmm.inputs': 'noise'},
    'on inverted inputs': {},
    'each inverted': {'dmm.statistics_of': 'each', 'dmm.batches': 1},
    'on real examples': {'dmm.inputs': 'real'},
    'all models teach': {'dmm.teachers': 'all'},
}


def merged(**settings):
  """Returns the test accuracy of each seed after a merge of the trained clients."""
  changed = configs.updated(config, settings, 'the settings')
  other = build.experiment(changed, data, federated)
  merging = Trainer(other)
  states = merging.initial()._replace(round=trained.round, stacked=trained.stacked)
  states, _ = merging.finish(states)
  return np.array([other.evaluate(merging.views(states, s)).metrics['global/test/accuracy']
                   for s in range(SEEDS)])


accuracy = {name: merged(**variants[name]) for name in list(variants)[::4 if SMOKE else 1]}
for name, values in accuracy.items():
  print(f'{name:20} {values.mean():.3f} ± {values.std(ddof=1) if SEEDS > 1 else 0:.3f}')
plt.figure(figsize=(7, 3))
plt.barh(list(accuracy), [values.mean() for values in accuracy.values()],
         xerr=[values.std(ddof=1) if SEEDS > 1 else 0 for values in accuracy.values()])
plt.gca().invert_yaxis()
plt.xlabel(f'test accuracy, ± std over {SEEDS} seeds')
plt.show()

# %% [markdown]
"""
On this small problem, pooling the buffers hurts the core's merge: what models that share no
features remember does not describe the features of their merge. What was found is far from meeting
such statistics, as the distances above say, and distilled on it the merge is about as good as on
noise. The statistics of a single client are met better than by real examples, and inputs inverted
from each are as good as those. Letting all models teach, the core's included, helps on the merge's
statistics too; the last three bars are within their spread.

From the command line, with checkpoints and plots:
`python -m hmm_jax.main --config.algorithm=dmm --config.model=resnet`; the study is
`experiments/dmm.py`, and `experiments/ladder.py` merges what one of its runs has trained.
"""
