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
# A playground of merges

Eighteen ways to make one model of several: when does a mean of models work, what helps when it
does not, and how far is one operator from another on the same models?
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
from hmm_jax.merging import OPERATORS
from hmm_jax.merging.alignment import permutation, weight_matching
from hmm_jax.registry import REQUIRED
from hmm_jax.report import landscape

# The project's tests run this notebook with few rounds.
SMOKE = os.environ.get('HMM_SMOKE') == '1'
EPOCHS = 2 if SMOKE else 40


# %%
def train(**settings):
  """Trains on scikit-learn's digits; returns the network, the federation and the last states."""
  config = configs.configure({
      'mlp.hidden': (64,), 'rounds': EPOCHS, 'eval_every': EPOCHS, 'local.epochs': 1,
      'local.lr': 0.1, **settings})
  data = federation.dataset(config)
  federated = federation.federation(config, data)
  trainer = Trainer(build.experiment(config, data, federated))
  start = trainer.initial()
  *_, last = trainer.rounds(trainer.initial(), 0)
  return build.model(config, data, federated), federated, start, last[0]


# %% [markdown]
"""
## Two models from different starts

Both are good, and between them lies a barrier: their hidden units stand in different orders.
Weight matching (Git Re-Basin) brings the second one's units into the order of the first. It says
the same of every input as before, and most of the barrier is gone.
"""

# %%
net, federated, _, states = train(algorithm='centralized', seeds=2)
a, b = (tree.take(states.variables, s) for s in range(2))
symmetry = net.symmetry()
matching = weight_matching.match_weights(jax.random.key(0), symmetry, a, b)
moved = permutation.permute(symmetry, b, matching)
for name, other in (('as it is', b), ('matched', moved)):
  line = landscape.interpolate(net, a, other, federated.examples, federated.test.rows,
                               mapper=mappers.one_by_one())
  print(f'{name:9} barrier {line.barrier:.3f}, accuracy half way '
        f'{line.accuracy[len(line.accuracy) // 2]:.3f}')
  plt.plot(line.position, line.loss, label=name)
plt.xlabel('from the first model to the second')
plt.ylabel('test loss')
plt.legend()
plt.show()

# %% [markdown]
"""
## Every operator on the same models

Five clients with skewed shares train from one start, without ever meeting. Each operator of
`hmm_jax/merging` merges their models, with its default settings; those that need data read
validation examples. (Given weights, and spherical interpolation of two models, are left out.)
"""

# %%
net, federated, start, states = train(
    algorithm='merging', clients=5, participation=0, seeds=1, **{'partition.alpha': 0.5})
base, stacked = (tree.take(x, 0) for x in (start.base, states.stacked))
examples, valid, test = jax.device_put(
    (federated.examples, federated.validation.rows, federated.test.rows))
rows = valid[:len(valid) // 16 * 16].reshape(-1, 16)


@jax.jit
def accuracy(params):
  scores = score_rows(net, mappers.one_by_one(), {'params': params}, examples, test, 512)
  return scores['accuracy'].mean()


def merge(name):
  """Returns what one operator makes of the clients' models."""
  operator, key = OPERATORS[name], jax.random.key(0)
  made = operator.make()
  if 'network' not in operator.needs:
    return jax.jit(made)(stacked['params'], base['params'], key)
  return jax.jit(lambda *given: made(net, *given, key))(stacked, base, examples, rows)


chosen = [name for name, operator in OPERATORS.items() if 'two models' not in operator.needs
          and REQUIRED not in [setting.default for setting in operator.settings.values()]]
alone = [float(accuracy(params)) for params in tree.unstack(stacked['params'])]
scores = {name: float(accuracy(merge(name))) for name in chosen[:4 if SMOKE else None]}
for name, score in sorted(scores.items(), key=lambda item: -item[1]):
  print(f'{name:20} {score:.3f}   {OPERATORS[name].summary}')
plt.figure(figsize=(7, 4))
plt.barh(list(scores), list(scores.values()))
plt.axvspan(min(alone), max(alone), color='gray', alpha=0.3, label='the clients alone')
plt.gca().invert_yaxis()
plt.xlabel('test accuracy')
plt.legend()
plt.show()

# %% [markdown]
"""
## How far along a task vector?

A task vector is a model less its start. Their sum is scaled by one number, which has to be found:
too little keeps the start, too much leaves the region where all of them are good. TIES keeps the
largest entries that agree in sign.
"""

# %%
scales = np.linspace(0, 1.5, 4 if SMOKE else 16)
for name in ('task_arithmetic', 'ties'):
  along = [float(accuracy(OPERATORS[name].make(scale=float(scale))(
      stacked['params'], base['params'], jax.random.key(0)))) for scale in scales]
  plt.plot(scales, along, marker='.', label=name)
plt.xlabel('scale')
plt.ylabel('test accuracy')
plt.legend()
plt.show()

# %% [markdown]
"""
Between models of one start no order has to be found: matching by weights gives the plain mean.
TIES, which reads no data, is in front here; soups, PLeaS, RegMean and AdaMerging, which read a
little, follow. Those that drop entries at random are last with the settings they come with. One
seed of a small problem: a playground, no ranking.

From the command line, on checkpoints, safetensors files or npz trees:
`python -m hmm_jax.merge --method=ties --models=A,B --base=P --out=DIR`, and
`python -m hmm_jax.merge --method=list` for all of them. In a federation:
`python -m hmm_jax.main --config.algorithm=merging --config.merging.method=ties`.
"""
