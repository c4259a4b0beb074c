"""Texts as vectors: alike in every process, whatever the addresses in them."""

from absl.testing import absltest
import numpy as np

from hmm_jax.data import ngrams


def hashed(*texts, features=512):
  return ngrams.hashed(texts, features=features)


class HashedTest(absltest.TestCase):

  def test_rows_of_norm_one(self):
    x = hashed('storm in the city', 'help', '', features=64)
    self.assertEqual((x.shape, x.dtype), ((3, 64), np.float32))
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), [1, 1, 0], rtol=1e-6)

  def test_words_and_pairs_are_counted(self):
    x = hashed('storm', 'city', 'storm city', 'storm storm storm')
    # Three entries of one size: two words and their pair.
    np.testing.assert_allclose(np.sort(np.abs(x[2]))[-4:], [0, *[3 ** -0.5] * 3], rtol=1e-6)
    np.testing.assert_allclose(x[2] @ x[0], 3 ** -0.5, rtol=1e-6)
    np.testing.assert_allclose(x[2] @ x[1], 3 ** -0.5, rtol=1e-6)
    np.testing.assert_allclose(x[3] @ x[0], 3 / 13 ** 0.5, rtol=1e-6)
    self.assertLess(hashed('city storm')[0] @ x[2], 0.99)

  def test_the_hash_is_the_same_for_ever(self):
    x = hashed('storm city', features=64)[0]
    self.assertEqual({int(i): int(np.sign(x[i])) for i in np.flatnonzero(x)},
                     {30: -1, 31: 1, 48: -1})

  def test_letters_in_both_cases_and_addresses(self):
    plain = hashed('Storm in the city')
    np.testing.assert_array_equal(hashed('STORM https://t.co/xY9 in the city http://a.b/c'), plain)
    self.assertFalse(np.array_equal(hashed('storm t.co xY9 in the city'), plain))


if __name__ == '__main__':
  absltest.main()
