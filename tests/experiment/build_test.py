"""From a config and a federation to an experiment: network, devices, method, criterion."""

import json
import os
import re
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import numpy as np
from reference import release
from reference.configs import experiment, tiny

from hmm_jax.experiment import build, federation
from hmm_jax.types import InputError


def held_by(held):
  """Returns the row numbers of all clients."""
  return np.concatenate([index[:size] for index, size in zip(held.index, held.size)])


class BuildTest(parameterized.TestCase):

  def test_text_of_natural_clients_through_a_round(self):
    with tempfile.TemporaryDirectory() as folder:
      path = os.path.join(folder, 'speeches.jsonl')
      with open(path, 'w') as file:
        for n in range(12):
          print(json.dumps({'by': n % 4, 'text': f'{n} to be, or not to be ' * 9}), file=file)
      made = experiment(tiny(**{
          'dataset': f'text:{path}', 'text.owner': ('by',), 'text.window': 8, 'text.min_rows': 5,
          'partition.kind': 'natural', 'clients': 4, 'model': 'lstm', 'lstm.embedding': 3,
          'lstm.hidden': (5,), 'local.epochs': 1, 'mapper': 'map'}))
    state = jax.jit(made.algorithm.init)(jax.random.key(0), made.federation)
    self.assertEqual(state.variables['params']['trunk']['LSTM_0']['kernel'].shape, (3, 20))
    _, metrics = jax.jit(made.algorithm.round)(state, made.federation, jax.random.key(1))
    self.assertLess(metrics['train/loss'], 4)

  def test_tokens_are_read_by_a_recurrent_network_and_by_no_other(self):
    with tempfile.TemporaryDirectory() as folder:
      path = os.path.join(folder, 'tokens.npz')
      settings = {'dataset': f'npz:{path}', 'partition.kind': 'iid'}
      for x, shape, model, expected in (
          (np.ones((90, 8), int), (8,), 'mlp', 'such as lstm'),
          (np.ones((90, 8), int), (8,), 'cnn', 'such as lstm'),
          (np.ones((90, 8)), (8,), 'lstm', 'such as mlp'),
          (np.ones((90, 8, 8), np.uint8), (8, 8, 1), 'lstm', 'such as mlp')):
        np.savez(path, x=x, y=np.arange(90) % 3)
        with self.assertRaisesRegex(InputError, rf'got model={model} with \w+ inputs of shape '
                                    rf'{re.escape(str(shape))}; .*{expected}'):
          experiment(tiny(model=model, **settings))
      np.savez(path, x=-np.eye(90, dtype=int), y=np.arange(90) % 3)
      with self.assertRaisesRegex(InputError, 'got dataset=npz:.* from -1 to 0'):
        experiment(tiny(model='lstm', **settings))
      np.savez(path, x=np.eye(90, dtype=int) * 6, y=np.arange(90) % 3)
      made = experiment(tiny(model='lstm', **settings))
    state = jax.eval_shape(made.algorithm.init, jax.random.key(0), made.federation)
    self.assertEqual(state.variables['params']['trunk']['Embed_0']['embedding'].shape, (7, 8))

  @parameterized.parameters(
      ('auto', 4, 0), ('sharded', 4, 0), ('map', 1, 0), ('vmap', 1, 0), ('vmap', 1, 2),
      ('auto', 4, 2))
  def test_every_mapper_and_its_devices(self, name, count, chunk):
    made = experiment(tiny(mapper=name, chunk=chunk))
    self.assertLen(made.sharding.device_set, count)
    state = made.algorithm.init(jax.random.key(0), made.federation)
    text = str(jax.make_jaxpr(made.algorithm.round)(state, made.federation, jax.random.key(0)))
    self.assertEqual('shard_map' in text, count > 1)

  @parameterized.parameters(
      ('fedavg', 'accuracy', 'global'), ('fedmr', 'loss', 'global'),
      ('fedmerge', 'accuracy', 'clients'), ('local', 'loss', 'clients'),
      ('gossip', 'accuracy', 'clients'))
  def test_what_a_round_is_selected_by(self, name, selection, view):
    made = experiment(tiny(algorithm=name, selection=selection, mapper='map'))
    self.assertEqual(made.criterion, f'{view}/validation/{selection}')
    if name in ('fedavg', 'local'):
      views = made.algorithm.views(
          made.algorithm.init(jax.random.key(0), made.federation), made.federation)
      self.assertIn(made.criterion, made.evaluate(views).metrics)

  @parameterized.parameters(
      ({'partition.validation': 0.0}, 'validation', 'partition.validation=0.0', 'a larger share'),
      ({'partition.test': 0.0}, 'test', 'partition.test=0.0', 'a larger share'),
      # Each of 40 clients holds few rows.
      ({'clients': 40}, 'validation', 'partition.validation=0.1', 'a larger share'),
      ({'clients': 40, 'partition.test_rows': 'alike'}, 'validation', 'partition.validation=0.1',
       'a larger share'),
      ({'clients': 40, 'partition.validation': 0.49}, 'test', 'partition.test=0.1',
       'a larger share'),
      ({'clients': 40, 'partition.validation': 0.49, 'partition.test_rows': 'alike'}, 'test',
       'partition.test_rows=alike', 'own or pooled'))
  def test_who_has_a_model_has_rows_to_judge_it_by(self, values, split, got, wanted):
    config = tiny(**values)
    made = federation.federation(config, federation.dataset(config))
    held = getattr(made, split).clients.size.tolist()
    for name, value in (('algorithm', 'fedmerge'), ('fine_tune.epochs', 2)):
      with (self.assertRaises(InputError) as caught,
            mock.patch.object(build, 'model', side_effect=AssertionError)):  # Not so far.
        experiment(tiny(**{name: value}, **values))
      self.assertRegex(
          str(caught.exception), f'^got {got}, .*client {held.index(0)} without a {split} .*; '
          f'expected {wanted}, .*{name}={value}')

  @parameterized.parameters(
      {'algorithm': 'fedmerge', 'partition.test': 0.0, 'partition.test_rows': 'alike'},
      {'algorithm': 'local', 'partition.test': 0.0},
      {'algorithm': 'fedavg', 'partition.test': 0.0, 'partition.validation': 0.0})
  def test_rows_that_nobody_needs_may_lack(self, **values):
    experiment(tiny(**values))

  @parameterized.named_parameters(
      ('clients', {'clients': 3000}, 'got clients=3000'),
      ('momentum', {'algorithm': 'scaffold', 'local.momentum': 0.9},
       'local.momentum=0.9 with algorithm=scaffold'),
      ('prox', {'algorithm': 'fedprox', 'local.prox': 0.1}, 'got local.prox=0.1'),
      ('no_steps', {'local.epochs': 0}, 'local.epochs=0'),
      ('optimizer', {'algorithm': 'fedopt', 'fedopt.optimizer': 'adm'},
       'got fedopt.optimizer=adm; expected an optax optimizer'),
      ('optimizer_without_a_rate', {'algorithm': 'fedopt', 'fedopt.optimizer': 'chain'},
       'got fedopt.optimizer=chain; expected an optax optimizer'),
      ('keep_best', {'keep_best': True, 'partition.validation': 0.0}, 'got keep_best=True'),
      ('patience', {'stop.patience': 1, 'partition.validation': 0.0}, 'stop.patience=1'),
      ('small_images', {'model': 'cnn', 'cnn.size': 'lenet'}, 'cnn.size=lenet'),
      ('network', {'model': 'lstm'}, 'got model=lstm with float32 inputs of shape (8, 8, 1)'),
      ('augment', {'augment': 'crop_flip', 'synthetic.shape': (9,)},
       'got augment=crop_flip with inputs of shape (9,)'),
      ('topology', {'gossip.topology': 'rnig'}, 'gossip.topology=rnig; expected one of'),
      ('topology_of_so_many', {'gossip.topology': 'hypercube', 'clients': 20},
       'hypercube with clients=20'),
      ('one_agent', {'gossip.topology': 'ring', 'clients': 1, 'participation': 0},
       'with clients=1'),
      ('edges', {'gossip.topology': 'edges:/nowhere'}, 'gossip.topology=edges:/nowhere'),
      ('degree', {'gossip.topology': 'regular', 'gossip.degree': 6}, 'got gossip.degree=6'),
      ('rate', {'gossip.rate': 1.5}, 'got gossip.rate=1.5'),
      ('rate_of_matching', {'gossip.topology': 'matching', 'gossip.rate': 0.9, 'clients': 5},
       'got gossip.rate=0.9; expected at most 0.8'),
      ('window', {'gossip.schedule': 'dense@1:3'}, "got 'dense@1:3' in "),
      ('merge_batches', {'gossip.merge_batches': 10**9}, 'got gossip.merge_batches=1000000000'),
      ('merge_data', {'gossip.merge_data': 'validation', 'partition.validation': 0.0},
       'got gossip.merge_data=validation with partition.validation=0.0'),
      *((f'final_merge_{name}', {'gossip.final_merge': name}, f'gossip.final_merge={name}')
        for name in ('foo', 'ring:0', 'ring:-1', 'ring:', ':2', 'rnig:2', 'ring:10000')))
  def test_bad_input_names_the_key(self, values, expected):
    if any(name.startswith('gossip') for name in values):
      values = {'algorithm': 'gossip', **values}
    with self.assertRaises(InputError) as caught:
      experiment(tiny(**values))
    self.assertIn(expected, str(caught.exception))
    self.assertNotIn('\n', str(caught.exception))

  def test_states_that_do_not_fit_are_refused_before_they_are_made(self):
    with self.assertRaisesRegex(InputError, r'got model=mlp of [\d,.]+ GiB; expected what fits'):
      experiment(tiny(**{'mlp.hidden': (10**6, 10**6)}))

  @parameterized.parameters((1, True), (2, False))
  def test_batches_of_one_are_warned_of(self, batch, warned):
    made = experiment(tiny(model='resnet', **{'resnet.norm': 'batch', 'local.batch': batch}))
    self.assertEqual(any('BatchNorm' in line for line in made.warnings), warned)

  def test_inputs_are_normalized_by_the_clients_training_examples(self):
    config = tiny(**{'server.source': 'digits', 'server.size': 30})
    data = federation.dataset(config)
    made = federation.federation(config, data)
    x = build.model(config, data, made).normalize(made.examples.x)
    held = x[held_by(made.clients)]
    self.assertLess(abs(held.mean()), 1e-5)
    self.assertLess(abs(held.std() - 1), 1e-5)
    self.assertGreater(abs(x.mean()), 1e-4)  # Those of validation and test are others.

  def test_a_server_and_corrupted_clients_through_a_round(self):
    made = experiment(tiny(**{'server.size': 30, 'corrupt.kind': 'pixels', 'corrupt.clients': 0.5}))
    state = jax.eval_shape(made.algorithm.init, jax.random.key(0), made.federation)
    jax.eval_shape(made.algorithm.round, state, made.federation, jax.random.key(1))
    for leaf in jax.tree.leaves((made.federation.server, made.federation.corrupted)):
      self.assertEqual(leaf.sharding, made.sharding)


class CrisisMMDTest(parameterized.TestCase):
  """Tweets with images, from a release on disk to a round."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.rows = release.write(cls.folder, sizes={'train': 70, 'dev': 14, 'test': 14})

  def tiny(self, modalities, **values):
    return tiny(**{
        'dataset': 'crisismmd', 'data_dir': self.folder, 'crisismmd.modalities': modalities,
        'crisismmd.labels': 'text', 'crisismmd.ngrams': 16, 'crisismmd.image_size': 4,
        'partition.kind': 'domain', 'clients': 7, 'local.epochs': 1, 'mapper': 'map',
        'model': 'fusion', 'fusion.channels': (2,), 'fusion.embedding': 3, 'fusion.hidden': 4,
        **values})

  @parameterized.product(modalities=('text', 'image', 'both'), augment=('none', 'crop_flip'),
                         normalize=('standard', 'none'))
  def test_through_a_round(self, modalities, **values):
    config = self.tiny(modalities, **values)
    if (modalities, values['augment']) == ('text', 'crop_flip'):
      with self.assertRaisesRegex(InputError, r'got augment=crop_flip with .* shape \(16,\); '):
        experiment(config)
      return
    made = experiment(config)
    state = jax.eval_shape(made.algorithm.init, jax.random.key(0), made.federation)
    after, _ = jax.eval_shape(made.algorithm.round, state, made.federation, jax.random.key(1))
    self.assertEqual(jax.tree.structure(after), jax.tree.structure(state))
    self.assertEqual(set(state.variables['params']['trunk']),
                     {'joint', 'image', 'text'} - {'both': set(), 'image': {'text'},
                                                   'text': {'image'}}[modalities])

  def test_a_client_is_of_one_event(self):
    config = self.tiny('both')
    data = federation.dataset(config)
    made = federation.federation(config, data)
    np.testing.assert_array_equal(made.test.rows, np.arange(84, 98))
    for k in range(7):
      own = held_by(jax.tree.map(lambda leaf, k=k: leaf[k:k + 1], made.clients))
      self.assertEqual(set(data.domain[own]), {k})
    x = made.examples.x
    self.assertEqual({name: (part.shape, part.dtype) for name, part in x.items()}, {
        'image': ((98, 4, 4, 3), np.uint8), 'text': ((98, 16), np.float32)})

  def test_both_are_learned_from(self):
    made = experiment(self.tiny('both', **{'server.size': 14, 'corrupt.kind': 'pixels',
                                           'corrupt.clients': 0.3, 'eval_batch': 16}))
    state = jax.jit(made.algorithm.init)(jax.random.key(0), made.federation)
    after, metrics = jax.jit(made.algorithm.round)(state, made.federation, jax.random.key(1))
    self.assertLess(metrics['train/loss'], 3)
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), state.variables, after.variables)
    for branch in ('image', 'text', 'joint'):
      for part in ('params', 'batch_stats'):
        self.assertGreater(max(jax.tree.leaves(moved[part]['trunk'][branch])), 1e-4)
    scores = made.evaluate(made.algorithm.views(after, made.federation)).metrics
    self.assertBetween(scores['global/test/accuracy'], 0, 1)
    self.assertEqual(made.federation.server.examples.x['image'].shape, (14, 4, 4, 3))

  @parameterized.parameters('standard', 'none')
  def test_each_modality_is_normalized_by_itself(self, normalize):
    config = self.tiny('both', normalize=normalize)
    data = federation.dataset(config)
    made = federation.federation(config, data)
    model = build.model(config, data, made)
    rows = held_by(made.clients)
    x = jax.tree.map(lambda leaf: leaf[rows], made.examples.x)
    seen = jax.jit(model.linear)(model.init(jax.random.key(0)), x)
    text = seen['trunk/text/Dense_0'].inputs
    pixels = seen['trunk/image/Conv_0'].inputs[:, 12:15]  # the middle of each window
    if normalize == 'none':
      np.testing.assert_array_equal(text, x['text'])
      np.testing.assert_array_equal(pixels, x['image'].reshape(-1, 3))
    else:
      for part in (text, pixels):
        np.testing.assert_allclose(part.mean(axis=0), np.zeros(part.shape[1]), atol=1e-4)
        deviation = part.std(axis=0)
        np.testing.assert_allclose(deviation[deviation > 1e-3], 1, atol=1e-3)

  @parameterized.parameters(
      ('text', 'mlp', {}), ('image', 'mlp', {}), ('image', 'resnet', {}),
      ('image', 'cnn', {'cnn.size': 'small'}))
  def test_other_networks_take_one_modality(self, modalities, model, values):
    config = self.tiny(modalities, model=model, **values)
    net = build.network(config, federation.dataset(config))
    jax.eval_shape(net.init, jax.random.key(0))

  @parameterized.parameters('mlp', 'cnn', 'lstm')
  def test_other_networks_take_no_two(self, model):
    with self.assertRaisesRegex(InputError, f'got model={model} with .* such as fusion'):
      experiment(self.tiny('both', model=model))

  def test_every_setting_of_the_release(self):
    other = self.enterContext(tempfile.TemporaryDirectory())
    tables = release.write(other, 'humanitarian')
    data = federation.dataset(self.tiny('both', data_dir=other, **{
        'crisismmd.task': 'humanitarian', 'crisismmd.labels': 'agreed',
        'crisismmd.cache': os.path.join(other, 'kept'), 'crisismmd.image_size': 6}))
    self.assertEqual((data.classes, len(data.y_train), len(data.y_test)), (8, 27, 11))
    self.assertEqual(os.listdir(os.path.join(other, 'kept')), ['6x6.npz'])
    self.assertFalse(os.path.exists(os.path.join(other, 'cache')))
    federation.dataset(self.tiny('image', data_dir=other, **{'crisismmd.task': 'humanitarian'}))
    self.assertEqual(os.listdir(os.path.join(other, 'cache')), ['4x4.npz'])
    os.remove(os.path.join(other, tables['test'][1]['image']))
    settings = {'data_dir': other, 'crisismmd.task': 'humanitarian'}
    with self.assertRaisesRegex(InputError, "1 of 49 images can't be read"):
      federation.dataset(self.tiny('image', **settings))
    with self.assertLogs('absl', 'WARNING'):
      data = federation.dataset(self.tiny('image', **settings, **{'crisismmd.broken': 'skip'}))
    self.assertLen(data.y_test, 13)

  def test_vectors_of_an_encoder(self):
    path = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'vectors.npz')
    tweets = sorted({row['tweet_id'] for rows in self.rows.values() for row in rows})
    np.savez(path, id=np.array(tweets, np.int64), x=np.arange(len(tweets))[:, None] * [1.0, 2.0])
    data = federation.dataset(self.tiny('text', **{'crisismmd.vectors': path}))
    number = np.array([tweets.index(row['tweet_id']) for row in self.rows['test']])
    np.testing.assert_array_equal(data.x_test, number[:, None] * [1, 2])

  @parameterized.parameters('text', 'both')
  def test_the_release_in_its_default_place(self, modalities):
    home = self.enterContext(tempfile.TemporaryDirectory())
    release.write_tables(os.path.join(home, 'tensorflow_datasets', 'crisismmd'), self.rows)
    with mock.patch.dict(os.environ, HOME=home):
      config = self.tiny(modalities, data_dir='')
      if modalities == 'text':
        self.assertEqual(federation.dataset(config).x_test.shape, (14, 16))
      else:
        with self.assertRaisesRegex(InputError, 'got crisismmd.modalities=both; .* has no folder'):
          federation.dataset(config)


if __name__ == '__main__':
  absltest.main()
