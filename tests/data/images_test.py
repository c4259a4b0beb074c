"""Image files of every kind, and that none is decoded twice."""

import os
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
import numpy as np
from PIL import Image

from hmm_jax.data import images

NAMES = ('a/x.jpg', 'b/y.png', 'b/z.jpg')


class PicturesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())
    self.cache = os.path.join(self.folder, 'deep', 'cache')
    for i, name in enumerate(NAMES):
      os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
      Image.new('RGB', (12, 9), (50 * i, 90, 10)).save(self.path(name))

  def path(self, name):
    return os.path.join(self.folder, name)

  def read(self, names=NAMES, size=4, **settings):
    """Returns the images, what failed, and the files that were decoded."""
    with mock.patch.object(images, '_decode', wraps=images._decode) as decode:
      x, failed = images.pictures(
          self.folder, names, **{'size': size, 'cache': self.cache, **settings})
    self.assertEqual((x.shape, x.dtype), ((len(names), size, size, 3), np.uint8))
    return x, failed, [os.path.relpath(call.args[0], self.folder) for call in decode.mock_calls
                       if call.args]

  def test_images_of_the_files(self):
    x, failed, _ = self.read()
    self.assertEqual(failed, {})
    np.testing.assert_allclose(x[:, 0, 3], [[0, 90, 10], [50, 90, 10], [100, 90, 10]], atol=3)

  def test_the_whole_image_is_squeezed_to_a_square(self):
    wide = np.zeros((8, 32, 3), np.uint8)
    wide[:4, :16, 0] = wide[:, 16:, 1] = 255
    Image.fromarray(wide).save(self.path('wide.png'))
    [x], _, _ = self.read(['wide.png'])
    np.testing.assert_array_equal(x[..., 0] > 127, np.kron([[1, 0], [0, 0]], np.ones((2, 2))))
    np.testing.assert_array_equal(x[..., 1] > 127, np.kron([[0, 1], [0, 1]], np.ones((2, 2))))
    self.assertEqual(x[..., 2].max(), 0)

  def test_large_photographs(self):
    smooth = np.linspace(0, 255, 256).astype(np.uint8)[:, None, None] * np.ones((1, 320, 3))
    Image.fromarray(smooth.astype(np.uint8)).save(self.path('large.jpg'))
    [x], _, _ = self.read(['large.jpg'])
    np.testing.assert_allclose(x[:, 0, 0], [32, 96, 160, 223], atol=6)

  def test_fine_stripes_of_a_photograph(self):
    stripes = np.uint8(255 * (np.arange(256) // 4 % 2))[None, :, None] * np.ones((256, 1, 3), bool)
    Image.fromarray(stripes).save(self.path('fine.jpg'))
    [x], _, _ = self.read(['fine.jpg'], size=64)
    np.testing.assert_array_equal(x[30, 8:56, 0] > 127, np.arange(48) % 2)
    self.assertGreater(np.ptp(x[30, :, 0]), 120)

  @parameterized.parameters('L', 'LA', 'RGBA', 'P', '1', 'CMYK')
  def test_every_kind_becomes_color(self, mode):
    gray = Image.new('RGB', (6, 6), (255, 255, 255)).convert(mode)
    if mode == 'P':
      gray.save(self.path('gray.png'), transparency=bytes(range(256)))
    else:
      gray.save(self.path(name := f'gray.{"jpg" if mode == "CMYK" else "png"}'))
    [x], failed, _ = self.read(['gray.png' if mode == 'P' else name])
    self.assertEqual(failed, {})
    np.testing.assert_array_equal(x, np.full((4, 4, 3), 255))

  def test_nothing_is_decoded_twice(self):
    first, _, decoded = self.read()
    self.assertEqual(decoded, [*NAMES])
    again, _, decoded = self.read(NAMES[::-1])
    self.assertEmpty(decoded)
    np.testing.assert_array_equal(again, first[::-1])
    self.assertEqual(os.listdir(self.cache), ['4x4.npz'])

  def test_a_cache_grows_by_what_is_new(self):
    self.read(NAMES[:1])
    self.assertEqual(self.read()[2], [*NAMES[1:]])
    some, _, decoded = self.read(NAMES[1:2])
    self.assertEmpty(decoded)
    np.testing.assert_allclose(some[0, 0, 0], [50, 90, 10])
    with mock.patch.object(images, '_write') as write:
      self.assertEmpty(self.read()[2])
    write.assert_not_called()
    with np.load(os.path.join(self.cache, '4x4.npz')) as kept:
      self.assertEqual((kept['stamps'].shape, kept['images'].shape), ((3,), (3, 4, 4, 3)))

  def test_files_of_one_length_and_date(self):
    first, _, _ = self.read()
    for name in NAMES:
      with open(self.path(name), 'ab') as file:
        file.write(bytes(2000 - os.path.getsize(self.path(name))))
      os.utime(self.path(name), ns=(10**18, 10**18))
    for _ in range(2):
      np.testing.assert_array_equal(self.read()[0], first)

  def test_another_size_is_another_cache(self):
    self.read()
    self.assertLen(self.read(size=6)[2], 3)
    self.assertEmpty(self.read(size=6)[2])
    self.assertEmpty(self.read()[2])

  @parameterized.parameters('date', 'length')
  def test_a_changed_file_is_decoded_again(self, what):
    self.read()
    path = self.path(NAMES[1])
    date, length = os.stat(path).st_mtime_ns, os.path.getsize(path)
    Image.new('RGB', (12, 9) if what == 'date' else (99, 99), (7, 8, 9)).save(path)
    self.assertEqual(os.path.getsize(path) == length, what == 'date')
    os.utime(path, ns=(date, date + 10**9 * (what == 'date')))
    x, _, decoded = self.read()
    self.assertEqual(decoded, [NAMES[1]])
    np.testing.assert_array_equal(x[1, 2, 2], [7, 8, 9])

  def test_what_cannot_be_read_is_told_and_tried_again(self):
    with open(self.path(NAMES[0]), 'rb') as file:
      whole = file.read()
    for content, reason in ((b'', 'cannot identify'), (whole[:-40], 'runcated'),
                            (b'\x89PNG\r\n\x1a\n' + bytes(30), '')):
      with open(self.path(NAMES[0]), 'wb') as file:
        file.write(content)
      for _ in range(2):
        x, failed, decoded = self.read(NAMES[:2])
        self.assertEqual([*failed], [0])
        self.assertIn(reason, failed[0])
        self.assertNotEqual(failed[0], '')
        self.assertIn(NAMES[0], decoded)
        self.assertEqual(x[0].max(), 0)
        np.testing.assert_array_equal(x[1, 0, 0], [50, 90, 10])
    with open(self.path(NAMES[0]), 'wb') as file:
      file.write(whole)
    x, failed, decoded = self.read()
    self.assertEqual((failed, decoded), ({}, [NAMES[0], NAMES[2]]))

  @parameterized.parameters('EPS', 'TIFF', 'GIF', 'PPM')
  def test_a_file_of_another_format_is_left_alone(self, kind):
    Image.new('RGB', (12, 9)).save(self.path(NAMES[0]), format=kind)
    with mock.patch('subprocess.check_call', side_effect=AssertionError):
      _, failed, _ = self.read()
    self.assertIn('cannot identify', failed[0])

  def test_a_picture_of_very_many_pixels(self):
    with mock.patch.object(Image, 'MAX_IMAGE_PIXELS', 60):  # Of these there are 108.
      self.assertIn('108 pixels', self.read()[1][0])

  def test_a_pipe(self):
    os.remove(self.path(NAMES[0]))
    os.mkfifo(self.path(NAMES[0]))
    self.assertIn('pipe or device', self.read()[1][0])

  def test_an_error_without_words(self):
    with mock.patch.object(Image, 'open', side_effect=EOFError):
      self.assertEqual(self.read(NAMES[:1])[1], {0: 'EOFError'})

  def test_a_missing_file(self):
    _, failed, _ = self.read([*NAMES, 'c/none.jpg'])
    self.assertEqual([*failed], [3])
    self.assertIn('No such file', failed[3])

  def test_a_name_that_no_path_can_have(self):
    self.assertEqual([*self.read([*NAMES, 'c/\0.jpg'])[1]], [3])

  def test_a_damaged_cache_is_made_anew(self):
    first = self.read()[0]
    path = os.path.join(self.cache, '4x4.npz')
    with open(path, 'rb') as file:
      whole = file.read()
    others = []
    for arrays in ({'x': np.zeros(3)},
                   {'stamps': np.array(['a']), 'images': np.zeros((1, 3, 4, 3))},
                   {'stamps': np.array(['a', 'b']), 'images': np.zeros((1, 4, 4, 3), np.uint8)},
                   {'stamps': np.array(['a']), 'images': np.zeros((1, 4, 4, 3))},
                   {'stamps': np.array([['a']]), 'images': np.zeros((1, 4, 4, 3), np.uint8)},
                   {'stamps': np.array([3]), 'images': np.zeros((1, 4, 4, 3), np.uint8)}):
      np.savez(foreign := self.path('foreign.npz'), **arrays)
      with open(foreign, 'rb') as file:
        others.append(file.read())
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 8
    for content in (b'', whole[:200], whole[:-30], b'PK' + whole[10:], flipped, *others):
      with open(path, 'wb') as file:
        file.write(content)
      x, _, decoded = self.read()
      self.assertLen(decoded, 3)
      np.testing.assert_array_equal(x, first)
      self.assertEmpty(self.read()[2])

  def test_a_cache_that_is_a_pipe_is_made_anew(self):
    os.makedirs(self.cache)
    os.mkfifo(os.path.join(self.cache, '4x4.npz'))
    self.assertLen(self.read()[2], 3)
    self.assertEmpty(self.read()[2])

  @parameterized.parameters('write', 'path')
  def test_nothing_is_left_of_a_cache_that_fails(self, what):
    patch = mock.patch.object(np, 'savez', side_effect=OSError('No space left on device'))
    with self.assertLogs('absl', 'WARNING'):
      if what == 'path':
        self.read(cache='a\0b')
        os.makedirs(self.cache)
      else:
        with patch:
          self.read()
    self.assertEmpty(os.listdir(self.cache))

  def test_where_nothing_can_be_kept(self):
    with self.assertLogs('absl', 'WARNING') as logs:
      x = self.read(cache=self.path(NAMES[0]))[0]  # It is a file.
    self.assertIn('decoded images are not kept, crisismmd.cache names another', logs.output[0])
    np.testing.assert_array_equal(x, self.read()[0])

  def test_home_directory(self):
    with mock.patch.dict(os.environ, HOME=self.folder):
      self.read(cache='~/kept')
    self.assertEqual(os.listdir(self.path('kept')), ['4x4.npz'])


if __name__ == '__main__':
  absltest.main()
