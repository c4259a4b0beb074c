"""Launch scripts: several processes are one run, and a failure is one failure."""

import csv
import functools
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from absl.testing import absltest, parameterized
import numpy as np
import pytest

LAUNCH = pathlib.Path(__file__).parent.parent / 'launch'
SCRIPTS = sorted(path.name for path in LAUNCH.iterdir() if path.suffix in ('.sh', '.sbatch'))
QUICK = ('--config.plots=false',
         '--config.local.epochs=1', '--config.mlp.hidden=(16,)', '--config.eval_every=2',
         '--config.seeds=1')
FOLDER = tempfile.TemporaryDirectory()


def environment(**more):
  return {**os.environ, 'PYTHON': sys.executable, 'JAX_PLATFORMS': 'cpu', **more}


def command(*words, **more):
  done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300,
                        cwd=FOLDER.name, env=environment(**more))
  return done.returncode, done.stdout, done.stderr


def local(*words, **more):
  return command(str(LAUNCH / 'local.sh'), *words, **more)


def stand_in(body):
  """Writes an interpreter: `body` is bash that knows $process, and ends in Python or not."""
  with tempfile.NamedTemporaryFile('w', dir=FOLDER.name, delete=False) as f:
    f.write('#!/usr/bin/env bash\n[[ "$1" == -c ]] && exec "$REAL" "$@"\n'
            'for word; do [[ "$word" == --process=* ]] && process=${word#*=}; done\n' + body)
  os.chmod(f.name, 0o755)
  return {'PYTHON': f.name, 'REAL': sys.executable}


def sweep(*words):
  return command(sys.executable, '-c', 'from hmm_jax.main.app import entry; entry()', 'sweep',
                 *words)


@functools.cache
def swept():
  """Trains with rates 1e30 and 0.05, each in one process; returns the latter's folder, the output.

  The first diverges.
  """
  code, out, err = sweep('--config.local.lr=1e30,0.05,0.01', '--jobs=2', '--workdir=sweep',
                         '--cpu_devices=1', '--config.rounds=4', *QUICK)
  assert (code, err) == (1, ''), (code, err)
  return pathlib.Path(FOLDER.name, 'sweep', 'local.lr=0.05'), out


@functools.cache
def trained():
  """Trains seed 0 in two processes, with a break after round 2; returns as `swept`."""
  for rounds in (2, 4):
    code, out, err = local('2', '--workdir=two', f'--config.rounds={rounds}', *QUICK)
    assert (code, err) == (0, ''), (code, err)
  return pathlib.Path(FOLDER.name, 'two'), out


def metrics(workdir):
  with open(workdir / 'metrics.csv', newline='') as f:
    return [{name: float(value) for name, value in row.items() if name != 'seconds'}
            for row in csv.DictReader(f)]


class ScriptsTest(parameterized.TestCase):

  @parameterized.parameters(*[(name,) for name in SCRIPTS])
  def test_parse(self, name):
    self.assertEqual(command('bash', '-n', str(LAUNCH / name)), (0, '', ''))

  def test_are_all_there(self):
    self.assertEqual(SCRIPTS, ['local.sh', 'slurm.sbatch', 'tpu_pod.sh'])


class LocalTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    # What a shell starts in the background ignores Ctrl-C, and so would its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    self.addCleanup(signal.signal, signal.SIGINT, before)

  def start(self, *words, **more):
    process = subprocess.Popen(
        [str(LAUNCH / 'local.sh'), *words], cwd=FOLDER.name, env=environment(**more), text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    self.addCleanup(process.stderr.close)
    self.addCleanup(process.wait)
    self.addCleanup(process.terminate)
    return process

  @pytest.mark.slow
  def test_equals_one_process(self):
    (one, _), (two, out) = swept(), trained()
    self.assertEqual([row['round'] for row in metrics(two)], [2, 4])
    for a, b in zip(metrics(one), metrics(two), strict=True):
      self.assertEqual(a.keys(), b.keys())
      np.testing.assert_allclose(list(b.values()), list(a.values()), rtol=1e-4, err_msg=str(a))
    self.assertIn('2 x cpu', out)
    self.assertEqual(out.count('round 4/4'), 1)

  @pytest.mark.slow
  def test_leaves_the_files_of_one_process(self):
    one, two = ({str(path.relative_to(workdir)) for path in workdir.rglob('*')
                 if path.relative_to(workdir).parts[0] != 'checkpoints'}
                for workdir, _ in (swept(), trained()))
    self.assertIn('summary.json', one)
    self.assertEqual(one, two)

  def test_no_number_of_processes_is_one_line_and_code_2(self):
    code, _, err = local('two', '--workdir=bad')
    self.assertEqual(code, 2)
    self.assertRegex(err, r'\A[^\n]*got N=two[^\n]*\n\Z')

  @pytest.mark.slow
  def test_bad_input_is_one_line_and_code_2(self):
    code, _, err = local('2', '--config.local.lrr=1', '--workdir=bad')
    self.assertEqual(code, 2)
    self.assertRegex(err, r'\Ahmm_jax: got local.lrr[^\n]*\n\Z')
    self.assertFalse(os.path.exists(os.path.join(FOLDER.name, 'bad')))

  @pytest.mark.slow
  def test_a_workdir_that_is_not_shared_is_bad_input(self):
    workdir, _ = trained()
    lost = stand_in('((process == 1)) && set -- "$@" --workdir=elsewhere\nexec "$REAL" "$@"')
    code, _, err = local('2', f'--workdir={workdir}', '--config.rounds=6', *QUICK, **lost)
    self.assertEqual(code, 2)
    self.assertRegex(err, r'\Ahmm_jax: [^\n]*a workdir that all processes share\n\Z')
    # Nor does any but process 0 write.
    self.assertFalse(os.path.exists(os.path.join(FOLDER.name, 'elsewhere')))

  @pytest.mark.slow
  def test_bad_input_of_one_process_waits_for_nobody(self):
    odd = stand_in('((process == 0)) && set -- "$@" --config.mapper=map\nexec "$REAL" "$@"')
    process = self.start('2', '--workdir=bad', *QUICK, **odd)
    self.assertRegex(process.stderr.readline(), r'\Ahmm_jax: got mapper=map in 2 processes')
    told = time.monotonic()
    _, rest = process.communicate(timeout=300)
    self.assertEqual((process.returncode, rest), (2, ''))
    self.assertLess(time.monotonic() - told, 15)  # The other gives up after 30 s.

  def test_a_death_stops_the_others(self):
    begun = time.monotonic()
    deaf = stand_in('trap "" TERM INT; ((process == 0)) && { echo no >&2; exit 3; }; sleep 60')
    self.assertEqual(local('3', **deaf), (3, '', 'no\n'))
    self.assertLess(time.monotonic() - begun, 20)

  def test_a_death_of_another_process_is_told(self):
    grieving = stand_in('((process == 2)) && { echo no >&2; exit 3; }\n'
                        '((process == 0)) && { sleep 0.5; echo lost >&2; exit 1; }; sleep 60')
    self.assertEqual(local('3', **grieving), (
        3, '', 'lost\nprocess 2: no\nlocal.sh: process 2 of 3 ended with code 3\n'))

  def test_processes_may_save_before_they_stop(self):
    process = self.start('2', **stand_in(
        '((process == 0)) && echo "$$" >&2\ntrap "sleep 0.3; echo saved >&2; exit 143" TERM\n'
        'for ((;;)); do sleep 0.1; done'))
    process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    self.assertEqual(process.communicate(timeout=30)[1], 'saved\n')
    self.assertEqual(process.returncode, 143)

  def test_a_loss_that_the_first_process_only_suffers_is_told_once(self):
    dying = stand_in('((process == 1)) && exit 9\n((process == 0)) && '
                     '{ sleep 0.3; echo "hmm_jax: lost another process: x" >&2; exit 1; }')
    self.assertEqual(local('2', **dying), (9, '', 'local.sh: process 1 of 2 ended with code 9\n'))

  def test_the_same_bad_input_is_told_once(self):
    late = stand_in('((process == 0)) && sleep 0.5; echo bad >&2; exit 2')
    self.assertEqual(local('3', **late), (2, '', 'bad\n'))

  @parameterized.parameters((signal.SIGINT, 130), (signal.SIGTERM, 143))
  def test_stops_with_its_processes(self, number, code):
    process = self.start('2', GRACE='1', **stand_in(
        '((process == 0)) && echo "$$" >&2; trap "" TERM INT; exec sleep 60'))
    pid = int(process.stderr.readline())
    process.send_signal(number)
    process.communicate(timeout=30)
    self.assertEqual(process.returncode, code)
    with self.assertRaises(ProcessLookupError):
      os.kill(pid, 0)


class SweepTest(parameterized.TestCase):

  @pytest.mark.slow
  def test_trains_each_value_and_chooses_on_validation(self):
    workdir, out = swept()
    self.assertRegex(out, r'local.lr=1e\+30: exit code 1 hmm_jax: fedavg diverged in round 1')
    cells = [line.split('│')[1:-1] for line in out[out.rindex('sorted by validation'):].splitlines()
             if line.startswith('│')]
    self.assertEqual([row[0].strip() for row in cells], ['local.lr=0.05', 'local.lr=0.01'])
    *_, last = rows = metrics(workdir)
    best = max(rows, key=lambda row: row['global/validation/accuracy'])
    wanted = [best['global/validation/accuracy'], last['global/test/accuracy'],
              best['global/test/accuracy']]
    self.assertEqual([float(cell) for cell in cells[0][1:]], [round(v, 4) for v in wanted])
    self.assertEndsWith(out, 'chosen on validation: local.lr=0.05\n')
    self.assertTrue((workdir.parent / 'comparison' / 'table.tex').exists())

  @parameterized.parameters(
      (('--config.rounds=3',), 'got no setting with several values'),
      (('--config.local.lrr=1,2',), 'got local.lrr'),
      (('--config.rounds=1,0',), 'rounds=0: got rounds=0'),
      (('--config.rounds=1,2', '--jobs=0'), '[^\n]*--jobs'),
      (('--config.rounds=1,2', 'stray'), 'got argument stray'))
  @pytest.mark.slow
  def test_bad_input_is_one_line_and_code_2(self, words, expected):
    code, out, err = sweep('--workdir=bad', *words)
    self.assertEqual((code, out), (2, ''))
    self.assertRegex(err, rf'\Ahmm_jax: {expected}[^\n]*\n\Z')
    self.assertFalse(os.path.exists(os.path.join(FOLDER.name, 'bad')))

  @pytest.mark.slow
  def test_a_signal_lets_the_processes_save(self):
    process = subprocess.Popen(
        [sys.executable, '-c', 'from hmm_jax.main.app import entry; entry()', 'sweep', *QUICK,
         '--config.local.lr=0.05,0.1', '--config.rounds=1000000', '--workdir=stopped'],
        cwd=FOLDER.name, env=environment(), text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE)
    first = pathlib.Path(FOLDER.name, 'stopped', 'local.lr=0.05')
    while not (first / 'metrics.csv').exists() and process.poll() is None:
      time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    self.assertEqual(process.returncode, 143)
    self.assertIn('local.lr=0.05: exit code 143', out)
    self.assertEndsWith(err, 'hmm_jax: stopped; the same command goes on\n')
    self.assertTrue(any((first / 'manifests').iterdir()))
    self.assertFalse((first.parent / 'local.lr=0.1').exists())


def tearDownModule():
  FOLDER.cleanup()


if __name__ == '__main__':
  absltest.main()
