"""Whatever is typed, a command ends with code 0, 1 or 2, and says in one line why.

Of a run all but the compiling and training is done: its program is traced.
"""

import contextlib
import io
import itertools
import os
import random
import signal
import tempfile
from unittest import mock

from absl import flags
from absl.testing import absltest, flagsaver
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import fuzzing

from hmm_jax.check import __main__ as check
from hmm_jax.experiment import config as configs
from hmm_jax.experiment import launch
from hmm_jax.experiment.trainer import Trainer
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.main import train as main
from hmm_jax.merge import __main__ as merge
from hmm_jax.merging import OPERATORS
from hmm_jax.report.screen import Screen
from hmm_jax.types import InputError

SETTINGS = configs.settings(configs.get_config())
# What a setting may depend on is small and quick.
TINY = {'dataset': 'synthetic', 'synthetic.rows': '80', 'synthetic.shape': '(4,4,1)',
        'synthetic.classes': '3', 'clients': '4', 'participation': '2', 'rounds': '2',
        'eval_every': '1', 'seeds': '1', 'partition.kind': 'iid', 'mlp.hidden': '(4,)',
        'local.epochs': '1', 'mapper': 'map', 'server.size': '20'}
NUMBERS = ['0', '1', '-1', '2', '3', str(2**31 - 1), str(2**31), str(2**63), str(-2**63), '10' * 30]
FLOATS = ['0.0', '0.5', '1.0', '-0.0', '1e-320', '1e-38', '3e38', '1e39', '1e308', '-1e308', 'nan',
          'inf', '-inf', '1e400', '5e-324']
TEXTS = ['', 'x', 'None', 'True', '{[]:1}', '(' * 200, ')', "'", '"', '\\', '~', '../x', '/', 'é±',
         '\x1b[2J', '\0', 'a:b', ':', 'npz:', 'text:/dev/zero', 'npz:/dev/zero', 'x' * 5000, '%s',
         'edges:/dev/null', 'labels:/dev/null', 'domain:9999999999', 'domain:x', 'constant:2',
         'dense@5:1', 'os:path', 'nothing.py:METHOD', '1e999', '[]', '[[[]]]', '--', '=', 'lbfgs']
TUPLES = ['()', '(0,)', '(-1,)', '(64.5,)', "('a',)", '(10**12,)', '(1000000000000,)', '7', '{}',
          '(1,2,3,4)', '((1,),)', '(None,)', '(True,)', "('a local.lr={[]:1}',)", "('a',",
          "('b rounds=0',)", "('c seed',)", "('../d seed=1',)", "('density={[]:1}',)"]


def candidates(setting) -> list[str]:
  """Returns what a person, or a mistake, may give for a setting."""
  bounds = [bound for bound in (setting.above, setting.at_least, setting.below, setting.at_most)
            if bound is not None]
  near = [str(type(setting.default)(bound + step)) for bound in bounds
          for step in ((-1, 0, 1) if type(setting.default) is int else (-1e-3, 0, 1e-3))
          ] if type(setting.default) in (int, float) else []
  fitting = {int: NUMBERS, float: FLOATS + NUMBERS, tuple: TUPLES, bool: ['true', '1', 'maybe']}
  return near + [*setting.choices, str(setting.default)] + fitting.get(type(setting.default), TEXTS)


def around(key: str) -> dict[str, str]:
  """Returns the settings under which one counts: its method, network or data set is chosen."""
  section = key.partition('.')[0]
  if section in configs.METHODS:
    return {'algorithm': section}
  if section in configs.NETWORKS:
    return {'model': section}
  return {'fine_tune': {'fine_tune.epochs': '1'}, 'gossip': {'algorithm': 'gossip'},
          'one_shot': {'algorithm': 'merging'}, 'inversion': {'algorithm': 'dmm'},
          'corrupt': {'corrupt.kind': 'symmetric', 'corrupt.clients': '0.5'},
          'server': {'algorithm': 'feddle'}}.get(section, {})


def traced(experiment, settings, workdir, screen, **options):
  """Does what `run` does, as far as that takes no compiling; it ends as a divergence would."""
  trainer = Trainer(experiment)
  jax.eval_shape(trainer._program, trainer.shapes, trainer._roots, experiment.federation,
                 jnp.int32(0))
  raise main.Diverged('nothing was trained')


class Hang(BaseException):
  """The command has not come back in time."""


def hang(*_):
  raise Hang


class Typing(absltest.TestCase):
  """A command is called as its entry calls it, in a folder of its own."""

  def setUp(self):
    super().setUp()
    self.folder, self.numbers = self.enterContext(tempfile.TemporaryDirectory()), itertools.count()
    before = signal.signal(signal.SIGALRM, hang)
    self.addCleanup(signal.signal, signal.SIGALRM, before)
    home = os.getcwd()
    self.addCleanup(os.chdir, home)
    os.chdir(self.folder)

  def typed(self, entry, *words):
    """Types a command; returns its exit code and what it said on stderr."""
    out, err = io.StringIO(), io.StringIO()
    signal.alarm(60)
    try:
      with (contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
            self.assertRaises(SystemExit) as caught):
        entry(['main', *words])
    finally:
      signal.alarm(0)
    self.assertNotIn('\x1b', out.getvalue() + err.getvalue())
    return caught.exception.code or 0, err.getvalue()


class EntryTest(Typing):

  def test_all_commands_say_the_same(self):
    for module, step in ((main, 'read_changes'), (merge, 'main'), (check, 'main')):
      for error, code, line in ((InputError('got x=1; expected 2'), 2, 'got x=1; expected 2'),
                                (InputError('of two\nlines'), 2, 'of two lines'),
                                (KeyboardInterrupt(), 130, 'interrupted')):
        with (self.subTest(module.__name__, error=error), flagsaver.flagsaver(),
              mock.patch.object(module, step, side_effect=error)):
          self.assertEqual(self.typed(module.entry), (code, f'hmm_jax: {line}\n'))


@pytest.mark.slow
class RunTest(Typing):

  def check(self, given: dict[str, str], *words):
    with self.subTest(given={key: value[:60] for key, value in given.items()}, words=words):
      given = [f'--config.{key}={value}' for key, value in given.items()]
      folder = f'run{next(self.numbers)}'
      with (mock.patch.object(main.devices, 'prepare_from_flags'),
            mock.patch.object(launch, 'run', traced)):
        code, said = self.typed(main.entry, f'--workdir={folder}', *given, *words)
      self.assertIn(code, (1, 2), said)
      if code == 2:
        self.assertRegex(said, r'\Ahmm_jax: [^\n]*\n\Z')
        self.assertFalse(os.path.exists(folder))
      else:
        self.assertEndsWith(said, 'nothing was trained\n')

  def test_of_every_setting(self):
    rng = random.Random(fuzzing.SEED)
    for key, setting in SETTINGS.items():
      choices = candidates(setting)
      for value in [rng.choice(choices)]:
        self.check(TINY | around(key) | {key: value})

  def test_of_several_settings(self):
    rng = random.Random(fuzzing.SEED + 1)
    for _ in range(200 * fuzzing.TIMES):
      keys = rng.sample(list(SETTINGS), 3)
      changes = {key: rng.choice(candidates(SETTINGS[key])) for key in keys}
      self.check(TINY | changes)

  def test_of_words_that_are_no_settings(self):
    for words in (['--config'], ['--config='], ['--config.'], ['--config.=1'], ['--config.rounds'],
                  ['--config..rounds=1'], ['--config.local=1'], ['--config.local.=1'], ['x'],
                  ['--x'], ['--x=1'], ['-'], ['---config.rounds=2', 'x'], ['--workdir'],
                  ['--config=/dev/zero'], ['--config=.'], ['--config=/x.py:1'], ['--config=\0.py'],
                  ['--cpu_devices=-1'], ['--cpu_devices=x'], ['--processes=0'], ['']):
      self.check(TINY, *words)


MERGES = 60 * fuzzing.TIMES
MODELS = {
    'a.npz': {'w': np.ones((8, 4)), 'b': np.ones(4)},
    'b.npz': {'w': np.eye(8, 4), 'b': np.arange(4.)},
    'base.npz': {'w': np.full((8, 4), 0.5), 'b': np.zeros(4)}, 'other.npz': {'w': np.ones((4, 8))},
    'half.npz': {'w': np.ones((8, 4), np.float16), 'b': np.ones(4, np.float16)},
    'counts.npz': {'w': np.ones((8, 4), int), 'b': np.arange(4)},
    'scalar.npz': {'w': np.float32(1)},
    'odd.npz': {'w': np.full((8, 4), np.nan), 'b': np.ones(4)}, 'none.npz': {},
    'empty.npz': {'w': np.ones((0, 4)), '\x1b[2J': np.ones(3)}, 'words.npz': {'w': np.array(['x'])},
    'lora.npz': {'q.lora_A.weight': np.ones((2, 9)), 'q.lora_B.weight': np.ones((8, 2))}}
FILES = [*MODELS, 'run', 'run@0', 'run@7', '.', '', '/dev/zero', 'x.npz', 'a\0', 'torn.npz', '~']


@pytest.mark.slow
class MergeTest(Typing):

  def setUp(self):
    super().setUp()
    for name, tensors in MODELS.items():
      np.savez(name, **tensors)
    with open('torn.npz', 'wb') as torn, open('a.npz', 'rb') as whole:
      torn.write(whole.read()[:200])
    config = configs.from_texts(configs.get_config(), TINY | {'rounds': '1'}, 'the test')
    launch.train(config, Workdir('run'), Screen(silent=True))

  def drawn(self, rng) -> list[str]:
    """Returns a command that may be sound, with up to three flags that hardly are."""
    operator = rng.choice([*OPERATORS.values()])
    words = [f'--method={operator.name}', '--models=a.npz,b.npz', '--base=base.npz']
    if operator.needs and 'network' in operator.needs:
      words[1:] = ['--models=run,run@0', '--base=run', '--evaluate=run']
    if 'weights' in operator.settings:
      words.append('--weights=0.5,0.5')
    settings = [*operator.settings.items()] or [('x', None)]
    key, setting = rng.choice(settings)
    values = candidates(setting) if setting else TEXTS
    odd = {
        'method': [*OPERATORS, 'list', *TEXTS], 'base': FILES, 'evaluate': FILES,
        'models': [','.join(rng.choices(FILES, k=rng.randrange(4))), *FILES],
        'set': [f'{key}={rng.choice(values)}', *TEXTS], 'weights': FLOATS + ['1,2', '0,0', '-1,1'],
        'seed': NUMBERS, 'batch': NUMBERS, 'lora_rank': NUMBERS, 'unpack_limit': FLOATS + NUMBERS}
    for flag in rng.sample([*odd], rng.randrange(4)):
      words.append(f'--{flag}={rng.choice(odd[flag])}')
    return words

  def test_of_several_flags(self):
    rng, codes = random.Random(fuzzing.SEED + 2), []
    for _ in range(MERGES):
      words, out = self.drawn(rng), f'out{next(self.numbers)}'
      with self.subTest(words=[word[:60] for word in words]), flagsaver.flagsaver():
        flags.FLAGS.unparse_flags()
        code, said = self.typed(merge.entry, f'--out={out}', *words)
        self.assertIn(code, (0, 2), said)
        self.assertRegex(said, r'\A\Z' if code == 0 else r'\Ahmm_jax: [^\n]*\n\Z')
        if code:
          self.assertFalse(os.path.exists(out))
        codes.append(code)
    self.assertGreater(codes.count(0), MERGES / 8)
    self.assertGreater(codes.count(2), MERGES / 3)


if __name__ == '__main__':
  absltest.main()
