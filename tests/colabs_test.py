"""Notebooks run, and are what their Python twins say."""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from absl.testing import absltest, parameterized

COLABS = pathlib.Path(__file__).parent.parent / 'colabs'
NAMES = sorted(path.stem for path in COLABS.glob('*.py'))
EACH = parameterized.parameters(*[(name,) for name in NAMES])

# In a process of its own: Jupyter warns, and warnings are errors here.
READ = '''
import json, sys, jupytext
cells = jupytext.read(sys.argv[1])['cells']
print(json.dumps([[cell['cell_type'], cell['source']] for cell in cells]))
'''
EXECUTE = '''
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=300, kernel_name='python3').execute()
'''


def python(script, path, **environment):
  return subprocess.run(
      [sys.executable, '-c', script, str(path)], capture_output=True, text=True, check=False,
      cwd=tempfile.gettempdir(), env={**os.environ, 'JAX_PLATFORMS': 'cpu', **environment})


class ColabsTest(parameterized.TestCase):

  def test_there_are_some(self):
    self.assertNotEmpty(NAMES)
    self.assertEqual(NAMES, sorted(path.stem for path in COLABS.glob('*.ipynb')))

  @EACH
  def test_both_files_have_the_same_cells(self, name):
    twins = [python(READ, COLABS / f'{name}.{kind}') for kind in ('py', 'ipynb')]
    for done in twins:
      self.assertEqual(done.returncode, 0, done.stderr)
    script, notebook = (json.loads(done.stdout) for done in twins)
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
  def test_runs(self, name):
    done = python(EXECUTE, COLABS / f'{name}.ipynb', HMM_SMOKE='1')
    self.assertEqual(done.returncode, 0, done.stderr[-3000:])


if __name__ == '__main__':
  absltest.main()
