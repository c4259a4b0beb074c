"""What a method cannot do is refused by the setting that asks for it."""

from absl.testing import absltest, parameterized
from reference.configs import experiment, tiny

from hmm_jax.types import InputError

DIGITS = {'server.source': 'digits', 'server.size': 30, 'synthetic.classes': 3}
# (method, settings, the setting that the error names, where it is not the last one)
CASES = (
    ('adamerging', {'server.size': 0}, ''),
    ('apfl', {'apfl.alpha': -0.1}, ''),
    ('apfl', {'local.prox': 0.1}, ''),
    ('clg_sgd', {'server.surrogate': 'distil'}, ''),
    ('ditto', {'fine_tune.epochs': 1}, ''),
    ('ditto', {'local.prox': 0.1}, ''),
    ('ditto', {'partition.test': 0.0}, 'client 0'),
    ('dmm', {'model': 'mlp'}, 'algorithm=dmm'),
    ('dmm', {'model': 'resnet', 'synthetic.rows': 200, 'dmm.threshold': '1.5'}, ''),
    ('fedavg', {'fine_tune.epochs': 1, 'partition.test': 0.0}, 'client 0'),
    ('fedavg', {'selection': 'best'}, ''),
    ('fedbn', {'model': 'mlp'}, 'algorithm=fedbn'),
    ('fedclg_c', {'local.momentum': 0.9}, ''),
    ('fedclg_c', {'server.surrogate': 'distil'}, ''),
    ('fedclg_s', {'local.optimizer': 'adamw'}, ''),
    ('fedclg_s', DIGITS, 'server.surrogate=labels'),
    ('feddf', {'server.size': 0}, ''),
    ('feddle', {'feddle.atlas': 0}, ''),
    ('feddle', {'feddle.atlas': 2}, ''),
    ('feddle', {'feddle.atlas': 5, 'participation': 0}, 'feddle.atlas=5'),
    ('feddle', {'feddle.constraint': 'cone'}, ''),
    ('feddle', {'feddle.normalize': 'layer'}, ''),
    ('feddle', {'feddle.search': 'addam'}, 'feddle.search=addam.*did you mean adam'),
    ('feddle', {'feddle.search': 'evolutoin'}, 'feddle.search=evolutoin.*did you mean evolution'),
    ('feddle', {'feddle.strikes': -1}, ''),
    ('feddle', {'feddle.tau_max': -1}, ''),
    ('feddle', {'server.size': 0}, ''),
    ('feddle', {'server.surrogate': 'label'}, 'server.surrogate=label;.*did you mean labels'),
    ('feddle', DIGITS, 'server.surrogate=labels'),
    ('fedem', {'local.label_smoothing': 0.1}, ''),
    ('fedem', {'local.prox': 0.1}, ''),
    ('fedmerge', {'fedmerge.models': 0}, ''),
    ('fedmerge', {'fedmerge.newcomer_rounds': 0, 'fedmerge.newcomers': 1},
     'fedmerge.newcomer_rounds=0'),
    ('fedmerge', {'fedmerge.newcomers': 4}, ''),
    ('fedmerge', {'fedmerge.newcomers': 6, 'participation': 0}, 'fedmerge.newcomers=6'),
    ('fedmerge', {'fedmerge.scope': 'trunk'}, ''),
    ('fedmerge', {'fedmerge.start': 'same'}, ''),
    ('fedmerge', {'fedmerge.weight_step': 'addam'}, 'fedmerge.weight_step=addam.*did you mean'),
    ('fedmerge', {'local.prox': 0.1}, ''),
    ('fedmr', {'fedmr.dropout': 1.5}, ''),
    ('fedmr', {'fedmr.first_stage': 2}, ''),
    ('fedmr', {'fedmr.granularity': 'bit'}, ''),
    ('fedmr', {'fedmr.granularity': 'segment', 'fedmr.segments': 5}, ''),
    ('fedmr', {'participation': 7}, ''),
    ('fedopt', {'fedopt.optimizer': 'addam'}, 'fedopt.optimizer=addam.*did you mean adam'),
    ('fedper', {'mlp.hidden': ()}, 'all head'),
    ('fedrep', {'partition.validation': 0.0}, 'client 0'),
    ('gossip', {'fine_tune.epochs': 1}, ''),
    ('gossip', {'gossip.degree': 9, 'gossip.topology': 'regular'}, 'gossip.degree=9'),
    ('gossip', {'gossip.final_merge': 'ring'}, ''),
    ('gossip', {'gossip.merge_batches': 10**7}, ''),
    ('gossip', {'gossip.merge_data': 'validation', 'partition.validation': 0.0},
     'gossip.merge_data=validation'),
    ('gossip', {'gossip.schedule': 'sine:0:1'}, "'sine:0:1'"),
    ('gossip', {'gossip.topology': 'web'}, ''),
    ('learned_soup', {'server.size': 0}, ''),
    ('merging', {'merging.method': 'tise'}, 'merging.method=tise.*did you mean ties'),
    ('merging', {'merging.method': 'ties', 'merging.settings': ('lambda=1',)}, 'lambda'),
    ('merging', {'merging.method': 'ties', 'merging.settings': ('density=3',)}, 'density=3'),
    ('merging', {'merging.method': 'ties', 'merging.settings': ('density',)}, "'density'"),
    ('merging', {'merging.method': 'weight_matching', 'model': 'resnet', 'synthetic.rows': 200},
     'merging.method=weight_matching with merging.statistics=pooled'),
    ('merging', {'partition.validation': 0.0}, 'merging.rows=validation.*client 0'),
    ('pfedme', {'local.prox': 0.1}, ''),
    ('scaffold', {'local.momentum': 0.9}, ''),
    ('server_as_client', {'server.surrogate': 'distil'}, ''),
    ('server_as_client', DIGITS, 'server.surrogate=labels'),
    ('server_only', {'server.size': 0}, ''),
    ('server_only', {'server.surrogate': 'entropy'}, ''),
)


def named():
  for number, (method, settings, names) in enumerate(CASES):
    *_, (key, value) = settings.items()
    yield f'{method}_{key}_{number}', method, settings, names or f'{key}={value}'


class RefusalsTest(parameterized.TestCase):

  @parameterized.named_parameters(*named())
  def test_refuses(self, method, settings, names):
    with self.assertRaisesRegex(InputError, f'got .*{names}'):
      experiment(tiny(algorithm=method, **settings))


if __name__ == '__main__':
  absltest.main()
