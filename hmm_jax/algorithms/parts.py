"""Components from which methods are built, configured by the settings of a config."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hmm_jax.client import losses, sampling, schedule
from hmm_jax.client.local import local_training
from hmm_jax.client.optimizers import local_optimizer
from hmm_jax.models.generator import generator
from hmm_jax.registry import Setting
from hmm_jax.server import guided_search, objectives, training
from hmm_jax.types import (
    Algorithm,
    Federation,
    Generator,
    InputError,
    Local,
    Loss,
    Mapper,
    Model,
    Objective,
    PyTree,
    Search,
)

WEIGHTS = {'size': sampling.by_size, 'uniform': sampling.uniform}
WEIGHTS_SETTING = Setting(
    'size', "the clients' weights in the mean: by number of examples, or equal", choices=WEIGHTS)

LOCAL = {
    'epochs': Setting(5, "passes over a client's examples per round", at_least=0),
    'steps': Setting(0, 'minibatch steps per round, instead of epochs; 0: epochs', at_least=0),
    'batch': Setting(20, 'examples per minibatch', at_least=1, at_most=10**6),
    'accumulate': Setting(1, 'minibatches whose gradients are added up to one step, which is that '
                          'of a minibatch of them all', at_least=1, at_most=10**6),
    'optimizer': Setting('sgd', 'the optimizer of local training: sgd, adamw or another one of '
                         'optax; or package.module:FUNCTION or path/to/file.py:FUNCTION, which '
                         'returns one'),
    'lr': Setting(0.05, 'learning rate', above=0),
    'momentum': Setting(0.0, 'momentum, of SGD and others that have it', at_least=0, below=1),
    'weight_decay': Setting(0.0, 'weight decay', at_least=0),
    **schedule.SETTINGS,
    'clip': Setting(0.0, 'largest global norm of a gradient; 0: no clipping', at_least=0),
    'clip_value': Setting(
        0.0, 'largest absolute value in a gradient; 0: no clipping', at_least=0),
    'label_smoothing': Setting(
        0.0, 'share of a label that is spread evenly over all classes', at_least=0, below=1),
    'prox': Setting(
        0.0, "weight of the proximal term around the round's initial model", at_least=0),
}


class Parts(NamedTuple):
  """The components of an experiment that a method is built from.

  config:     all settings; a builder also gets its own section as a separate argument.
  model:      the network.
  mapper:     how clients are mapped.
  federation: the data, on the host.
  """

  config: Any
  model: Model
  mapper: Mapper
  federation: Federation

  @property
  def local(self) -> Any:
    """The settings of local training."""
    return self.config.local

  @property
  def cohort(self) -> dict:
    """The arguments of methods that sample clients in each round: mapper and participation."""
    return {'mapper': self.mapper, 'participation': self.config.participation}

  @property
  def clients(self) -> int:
    """The number of clients, K."""
    return len(self.federation.clients.id)

  def plain_loss(self) -> Loss:
    """Makes the clients' loss of the task, without a proximal term."""
    return losses.supervised(self.model, smoothing=self.local.label_smoothing)

  def loss(self) -> Loss:
    """Makes the clients' training loss."""
    plain, mu = self.plain_loss(), self.local.prox
    return losses.proximal(plain, mu) if mu else plain

  def optimizer(self) -> optax.GradientTransformation:
    """Makes the clients' optimizer: clipping, then weight decay, then the step."""
    settings = self.local
    steps = [optax.clip_by_global_norm(settings.clip)] if settings.clip else []
    if settings.clip_value:
      steps.append(optax.clip(settings.clip_value))
    made = optax.chain(*steps, local_optimizer(settings))
    return schedule.of_settings(made, settings, self.config.rounds)

  def training(self, loss: Loss | Model | None = None, *,
               make: Callable[..., Local] = local_training,
               optimizer: optax.GradientTransformation | None = None, **changed) -> Local:
    """Makes the local training of one client from the settings `local`; arguments override them.

    Args:
      loss: first argument of `make`; None for `loss()`.
      make: (loss, optimizer, batch=, epochs=, steps=) -> Local.
      optimizer: None for `optimizer()`.
      **changed: batch, epochs or steps.
    """
    loop = {'batch': self.local.batch * self.local.accumulate, 'epochs': self.local.epochs,
            'steps': self.local.steps}
    loss = loss or self.loss()
    loss = loss if isinstance(loss, Model) else self.accumulated(loss)
    return make(loss, optimizer or self.optimizer(), **loop | changed)

  def accumulated(self, loss: Loss) -> Loss:
    """Returns a loss whose gradients are of `local.accumulate` minibatches, added up."""
    return losses.accumulated(loss, self.local.batch) if self.local.accumulate > 1 else loss

  def generator(self, *, hidden: int, noise: int) -> Generator:
    """Makes a generator of features, the inputs of the network's head."""
    return generator(classes=self.classes(), features=self.features(), hidden=hidden, noise=noise)

  def features(self) -> int:
    """Returns the number of features, F; raises InputError if the network has no head."""
    return jax.eval_shape(self.model.features, self.model.shapes, self._example).shape[1]

  def classes(self) -> int:
    """Returns the width of the network's outputs, C."""
    return jax.eval_shape(self.model.apply, self.model.shapes, self._example)[0].shape[-1]

  @property
  def _example(self) -> PyTree:
    """The shapes and dtypes of a batch of one."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype),
                        self.federation.examples.x)

  def objective(self) -> Objective:
    """Makes the objective on the server's examples.

    Raises:
      InputError: a label is not a class of the network.
    """
    settings, classes, server = self.config.server, self.classes(), self.federation.server
    assert server, 'a method that learns on the server must list `server examples` in its needs'
    if (task := self.model.task.name) != 'classification':
      return self._objective_without_classes(task)
    labels = 1 + int(server.examples.y.max())
    if settings.surrogate == 'labels' and labels > classes:
      raise InputError(f'got server.surrogate=labels with server labels up to {labels - 1}; '
                       f'expected labels below {classes}, the number of classes of the clients, '
                       'or a surrogate among head, distil, entropy')
    if settings.surrogate == 'head':
      self.features()  # Raises InputError if there is no head that reads them.
    return {
        'labels': lambda: objectives.labels(self.model),
        'entropy': lambda: objectives.entropy(self.model),
        'distil': lambda: objectives.distill(self.model),
        'head': lambda: objectives.fresh_head(
            self.model, labels, ridge=settings.head_ridge, steps=settings.head_steps),
    }[settings.surrogate]()

  def _objective_without_classes(self, task: str) -> Objective:
    made = {'labels': objectives.labels, 'entropy': objectives.entropy}
    surrogate = self.config.server.surrogate
    if surrogate not in made:
      raise InputError(f'got server.surrogate={surrogate} with task={task}; expected labels or '
                       'entropy, as the others are for classes')
    return made[surrogate](self.model)

  def guide(self, objective: Objective, search: Search, project: Callable,
            fallback: guided_search.Fallback) -> guided_search.Guide:
    """Makes the settings of a search for merge coefficients on the server's examples."""
    settings = self.config.server
    return guided_search.Guide(
        objective, search, project, fallback, self.mapper, settings.steps, settings.batch)

  def server_training(self, objective: Objective,
                      optimizer: optax.GradientTransformation) -> Callable:
    """Makes training on the server's examples, with `server.steps` minibatches per round."""
    settings = self.config.server
    train = local_training(objectives.training_loss(objective), optimizer, batch=settings.batch,
                           steps=settings.steps)
    return training.server_training(objective, train)

  def server_sgd(self) -> Callable:
    """Makes training by SGD on the server's examples.

    Raises:
      InputError: the objective needs the clients' models.
    """
    if self.config.server.surrogate == 'distil':
      raise InputError(f'got server.surrogate=distil with algorithm={self.config.algorithm}; '
                       'expected labels, head or entropy, or algorithm=feddf')
    return self.server_training(self.objective(), optax.sgd(self.config.server.lr))


def check_local(config: Any, name: str, needs: tuple[str, ...]):
  """Checks that the settings of local training meet the needs of a method.

  Args:
    config: all settings.
    name: of the method.
    needs: of the method.

  Raises:
    InputError: a setting does not.
  """
  local = config.local
  local_optimizer(local)
  schedule.check(local, config.rounds)
  if schedule.is_used(local) and {'plain sgd', 'constant lr'} & set(needs):
    raise InputError(f'got local.schedule={local.schedule}, local.step_schedule='
                     f'{local.step_schedule}, local.warmup_rounds={local.warmup_rounds}, '
                     f'local.warmup_steps={local.warmup_steps} with algorithm={name}; expected '
                     'constant, constant, 0 and 0, as the method computes with one learning rate')
  if 'plain sgd' in needs and (local.optimizer, local.momentum) != ('sgd', 0):
    raise InputError(f'got local.optimizer={local.optimizer}, local.momentum={local.momentum} with '
                     f'algorithm={name}; expected sgd with momentum 0, for which the corrections '
                     'of this method are defined')
  if 'plain loss' in needs and (local.label_smoothing or local.prox):
    raise InputError(f'got local.label_smoothing={local.label_smoothing}, local.prox={local.prox} '
                     f'with algorithm={name}; expected 0 for both, as the method defines its loss')
  if 'no prox' in needs and local.prox:
    raise InputError(f'got local.prox={local.prox} with algorithm={name}; expected 0, as the '
                     'method does not combine with local.prox')


def in_rounds(made: Algorithm, config: Any) -> Algorithm:
  """Returns a method that tells its clients the round, if their learning rate goes by it."""
  local = config.local
  if not schedule.goes_by_round(local):
    return made

  def round(state, federation, key):
    clients = federation.clients
    told = clients._replace(round=jnp.full(clients.id.shape, state.round))
    return made.round(state, federation._replace(clients=told), key)

  length = made.length if local.schedule == 'constant' else config.rounds
  return made._replace(round=round, length=length)


def one_global_model(parts: Parts, made: Algorithm) -> bool:
  """Returns whether a method makes a global model and no client models."""
  views = jax.eval_shape(lambda key, data: made.views(made.init(key, data), data),
                         jax.random.key(0), parts.federation)
  return 'global' in views and 'clients' not in views
