"""Do normalisation statistics say enough of divergent models to distil them into a merge?

  python -m hmm_jax.main --config=experiments/dmm.py:data=DATA,alpha=ALPHA[,merges=often]

DATA is fashion_mnist or cifar10 (a fifth of each, prepared by TFDS, residual network of 9 layers)
in 10 clients, Dirichlet ALPHA = 0.1, 0.01 or 1.0; or crisismmd, the text of the informative task,
whose seven events are the clients. All train apart from one start for 10 epochs and are merged
once, or after every second one (merges=often). The run itself is DMM on inverted inputs; beside it

  core, buffers            the core's merge, without and with all models' statistics
  noise, real              distilled on N(0, 1) and on real rows: the control and the ceiling
  each, everybody          each model's statistics inverted; all models as teachers
  average, prox, matched   one-shot averages, under a proximal term and after weight matching
  ties, cat                TIES and CAT merging

Its settings are the reconstruction's but for fewer steps of inversion; nothing was tuned. The
study has not been run yet: there are no results here.
"""

from ml_collections import ConfigDict

from hmm_jax import config as defaults
from hmm_jax.variants import arguments, variant

IMAGES = {'subset': 0.2, 'clients': 10, 'model': 'resnet'}
DATA = {
    'fashion_mnist': {'dataset': 'fashion_mnist', **IMAGES},
    'cifar10': {'dataset': 'cifar10', 'augment': 'crop_flip', **IMAGES},
    # No image is needed; as they are, hashed words score better on validation rows.
    'crisismmd': {'dataset': 'crisismmd', 'clients': 7, 'model': 'fusion', 'normalise': 'none',
                  'crisismmd.modalities': 'text', 'partition.kind': 'domain'},
}
MERGES = {'once': 0, 'often': 2}
OTHERS = {
    'core': {'dmm.inputs': 'none', 'dmm.buffers': 'core'},
    'buffers': {'dmm.inputs': 'none'},
    'noise': {'dmm.inputs': 'noise'},
    'real': {'dmm.inputs': 'real'},
    'each': {'dmm.whose': 'each', 'dmm.batches': 1},
    'everybody': {'dmm.teachers': 'everybody'},
    'average': {'algorithm': 'merging'},
    'prox': {'algorithm': 'merging', 'local.prox': 0.1},
    'matched': {'algorithm': 'merging', 'merging.match': 'weights'},
    'ties': {'algorithm': 'merging', 'merging.method': 'ties'},
    'cat': {'algorithm': 'merging', 'merging.method': 'cat'},
}
# The wiring of the branches is not known to weight matching.
WITHOUT = {'crisismmd': ('matched',)}


def get_config(text: str = '') -> ConfigDict:
  """Returns DMM's run on one data set, with the rungs of its ladder and the others as variants."""
  given = arguments(text, data=DATA, alpha=('0.1', '0.01', '1.0'), merges=MERGES)
  config = defaults.get_config()
  config.update_from_flattened_dict({
      'algorithm': 'dmm', 'rounds': 10, 'eval_every': 5, 'seeds': 3, 'selection': 'loss',
      'partition.alpha': float(given['alpha']), 'local.epochs': 1, 'local.batch': 32,
      'local.lr': 0.05, 'one_shot.every': MERGES[given['merges']], 'inversion.steps': 500,
      'dmm.batch': 128, **DATA[given['data']]})
  others = {name: changes for name, changes in OTHERS.items()
            if name not in WITHOUT.get(given['data'], ())}
  config.variants = tuple(variant(name, changes) for name, changes in others.items())
  return config
