"""Texts by owner: windows of characters, and files that are none."""

import gzip
import json
import lzma
import os
import tempfile

from absl.testing import absltest, parameterized
import numpy as np
import pytest
from reference import damage

from hmm_jax.data.sources import text
from hmm_jax.types import InputError

LINES = (
    {'play': 'b', 'speaker': 'X', 'text': 'hello world'},
    {'play': 'a', 'speaker': 'Y', 'text': 'one two three'},
    {'play': 'b', 'speaker': 'X', 'text': 'again', 'more': [1]},
    {'play': 'a', 'speaker': 'X', 'text': 'ä€😀 few'},
)
OPENERS = {'.jsonl': open, '.jsonl.gz': gzip.open, '.jsonl.xz': lzma.open}


def spell(alphabet, row):
  return ''.join(alphabet[code] for code in row)


class TextTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())

  def save(self, lines=LINES, suffix='.jsonl'):
    path = os.path.join(self.folder, f'set{suffix}')
    with OPENERS[suffix](path, 'wt', encoding='utf-8') as file:
      file.writelines(line + '\n' for line in map(json.dumps, lines))
    return path

  def write(self, content, suffix='.jsonl'):
    path = os.path.join(self.folder, f'set{suffix}')
    with open(path, 'wb') as file:
      file.write(content)
    return path

  def load(self, path, *, owner=('play', 'speaker'), window=3, min_rows=1):
    return text.load(path, owner=owner, window=window, min_rows=min_rows)

  def refuse(self, path, pattern, **settings):
    with self.assertRaisesRegex(InputError, pattern) as caught:
      self.load(path, **settings)
    self.assertNotIn('\n', str(caught.exception))
    return str(caught.exception)

  @parameterized.parameters(*OPENERS)
  def test_rows_of_every_owner(self, suffix):
    path = self.save(suffix=suffix)
    loaded = self.load(path)
    alphabet = sorted(set('hello world\nagainone two threeä€😀 few'))
    self.assertEqual(loaded.classes, len(alphabet))
    rows = [spell(alphabet, row) + alphabet[y]
            for row, y in zip(loaded.x_train, loaded.y_train, strict=True)]
    # Owners (a, X), (a, Y), (b, X); the rest of each, too short for a row, is left.
    self.assertEqual(rows, ['ä€😀 ', 'one ', 'two ', 'thre', 'hell', 'o wo', 'rld\n', 'agai'])
    np.testing.assert_array_equal(loaded.client, [0, 1, 1, 1, 2, 2, 2, 2])
    self.assertEqual((loaded.x_train.dtype, loaded.y_train.dtype), (np.int32, np.int32))
    self.assertEqual(loaded.name, f'text:{path}')
    self.assertIsNone(loaded.domain)

  def test_no_test_split(self):
    loaded = self.load(self.save())
    self.assertEqual((loaded.x_test.shape, loaded.y_test.shape), ((0, 3), (0,)))
    self.assertEqual((loaded.x_test.dtype, loaded.y_test.dtype), (np.int32, np.int32))

  def test_owners_of_few_rows_are_left_out_and_their_characters_kept(self):
    path = self.save()
    loaded = self.load(path, min_rows=4)
    np.testing.assert_array_equal(loaded.client, [0] * 4)
    self.assertEqual(loaded.classes, self.load(path).classes)
    self.assertLen(self.load(path, min_rows=3).x_train, 7)

  def test_any_fields_name_the_owner(self):
    lines = [{'author': author, 'text': 'abcd' * 2} for author in (12, 7, 12, 'Zoe')]
    loaded = self.load(self.save(lines), owner=('author',))
    np.testing.assert_array_equal(np.bincount(loaded.client), [4, 2, 2])
    whole = self.load(self.save(), owner=('play',))
    self.assertEqual(whole.client.max(), 1)

  def test_a_window_takes_so_many_characters(self):
    loaded = self.load(self.save(), window=10, min_rows=1)
    self.assertEqual(loaded.x_train.shape, (2, 10))

  def test_blank_lines_are_skipped(self):
    path = self.write(b'\n' + json.dumps(LINES[0]).encode() + b'\n  \n')
    self.assertLen(self.load(path).x_train, 2)

  @parameterized.parameters('.jsonl', '.jsonl.gz', '.jsonl.xz')
  def test_byte_order_marks_are_no_characters(self, suffix):
    lines = [line | {'text': f'\ufeff{line["text"]}'} for line in LINES]
    path, plain = self.save(lines, suffix), self.load(self.save())
    with OPENERS[suffix](path, 'rb') as file:
      content = file.read()
    with OPENERS[suffix](path, 'wb') as file:
      file.write(b'\xef\xbb\xbf' + content)
    marked = self.load(path)
    np.testing.assert_array_equal(marked.x_train, plain.x_train)
    self.assertEqual(marked.classes, plain.classes)

  def test_half_a_surrogate_pair_is_a_character(self):
    path = self.write(b'{"play": "a", "speaker": "b", "text": "\\ud800abc"}\n')
    np.testing.assert_array_equal(self.load(path).x_train, [[3, 0, 1]])

  def test_home_directory(self):
    self.save()
    with absltest.mock.patch.dict(os.environ, HOME=self.folder):
      self.assertLen(self.load('~/set.jsonl').x_train, 8)

  @parameterized.parameters(
      (b'{"play": "a", "speaker": "b"}', "expected a string 'text' on every line, line 1 has {"),
      (b'{"play": "a", "speaker": "b", "text": 3}', "a string 'text' on every line"),
      (b'{"play": "a", "text": "c"}', "a string or whole number 'speaker' on every line"),
      (b'{"play": ["a"], "speaker": "b", "text": "c"}', "string or whole number 'play' on every"),
      (b'["a", "b"]', "expected a string 'text' on every line"),
      (b'"text"', "expected a string 'text' on every line"),
      (b'{"play": "a",', 'expected JSON lines, line 1 is none: '),
      (b'play,speaker,text', 'line 1 is none'),
      (b'[' * 100_000, 'line 1 is none'),
      (b'\xff\xfe', 'expected a readable file of JSON lines: .*utf-8'),
      (b'', 'text.min_rows=1 .* text.window=3; the largest of 0 has 0'),
  )
  def test_bad_files(self, content, pattern):
    path = self.write(content)
    self.assertStartsWith(self.refuse(path, pattern), f'got dataset=text:{path}; ')

  def test_names_the_line(self):
    path = self.write(json.dumps(LINES[0]).encode() + b'\nnothing\n')
    self.refuse(path, 'line 2 is none')

  def test_no_owner_with_enough_text(self):
    self.refuse(self.save(), 'text.min_rows=5 .* the largest of 3 has 4', min_rows=5)

  def test_no_owner_fields(self):
    self.refuse(self.save(), r'got text.owner=\(\); expected the names of one field', owner=())

  def test_missing_file_and_folder(self):
    self.refuse('/nowhere/set.jsonl', 'No such file')
    self.refuse(self.folder, 'Is a directory')

  @parameterized.parameters('.jsonl.gz', '.jsonl.xz')
  def test_damage_gives_one_line(self, suffix):
    lines = [{'play': 'a', 'speaker': str(n % 9), 'text': f'{n * n} words'} for n in range(200)]
    path = self.save(lines, suffix)
    with open(path, 'rb') as file:
      good = file.read()
    self.assertGreater(damage.refusals(path, damage.changed(good, 100), self.load), 90)

  @parameterized.parameters(*OPENERS)
  @pytest.mark.slow
  def test_mutations_give_one_line_or_texts(self, suffix):
    path = self.save(suffix=suffix)
    with open(path, 'rb') as file:
      good = file.read()
    self.assertGreater(damage.refusals(path, damage.mutated(good, 1000), self.load), 500)

  @parameterized.parameters(*OPENERS)
  def test_one_line_without_end(self, suffix):
    """A compressed file is read up to the limit; a plain one is as large as it looks."""
    path = self.save([{'play': 'a', 'speaker': 'x', 'text': 'a' * 10**6}], suffix)
    load = lambda limit: text.load(
        path, owner=('play', 'speaker'), window=3, min_rows=1, unpack_limit=limit / 2**30)
    load(2 * 10**6)
    if suffix == '.jsonl':
      load(1000)
      return
    with self.assertRaisesRegex(InputError, f'got dataset=text:{path}; expected a file that unpacks'
                                ' to at most .*, it has more; text.unpack_limit can be larger'):
      load(1000)

  @parameterized.parameters(*OPENERS)
  def test_a_pipe_or_a_device(self, suffix):
    os.mkfifo(path := os.path.join(self.folder, f'pipe{suffix}'))
    self.refuse(path, 'pipe or device')
    self.refuse('/dev/zero', 'pipe or device')

  def test_a_path_that_none_can_be(self):
    self.refuse('a\0b', 'null')

  @parameterized.parameters('.jsonl.gz', '.jsonl.xz')
  def test_not_compressed(self, suffix):
    self.refuse(self.write(b'{"text": "plain"}\n', suffix), 'expected a readable file')


if __name__ == '__main__':
  absltest.main()
