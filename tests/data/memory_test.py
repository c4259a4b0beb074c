"""Data in memory become data sets: arrays, tables and pairs, of whatever library."""

import os
import tempfile

from absl.testing import absltest, parameterized
import numpy as np
import pandas as pd
import pytest
from sklearn import datasets as real

import hmm_jax as hmm
from hmm_jax.tasks import classification
from hmm_jax.types import InputError

X = np.arange(24, dtype=np.float64).reshape(6, 4)
Y = np.array(['b', 'a', 'b', 'a', 'b', 'a'])
FRAME = pd.DataFrame({'a': [0, 1], 'b': [2.0, 3.0]})


class Pairs:
  """What a torch Dataset is: a length, and pairs by number."""

  def __len__(self):
    return len(X)

  def __getitem__(self, i):
    return X[i], i % 2


class MemoryTest(parameterized.TestCase):

  def test_arrays_and_lists(self):
    for x, y in ((X, Y), (X.tolist(), Y.tolist())):
      made = hmm.dataset(x, y, client=['z', 'y', 'z', 'y', 'y', 'y'], test=(X[:2], Y[:2]))
      np.testing.assert_array_equal(made.x_train, X)
      self.assertEqual((made.x_train.dtype, len(made.x_test)), (np.float32, 2))
      self.assertEqual((made.client.tolist(), made.owners), ([1, 0, 1, 0, 0, 0], ('y', 'z')))
      self.assertEqual(classification.prepare(made).names, ('a', 'b'))

  def test_a_data_frame(self):
    frame = pd.DataFrame({'u': X[:, 0], 'v': ['p', 'q'] * 3, 'sick': Y, 'site': [3, 3, 1, 1, 3, 3]})
    made = hmm.dataset(frame, 'sick', client='site', test=frame[:2])
    np.testing.assert_array_equal(made.x_train[:2], [[0, 1, 0], [4, 0, 1]])
    self.assertEqual((made.y_train.tolist(), len(made.y_test)), (Y.tolist(), 2))
    self.assertEqual((made.client.tolist(), made.owners), ([1, 1, 0, 0, 1, 1], ('1', '3')))
    named = hmm.dataset(frame, ['u'], inputs=['v'])
    self.assertEqual((named.x_train.shape, named.names), ((6, 2), ('u',)))

  def test_a_data_frame_and_values_beside_it(self):
    x, y = real.load_breast_cancer(return_X_y=True, as_frame=True)
    for labels in (y, y.to_numpy(), y.tolist(), y.to_frame()):
      made = hmm.dataset(x, labels, client=np.arange(len(y)) % 5, test=(x[:9], y[:9]))
      np.testing.assert_allclose(made.x_train, x, rtol=1e-6)
      np.testing.assert_array_equal(made.y_train, y)
      np.testing.assert_array_equal(made.y_test, y[:9])
      self.assertEqual((made.x_test.shape, made.owners), ((9, 30), tuple('01234')))
    apart = pd.DataFrame({'kind': ['p', 'q'] * 3}, index=range(6, 0, -1))
    made = hmm.dataset(apart, Y, client=pd.Series([*'zyzyzz']), test=(apart[1:2], Y[:1]))
    self.assertEqual((made.y_train.tolist(), made.x_test.tolist()), (Y.tolist(), [[0, 1]]))
    self.assertEqual(hmm.dataset(pd.DataFrame(X), 3).x_train.shape, (6, 3))
    both = hmm.dataset(apart, X[:, :2])
    self.assertEqual((both.y_train.tolist(), both.names), (X[:, :2].tolist(), ('y 0', 'y 1')))

  def test_a_set_of_hugging_faces(self):
    hf = pytest.importorskip('datasets')
    columns = {'a': X[:, 0], 'kind': [1, 0] * 3, 'who': ['z', 'y', 'z'] * 2}
    given = hf.Dataset.from_dict(columns).cast_column('kind', hf.ClassLabel(names=['no', 'yes']))
    made = hmm.dataset(given, client='who', test=given.select([0]))
    np.testing.assert_array_equal(made.x_train, X[:, :1])
    self.assertEqual((made.y_train.tolist(), len(made.x_test)), (['yes', 'no'] * 3, 1))
    self.assertEqual((made.client.tolist(), made.owners), ([1, 0, 1, 1, 0, 1], ('y', 'z')))

  def test_splits_of_hugging_faces(self):
    hf = pytest.importorskip('datasets')
    one = hf.Dataset.from_dict({'a': X[:, 0], 'y': [0, 1] * 3})
    made = hmm.dataset(hf.DatasetDict({'train': one, 'test': one.select([0])}), domain=[0, 1] * 3)
    self.assertEqual((len(made.x_train), len(made.x_test)), (6, 1))
    self.assertEqual(made.domain.tolist(), [0, 1] * 3)
    for more, said in (
        ({'y': np.zeros(6)}, 'y is ndarray'), ({'client': [1] * 6}, 'client is list'),
        ({'test': (X, Y)}, 'a split is tuple'), ({'split': 'a'}, "split='a'")):
      with self.assertRaisesRegex(InputError, said):
        hmm.dataset(one, **({'y': 'y'} | more))
    with self.assertRaisesRegex(InputError, 'a split is IterableDataset'):
      hmm.dataset(one.to_iterable_dataset(), 'y')

  def test_pairs(self):
    for pairs in (Pairs(), list(zip(X, np.arange(6) % 2)), zip(X, np.arange(6) % 2)):
      made = hmm.dataset(pairs)
      np.testing.assert_array_equal(made.x_train, X)
      self.assertEqual(made.y_train.tolist(), [0, 1, 0, 1, 0, 1])

  @parameterized.named_parameters(
      ('no_labels', lambda: hmm.dataset(X), 'expected y beside the array x'),
      ('lengths', lambda: hmm.dataset(X, Y[:3]), r"got data 'mine'; y is <U1 \(3,\)"),
      ('owners', lambda: hmm.dataset(X, Y, client=[1, 2]), r'client is int64 \(2,\)'),
      ('floats', lambda: hmm.dataset(X, Y, client=X[:, 0]), 'client is float64'),
      ('nan', lambda: hmm.dataset(np.where(X > 3, np.nan, X), Y), 'not finite'),
      ('mixed', lambda: hmm.dataset(X, [1, 'a', None, 2, 3, 4]), 'y holds NoneType, int, str'),
      ('ragged', lambda: hmm.dataset([[1], [1, 2]], [0, 1]), 'parts of several shapes'),
      ('column', lambda: hmm.dataset(pd.DataFrame({'a': [1]}), 'b'), "no column 'b' for y"),
      ('missing', lambda: hmm.dataset(pd.DataFrame({'a': [1.0, np.nan], 'y': [0, 1]}), 'y'),
       "column 'a' has no finite number in example 2"),
      ('dates', lambda: hmm.dataset(pd.DataFrame({'a': pd.to_datetime(['2026-01-01']), 'y': [0]}),
                                    'y'), "column 'a' holds datetime64"),
      ('leak', lambda: hmm.dataset(FRAME, FRAME['a']), "y is called 'a', as a column of x is"),
      ('short', lambda: hmm.dataset(FRAME, [1]), 'y has 1 values; expected 2'),
      ('twice', lambda: hmm.dataset(pd.concat([FRAME, FRAME], axis=1), 'a'), "'a' is there twice"),
      ('no_frame', lambda: hmm.dataset(FRAME, 'a', test=(1,)), 'test is tuple'),
      ('test', lambda: hmm.dataset(FRAME, 'a', test=FRAME[['b']]), "test has no column 'a'"),
      ('learned', lambda: hmm.dataset(FRAME, 'a', inputs=['a']), "inputs has the column 'a'"),
      ('names', lambda: hmm.dataset(X, Y, split='a'), "split='a' names columns"),
      ('number', lambda: hmm.dataset(7), 'expected arrays x and y, a table, or pairs'),
      ('nothing', lambda: hmm.dataset([], []), 'x is float64'))
  def test_refuses(self, make, said):
    with self.assertRaisesRegex(InputError, said):
      make()

  def test_a_run_trains_on_it_and_resumes_only_on_the_same(self):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 3)).astype(np.float32)
    data = hmm.dataset(x, x @ [1, 2, 3] + 100, client=np.repeat(['north', 'south', 'east'], 40),
                       name='hills')
    config = hmm.config({
        'task': 'regression', 'partition.kind': 'natural', 'clients': 0, 'participation': 0,
        'rounds': 3, 'eval_every': 1, 'seeds': 1, 'plots': False, 'mlp.hidden': ()})
    folder = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'run')
    run = hmm.run(config, folder, silent=True, data=data)
    self.assertLess(run.summary['last']['global/test/rmse']['mean'], 2)
    names = {row['client']: row['name'] for row in run.folder.read_table('clients')}
    self.assertEqual(names, {0: 'east', 1: 'north', 2: 'south'})
    np.testing.assert_allclose(run.predict(x[:5])[:, 0], x[:5] @ [1, 2, 3] + 100, atol=6)
    with self.assertRaisesRegex(InputError, 'got data of type tuple'):
      hmm.run(config, f'{folder}2', silent=True, data=(x, x))
    self.assertFalse(os.path.exists(f'{folder}2'))
    longer = run.config.copy_and_resolve_references()
    longer.rounds = 4
    with self.assertRaisesRegex(InputError, 'got dataset=given:hills, data that a Python program'):
      hmm.run(longer, folder, silent=True)
    with self.assertRaisesRegex(InputError, 'inputs'):
      hmm.run(longer, folder, silent=True, data=data._replace(x_train=2 * x))
    self.assertEqual(hmm.run(longer, folder, silent=True, data=data).summary['rounds'], 4)

  def test_a_function_of_ones_own(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    path = os.path.join(folder, 'own.py')
    with open(path, 'w') as file:
      file.write('def halves():\n  return [[0.0], [1.0], [2.0]], ["a", "b", "a"]\n'
                 'def fails():\n  raise KeyError("x")\n'
                 'def needs(n):\n  return n\n')
    made = hmm.dataset(hmm.config({'dataset': f'{path}:halves'}))
    self.assertEqual((made.y_train.tolist(), made.names), ([0, 1, 0], ('a', 'b')))
    for name in ('fails', 'needs', 'nothing'):
      with self.assertRaisesRegex(InputError, f'got dataset=.*own.py:{name}.*a function without'):
        hmm.dataset(hmm.config({'dataset': f'{path}:{name}'}))


if __name__ == '__main__':
  absltest.main()
