"""Rows, labels, domains and modalities of a made-up release, and what is wrong with another."""

import os
import re
import shutil
import tempfile

from absl.testing import absltest, parameterized
import numpy as np
from reference import damage, release

from hmm_jax.data import images, ngrams
from hmm_jax.data.sources import crisismmd
from hmm_jax.types import InputError


class ReleaseTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())

  def load(self, folder=None, **settings):
    values = {'task': 'informative', 'labels': 'agreed', 'embed': release.vectors, 'decode': None,
              'broken': 'refuse', **settings}
    return crisismmd.load(folder or self.folder, **values)

  def decode(self, folder, names):
    return images.pictures(folder, names, size=4, cache=os.path.join(self.folder, 'cache'))

  def refuse(self, pattern, **settings):
    with self.assertRaisesRegex(InputError, pattern) as caught:
      self.load(**settings)
    self.assertNotIn('\n', str(caught.exception))
    return str(caught.exception)


class TablesTest(ReleaseTest):

  def write(self, tables, task='informative', folder=''):
    release.write_tables(os.path.join(self.folder, folder), tables, task)
    return tables

  def edit(self, split, change):
    path = release.path(self.folder, split)
    with open(path, 'rb') as file:
      content = file.read()
    with open(path, 'wb') as file:
      file.write(change(content))
    return path

  def test_mutations_give_one_line_or_texts(self):
    self.write(release.rows())
    path = release.path(self.folder, 'dev')
    with open(path, 'rb') as file:
      good = file.read()
    load = lambda _: self.load(embed=lambda _, texts: ngrams.hashed(texts, features=8))
    self.assertGreater(damage.refusals(path, damage.mutated(good, 60), load), 30)

  @parameterized.product(task=tuple(release.CLASSES), labels=('agreed', 'text', 'image'))
  def test_each_table_is_read_for_what_it_is(self, task, labels):
    tables = self.write(release.rows(task), task)
    loaded = self.load(task=task, labels=labels)
    of = 'label_image' if labels == 'image' else 'label_text'
    kept = {split: [row for row in rows
                    if labels != 'agreed' or row['label_text'] == row['label_image']]
            for split, rows in tables.items()}
    train, test = kept['train'] + kept['dev'], kept['test']
    self.assertEqual((len(train), len(test)), (27, 11) if labels == 'agreed' else (35, 14))
    for rows, x, y in ((train, loaded.x_train, loaded.y_train),
                       (test, loaded.x_test, loaded.y_test)):
      np.testing.assert_array_equal(x, release.vectors(
          [row['tweet_id'] for row in rows], [row['tweet_text'] for row in rows]))
      np.testing.assert_array_equal(y, [release.CLASSES[task].index(row[of]) for row in rows])
      self.assertEqual(y.dtype, np.int32)
    np.testing.assert_array_equal(
        loaded.domain, [release.EVENTS.index(row['event_name']) for row in train])
    self.assertEqual(set(loaded.domain), set(range(7)))
    self.assertEqual((loaded.name, loaded.classes), ('crisismmd', len(release.CLASSES[task])))
    self.assertIsNone(loaded.client)

  def test_tables_as_the_release_unpacks_them(self):
    self.write(release.rows(), folder='crisismmd_datasplit_all')
    self.assertLen(self.load().y_test, 11)

  def test_home_directory(self):
    self.write(release.rows(), folder='mine')
    with absltest.mock.patch.dict(os.environ, HOME=self.folder):
      self.assertLen(self.load('~/mine').y_test, 11)

  @parameterized.parameters(
      'a "quote', "don't", 'a\rreturn', 'a\u2028line', 'ä€😀', '"all"', '', ' ends in space ')
  def test_any_text_without_tabs_is_a_tweet(self, text):
    tables = release.rows()
    tables['train'][1]['tweet_text'] = text
    self.write(tables)
    seen = []
    self.load(embed=lambda tweets, texts: seen.extend(texts) or release.vectors(tweets, texts))
    self.assertEqual(seen[1], text)
    self.assertEqual(seen[0], tables['train'][0]['tweet_text'])

  @parameterized.parameters(
      lambda content: content.replace(b'\n', b'\r\n'), lambda content: b'\xef\xbb\xbf' + content,
      lambda content: content[:-1], lambda content: re.sub(b'\tPositive', b'\t', content),
      # Without the column that nobody reads, the last one ends with the line.
      lambda content: re.sub(rb'\t\w*\n', b'\r\n', content))
  def test_line_ends_and_marks(self, change):
    self.write(release.rows())
    expected = self.load(labels='image')
    for split in release.SIZES:
      self.edit(split, change)
    got = self.load(labels='image')
    np.testing.assert_array_equal(got.y_test, expected.y_test)
    np.testing.assert_array_equal(got.x_train, expected.x_train)

  @parameterized.parameters('train', 'dev', 'test')
  def test_every_table_is_needed(self, split):
    self.write(release.rows())
    os.remove(release.path(self.folder, split))
    message = self.refuse('expected data_dir to be the folder of the release')
    self.assertStartsWith(message, f'got dataset=crisismmd; {self.folder} has no '
                          f'task_informative_text_img_{split}.tsv, nor has its '
                          'crisismmd_datasplit_all; ')

  @parameterized.parameters(
      (lambda c: c.replace(b'tweet_text\t', b'tweet\t').replace(b'label_image\t', b'image_l\t'),
       r'lacks the columns tweet_text, label_image; it has event_name, tweet_id, image_id, tweet,'),
      (lambda c: b'', r'lacks the columns event_name, tweet_id, tweet_text, image, label_text, '),
      (lambda c: c.replace(b'RT @a2:', b'RT @a2\t:'),
       r'line 4 of .* has 10 columns, expected 9'),
      (lambda c: c.replace(b'hurricane_irma\t', b'hurricane_ira\t', 1),
       "line 4 of .* has the event_name 'hurricane_ira', expected one of california_wildfires, "),
      (lambda c: c + b'\n', r'line 9 of .* has 1 columns, expected 9'),
      (lambda c: c.replace(b'\tinformative', b'\tdunno'),
       "line 2 of .* has the label_text 'dunno', expected one of informative, not_informative"),
      (lambda c: c.replace(b'\tinformative\tNeg', b'\tdunno\tNeg', 1),
       "line 5 of .* has the label_image 'dunno', expected one of informative, not_informative"),
      (lambda c: c.replace(b'@a3', b'\xff\xfe'), 'expected a readable table .*utf-8'))
  def test_damaged_tables(self, change, pattern):
    self.write(release.rows())
    path = self.edit('dev', change)
    message = self.refuse(pattern)
    self.assertIn(path, message)
    self.assertStartsWith(message, 'got dataset=crisismmd; ')

  @parameterized.parameters('agreed', 'text')
  def test_rows_for_training_and_for_test(self, labels):
    tables = release.rows(sizes={'train': 8, 'dev': 4, 'test': 4})
    if labels == 'agreed':  # All of them disagree.
      tables['test'] = tables['test'][3:]
    else:
      tables['test'] = []
    self.write(tables)
    rows = 9 if labels == 'agreed' else 12
    self.refuse(f'got crisismmd.labels={labels}; {self.folder} has {rows} .* and 0 for test',
                labels=labels)
    self.write({**release.rows(), 'train': [], 'dev': []})
    self.refuse('has 0 .* and 1. for test', labels=labels)


class ImagesTest(ReleaseTest):

  def setUp(self):
    super().setUp()
    self.tables = release.write(self.folder)

  def damage(self, split, row, content=b'no image'):
    name = self.tables[split][row]['image']
    with open(os.path.join(self.folder, name), 'wb') as file:
      file.write(content)
    return name

  @parameterized.parameters('text', 'image', 'both')
  def test_modalities(self, modalities):
    loaded = self.load(labels='text', embed=release.vectors if modalities != 'image' else None,
                       decode=self.decode if modalities != 'text' else None)
    tables = self.tables
    for rows, x in ((tables['train'] + tables['dev'], loaded.x_train),
                    (tables['test'], loaded.x_test)):
      if modalities == 'both':
        self.assertEqual(set(x), {'text', 'image'})
      text, image = (x[m] if modalities == 'both' else x for m in ('text', 'image'))
      if modalities != 'image':
        self.assertEqual((text.shape, text.dtype), ((len(rows), 2), np.float32))
        np.testing.assert_array_equal(
            text[:, 0], [int(row['tweet_id']) % 10_000 for row in rows])
      if modalities != 'text':
        self.assertEqual((image.shape, image.dtype), ((len(rows), 4, 4, 3), np.uint8))
        colors = np.array([release.color(row) for row in rows])
        np.testing.assert_allclose(image[:, 1, 2], colors, atol=4)

  @parameterized.parameters((release.vectors, 'both'), (None, 'image'))
  def test_without_images_there_is_only_text(self, embed, modalities):
    shutil.rmtree(os.path.join(self.folder, 'data_image'))
    message = self.refuse('got crisismmd.modalities', embed=embed, decode=self.decode)
    self.assertEqual(message, f'got crisismmd.modalities={modalities}; {self.folder} has no folder '
                     "data_image, expected the release's images there, or "
                     'crisismmd.modalities=text')
    self.assertLen(self.load().y_test, 11)

  def test_broken_images_are_named_and_counted(self):
    name = self.damage('dev', 1)
    self.damage('test', 2)
    os.remove(os.path.join(self.folder, self.tables['test'][4]['image']))
    message = self.refuse('cannot identify', labels='text', decode=self.decode)
    self.assertStartsWith(
        message, f"got dataset=crisismmd; 3 of 49 images can't be read, the first is {name} in "
        f'line 3 of {release.path(self.folder, "dev")}: cannot identify image file ')
    self.assertIn('crisismmd.broken=skip', message)
    self.assertLen(self.load(labels='text').y_test, 14)  # Whoever reads no image is not concerned.

  def test_rows_of_broken_images_are_skipped_if_that_is_asked_for(self):
    whole = self.load(labels='text', decode=self.decode)
    with open(os.path.join(self.folder, self.tables['train'][5]['image']), 'rb') as file:
      half = file.read()[:-60]
    for split, row in (('train', 5), ('dev', 1), ('test', 2), ('test', 3)):
      self.damage(split, row, half)
    with self.assertLogs('absl', 'WARNING') as logs:
      loaded = self.load(labels='text', decode=self.decode, broken='skip')
    [said] = logs.output
    self.assertIn(f"4 of 49 images can't be read, the first is {self.tables['train'][5]['image']} "
                  'in line 7 of ', said)
    train, test = np.delete(np.arange(35), [5, 29]), np.delete(np.arange(14), [2, 3])
    for part in ('text', 'image'):
      np.testing.assert_array_equal(loaded.x_train[part], whole.x_train[part][train])
      np.testing.assert_array_equal(loaded.x_test[part], whole.x_test[part][test])
    np.testing.assert_array_equal(loaded.y_train, whole.y_train[train])
    np.testing.assert_array_equal(loaded.y_test, whole.y_test[test])
    np.testing.assert_array_equal(loaded.domain, whole.domain[train])

  @parameterized.parameters((('test',), 35, 0), (('train', 'dev'), 0, 14), (release.SIZES, 0, 0))
  def test_some_images_of_both_parts_are_needed(self, splits, training, test):
    for split in splits:
      for row in range(len(self.tables[split])):
        self.damage(split, row)
    self.refuse(f'^got crisismmd.broken=skip; {self.folder} has {training} .* and {test} for test',
                labels='text', decode=self.decode, broken='skip')

  def test_skipping_says_nothing_where_all_is_sound(self):
    with self.assertNoLogs('absl', 'WARNING'):
      self.load(decode=self.decode, broken='skip')


if __name__ == '__main__':
  absltest.main()
