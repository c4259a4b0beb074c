"""Predicts with a trained model: hmm_jax predict."""

from typing import Annotated

import typer

from hmm_jax.main.export import Client, Seed


def predict(
    model: Annotated[str, typer.Argument(
        metavar='DIR', help='An exported folder, or the folder of a run.')],
    inputs: Annotated[str, typer.Option(
        metavar='FILE', help='.npz (x, x_test or a single array; one per modality), .npy, an '
        'image, or a folder of images, which look as in the data set; texts as tokens in .npz.')],
    out: Annotated[str, typer.Option(
        metavar='FILE.csv', help='A new file for all probabilities, one row per input.')] = '',
    client: Client = None,
    seed: Seed = None):
  """Predict classes with an exported model or a run, without the data set."""
  from hmm_jax.experiment import devices, predictions
  from hmm_jax.report.screen import Screen
  devices.quietly()
  predictions.predict(model, inputs, Screen(), out=out, client=client, seed=seed)
