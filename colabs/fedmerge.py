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
# A model for each client, merged from a few

Clients whose tasks differ are badly served by one global model. FedMerge trains a few
global models and lets every client have its own weighted mean of them. The weights are
learned with the models, and nothing is tuned on the client: Chen et al., *FedMerge:
Federated Model Merging for Personalization*, AAAI 2026,
[arXiv:2504.06768](https://arxiv.org/abs/2504.06768).
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

import matplotlib.pyplot as plt
import numpy as np

from hmm_jax.data.federate import label_counts
from hmm_jax.experiment import build, federation
from hmm_jax.experiment import config as configs
from hmm_jax.experiment.trainer import Trainer

# The project's tests run this notebook with few rounds.
SMOKE = os.environ.get('HMM_SMOKE') == '1'
ROUNDS = 10 if SMOKE else 150

# %% [markdown]
"""
## Clients whose tasks differ

Twenty clients of scikit-learn's digits in five clusters; a cluster knows three of the ten
classes. A client is tested on test images of its own classes.
"""

# %%
config = configs.configure({
    'algorithm': 'fedmerge', 'participation': 0, 'partition.kind': 'clusters',
    'partition.test_rows': 'alike', 'mlp.hidden': (64,), 'rounds': ROUNDS,
    'eval_every': ROUNDS // 5, 'local.epochs': 1, 'fedmerge.weight_lr': 0.05, 'seeds': 3})
data = federation.dataset(config)
federated = federation.federation(config, data)
plt.imshow(label_counts(federated, data.classes), aspect='auto')
plt.xlabel('class')
plt.ylabel('client')
plt.colorbar(label='training examples')
plt.show()

# %% [markdown]
"""
## Training

In a round each client trains its merge of the global models for one epoch and sends back
how it changed. The server moves the weights first, then the models.
"""


# %%
def train(**settings):
  """Returns each client's test accuracy [seeds, K] at the end, and the weights {round: [K, M]}."""
  changed = configs.updated(config, settings, 'the settings')
  experiment = build.experiment(changed, data, federated)
  trainer, weights = Trainer(experiment), {}
  for states, r, _, _ in trainer.rounds(trainer.initial(), 0):
    weights[r] = trainer.gauges(states, 0).get('weight')
  scores = [experiment.evaluate(trainer.views(states, s)).clients for s in range(3)]
  return np.stack([s['test/accuracy'] for s in scores]), weights


counts = (5,) if SMOKE else (1, 3, 5)
others = {'FedAvg': 'fedavg', 'IFCA, 3 models': 'ifca', 'local': 'local'}
runs = {f'FedMerge, {count} models': train(**{'fedmerge.models': count}) for count in counts}
runs |= {name: train(algorithm=others[name]) for name in list(others)[:1 if SMOKE else None]}
for name, (accuracy, _) in runs.items():
  mean = accuracy.mean(axis=1)
  plt.plot(np.sort(accuracy, axis=1).mean(axis=0), label=name)
  print(f'{name:20} mean over clients {mean.mean():.3f} ± {mean.std(ddof=1):.3f}, '
        f'worst {accuracy.min(axis=1).mean():.3f}')
plt.xlabel('clients, the worst first')
plt.ylabel('accuracy on their own test examples, mean over 3 seeds')
plt.grid(alpha=0.3)
plt.legend()
plt.show()

# %% [markdown]
"""
## Who takes what from which model

Each row of a picture is a client's weights of the five models; clients of one cluster
stand together, four by four.
"""

# %%
_, weights = runs['FedMerge, 5 models']
figure, axes = plt.subplots(1, len(weights), figsize=(2 * len(weights), 4), sharey=True)
for axis, (r, table) in zip(axes, weights.items(), strict=True):
  image = axis.imshow(table, aspect='auto', vmin=0, vmax=1)
  axis.set(title=f'round {r}', xlabel='model', xticks=range(5))
axes[0].set(ylabel='client', yticks=range(0, 20, 4))
figure.colorbar(image, ax=axes, label='weight')
plt.show()

# %% [markdown]
"""
## A newcomer

Three clients join when training is over. They learn their weights only; the models stay
as they are.
"""

# %%
newcomers = np.arange(17, 20)
changed = config.copy_and_resolve_references()
changed.update_from_flattened_dict({'fedmerge.newcomers': 3, 'fedmerge.newcomer_rounds': 40})
experiment = build.experiment(changed, data, federated)
trainer = Trainer(experiment)
*_, (states, *_) = trainer.rounds(trainer.initial(), 0)
joined, _ = trainer.finish(states)
for when, stage in (('with equal weights', states), ('with weights of their own', joined)):
  accuracy = np.stack([experiment.evaluate(trainer.views(stage, s)).clients['test/accuracy']
                       for s in range(3)])[:, newcomers].mean(axis=1)
  print(f'newcomers {when:27} {accuracy.mean():.3f} ± {accuracy.std(ddof=1):.3f}')

# %% [markdown]
"""
From the command line, with every client's scores in `clients.csv`:
`python -m hmm_jax.main --config.algorithm=fedmerge --config.participation=0
--config.references=fedavg,local`; the study on Fashion-MNIST is `experiments/fedmerge.py`.
"""
