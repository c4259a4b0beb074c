"""Every name in the config builds what it says."""

import json
import os
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import numpy as np
from reference import release
from reference.configs import experiment, tiny

from hmm_jax.data import federate, server
from hmm_jax.experiment import build, federation
from hmm_jax.experiment import config as defaults
from hmm_jax.types import InputError


class BuildTest(parameterized.TestCase):

  @parameterized.parameters('iid', 'dirichlet', 'shards', 'clusters', 'quantity', 'resample')
  def test_every_partition_of_labels(self, kind):
    config = tiny(**{'partition.kind': kind})
    federation = build.federation(config, build.dataset(config))
    self.assertLen(federation.clients.id, 6)
    held_out = set(federation.test.rows) | set(federation.validation.rows)
    trained = {row for index, size in zip(federation.clients.index, federation.clients.size)
               for row in index[:size]}
    self.assertEqual(trained & held_out, set())

  @parameterized.parameters('natural', 'domain')
  def test_every_partition_of_owners(self, kind):
    with tempfile.TemporaryDirectory() as folder:
      path = os.path.join(folder, 'own.npz')
      rng = np.random.default_rng(0)
      np.savez(path, x=rng.normal(size=(90, 5)), y=np.arange(90) % 3,
               client=np.arange(90) % 6, domain=np.arange(90) % 2)
      config = tiny(**{'dataset': f'npz:{path}', 'partition.kind': kind})
      federation = build.federation(config, build.dataset(config))
    self.assertLen(federation.clients.id, 6)

  @parameterized.product(
      source=defaults.CHOICES['partition.test_rows'], kind=('iid', 'clusters', 'resample'))
  def test_every_source_of_test_rows(self, source, kind):
    config = tiny(**{'partition.test_rows': source, 'partition.kind': kind})
    federation = build.federation(config, build.dataset(config))
    own = {row for index, size in zip(federation.test.clients.index, federation.test.clients.size)
           for row in index[:size]}
    apart = {'own': own.isdisjoint(federation.test.rows), 'alike': own <= set(range(300, 360)),
             'pooled': own == set(federation.test.rows) and min(own) < 300}
    self.assertNotEmpty(own)
    self.assertEqual({name for name, holds in apart.items() if holds}, {source})

  def test_the_settings_of_clusters(self):
    config = tiny(**{'partition.kind': 'clusters', 'partition.clusters': 2,
                     'partition.classes_per_cluster': 4, 'partition.cluster_alpha': 1e6,
                     'partition.validation': 0.0, 'partition.test': 0.0})
    data = build.dataset(config)
    counts = federate.label_counts(build.federation(config, data), 10)
    self.assertEqual(list((counts > 0).sum(axis=1)), [4] * 6)
    self.assertLessEqual(np.ptp(counts[counts > 0]), 2)
    np.testing.assert_array_equal(counts[0] > 0, counts[2] > 0)
    self.assertFalse(np.any((counts[2] > 0) & (counts[3] > 0)))

  def test_pooled_rows_of_a_test_split_have_no_owners(self):
    with tempfile.TemporaryDirectory() as folder:
      path = os.path.join(folder, 'own.npz')
      x, y = np.zeros((90, 5)), np.arange(90) % 3
      np.savez(path, x=x, y=y, x_test=x, y_test=y, client=np.arange(90) % 6,
               domain=np.arange(90) % 2)
      for kind in ('natural', 'domain'):
        config = tiny(**{'dataset': f'npz:{path}', 'partition.kind': kind,
                         'partition.test_rows': 'pooled'})
        with self.assertRaisesRegex(InputError, 'got partition.test_rows=pooled with '
                                    f'partition.kind={kind}; .* expected own or alike'):
          build.federation(config, build.dataset(config))

  def test_text_of_natural_clients_through_a_round(self):
    with tempfile.TemporaryDirectory() as folder:
      path = os.path.join(folder, 'speeches.jsonl')
      with open(path, 'w') as file:
        for n in range(12):
          print(json.dumps({'by': n % 4, 'text': f'{n} to be, or not to be ' * 9}), file=file)
      made = experiment(tiny(**{
          'dataset': f'text:{path}', 'text.owner': ('by',), 'text.window': 8, 'text.min_rows': 5,
          'partition.kind': 'natural', 'clients': 4, 'model': 'lstm', 'lstm.embedding': 3,
          'lstm.hidden': (5,), 'local.epochs': 1}))
    state = made.algorithm.init(jax.random.key(0), made.federation)
    self.assertEqual(state.variables['params']['trunk']['LSTM_0']['kernel'].shape, (3, 20))
    _, metrics = jax.jit(made.algorithm.round)(state, made.federation, jax.random.key(1))
    self.assertLess(metrics['train/loss'], 4)

  def test_tokens_are_read_by_a_recurrent_network_and_by_no_other(self):
    with tempfile.TemporaryDirectory() as folder:
      path = os.path.join(folder, 'tokens.npz')
      settings = {'dataset': f'npz:{path}', 'partition.kind': 'iid'}
      for x, shape, model, expected in (
          (np.ones((90, 8), int), (8,), 'mlp', 'uint8 or floating ones, or model=lstm'),
          (np.ones((90, 8), int), (8,), 'cnn', 'uint8 or floating ones, or model=lstm'),
          (np.ones((90, 8)), (8,), 'lstm', 'integer tokens'),
          (np.ones((90, 8, 8), np.uint8), (8, 8, 1), 'lstm', 'integer tokens')):
        np.savez(path, x=x, y=np.arange(90) % 3)
        with self.assertRaises(InputError) as caught:
          experiment(tiny(model=model, **settings))
        self.assertStartsWith(str(caught.exception), f'got model={model} with ')
        self.assertEndsWith(str(caught.exception), f'inputs of shape {shape}; expected {expected}')
      np.savez(path, x=-np.eye(90, dtype=int), y=np.arange(90) % 3)
      with self.assertRaisesRegex(InputError, 'its tokens go from -1 to 0, expected tokens from 0'):
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
    made = experiment(tiny(algorithm=name, selection=selection))
    self.assertEqual(made.criterion, f'{view}/validation/{selection}')
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
    held = getattr(build.federation(config, build.dataset(config)), split).clients.size.tolist()
    for name, value in (('algorithm', 'fedmerge'), ('fine_tune.epochs', 2)):
      with (self.assertRaises(InputError) as caught,
            mock.patch.object(build, 'model', side_effect=AssertionError)):  # Not so far.
        experiment(tiny(**{name: value}, **values))
      self.assertEqual(
          str(caught.exception),
          f'got {got}, which leaves client {held.index(0)} without a {split} row; expected '
          f'{wanted}, or larger clients, for {name}={value} makes a model for each')

  @parameterized.parameters(
      {'algorithm': 'fedmerge', 'partition.test': 0.0, 'partition.test_rows': 'alike'},
      {'algorithm': 'local', 'partition.test': 0.0},
      {'algorithm': 'fedavg', 'partition.test': 0.0, 'partition.validation': 0.0})
  def test_rows_that_nobody_needs_may_lack(self, **values):
    experiment(tiny(**values))

  @parameterized.parameters(
      ({'participation': 7}, 'got participation=7; expected 0'),
      ({'clients': 3000}, 'clients=3000'),
      ({'partition.min_size': 60}, 'min_size=60'),
      ({'partition.kind': 'shards', 'partition.shards': 11}, 'partition.shards=11'),
      ({'partition.kind': 'clusters', 'partition.clusters': 7},
       'got partition.clusters=7; expected from 1 to 6'),
      ({'partition.kind': 'clusters', 'partition.classes_per_cluster': 11},
       'got partition.classes_per_cluster=11; expected from 1 to 10'),
      ({'partition.test_rows': 'pooled', 'partition.test': 0.0}, 'partition.test=0.0'),
      ({'partition.kind': 'natural'}, 'natural'),
      ({'algorithm': 'scaffold', 'local.momentum': 0.9}, 'momentum=0.9 with algorithm=scaffold'),
      ({'algorithm': 'scaffold', 'local.optimizer': 'adamw'}, 'adamw'),
      ({'algorithm': 'fedprox', 'local.prox': 0.1}, 'local.prox=0.1'),
      ({'algorithm': 'fedopt', 'fedopt.optimizer': 'adm'}, 'did you mean adam'),
      ({'algorithm': 'fedopt', 'fedopt.optimizer': 'chain'}, 'expected an optax optimizer'),
      ({'keep_best': True, 'partition.validation': 0.0}, 'keep_best=True'),
      ({'model': 'cnn', 'cnn.size': 'lenet'}, 'cnn.size=lenet with images of 8x8'),
      ({'model': 'cnn', 'cnn.size': 'alexnet'}, 'cnn.size=alexnet'),
      ({'model': 'resnet', 'resnet.norm': 'bath'}, 'resnet.norm=bath'),
      ({'dataset': 'npz:/nowhere.npz'}, 'nowhere.npz'),
      ({'dataset': 'text:/nowhere.jsonl'}, 'got dataset=text:/nowhere.jsonl; expected a readable'),
      ({'dataset': 'text:/nowhere.jsonl', 'text.owner': ()}, 'got text.owner=()'),
      ({'model': 'lstm'}, 'got model=lstm with float32 inputs of shape (8, 8, 1); expected'),
      ({'augment': 'crop_flip', 'synthetic.shape': (9,)},
       'got augment=crop_flip with inputs of shape (9,); expected images'),
      ({'local.epochs': 0}, 'local.epochs=0'),
      ({'local.label_smoothing': 1.0}, 'local.label_smoothing=1.0'),
      ({'gossip.topology': 'rnig'}, 'gossip.topology=rnig; expected one of'),
      ({'gossip.topology': 'hypercube', 'clients': 20}, 'hypercube with clients=20; expected'),
      ({'gossip.topology': 'torus', 'clients': 13}, 'torus with clients=13; expected'),
      ({'gossip.topology': 'edges:/nowhere'}, '/nowhere'),
      ({'gossip.topology': 'ring', 'clients': 1, 'participation': 0}, 'clients=1; expected'),
      ({'gossip.weights': 'unifrom'}, 'gossip.weights=unifrom'),
      ({'gossip.topology': 'regular', 'gossip.degree': 6}, 'gossip.degree=6'),
      ({'gossip.rate': 1.5}, 'gossip.rate=1.5; expected a number from 0 to 1'),
      ({'gossip.topology': 'matching', 'gossip.rate': 0.9, 'clients': 5},
       'gossip.rate=0.9; expected at most 0.8'),
      ({'gossip.schedule': 'dense@1:3'}, "'dense@1:3' in gossip.schedule; expected a window"),
      ({'gossip.schedule': 'linear:0'}, "'linear:0' in gossip.schedule"),
      ({'gossip.final_merge': 'foo'}, 'gossip.final_merge=foo; expected none, uniform or'),
      ({'gossip.final_merge': 'ring:0'}, 'gossip.final_merge=ring:0; expected'),
      ({'gossip.final_merge': 'ring:-1'}, 'gossip.final_merge=ring:-1; expected'),
      ({'gossip.final_merge': 'ring:'}, 'gossip.final_merge=ring:; expected'),
      ({'gossip.final_merge': ':2'}, 'gossip.final_merge=:2; expected'),
      ({'gossip.final_merge': 'rnig:2'}, 'rnig'),
      ({'gossip.final_merge': 'ring:10000'}, 'with 1 to 9999 rounds'),
      ({'gossip.merge_batches': 10**9}, 'gossip.merge_batches=1000000000; expected at most 500000'),
      ({'gossip.merge_data': 'validation', 'partition.validation': 0.0},
       'gossip.merge_data=validation with partition.validation=0.0'),
  )
  def test_bad_input_is_one_line(self, values, expected):
    if any(name.startswith('gossip') for name in values):
      values = {'algorithm': 'gossip', **values}
    with self.assertRaises(InputError) as caught:
      experiment(tiny(**values))
    self.assertIn(expected, str(caught.exception))
    self.assertNotIn('\n', str(caught.exception))


def held_by(held):
  """Returns the row numbers of all clients."""
  return np.concatenate([index[:size] for index, size in zip(held.index, held.size)])


class HybridTest(parameterized.TestCase):
  """The server's rows, and clients whose data are corrupted."""

  def build(self, hybrid=('fedavg',), **values):
    config = tiny(**values)
    data = build.dataset(config)
    with mock.patch.object(federation.table, 'HYBRID', hybrid):
      return data, build.federation(config, data)

  def write(self, **arrays):
    path = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'set.npz')
    np.savez(path, **arrays)
    return path

  @parameterized.parameters(
      ((), -1, 0), ((), 0, 0), ((), 40, 40), (('fedavg',), -1, 200), (('fedavg',), 40, 40))
  def test_how_many_rows_the_server_holds(self, hybrid, size, rows):
    data, made = self.build(hybrid, **{'server.size': size, 'partition.kind': 'iid'})
    self.assertLen(data.y_train, 300)
    self.assertLen(made.examples.y, 360 - rows)
    np.testing.assert_array_equal(made.test.rows, np.arange(300 - rows, 360 - rows))
    np.testing.assert_array_equal(made.examples.x[300 - rows:], data.x_test)
    if not rows:
      self.assertIsNone(made.server)
      return
    self.assertLen(made.server.examples.y, rows)
    self.assertLen(made.server.held_out, rows // 5)
    both = np.concatenate([made.server.examples.x, made.examples.x[:300 - rows]])
    self.assertEqual({x.tobytes() for x in both}, {x.tobytes() for x in data.x_train})

  def test_the_settings_of_the_server(self):
    clean = self.build(**{'server.size': 100})[1].server
    made = self.build(**{'server.size': 100, 'server.held_out': 0.5, 'server.noise': 0.3})[1].server
    self.assertLen(made.held_out, 50)
    np.testing.assert_array_equal(made.examples.x, clean.examples.x)
    self.assertEqual(np.sum(made.examples.y != clean.examples.y), 30)
    other = self.build(**{'server.size': 100, 'server.seed': 1})[1].server
    self.assertFalse(np.array_equal(other.examples.x, clean.examples.x))

  @parameterized.parameters(0, 1)
  def test_every_draw_of_the_server_has_its_seed(self, seed):
    values = {'server.size': 100, 'server.noise': 0.5, 'server.seed': seed}
    data = build.dataset(tiny())
    with (mock.patch.object(federation.server, 'noisy_labels', wraps=server.noisy_labels) as noise,
          mock.patch.object(federation.server, 'central', wraps=server.central) as central):
      build.federation(tiny(**values), data)
    self.assertEqual((noise.call_args.args[-1], central.call_args.args[-1]), (seed, seed))

  def test_a_domain_for_the_server(self):
    path = self.write(x=np.arange(90.)[:, None], y=np.arange(90) % 2, domain=np.arange(90) % 3,
                      x_test=np.zeros((9, 1)), y_test=np.arange(9) % 2)
    values = {'dataset': f'npz:{path}', 'server.source': 'domain:1', 'partition.kind': 'domain'}
    _, made = self.build(**values, **{'server.size': 20})
    self.assertEqual(set(made.server.examples.x[:, 0] % 3), {1})
    _, other = self.build(**values, **{'server.size': 20, 'server.seed': 1})
    self.assertFalse(np.array_equal(other.server.examples.x, made.server.examples.x))
    self.assertLen(made.server.examples.y, 20)
    self.assertEqual(set(made.examples.x[:-9, 0] % 3), {0, 2})
    with self.assertRaisesRegex(InputError, 'got server.size=0 with server.source=domain:1; '):
      self.build((), **values)

  def test_another_set_for_the_server(self):
    data, made = self.build(**{'server.source': 'digits', 'server.size': 30})
    self.assertLen(made.examples.y, 360)
    np.testing.assert_array_equal(made.examples.x[:300], data.x_train)
    self.assertEqual((made.server.examples.x.shape, made.server.examples.x.dtype),
                     ((30, 8, 8, 1), np.float32))
    self.assertEqual(made.server.examples.x.max(), np.float32(16 / 255))
    _, other = self.build(**{'server.source': 'digits', 'server.size': 30, 'server.seed': 1})
    self.assertFalse(np.array_equal(other.server.examples.x, made.server.examples.x))

  def test_inputs_are_normalized_as_the_clients_training_rows_are(self):
    config = tiny(**{'server.source': 'digits', 'server.size': 30})
    data = build.dataset(config)
    made = build.federation(config, data)
    with mock.patch.object(build.normalize, 'constants', wraps=build.normalize.constants) as call:
      build.model(config, data, made)
    _, x, rows = call.call_args.args
    self.assertIs(x, made.examples.x)
    np.testing.assert_array_equal(rows, np.sort(held_by(made.clients)))

  @parameterized.parameters('symmetric', 'pairwise', 'random', 'pixels')
  def test_every_corruption(self, kind):
    values = {'corrupt.kind': kind, 'corrupt.rate': 1.0, 'partition.validation': 0.2}
    _, clean = self.build()
    _, same = self.build(**{'corrupt.kind': kind})
    jax.tree.map(np.testing.assert_array_equal, same, clean)
    self.assertIsNone(same.corrupted)
    _, made = self.build(**values, **{'corrupt.clients': 0.5})
    self.assertEqual(made.corrupted.sum(), 3)
    _, other = self.build(**values, **{'corrupt.clients': 0.5, 'partition.seed': 1})
    self.assertNotEqual(other.corrupted.tolist(), made.corrupted.tolist())
    before, after = (e.x if kind == 'pixels' else e.y for e in (clean.examples, made.examples))
    step = (after - before) % 10
    self.assertEqual(set(np.unique(step)) == {0, 1}, kind == 'pairwise')
    # A label that is drawn anew may stay; what is changed surely changes most.
    own = held_by(jax.tree.map(lambda leaf: leaf[made.corrupted], made.clients))
    self.assertEqual(np.any(step[own] == 0), kind == 'random')

  @parameterized.parameters('symmetric', 'pairwise', 'random', 'pixels')
  def test_more_changes_at_a_higher_rate(self, kind):
    clean = self.build()[1].examples
    changes = []
    for rate in (0.0, 0.2, 0.8):
      made = self.build(**{
          'corrupt.kind': kind, 'corrupt.clients': 1.0, 'corrupt.rate': rate})[1].examples
      changes.append(float(np.abs(made.x - clean.x).sum() + np.sum(made.y != clean.y)))
    self.assertEqual(changes, sorted(set(changes)))
    self.assertEqual(changes[0], 0)

  @parameterized.product(subset=(1.0, 0.6), size=(0, 30), test_rows=(0, 12))
  def test_labels_of_people_stay_with_their_rows(self, subset, size, test_rows):
    number = np.arange(200)
    y = number % 4
    # What a row's number says, and never its label.
    given = (y + 1 + number // 4 % 3) % 4
    path = self.write(x=number[:, None].astype(float), y=y, **({'x_test': np.full(
        (test_rows, 1), -1.), 'y_test': np.zeros(test_rows, int)} if test_rows else {}))
    labels = self.write(y=given)
    _, made = self.build((), **{
        'dataset': f'npz:{path}', 'subset': subset, 'server.size': size, 'partition.kind': 'iid',
        'corrupt.kind': f'labels:{labels}', 'corrupt.clients': 0.5})
    rows = made.examples.x[:, 0].astype(int)
    bad = np.zeros(len(rows), bool)
    for held in (made.clients, made.validation.clients):
      bad[held_by(jax.tree.map(lambda leaf: leaf[made.corrupted], held))] = True
    self.assertGreater(bad.sum(), 30)
    np.testing.assert_array_equal(made.examples.y[bad], given[rows[bad]])
    clean = ~bad & (rows >= 0)
    np.testing.assert_array_equal(made.examples.y[clean], y[rows[clean]])
    if size:
      np.testing.assert_array_equal(made.server.examples.y,
                                    y[made.server.examples.x[:, 0].astype(int)])

  def test_labels_of_people_are_those_of_the_set_as_loaded(self):
    short = self.write(y=np.arange(150) % 10)
    with self.assertRaisesRegex(InputError, r'y is int64 \(150,\), expected integers \(300,\)'):
      self.build(**{'corrupt.kind': f'labels:{short}', 'subset': 0.5})
    far = self.write(y=np.arange(300) % 11)
    with self.assertRaisesRegex(InputError, 'y goes from 0 to 10, expected labels from 0 to 9'):
      self.build(**{'corrupt.kind': f'labels:{far}'})

  def test_pooled_test_rows_have_no_labels_of_people(self):
    labels = self.write(y=np.arange(300) % 10)
    values = {'corrupt.kind': f'labels:{labels}', 'partition.test_rows': 'pooled'}
    with self.assertRaisesRegex(InputError, 'got partition.test_rows=pooled with corrupt.kind='
                                'labels:.*; .* expected own or alike'):
      self.build(**values)
    path = self.write(x=np.zeros((300, 2)), y=np.arange(300) % 10)  # It has no test split.
    self.build(**values, **{'dataset': f'npz:{path}', 'partition.kind': 'iid'})

  @parameterized.parameters(
      ({'server.size': 0}, 'got server.size=0 with algorithm=fedavg; expected at least 2 rows'),
      ({'server.size': 1}, 'got server.size=1 with server.source=held_out; expected from 2 to 299'),
      ({'server.size': 300}, 'got server.size=300 with server.source=held_out'),
      ({'server.source': 'domain:0'},
       'got server.source=domain:0; expected one of two domains or more, the data set has none'),
      ({'server.source': 'domain:x'}, 'got server.source=domain:x; expected domain:N'),
      ({'server.source': 'domain:'}, 'got server.source=domain:; expected domain:N'),
      ({'server.source': 'held-out'}, 'expected held_out, domain:N or the name of another data '
       'set; did you mean held_out?: got dataset='),
      ({'server.source': 'npz:/nowhere'}, 'got server.source=npz:/nowhere; expected held_out, '
       'domain:N or the name of another data set: got dataset=npz:/nowhere; expected a readable'),
      ({'server.source': 'synthetic'}, "got server.source=synthetic, which is the clients'"),
      ({'server.source': 'digits', 'synthetic.shape': (9,)}, 'got server.source=digits with uint8 '
       'inputs of shape (8, 8, 1); expected images, or what fits the float32 inputs of shape (9,)'),
      ({'corrupt.kind': 'symetric'}, 'got corrupt.kind=symetric; expected one of none, symmetric, '
       'pairwise, random, pixels, labels:PATH; did you mean symmetric?'),
      ({'corrupt.kind': 'label:/home/me/human.npz'}, 'labels:PATH; did you mean labels:PATH?'),
      ({'corrupt.kind': 'labels:/nowhere'},
       'got corrupt.kind=labels:/nowhere; expected a readable'),
      ({'corrupt.kind': 'random', 'corrupt.rate': 1.5}, 'got corrupt.rate=1.5; expected'),
      ({'corrupt.kind': 'random', 'corrupt.clients': 0.5, 'partition.kind': 'resample'},
       'got corrupt.clients=0.5 with rows that several clients hold'))
  def test_bad_input_is_one_line(self, values, expected):
    with self.assertRaises(InputError) as caught:
      self.build(**values)
    self.assertIn(expected, str(caught.exception))
    self.assertNotIn('\n', str(caught.exception))

  def test_a_server_and_corrupted_clients_through_a_round(self):
    made = experiment(tiny(**{'server.size': 30, 'corrupt.kind': 'pixels', 'corrupt.clients': 0.5}))
    state = jax.eval_shape(made.algorithm.init, jax.random.key(0), made.federation)
    jax.eval_shape(made.algorithm.round, state, made.federation, jax.random.key(1))
    for leaf in jax.tree.leaves((made.federation.server, made.federation.corrupted)):
      self.assertEqual(leaf.sharding, made.sharding)


class ModalitiesTest(parameterized.TestCase):
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
        'partition.kind': 'domain', 'clients': 7, 'local.epochs': 1, 'model': 'fusion',
        'fusion.channels': (2,), 'fusion.embedding': 3, 'fusion.hidden': 4, **values})

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
    data = build.dataset(config)
    federation = build.federation(config, data)
    np.testing.assert_array_equal(federation.test.rows, np.arange(84, 98))
    for k in range(7):
      own = held_by(jax.tree.map(lambda leaf, k=k: leaf[k:k + 1], federation.clients))
      self.assertEqual(set(data.domain[own]), {k})
    x = federation.examples.x
    self.assertEqual({name: (part.shape, part.dtype) for name, part in x.items()}, {
        'image': ((98, 4, 4, 3), np.uint8), 'text': ((98, 16), np.float32)})

  def test_both_are_learned_from(self):
    made = experiment(self.tiny('both', **{'server.size': 14, 'corrupt.kind': 'pixels',
                                           'corrupt.clients': 0.3, 'eval_batch': 16}))
    state = made.algorithm.init(jax.random.key(0), made.federation)
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
    data = build.dataset(config)
    federation = build.federation(config, data)
    model = build.model(config, data, federation)
    rows = held_by(federation.clients)
    x = jax.tree.map(lambda leaf: leaf[rows], federation.examples.x)
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
    net = build.network(config, build.dataset(config))
    jax.eval_shape(net.init, jax.random.key(0))

  @parameterized.parameters('mlp', 'cnn', 'lstm')
  def test_other_networks_take_no_two(self, model):
    with self.assertRaises(InputError) as caught:
      experiment(self.tiny('both', model=model))
    self.assertEqual(str(caught.exception), f"got model={model} with inputs of shapes {{'image': "
                     "(4, 4, 3), 'text': (16,)}; expected model=fusion")

  def test_every_setting_of_the_release(self):
    other = self.enterContext(tempfile.TemporaryDirectory())
    tables = release.write(other, 'humanitarian')
    data = build.dataset(self.tiny('both', data_dir=other, **{
        'crisismmd.task': 'humanitarian', 'crisismmd.labels': 'agreed',
        'crisismmd.cache': os.path.join(other, 'kept'), 'crisismmd.image_size': 6}))
    self.assertEqual((data.classes, len(data.y_train), len(data.y_test)), (8, 27, 11))
    self.assertEqual(os.listdir(os.path.join(other, 'kept')), ['6x6.npz'])
    self.assertFalse(os.path.exists(os.path.join(other, 'cache')))
    build.dataset(self.tiny('image', data_dir=other, **{'crisismmd.task': 'humanitarian'}))
    self.assertEqual(os.listdir(os.path.join(other, 'cache')), ['4x4.npz'])
    os.remove(os.path.join(other, tables['test'][1]['image']))
    settings = {'data_dir': other, 'crisismmd.task': 'humanitarian'}
    with self.assertRaisesRegex(InputError, "1 of 49 images can't be read"):
      build.dataset(self.tiny('image', **settings))
    with self.assertLogs('absl', 'WARNING'):
      data = build.dataset(self.tiny('image', **settings, **{'crisismmd.broken': 'skip'}))
    self.assertLen(data.y_test, 13)

  def test_vectors_of_an_encoder(self):
    path = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'vectors.npz')
    tweets = sorted({row['tweet_id'] for rows in self.rows.values() for row in rows})
    np.savez(path, id=np.array(tweets, np.int64), x=np.arange(len(tweets))[:, None] * [1.0, 2.0])
    data = build.dataset(self.tiny('text', **{'crisismmd.vectors': path}))
    number = np.array([tweets.index(row['tweet_id']) for row in self.rows['test']])
    np.testing.assert_array_equal(data.x_test, number[:, None] * [1, 2])

  @parameterized.parameters('text', 'both')
  def test_the_release_in_its_default_place(self, modalities):
    home = self.enterContext(tempfile.TemporaryDirectory())
    release.write_tables(os.path.join(home, 'tensorflow_datasets', 'crisismmd'), self.rows)
    with mock.patch.dict(os.environ, HOME=home):
      config = self.tiny(modalities, data_dir='')
      if modalities == 'text':
        self.assertEqual(build.dataset(config).x_test.shape, (14, 16))
      else:
        with self.assertRaisesRegex(InputError, 'got crisismmd.modalities=both; .* has no folder'):
          build.dataset(config)


if __name__ == '__main__':
  absltest.main()
