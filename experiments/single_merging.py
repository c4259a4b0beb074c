"""When does communication matter in decentralized learning? The single global merge.

  python -m hmm_jax.main --config=experiments/single_merging.py:setting=SETTING[,scale=paper]

SETTING is main, windows, topologies, finite_gossip or init; what follows after a comma is
scale=small (the default: Fashion-MNIST, prepared by TFDS; LeNet; m=16 agents, T=100
rounds of H=20 steps of batch 32) or scale=paper (CIFAR-10, ResNet-18, m=32, T=300, H=100,
batch 128; not run, for want of an accelerator). At both scales, from the paper: AdamW at
5e-4, weight decay 5e-4; each agent draws 4096 examples under a class mix of its
own, Dirichlet 0.1 (42,003 different ones at the small scale: agents overlap); and from its code:
label smoothing 0.1, gradients clipped to [-1, 1] entry by entry, directed pull, different
initial models. No setting was tuned.

Showed, on 2 CPU cores, accuracy on the global test split at the last round, mean ± std
over seeds 0, 1, 2, which follow: of the agents' own models before the final merge, and
of their uniform merge; bytes are those of an AllReduce every round, realised.

  setting       run                   bytes  agents           merged           merged, seed by seed
  main          sparse                 11.8% 0.4024 ± 0.0339 0.6283 ± 0.0108 0.6259 0.6188 0.6401
                silent                  1.0% 0.4344 ± 0.0029 0.1000 ± 0.0000 0.1000 0.1000 0.1000
                every_round           101.0% 0.7739 ± 0.0092 the same         0.7824 0.7641 0.7751
                every_round_different 101.0% 0.6807 ± 0.0220 the same         0.6985 0.6561 0.6874
  windows       window_0               20.7% 0.3835 ± 0.0238 0.6023 ± 0.0222 0.6215 0.5780 0.6075
                window_30              20.7% 0.4074 ± 0.0298 0.6414 ± 0.0073 0.6382 0.6362 0.6498
                window_60              20.7% 0.4140 ± 0.0370 0.6548 ± 0.0046 0.6496 0.6579 0.6570
                window_90              20.6% 0.6829 ± 0.0221 the same         0.6924 0.6987 0.6577
  topologies    pull_1                 54.3% 0.4882 ± 0.0183 0.6541 ± 0.0155 0.6363 0.6614 0.6645
                matching               11.9% 0.4165 ± 0.0114 0.6168 ± 0.0208 0.6397 0.5991 0.6116
                ring                  107.7% 0.5189 ± 0.0139 0.6383 ± 0.0252 0.6432 0.6110 0.6607
                exponential           214.3% 0.5622 ± 0.0244 0.6767 ± 0.0241 0.6996 0.6515 0.6790
  finite_gossip exponential_1          12.9% 0.4024 ± 0.0339 0.5601 ± 0.0112 0.5598 0.5714 0.5491
                exponential_5          21.4% 0.4024 ± 0.0339 0.6285 ± 0.0103 0.6261 0.6197 0.6399
  init          sparse_same            11.8% 0.4853 ± 0.0283 0.7440 ± 0.0121 0.7315 0.7449 0.7557
                silent_same             1.0% 0.4360 ± 0.0007 0.4917 ± 0.1382 0.5092 0.3456 0.6204

(finite_gossip: merged is the agents' mean accuracy after so many rounds of gossip.) A run
took 3 to 8 minutes for its three seeds, 14 the first, beside other work on the two cores.

The paper's claims, and what came of them:

- The merged model of sparsely talking agents is far better than they are, at a tenth of the
  bytes: reproduced, from different initial models and from one. Not "at every round": from
  different ones the merged model is the worse one up to round 20.
- It comes near averaging every round: reproduced from one initial model, 0.744 ± 0.012
  against 0.774 ± 0.009 at 12 % of the bytes; from different ones 0.628 ± 0.011 against 0.681 ±
  0.022, both still rising (the paper takes 15 times as many steps) and behind.
- Without any communication the merged model is at chance: reproduced from different
  initial models, 0.100. From one it is not: 0.492 ± 0.138.
- Late communication is worth more than early, at equal bytes: reproduced. The windows rank by
  time, in the mean of the merged model and in that of the agents.
- A few rounds of gossip can stand in for the final merge: reproduced. Five on the exponential
  graph give 0.6285, the uniform merge 0.6283; one gives 0.5601.

With 16 agents the ring and the exponential graph send more than an AllReduce every round
(2 and 4 models an agent against 1.875). Their agents are better than sparse pull's, their
merged models by no more than 0.05.

The recorded runs print their tables again: python experiments/results.py single_merging SETTING
"""

from ml_collections import ConfigDict

from hmm_jax.experiment import config as defaults
from hmm_jax.experiment.comparisons import arguments, variant

# Each round an agent pulls from a random other with probability 0.2; different initial
# models; one uniform merge at the end.
SPARSE = {'gossip.topology': 'pull', 'gossip.rate': 0.2, 'gossip.schedule': '',
          'gossip.start': 'different', 'gossip.final_merge': 'uniform'}

EVERY_ROUND = {'gossip.topology': 'complete', 'gossip.rate': 1.0}

# The runs of each setting, by what differs from a sparse one.
SETTINGS = {
    'main': lambda rounds: {
        'sparse': {},
        'silent': {'gossip.rate': 0.0},
        # As federated averaging, from one model; and from different ones.
        'every_round': EVERY_ROUND | {'gossip.start': 'same'},
        'every_round_different': EVERY_ROUND,
    },
    # All average with all in one tenth of the run.
    'windows': lambda rounds: {
        f'window_{start}': {'gossip.schedule': f'dense@{start}:{start + rounds // 10}'}
        for start in (tenth * (rounds // 10) for tenth in (0, 3, 6, 9))
    },
    'topologies': lambda rounds: {
        'pull_1': {'gossip.rate': 1.0},
        'matching': {'gossip.topology': 'matching'},
        'ring': {'gossip.topology': 'ring', 'gossip.rate': 1.0},
        'exponential': {'gossip.topology': 'exponential', 'gossip.rate': 1.0},
    },
    'finite_gossip': lambda rounds: {
        'exponential_1': {'gossip.final_merge': 'exponential:1'},
        'exponential_5': {'gossip.final_merge': 'exponential:5'},
    },
    'init': lambda rounds: {
        'sparse_same': {'gossip.start': 'same'},
        'silent_same': {'gossip.start': 'same', 'gossip.rate': 0.0},
    },
}

SCALES = {
    # For two CPU cores.
    'small': {
        'dataset': 'fashion_mnist', 'model': 'cnn', 'cnn.size': 'lenet', 'clients': 16,
        'rounds': 100, 'local.steps': 20, 'local.batch': 32},
    # The paper's own.
    'paper': {
        'dataset': 'cifar10', 'model': 'resnet', 'resnet.size': '18', 'augment': 'crop_flip',
        'clients': 32, 'rounds': 300, 'local.steps': 100, 'local.batch': 128},
}


def get_config(text: str = '') -> ConfigDict:
  """Returns a setting's first run, with the others as variants of it."""
  given = arguments(text, setting=SETTINGS, scale=SCALES)
  config = defaults.get_config()
  config.update_from_flattened_dict({
      'algorithm': 'gossip', 'eval_every': 10 if given['setting'] == 'main' else 20, 'seeds': 3,
      'partition.kind': 'resample', 'partition.alpha': 0.1, 'partition.size': 4096,
      'partition.validation': 0.0, 'partition.test': 0.0,
      'local.optimizer': 'adamw', 'local.lr': 5e-4, 'local.weight_decay': 5e-4,
      'local.label_smoothing': 0.1, 'local.clip_value': 1.0, **SCALES[given['scale']]})
  runs = {name: SPARSE | changes
          for name, changes in SETTINGS[given['setting']](config.rounds).items()}
  (config.name, first), *others = runs.items()
  config.update_from_flattened_dict(first)
  config.variants = tuple(
      variant(name, {key: run[key] for key in run if run[key] != first[key]})
      for name, run in others)
  return config
