"""What is exported predicts as it did in the run, without the data set."""

import json
import os
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import numpy as np
import pytest
from reference import networks
from reference.configs import tiny

from hmm_jax import registry, tree
from hmm_jax.algorithms import METHODS
from hmm_jax.experiment import blueprint, build, export, exported, federation, launch, outline
from hmm_jax.experiment.saved import Run
from hmm_jax.experiment.trainer import Trainer
from hmm_jax.experiment.views import with_data, without_data
from hmm_jax.models import NETWORKS, files
from hmm_jax.types import InputError, SaveError

FAST = [
    ('mlp', {'mlp.hidden': (4,)}, 'images'),
    ('mlp', {'mlp.hidden': ()}, 'vectors'),
    ('mlp', {'normalize': 'none', 'compute_dtype': 'bfloat16'}, 'images'),
    *(('cnn', {'cnn.size': size}, 'images') for size in ('lenet', 'small', 'pfl', 'pfllib')),
    ('resnet', {}, 'images'),
    ('vit', {}, 'images'),
    ('gpt', {'gpt.layers': 1, 'gpt.width': 8, 'gpt.positions': 9}, 'tokens'),
    ('lstm', {'lstm.hidden': (4, 3)}, 'tokens'),
    ('lstm', {'lstm.hidden': (4,), 'normalize': 'none'}, 'tokens'),
    ('fusion', {'fusion.channels': (2,)}, 'modalities'),
    ('fusion', {'fusion.channels': (2,)}, 'images'),
    ('fusion', {}, 'vectors'),
]
LARGE = [('resnet', {'resnet.size': '18'}, 'images'), ('resnet', {'resnet.size': '20'}, 'images'),
         ('vgg16', {}, 'images')]


class NetworksTest(parameterized.TestCase):

  def check(self, name, changes, kind):
    config, data = networks.of(name, changes, kind)
    made = federation.federation(config, data)
    model = build.model(config, data, made)
    variables = jax.jit(model.init)(jax.random.key(1))
    folder = self.enterContext(tempfile.TemporaryDirectory())
    exported.write(folder, variables, exported.described(blueprint.describe(config, data, made)))
    loaded = export.load(folder)
    wanted = jax.nn.softmax(jax.jit(model.apply)(variables, data.x_test)[0])
    got = loaded.predict(data.x_test)
    np.testing.assert_allclose(got, wanted, atol=1e-6, rtol=0)
    self.assertGreater(np.ptp(got, axis=0).max(), 1e-4)  # It says something of its inputs.
    self.assertEqual(loaded.names, ('cat', 'dog', 'owl'))
    none = jax.tree.map(lambda leaf: leaf[:0], data.x_test)
    self.assertEqual(loaded.predict(none).shape, (0, networks.CLASSES))
    self.assertEqual(jax.eval_shape(model.apply, variables, none)[0].shape, (0, networks.CLASSES))

  @parameterized.parameters(*FAST)
  def test_predicts_as_the_network_that_was_exported(self, name, changes, kind):
    self.check(name, changes, kind)

  @parameterized.parameters(*LARGE)
  @pytest.mark.slow
  def test_predicts_as_a_large_network_that_was_exported(self, name, changes, kind):
    self.check(name, changes, kind)

  def test_of_every_built_in_network(self):
    self.assertEqual({name for name, *_ in FAST + LARGE}, set(NETWORKS))


def no_data(*_):
  raise AssertionError('the data set is loaded')


METHODS_HERE = {'fedem': {'fedem.models': 2, 'seeds': 2, 'participation': 0}, 'ditto': {}}
OTHERS = {'fedrep': {}, 'fedmerge': {'fedmerge.models': 2, 'participation': 0},
          'fedbn': {'model': 'fusion', 'fusion.channels': (2,)}, 'feddle': {'server.size': 30},
          'dmm': {'model': 'fusion', 'fusion.channels': (2,), 'inversion.steps': 1}}


class RunsTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    for name, changes in METHODS_HERE.items():
      cls.train(name, changes)

  @classmethod
  def train(cls, name, changes):
    config = tiny(algorithm=name, mapper='map', **{'partition.test': 0.2, **changes})
    with mock.patch.object(launch, 'plots'):
      launch.run_config(config, f'{cls.folder}/{name}', silent=True)

  def out(self):
    return os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'out')

  def check(self, name, seed):
    """Exports a client's model, and compares it with the program of the run on its data."""
    path = f'{self.folder}/{name}'
    with mock.patch.object(federation, 'dataset', no_data):
      export.export(path, out := self.out(), seed=seed, client=4)
      got = [export.load(of, **how) for of, how in ((out, {}), (path, {'seed': seed, 'client': 4}))]
    run = Run.load(path)
    views = with_data(run.experiment).of(run.states, run.seeds.index(seed))['clients']
    net = build.model(run.config, run.dataset, run.federation)
    x = run.dataset.x_test[:20]
    say = lambda variables: np.asarray(jax.nn.softmax(jax.jit(net.apply)(variables, x)[0]))
    if name == 'fedem':
      wanted = sum(weight * say(one) for weight, one in zip(
          views.weights[4], tree.unstack(views.models), strict=True))
    else:
      wanted = say(jax.tree.map(lambda leaf: leaf[4], views))
    for one in got:
      np.testing.assert_allclose(one.predict(x), wanted, atol=1e-6, rtol=0)
    np.testing.assert_allclose(run.predict(x, view='clients', client=4, seed=seed), wanted,
                               atol=1e-6, rtol=0)
    other = run.predict(x, view='clients', client=3, seed=seed)
    self.assertGreater(abs(other - wanted).max(), 1e-5)

  def test_a_mixture_of_another_seed(self):
    self.check('fedem', 1)

  def test_a_personal_model(self):
    self.check('ditto', 0)

  @parameterized.parameters('fedrep', 'fedmerge', 'fedbn')
  @pytest.mark.slow
  def test_other_personal_models(self, name):
    self.train(name, OTHERS[name])
    self.check(name, 0)

  def test_the_model_for_all_has_nothing_of_the_data(self):
    written = export.export(f'{self.folder}/ditto', out := self.out())
    self.assertEqual(list(written), [out])
    self.assertCountEqual(os.listdir(out), ['model.json', 'model.safetensors'])
    with open(f'{out}/model.json') as file:
      about = json.load(file)
    self.assertNotIn('federation', about)
    self.assertEqual((about['method'], about['round'], about['seed'], about['view']),
                     ('ditto', 2, 0, 'global'))
    run = Run.load(f'{self.folder}/ditto')
    x = run.dataset.x_test[:9]
    np.testing.assert_array_equal(export.load(out).predict(x), run.predict(x))

  def test_every_client_has_a_folder(self):
    written = export.export(f'{self.folder}/fedem@1', out := self.out(), clients=True)
    self.assertLen(written, 6)
    x = Run.load(f'{self.folder}/fedem').dataset.x_test[:9]
    one, other = (export.load(out, client=k) for k in (1, 5))
    self.assertEqual((one.about['client'], one.about['seed']), (1, 1))
    self.assertGreater(abs(one.predict(x) - other.predict(x)).max(), 1e-6)
    np.testing.assert_array_equal(export.load(f'{out}/client-1').predict(x), one.predict(x))
    with self.assertRaisesRegex(InputError, 'with the models of 6 clients; expected --client=ID'):
      export.load(out)
    with self.assertRaisesRegex(InputError, 'got client=7 with .*; expected one of client-0'):
      export.load(out, client=7)

  def test_the_best_client_is_best_on_validation(self):
    run = Run.load(f'{self.folder}/ditto')
    rows = {row['client']: row for row in run.folder.read_table('clients')[-6:]}
    best = export.best_client(run, 0)
    accuracy = lambda client: rows[client]['validation/accuracy']
    self.assertEqual(accuracy(best), max(map(accuracy, rows)))
    equal = [client for client in rows if accuracy(client) == accuracy(best)]
    self.assertEqual(best, min(equal, key=lambda client: rows[client]['validation/loss']))
    self.assertEqual(export.load(run.folder.path, client='best').about['client'], best)

  @parameterized.named_parameters(
      ('no_global', 'fedem', {}, 'has no model for all clients; expected --client=ID'),
      ('client', 'ditto', {'client': 6}, 'got client=6; expected the id of a client: 0, 1, 2'),
      ('word', 'ditto', {'client': 'x'}, 'got client=x; expected the id of a client; of a run '
       'also the name of its owner, or best'),
      ('both', 'ditto', {'client': 1, 'clients': True}, 'got --clients with --client=1'),
      ('view', 'ditto', {'view': 'merged'}, 'got view=merged; expected one of clients, global'),
      ('stack', 'ditto', {'view': 'clients'}, 'got view=clients without a client'),
      ('global_of_one', 'ditto', {'view': 'global', 'client': 1}, 'one model for all; expected no'),
      ('seed', 'ditto', {'seed': 7}, '@7; expected one of its seeds 0'),
      ('nothing', 'nowhere', {}, 'nowhere; expected the folder of a run'),
      ('initial', 'ditto@0/initial', {}, 'initial; expected the folder of a run'))
  def test_what_can_not_be_exported(self, name, asked, wanted):
    out = self.out()
    with self.assertRaisesRegex(InputError, wanted):
      export.export(f'{self.folder}/{name}', out, **asked)
    self.assertFalse(os.path.exists(out))

  def test_nothing_is_written_over(self):
    export.export(f'{self.folder}/ditto', out := self.out())
    with self.assertRaisesRegex(InputError, 'where model.json exists; expected a new folder'):
      export.export(f'{self.folder}/ditto', out)
    with self.assertRaisesRegex(InputError, 'where model.json exists'):
      export.export(f'{self.folder}/ditto', f'{self.folder}/ditto')
    full = mock.patch.object(exported.Workdir, 'write_json', side_effect=SaveError('full'))
    with full, self.assertRaises(SaveError):
      export.export(f'{self.folder}/ditto', other := self.out())
    self.assertEqual(os.listdir(other), [])

  def test_a_damaged_export_is_named(self):
    export.export(f'{self.folder}/ditto', out := self.out())
    with files.opened(f'{out}/model.safetensors') as file:
      tensors = {name: file.read(name) for name in file.shapes}
    os.remove(f'{out}/model.safetensors')
    with self.assertRaisesRegex(InputError, f'got {out}/model.safetensors; expected a file'):
      export.load(out)
    other = tensors | {'params/head/bias': np.zeros(3, np.float32)}
    files.save(f'{out}/model.safetensors', other)
    with self.assertRaisesRegex(InputError, r'head/bias of shape \(3,\); expected \(10,\), as in'):
      export.load(out)
    with open(f'{out}/model.json') as file:
      text = file.read()
    with open(f'{out}/model.json', 'w') as file:
      file.write(text.replace('"largest"', '"smallest"').replace('"classes": 10', '"classes": 3'))
    with self.assertRaisesRegex(InputError, f'got a damaged {out}/model.json'):
      export.load(out)

  def test_a_run_is_only_read(self):
    path = f'{self.folder}/ditto'
    seen = lambda: {os.path.join(folder, name): os.stat(os.path.join(folder, name)).st_mtime_ns
                    for folder, _, names in os.walk(path) for name in [*names, '.']}
    before = seen()
    export.export(path, self.out(), client='best')
    self.assertEqual(seen(), before)

  def test_a_run_of_an_earlier_release_is_exported_with_its_data(self):
    run = Run.load(f'{self.folder}/ditto')
    os.rename(run.folder.file('model.json'), run.folder.file('hidden'))
    self.addCleanup(os.rename, run.folder.file('hidden'), run.folder.file('model.json'))
    x = run.dataset.x_test[:9]
    old = export.load(run.folder.path, client=4).predict(x)
    os.rename(run.folder.file('hidden'), run.folder.file('model.json'))
    self.addCleanup(os.rename, run.folder.file('model.json'), run.folder.file('hidden'))
    np.testing.assert_allclose(export.load(run.folder.path, client=4).predict(x), old, atol=1e-6)

  def test_a_network_of_ones_own_whose_file_is_gone(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    with open(f'{folder}/net.py', 'w') as file:
      file.write('from hmm_jax.models.mlp import mlp\nfrom hmm_jax.registry import Network\n'
                 "NET = Network('net', lambda inputs, settings: mlp((3,), classes=inputs.classes, "
                 'input_shape=inputs.shape))\n')
    config, data = networks.of(f'{folder}/net.py:NET', {}, 'vectors')
    about = blueprint.describe(config, data, federation.federation(config, data))
    exported.write(out := self.out(), blueprint.model(about).init(jax.random.key(0)),
                   exported.described(about))
    self.assertEqual(export.load(out).predict(data.x_test).shape, (5, networks.CLASSES))
    os.remove(f'{folder}/net.py')
    registry._file.cache_clear()
    with self.assertRaisesRegex(InputError, f'got {out}, whose network is .*but there is no'):
      export.load(out)


@pytest.mark.slow
class MethodsTest(parameterized.TestCase):

  @parameterized.parameters(*METHODS)
  def test_models_are_made_without_data_and_the_initial_one_is_kept(self, name):
    config = tiny(algorithm=name, mapper='map', **OTHERS.get(name, {}) | (
        {'participation': 0} if 'all clients' in METHODS[name].needs else {}) | (
            {'partition.test_rows': 'alike'} if 'own examples' in METHODS[name].needs else {}))
    data = federation.dataset(config)
    made = federation.federation(config, data)
    experiment = build.experiment(config, data, made)
    trainer = Trainer(experiment)
    states = trainer.initial()
    wanted = with_data(experiment).of(states, 0)
    kept = json.loads(json.dumps(outline.outline(made)))
    views = without_data(config, build.model(config, data, made), outline.rebuild(kept))
    self.assertIsNotNone(views)
    jax.tree.map(lambda a, b: self.assertEqual((a.shape, a.dtype), (b.shape, b.dtype)),
                 views.shapes, trainer.shapes)
    got = views.of(states, 0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, wanted)
    initial = next(trainer.initial_models(experiment.init))
    if 'global' in wanted:
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), initial,
                   wanted['global'])


if __name__ == '__main__':
  absltest.main()
