"""Inputs from files of every kind, and the table of what is predicted for them."""

import contextlib
import csv
import io
import os
import tempfile

from absl.testing import absltest, parameterized
import jax
import numpy as np
from PIL import Image
from reference import networks

from hmm_jax.experiment import blueprint, exported, federation, inputs, predictions
from hmm_jax.report.screen import Screen
from hmm_jax.types import InputError

SHAPES = {'color': [4, 6, 3], 'gray': [4, 6, 1]}


def about(kind, largest=255, **changes):
  entry = {'modality': '', 'shape': SHAPES[kind], 'dtype': 'uint8', 'largest': largest, **changes}
  return {'inputs': [entry], 'expects': 'something'}


class ImagesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())
    self.pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)

  def save(self, name, pixels, mode=None, **options):
    image = Image.fromarray(pixels)
    path = os.path.join(self.folder, name)
    (image.convert(mode) if mode else image).save(path, **options)
    return path

  def test_of_the_networks_size_they_are_as_they_are(self):
    read = inputs.read(self.save('a.png', self.pixels), about('color'))
    np.testing.assert_array_equal(read.x, self.pixels[None])
    self.assertEqual((read.names, read.said), (['a.png'], ()))

  def test_a_folder_in_the_order_of_names(self):
    for name in ('b.PNG', 'a.jpg', 'c.png'):
      self.save(name, self.pixels)
    with open(f'{self.folder}/notes.txt', 'w') as file:
      file.write('no image')
    self.assertEqual(inputs.read(self.folder, about('color')).names, ['a.jpg', 'b.PNG', 'c.png'])

  def test_color_and_gray_become_what_the_network_takes(self):
    gray = np.asarray(Image.fromarray(self.pixels).convert('L'))
    path = self.save('a.png', self.pixels)
    np.testing.assert_array_equal(inputs.read(path, about('gray')).x, gray[None, ..., None])
    path = self.save('b.png', gray)
    np.testing.assert_array_equal(inputs.read(path, about('color')).x,
                                  np.repeat(gray[None, ..., None], 3, axis=3))
    path = self.save('c.png', gray.astype(np.uint16) * 257)  # 16 bits
    np.testing.assert_array_equal(inputs.read(path, about('gray')).x, gray[None, ..., None])

  def test_they_are_turned_upright(self):
    path = self.save('a.png', np.rot90(self.pixels), exif=_rotated())
    read = inputs.read(path, about('color'))
    np.testing.assert_array_equal(read.x, self.pixels[None])
    self.assertEqual(read.said, ())

  def test_another_size_is_said(self):
    path = self.save('a.png', np.kron(self.pixels, np.ones((5, 5, 1), np.uint8)))
    read = inputs.read(path, about('color'))
    self.assertEqual(read.x.shape, (1, 4, 6, 3))
    self.assertEqual(read.said, ('images of 20x30 are resized to 4x6',))
    self.assertLess(abs(read.x[0].astype(float) - self.pixels).mean(), 40)

  def test_the_range_is_that_of_the_data_set(self):
    path = self.save('a.png', self.pixels)
    read = inputs.read(path, about('color', largest=16))
    np.testing.assert_array_equal(read.x[0], np.round(self.pixels * (16 / 255)))
    self.assertLen(read.said, 1)

  @parameterized.named_parameters(
      ('cut', b'\x89PNG\r\n\x1a\n123', 'a.png; expected a readable image, JPEG or PNG'),
      ('postscript', b'%!PS-Adobe-3.0', 'a.png; expected a readable image, JPEG or PNG'),
      ('empty', b'', 'a.png; expected a readable image'))
  def test_a_damaged_image_is_named(self, content, wanted):
    with open(path := f'{self.folder}/a.png', 'wb') as file:
      file.write(content)
    for given in (path, self.folder):
      with self.assertRaisesRegex(InputError, f'got .*{wanted}'):
        inputs.read(given, about('color'))

  @parameterized.parameters({'dtype': 'float32'}, {'shape': [3]}, {'shape': [4, 6, 2]})
  def test_a_network_that_takes_no_images_is_given_none(self, **changes):
    with self.assertRaisesRegex(InputError, 'got image files for a model that takes something'):
      inputs.read(self.save('a.png', self.pixels), about('color', **changes))


def _rotated():
  exif = Image.Exif()
  exif[0x0112] = 6  # Shown after a turn to the right by 90 degrees.
  return exif


class ArraysTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())
    self.x = np.arange(12.0).reshape(3, 4)

  def save(self, **arrays):
    np.savez(path := f'{self.folder}/x.npz', **arrays)
    return path

  @parameterized.parameters(
      ({'x': 1, 'x_test': 2, 'y': 3}, 1), ({'x_test': 2, 'y': 3}, 2), ({'anything': 5}, 5))
  def test_which_array_of_an_npz(self, scales, wanted):
    path = self.save(**{name: scale * self.x for name, scale in scales.items()})
    read = inputs.read(path, about('color'))
    np.testing.assert_array_equal(read.x, wanted * self.x)
    self.assertEqual(read.names, ['0', '1', '2'])

  def test_no_array_is_guessed(self):
    with self.assertRaisesRegex(InputError, 'x.npz with a, b; expected x or x_test, or a single'):
      inputs.read(self.save(a=self.x, b=self.x), about('color'))

  def test_an_npy(self):
    np.save(path := f'{self.folder}/x.npy', self.x)
    np.testing.assert_array_equal(inputs.read(path, about('color')).x, self.x)

  def test_a_damaged_or_unsafe_npy_is_named(self):
    path = f'{self.folder}/x.npy'
    np.save(path, self.x)
    with open(path, 'rb') as file:
      whole = file.read()
    pickled = io.BytesIO()
    np.save(pickled, np.array([{}]), allow_pickle=True)
    for content in (b'', whole[:-8], whole.replace(b'(3, 4)', b'(3, 9)'), pickled.getvalue()):
      with open(path, 'wb') as file:
        file.write(content)
      with self.assertRaisesRegex(InputError, f'got {path}; expected a readable .npy file'):
        inputs.read(path, about('color'))

  def test_an_array_for_each_modality(self):
    two = {'inputs': [{'modality': 'image'}, {'modality': 'text'}]}
    read = inputs.read(self.save(image=self.x, text=self.x + 1, y=self.x), two)
    self.assertEqual(set(read.x), {'image', 'text'})
    with self.assertRaisesRegex(InputError, 'x.npz with image; expected image, text'):
      inputs.read(self.save(image=self.x), two)

  @parameterized.parameters('x.txt', 'none.npz', 'none.png', '/dev/null', '\0', '')
  def test_what_is_no_file_of_inputs_is_named(self, name):
    with open(f'{self.folder}/x.txt', 'w') as file:
      file.write('to be')
    with self.assertRaisesRegex(InputError, 'got .*; expected'):
      inputs.read(name if name.startswith('/') else f'{self.folder}/{name}', about('color'))


class PredictTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())
    config, data = networks.of('mlp', {}, 'vectors')
    known = blueprint.describe(config, data, federation.federation(config, data))
    self.model = f'{self.folder}/model'
    exported.write(self.model, blueprint.model(known).init(jax.random.key(0)),
                   exported.described(known))
    np.save(f'{self.folder}/x.npy', data.x_train[:12])
    self.x = data.x_train[:12]

  def predict(self, inputs='x.npy', **options):
    with contextlib.redirect_stdout(io.StringIO()) as said:
      predictions.predict(self.model, f'{self.folder}/{inputs}', Screen(), **options)
    return said.getvalue()

  def test_a_row_for_each_input(self):
    said = self.predict(out=f'{self.folder}/p.csv')
    with open(f'{self.folder}/p.csv', newline='') as file:
      header, *rows = csv.reader(file)
    self.assertEqual(header, ['input', 'class', 'probability', 'p(cat)', 'p(dog)', 'p(owl)'])
    wanted = exported.load(self.model).predict(self.x)
    got = np.array([row[3:] for row in rows], float)
    np.testing.assert_allclose(got, wanted, atol=1e-7)
    for i, row in enumerate(rows):
      self.assertEqual(row[:2], [str(i), ('cat', 'dog', 'owl')[wanted[i].argmax()]])
      self.assertAlmostEqual(float(row[2]), wanted[i].max(), 6)
    self.assertRegex(said, '12 inputs, the first 10')
    self.assertRegex(said, f'│ 9 +│ {rows[9][1]} +│ {wanted[9].max():.4f}')
    self.assertNotRegex(said, '│ 10 ')

  def test_nothing_is_written_over(self):
    for out in (f'{self.folder}/x.npy', f'{self.folder}/no/p.csv', self.folder, '\0'):
      with self.assertRaisesRegex(InputError, 'got --out='):
        self.predict(out=out)
    self.assertCountEqual(os.listdir(self.folder), ['model', 'x.npy'])

  def test_no_inputs_are_an_empty_table(self):
    np.save(f'{self.folder}/none.npy', self.x[:0])
    self.predict('none.npy', out=f'{self.folder}/p.csv')
    with open(f'{self.folder}/p.csv') as file:
      self.assertLen(file.readlines(), 1)

  def test_inputs_of_another_shape_are_named_with_their_file(self):
    np.save(f'{self.folder}/wide.npy', self.x[:, :3])
    with self.assertRaisesRegex(InputError, r'wide.npy: got inputs float32 \[12, 3\]; expected'):
      self.predict('wide.npy')


if __name__ == '__main__':
  absltest.main()
