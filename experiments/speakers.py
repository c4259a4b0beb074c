"""Next-character prediction by the roles of plays: one model, or a merge for each speaker?

  python -m hmm_jax.main --config=experiments/speakers.py:PATH

PATH is a file of JSON lines with the fields play, speaker and text (config.text.owner names
others): here 30,913 speeches of Shakespeare's plays. 40 roles with 50 windows of 40 characters
or more, drawn at random; an LSTM with 64 units, all clients in every round, 30 rounds of 2
epochs, batch 20, SGD at 1.0 clipped to norm 5. No setting was tuned.

Showed, on 2 CPU cores, accuracy on the clients' own test examples, mean over clients, mean ±
std over seeds 0, 1, 2, which follow; the same at the rounds of the least validation loss; the
mean over the worst tenth; minutes of three seeds, beside other work:

    run         mean over clients seed by seed          selected         worst tenth     min
    fedmerge_3  0.3014 ± 0.0047  0.2962 0.3029 0.3051  0.3014 ± 0.0047  0.0822 ± 0.0234   3.1
    fedavg      0.3613 ± 0.0255  0.3365 0.3599 0.3874  0.3613 ± 0.0255  0.1321 ± 0.0176   1.1
    local       0.1434 ± 0.0159  0.1464 0.1263 0.1576  0.1465 ± 0.0070  0.0000 ± 0.0000   3.4

After 30 rounds all are far from converged. One global model is far better than local models of
so little text. Three merged ones learn more slowly than one: at this budget FedMerge gains
nothing from the differences between speakers.

The recorded runs, made with PATH=speeches.jsonl.xz, print their tables again:
python experiments/results.py speakers
"""

from ml_collections import ConfigDict

from hmm_jax.experiment import config as defaults
from hmm_jax.experiment.comparisons import variant

# What FedMerge is compared with, by what differs from it.
OTHERS = {
    'fedavg': {'algorithm': 'fedavg'},
    'local': {'algorithm': 'local'},
}


def get_config(path: str) -> ConfigDict:
  """Returns FedMerge's run on the speakers of a file, with the others as variants of it."""
  config = defaults.get_config()
  config.update_from_flattened_dict({
      'name': 'fedmerge_3', 'algorithm': 'fedmerge', 'fedmerge.models': 3,
      'fedmerge.weight_lr': 0.1, 'dataset': f'text:{path}', 'clients': 40, 'participation': 0,
      'partition.kind': 'natural', 'model': 'lstm', 'lstm.hidden': (64,), 'rounds': 30,
      'eval_every': 5, 'seeds': 3, 'selection': 'loss', 'local.epochs': 2, 'local.lr': 1.0,
      'local.batch': 20, 'local.clip': 5.0})
  config.variants = tuple(variant(name, changes) for name, changes in OTHERS.items())
  return config
