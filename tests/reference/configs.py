"""Tiny configs for tests that build from one."""

from hmm_jax.experiment import build
from hmm_jax.experiment import config as defaults


def tiny(**values):
  config = defaults.get_config()
  config.update_from_flattened_dict({
      'dataset': 'synthetic', 'synthetic.rows': 300, 'clients': 6, 'participation': 3,
      'partition.alpha': 1.0, 'partition.min_size': 2, 'mlp.hidden': (4,), 'rounds': 2,
      'eval_every': 1, 'seeds': 1, **values})
  defaults.check(config)
  return config


def experiment(config):
  data = build.dataset(config)
  return build.experiment(config, data, build.federation(config, data))
