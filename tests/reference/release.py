"""A made-up release of CrisisMMD in the layout of the real one: tables and image files."""

import os

import numpy as np
from PIL import Image

EVENTS = ('california_wildfires', 'hurricane_harvey', 'hurricane_irma', 'hurricane_maria',
          'iraq_iran_earthquake', 'mexico_earthquake', 'srilanka_floods')
CLASSES = {
    'informative': ('informative', 'not_informative'),
    'humanitarian': (
        'affected_individuals', 'infrastructure_and_utility_damage', 'injured_or_dead_people',
        'missing_or_found_people', 'not_humanitarian', 'other_relevant_information',
        'rescue_volunteering_or_donation_effort', 'vehicle_damage')}
COLUMNS = ('event_name', 'tweet_id', 'image_id', 'tweet_text', 'image', 'label', 'label_text',
           'label_image', 'label_text_image')
SIZES = {'train': 28, 'dev': 7, 'test': 14}
WORDS = ('flood', 'storm', 'help', 'house', 'sunny', 'concert', 'rescue', 'car')


def rows(task: str = 'informative', sizes: dict[str, int] = SIZES) -> dict[str, list[dict]]:
  """Returns the rows of each table; text and image disagree on every fourth."""
  names, tables = CLASSES[task], {}
  for s, (split, size) in enumerate(sizes.items()):
    tables[split] = []
    for i in range(size):
      # The first two rows of a table are one tweet with two images.
      tweet, event = 917791044158000000 + 1000 * s + max(i, 1), EVENTS[i % 7]
      image = f'{tweet}_{int(i == 0)}'
      text, seen = names[i % len(names)], names[(i + (i % 4 == 3)) % len(names)]
      tables[split].append(dict(zip(COLUMNS, (
          event, str(tweet), image,
          f'RT @a{i}: "{WORDS[i % len(names)]} in {split} &amp; more https://t.co/{tweet}',
          f'data_image/{event}/10_10_2017/{image}.{"png" if i % 5 == 0 else "jpg"}',
          seen, text, seen, 'Positive' if text == seen else 'Negative'))))
  return tables


def write_tables(folder: str, tables: dict[str, list[dict]], task: str = 'informative') -> None:
  os.makedirs(folder, exist_ok=True)
  for split, entries in tables.items():
    with open(path(folder, split, task), 'w', newline='') as file:
      for entry in (dict(zip(COLUMNS, COLUMNS)), *entries):
        file.write('\t'.join(entry.values()) + '\n')


def path(folder: str, split: str, task: str = 'informative') -> str:
  return os.path.join(folder, f'task_{task}_text_img_{split}.tsv')


def write_images(folder: str, tables: dict[str, list[dict]]) -> None:
  """Writes images 24 wide and 16 high, each of a color of its own."""
  for row in (row for entries in tables.values() for row in entries):
    file = os.path.join(folder, row['image'])
    os.makedirs(os.path.dirname(file), exist_ok=True)
    Image.new('RGB', (24, 16), color(row)).save(file)


def color(row: dict) -> tuple[int, int, int]:
  red, green = divmod(int(row['tweet_id']) % 10_000, 1000)
  return 100 * red, 8 * green, 200 * int(row['image_id'][-1])


def write(folder: str, task: str = 'informative', sizes: dict[str, int] = SIZES):
  """Writes a release; returns its rows."""
  tables = rows(task, sizes)
  write_tables(folder, tables, task)
  write_images(folder, tables)
  return tables


def vectors(tweets, texts) -> np.ndarray:
  """Stands in for an encoder: the tweet's number and the text's length."""
  return np.array([(int(t) % 10_000, len(text)) for t, text in zip(tweets, texts)], np.float32)
