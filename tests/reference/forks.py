"""Runs commands in copies of a process that has imported what they need already.

  python forks.py serve SOCKET           the process that is copied; ends when its input does
  python -SE forks.py SOCKET NAME ARGS   a command in a copy: NAME is hmm_jax or python

Importing takes most of the time of a small run. A copy is a process of its own, with the folder,
environment, input and output of the one that asks for it. With UNDRAWN in its environment a run
draws nothing: its plots and page take longer than a small run itself.
"""

import json
import os
import signal
import socket
import sys

WARM = ('sklearn.datasets', 'matplotlib.pyplot', 'orbax.checkpoint', 'hmm_jax.experiment.launch',
        'hmm_jax.experiment.saved', 'hmm_jax.merging', 'hmm_jax.merge.models', 'hmm_jax.main.app')


def serve(path: str):
  """Serves until standard input is closed."""
  import importlib
  import select
  for module in WARM:
    importlib.import_module(module)
  listening = socket.socket(socket.AF_UNIX)
  listening.bind(path)
  listening.listen()
  signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Ended copies are not waited for.
  print('ready', flush=True)
  while listening in select.select([listening, sys.stdin], [], [])[0]:
    connection, _ = listening.accept()
    if not os.fork():
      signal.signal(signal.SIGCHLD, signal.SIG_DFL)
      listening.close()
      copy(connection)
    connection.close()


def copy(connection: socket.socket):
  """Becomes the command that is asked for, and tells its exit code."""
  message, files, *_ = socket.recv_fds(connection, 2**20, 3)
  asked = json.loads(message)
  for here, file in enumerate(files):
    os.dup2(file, here)
  os.chdir(asked['folder'])
  os.environ.clear()
  os.environ.update(asked['environment'])
  code = 1
  try:
    if 'UNDRAWN' in os.environ:
      from hmm_jax.experiment import pages
      pages.of_run = pages.of_all = lambda workdir: None
    command(*asked['command'])
    code = 0
  except SystemExit as end:
    code = end.code if isinstance(end.code, int) else int(end.code is not None)
  except BaseException:
    import traceback
    traceback.print_exc()
  sys.stdout.flush()
  sys.stderr.flush()
  connection.send(bytes([code % 256]))
  os._exit(code)


def command(name: str, *arguments: str):
  """Does what `hmm_jax ...` does, or `python` with -m MODULE, -c CODE or a file."""
  import runpy
  if name == 'hmm_jax':
    sys.argv = [name, *arguments]
    from hmm_jax.main.app import entry
    entry()
  elif arguments[0] == '-m':
    sys.argv, sys.path[0] = [name, *arguments[2:]], os.getcwd()
    runpy.run_module(arguments[1], run_name='__main__', alter_sys=True)
  elif arguments[0] == '-c':
    sys.argv, sys.path[0] = ['-c', *arguments[2:]], ''
    exec(arguments[1], {'__name__': '__main__'})
  else:
    sys.argv, sys.path[0] = [*arguments], os.path.dirname(os.path.abspath(arguments[0]))
    runpy.run_path(arguments[0], run_name='__main__')


def ask(path: str, *words: str) -> int:
  """Asks for a command; returns its exit code."""
  with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(path)
    asked = {'command': words, 'folder': os.getcwd(), 'environment': dict(os.environ)}
    socket.send_fds(connection, [json.dumps(asked).encode()], [0, 1, 2])
    told = connection.recv(1)
  return told[0] if told else 70


if __name__ == '__main__':
  if sys.argv[1] == 'serve':
    serve(sys.argv[2])
  else:
    sys.exit(ask(*sys.argv[1:]))
