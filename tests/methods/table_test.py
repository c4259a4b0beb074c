"""Every algorithm is built from the config, with the settings that it names."""

from unittest import mock

from absl.testing import absltest, parameterized
from hmm_jax.methods import table
import jax
import numpy as np
from reference.configs import experiment, tiny

from hmm_jax.algorithms import fedcross, fedmerge, fedmr
from hmm_jax.client import losses
from hmm_jax.experiment import config as defaults
from hmm_jax.merging import recombine
from hmm_jax.types import InputError

# What a network must have for some.
NETWORKS = {name: {'model': 'resnet', 'synthetic.rows': 200} for name in ('fedbn', 'dmm')}
NAMES = defaults.CHOICES['algorithm']


def make(name, **values):
  return experiment(tiny(algorithm=name, **NETWORKS.get(name, {}), **values))


def settings_of(module, name, **values):
  """Returns the keyword arguments that an algorithm's factory is called with."""
  with mock.patch.object(module, name, wraps=getattr(module, name)) as made:
    make(name, **values)
  [call] = made.call_args_list
  return call.kwargs


class TableTest(parameterized.TestCase):

  def test_names_are_those_of_the_config(self):
    self.assertCountEqual(table.TABLE, NAMES)
    self.assertContainsSubset(table.CHECKS, NAMES)
    self.assertContainsSubset(table.EVERYBODY, NAMES)

  @parameterized.parameters(*NAMES)
  def test_every_algorithm_takes_a_cohort_or_everybody(self, name):
    made = make(name)
    algorithm, federation = made.algorithm, made.federation
    state = jax.eval_shape(algorithm.init, jax.random.key(0), federation)
    _, metrics = jax.eval_shape(algorithm.round, state, federation, jax.random.key(0))
    count = {'centralized': 1, 'server_only': 1, 'gossip': 6, 'merging': 6,
             'dmm': 6}.get(name, 3)
    self.assertEqual(metrics['cohort'].id.shape, (count,))

  # FedEM has a loss of its own, and labels of the server are its own too.
  @parameterized.parameters(*(name for name in NAMES if name not in ('fedem', 'server_only')))
  def test_every_algorithm_smooths_labels(self, name):
    with mock.patch.object(losses, 'cross_entropy', wraps=losses.cross_entropy) as made:
      make(name, **{'local.label_smoothing': 0.2})
    self.assertNotEmpty(made.call_args_list)
    for call in made.call_args_list:
      self.assertEqual(call.kwargs, {'smoothing': 0.2})

  def test_personal_methods_select_by_their_clients(self):
    for name, view in (('fedmr', 'global'), ('ditto', 'clients'), ('fedmerge', 'clients')):
      self.assertEqual(make(name).criterion, f'{view}/validation/accuracy')
    self.assertEqual(make('fedmerge', selection='loss').criterion, 'clients/validation/loss')

  @parameterized.parameters(
      ('fedmr', {'fedmr.first_stage': 2}, 'got fedmr.first_stage=2; expected fewer than rounds=2'),
      ('fedmr', {'fedmr.granularity': 'segment', 'fedmr.segments': 5},
       'got fedmr.segments=5; expected from 1 to 4'),
      ('fedmr', {'participation': 7}, 'got participation=7; expected 0 .all. to 6'),
      ('fedmerge', {'fedmerge.start': 'same'},
       'got fedmerge.start=same with fedmerge.models=5; expected different'),
      ('fedmerge', {'local.prox': 0.1}, 'got local.prox=0.1 with algorithm=fedmerge'),
      ('fedmerge', {'fedmerge.newcomers': 4}, 'got fedmerge.newcomers=4 with clients=6'),
      ('fedmerge', {'fedmerge.newcomers': 6, 'participation': 0}, 'got fedmerge.newcomers=6'),
      ('fedmerge', {'fedmerge.newcomers': 1, 'fedmerge.newcomer_rounds': 0},
       'got fedmerge.newcomer_rounds=0 with fedmerge.newcomers=1'),
      ('fedmerge', {'fedmerge.weight_step': 'addam'},
       'got fedmerge.weight_step=addam; expected an optax optimizer .*did you mean adam'),
      ('feddle', {'feddle.atlas': 2}, 'got feddle.atlas=2 with 3 clients a round; expected at '),
      ('feddle', {'feddle.atlas': 5, 'participation': 0}, 'feddle.atlas=5 with 6 clients a round'),
      ('feddle', {'feddle.normalize': 'layer'},
       'got feddle.normalize=layer with feddle.coefficients=global; expected coefficients=layer'),
      ('feddle', {'feddle.search': 'addam'},
       'got feddle.search=addam; expected evolution, none, an optax optimizer .*did you mean adam'),
      ('feddle', {'feddle.search': 'evolutoin'}, 'got feddle.search=evolu.*did you mean evolution'),
      *((name, {'server.source': 'digits', 'server.size': 30, 'synthetic.classes': 3},
         'got server.surrogate=labels with server labels up to 9; expected labels below 3')
        for name in ('feddle', 'server_as_client', 'fedclg_s')),
      ('server_only', {'server.surrogate': 'head'},
       'got server.surrogate=head with algorithm=server_only; expected labels'),
      ('server_only', {'server.surrogate': 'entropy'}, 'surrogate=entropy with algorithm=server_o'),
      ('server_only', {'server.surrogate': 'distil'}, 'surrogate=distil with algorithm=server_o'),
      *((name, {'server.surrogate': 'distil'},
         f'got server.surrogate=distil with algorithm={name}; expected labels, head or entropy, or '
         'algorithm=feddf') for name in ('server_as_client', 'clg_sgd', 'fedclg_c', 'fedclg_s')),
      *((name, {f'local.{key}': value}, f'local.{key}={value}.* with algorithm={name}; expected s')
        for name in ('fedclg_c', 'fedclg_s')
        for key, value in (('momentum', 0.9), ('optimizer', 'adamw'))),
      *((name, {'server.size': 0}, f'got server.size=0 with algorithm={name}; expected at least 2')
        for name in ('feddle', 'feddf', 'server_only')),
      ('ditto', {'local.prox': 0.1}, 'got local.prox=0.1 with algorithm=ditto; expected 0'),
      ('apfl', {'local.prox': 0.1}, 'got local.prox=0.1 with algorithm=apfl; expected 0'),
      ('pfedme', {'local.prox': 0.1}, 'got local.prox=0.1 with algorithm=pfedme; expected 0'),
      ('fedem', {'local.prox': 0.1}, 'got local.label_smoothing=0.0, local.prox=0.1'),
      ('fedem', {'local.label_smoothing': 0.1}, 'got local.label_smoothing=0.1'),
      ('fedper', {'mlp.hidden': ()}, 'got a network that is all head'),
      ('fedbn', {'model': 'mlp'}, 'got algorithm=fedbn with a network without BatchNorm'),
      ('ditto', {'partition.test': 0.0}, 'client 0 without a test row'),
      ('fedrep', {'partition.validation': 0.0}, 'client 0 without a validation row'),
      ('ditto', {'fine_tune.epochs': 1}, 'got fine_tune.epochs=1 with algorithm=ditto'),
      ('gossip', {'fine_tune.epochs': 1}, 'got fine_tune.epochs=1 with algorithm=gossip'),
      ('fedavg', {'fine_tune.epochs': 1, 'partition.test': 0.0}, 'client 0 without a test row'))
  def test_refuses(self, name, values, message):
    with self.assertRaisesRegex(InputError, message):
      experiment(tiny(algorithm=name, **values))

  @parameterized.parameters(
      ({'fedmr.granularity': 'bit'}, 'got fedmr.granularity=bit; expected one of tensor, layer'),
      ({'fedmerge.scope': 'trunk'}, 'got fedmerge.scope=trunk; expected one of head, all'),
      ({'fedmerge.models': 0}, 'got fedmerge.models=0; expected at least 1'),
      ({'fedmr.dropout': 1.5}, 'got fedmr.dropout=1.5; expected a number from 0 to 1'),
      ({'feddle.tau_max': -1}, 'got feddle.tau_max=-1; expected 0 or more'),
      ({'feddle.strikes': -1}, 'got feddle.strikes=-1; expected 0 or more'),
      ({'feddle.atlas': 0}, 'got feddle.atlas=0; expected at least 1'),
      ({'feddle.constraint': 'cone'}, 'got feddle.constraint=cone; expected one of none, convex'),
      ({'server.surrogate': 'label'}, 'got server.surrogate=label; .*did you mean labels'),
      ({'apfl.alpha': -0.1}, 'got apfl.alpha=-0.1; expected a number from 0 to 1'),
      ({'selection': 'best'}, 'got selection=best; expected one of accuracy, loss'))
  def test_values_out_of_range(self, values, message):
    with self.assertRaisesRegex(InputError, message):
      tiny(**values)


class FedMRTest(parameterized.TestCase):

  def test_defaults_are_the_released_codes(self):
    made = settings_of(fedmr, 'fedmr')
    self.assertIs(made['units'], recombine.tensors)
    self.assertEqual((made['first_stage'], made['dropout'], made['select']), (0, 0.0, None))

  def test_granularities(self):
    self.assertIs(settings_of(fedmr, 'fedmr', **{'fedmr.granularity': 'layer'})['units'],
                  recombine.layers)
    made = make('fedmr', **{'fedmr.granularity': 'segment', 'fedmr.segments': 2})
    self.assertIsNone(made.algorithm.length)

  @parameterized.parameters(('probability', [0.5] * 4), ('band', [0, 1, 1, 0]))
  def test_softer_variants_read_the_length_of_the_run(self, shuffle, chances):
    values = {'rounds': 21, 'fedmr.first_stage': 5, 'fedmr.frozen': 0.5, 'fedmr.shuffle': shuffle}
    self.assertEqual(make('fedmr', **values).algorithm.length, 21)
    select = settings_of(fedmr, 'fedmr', **values)['select']
    np.testing.assert_allclose(select(5 + 5.25, 4), chances)

  @parameterized.parameters(('in_order', fedcross.in_order), ('lowest', fedcross.least_similar),
                            ('highest', fedcross.most_similar))
  def test_collaborators(self, name, expected):
    made = settings_of(fedcross, 'fedcross', **{'fedcross.collaborator': name})
    self.assertIs(made['collaborator'], expected)
    self.assertEqual(made['alpha'], 0.99)


class FedMergeTest(parameterized.TestCase):

  def test_defaults_are_the_released_codes(self):
    with mock.patch.object(losses, 'proximal', wraps=losses.proximal) as pull:
      made = settings_of(fedmerge, 'fedmerge')
    self.assertEqual(pull.call_args.args[1], 0.02)
    self.assertEqual(made['models'], 5)
    self.assertIs(made['scope'], fedmerge.head)
    self.assertIs(made['rule'], fedmerge.max_normalized)
    self.assertIs(made['weigh'], fedmerge.column_normalized)
    step, _ = made['optimizer'].update(np.ones(3), made['optimizer'].init(np.ones(3)))
    np.testing.assert_allclose(step, -0.01, rtol=1e-6)

  def test_choices(self):
    made = settings_of(fedmerge, 'fedmerge', **{
        'fedmerge.scope': 'all', 'fedmerge.normalize': 'none', 'fedmerge.weight_step': 'adam',
        'fedmerge.newcomers': 2})
    self.assertIs(made['scope'], fedmerge.everything)
    self.assertIs(made['rule'], fedmerge.plain)
    self.assertIs(made['weigh'], fedmerge.exact)
    self.assertEqual((made['newcomers'], made['newcomer_rounds']), (2, 20))
    state = made['optimizer'].init(np.ones(3))
    self.assertLen(jax.tree.leaves(state), 3)
    self.assertIs(settings_of(fedmerge, 'fedmerge', **{'fedmerge.weight_step': 'plain'})['rule'],
                  fedmerge.plain)


class FineTuneTest(absltest.TestCase):

  def test_any_global_method_gets_clients_of_its_own(self):
    plain, tuned = (make('fedopt', **{'fine_tune.epochs': epochs}) for epochs in (0, 1))
    views = [jax.eval_shape(
        lambda key, f, e=e: e.algorithm.views(e.algorithm.init(key, f), f), jax.random.key(0),
        e.federation) for e in (plain, tuned)]
    self.assertEqual([sorted(v) for v in views], [['global'], ['clients', 'global']])
    self.assertEqual(tuned.criterion, 'clients/validation/accuracy')

  def test_its_settings(self):
    for rate, expected in ((0.0, 0.05), (0.3, 0.3)):
      tuned = make('fedavg', **{
          'fine_tune.epochs': 1, 'fine_tune.lr': rate, 'local.batch': 999, 'local.steps': 3})
      state = tuned.algorithm.init(jax.random.key(0), tuned.federation)
      views = tuned.algorithm.views(state, tuned.federation)
      # One full batch: one step of that rate along the gradient at the global model.
      start, moved = (v['params']['head']['bias'] for v in (views['global'], views['clients']))
      rows = tuned.federation.clients.index[0][:int(tuned.federation.clients.size[0])]
      shares = np.bincount(np.asarray(tuned.federation.examples.y)[rows], minlength=10) / len(rows)
      step = (moved[0] - start) / expected
      # The bias's gradient is the mean probability less the share of each class.
      np.testing.assert_allclose((step - shares).sum(), -1, atol=1e-4)
      self.assertLess(np.max(step - shares), 0)


if __name__ == '__main__':
  absltest.main()
