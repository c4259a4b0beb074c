"""hmm_jax report RUN...: the plots of runs drawn again, and a page about them."""

from typing import Annotated

import typer


def report(
    runs: Annotated[list[str], typer.Argument(metavar='RUN...', help='Folders of runs.')],
    out: Annotated[str, typer.Option(
        metavar='FILE', help='The page; by default RUN/report.html of one run, report.html of '
        'several.')] = ''):
  """Draw the plots of runs again, and write one page about them.

  The page needs no network and no data set: it opens from disk, in any browser. An unfinished run
  is shown as far as it is.
  """
  from hmm_jax.experiment.pages import redraw
  from hmm_jax.report.screen import Screen

  path, lines = redraw(runs, out)
  for line in [*lines, path]:
    Screen().say(line)
