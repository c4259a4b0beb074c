"""Seconds a round on synthetic workloads: federated averaging, or FedMR and gossip against it.

  python experiments/speed.py --workload=A5 --model=cnn --rounds=6 [--mapper=map]

A5  100 clients x 100 images of 32x32x3, 10 a round, batch 50, 5 epochs
A   the same with 500 images a client
B   1000 clients x 50 images, 50 a round, batch 10, 1 epoch
G   32 clients x 320 images, all in every round, 100 steps of batch 32

nets: every network against PyTorch; see networks.py.

Any of NCLIENTS, COHORT, NPER, BATCH, EPOCHS, STEPS in the environment replaces the
workload's number. Models: cnn (conv 3x3-32, 3x3-64, dense 128; 545,098 parameters)
and mlp (3072-200-10). SGD at 0.05, clients weighted equally; --algorithm=gossip is pull
at rate 0.2. One line comes out: first (with compilation), mean and min of the other
rounds in seconds, the peak memory, the data's share of it, and the loss on client 0's
examples at the end.

Showed on 2 CPU cores, mean seconds a round of this and of pfl-research 0.6.0 (PyTorch
2.13.0, 2 processes of 1 thread), five interleaved pairs, seeds 1 to 5 here:

  A5 cnn  0.739 0.745 0.691 0.746 0.697  against  1.32 1.24 1.25 1.23 1.22  median ratio 0.57
  B cnn   0.331 0.321 0.326 0.318 0.322  against  0.77 0.84 0.81 0.81 0.79  median ratio 0.40
  B mlp   0.033 0.036 0.035 0.034 0.032  against  0.15 0.16 0.16 0.15 0.16  median ratio 0.22

Losses after 6 rounds, mean ± std over seeds, against a plain PyTorch loop: B cnn 2.204 ±
0.015 (seeds 10 to 13) and 2.229 ± 0.008 (4 seeds), B mlp 0.0539 ± 0.0024 (seeds 0 to 4)
and 0.0533 ± 0.0013 (5 seeds). Of A5 the loss depends on whether client 0 took part lately:
1.89 to 2.29 over seeds 1 to 5, 2.24 for seed 0, against 2.26 for pfl-research's one seed.

Gossip and federated averaging (which keeps no stack of models), mean seconds a round of G
with the cnn, in pairs of one seed:

  batch 32 (--rounds=3, seeds 1, 2)         14.55 14.88  against  14.71 14.31  ratios 0.99 1.04
  BATCH=8 (--rounds=4, seeds 1, 2)           3.53  3.28  against   3.30  3.17  ratios 1.07 1.03

FedMR and federated averaging, least seconds a round of A5 with the cnn, in pairs of seeds 1
to 3, beside other work on the machine (hence the least, and its spread):

  0.897 0.690 0.701  against  0.747 1.086 0.700

Feddle with its search (100 steps of batch 50, an atlas of 50) and --algorithm=unguided, least
seconds a round of A with the cnn, --rounds=5; what the search adds to the clients' training:

  two devices (auto)    5.16  against  3.36  54 %, and 4.38 against 3.15, 39 %
  one (--mapper=map)    7.10  against  5.42  31 %, and 6.82 against 5.35, 27 %

The gradients of 100 of 500 minibatches are a fifth by themselves. Each step reads the atlas,
109 MB, twice: 3.1 ms at best on this machine, another 9 %; two devices read it twice each.
"""

from collections.abc import Iterator
import os
import sys
import time

from absl import app, flags
import networks
import numpy as np

from hmm_jax import tree
from hmm_jax.experiment import build, devices, federation
from hmm_jax.experiment import config as defaults
from hmm_jax.experiment.run import peak_memory
from hmm_jax.experiment.trainer import Trainer
from hmm_jax.report.screen import fail
from hmm_jax.types import Dataset, InputError

WORKLOADS = {
    'A5': {'NCLIENTS': 100, 'COHORT': 10, 'NPER': 100, 'BATCH': 50, 'EPOCHS': 5, 'STEPS': 0},
    'A': {'NCLIENTS': 100, 'COHORT': 10, 'NPER': 500, 'BATCH': 50, 'EPOCHS': 5, 'STEPS': 0},
    'B': {'NCLIENTS': 1000, 'COHORT': 50, 'NPER': 50, 'BATCH': 10, 'EPOCHS': 1, 'STEPS': 0},
    'G': {'NCLIENTS': 32, 'COHORT': 0, 'NPER': 320, 'BATCH': 32, 'EPOCHS': 0, 'STEPS': 100},
}

WORKLOAD = flags.DEFINE_enum('workload', 'A5', [*WORKLOADS, 'nets'], 'Which workload.')
ALGORITHM = flags.DEFINE_enum(
    'algorithm', 'fedavg', ['fedavg', 'fedmr', 'gossip', 'feddle', 'unguided'],
    'Which algorithm; unguided is Feddle without its search.')
MODEL = flags.DEFINE_enum('model', 'cnn', ['cnn', 'mlp'], 'Which network.')
ROUNDS = flags.DEFINE_integer('rounds', 6, 'Rounds, the first included.', lower_bound=2)
MAPPER = flags.DEFINE_string('mapper', 'auto', 'How clients are mapped.')
CHUNK = flags.DEFINE_integer('chunk', 0, 'Clients vectorized at a time by vmap.')
TORCH = flags.DEFINE_string('torch', 'python', 'For nets: the interpreter that has PyTorch.')
NETS = flags.DEFINE_list('nets', [*networks.NETS], 'For nets: which networks.')
BATCHES = flags.DEFINE_list('batches', [*networks.BATCHES], 'For nets: which batch sizes.')
OPTIMIZERS = flags.DEFINE_list(
    'optimizers', [*networks.OPTIMIZERS], 'For nets: which of sgd, momentum and adamw.')
SEED = flags.DEFINE_integer('seed', 0, 'Of the model and the cohorts; the data is fixed.')


def images(clients: int, rows: int) -> Dataset:
  """Draws class prototypes plus noise, every client under its own class mix."""
  rng = np.random.default_rng(0)
  prototypes = rng.normal(size=(10, 32, 32, 3)).astype(np.float32)
  x = np.empty((clients * rows, 32, 32, 3), np.float32)
  y = np.empty(clients * rows, np.int32)
  for own in np.split(np.arange(clients * rows), clients):
    mix = rng.dirichlet(np.full(10, 0.5))
    y[own] = rng.choice(10, size=rows, p=mix)
    x[own] = 0.5 * prototypes[y[own]] + rng.normal(size=(rows, 32, 32, 3))
  owner = np.repeat(np.arange(clients), rows)
  return Dataset('speed', x, y, x[:rows], y[:rows], classes=10, client=owner)


def configured(changes: dict):
  """Returns the config of a run that measures, changed."""
  config = defaults.get_config()
  config.update_from_flattened_dict({
      'normalize': 'none', 'clients': 0, 'fedavg.weights': 'uniform', 'rounds': ROUNDS.value,
      'eval_every': 1, 'seed': SEED.value, 'seeds': 1, 'mapper': MAPPER.value,
      'chunk': CHUNK.value, 'partition.kind': 'natural', 'partition.validation': 0.0,
      'partition.test': 0.0} | changes)
  defaults.check(config)
  return config


def settings(workload: dict) -> dict:
  unguided = ALGORITHM.value == 'unguided'
  return {
      'algorithm': 'feddle' if unguided else ALGORITHM.value,
      'feddle.search': 'none' if unguided else 'adam', 'feddle.strikes': 0,
      'model': MODEL.value, 'cnn.size': 'small', 'mlp.hidden': (200,),
      'participation': workload['COHORT'], 'gossip.final_merge': 'none',
      'local.batch': workload['BATCH'], 'local.epochs': workload['EPOCHS'],
      'local.steps': workload['STEPS'], 'local.lr': 0.05,
  }


def trained(config, data: Dataset) -> tuple:
  """Builds a run.

  Returns:
    Its federation, (Experiment, Trainer, states), in which `states` are those of the latest
    round, and an iterator over the seconds of each round, the first with its compilation.
  """
  federated = federation.federation(config, data)
  # What follows needs the shapes of the data only.
  data = data._replace(x_train=data.x_train[:1], x_test=data.x_test[:1])
  experiment = build.experiment(config, data, federated)
  run = Run(experiment)
  return federated, run, run.seconds()


class Run:
  """A run that is measured; `states` are those after the latest round."""

  def __init__(self, experiment):
    self.experiment, self.trainer = experiment, Trainer(experiment)
    self.states = None

  def seconds(self) -> Iterator[float]:
    """Trains a round at a time and yields its seconds."""
    start = time.perf_counter()
    for states, done, _, spent in self.trainer.rounds(self.trainer.initial(), 0):
      self.states = states
      yield spent if done > 1 else time.perf_counter() - start

  def loss(self) -> float:
    scores = self.experiment.evaluate(self.trainer.views(self.states, 0)).metrics
    return scores.get('global/test/loss', scores.get('merged/test/loss'))


def measure():
  workload = {name: int(os.environ.get(name, value))
              for name, value in WORKLOADS[WORKLOAD.value].items()}
  config = configured(settings(workload))
  devices.prepare(mapper=config.mapper, cohort=config.participation)
  federated, run, rounds = trained(config, images(workload['NCLIENTS'], workload['NPER']))
  first, *rest = rounds
  print(f'{WORKLOAD.value} {MODEL.value}: first={first:.3f} mean={np.mean(rest):.3f} '
        f'min={np.min(rest):.3f} (s a round) peak={peak_memory() / 2**20:.0f}MiB '
        f'data={tree.nbytes(federated.examples) / 2**20:.0f}MiB loss={run.loss():.4f}', flush=True)


def main(argv):
  del argv
  if WORKLOAD.value != 'nets':
    return measure()
  networks.check(NETS.value, BATCHES.value, OPTIMIZERS.value)
  devices.prepare(mapper=MAPPER.value, cohort=2)
  networks.table(configured, trained, TORCH.value, nets=NETS.value, batches=BATCHES.value,
                 optimizers=OPTIMIZERS.value)


if __name__ == '__main__':
  try:
    app.run(main, flags_parser=flags.FLAGS)
  except (InputError, flags.Error) as error:
    sys.exit(fail(error, 2))
