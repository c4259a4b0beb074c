"""The parts that methods are made from, by the settings of a config."""

from collections.abc import Callable
import inspect
from typing import Any, NamedTuple

import jax
import optax

from hmm_jax.client import losses, sampling
from hmm_jax.client.local import local_training
from hmm_jax.models.generator import generator
from hmm_jax.registry import Setting, suggestion
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
    Search,
)

WEIGHTS = {'size': sampling.by_size, 'uniform': sampling.uniform}
WEIGHTS_SETTING = Setting('size', "the clients' weights in the mean: by their examples, or equal",
                          choices=WEIGHTS)

LOCAL = {
    'epochs': Setting(5, "passes over a client's examples in a round", at_least=0),
    'steps': Setting(0, 'minibatch steps instead of epochs; 0: epochs', at_least=0),
    'batch': Setting(20, 'examples in a minibatch', at_least=1),
    'optimizer': Setting('sgd', 'which optimizer', choices=('sgd', 'adamw')),
    'lr': Setting(0.05, 'learning rate', above=0),
    'momentum': Setting(0.0, 'momentum of sgd', at_least=0),
    'weight_decay': Setting(0.0, 'weight decay', at_least=0),
    'clip': Setting(0.0, 'largest global norm of a gradient; 0: no clipping', at_least=0),
    'clip_value': Setting(0.0, 'largest entry of a gradient; 0: no clipping', at_least=0),
    'label_smoothing': Setting(
        0.0, 'share of a label that is spread evenly over all classes', at_least=0, below=1),
    'prox': Setting(0.0, "weight of the proximal term around the round's initial model", at_least=0),
}


class Parts(NamedTuple):
  """The parts of an experiment that a method is built from.

  config:     all settings; a builder is given its own section besides.
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
    """The arguments of methods that sample clients in each round."""
    return {'mapper': self.mapper, 'participation': self.config.participation}

  @property
  def clients(self) -> int:
    """The number of clients, K."""
    return len(self.federation.clients.id)

  def cross_entropy(self) -> Loss:
    """Makes the loss of clients without a proximal term."""
    return losses.cross_entropy(self.model, smoothing=self.local.label_smoothing)

  def loss(self) -> Loss:
    """Makes the loss of clients."""
    plain, mu = self.cross_entropy(), self.local.prox
    return losses.proximal(plain, mu) if mu else plain

  def optimizer(self) -> optax.GradientTransformation:
    """Makes the optimizer of clients: clipping, then weight decay, then the step."""
    settings = self.local
    steps = [optax.clip_by_global_norm(settings.clip)] if settings.clip else []
    if settings.clip_value:
      steps.append(optax.clip(settings.clip_value))
    if settings.optimizer == 'adamw':
      return optax.chain(*steps, optax.adamw(settings.lr, weight_decay=settings.weight_decay))
    if settings.weight_decay:
      steps.append(optax.add_decayed_weights(settings.weight_decay))
    return optax.chain(*steps, optax.sgd(settings.lr, momentum=settings.momentum or None))

  def training(self, loss: Loss | None = None, *, make: Callable[..., Local] = local_training,
               optimizer: optax.GradientTransformation | None = None, **changed) -> Local:
    """Makes the local training of one client from the settings `local`, but for what is given.

    Args:
      loss: instead of `loss()`.
      make: (loss, optimizer, batch=, epochs=, steps=) -> Local.
      optimizer: instead of `optimizer()`.
      **changed: batch, epochs or steps.
    """
    loop = {'batch': self.local.batch, 'epochs': self.local.epochs, 'steps': self.local.steps}
    return make(loss or self.loss(), optimizer or self.optimizer(), **loop | changed)

  def generator(self, *, hidden: int, noise: int) -> Generator:
    """Makes a generator of inputs for the network's head."""
    shapes = jax.eval_shape(self.model.init, jax.random.key(0))
    example = jax.tree.map(lambda x: x[:1], self.federation.examples.x)
    features = jax.eval_shape(self.model.features, shapes, example).shape[1]
    return generator(classes=self.classes(), features=features, hidden=hidden, noise=noise)

  def classes(self) -> int:
    """Counts the classes of the network, C."""
    shapes = jax.eval_shape(self.model.init, jax.random.key(0))
    example = jax.tree.map(lambda x: x[:1], self.federation.examples.x)
    return jax.eval_shape(self.model.apply, shapes, example)[0].shape[1]

  def objective(self) -> Objective:
    """Makes the objective on the server's examples.

    Raises:
      InputError: their labels are not classes of the network.
    """
    settings, classes = self.config.server, self.classes()
    labels = 1 + int(self.federation.server.examples.y.max())
    if settings.surrogate == 'labels' and labels > classes:
      raise InputError(f'got server.surrogate=labels with server labels up to {labels - 1}; '
                       f'expected labels below {classes}, those of the clients, or one of head, '
                       'distil, entropy')
    return {
        'labels': lambda: objectives.labels(self.model),
        'entropy': lambda: objectives.entropy(self.model),
        'distil': lambda: objectives.distill(self.model),
        'head': lambda: objectives.fresh_head(
            self.model, labels, ridge=settings.head_ridge, steps=settings.head_steps),
    }[settings.surrogate]()

  def guide(self, objective: Objective, search: Search, project: Callable,
            fallback: guided_search.Fallback) -> guided_search.Guide:
    """Makes a search for coefficients of a merge on the server's examples."""
    settings = self.config.server
    return guided_search.Guide(
        objective, search, project, fallback, self.mapper, settings.steps, settings.batch)

  def server_training(self, objective: Objective,
                      optimizer: optax.GradientTransformation) -> Callable:
    """Makes training on the server's examples, of `server.steps` minibatches a round."""
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
                       'expected labels, head or entropy, or algorithm=feddf, which distills')
    return self.server_training(self.objective(), optax.sgd(self.config.server.lr))


def named_optimizer(key: str, name: str, settings: dict, *,
                    others: tuple[str, ...] = ()) -> optax.GradientTransformation:
  """Makes the optax optimizer of a name, with those of the settings that it takes.

  Args:
    key: of the config, for the error.
    name: of a factory in optax.
    settings: by the names of its arguments, `learning_rate` among them.
    others: what else the key may be, for the error.

  Raises:
    InputError: there is none of that name.
  """
  factory = getattr(optax, name, None)
  takes = inspect.signature(factory).parameters if inspect.isfunction(factory) else {}
  if 'learning_rate' not in takes:
    common = ('sgd', 'adam', 'adagrad', 'yogi', 'adamw', 'lion', 'rmsprop')
    wanted = ', '.join([*others, f'an optax optimizer such as {", ".join(common)}'])
    raise InputError(f'got {key}={name}; expected {wanted}' + suggestion(name, others + common))
  return factory(**{name: value for name, value in settings.items() if name in takes})


def check_local(config: Any, name: str, needs: tuple[str, ...]):
  """Checks that the settings of local training are as a method needs them.

  Args:
    config: all settings.
    name: of the method.
    needs: of the method.

  Raises:
    InputError: they are not.
  """
  local = config.local
  if 'plain sgd' in needs and (local.optimizer, local.momentum) != ('sgd', 0):
    raise InputError(f'got local.optimizer={local.optimizer}, local.momentum={local.momentum} with '
                     f'algorithm={name}; expected sgd without momentum, for which its '
                     'corrections are defined')
  if 'plain loss' in needs and (local.label_smoothing or local.prox):
    raise InputError(f'got local.label_smoothing={local.label_smoothing}, local.prox={local.prox} '
                     f'with algorithm={name}; expected 0 of both, for it has a loss of its own')
  if 'no prox' in needs and local.prox:
    raise InputError(f'got local.prox={local.prox} with algorithm={name}; expected 0, for it has '
                     'a proximal term of its own')


def one_global_model(parts: Parts, made: Algorithm) -> bool:
  """Says whether a method has a global model and none of the clients' own."""
  views = jax.eval_shape(lambda key, data: made.views(made.init(key, data), data),
                         jax.random.key(0), parts.federation)
  return 'global' in views and 'clients' not in views
