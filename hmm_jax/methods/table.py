"""Every algorithm by its name, and what their settings must not be."""

from ml_collections import ConfigDict

from hmm_jax.client import mappers
from hmm_jax.methods.decentralised import DECENTRALISED
from hmm_jax.methods.dmm import domain_adaptive
from hmm_jax.methods.hybrid import HYBRID
from hmm_jax.methods.one_model import ONE_MODEL
from hmm_jax.methods.one_shot import ONE_SHOT
from hmm_jax.methods.personal import PERSONAL, fine_tuned
from hmm_jax.methods.setup import Setup
from hmm_jax.types import Algorithm, Federation, InputError, Model

TABLE = ONE_MODEL | PERSONAL | HYBRID | DECENTRALISED | ONE_SHOT | {'dmm': domain_adaptive}
EVERYBODY = ('gossip', 'merging', 'dmm', 'centralised', 'server_only')  # Nobody is drawn in these.


def algorithm(config: ConfigDict, net: Model, mapper: mappers.Mapper,
              federated: Federation) -> Algorithm:
  """Makes the named algorithm.

  Raises:
    InputError: its settings are impossible.
  """
  setup = Setup(config, net, mapper, federated)
  return fine_tuned(setup, TABLE[config.algorithm](setup))


def check(config: ConfigDict):
  """Checks settings that an algorithm cannot honour.

  Raises:
    InputError: a setting is out of its range, or two don't go together.
  """
  step = config.local
  if step.label_smoothing >= 1:
    raise InputError(f'got local.label_smoothing={step.label_smoothing}; expected a share of the '
                     'label below 1')
  if config.algorithm in CHECKS:
    CHECKS[config.algorithm](config)


def plain_sgd(config: ConfigDict):
  step = config.local
  if (step.optimizer, step.momentum) != ('sgd', 0):
    raise InputError(f'got local.optimizer={step.optimizer}, local.momentum={step.momentum} with '
                     f'algorithm={config.algorithm}; expected sgd without momentum, for which its '
                     'corrections are defined')


def plain_loss(config: ConfigDict):
  step = config.local
  if step.label_smoothing or step.prox:
    raise InputError(f'got local.label_smoothing={step.label_smoothing}, local.prox={step.prox} '
                     'with algorithm=fedem; expected 0 of both, for its loss is its own')


def no_second_pull(config: ConfigDict):
  name = config.algorithm
  if config.local.prox:
    raise InputError(f'got local.prox={config.local.prox} with algorithm={name}; expected 0, since '
                     f"the clients' models of {name} begin elsewhere and have a pull of their own")


def one_pull(config: ConfigDict):
  name, mu = config.algorithm, config[config.algorithm].mu
  if config.local.prox:
    raise InputError(f'got local.prox={config.local.prox} with algorithm={name}; expected 0, since '
                     f'{name}.mu={mu} is its proximal term')


def first_stage_within(config: ConfigDict):
  stage = config.fedmr.first_stage
  if stage >= config.rounds:
    raise InputError(f'got fedmr.first_stage={stage}; expected fewer than rounds={config.rounds}, '
                     'or nothing is ever recombined')


def newcomers_leave_some(config: ConfigDict):
  one_pull(config)
  new, rounds = config.fedmerge.newcomers, config.fedmerge.newcomer_rounds
  if config.clients and not new <= config.clients - max(config.participation, 1):
    raise InputError(f'got fedmerge.newcomers={new} with clients={config.clients}, participation='
                     f'{config.participation}; expected enough others to take part')
  if new and not rounds:
    raise InputError(f'got fedmerge.newcomer_rounds={rounds} with fedmerge.newcomers={new}; '
                     'expected at least 1')


def whole_anchors(config: ConfigDict):
  settings = config.feddle
  if (settings.normalise, settings.coefficients) == ('layer', 'global'):
    raise InputError('got feddle.normalise=layer with feddle.coefficients=global; expected '
                     'coefficients=layer, or no coefficients would be the average')


def own_labels(config: ConfigDict):
  if config.server.surrogate != 'labels':
    raise InputError(f'got server.surrogate={config.server.surrogate} with algorithm=server_only; '
                     "expected labels, for nothing else teaches the clients' task")


CHECKS = {
    'scaffold': plain_sgd,
    'fedclg_c': plain_sgd,
    'fedclg_s': plain_sgd,
    'feddle': whole_anchors,
    'server_only': own_labels,
    'fedem': plain_loss,
    'ditto': no_second_pull,
    'apfl': no_second_pull,
    'pfedme': no_second_pull,
    'fedprox': one_pull,
    'fedmr': first_stage_within,
    'fedmerge': newcomers_leave_some,
}
