"""Every study's config is complete, all its runs can be built, and recorded ones are of it."""

import importlib.util
import json
import pathlib
import re
import sys
import tempfile

from absl.testing import absltest, parameterized
import jax
import pytest

from hmm_jax.experiment import build, comparisons, federation, launch
from hmm_jax.experiment import config as configs

FOLDER = pathlib.Path(__file__).parent.parent / 'experiments'
sys.path.insert(0, str(FOLDER))
results = importlib.import_module('results')
# On data that needs no download, with networks that are quick to trace.
SMALL = {'dataset': 'digits', 'subset': 1.0, 'model': 'mlp', 'mlp.hidden': (8,), 'clients': 10,
         'participation': 0, 'partition.alpha': 1.0, 'partition.min_size': 5,
         'partition.classes_per_cluster': 3, 'partition.size': 50, 'augment': 'none'}
# What is not recorded.
STUDIES = [
    *(('single_merging', f'setting={setting},scale=paper')
      for setting in ('main', 'windows', 'topologies', 'finite_gossip', 'init')),
    *(('fedmr', f'alpha={alpha},scale=paper') for alpha in ('0.1', '0.5')),
    *(('fedmerge', f'setting={setting},scale=paper') for setting in ('clusters', 'client_wise')),
    ('feddle', 'setting=noisy,rows=2000,noisy=0.5'),
    ('dmm', 'data=crisismmd,alpha=0.01'), ('dmm', 'data=cifar10,alpha=0.01,merges=often'),
]

# What a study's runs are recorded as.
RECORDED = [
    ('federated_images', '', 'fashion_mnist'),
    ('federated_images', 'dataset=cifar10', 'cifar10'),
    *(('single_merging', f'setting={setting}', setting) for setting in (
        'main', 'windows', 'topologies', 'finite_gossip', 'init')),
    *(('fedmr', f'alpha={alpha}', f'alpha_{alpha}') for alpha in ('0.1', '0.5')),
    *(('fedmerge', f'setting={setting}', setting) for setting in ('clusters', 'client_wise')),
    *(('feddle', f'setting={setting}', setting)
      for setting in ('in_domain', 'mnist', 'cifar10', 'usps', 'late', 'ablation')),
    *(('feddle', f'setting=noisy,noisy={share}', f'noisy_{share}') for share in (0.3, 0.5)),
    *(('feddle', f'rows={rows}', f'in_domain_{rows}') for rows in (100, 2000)),
    *(('dmm', f'data={data},alpha={alpha}', f'{data}_{alpha}') for data, alpha in (
        ('fashion_mnist', '0.01'), ('fashion_mnist', '0.1'), ('fashion_mnist', '1.0'),
        ('cifar10', '0.01'), ('cifar10', '0.1'), ('cifar10', '1.0'))),
    ('dmm', 'data=crisismmd', 'crisismmd'),
    ('dmm', 'data=crisismmd,merges=often', 'crisismmd_often'),
    ('dmm', 'data=fashion_mnist,merges=often', 'fashion_mnist_0.1_often'),
    ('speakers', 'speeches.jsonl.xz', 'shakespeare'),
]


def study(name: str, *arguments):
  spec = importlib.util.spec_from_file_location(name, FOLDER / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*arguments)


def assert_can_be_built(config):
  """Builds a study's first run and the others, and traces a round and its views."""
  data = federation.dataset(config)
  for run in (config, *comparisons.comparisons(config).values()):
    held = federation.federation(run, data)
    made = build.experiment(run, data, held)

    def play(key, held, algorithm=made.algorithm):
      state, _ = algorithm.round(algorithm.init(key, held), held, key)
      if algorithm.finish:
        state, _ = algorithm.finish(state, held, key)
      return algorithm.views(state, held)

    assert jax.eval_shape(play, jax.random.key(0), held)


def runs_of(test, name, arguments):
  """Checks a study's runs; returns the first, and all by name."""
  config = configs.complete(study(name, *filter(None, [arguments])))
  configs.check(config)
  test.assertEqual((config.seed, config.seeds), (0, 3))
  others = comparisons.comparisons(config)
  for run in others.values():
    test.assertEqual((run.rounds, run.seeds), (config.rounds, config.seeds))
    test.assertLessEqual(run.participation, run.clients)
  return {config.name or config.algorithm: config, **others}


def named(cases):
  """Names cases of (study, arguments, ...) for `pytest -k`."""
  return parameterized.named_parameters(
      (re.sub(r'\W+', '_', f'{name}_{arguments}').strip('_'), name, arguments, *rest)
      for name, arguments, *rest in cases)


class ExperimentsTest(parameterized.TestCase):

  @named(STUDIES)
  def test_is_complete(self, name, arguments):
    runs_of(self, name, arguments)

  @named([
      ('fedmr', ''), ('fedmerge', 'setting=clusters'), ('fedmerge', 'setting=client_wise'),
      ('feddle', 'rows=100'), ('feddle', 'setting=noisy'), ('feddle', 'setting=late'),
      ('feddle', 'setting=ablation')])
  @pytest.mark.slow
  def test_all_runs_can_be_built(self, name, arguments):
    config = study(name, *filter(None, [arguments]))
    config.update_from_flattened_dict(SMALL)
    assert_can_be_built(config)

  @named(RECORDED)
  def test_is_what_is_recorded(self, name, arguments, run):
    runs = runs_of(self, name, arguments)
    recorded = results.load(name)[run]
    self.assertEqual(list(recorded), list(runs))
    for other, changed in runs.items():
      # A key that is newer than the run has had its default.
      before = configs.flat(configs.get_config()) | configs.renamed(
          recorded[other]['config'])
      before['selection'] = configs.selecting(before['selection'], before['task'])
      for key, value in configs.flat(changed).items():
        if key == 'selection':
          value = configs.selecting(value, changed.task)
        if key not in configs.COSMETIC:
          self.assertEqual(launch.as_json(before[key]), launch.as_json(value), f'{other} {key}')
      self.assertEqual(recorded[other]['costs']['rounds_requested'], changed.rounds, other)

  def test_speakers(self):
    with tempfile.NamedTemporaryFile('w', suffix='.jsonl') as file:
      for i in range(40):
        json.dump({'play': 'one', 'speaker': str(i), 'text': f'to {i} or not to {i}. ' * 150}, file)
        file.write('\n')
      file.flush()
      config = study('speakers', file.name)
      config.update_from_flattened_dict({'lstm.hidden': (4,)})
      assert_can_be_built(config)


if __name__ == '__main__':
  absltest.main()
