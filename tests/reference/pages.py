"""The code blocks of the documentation, and how they are executed.

Every fenced block of a page is one of these:

  bash                     commands, executed
  bash with .elsewhere     commands for another place: an installation, a cluster
  python                   a program, executed
  python with title=FILE   a file, saved under that name for what follows
  text                     output, formulas
"""

import contextlib
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import NamedTuple

from reference import forks

ROOT = pathlib.Path(__file__).parent.parent.parent
DOCS = ROOT / 'docs'
FENCE = re.compile(r'^( *)(```+) *(.*?)$\n(.*?)^\1\2$', re.M | re.S)
# Pages whose runs draw their plots, as all runs do: elsewhere it would be most of the time.
DRAWN = ('start.md', 'guides/report.md', 'guides/compare.md')
KINDS = ('bash', '{ .bash .elsewhere }', 'python', 'text')


class Block(NamedTuple):
  """A fenced block: what stands behind its fence, without a title; the title; the text."""

  kind: str
  title: str
  text: str


def pages() -> dict[str, str]:
  """Returns the text of every page by its path: {'methods/feddle.md': ..., ...}."""
  return {path.relative_to(DOCS).as_posix(): path.read_text() for path in sorted(
      DOCS.rglob('*.md'))}


def blocks(page: str) -> list[Block]:
  """Returns the blocks of a page in their order."""
  found = []
  for indent, _, info, text in FENCE.findall(page):
    kind, title = re.fullmatch(r'(.*?)(?: *title="(.*)")?', info).groups()
    found.append(Block(kind, title or '', re.sub(f'^{indent}', '', text, flags=re.M)))
  return found


def file(page: str, title: str) -> str:
  """Returns the file of that name on a page."""
  return next(block.text for block in blocks(pages()[page]) if block.title == title)


class Executor:
  """Executes blocks, with `hmm_jax` and `python` in copies of one warm process."""

  def __init__(self, folder: str):
    self.folder = pathlib.Path(folder)
    path = self.folder / 'socket'
    program = [sys.executable, forks.__file__]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    self.server = subprocess.Popen([*program, 'serve', path], stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, env=environment)
    if self.server.stdout.readline() != b'ready\n':
      self.close()
      raise RuntimeError('the process to be copied does not start')
    for name in ('hmm_jax', 'python'):
      script = self.folder / 'bin' / name
      script.parent.mkdir(exist_ok=True)
      script.write_text(
          f'#!/bin/sh\nexec "{sys.executable}" -SE "{forks.__file__}" "{path}" {name} "$@"\n')
      script.chmod(0o755)
    self.environment = {**environment, 'PATH': f'{script.parent}:{os.environ["PATH"]}'}

  def close(self):
    self.server.stdin.close()
    self.server.stdout.close()
    self.server.wait()

  def execute(self, page: str, *, drawn: bool = True) -> str:
    """Executes the blocks of a page in a folder of their own; returns what failed, or ''.

    Args:
      page: its text.
      drawn: whether runs draw their plots.
    """
    environment = self.environment | ({} if drawn else {'UNDRAWN': '1'})
    with tempfile.TemporaryDirectory() as folder:
      for name in ('experiments', 'launch'):  # Commands are for a clone.
        os.symlink(ROOT / name, pathlib.Path(folder, name))
      for number, block in enumerate(blocks(page)):
        failure = self._block(block, pathlib.Path(folder), f'block_{number}.py', environment)
        if failure:
          return f'{block.text}\n{failure}'
    return ''

  def _block(self, block, folder, program, environment):
    if block.title:
      (folder / block.title).write_text(block.text)
      return ''
    if block.kind not in ('bash', 'python'):
      return ''
    script = block.text
    if block.kind == 'python':
      (folder / program).write_text(block.text)
      script = f'python {program}'
    done = subprocess.run(
        ['bash', '-euo', 'pipefail', '-c', script], cwd=folder, env=environment, text=True,
        stdin=subprocess.DEVNULL, capture_output=True)
    return '' if done.returncode == 0 else f'exit code {done.returncode}\n{done.stderr[-3000:]}'


@contextlib.contextmanager
def executor():
  """Yields an Executor."""
  with tempfile.TemporaryDirectory() as folder, contextlib.closing(Executor(folder)) as made:
    yield made
