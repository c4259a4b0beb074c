"""Limits to what a compressed file may unpack to."""

import io

from absl.testing import absltest, parameterized
import psutil

from hmm_jax.data import files
from hmm_jax.types import InputError

GIB = 2**30


class LimitTest(parameterized.TestCase):

  @parameterized.parameters(
      (2.0, 2 * GIB, ''), (2.0, 2 * GIB + 1, 'at most 2 GiB, it has 2 GiB; x.y can be larger'),
      (0.5, 119.2 * GIB, 'at most 0.5 GiB, it has 119 GiB; x.y can be larger'),
      (0.001, 10_000 * GIB, 'at most 0.001 GiB, it has 10,000 GiB; '))
  def test_what_is_larger_is_refused_with_its_size_and_the_option(self, gib, size, said):
    limit = files.Limit(gib, 'x.y')
    if not said:
      limit.check(size, InputError)
      return
    with self.assertRaisesRegex(InputError, f'expected a file that unpacks to {said}'):
      limit.check(size, InputError)

  def test_otherwise_it_is_a_quarter_of_the_memory(self):
    quarter = psutil.virtual_memory().total / 4
    files.Limit().check(quarter, InputError)
    with self.assertRaisesRegex(InputError, r'it has [\d.]+ GiB\Z'):  # Without an option.
      files.Limit().check(quarter + 1, InputError)

  def test_a_stream_fails_where_it_passes_the_limit(self):
    for size, sound in ((1000, True), (1001, False), (10**6, False)):
      content = io.BytesIO(b'x' * size)
      stream = io.BufferedReader(
          files.Unpacked(content, files.Limit(1000 / GIB), InputError), buffer_size=100)
      if sound:
        self.assertEqual(stream.read(), b'x' * size)
        continue
      with self.assertRaisesRegex(InputError, 'it has more'):
        stream.read()
      self.assertLess(content.tell(), 2**18)


if __name__ == '__main__':
  absltest.main()
