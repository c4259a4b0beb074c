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
# FedAvg from scratch in 30 lines, then by the library

Twenty clients hold skewed shares of scikit-learn's digits. We write federated
averaging for them in plain JAX, train the same with `hmm_jax`, and compare.
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
from jax import lax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from hmm_jax import tree
from hmm_jax.data import federate, partition
from hmm_jax.data.sources import builtin
from hmm_jax.experiment import build
from hmm_jax.experiment import config as configs
from hmm_jax.experiment.trainer import Trainer
from hmm_jax.report.plots.partition import partition as draw_partition

# The project's tests run this notebook with few rounds.
ROUNDS, EVERY = (4, 2) if os.environ.get('HMM_SMOKE') == '1' else (60, 2)

# %% [markdown]
"""
## Who holds which data

A `Dataset` is loaded once. A partition deals its examples to clients, here each class by
a Dirichlet draw, and a `Federation` is indices into the one data set: every
client's own examples for training, validation and test, and a test split for all.
"""

# %%
data = builtin.digits()


def deal(pool, rng):
  """Returns 20 arrays of row numbers, one a client."""
  return partition.dirichlet(pool.y_train, 20, rng, alpha=0.1, min_size=10)


federation = federate.federate(
    data, deal, divide=federate.deal_then_split, validation=0.1, test=0.1, seed=0)
for what, figures in federate.describe(federation, data):
  print(f'{what:30}{figures}')

# %%
display(draw_partition(federate.label_counts(federation, data.classes)))

# %% [markdown]
"""
## From scratch

A model is a pytree. The client's work is written for *one* client and lifted by
`jax.vmap`, so that the models of a round's clients are one pytree with a leading
axis. The aggregate is one weighted sum along that axis: `tree.mix`.

Clients hold different numbers of examples. Each gets as many steps as the largest; a mask
takes the padding out of the loss, so a step without examples has no gradient and changes
nothing.
"""

# %%
EPOCHS, BATCH, LR, COHORT, HIDDEN = 5, 20, 0.05, 10, 128
own, pixels = federation.clients, federation.examples.x.reshape(-1, 64) / 255
rows_in_use = np.concatenate([row[:size] for row, size in zip(own.index, own.size, strict=True)])
mean, std = pixels[rows_in_use].mean(), pixels[rows_in_use].std()
x, y = jnp.float32((pixels - mean) / std), jnp.asarray(federation.examples.y)


# %%
def init(key):
  """Draws a network with one hidden layer, as the library does."""
  def dense(key, inputs, outputs):
    draws = jax.random.uniform(key, (1 + inputs, outputs), minval=-1, maxval=1) / inputs**0.5
    return {'b': draws[0], 'w': draws[1:]}

  keys = jax.random.split(key)
  return [dense(keys[0], 64, HIDDEN), dense(keys[1], HIDDEN, 10)]


def logits(params, x):
  """Scores the classes of a batch."""
  hidden, head = params
  return jax.nn.relu(x @ hidden['w'] + hidden['b']) @ head['w'] + head['b']


def loss(params, rows, mask):
  """Averages the cross-entropy over the rows that are not padding."""
  values = optax.softmax_cross_entropy_with_integer_labels(logits(params, x[rows]), y[rows])
  return (values * mask).sum() / jnp.maximum(mask.sum(), 1)


def train_client(params, index, size, key):
  """Trains ONE client by SGD on its rows index[:size], in a new order each epoch."""
  def step(params, batch):
    return jax.tree.map(lambda p, g: p - LR * g, params, jax.grad(loss)(params, *batch)), None

  def epoch(params, key):
    mine = jnp.arange(len(index)) < size
    order = jnp.argsort(jnp.where(mine, jax.random.uniform(key, mine.shape), 2))  # padding last
    batches = [jnp.pad(values, (0, -len(index) % BATCH)).reshape(-1, BATCH)
               for values in (index[order], mine)]
    return lax.scan(step, params, batches)

  return lax.scan(epoch, params, jax.random.split(key, EPOCHS))[0]


@jax.jit
def fedavg_round(params, key):
  """Trains a random cohort from one model and averages what comes back by size."""
  cohort_key, *keys = jax.random.split(key, COHORT + 1)
  cohort = jax.random.choice(cohort_key, len(own.id), (COHORT,), replace=False)
  index, size = jnp.asarray(own.index)[cohort], jnp.asarray(own.size)[cohort]
  stacked = jax.vmap(train_client, in_axes=(None, 0, 0, 0))(params, index, size, jnp.stack(keys))
  return tree.mix(size / size.sum(), stacked)


# %%
root, params, by_hand = jax.random.key(0), init(jax.random.key(1)), {}
test = federation.test.rows
for r in range(1, ROUNDS + 1):
  params = fedavg_round(params, jax.random.fold_in(root, r))
  if r % EVERY == 0:
    by_hand[r] = float((logits(params, x[test]).argmax(-1) == y[test]).mean())
print(f'round {r}: test accuracy {by_hand[r]:.3f}')

# %% [markdown]
"""
## By the library

`hmm_jax.algorithms.fedavg` is the same round. `build` puts it together from a config,
in which every setting stands with its default; these are the ones from above. The
`Trainer` compiles the rounds between two evaluations into one program.
"""

# %%
config = configs.get_config()
config.update({'rounds': ROUNDS, 'eval_every': EVERY, 'seeds': 1, 'participation': COHORT})
config.local.update({'epochs': EPOCHS, 'batch': BATCH, 'lr': LR})
config.mlp.hidden = (HIDDEN,)


def train(config):
  """Returns {round: test accuracy}."""
  experiment = build.experiment(config, data, federation)
  trainer, accuracy = Trainer(experiment), {}
  for states, r, _, _ in trainer.rounds(trainer.initial(), 0):
    first = tree.take(states, 0)  # the only seed
    models = experiment.algorithm.views(first, experiment.federation)
    accuracy[r] = experiment.evaluate(models).metrics['global/test/accuracy']
  print(f'round {r}: test accuracy {accuracy[r]:.3f}')
  return accuracy


by_library = train(config)

# %% [markdown]
"""
## Another algorithm is one line

SCAFFOLD corrects each client's drift by a control variate of its own, which the
algorithm keeps in its state. Nothing else changes.
"""

# %%
config.algorithm = 'scaffold'
scaffold = train(config)

# %%
curves = {'FedAvg from scratch': by_hand, 'FedAvg by the library': by_library,
          'SCAFFOLD by the library': scaffold}
for name, curve in curves.items():
  plt.plot(curve.keys(), curve.values(), label=name)
plt.xlabel('round')
plt.ylabel('test accuracy')
plt.grid(alpha=0.3)
plt.legend()
plt.show()

# %% [markdown]
"""
The two FedAvg curves differ by their random numbers only: initial weights, cohorts and
the order of examples. From here, `python -m hmm_jax.main --config.algorithm=scaffold` does
the same from the command line, with several seeds, checkpoints and plots.
"""
