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
# Merging clients under the guidance of a little central data

Federated averaging trusts every client as far as it has examples. Feddle keeps the clients'
latest updates in an atlas, and searches for the coefficients of their sum, of any sign, on a
few examples at the server: Zhu et al., *Guided Model Merging for Hybrid Data Learning:
Leveraging Centralized Data to Refine Decentralized Models*, WACV 2026,
[arXiv:2503.20138](https://arxiv.org/abs/2503.20138). The paper's text and code were not at
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

import matplotlib.pyplot as plt
import numpy as np

from hmm_jax.experiment import build, federation
from hmm_jax.experiment import config as configs
from hmm_jax.experiment.trainer import Trainer

# The project's tests run this notebook with few rounds.
SMOKE = os.environ.get('HMM_SMOKE') == '1'
ROUNDS = 4 if SMOKE else 60
SEEDS = 3

# %% [markdown]
"""
## Clients, some of whom know nothing

Twenty clients hold skewed shares of scikit-learn's digits; the labels of six of them are
random. The server has 100 examples: 80 to search on, 20 to decide whether what was found is
better than the plain average.
"""

# %%
config = configs.configure({
    'algorithm': 'feddle', 'partition.alpha': 0.3, 'partition.min_size': 5, 'rounds': ROUNDS,
    'eval_every': ROUNDS // 4, 'seeds': SEEDS, 'server.size': 100, 'corrupt.kind': 'random',
    'corrupt.clients': 0.3, 'corrupt.rate': 1.0})
data = federation.dataset(config)
federated = federation.federation(config, data)
bad = federated.corrupted
print('clients with random labels:', np.flatnonzero(bad).tolist())


# %%
def train(**settings):
  """Returns the rounds, test accuracies [seeds, evaluations] and what each round recorded."""
  changed = configs.updated(config, settings, 'the settings')
  experiment = build.experiment(changed, data, federated)
  trainer, accuracy, records = Trainer(experiment), {}, []
  for states, r, metrics, _ in trainer.rounds(trainer.initial(), 0):
    accuracy[r] = [experiment.evaluate(trainer.views(states, s)).metrics['global/test/accuracy']
                   for s in range(SEEDS)]
    records.append(metrics.get('records', {}).get('anchors'))
  return list(accuracy), np.array(list(accuracy.values())).T, records


settings = {
    'Feddle': {},
    'FedAvg': {'algorithm': 'fedavg'},
    'Feddle, convex': {'feddle.constraint': 'convex'},
    'server only': {'algorithm': 'server_only'},
    'average, then SGD': {'algorithm': 'clg_sgd'},
}
runs = {name: train(**settings[name]) for name in list(settings)[:2 if SMOKE else None]}
for name, (rounds, accuracy, _) in runs.items():
  mean, std = accuracy.mean(0), accuracy.std(0, ddof=1)
  plt.errorbar(rounds, mean, std, capsize=2, label=name)
  print(f'{name:18} {mean[-1]:.3f} ± {std[-1]:.3f}')
plt.xlabel('round')
plt.ylabel(f'test accuracy, ± std over {SEEDS} seeds')
plt.grid(alpha=0.3)
plt.legend()
plt.show()

# %% [markdown]
"""
## Who is trusted

A row is a client, those with random labels first, in red; a column is a round of the first
seed. White is a coefficient of 0, or no update in the atlas; blue is negative: the merged
model moves away from what that client came back with.
"""

# %%
_, _, records = runs['Feddle']
order = np.argsort(~bad, kind='stable')
table = np.full((len(bad), ROUNDS), np.nan)
owner, value, valid = (np.concatenate([record[name][0] for record in records])
                       for name in ('client', 'coefficient', 'valid'))
for r in range(ROUNDS):
  table[owner[r][valid[r]], r] = value[r][valid[r]]
most = np.nanmax(np.abs(table))
plt.figure(figsize=(9, 4))
plt.imshow(table[order], aspect='auto', cmap='RdBu_r', vmin=-most, vmax=most)
plt.colorbar(label='coefficient')
plt.yticks(range(len(bad)), order)
for label, client in zip(plt.gca().get_yticklabels(), order, strict=True):
  label.set_color('red' if bad[client] else 'black')
plt.xlabel('round')
plt.ylabel('client')
plt.show()
for name, who in (('random labels', bad), ('true labels', ~bad)):
  print(f'mean coefficient of clients with {name}: {np.nanmean(table[who]):+.3f}')

# %% [markdown]
"""
On this small problem the guided merge ends above plain averaging, above the server's examples
alone, and above averaging followed by SGD on these. In rounds where the search is
followed, clients with random labels get negative coefficients. In the others the 20 examples held
out prefer the plain average, which trusts them by their size; on average over all rounds, the
two kinds of clients are not far apart.

From the command line, with checkpoints and plots:
`python -m hmm_jax.main --config.algorithm=feddle --config.server.size=100`; the study on
Fashion-MNIST is `experiments/feddle.py`.
"""
