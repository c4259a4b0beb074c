"""The networks of hmm_jax in plain PyTorch, trained by a plain loop, to compare with.

Runs where PyTorch is, without JAX or hmm_jax. Reads one task a line from standard input, as
JSON, and answers each with one line. Two processes of one thread train a client each.
"""

import itertools
import json
import sys
import time

import numpy as np
import torch
from torch import multiprocessing, nn
from torch.nn import functional

CNNS = {  # convolutions, whether each is pooled, window, padding, hidden layers, dropout
    'lenet': ((6, 16), (1, 1), 5, 0, (120, 84), (0, 0)),
    'pfllib': ((32, 64), (1, 1), 5, 0, (512,), (0, 0)),
    'pfl': ((32, 64), (0, 1), 3, 0, (128,), (0.25, 0.5)),
    'small': ((32, 64), (1, 1), 3, 1, (128,), (0, 0)),
}
RESNETS = {  # widths of the stages, blocks in each
    '9-narrow': ((8, 16, 32, 64), 1), '18': ((64, 128, 256, 512), 2), '20': ((16, 32, 64), 3),
}
VITS = {'micro': (64, 4, 4, 4)}  # width, layers, heads, side of a patch
LENGTH = 80  # tokens of an example
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class Trunk(nn.Module):
  """Layers under the names that they have in hmm_jax."""

  def __init__(self):
    super().__init__()
    self.flattened = None  # (channels, height, width) in front of Dense_0

  def conv(self, *arguments, **options):
    return self._add('Conv', nn.Conv2d(*arguments, **options))

  def norm(self, channels):
    return self._add('BatchNorm', nn.BatchNorm2d(channels))

  def dense(self, *arguments):
    return self._add('Dense', nn.Linear(*arguments))

  def _add(self, kind, layer):
    number = sum(name.startswith(kind) for name in self._modules)
    self.add_module(f'{kind}_{number}', layer)
    return layer


class Perceptron(Trunk):

  def __init__(self, shape, hidden):
    super().__init__()
    sizes = [int(np.prod(shape)), *hidden]
    self.layers = [self.dense(a, b) for a, b in itertools.pairwise(sizes)]
    self.flattened, self.features = shape, sizes[-1]

  def forward(self, x):
    x = x.flatten(1)
    for layer in self.layers:
      x = functional.relu(layer(x))
    return x


class Cnn(Trunk):

  def __init__(self, shape, size):
    super().__init__()
    convs, self.pools, window, padding, hidden, self.dropout = CNNS[size]
    (channels, height, width), self.convs = shape, []
    for features, pool in zip(convs, self.pools):
      self.convs.append(self.conv(channels, features, window, padding=padding))
      height, width = (side + 2 * padding - window + 1 for side in (height, width))
      channels, height, width = features, height // (1 + pool), width // (1 + pool)
    self.flattened = channels, height, width
    sizes = [channels * height * width, *hidden]
    self.layers = [self.dense(a, b) for a, b in itertools.pairwise(sizes)]
    self.features = sizes[-1]

  def forward(self, x):
    for conv, pool in zip(self.convs, self.pools):
      x = functional.relu(conv(x))
      x = functional.max_pool2d(x, 2) if pool else x
    x = functional.dropout(x.flatten(1), self.dropout[0], self.training)
    for layer in self.layers:
      x = functional.relu(layer(x))
    return functional.dropout(x, self.dropout[1], self.training)


class Block(Trunk):

  def __init__(self, channels, features, stride):
    super().__init__()
    self.first = self.conv(channels, features, 3, stride, padding=1, bias=False)
    self.first_norm = self.norm(features)
    self.second = self.conv(features, features, 3, padding=1, bias=False)
    self.second_norm, self.shortcut = self.norm(features), nn.Identity()
    if stride > 1 or channels != features:
      self.shortcut = nn.Sequential(
          self.conv(channels, features, 1, stride, bias=False), self.norm(features))

  def forward(self, x):
    y = functional.relu(self.first_norm(self.first(x)))
    return functional.relu(self.second_norm(self.second(y)) + self.shortcut(x))


class ResNet(Trunk):

  def __init__(self, shape, size):
    super().__init__()
    widths, count = RESNETS[size]
    self.stem = self.conv(shape[0], widths[0], 3, padding=1, bias=False)
    self.stem_norm, self.blocks, channels = self.norm(widths[0]), [], widths[0]
    for stage, features in enumerate(widths):
      for block in range(count):
        stride = 2 if stage > 0 and block == 0 else 1
        self.blocks.append(self._add('Block', Block(channels, features, stride)))
        channels = features
    self.features = channels

  def forward(self, x):
    x = functional.relu(self.stem_norm(self.stem(x)))
    for block in self.blocks:
      x = block(x)
    return x.mean((2, 3))


class Vgg16(Trunk):

  def __init__(self, shape):
    super().__init__()
    self.stages, channels = [], shape[0]
    for widths in STAGES:
      stage = []
      for features in widths:
        stage.append((self.conv(channels, features, 3, padding=1), self.norm(features)))
        channels = features
      self.stages.append(stage)
    self.flattened = 512, shape[1] // 32, shape[2] // 32
    self.layers = [self.dense(int(np.prod(self.flattened)), 4096), self.dense(4096, 4096)]
    self.features, self.dropout = 4096, (0.5,)

  def forward(self, x):
    for stage in self.stages:
      for conv, norm in stage:
        x = functional.relu(norm(conv(x)))
      x = functional.max_pool2d(x, 2)
    x = x.flatten(1)
    for layer in self.layers:
      x = functional.dropout(functional.relu(layer(x)), self.dropout[0], self.training)
    return x


class Lstm(Trunk):

  def __init__(self, shape):
    super().__init__()
    self.embed, self.features = self._add('Embed', nn.Embedding(shape[0], 8)), 256
    self.layers = [self._add('LSTM', nn.LSTM(size, 256, batch_first=True)) for size in (8, 256)]
    for layer in self.layers:  # hmm_jax has one bias a gate.
      nn.init.zeros_(layer.bias_hh_l0).requires_grad_(False)

  def forward(self, x):
    x = self.embed(x)
    for layer in self.layers:
      x, _ = layer(x)
    return x[:, -1]


class Attention(nn.Module):

  def __init__(self, width, heads, causal):
    super().__init__()
    self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
    self.heads, self.causal = heads, causal

  def forward(self, x):
    query, key, value = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                         for layer in (self.query, self.key, self.value))
    mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
    return self.out(mixed.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):

  def __init__(self, width, heads, causal):
    super().__init__()
    self.LayerNorm_0, self.LayerNorm_1 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
    self.attention = Attention(width, heads, causal)
    self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

  def forward(self, x):
    x = x + self.attention(self.LayerNorm_0(x))
    return x + self.down(functional.gelu(self.up(self.LayerNorm_1(x))))


class Transformer(Trunk):

  def __init__(self, width, layers, heads, positions, causal):
    super().__init__()
    self.positions, self.features = nn.Embedding(positions, width), width
    self.blocks = [self._add('Block', TransformerBlock(width, heads, causal))
                   for _ in range(layers)]
    self.last_norm = self._add('LayerNorm', nn.LayerNorm(width, eps=1e-6))

  def stream(self, x):
    x = x + self.positions.weight
    for block in self.blocks:
      x = block(x)
    return x


class Vit(Transformer):

  def __init__(self, shape, size):
    width, layers, heads, patch = VITS[size]
    super().__init__(width, layers, heads, 1 + shape[1] * shape[2] // patch**2, causal=False)
    self.token = nn.Embedding(1, width)
    self.patches = nn.Conv2d(shape[0], width, patch, patch)

  def forward(self, x):
    x = self.patches(x).flatten(2).transpose(1, 2)
    token = self.token.weight.expand(len(x), 1, -1)
    return self.last_norm(self.stream(torch.cat([token, x], dim=1))[:, 0])


class Gpt(Transformer):

  def __init__(self, shape, layers):
    super().__init__(128, layers, 4, LENGTH, causal=True)
    self.tokens = nn.Embedding(shape[0], 128)

  def forward(self, x):
    return self.last_norm(self.stream(self.tokens(x))[:, -1])


class Network(nn.Module):

  def __init__(self, model, settings, shape, classes):
    super().__init__()
    self.trunk = {'mlp': Perceptron, 'cnn': Cnn, 'resnet': ResNet, 'vgg16': Vgg16,
                  'lstm': Lstm, 'vit': Vit, 'gpt': Gpt}[model](shape, *settings)
    self.head = nn.Linear(self.trunk.features, classes)

  def forward(self, x):
    return self.head(self.trunk(x))

  def load(self, arrays):
    """Takes the variables of hmm_jax: {'params/trunk/Conv_0/kernel': ..., ...}."""
    names = {'kernel': 'weight', 'scale': 'weight', 'embedding': 'weight', 'mean': 'running_mean',
             'var': 'running_var', 'bias': 'bias'}
    state = self.state_dict()
    for path, value in arrays.items():
      *owner, kind = path.split('/')[1:]
      if owner[-1].startswith('LSTM'):
        kind = {'kernel': 'weight_ih_l0', 'recurrent': 'weight_hh_l0', 'bias': 'bias_ih_l0'}[kind]
      name = '.'.join([*owner, names.get(kind, kind)])
      value = torch.from_numpy(value)
      if owner[-1] == 'Dense_0' and kind == 'kernel':  # Pixels come before channels.
        channels, *image = self.trunk.flattened
        value = value.reshape(*image, channels, -1).permute(3, 2, 0, 1).flatten(1)
      elif owner[-1] == 'patches' and kind == 'kernel':
        _, channels, *window = state[name].shape
        value = value.reshape(*window, channels, -1).permute(3, 2, 0, 1)
      elif value.ndim == 4:
        value = value.permute(3, 2, 0, 1)
      elif value.ndim == 2 and kind != 'embedding':
        value = value.T
      assert state[name].shape == value.shape, (name, state[name].shape, value.shape)
      state[name].copy_(value)


def optimizer(name, parameters):
  parameters = [p for p in parameters if p.requires_grad]
  if name == 'adamw':
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
  return torch.optim.SGD(parameters, lr=0.01, momentum=0.9 if name == 'momentum' else 0)


def step(network, update, x, y):
  update.zero_grad(set_to_none=True)
  loss = functional.cross_entropy(network(x), y)
  loss.backward()
  update.step()
  return loss


def losses(task):
  """Returns the losses of three steps without dropout, from given variables on given batches."""
  network = Network(task['model'], task['settings'], task['shape'], task['classes'])
  with np.load(task['file']) as file:
    arrays = dict(file)
  x, y = torch.from_numpy(arrays.pop('x')), torch.from_numpy(arrays.pop('y')).long()
  network.load(arrays)
  network.trunk.dropout = (0, 0)
  update = optimizer(task['optimizer'], network.parameters())
  x = x.movedim(-1, 2) if x.ndim == 5 else x.long()
  return [step(network, update, *batch).item() for batch in zip(x, y)]


def client(number, tasks, barrier, answers):
  """Trains one client as often as it is told to, and sends the seconds."""
  torch.set_num_threads(1)
  torch.manual_seed(number)
  while True:
    task = tasks.get()
    if task['begin']:
      rows = task['rows']
      network = Network(task['model'], task['settings'], task['shape'], task['classes'])
      x = (torch.randint(task['shape'][0], (rows, LENGTH)) if task['model'] in ('lstm', 'gpt')
           else torch.randn(rows, *task['shape']))
      y = torch.randint(task['classes'], (rows,))
    update = optimizer(task['optimizer'], network.parameters())
    barrier.wait()
    start, order, at = time.perf_counter(), torch.randperm(rows), 0
    for _ in range(task['steps']):
      if at + task['batch'] > rows:
        order, at = torch.randperm(rows), 0
      batch, at = order[at:at + task['batch']], at + task['batch']
      step(network, update, x[batch], y[batch])
    answers.put(time.perf_counter() - start)


def main():
  context = multiprocessing.get_context('spawn')
  barrier, answers = context.Barrier(2), context.Queue()
  queues = [context.Queue() for _ in range(2)]
  for number, tasks in enumerate(queues):
    context.Process(target=client, args=(number, tasks, barrier, answers), daemon=True).start()
  for line in sys.stdin:
    task = json.loads(line)
    if 'file' in task:
      with torch.random.fork_rng():
        answer = losses(task)
    else:
      for tasks in queues:
        tasks.put(task)
      answer = max(answers.get() for _ in queues)
    print(json.dumps(answer), flush=True)


if __name__ == '__main__':
  main()
