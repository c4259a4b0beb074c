"""Does a little central data help more as a guide of the clients' merge than as training data?

  python -m hmm_jax.main --config=experiments/feddle.py:setting=SETTING[,rows=R][,noisy=SHARE]

A fifth of Fashion-MNIST, prepared by TFDS; LeNet, 50 clients, 10 a round, Dirichlet 0.1, 60
rounds of 2 epochs, SGD at 0.05. The server has R = 500 rows (or 100, 2000), 100 minibatches of 50
a round for every method. SETTING is

  in_domain       rows held out of the training set
  mnist, cifar10  rows of another task, in grey 28x28, which teach the trunk under a fresh head
  usps            clients of MNIST, rows of USPS: the same digits in another hand
                  (~/tensorflow_datasets/usps.npz)
  noisy           in_domain; all labels of SHARE = 0.3 (or 0.5, 0) of the clients are random
  late            updates travel for up to 5 rounds; FedAvg late too, and both in time
  ablation        in_domain, one part of Feddle changed at a time

Feddle's rate, 0.05, is the best of 0.02, 0.05 and 0.1 by the loss of the server's held-out rows
after 60 rounds in one run (seed 100: 0.786, 0.615, 0.781); coefficients of each layer had 0.945 at
0.05. FedCLG's rates are lower because it diverged at 0.05. Nothing else was tuned.

Recorded so far, on 2 CPU cores: accuracy on the global test split after 60 rounds, mean ± std over
seeds 0, 1, 2, which follow, and at the rounds selected on validation data:

  in_domain         round 60         seed by seed          selected
  feddle            0.7112 ± 0.0359  0.7525 0.6930 0.6880  0.7112
  fedavg            0.6570 ± 0.0170  0.6400 0.6740 0.6570  0.6462
  server_only       0.7412 ± 0.0095  0.7320 0.7510 0.7405  0.7370
  server_as_client  0.7492 ± 0.0063  0.7535 0.7520 0.7420  0.7572
  clg_sgd           0.7943 ± 0.0043  0.7985 0.7900 0.7945  0.7943
  fedclg_c          0.6997 ± 0.0133  0.6855 0.7120 0.7015  0.7402
  fedclg_s          0.6910 ± 0.0065  0.6875 0.6870 0.6985  0.7207
  feddf             0.6097 ± 0.0158  0.6115 0.6245 0.5930  0.6348
  learned_soup      0.7070 ± 0.0240  0.7070 0.7310 0.6830  0.7087
  adamerging        0.5593 ± 0.0258  0.5425 0.5890 0.5465  0.5593

  late              round 60         seed by seed          selected
  feddle            0.7010 ± 0.0383  0.7405 0.6985 0.6640  0.7010
  feddle_in_time    0.7167 ± 0.0248  0.7415 0.6920 0.7165  0.7167
  fedavg_late       0.5270 ± 0.0703  0.4530 0.5930 0.5350  0.5543
  fedavg            0.6562 ± 0.0171  0.6415 0.6750 0.6520  0.6457

feddle and feddle_in_time are one method in two programs: rounding parts them. The claims so far:

- Better than the clients alone (FedAvg): reproduced, 0.711 against 0.657.
- Better than the server alone, and than training on its rows beside the clients: not reproduced
  with 500 rows in domain. CLG-SGD, the simplest, is ahead by 0.08.
- Better than a soup without negative coefficients: within the spread.
- Robust to late updates: reproduced. Feddle loses 0.016, FedAvg 0.129.

Add --workdir=experiments/results/feddle/SETTING to the command above to print these runs again.
The other settings have not been run in full yet.
"""

from ml_collections import ConfigDict

from hmm_jax import config as defaults
from hmm_jax.variants import arguments, variant

# What Feddle is compared with, by what differs from it.
OTHERS = {
    'fedavg': {'algorithm': 'fedavg'},
    'server_only': {'algorithm': 'server_only'},
    'server_as_client': {'algorithm': 'server_as_client'},
    'clg_sgd': {'algorithm': 'clg_sgd'},
    # With corrections, SGD diverges at the others' rate.
    'fedclg_c': {'algorithm': 'fedclg_c', 'local.lr': 0.02},
    'fedclg_s': {'algorithm': 'fedclg_s', 'local.lr': 0.01},
    'feddf': {'algorithm': 'feddf'},
    'learned_soup': {'algorithm': 'learned_soup'},
    'adamerging': {'algorithm': 'adamerging'},
}
# FedCLG diverges at 0.005, too, or learns nothing, where clients' labels are random, or where the
# server's rows teach another task.
STEADY = {name: changes for name, changes in OTHERS.items() if 'fedclg' not in name}
# Of another domain, the server's rows have labels of another task.
ANOTHER_TASK = {name: changes for name, changes in STEADY.items() if name != 'server_only'} | {
    'distil': {'server.surrogate': 'distil'}}
LATE = {
    'feddle_in_time': {'feddle.tau_max': 0},
    'fedavg_late': {'feddle.search': 'none'},
    'fedavg': {'algorithm': 'fedavg'},
}
ABLATIONS = {
    'as_they_are': {'feddle.normalise': 'none'},
    'convex': {'feddle.constraint': 'convex'},
    'no_fallback': {'feddle.fallback': 'none'},
    'by_layer': {'feddle.coefficients': 'layer'},
    'all_by_layer': {'feddle.coefficients': 'layer', 'feddle.normalise': 'layer'},
    'evolution': {'feddle.search': 'evolution'},
    'arrivals': {'feddle.atlas': 10},
    'never_drop': {'feddle.strikes': 0},
}

SETTINGS = {
    'in_domain': ({}, OTHERS),
    # Rows of other data sets: other tasks, or the same digits in another hand.
    'mnist': ({'server.source': 'mnist', 'server.surrogate': 'head'}, ANOTHER_TASK),
    'cifar10': ({'server.source': 'cifar10', 'server.surrogate': 'head'}, ANOTHER_TASK),
    'usps': ({'dataset': 'mnist', 'server.source': 'npz:~/tensorflow_datasets/usps.npz'}, OTHERS),
    # Clients whose labels say nothing.
    'noisy': ({'corrupt.kind': 'random', 'corrupt.rate': 1.0}, STEADY),
    'late': ({'feddle.tau_max': 5}, LATE),
    'ablation': ({}, ABLATIONS),
}
ROWS = {str(rows): {'server.size': rows} for rows in (500, 100, 2000)}
NOISY = {share: {'corrupt.clients': float(share)} for share in ('0.3', '0.5', '0.0')}


def get_config(text: str = '') -> ConfigDict:
  """Returns Feddle's run in one setting, with the others as variants of it."""
  given = arguments(text, setting=SETTINGS, rows=ROWS, noisy=NOISY)
  changes, others = SETTINGS[given['setting']]
  config = defaults.get_config()
  config.update_from_flattened_dict({
      'algorithm': 'feddle', 'dataset': 'fashion_mnist', 'subset': 0.2, 'model': 'cnn',
      'clients': 50, 'participation': 10, 'rounds': 60, 'eval_every': 10, 'seeds': 3,
      'selection': 'loss', 'local.epochs': 2, 'local.batch': 32, 'local.lr': 0.05,
      **changes, **ROWS[given['rows']], **NOISY[given['noisy']]})
  config.variants = tuple(variant(name, changed) for name, changed in others.items())
  return config
