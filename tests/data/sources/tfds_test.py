"""Prepared TFDS sets: what is loaded, and what is refused."""

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings

from absl.testing import absltest, parameterized
import numpy as np
from PIL import Image
import tensorflow_datasets

from hmm_jax.data.sources import tfds
from hmm_jax.types import InputError

FEATURES = tensorflow_datasets.features


def png(image):
  file = io.BytesIO()
  Image.fromarray(image.squeeze()).save(file, format='PNG')
  return io.BytesIO(file.getvalue())


def image(row, shape=(4, 5, 1)):
  return np.random.default_rng(row).integers(0, 256, shape, dtype=np.uint8)


def example(row):
  return {'image': png(image(row)), 'label': row % 3}


def prepare(folder, title, *, features=None, examples=example, splits=None, configs=()):
  """Writes a small set as its authors would, which needs no TensorFlow for PNG bytes."""
  features = features or {
      'image': FEATURES.Image(shape=(4, 5, 1)), 'label': FEATURES.ClassLabel(num_classes=3)}
  splits = splits or {'train': range(9), 'test': range(20, 24)}

  class Builder(tensorflow_datasets.core.GeneratorBasedBuilder, skip_registration=True):
    name = title
    VERSION = tensorflow_datasets.core.Version('1.2.0')
    BUILDER_CONFIGS = configs

    def _info(self):
      return tensorflow_datasets.core.DatasetInfo(
          builder=self, features=FEATURES.FeaturesDict(features))

    def _split_generators(self, dl_manager):
      return {split: self._generate_examples(rows) for split, rows in splits.items()}

    def _generate_examples(self, rows):
      return ((row, examples(row)) for row in rows)

  tensorflow_datasets.disable_progress_bar()
  builder = Builder(data_dir=folder, file_format='array_record')
  builder.download_and_prepare()
  return str(builder.data_path)


class TfdsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())

  def refuse(self, name, pattern, folder=None):
    with self.assertRaisesRegex(InputError, pattern) as caught:
      tfds.load(name, folder or self.folder)
    self.assertStartsWith(str(caught.exception), f'got dataset={name!r}')
    self.assertNotIn('\n', str(caught.exception))

  def assert_rows(self, x, y, rows):
    """TFDS shuffles rows on writing, so images are looked up."""
    wanted = {image(row).tobytes(): row % 3 for row in rows}
    self.assertLen(x, len(rows))
    self.assertEqual({found.tobytes(): label for found, label in zip(x, y, strict=True)}, wanted)

  def test_reads_both_splits(self):
    prepare(self.folder, 'small_gray')
    with absltest.mock.patch.object(tfds, '_CHUNK', 4):  # two chunks and a rest
      loaded = tfds.load('small_gray', self.folder)
    self.assertEqual(loaded.x_train.shape, (9, 4, 5, 1))
    self.assertEqual((loaded.x_train.dtype, loaded.y_train.dtype), (np.uint8, np.int32))
    self.assert_rows(loaded.x_train, loaded.y_train, range(9))
    self.assert_rows(loaded.x_test, loaded.y_test, range(20, 24))
    self.assertEqual((loaded.name, loaded.classes), ('small_gray', 3))
    self.assertIsNone(loaded.client)

  def test_colors_and_other_features(self):
    def colored(row):
      return {'image': png(image(row, (4, 5, 3))), 'label': 1, 'text': 'left alone'}

    prepare(self.folder, 'small_color', examples=colored, splits={'train': [7]}, features={
        'image': FEATURES.Image(shape=(4, 5, 3)), 'label': FEATURES.ClassLabel(num_classes=2),
        'text': FEATURES.Text()})
    loaded = tfds.load('small_color', self.folder)
    np.testing.assert_array_equal(loaded.x_train, image(7, (4, 5, 3))[None])
    self.assertEqual(loaded.x_test.shape, (0, 4, 5, 3))
    self.assertEqual(loaded.y_test.shape, (0,))

  def test_names_with_a_version_or_a_config(self):
    prepare(self.folder, 'small_named', configs=[
        tensorflow_datasets.core.BuilderConfig(name='digits', version='3.1.0')])
    self.assertEqual(tfds.load('small_named/digits', self.folder).name, 'small_named/digits')
    self.assertEqual(tfds.load('small_named/digits:3.*.*', self.folder).name, 'small_named/digits')
    self.refuse('small_named/letters', 'expected the name of a TFDS image set')

  def test_home_directory(self):
    prepare(self.folder, 'small_home', splits={'train': [0]})
    with absltest.mock.patch.dict(os.environ, HOME=self.folder):
      self.assertLen(tfds.load('small_home', '~/').x_train, 1)

  def test_is_lazy_and_silent_and_leaves_tensorflow_alone(self):
    prepare(self.folder, 'small_silent')
    script = ('import sys\n'
              'from hmm_jax.data.sources import tfds\n'
              'from hmm_jax.types import InputError\n'
              'assert "tensorflow_datasets" not in sys.modules\n'
              f'tfds.load("small_silent", {self.folder!r})\n'
              'try:\n'
              f'  tfds.load("mnist", {self.folder!r})\n'
              'except InputError: pass\n'
              'assert "tensorflow" not in sys.modules')
    done = subprocess.run([sys.executable, '-W', 'error', '-c', script], capture_output=True,
                          text=True, check=False)
    self.assertEqual((done.returncode, done.stdout, done.stderr), (0, '', ''))

  def test_not_prepared(self):
    self.refuse('mnist', f'not prepared in {self.folder}/mnist/3.0.1; run: pip install '
                r"'hmm_jax\[prepare\]' && python -c .*tfds.builder\('mnist', "
                rf"data_dir='{self.folder}', file_format='array_record'\).download_and_prepare\(\)")

  def test_not_prepared_in_the_default_folder(self):
    with absltest.mock.patch.dict(os.environ, TFDS_DATA_DIR=self.folder), self.assertRaisesRegex(
        InputError, r"builder\('kmnist', file_format='array_record'\)"):
      tfds.load('kmnist', None)

  def test_unknown_name(self):
    self.refuse('mnst', 'the nearest are mnist')
    self.refuse('qqqqqqqqq', 'none comes near')

  def test_odd_names(self):
    for name in ('', '../mnist', 'usps.npz'):
      self.refuse(name, 'expected the name of a TFDS image set')
    self.refuse('mnist:9.9.9', 'cannot be loaded at version 9.9.9, only: 3.0.1')
    self.refuse('emnist/nope', 'BuilderConfig nope not found')

  def test_features_that_are_no_classification(self):
    label = FEATURES.ClassLabel(num_classes=2)
    for name, features, pattern in (
        ('small_plain', {'x': FEATURES.Scalar(np.int64)}, "expected an 'image' and a class 'label'"
         ', it has x'),
        ('small_regress', {'image': FEATURES.Image(shape=(4, 5, 1)),
                           'label': FEATURES.Scalar(np.int64)}, 'it has image, label'),
        ('small_any_size', {'image': FEATURES.Image(shape=(None, None, 1)), 'label': label},
         r'expected uint8 images of one shape, not uint8 \(None, None, 1\)'),
        ('small_deep', {'image': FEATURES.Image(shape=(4, 5, 1), dtype=np.uint16), 'label': label},
         'not uint16')):
      with self.subTest(name):
        prepare(self.folder, name, features=features, splits={'train': [0]},
                examples=lambda row, features=features: {
                    key: png(image(row)) if key == 'image' else 0 for key in features})
        self.refuse(name, pattern)

  def test_no_train_split(self):
    prepare(self.folder, 'small_untrained', splits={'validation': [0], 'test': [1]})
    self.refuse('small_untrained', "expected a split 'train', it has validation, test")

  def test_rows_without_a_label(self):
    prepare(self.folder, 'small_unlabeled', splits={'train': [0], 'test': [1]},
            examples=lambda row: {'image': png(image(row)), 'label': -row})
    self.refuse('small_unlabeled', 'expected a label on every')

  def test_damaged_files(self):
    path = prepare(self.folder, 'small_damaged')
    records = os.path.join(path, 'small_damaged-train.array_record-00000-of-00001')
    with open(records, 'r+b') as file:
      file.seek(120)
      file.write(b'\xff' * 100)
    self.refuse('small_damaged', f'expected readable array_record files in {path}: ')
    os.remove(records)
    self.refuse('small_damaged', f'expected readable array_record files in {path}: ')
    with open(os.path.join(path, 'dataset_info.json'), 'w') as file:
      file.write('{')
    self.refuse('small_damaged', 'expected the name of a TFDS image set')
    shutil.rmtree(path)
    self.refuse('small_damaged', 'expected the name of a TFDS image set')

  def test_pictures_of_very_many_pixels(self):
    path = prepare(self.folder, 'small_bomb')
    with warnings.catch_warnings(action='ignore'), absltest.mock.patch.object(
        Image, 'MAX_IMAGE_PIXELS', 15):  # These have 20.
      self.refuse('small_bomb', f'expected readable array_record files in {path}: .*20 pixels')

  def rewrite(self, path, change):
    path = os.path.join(path, 'features.json')
    with open(path) as file:
      content = json.load(file)
    change(content)
    with open(path, 'w') as file:
      json.dump(content, file)

  def test_classes_of_others_are_never_imported(self):
    path = prepare(self.folder, 'small_strange', splits={'train': [0]})
    with open(os.path.join(self.folder, 'opened_trap.py'), 'w') as file:
      file.write(f'open({os.path.join(self.folder, "touched")!r}, "w")')
    feature = lambda content, name: content['featuresDict']['features'][name]
    trap, plain = 'opened_trap.Feature', {'type': 'tensorflow_datasets.core.features.Text'}
    for change in (
        lambda content: content.update(pythonClassName=trap),
        lambda content: feature(content, 'label').update(python_class_name=trap),
        lambda content: feature(content, 'image').update(type=trap, content={}),
        lambda content: content['featuresDict']['features'].update(more={
            'type': 'tensorflow_datasets.core.features.sequence_feature.Sequence',
            'content': {'feature': {'type': trap, 'content': {}}}}),
        lambda content: feature(content, 'label').update(plain | {'content': [{'type': trap}]})):
      with absltest.mock.patch.object(sys, 'path', [self.folder, *sys.path]):
        self.rewrite(path, change)
        for name in ('small_strange', 'small_strange:1.2.0', 'SmallStrange'):
          with self.assertRaisesRegex(InputError, 'opened_trap.Feature|TFDS image set'):
            tfds.load(name, self.folder)
      self.assertNotIn('touched', os.listdir(self.folder))
      self.refuse('small_strange', "it names '.*'")
      shutil.rmtree(path)
      prepare(self.folder, 'small_strange', splits={'train': [0]})

  def test_features_that_cannot_be_looked_at_are_not_read(self):
    path = prepare(self.folder, 'small_piped', splits={'train': [0]})
    for name in os.listdir(path):
      os.rename(os.path.join(path, name), kept := os.path.join(self.folder, 'kept'))
      os.mkfifo(os.path.join(path, name))
      self.refuse('small_piped', 'pipe or device')
      os.replace(kept, os.path.join(path, name))
    self.refuse('small_piped', 'data_dir=gs://bucket/sets; expected a local', 'gs://bucket/sets')

  def test_names_of_features_are_no_classes(self):
    prepare(self.folder, 'small_type', splits={'train': [0]}, features={
        'image': FEATURES.Image(shape=(4, 5, 1)), 'label': FEATURES.ClassLabel(num_classes=3),
        'type': FEATURES.Text(), 'box': FEATURES.BBoxFeature(),
        'words': FEATURES.Sequence(FEATURES.Text())}, examples=lambda row: example(row) | {
            'type': 'a', 'box': FEATURES.BBox(0.0, 0.0, 1.0, 1.0), 'words': ['b']})
    self.assertLen(tfds.load('small_type', self.folder).x_train, 1)

  @parameterized.parameters('PPM', 'EPS', 'I;16', 'P', '1')
  def test_pictures_of_another_kind_are_not_cast(self, kind):
    file = io.BytesIO()
    if kind in ('PPM', 'EPS'):
      Image.new('L', (5, 4)).save(file, format=kind)
    else:
      Image.new(kind, (5, 4), 1).save(file, format='PNG')
    prepare(self.folder, 'small_odd', splits={'train': [0]},
            examples=lambda row: {'image': io.BytesIO(file.getvalue()), 'label': 0})
    with absltest.mock.patch('subprocess.check_call', side_effect=AssertionError):
      self.refuse('small_odd', 'cannot identify|an image is')

  def test_images_of_another_shape_than_promised(self):
    prepare(self.folder, 'small_lying', splits={'train': [0]},
            examples=lambda row: {'image': png(image(row, (3, 3, 1))), 'label': 0})
    self.refuse('small_lying', r'an image is \(\(3, 3\)')


if __name__ == '__main__':
  absltest.main()
