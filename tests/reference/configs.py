"""Tiny configs for tests that build from one."""

from hmm_jax.experiment import build, federation
from hmm_jax.experiment import config as defaults


def tiny(**values):
  return defaults.configure({
      'dataset': 'synthetic', 'synthetic.rows': 300, 'clients': 6, 'participation': 3,
      'partition.alpha': 1.0, 'partition.min_size': 2, 'mlp.hidden': (4,), 'rounds': 2,
      'eval_every': 1, 'seeds': 1, **values})


def experiment(config):
  data = federation.dataset(config)
  return build.experiment(config, data, federation.federation(config, data))
