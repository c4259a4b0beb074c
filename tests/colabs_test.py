"""Notebooks run, and are what their Python twins say."""

import functools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from absl.testing import absltest, parameterized
import pytest

COLABS = pathlib.Path(__file__).parent.parent / 'colabs'
NAMES = sorted(path.stem for path in COLABS.glob('*.py'))
EACH = parameterized.named_parameters(*[(name, name) for name in NAMES])

# In a process of its own: Jupyter warns, and warnings are errors here.
READ = '''
import json, sys, jupytext
print(json.dumps({path: [[cell['cell_type'], cell['source']]
                         for cell in jupytext.read(path)['cells']] for path in sys.argv[1:]}))
'''


def python(*arguments, **environment):
  done = subprocess.run(
      [sys.executable, *arguments], capture_output=True, text=True, check=False,
      cwd=tempfile.gettempdir(), env={**os.environ, 'JAX_PLATFORMS': 'cpu', **environment})
  assert done.returncode == 0, done.stderr[-3000:]
  return done.stdout


@functools.cache
def cells():
  """Returns {path: [[type, source], ...]} of all notebooks and their twins."""
  paths = [str(COLABS / f'{name}.{kind}') for name in NAMES for kind in ('py', 'ipynb')]
  return json.loads(python('-c', READ, *paths))


class ColabsTest(parameterized.TestCase):

  def test_there_are_some(self):
    self.assertNotEmpty(NAMES)
    self.assertEqual(NAMES, sorted(path.stem for path in COLABS.glob('*.ipynb')))

  @EACH
  def test_both_files_have_the_same_cells(self, name):
    script, notebook = (cells()[str(COLABS / f'{name}.{kind}')] for kind in ('py', 'ipynb'))
    self.assertIn('code', [kind for kind, _ in script])
    self.assertEqual(script, notebook, f'run: jupytext --to ipynb --update colabs/{name}.py && '
                                       f'jupyter execute --inplace colabs/{name}.ipynb')

  @EACH
  def test_outputs_are_there_and_name_no_machine(self, name):
    cells = json.loads((COLABS / f'{name}.ipynb').read_text())['cells']
    outputs = [output for cell in cells for output in cell.get('outputs', ())]
    self.assertNotEmpty(outputs)
    self.assertNotIn('error', [output['output_type'] for output in outputs])
    texts = [''.join(text) for output in outputs for text in
             [output.get('text', ''), *output.get('data', {}).values()]]
    for text in texts:
      self.assertNotRegex(text, re.compile(r'(^|[\s\'"=(])(/|~/|[A-Z]:\\)\w+[/\\]'))

  @EACH
  @pytest.mark.slow
  def test_runs(self, name):
    python(str(COLABS / f'{name}.py'), HMM_SMOKE='1', MPLBACKEND='agg')


if __name__ == '__main__':
  absltest.main()
