"""The command that merges saved models, called as `main` calls it."""

import contextlib
import errno
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from unittest import mock

from absl import flags
from absl.testing import absltest, flagsaver, parameterized
import numpy as np
import pytest
from reference import full_disk

from hmm_jax.experiment import config as defaults
from hmm_jax.experiment.launch import train
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.merge import __main__ as merge
from hmm_jax.merge.models import merge as merge_function
from hmm_jax.models import files
from hmm_jax.report.screen import Screen
from hmm_jax.types import InputError, SaveError

ROOT = pathlib.Path(__file__).parents[2]
SHAPES = {'layer.weight': (60, 40), 'layer.bias': (40,)}


def drawn(seed, scale=1.0):
  rng = np.random.default_rng(seed)
  return {name: scale * np.float32(rng.normal(size=shape)) for name, shape in SHAPES.items()}


def plus(a, b):
  return {name: a[name] + b[name] for name in a}


BASE = drawn(0)
FIRST, SECOND = (plus(BASE, drawn(seed, 0.2)) for seed in (1, 2))
COUNTERS = {'bn.running_mean': np.float32([0, 1]), 'bn.running_var': np.float32([1, 2]),
            'bn.num_batches_tracked': np.array(7)}


class MergeTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    self.folder = self.create_tempdir().full_path
    for name, model in (('base', BASE), ('a', FIRST), ('b', SECOND)):
      files.save(self.path(f'{name}.safetensors'), model)

  def path(self, *names):
    return os.path.join(self.folder, *names)

  def run_merge(self, models=('a.safetensors', 'b.safetensors'), base=None, **given):
    """Runs the command; returns what it says."""
    given = {'models': [self.path(name) for name in models], 'out': self.path('out')} | given
    if base:
      given['base'] = self.path(base)
    with flagsaver.flagsaver(**given), contextlib.redirect_stdout(io.StringIO()) as said:
      merge.main(['merge'])
    return said.getvalue()

  def merged(self, name='merged.safetensors'):
    with files.opened(self.path('out', name)) as file:
      return {key: np.asarray(file.read(key)) for key in file.shapes}

  def test_the_mean(self):
    said = self.run_merge(method='uniform')
    self.assertRegex(said, r'layer.weight +│ float32 +│ \(60, 40\) +│ uniform +│ 0.0000')
    for name, x in self.merged().items():
      np.testing.assert_allclose(x, (FIRST[name] + SECOND[name]) / 2, rtol=1e-6)
    with open(self.path('out', 'merge.json')) as file:
      self.assertEqual(json.load(file)['method'], 'uniform')

  def test_settings_and_a_base(self):
    self.run_merge(method='task_arithmetic', base='base.safetensors', set=['scale=0.5'],
                   weights=['1', '-2'])
    for name, x in self.merged().items():
      wanted = BASE[name] + 0.5 * (FIRST[name] - BASE[name] - 2 * (SECOND[name] - BASE[name]))
      np.testing.assert_allclose(x, wanted, rtol=1e-5, atol=1e-6)

  def test_statistics_are_pooled_and_counters_the_first_models(self):
    other = COUNTERS | {'bn.running_mean': np.float32([2, 1]),
                        'bn.num_batches_tracked': np.array(9)}
    np.savez(self.path('a.npz'), **FIRST, **COUNTERS)
    np.savez(self.path('b.npz'), **SECOND, **other)
    said = self.run_merge(('a.npz', 'b.npz'), method='uniform')
    got = self.merged('merged.npz')
    np.testing.assert_allclose(got['bn.running_mean'], [1, 1])
    np.testing.assert_allclose(got['bn.running_var'], [2, 2])  # A spread of 1 beside the first 1.
    self.assertEqual(got['bn.num_batches_tracked'], 7)
    self.assertRegex(said, 'bn.running_var.*pooled statistics')
    self.assertRegex(said, "bn.num_batches_tracked.*the first model's")

  def test_statistics_are_pooled_by_weights(self):
    for path, mean, var in (('a.npz', 0, 1), ('b.npz', 4, 3)):
      np.savez(self.path(path), w=np.ones((2, 2), np.float32), **{
          'bn.running_mean': np.float32([mean]), 'bn.running_var': np.float32([var]),
          'lonely_var': np.float32([var]), 'batch_stats/x/var': np.float32([var])})
    for given, mean, var in ((dict(method='weighted', weights=['0.75', '0.25']), 1, 4.5),
                             (dict(method='slerp', set=['t=0.25']), 1, 4.5),
                             (dict(method='slerp', set=['t=0']), 0, 1),
                             (dict(method='uniform'), 2, 6),
                             (dict(method='ties', base='a.npz', weights=['1', '-1']), 2, 6)):
      self.run_merge(('a.npz', 'b.npz'), out=self.path(out := f'{given}'), **given)
      with files.opened(self.path(out, 'merged.npz')) as file:
        np.testing.assert_allclose(file.read('bn.running_mean'), mean)
        np.testing.assert_allclose(file.read('bn.running_var'), var)
        share = mean / 4  # Without a mean beside it, a variance is averaged.
        np.testing.assert_allclose(file.read('batch_stats/x/var'), 1 + 2 * share)

  def test_the_change_is_in_lengths_of_the_mean(self):
    for path, x in (('x.npz', [3, 0]), ('y.npz', [3, 8])):
      np.savez(self.path(path), x=np.float32(x), zero=np.zeros(2, np.float32))
    said = self.run_merge(('x.npz', 'y.npz'), method='weighted', weights=['1', '0'])
    self.assertRegex(said, r'x +│ float32 +│ \(2,\) +│ weighted +│ 0.8000')  # 4 of 5
    self.assertRegex(said, r'zero +│ float32 +│ \(2,\) +│ weighted +│ 0.0000')

  def test_models_that_unpack_to_more_than_the_limit(self):
    for name, model in (('a.npz', FIRST), ('b.npz', SECOND), ('p.npz', BASE)):
      np.savez_compressed(self.path(name), **model)
    given = dict(method='ties', base='p.npz')
    self.run_merge(('a.npz', 'b.npz'), dry_run=True, **given)
    for models, base in (('b.npz', 'base.safetensors'), ('a.safetensors', 'p.npz')):
      with self.assertRaisesRegex(InputError, '^got .*npz; expected a file that unpacks to at most '
                                  '1e-06 GiB, .*; unpack_limit can be larger'):
        self.run_merge((models, models), unpack_limit=1e-6, **given | {'base': base})
    self.assertFalse(os.path.exists(self.path('out')))

  def test_settings_may_be_written_without_a_point(self):
    self.run_merge(method='dare', base='base.safetensors', set=['density=1', 'scale=1'])
    for name, x in self.merged().items():
      wanted = FIRST[name] + SECOND[name] - BASE[name]
      np.testing.assert_allclose(x, wanted, rtol=1e-5, atol=1e-6)

  def test_names_are_shown_as_they_are(self):
    names = ['[red]w', 'w[/y]', 'w' * 200]
    np.savez(self.path('x.npz'), **{name: np.ones(2, np.float32) for name in names})
    said = self.run_merge(('x.npz', 'x.npz'), method='uniform')
    for name in names[:2]:
      self.assertRegex(said, re.escape(name) + r' +│ float32 +│ \(2,\) +│ uniform +│ 0.0000')
    self.assertRegex(said, r'w{50,}.*│ uniform +│ 0.0000')

  def test_a_path_may_hold_the_sign_of_seeds(self):
    files.save(self.path('x@1', 'a.safetensors'), FIRST)
    os.mkdir(self.path('x'))
    self.run_merge(('x@1/a.safetensors', 'b.safetensors'), method='uniform')

  def test_float64_becomes_float32(self):
    for name, model in (('x.npz', FIRST), ('y.npz', SECOND)):
      np.savez(self.path(name), **{key: x.astype(np.float64) for key, x in model.items()})
    said = self.run_merge(('x.npz', 'y.npz'), method='ties', base='base.safetensors')
    self.assertRegex(said, r'layer.weight +│ float32')

  def test_a_dry_run_writes_nothing(self):
    said = self.run_merge(method='uniform', dry_run=True)
    self.assertIn('layer.bias', said)
    self.assertFalse(os.path.exists(self.path('out')))

  def test_lists_methods_and_their_needs(self):
    said = self.run_merge(method='list')
    self.assertRegex(said, r'ties +│ base +│ density=0.2')

  @parameterized.parameters(
      (dict(method='tis'), '^got --method=tis; .*did you mean ties'),
      (dict(method='ties'), '^got --method=ties without --base'),
      (dict(method='slerp', models=['a.safetensors']), '^got --method=slerp with 1 models'),
      (dict(method='fisher'), '^got --method=fisher without --evaluate'),
      (dict(method='weighted'), '^got --method=weighted without weights; expected'),
      (dict(method='weighted', weights=['1', 'x']), '^got --weights=1,x; expected numbers'),
      (dict(method='weighted', weights=['1']), r'^got weights=\[1.0\]; expected 2 finite numbers'),
      (dict(method='uniform', weights=['1', '2']), '^got --weights with --method=uniform'),
      (dict(method='slerp', set=['t=x']), '^got t=x; expected a value like 0.5'),
      (dict(method='slerp', set=['t']), "^got the setting 't'; expected key=value"),
      (dict(method='slerp', set=['t={[]:1}']), '^got t={'),
      (dict(method='slerp', set=['t={1:{[]:1}}']), '^got t={'),
      (dict(method='slerp', set=['t=' + '(' * 10000]), '^got t=[(]'),
      (dict(method='slerp', set=['t=' + 'not ' * 10000 + '1']), '^got t=not '),
      (dict(method='slerp', set=['t=2']), '^got t=2.0; '),
      (dict(method='uniform', models=[]), '^got no --models'),
      (dict(), '^got no --method; expected one of uniform, '),
      (dict(method='weighted', weights=['inf', '0']), r'^got weights=\[inf, 0.0\]; expected 2 fin'),
      (dict(method='weighted', weights=['3e38', '3e38']), 'which sum to 6e[+]38'),
      (dict(method='weighted', set=['weights=1']), '^got --set weights=1; expected --weights'),
      (dict(method='dare', base='base.safetensors', set=['density=nan']), '^got density=nan'),
      (dict(method='ties', base='base.safetensors', set=['scope=1']), '^got scope=1; '),
      (dict(method='ties', base='base.safetensors', set=['scale=1e39']), '^got scale=1e[+]39'),
      (dict(method='ties', base='base.safetensors', set=[f'scale=1{"0" * 400}']), 'got scale=inf'),
      (dict(method='task_arithmetic', base='base.safetensors', set=['scale=3e38'],
            weights=['9', '9']), '^got NaN or infinity in layer.* of the merged model'),
      (dict(method='uniform', out='/dev/null/x'), '^got --out=/dev/null/x; '),
      (dict(method='uniform', evaluate='no.py'), '^got config=no.py; '),
      (dict(method='uniform', out='a\0'), '^got --out=a'),
      (dict(method='uniform', models=['a\0.npz']), '^got .*null'),
      (dict(method='uniform', models=['/dev/zero']), '^got /dev/zero; expected a file'),
      (dict(method='ties', base='/dev/zero'), '^got .*; expected a file'),
      (dict(method='uniform', evaluate='/dev/zero'), '^got /dev/zero; expected a config file'),
      (dict(method='a\0.py:X'), '^got --method=a'),
      (dict(method='uniform', unpack_limit=float('nan')), '^got unpack_limit=nan; '),
      (dict(method='uniform', out=None), '^got no --out; '),
      (dict(method='uniform', models=['a.safetensors', 'no.npz']), 'No such file'),
  )
  def test_refuses(self, given, message):
    with self.assertRaisesRegex(InputError, message):
      self.run_merge(**given)
    self.assertFalse(os.path.exists(self.path('out')))

  @parameterized.parameters(
      (FIRST | {'more': np.ones(3, np.float32)}, 'a.safetensors without the tensor more of .*x'),
      ({'layer.bias': FIRST['layer.bias']}, 'x.safetensors without the tensor layer.weight'),
      (FIRST | {'layer.bias': np.ones(41, np.float32)},
       r'x.safetensors with layer.bias of shape \(41,\); expected \(40,\), as in .*a.safetensors'),
      (FIRST | {'layer.bias': np.full(40, np.nan, np.float32)}, 'NaN or infinity in layer.bias'),
      (FIRST | {'layer.bias': np.full(40, 1e200)}, 'NaN or infinity in layer.bias; .* as float32'),
      (FIRST | {'layer.bias': np.ones(40, np.float16)}, 'in float16; expected float32, as in .*a'),
      (FIRST | {'layer.bias': np.ones(40, int)}, 'in int64; expected float32, as in .*a'),
  )
  def test_refuses_a_model_that_does_not_fit(self, model, message):
    files.save(self.path('x.safetensors'), model)
    with self.assertRaisesRegex(InputError, message):
      self.run_merge(('a.safetensors', 'x.safetensors'), method='uniform')
    with self.subTest('nor as the start of the others'), self.assertRaisesRegex(
        InputError, message):
      self.run_merge(method='ties', base='x.safetensors')

  @parameterized.parameters(np.float32, np.float64)
  def test_masks_that_are_equal_stay(self, dtype):
    mask = np.triu(np.full((3, 3), -np.inf, dtype), 1)
    for path, model in (('a.npz', FIRST), ('b.npz', SECOND), ('p.npz', BASE)):
      np.savez(self.path(path), **model, mask=mask)
    said = self.run_merge(('a.npz', 'b.npz'), method='ties', base='p.npz')
    np.testing.assert_array_equal(self.merged('merged.npz')['mask'], mask)
    self.assertRegex(said, "mask.*the first model's")
    np.savez(self.path('a.npz'), **FIRST, mask=np.ones((3, 3), dtype))
    for models, base in ((('a.npz', 'b.npz'), None), (('a.npz', 'a.npz'), 'b.npz')):
      with self.subTest(models), self.assertRaisesRegex(
          InputError, 'b.npz with NaN or infinity in mask'):
        self.run_merge(models, base, method='ties' if base else 'uniform', out=self.path('other'))

  @parameterized.parameters(np.nan, 1e200)
  def test_equal_values_that_are_no_numbers_do_not(self, value):
    np.savez(self.path('a.npz'), **FIRST, mask=np.full(3, value))
    with self.assertRaisesRegex(InputError, 'a.npz with NaN or infinity in mask'):
      self.run_merge(('a.npz', 'a.npz'), method='uniform')

  def test_metadata_of_all_models_stays(self):
    for path, more in (('a', {'by': 'me', 'steps': '1'}), ('b', {'by': 'me', 'steps': '2'})):
      files.save(self.path(f'{path}.safetensors'), FIRST, {'format': 'pt', **more})
    self.run_merge(method='uniform')
    with files.opened(self.path('out', 'merged.safetensors')) as file:
      self.assertEqual(file.metadata, {'format': 'pt', 'by': 'me'})
    merge_function('uniform', [self.path('a.safetensors')], out=self.path('c.safetensors'))
    with files.opened(self.path('c.safetensors')) as file:
      self.assertEqual(file.metadata, {'format': 'pt', 'by': 'me', 'steps': '1'})

  def test_big_endian_models(self):
    for path, model in (('a.npz', FIRST), ('b.npz', SECOND)):
      np.savez(self.path(path), **{name: x.astype('>f4') for name, x in model.items()})
    self.run_merge(('a.npz', 'b.safetensors'), method='uniform')
    for name, x in self.merged('merged.npz').items():
      np.testing.assert_allclose(x, (FIRST[name] + SECOND[name]) / 2, rtol=1e-6)

  def test_a_tilde_is_the_home(self):
    with mock.patch.dict(os.environ, HOME=self.folder):
      models = ['~/a.safetensors', '~/b.safetensors']
      merge_function('ties', models, base='~/base.safetensors', out='~/own.npz')
      with self.assertRaisesRegex(InputError, f'config={self.folder}/no.py'):
        merge_function('uniform', models, evaluate='~/no.py')
      self.run_merge(method='uniform', out='~/out')
    self.assertTrue(os.path.exists(self.path('own.npz')))
    self.assertTrue(os.path.exists(self.path('out', 'merged.safetensors')))

  @parameterized.parameters('x.py', 'x.py:y', 'a:b', 'a b.py:c.py')
  def test_a_record_of_ones_own_in_a_folder_of_any_name(self, folder):
    os.mkdir(self.path(folder))
    with open(self.path(folder, 'mine.py'), 'w') as file:
      file.write('from hmm_jax.merging.average import UNIFORM as MINE')
    self.run_merge(method=self.path(folder, 'mine.py:MINE'))

  @parameterized.parameters('x', 'x.csv', '.', 'a\0.npz')
  def test_the_function_refuses_another_target(self, out):
    with self.assertRaisesRegex(InputError, '^got out='):
      merge_function('uniform', [self.path('a.safetensors')], out=out)

  @parameterized.parameters(
      ('q.weight', np.int8([[1, 2]]), np.int8([[1, 3]])), ('q.zero_point', 3, 4),
      ('packed', np.uint8([7]), np.uint8([9])), ('mask', np.array([True]), np.array([False])),
      ('step', np.arange(2), np.arange(1, 3)), ('ids', np.int64([2**40]), np.int64([2**40 + 1])))
  def test_refuses_integers_that_differ(self, name, x, y):
    for path, value in (('a.npz', x), ('b.npz', y)):
      np.savez(self.path(path), **FIRST, **{name: value})
    with self.assertRaisesRegex(InputError, f'^got models that differ in {name}, .*dequantize'):
      self.run_merge(('a.npz', 'b.npz'), method='uniform')
    self.assertFalse(os.path.exists(self.path('out')))
    self.run_merge(('a.npz', 'a.npz'), method='uniform')  # The same in all.
    np.testing.assert_array_equal(self.merged('merged.npz')[name], x)

  def test_lora_pairs(self):
    for path in 'a.npz', 'b.npz':
      np.savez(self.path(path), **{
          'q.lora_A.weight': np.ones((2, 9), np.float32), 'q.lora_B.weight': np.ones((8, 2), 'f4')})
    with self.assertRaisesRegex(InputError, '^got the LoRA pair'):
      self.run_merge(('a.npz', 'b.npz'), method='uniform')
    self.assertFalse(os.path.exists(self.path('out')))
    said = self.run_merge(('a.npz', 'b.npz'), method='uniform', lora_rank=1)
    self.assertRegex(said, r'q.lora_A.weight +│ float32 +│ \(1, 9\) +│ uniform of products')
    self.assertIn('LoRA pairs of rank 2 are now of rank 1, ', said)
    with open(self.path('out', 'merge.json')) as file:
      self.assertEqual(json.load(file)['lora_rank'], 1)

  @parameterized.parameters(
      {'count': np.arange(3)}, {'bn.running_mean': np.ones(3, np.float32)}, {})
  def test_refuses_models_without_parameters(self, **model):
    files.save(self.path('x.npz'), model)
    with self.assertRaisesRegex(InputError, 'x.npz without parameters; expected tensors of floats'):
      self.run_merge(('x.npz', 'x.npz'), method='uniform')

  @parameterized.parameters(
      ('get_config = 3', "which fails with TypeError: 'int'"), ('def', 'fails with SyntaxError'),
      ('def get_config(): return 3', 'whose get_config returns int; expected a ConfigDict'),
      ('import sys; sys.exit(3)', 'which fails with SystemExit: 3; expected a config file'),
      ('def get_config(text): raise ValueError(text)', 'which fails with ValueError: x:y;'))
  def test_refuses_a_config_file_that_fails(self, text, message):
    with open(self.path('c.py'), 'w') as file:
      file.write(text)
    argument = ':x:y' if '(text)' in text else ''
    with self.assertRaisesRegex(InputError, message):
      self.run_merge(method='uniform', evaluate=self.path('c.py') + argument)

  @parameterized.parameters(('{', 'a damaged .*config.json'), ('[]', 'a foreign .*config.json'))
  def test_refuses_a_run_that_is_damaged(self, text, message):
    with open(self.path('config.json'), 'w') as file:
      file.write(text)
    for given in (dict(evaluate=self.folder), dict(models=[self.folder])):
      with self.assertRaisesRegex(InputError, message):
        self.run_merge(method='uniform', **given)

  def test_refuses_a_base_that_is_none_of_theirs(self):
    files.save(self.path('x.safetensors'), drawn(9))
    with self.assertRaisesRegex(
        InputError, r'x.safetensors, whose weights have a cosine of -?0.0\d+ with those of .*/a'):
      self.run_merge(method='ties', base='x.safetensors')
    with self.subTest('any model'), self.assertRaisesRegex(InputError, 'with those of .*/x'):
      self.run_merge(('a.safetensors', 'x.safetensors'), method='ties', base='base.safetensors')
    files.save(self.path('y.safetensors'), {name: np.zeros_like(x) for name, x in BASE.items()})
    self.run_merge(method='ties', base='y.safetensors')  # Nothing tells zeros from their start.

  @parameterized.parameters(0, 10, 1000, 'fsync', 'replace')
  def test_a_full_disk_is_one_line_and_code_1(self, fails):
    full = full_disk.largest_file(fails) if isinstance(fails, int) else mock.patch.object(
        os, fails, side_effect=OSError(errno.ENOSPC, 'full'))
    run = mock.patch.object(merge.app, 'run', lambda main, argv, flags_parser: main(argv))
    self.run_merge(method='uniform', dry_run=True)  # Compiles, which may write to a cache.
    given = {'models': [self.path(f'{name}.safetensors') for name in 'ab'], 'method': 'uniform',
             'out': self.path('out')}
    with flagsaver.flagsaver(**given), run, full, contextlib.redirect_stderr(
        io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()), self.assertRaises(
            SystemExit) as caught:
      merge.entry(['merge'])
    self.assertEqual(caught.exception.code, 1)
    self.assertRegex(said.getvalue(), r'^hmm_jax: .*out.*\n$')
    self.assertEqual(os.listdir(self.path('out')), [])

  def test_what_failed_late_leaves_no_half(self):
    calls, replace = [], os.replace

    def second_fails(*paths):
      calls.append(paths)
      if len(calls) == 2:
        raise OSError(errno.ENOSPC, 'full')
      replace(*paths)

    with mock.patch.object(os, 'replace', second_fails), self.assertRaises(SaveError):
      self.run_merge(method='uniform')
    self.assertEqual(os.listdir(self.path('out')), [])
    self.run_merge(method='uniform')
    self.assertCountEqual(os.listdir(self.path('out')), ['merged.safetensors', 'merge.json'])

  def test_overwrites_nothing(self):
    self.run_merge(method='uniform')
    with self.assertRaisesRegex(InputError, 'got --out=.*merge.json'):
      self.run_merge(method='uniform')


class EntryTest(absltest.TestCase):
  """The command in a process of its own."""

  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())
    files.save(os.path.join(self.folder, 'a.npz'), FIRST)

  def run_command(self, *given):
    done = subprocess.run(
        [sys.executable, '-m', 'hmm_jax.merge', '--method=uniform', '--models=a.npz', *given],
        capture_output=True, text=True, check=False, cwd=self.folder,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'})
    self.assertEqual(os.listdir(self.folder), ['a.npz'])
    return done

  @pytest.mark.slow
  def test_a_dry_run_succeeds(self):
    done = self.run_command('--dry-run')
    self.assertEqual((done.returncode, done.stderr), (0, ''))
    self.assertIn('layer.bias', done.stdout)

  def test_a_wrong_flag_is_one_line_and_code_2(self):
    done = self.run_command('--dry-run', '--nonsense')
    self.assertEqual((done.returncode, done.stdout), (2, ''))
    self.assertRegex(done.stderr, r"^hmm_jax: .*flag 'nonsense'.*\n$")
    with self.assertRaisesRegex(InputError, 'got argument more'):
      merge.main(['merge', 'more'])


class RunsTest(absltest.TestCase):
  """Models of this library's runs, judged on their data."""

  def setUp(self):
    super().setUp()
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    self.folder = self.create_tempdir().full_path
    config = defaults.get_config()
    config.update_from_flattened_dict({
        'dataset': 'synthetic', 'rounds': 1, 'eval_every': 1, 'seeds': 2, 'clients': 4,
        'participation': 0, 'subset': 0.3, 'mlp.hidden': (), 'local.epochs': 1,
        'partition.kind': 'iid'})
    train(config, Workdir(self.folder), Screen(silent=True))

  def run_merge(self, **given):
    given = {'models': [self.folder, f'{self.folder}@1'], 'dry_run': True} | given
    with flagsaver.flagsaver(**given), contextlib.redirect_stdout(io.StringIO()) as said:
      merge.main(['merge'])
    return said.getvalue()

  def test_models_of_runs(self):
    said = self.run_merge(method='uniform', evaluate=self.folder)
    recorded = Workdir(self.folder).read_json('summary.json')['last']['global/test/accuracy']
    for path, accuracy in zip((self.folder, f'{self.folder}@1'), recorded['seeds'], strict=True):
      self.assertRegex(said, rf'{path} +│ {accuracy:.4f}')
    self.assertRegex(said, r'uniform +│ 0\.\d+')
    self.assertRegex(said, r'barrier between models 1 and 2 +│ +│ \d\.\d+')
    with self.subTest('a method that learns from data'):
      said = self.run_merge(method='regmean', evaluate=self.folder)
      self.assertRegex(said, r'params/head/kernel +│ float32 +│ \(\d+, \d+\) +│ regmean')
    for path, message in ((f'{self.folder}@5', 'expected one of its seeds 0, 1$'),
                          (os.path.dirname(self.folder), 'expected the folder of a run')):
      with self.assertRaisesRegex(InputError, message):
        self.run_merge(method='uniform', models=[path, path])
    np.savez(other := os.path.join(self.folder, 'x.npz'), **FIRST)
    with self.assertRaisesRegex(InputError, 'got .*x.npz with .* of shape'):
      self.run_merge(method='uniform', models=[other, other], evaluate=self.folder)


if __name__ == '__main__':
  absltest.main()
