"""CSV files, folders of pictures, LEAF's JSON and Hugging Face's sets become data sets."""

import json
import os
import tempfile

from absl.testing import absltest, parameterized
import numpy as np
from PIL import Image
import pytest
from sklearn import datasets as real
from sklearn import metrics

import hmm_jax as hmm
from hmm_jax.types import InputError


class Folder(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())

  def path(self, *names):
    path = os.path.join(self.folder, *names)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return path

  def write(self, name, text):
    with open(self.path(name), 'w', encoding='utf-8') as file:
      file.write(text)
    return self.path(name)

  def load(self, dataset, **settings):
    return hmm.dataset(hmm.config({'dataset': dataset} | {
        key.replace('__', '.'): value for key, value in settings.items()}))

  def refuse(self, said, dataset, **settings):
    with self.assertRaisesRegex(InputError, said) as caught:
      self.load(dataset, **settings)
    self.assertNotIn('\n', str(caught.exception))


class CsvTest(Folder):

  def test_diabetes_is_what_scikit_learn_says(self):
    x, y = real.load_diabetes(return_X_y=True)
    path = self.path('d.csv')
    np.savetxt(path, np.column_stack([x, y]), delimiter=',', comments='',
               header=','.join([*'abcdefghij', 'progression']))
    made = self.load(f'csv:{path}', task='regression', csv__target='progression')
    np.testing.assert_allclose(made.x_train, x, rtol=1e-6)
    np.testing.assert_allclose(made.y_train[:, 0], y)
    self.assertEqual(made.names, ('progression',))

  def test_numbers_categories_owners_and_splits(self):
    path = self.write('t.csv', 'age;color;who;part;sick\n1;red;Zoë;train;no\n2.5;blue;Al;test;yes\n'
                      '3;red;Al;validation;no\n')
    made = self.load(f'csv:{path}', csv__target='sick', csv__client='who', csv__split='part')
    np.testing.assert_array_equal(made.x_train, [[1, 0, 1], [3, 0, 1]])
    np.testing.assert_array_equal(made.x_test, [[2.5, 1, 0]])
    self.assertEqual((made.y_train.tolist(), made.y_test.tolist(), made.names),
                     ([0, 0], [1], ('no', 'yes')))
    self.assertEqual((made.client.tolist(), made.owners), ([1, 0], ('Al', 'Zoë')))

  def test_breast_cancer_is_learned_in_ten_hospitals(self):
    frame = real.load_breast_cancer(as_frame=True).frame
    path = self.path('cancer.csv')
    frame.assign(hospital=[f'h{i % 10}' for i in range(len(frame))]).to_csv(path, index=False)
    run = hmm.run(hmm.config({
        'dataset': f'csv:{path}', 'csv.target': 'target', 'csv.client': 'hospital',
        'partition.kind': 'natural', 'clients': 0, 'rounds': 5, 'eval_every': 5, 'seeds': 1,
        'plots': False}), self.path('run'), silent=True)
    rows = np.asarray(run.federation.test.rows)
    x, y = (np.asarray(leaf)[rows] for leaf in run.federation.examples)
    found = run.summary['last']['global/test/accuracy']['mean']
    self.assertGreater(found, 0.9)
    self.assertAlmostEqual(found, metrics.accuracy_score(y, run.predict(x).argmax(1)), places=5)
    self.assertEqual([row['name'] for row in run.folder.read_table('partition')],
                     [f'h{i}' for i in range(10)])

  @parameterized.named_parameters(
      ('blanks_before_quotes', '"a", "y"\n1, "no"\n2, "yes"\n'),
      ('a_name_of_two_lines', '"a\nb",y\n1,no\n2,yes\n'),
      ('commas_in_a_name', '"a,b,c";y\n1;no\n2;yes\n'),
      ('carriage_returns', 'a,y\r\n\r\n1,no\r\n2,yes\r\n'),
      ('a_byte_order_mark', '\ufeffa,y\n1,no\n2,yes\n'))
  def test_is_written_in_many_ways(self, text):
    made = self.load(f'csv:{self.write("t.csv", text)}', csv__target='y')
    self.assertEqual((made.x_train.tolist(), made.names), ([[1], [2]], ('no', 'yes')))

  def test_several_targets_and_chosen_inputs(self):
    path = self.write('t.csv', 'a,b,"c,d"\n1,0,3\n4,1,6\n')
    made = self.load(f'csv:{path}', task='regression', csv__target='b, a', csv__inputs='c,d')
    np.testing.assert_array_equal(made.y_train, [[0, 1], [1, 4]])
    np.testing.assert_array_equal(made.x_train, [[3], [6]])
    self.assertEqual(made.names, ('b', 'a'))

  @parameterized.parameters(
      ('', 'expected a header'),
      ('a,b\n', 'only a header'),
      ('a,a,y\n1,2,3\n', "the header has 'a' 2 times"),
      ('a,,y\n1,2,3\n', 'expected a name for each column, column 2 has none'),
      ('a,y\n1,0\n2\n', 'expected 2 fields in each row.* line 3 has 1'),
      ('a,y\n1,0\n,1\n', "column 'a' has no value in row 2"),
      ('a,y\n1,0\nNaN,1\n', "column 'a' has no value in row 2"),
      ('a,y\nNA,0\n?,1\n', "column 'a' has no value in row 1"),
      ('a,y\n1,0\nabc,1\n', "column 'a' has 'abc' in row 2 among numbers"),
      ('a,y\n1,no\n2,\n', "column 'y' has no value in row 2"),
      ('a,y\n1,0.5\n2,1\n', 'whose labels are float64.*task=regression'),
      ('a,y\n1e300,0\n2,1\n', "column 'a' has no finite number in example 1"),
      ('a,x\n1,0\n', "no column 'y' for csv.target; expected one of 'a', 'x'"),
      ('y\n0\n1\n', 'expected a column of inputs beside'))
  def test_refuses(self, text, said):
    self.refuse(said, f'csv:{self.write("t.csv", text)}', csv__target='y')

  def test_refuses_other_roles(self):
    path = self.write('t.csv', 'a,y,part\n1,0,train\n2,1,later\n')
    for changes, said in (
        ({}, "expected csv.target, the column to learn, one of 'a', 'y', 'part'"),
        ({'csv__target': 'y', 'csv__split': 'part'}, "column 'part' has 'later'; expected train"),
        ({'csv__target': 'y', 'csv__inputs': 'a,y'}, "csv.inputs has the column 'y', which is to"),
        ({'csv__target': 'y', 'csv__inputs': 'a,a'}, "csv.inputs names the column 'a' twice"),
        ({'csv__target': 'y,y'}, "csv.target names the column 'y' twice"),
        ({'csv__target': 'y', 'csv__client': 'owner'}, "no column 'owner' for csv.client"),
        ({'csv__target': 'y', 'task': 'regresion'}, 'did you mean regression')):
      self.refuse(said, f'csv:{path}', **changes)
    self.refuse('expected a readable CSV file', f'csv:{self.folder}', csv__target='y')
    self.refuse('expected a readable CSV file', f'csv:{self.folder}/none.csv', csv__target='y')


class ImagesTest(Folder):

  def picture(self, *names, size=(8, 8), mode='L', value=7):
    Image.new(mode, size, value if mode == 'L' else (value, 1, 2)).save(self.path(*names))

  def test_classes_are_folders(self):
    for i, name in enumerate(('cat', 'cat', 'Äff')):
      self.picture('all', name, f'{i}.png', value=i)
    self.write('all/cat/notes.txt', 'no picture')
    made = self.load(f'images:{self.folder}/all')
    self.assertEqual((made.x_train.shape, made.names), ((3, 8, 8, 1), ('cat', 'Äff')))
    self.assertEqual(made.x_train[:, 0, 0, 0].tolist(), [0, 1, 2])
    self.assertEqual(made.y_train.tolist(), [0, 0, 1])

  def test_clients_and_splits(self):
    for split, owner, name in (('train', 'b', 'x'), ('train', 'a', 'x'), ('train', 'b', 'y'),
                               ('test', 'a', 'y')):
      self.picture('set', split, owner, name, 'one.png', mode='RGB')
    made = self.load(f'images:{self.folder}/set', images__client_folders=True)
    self.assertEqual((made.client.tolist(), made.owners), ([0, 1, 1], ('a', 'b')))
    self.assertEqual((made.x_train.shape, made.y_test.tolist()), ((3, 8, 8, 3), [1]))

  @parameterized.parameters(
      (('train',), 1, 0), (('train', 'val'), 2, 0), (('Train', 'Test'), 1, 1),
      (('train', 'validation', 'test'), 2, 1), (('train', 'bus'), 2, 0), (('test',), 1, 0))
  def test_folders_of_splits(self, names, training, testing):
    classes = 'bus' in names or 'train' not in map(str.lower, names)
    for name in names:
      self.picture('set', name, *([] if classes else ['a']), 'one.png')
    made = self.load(f'images:{self.folder}/set')
    self.assertEqual((len(made.y_train), len(made.y_test)), (training, testing))

  def test_sizes(self):
    self.picture('all', 'a', 'one.png')
    self.picture('all', 'b', 'two.png', size=(6, 9))
    self.refuse('two.png is 9x6 and .*one.png 8x8 pixels; .*images.size',
                f'images:{self.folder}/all')
    made = self.load(f'images:{self.folder}/all', images__size='4x5')
    self.assertEqual(made.x_train.shape, (2, 4, 5, 1))
    self.assertEqual(self.load(f'images:{self.folder}/all', images__size=3).x_train.shape,
                     (2, 3, 3, 1))
    self.refuse('got images.size=big', f'images:{self.folder}/all', images__size='big')

  def test_refuses(self):
    self.refuse('expected a folder', f'images:{self.folder}/none')
    self.refuse('expected pictures in CLASS, or in CLIENT/CLASS', f'images:{self.folder}')
    self.picture('deep', 'ann', 'a', 'one.png')
    self.refuse("ann has 'a' and no picture .*images.client_folders=True",
                f'images:{self.folder}/deep')
    self.picture('mixed', 'a', 'one.png')
    self.write('mixed/b/two.bmp', '')
    self.refuse("b has 'two.bmp' and no picture", f'images:{self.folder}/mixed')
    self.picture('all', 'a', 'one.png')
    self.write('all/a/two.png', 'no picture')
    self.refuse('expected a readable picture .*two.png', f'images:{self.folder}/all')


class LeafTest(Folder):

  def save(self, data, name='all/one.json'):
    return self.write(name, json.dumps({
        'users': [*data], 'num_samples': [len(own['y']) for own in data.values()],
        'user_data': data}))

  def test_numbers(self):
    self.save({'b': {'x': [[0.5] * 4, [1.0] * 4], 'y': [3, 1]}}, 'all/1.json')
    self.save({'a': {'x': [[0.25] * 4], 'y': [1]}}, 'all/2.json')
    made = self.load(f'leaf:{self.folder}/all', leaf__shape='2x2x1')
    self.assertEqual(made.x_train.shape, (3, 2, 2, 1))
    self.assertEqual((made.client.tolist(), made.owners), ([1, 1, 0], ('a', 'b')))
    self.assertEqual((made.y_train.tolist(), made.names), ([1, 0, 0], ('1', '3')))

  def test_texts_and_splits(self):
    self.save({'u': {'x': ['abc', 'bca'], 'y': ['d', 'b']}}, 'set/train/1.json')
    self.save({'u': {'x': ['add'], 'y': ['a']}}, 'set/test/1.json')
    made = self.load(f'leaf:{self.folder}/set')
    self.assertEqual(made.x_train.tolist(), [[0, 1, 2], [1, 2, 0]])
    self.assertEqual(made.y_train.tolist(), [3, 1])
    self.assertEqual((made.x_test.tolist(), made.names), ([[0, 3, 3]], tuple('abcd')))
    after = self.load(f'leaf:{self.folder}/set', task='next_token')
    self.assertEqual(after.y_train.tolist(), [[1, 2, 3], [2, 0, 1]])

  def test_a_training_split_alone(self):
    self.save({'u': {'x': [[0.5]], 'y': [3]}}, 'set/train/1.json')
    self.assertLen(self.load(f'leaf:{self.folder}/set').x_train, 1)

  def test_names_become_lines_that_files_can_hold(self):
    self.save({'a\nb': {'x': ['ab'], 'y': ['\n']}, '\ud800': {'x': ['ba'], 'y': ['a']}})
    made = self.load(f'leaf:{self.folder}/all')
    self.assertEqual((made.owners, made.names), (('a\\nb', '\\ud800'), ('\\n', 'a', 'b')))

  @parameterized.parameters(
      ('{"user_data": {"u": {"x": ["ab", 3], "y": ["a", "b"]}}}', 'some x are strings'),
      ('{"user_data": {"u": {"x": [[1], [2]], "y": ["a", 1]}}}', 'some y are strings'),
      ('{"users": ["v"], "user_data": {"u": {"x": [[1]], "y": [1]}}}', "'users' in one.json"),
      ('{"users": ["u"], "num_samples": [2], "user_data": {"u": {"x": [[1]], "y": [1]}}}',
       "user 'u' in one.json has 1 examples; expected 2"),
      ('{"users": []}', "expected 'user_data' in one.json"),
      ('[1, 2', 'expected JSON in one.json'),
      ('{"user_data": {"u": {"x": [1]}}}', "user 'u' in one.json has no lists x and y"),
      ('{"user_data": {"u": {"x": [[1], [1, 2]], "y": [0, 1]}}}', 'inputs of one length'),
      ('{"user_data": {"u": {"x": ["ab", "abc"], "y": ["a", "b"]}}}', 'texts x of one length'),
      ('{"user_data": {}}', 'with examples, there are none'))
  def test_refuses(self, text, said):
    self.write('all/one.json', text)
    self.refuse(said, f'leaf:{self.folder}/all')

  def test_refuses_shapes(self):
    self.save({'u': {'x': [[0.5] * 4], 'y': [3]}})
    self.refuse('product of 4', f'leaf:{self.folder}/all', leaf__shape='3x3')


class HfTest(Folder):

  def setUp(self):
    super().setUp()
    self.hf = pytest.importorskip('datasets')
    self.enterContext(absltest.mock.patch.object(
        self.hf.config, 'HF_DATASETS_CACHE', os.path.join(self.folder, 'cache')))

  def test_a_parquet_file(self):
    x, y = real.load_breast_cancer(return_X_y=True)
    path = self.path('c.parquet')
    columns = {f'f{i}': column for i, column in enumerate(x.T)}
    self.hf.Dataset.from_dict(columns | {'label': y, 'site': [f's{i % 3}' for i in range(len(y))]}
                              ).to_parquet(path)
    made = self.load(f'hf:{path}', hf__client='site')
    np.testing.assert_allclose(made.x_train, x, rtol=1e-6)
    np.testing.assert_array_equal(made.y_train, y)
    self.assertEqual((made.client[:4].tolist(), made.owners), ([0, 1, 2, 0], ('s0', 's1', 's2')))

  def test_pictures_named_classes_and_splits_saved_to_disk(self):
    make = lambda count: self.hf.Dataset.from_dict({
        'image': [Image.new('RGB', (5, 4), (i, 0, 0)) for i in range(count)],
        'coarse': [i % 2 for i in range(count)], 'label': [i % 3 for i in range(count)],
    }).cast_column('image', self.hf.Image()).cast_column(
        'coarse', self.hf.ClassLabel(names=['odd', 'even']))
    path = self.path('saved')
    self.hf.DatasetDict({'train': make(4), 'validation': make(3)}).save_to_disk(path)
    made = self.load(f'hf:{path}')
    self.assertEqual((made.x_train.shape, len(made.x_test)), ((4, 4, 5, 3), 3))
    self.assertEqual(made.x_train[:, 0, 0, 0].tolist(), [0, 1, 2, 3])
    self.assertEqual((made.y_train.tolist(), made.names), ([1, 0, 1, 0], ('even', 'odd')))
    self.assertEqual(self.load(f'hf:{path}', hf__label='label').y_train.tolist(), [0, 1, 2, 0])
    self.refuse("no split 'tset' for hf.test", f'hf:{path}', hf__test='tset')

  def test_refuses_pictures(self):
    path = self.path('t.parquet')
    made = self.hf.Dataset.from_dict({
        'image': [{'bytes': b'none', 'path': None}] * 2, 'n': [1, 2], 'label': [0, 1]})
    made.cast_column('image', self.hf.Image()).to_parquet(path)
    self.refuse("expected readable pictures in column 'image'", f'hf:{path}')
    for inputs in ('image,n', 'n,image'):
      self.refuse("column 'image' holds pictures", f'hf:{path}', hf__inputs=inputs)

  def test_lists_are_inputs(self):
    path = self.path('t.parquet')
    self.hf.Dataset.from_dict({'ids': [[1, 2], [3, 0]], 'label': [0, 1]}).to_parquet(path)
    made = self.load(f'hf:{path}')
    self.assertEqual((made.x_train.tolist(), made.x_train.dtype), ([[1, 2], [3, 0]], np.int32))

  def test_refuses(self):
    path = self.path('t.parquet')
    self.hf.Dataset.from_dict({'a': [1.0, None], 'b': [1.0, 2.0], 'n': [[1], [1, 2]], 'y': [0, 1]}
                              ).to_parquet(path)
    for changes, said in (
        ({}, "column 'a'"),
        ({'hf__label': 'c'}, "no column 'c' for hf.label; expected one of a, b"),
        ({'hf__inputs': 'n'}, "column 'n' has lists of several lengths"),
        ({'hf__inputs': 'b,n'}, "column 'n' has lists"),
        ({'hf__inputs': 'b,y'}, "hf.inputs has the column 'y', which is to be learned"),
        ({'hf__client': 'who'}, "no column 'who' for hf.client")):
      self.refuse(said, f'hf:{path}', **changes)
    for nothing in ('none.parquet', './none', f'{self.folder}/none', '~/none', 'a/b/c/d'):
      self.refuse('expected a file or folder, or NAME', f'hf:{nothing}')
    self.refuse('expected a file of .parquet', f'hf:{self.write("t.txt", "x")}')
    self.refuse('expected a set that can be loaded', f'hf:{self.write("t.json", "[1, ")}')


if __name__ == '__main__':
  absltest.main()
