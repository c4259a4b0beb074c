"""The command `hmm_jax`: its commands, how they are read, and what an error looks like."""

import signal
import sys
from typing import Annotated

import typer

import hmm_jax
from hmm_jax.main.compare import compare
from hmm_jax.main.export import export
from hmm_jax.main.list import list as list_records
from hmm_jax.main.plan import plan
from hmm_jax.main.predict import predict
from hmm_jax.main.report import report
from hmm_jax.main.sweep import sweep
from hmm_jax.report.screen import fail

# The flags of these commands are read by the command itself.
AS_THEY_ARE = {'allow_extra_args': True, 'ignore_unknown_options': True}

app = typer.Typer(
    name='hmm_jax', rich_markup_mode=None, pretty_exceptions_enable=False,
    help='Train models on scattered data and merge them, in JAX.',
    epilog='Try: hmm_jax run --config.references=local')


def _version(wanted: bool):
  if wanted:
    print(f'hmm_jax {hmm_jax.__version__}')
    raise typer.Exit


@app.callback()
def _top(version: Annotated[bool, typer.Option(
    '--version', callback=_version, is_eager=True, help='Print the version.')] = False):
  del version


def run(context: typer.Context):
  """Train a federation; the same command again resumes.

  \b
  --config.KEY=VALUE     a setting: see `hmm_jax list settings`
  --config=FILE.py       a config file with get_config
  --config.KEY=A,B       a run of each, and a comparison of them
  --tables=all           at the end all metrics and every seed
  --workdir=FOLDER       where the run lives; runs/NAME-DATA by default
  --cpu_devices=N        XLA devices that share the clients; one a core by default
  --nocompile_cache      leave the cache of compiled programs alone
  --coordinator=HOST:PORT --processes=N --process=I
                         of several processes
  """
  from hmm_jax.main import train
  train.entry(['hmm_jax run', *context.args])


def merge(context: typer.Context):
  """Merge saved models.

  \b
  --models=A,B,...       files (safetensors, npz), exported folders, or runs, RUN@SEED
  --method=NAME          a merge operator: see `hmm_jax list operators`
  --base=P               what all were trained from, as --base=RUN@SEED/initial
  --weights=0.7,0.3      for methods that take weights
  --set KEY=VALUE        a setting of the method
  --evaluate=CONFIG      a config file or a run, whose network and data score the models
  --out=DIR              a new folder for the result; or --dry_run
  """
  from hmm_jax.merge import __main__ as command
  command.entry(['hmm_jax merge', *context.args])


def check(context: typer.Context):
  """Check a method or an operator of your own against the laws that all obey."""
  from hmm_jax.check import __main__ as command
  command.entry(['hmm_jax check', *context.args])


# In the order of --help.
for _name, _command, _example, _settings in (
    ('run', run, 'run --config.algorithm=scaffold --config.rounds=50', AS_THEY_ARE),
    ('plan', plan, 'plan --config.algorithm=feddle --config.clients=100 --measure', AS_THEY_ARE),
    ('sweep', sweep, 'sweep --config.local.lr=0.01,0.1 --jobs=2', AS_THEY_ARE),
    ('compare', compare, 'compare runs/* --out=comparison', {}),
    ('report', report, 'report runs/fedavg-digits', {}),
    ('export', export, 'export runs/mine --client=best --out=best', {}),
    ('predict', predict, 'predict best --inputs=photos/ --out=classes.csv', {}),
    ('merge', merge, 'merge --method=ties --models=A,B --base=P --out=DIR', AS_THEY_ARE),
    ('check', check, 'check my_file.py:METHOD', AS_THEY_ARE),
    ('list', list_records, 'list settings feddle.', {})):
  app.command(_name, epilog=f'Example: hmm_jax {_example}', context_settings=_settings)(_command)


def entry():
  """Runs the command line; bad input is one line on stderr and exit code 2."""
  # Until a command says otherwise, Ctrl-C ends the process without a traceback.
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
  try:
    sys.exit(app(sys.argv[1:] or ['--help'], standalone_mode=False))
  except typer.TyperException as error:
    sys.exit(fail(f'{error.format_message().rstrip(".")}; see `hmm_jax --help`', 2))
  except Exception as error:
    code = {'InputError': 2, 'SaveError': 1}.get(type(error).__name__)
    if code is None:
      raise
    sys.exit(fail(error, code))
