"""Do normalization statistics say enough of divergent models to distill them into a merge?

  python -m hmm_jax.main --config=experiments/dmm.py:data=DATA,alpha=ALPHA[,merges=often]

DATA is fashion_mnist or cifar10 (a fifth of each, prepared by TFDS, residual network of 9 layers)
in 10 clients, Dirichlet ALPHA = 0.1, 0.01 or 1.0; or crisismmd, the text of the informative task,
whose seven events are the clients. All train apart from one start for 10 epochs and are merged by
DMM, once, or after every second one (merges=often). Beside it

  prox                     once: averaged after training under a proximal term
  average, buffers, noise  often: averaged by examples; DMM without distillation, and on N(0, 1)
  fedbn                    often: everything but BatchNorm is averaged after every epoch

What the steps of DMM add to one merge, and what other merges of the same clients give, is shown
by `python experiments/ladder.py --workdir=RUN`, RUN the folder of this one.

Its settings are the reconstruction's but for fewer steps of inversion; nothing was tuned. One
thread took 15 minutes to train, merge and compare a setting of images, 10 to 30 for its ablation.

Showed, for seeds 0 to 2 (experiments/results/dmm.md has every figure and claim): inverted
inputs beat noise in every setting that is merged once, not in rounds; DMM is ahead of averaging at
Dirichlet 1 and on CIFAR-10 at 0.01, and better with each model's statistics inverted.
"""

from ml_collections import ConfigDict

from hmm_jax.experiment import config as defaults
from hmm_jax.experiment.comparisons import arguments, variant

IMAGES = {'subset': 0.2, 'clients': 10, 'model': 'resnet'}
DATA = {
    'fashion_mnist': {'dataset': 'fashion_mnist', **IMAGES},
    'cifar10': {'dataset': 'cifar10', 'augment': 'crop_flip', **IMAGES},
    # No image is needed; as they are, hashed words score better on validation examples.
    'crisismmd': {'dataset': 'crisismmd', 'clients': 7, 'participation': 0, 'model': 'fusion',
                  'normalize': 'none', 'crisismmd.modalities': 'text', 'partition.kind': 'domain'},
}
AVERAGE = {'algorithm': 'merging'}
MERGES = {
    'once': (0, {'prox': {**AVERAGE, 'local.prox': 0.1}}),
    'often': (2, {
        'average': AVERAGE, 'buffers': {'dmm.inputs': 'none'}, 'noise': {'dmm.inputs': 'noise'},
        'fedbn': {'algorithm': 'fedbn'}}),
}


def get_config(text: str = '') -> ConfigDict:
  """Returns DMM's run on one data set, with those that train otherwise as variants."""
  given = arguments(text, data=DATA, alpha=('0.1', '0.01', '1.0'), merges=MERGES)
  every, others = MERGES[given['merges']]
  config = defaults.get_config()
  config.update_from_flattened_dict({
      'algorithm': 'dmm', 'rounds': 10, 'eval_every': 5, 'seeds': 3, 'selection': 'loss',
      'partition.alpha': float(given['alpha']), 'local.epochs': 1, 'local.batch': 32,
      'local.lr': 0.05, 'one_shot.every': every, 'inversion.steps': 500,
      'dmm.batch': 128, 'dmm.shift': 2, **DATA[given['data']]})
  config.variants = tuple(variant(name, changes) for name, changes in others.items())
  return config
