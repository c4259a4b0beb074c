"""From a config to its federation: partitions, test examples, the server's, corrupted clients."""

import os
import tempfile

from absl.testing import absltest, parameterized
import jax
import numpy as np
from reference.configs import tiny

from hmm_jax.data import federate
from hmm_jax.experiment import federation
from hmm_jax.types import InputError


def deal(**values):
  """Returns the data set and the federation of a tiny config."""
  config = tiny(**values)
  data = federation.dataset(config)
  return data, federation.federation(config, data)


def write(test, **arrays):
  """Writes a data set; returns its path."""
  path = os.path.join(test.enterContext(tempfile.TemporaryDirectory()), 'set.npz')
  np.savez(path, **arrays)
  return path


def held_by(held):
  """Returns the row numbers of all clients."""
  return np.concatenate([index[:size] for index, size in zip(held.index, held.size)])


class PartitionTest(parameterized.TestCase):

  @parameterized.parameters('iid', 'dirichlet', 'shards', 'clusters', 'quantity', 'resample')
  def test_every_partition_of_labels(self, kind):
    _, made = deal(**{'partition.kind': kind})
    self.assertLen(made.clients.id, 6)
    held_out = set(made.test.rows) | set(made.validation.rows)
    self.assertEqual(set(held_by(made.clients)) & held_out, set())

  @parameterized.parameters('natural', 'domain')
  def test_every_partition_of_owners(self, kind):
    path = write(self, x=np.arange(90.)[:, None], y=np.arange(90) % 3, client=np.arange(90) % 6,
                 domain=np.arange(90) % 2)
    _, made = deal(**{'dataset': f'npz:{path}', 'partition.kind': kind})
    self.assertLen(made.clients.id, 6)
    for k in range(6):
      own = made.examples.x[held_by(jax.tree.map(lambda leaf, k=k: leaf[k:k + 1], made.clients)), 0]
      self.assertLen(set(own % {'natural': 6, 'domain': 2}[kind]), 1)

  @parameterized.product(source=tuple(federate.TESTS), kind=('iid', 'clusters', 'resample'))
  def test_every_source_of_test_rows(self, source, kind):
    _, made = deal(**{'partition.test_rows': source, 'partition.kind': kind})
    own = set(held_by(made.test.clients))
    apart = {'own': own.isdisjoint(made.test.rows), 'alike': own <= set(range(300, 360)),
             'pooled': own == set(made.test.rows) and min(own) < 300}
    self.assertNotEmpty(own)
    self.assertEqual({name for name, holds in apart.items() if holds}, {source})

  def test_the_settings_of_clusters(self):
    config = tiny(**{'partition.kind': 'clusters', 'partition.clusters': 2,
                     'partition.classes_per_cluster': 4, 'partition.cluster_alpha': 1e6,
                     'partition.validation': 0.0, 'partition.test': 0.0})
    data = federation.dataset(config)
    counts = federate.label_counts(federation.federation(config, data), 10)
    self.assertEqual(list((counts > 0).sum(axis=1)), [4] * 6)
    self.assertLessEqual(np.ptp(counts[counts > 0]), 2)
    np.testing.assert_array_equal(counts[0] > 0, counts[2] > 0)
    self.assertFalse(np.any((counts[2] > 0) & (counts[3] > 0)))

  @parameterized.parameters('natural', 'domain')
  def test_pooled_rows_of_a_test_split_have_no_owners(self, kind):
    x, y, number = np.zeros((90, 5)), np.arange(90) % 3, np.arange(90)
    path = write(self, x=x, y=y, x_test=x, y_test=y, client=number % 6, domain=number % 2)
    with self.assertRaisesRegex(InputError, 'got partition.test_rows=pooled with '
                                f'partition.kind={kind}; .*own or alike'):
      deal(**{'dataset': f'npz:{path}', 'partition.kind': kind, 'partition.test_rows': 'pooled'})

  def test_a_file_without_its_source(self):
    path = write(self, x=np.zeros((9, 5)), y=np.arange(9) % 3)
    with self.assertRaisesRegex(InputError, rf'did you mean npz:{path}\?$'):
      deal(dataset=path)

  def test_a_data_set_that_does_not_fit_into_memory(self):
    source = federation.SOURCES['digits']._replace(load=lambda *given: np.empty(2**55))
    with absltest.mock.patch.dict(federation.SOURCES, digits=source), self.assertRaisesRegex(
        InputError, 'got dataset=digits, which does not fit into memory'):
      deal(dataset='digits')

  def test_a_source_of_ones_own_that_loads_something_else(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    with open(os.path.join(folder, 'nothing.py'), 'w') as file:
      file.write('from hmm_jax import Source\nSOURCE = Source("nothing", lambda *given: None)')
    with self.assertRaisesRegex(InputError, 'nothing.py:SOURCE, which loads NoneType'):
      deal(dataset=f'{folder}/nothing.py:SOURCE')

  def test_a_share_of_the_test_rows_of_a_set_without_any(self):
    path = write(self, x=np.zeros((90, 5)), y=np.arange(90) % 3)
    for share in (0.2, 0.4):
      _, made = deal(**{'dataset': f'npz:{path}', 'partition.kind': 'iid',
                        'partition.global_test': share})
      self.assertLen(made.test.rows, 90 * share)

  @parameterized.named_parameters(
      ('participation', {'participation': 7}, 'got participation=7; expected 0'),
      ('min_size', {'partition.min_size': 60}, 'got partition.min_size=60'),
      ('clusters', {'partition.kind': 'clusters', 'partition.clusters': 7},
       'got partition.clusters=7'),
      ('classes', {'partition.kind': 'clusters', 'partition.classes_per_cluster': 11},
       'got partition.classes_per_cluster=11'),
      ('shards', {'partition.kind': 'shards', 'partition.shards': 11}, 'got partition.shards=11'),
      ('no_owners', {'partition.kind': 'natural'}, "got partition.kind='natural'"),
      ('pooled', {'partition.test_rows': 'pooled', 'partition.test': 0.0},
       'got partition.test=0.0 with partition.test_rows=pooled'),
      ('global_test', {'dataset': 'digits', 'partition.global_test': 1.0},
       'got partition.global_test=1.0'),
      ('file', {'dataset': 'npz:/nowhere.npz'}, 'got dataset=npz:/nowhere.npz'),
      ('near_source', {'dataset': 'digit'}, 'did you mean digits'),
      *((name, {'dataset': name}, 'npz:PATH, csv:PATH, ') for name in (
          'data.csv', '/some/folder', 'huggingface:mnist', 'mnst', 'tfds:mnst',
          'npz', 'text:', 'digits:x', 'https://some.org/set.npz', 'a.b:RECORD', 'red\x1b[31m')))
  def test_bad_input_names_the_key(self, values, expected):
    with self.assertRaises(InputError) as caught:
      deal(**values)
    self.assertIn(expected, str(caught.exception))
    self.assertTrue(str(caught.exception).isprintable())
    for internals in ('Parsing builder', 'ModuleNotFoundError'):
      self.assertNotIn(internals, str(caught.exception))


class ServerTest(parameterized.TestCase):
  """The server's rows, and clients whose data are corrupted."""

  def write(self, **arrays):
    return write(self, **arrays)

  @parameterized.parameters(
      ('fedavg', -1, 0), ('fedavg', 0, 0), ('fedavg', 40, 40), ('server_only', -1, 200),
      ('server_only', 40, 40))
  def test_how_many_rows_the_server_holds(self, algorithm, size, rows):
    data, made = deal(algorithm=algorithm, **{'server.size': size, 'partition.kind': 'iid'})
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
    clean = deal(**{'server.size': 100})[1].server
    made = deal(**{'server.size': 100, 'server.held_out': 0.5, 'server.noise': 0.3})[1].server
    self.assertLen(made.held_out, 50)
    np.testing.assert_array_equal(made.examples.x, clean.examples.x)
    self.assertEqual(np.sum(made.examples.y != clean.examples.y), 30)
    other = deal(**{'server.size': 100, 'server.seed': 1})[1].server
    self.assertFalse(np.array_equal(other.examples.x, clean.examples.x))

  def test_every_draw_of_the_server_has_its_seed(self):
    draws = []
    for seed in (0, 1):
      clean, noisy = (deal(**{'server.size': 100, 'server.noise': noise, 'server.seed': seed})[1]
                      .server for noise in (0.0, 0.5))
      draws.append((clean.examples.x.tobytes(), sorted(clean.held_out),
                    np.flatnonzero(clean.examples.y != noisy.examples.y).tolist()))
    for first, second in zip(*draws, strict=True):
      self.assertNotEqual(first, second)

  def test_a_domain_for_the_server(self):
    path = self.write(x=np.arange(90.)[:, None], y=np.arange(90) % 2, domain=np.arange(90) % 3,
                      x_test=np.zeros((9, 1)), y_test=np.arange(9) % 2)
    values = {'dataset': f'npz:{path}', 'server.source': 'domain:1', 'partition.kind': 'domain'}
    _, made = deal(**values, **{'server.size': 20})
    self.assertEqual(set(made.server.examples.x[:, 0] % 3), {1})
    _, other = deal(**values, **{'server.size': 20, 'server.seed': 1})
    self.assertFalse(np.array_equal(other.server.examples.x, made.server.examples.x))
    self.assertLen(made.server.examples.y, 20)
    self.assertEqual(set(made.examples.x[:-9, 0] % 3), {0, 2})
    with self.assertRaisesRegex(InputError, 'got server.size=0 with server.source=domain:1; '):
      deal(**values)

  def test_another_set_for_the_server(self):
    data, made = deal(**{'server.source': 'digits', 'server.size': 30})
    self.assertLen(made.examples.y, 360)
    np.testing.assert_array_equal(made.examples.x[:300], data.x_train)
    self.assertEqual((made.server.examples.x.shape, made.server.examples.x.dtype),
                     ((30, 8, 8, 1), np.float32))
    self.assertEqual(made.server.examples.x.max(), np.float32(16 / 255))
    _, other = deal(**{'server.source': 'digits', 'server.size': 30, 'server.seed': 1})
    self.assertFalse(np.array_equal(other.server.examples.x, made.server.examples.x))

  @parameterized.parameters('symmetric', 'pairwise', 'random', 'pixels')
  def test_every_corruption(self, kind):
    values = {'corrupt.kind': kind, 'corrupt.rate': 1.0, 'partition.validation': 0.2}
    _, clean = deal()
    _, same = deal(**{'corrupt.kind': kind})
    jax.tree.map(np.testing.assert_array_equal, same, clean)
    self.assertIsNone(same.corrupted)
    _, made = deal(**values, **{'corrupt.clients': 0.5})
    self.assertEqual(made.corrupted.sum(), 3)
    _, other = deal(**values, **{'corrupt.clients': 0.5, 'partition.seed': 1})
    self.assertNotEqual(other.corrupted.tolist(), made.corrupted.tolist())
    before, after = (e.x if kind == 'pixels' else e.y for e in (clean.examples, made.examples))
    step = (after - before) % 10
    self.assertEqual(set(np.unique(step)) == {0, 1}, kind == 'pairwise')
    # A label that is drawn anew may stay; what is changed surely changes most.
    own = held_by(jax.tree.map(lambda leaf: leaf[made.corrupted], made.clients))
    self.assertEqual(np.any(step[own] == 0), kind == 'random')

  @parameterized.parameters('symmetric', 'pairwise', 'random', 'pixels')
  def test_more_changes_at_a_higher_rate(self, kind):
    clean = deal()[1].examples
    changes = []
    for rate in (0.0, 0.2, 0.8):
      made = deal(**{
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
    _, made = deal(**{
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
      deal(**{'corrupt.kind': f'labels:{short}', 'subset': 0.5})
    far = self.write(y=np.arange(300) % 11)
    with self.assertRaisesRegex(InputError, "y has the label '10', expected .* 10: '0', "):
      deal(**{'corrupt.kind': f'labels:{far}'})

  def test_labels_of_people_and_of_the_server_have_the_names_of_the_clients(self):
    x, y = np.arange(200.)[:, None], np.arange(200) % 4
    path = self.write(x=x, y=10 * y + 10)
    people = self.write(y=np.full(200, 30))
    other = self.write(x=x, y=40 - 20 * (y % 2))
    data, made = deal(**{
        'dataset': f'npz:{path}', 'corrupt.kind': f'labels:{people}', 'corrupt.clients': 1.0,
        'partition.kind': 'iid', 'server.source': f'npz:{other}', 'server.size': 50})
    self.assertEqual(data.names, ('10', '20', '30', '40'))
    np.testing.assert_array_equal(made.examples.y[held_by(made.clients)], 2)
    held = made.server.examples
    np.testing.assert_array_equal(held.y, 3 - 2 * (held.x[:, 0].astype(int) % 2))

  def test_pooled_test_rows_have_no_labels_of_people(self):
    labels = self.write(y=np.arange(300) % 10)
    values = {'corrupt.kind': f'labels:{labels}', 'partition.test_rows': 'pooled'}
    with self.assertRaisesRegex(InputError, 'got partition.test_rows=pooled with corrupt.kind='
                                'labels:.*; .*own or alike'):
      deal(**values)
    path = self.write(x=np.zeros((300, 2)), y=np.arange(300) % 10)  # It has no test split.
    deal(**values, **{'dataset': f'npz:{path}', 'partition.kind': 'iid'})

  @parameterized.named_parameters(
      ('none', {'server.size': 0}, 'got server.size=0 with algorithm=server_only'),
      ('few', {'server.size': 1}, 'got server.size=1 with server.source=held_out'),
      ('all', {'server.size': 300}, 'got server.size=300 with server.source=held_out'),
      ('no_domains', {'server.source': 'domain:0'}, 'got server.source=domain:0'),
      ('domain', {'server.source': 'domain:x'}, 'got server.source=domain:x'),
      ('near', {'server.source': 'held-out'}, 'did you mean held_out?'),
      ('file', {'server.source': 'npz:/nowhere'}, 'got server.source=npz:/nowhere'),
      ('same', {'server.source': 'synthetic'}, 'got server.source=synthetic, '),
      ('shape', {'server.source': 'digits', 'synthetic.shape': (9,)}, 'got server.source=digits'),
      ('corruption', {'corrupt.kind': 'symetric'}, 'got corrupt.kind=symetric; expected one of '
       'none, symmetric, pairwise, random, pixels, labels:PATH; did you mean symmetric?'),
      ('near_labels', {'corrupt.kind': 'label:/me/human.npz'}, 'did you mean labels:PATH?'),
      ('labels', {'corrupt.kind': 'labels:/nowhere'}, 'got corrupt.kind=labels:/nowhere'),
      ('rate', {'corrupt.kind': 'random', 'corrupt.rate': 1.5}, 'got corrupt.rate=1.5'),
      ('overlap', {'corrupt.kind': 'random', 'corrupt.clients': 0.5, 'partition.kind': 'resample'},
       'got corrupt.clients=0.5'))
  def test_bad_input_names_the_key(self, values, expected):
    with self.assertRaises(InputError) as caught:
      deal(**{'algorithm': 'server_only', **values})
    self.assertIn(expected, str(caught.exception))
    self.assertNotIn('\n', str(caught.exception))


if __name__ == '__main__':
  absltest.main()
