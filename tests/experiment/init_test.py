"""What a run begins from: it keeps it, and may be given it."""

import os
import shutil
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import numpy as np
from reference.configs import tiny

from hmm_jax import tree
from hmm_jax.experiment import build, export, federation, launch, locate
from hmm_jax.experiment.saved import Run
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.models import files
from hmm_jax.report.screen import Screen
from hmm_jax.types import InputError


def train(path, **changes):
  with mock.patch.object(launch, 'plots'):
    return launch.train(tiny(mapper='map', **changes), Workdir(path), Screen(silent=True))


def read(path):
  with files.opened(path) as file:
    return {name: file.read(name) for name in file.shapes}


def begun(path, **changes):
  """Returns the states before the first round of a run with a given initial model."""
  config = tiny(init=path, **changes)
  data = federation.dataset(config)
  made = federation.federation(config, data)
  built = build.experiment(config, data, made, given=locate.tensors(path))
  return jax.jit(built.algorithm.init)(jax.random.key(5), built.federation)


class InitTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.first = f'{cls.folder}/first'
    train(cls.first, seed=3, seeds=2, rounds=1)

  def out(self):
    return os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'out')

  def test_a_run_keeps_what_each_seed_began_from(self):
    self.assertCountEqual(os.listdir(f'{self.first}/initial'), ['3.safetensors', '4.safetensors'])
    config = tiny(seed=3, seeds=2)
    data = federation.dataset(config)
    made = federation.federation(config, data)
    model = build.model(config, data, made)
    kept = [read(Run.load(self.first).initial_file(seed)) for seed in (3, 4)]
    for seed, one in zip((3, 4), kept, strict=True):
      key = jax.random.split(jax.random.key(seed), 3)[0]
      wanted = files.flatten(model.init(key))
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), one, wanted)

  def test_it_is_not_rewritten_by_a_resumed_run(self):
    shutil.copytree(self.first, path := self.out())
    files.save(f'{path}/initial/3.safetensors', {'x': np.ones(1)})
    train(path, seed=3, seeds=2, rounds=2)
    self.assertEqual(list(read(f'{path}/initial/3.safetensors')), ['x'])

  def test_every_form_of_a_path(self):
    export.export(self.first, out := self.out(), seed=4)
    last = files.flatten(Run.load(self.first).models(4)['global'])
    files.save(file := f'{out}/other.npz', {name: np.float64(x) for name, x in last.items()})
    for path in (f'{self.first}@4', out, file, f'{out}/model.safetensors'):
      got = locate.tensors(path)
      self.assertEqual({x.dtype for x in got.values()}, {np.dtype(np.float32)})
      jax.tree.map(np.testing.assert_array_equal, got, last)
    begun_from = read(f'{self.first}/initial/3.safetensors')
    for path in (f'{self.first}/initial', f'{self.first}@3/initial/'):
      jax.tree.map(np.testing.assert_array_equal, locate.tensors(path), begun_from)

  @parameterized.named_parameters(
      ('nowhere', 'nowhere', 'got .*nowhere; expected a file'),
      ('empty', '', 'expected the folder of a run, or an exported one'),
      ('seed', 'first@7', 'first@7; expected one of its seeds 3, 4'),
      ('initial', 'first@7/initial', 'first@7; expected one of its seeds 3, 4'),
      ('config', 'first/config.json', 'expected a file .safetensors or .npz'))
  def test_no_model_is_named(self, name, wanted):
    with self.assertRaisesRegex(InputError, wanted):
      locate.tensors(f'{self.folder}/{name}')

  def test_all_seeds_go_on_from_a_model(self):
    export.export(f'{self.first}@4', out := self.out())
    train(path := self.out(), init=out, rounds=1, seeds=2)
    for seed in (0, 1):
      jax.tree.map(np.testing.assert_array_equal, read(f'{path}/initial/{seed}.safetensors'),
                   read(f'{out}/model.safetensors'))
    # Another model in its place is another run's.
    given = read(f'{out}/model.safetensors')
    files.save(f'{out}/model.safetensors', {name: x + 1 for name, x in given.items()})
    with self.assertRaisesRegex(InputError, 'got other tensors in init than those that .*out was'):
      train(path, init=out, rounds=2, seeds=2)
    # What the run has saved is read without it.
    shutil.rmtree(out)
    self.assertEqual(Run.load(path).models(1)['global']['params']['head']['bias'].shape, (10,))

  @parameterized.named_parameters(
      ('shape', {'params/head/bias': np.zeros(3, np.float32)},
       r'with params/head/bias of shape \(3,\); expected \(10,\), as in model=mlp'),
      ('more', {'params/more': np.zeros(3)}, r'params/more of shape \(3,\); expected none'),
      ('nan', {'params/head/bias': np.full(10, np.nan)}, 'NaN or infinity in params/head/bias'))
  def test_another_network_is_refused_before_anything_is_written(self, changed, wanted):
    files.save(file := f'{self.folder}/x.safetensors',
               read(f'{self.first}/initial/3.safetensors') | changed)
    with self.assertRaisesRegex(InputError, wanted):
      train(path := self.out(), init=file)
    self.assertFalse(os.path.exists(path))

  def test_several_models_lie_around_the_given_one(self):
    path = f'{self.first}/initial/3.safetensors'
    models = tree.unstack(begun(path, algorithm='fedem', **{'fedem.models': 3}).models)
    jax.tree.map(np.testing.assert_array_equal, models[0], files.unflatten(read(path)))
    kernels = [model['params']['head']['kernel'] for model in models]
    for a, b in ((0, 1), (0, 2), (1, 2)):
      self.assertBetween(abs(kernels[a] - kernels[b]).max(), 0.001, 0.2)

  def test_agents_that_begin_apart_do_so_around_the_given_model(self):
    path = f'{self.first}/initial/3.safetensors'
    state = begun(path, algorithm='gossip', participation=0, **{'gossip.start': 'different'})
    kernels = np.asarray(state.stacked['params']['head']['kernel'])
    away = np.abs(kernels - read(path)['params/head/kernel']).max(axis=(1, 2))
    self.assertBetween(away.min(), 0.001, 0.2)
    self.assertLen(np.unique(away), len(away))


if __name__ == '__main__':
  absltest.main()
