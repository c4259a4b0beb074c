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
# How much communication does decentralized learning need?

Sixteen agents hold skewed shares of scikit-learn's digits. There is no server: now and
then an agent takes another's model and averages it with its own. We vary how often, and
when, and merge all models once at the end: Zhu et al., *On the Surprising Effectiveness
of a Single Global Merging in Decentralized Learning*, ICLR 2026,
[arXiv:2507.06542](https://arxiv.org/abs/2507.06542).
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

from IPython.display import display
import jax
import matplotlib.pyplot as plt
import numpy as np

from hmm_jax import tree
from hmm_jax.client import mappers
from hmm_jax.decentralized.topology import topology
from hmm_jax.experiment import build, federation
from hmm_jax.experiment import config as configs
from hmm_jax.experiment.trainer import Trainer
from hmm_jax.report import landscape
from hmm_jax.report.plots import landscapes

# The project's tests run this notebook with few rounds.
SMOKE = os.environ.get('HMM_SMOKE') == '1'
ROUNDS = 10 if SMOKE else 150

# %% [markdown]
"""
## Who talks to whom

A topology makes a mixing matrix for every round: row *i* says how agent *i* mixes the
models it has and receives. Its expected contraction *p* is the share of the agents'
squared distance to their mean that a round takes away, at the least.
"""

# %%
AGENTS = 16
names = ('pull', 'matching', 'ring', 'one_peer_exponential', 'exponential', 'complete')
figure, axes = plt.subplots(1, len(names), figsize=(2.2 * len(names), 2.5))
for axis, name in zip(axes, names, strict=True):
  graph = topology(name, AGENTS)
  axis.imshow(graph.matrix(0, jax.random.key(0)), vmin=0, vmax=0.5)
  axis.set(title=f'{name}\np = {float(graph.contraction()):.2f}', xticks=[], yticks=[])
plt.show()

# %% [markdown]
"""
## Training at different rates

In each round an agent takes ten SGD steps on its own examples. Then, with probability
`rate`, it pulls a random other agent's model. `locals` are the agents' own models on the
test images of all, `merged` is what their average would score at that moment. What was
sent is compared with averaging all models in every round (AllReduce).
"""

# %%
config = configs.configure({
    'algorithm': 'gossip', 'clients': AGENTS, 'partition.alpha': 0.1, 'partition.min_size': 5,
    'rounds': ROUNDS, 'eval_every': ROUNDS, 'seeds': 3, 'local.steps': 10,
    'gossip.topology': 'pull', 'gossip.final_merge': 'none'})
data = federation.dataset(config)
federated = federation.federation(config, data)


def train(**settings):
  """Returns the trained models of the first seed and {metric: [seeds]}."""
  changed = config.copy_and_resolve_references()
  changed.gossip.update(settings)
  experiment = build.experiment(changed, data, federated)
  trainer = Trainer(experiment)
  (states, *_), = trainer.rounds(trainer.initial(), 0)  # One chunk: a single evaluation.
  seeds = range(len(experiment.seeds))
  rows = [experiment.evaluate(trainer.views(states, s)).metrics | trainer.gauges(states, s)
          for s in seeds]
  metrics = {name: np.array([float(row[name]) for row in rows]) for row in rows for name in row}
  return trainer.views(states, 0), metrics


def show(name, metrics):
  values = [f'{metrics[m].mean():.3f} ± {metrics[m].std(ddof=1):.3f}' for m in
            ('locals/test/accuracy', 'merged/test/accuracy', 'realised/share_of_allreduce')]
  print(f'{name:12} locals {values[0]}   merged {values[1]}   share {values[2]}')


by_rate = {}
for rate in (0.2,) if SMOKE else (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0):
  _, by_rate[rate] = train(rate=rate)
  show(f'rate {rate}', by_rate[rate])
_, every_round = train(topology='complete', rate=1.0)
show('every round', every_round)

# %%
share = [m['realised/share_of_allreduce'].mean() for m in by_rate.values()]
for model in ('merged', 'locals'):
  values = np.array([m[f'{model}/test/accuracy'] for m in by_rate.values()])
  plt.errorbar(share, values.mean(1), values.std(1, ddof=1), marker='o', capsize=3, label=model)
plt.axhline(every_round['merged/test/accuracy'].mean(), color='black', linestyle=':',
            label='averaged every round')
plt.xscale('symlog', linthresh=0.01)
plt.xlim(-0.002, 1)
plt.xlabel('share of the bytes of averaging every round')
plt.ylabel('test accuracy, mean ± std over 3 seeds')
plt.grid(alpha=0.3)
plt.legend()
plt.show()

# %% [markdown]
"""
A little communication keeps the models mergeable: their average is far better than
each of them. Without any, models that began differently do not merge.

## When to communicate

Now everybody averages with everybody in one tenth of the run, at rate 0.2 elsewhere. The
bytes are the same wherever that window stands.
"""

# %%
tenth = ROUNDS // 10
windows = {}
for start in (9 * tenth,) if SMOKE else (0, 3 * tenth, 6 * tenth, 9 * tenth):
  window = f'dense@{start}:{start + tenth}'
  _, windows[start] = train(schedule=window)
  show(window, windows[start])

# %% [markdown]
"""
## The loss between the agents

Six agents stand at the corners of a hexagon; every point inside is a weighted mean of
their models. The loss is low in the middle, where nobody is.
"""

# %%
views, _ = train(rate=0.2)
six = tree.take(views['locals'], np.arange(6))
model = build.model(config, data, federated)
surface = landscape.surface(
    model, six, federated.examples, federated.test.rows, mapper=mappers.one_by_one(),
    resolution=2 if SMOKE else 12)
display(landscapes.landscape(surface))

# %% [markdown]
"""
From the command line, with checkpoints, plots and the bytes of every agent:
`python -m hmm_jax.main --config.algorithm=gossip --config.participation=0`; the study on
Fashion-MNIST is `experiments/single_merging.py`.
"""
