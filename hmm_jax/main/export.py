"""Takes models out of a run: hmm_jax export."""

from typing import Annotated

import typer

Seed = Annotated[int | None, typer.Option(help="A training seed; the run's first by default.")]
Client = Annotated[str | None, typer.Option(
    metavar='ID', help="A client's own model, by its id; best: by its validation examples.")]


def export(
    run: Annotated[str, typer.Argument(metavar='RUN', help='Folder of a run, which is only read.')],
    out: Annotated[str, typer.Option(metavar='DIR', help='A new folder for the model.')],
    seed: Seed = None,
    client: Client = None,
    clients: Annotated[bool, typer.Option(
        '--clients', help="Every client's own model, each in a folder DIR/client-ID.")] = False,
    view: Annotated[str, typer.Option(
        help='Which models, where a method has several kinds, such as locals.')] = ''):
  """Write a model of a run with all that is needed to use it.

  Weights as safetensors, and model.json with the network, its settings, the normalization and the
  names of the classes; nothing of the data. Without --client it is the model for all clients.
  """
  from hmm_jax.experiment import devices
  from hmm_jax.experiment import export as exports
  from hmm_jax.report.screen import Screen
  devices.quietly()
  written = exports.export(run, out, seed=seed, client=client, clients=clients, view=view)
  screen = Screen()
  about = next(iter(written.values()))
  screen.say(f'{about["method"]} on {about["dataset"]}, round {about["round"]}, seed '
             f'{about["seed"]}, view {about["view"]}')
  screen.say(f'expects {about["expects"]}')
  for folder, content in written.items():
    client = '' if content['client'] is None else f', the model of client {content["client"]}'
    screen.say(f'wrote {folder}{client}')
