from collections import Counter

from absl.testing import absltest, parameterized
import jax
import numpy as np

from hmm_jax.data import augment
from hmm_jax.types import InputError


def crops(image, padding):
  """Returns every crop of the padded image, mirrored or not, as {bytes: (top, left, flip)}."""
  height, width, _ = image.shape
  padded = np.pad(image, [(padding, padding), (padding, padding), (0, 0)])
  found = {}
  for top in range(2 * padding + 1):
    for left in range(2 * padding + 1):
      crop = padded[top:top + height, left:left + width]
      found[crop.tobytes()] = (top, left, False)
      found[crop[:, ::-1].tobytes()] = (top, left, True)
  return found


class CropFlipTest(parameterized.TestCase):

  @parameterized.product(dtype=(np.uint8, np.float32), padding=(0, 2))
  def test_all_crops_come_equally_often(self, dtype, padding):
    image = np.random.default_rng(0).integers(1, 255, (6, 5, 3)).astype(dtype)
    known = crops(image, padding)
    batch = 200 * len(known)
    out = np.asarray(jax.jit(augment.crop_flip(padding))(
        jax.random.key(0), np.broadcast_to(image, (batch, *image.shape))))
    self.assertEqual(out.dtype, dtype)
    counts = Counter(known[one.tobytes()] for one in out)
    self.assertLen(counts, len(known))  # (2p + 1)^2 crops, each also mirrored
    self.assertBetween(min(counts.values()), 140, 200)
    self.assertBetween(max(counts.values()), 200, 260)

  def test_each_image_stays_in_its_row(self):
    x = np.arange(1, 9, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8)
    out = jax.jit(augment.crop_flip(1))(jax.random.key(1), x)
    np.testing.assert_array_equal(np.asarray(out).max(axis=(1, 2, 3)), np.arange(1, 9))

  def test_more_padding_than_pictures_are_large(self):
    for padding in (-1, 257, 10**9, 2**63):
      with self.assertRaisesRegex(InputError, f'got crop_padding={padding}; '):
        augment.crop_flip(padding)

  def test_the_key_alone_decides(self):
    x = np.random.default_rng(0).integers(0, 255, (16, 8, 8, 1), dtype=np.uint8)
    fn = jax.jit(augment.crop_flip(4))
    first, again, other = (fn(jax.random.key(seed), x) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, augment.crop_flip(4)(jax.random.key(0), x))
    self.assertFalse(np.array_equal(first, other))

  def test_vmap_over_clients(self):
    x = np.random.default_rng(0).integers(0, 255, (3, 4, 8, 8, 1), dtype=np.uint8)
    keys = jax.random.split(jax.random.key(0), 3)
    fn = jax.jit(augment.crop_flip(2))
    np.testing.assert_array_equal(
        jax.vmap(fn)(keys, x), np.stack([fn(k, one) for k, one in zip(keys, x, strict=True)]))


class OnImagesTest(absltest.TestCase):

  def test_images_of_a_tree_are_augmented_and_nothing_else(self):
    x = {'image': np.arange(48, dtype=np.float32).reshape(1, 4, 4, 3),
         'text': np.ones((1, 5), np.float32)}
    crop_flip, key = augment.crop_flip(1), jax.random.key(3)
    out = augment.on_images(crop_flip)(key, x)
    np.testing.assert_array_equal(out['image'], crop_flip(key, x['image']))
    self.assertFalse(np.array_equal(out['image'], x['image']))
    np.testing.assert_array_equal(out['text'], x['text'])
    np.testing.assert_array_equal(augment.on_images(crop_flip)(key, x['image']), out['image'])


if __name__ == '__main__':
  absltest.main()
