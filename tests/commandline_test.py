"""Whatever is typed, the command ends with code 0, 1 or 2, and says in one line why.

All but the compiling and training is done: the program of a run is traced.
"""

import contextlib
import io
import itertools
import os
import random
import signal
import tempfile
from unittest import mock

from absl.testing import absltest
import jax
import jax.numpy as jnp
import pytest

from hmm_jax.experiment import config as configs
from hmm_jax.experiment import launch
from hmm_jax.experiment.trainer import Trainer
from hmm_jax.main import train as main

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


@pytest.mark.slow
class CommandLineTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder, self.numbers = self.enterContext(tempfile.TemporaryDirectory()), itertools.count()
    before = signal.signal(signal.SIGALRM, hang)
    self.addCleanup(signal.signal, signal.SIGALRM, before)
    home = os.getcwd()
    self.addCleanup(os.chdir, home)
    os.chdir(self.folder)

  def typed(self, *words):
    """Types a command; returns its exit code and what it said on stderr."""
    out, err = io.StringIO(), io.StringIO()
    signal.alarm(60)
    try:
      with (mock.patch.object(main.devices, 'prepare_from_flags'),
            mock.patch.object(launch, 'run', traced),
            contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
            self.assertRaises(SystemExit) as caught):
        main.entry(['main', *words])
    finally:
      signal.alarm(0)
    return caught.exception.code, err.getvalue()

  def check(self, given: dict[str, str], *words):
    flags = [f'--config.{key}={value}' for key, value in given.items()]
    with self.subTest(given={key: value[:60] for key, value in given.items()}, words=words):
      folder = f'run{next(self.numbers)}'
      code, said = self.typed(f'--workdir={folder}', *flags, *words)
      self.assertIn(code, (1, 2), said)
      if code == 2:
        self.assertRegex(said, r'\Ahmm_jax: [^\n]*\n\Z')
        self.assertFalse(os.path.exists(folder))
      else:
        self.assertEndsWith(said, 'nothing was trained\n')
      self.assertNotIn('\x1b', said)

  def test_of_every_setting(self):
    rng = random.Random(0)
    for key, setting in SETTINGS.items():
      choices = candidates(setting)
      for value in [rng.choice(choices)]:
        self.check(TINY | around(key) | {key: value})

  def test_of_several_settings(self):
    rng = random.Random(1)
    for _ in range(200):
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


if __name__ == '__main__':
  absltest.main()
