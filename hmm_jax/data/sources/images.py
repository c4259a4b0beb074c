"""Folders of pictures: a folder for each class, and a folder of these for each client."""

from functools import partial
import os

import numpy as np

from hmm_jax.data import columns, images
from hmm_jax.registry import Setting, Source
from hmm_jax.types import Dataset, InputError

_ENDINGS = ('.png', '.jpg', '.jpeg')


def load(path: str, settings) -> Dataset:
  """Loads pictures by the folders they lie in.

  FOLDER/CLASS/*.png, or FOLDER/train/CLASS/*.png, with FOLDER/test/CLASS/*.png and
  FOLDER/validation/CLASS/*.png if they are there; with client_folders a folder for each client,
  above those of the classes. Validation examples are trained on, as each run holds out its own.
  Only if all pictures are gray they have one channel, else three. Other files are left out.

  Args:
    path: of the folder.
    settings: of the source.

  Returns:
    A Dataset of uint8 images [D, H, W, 1 or 3], with y as names of classes.

  Raises:
    InputError: there are no such folders, a picture can't be read, or they have several sizes.
  """
  refusal, folder = partial(_error, path), os.path.expanduser(path)
  size = images.size(settings.size, 'images.size')
  if not os.path.isdir(folder):
    raise refusal('expected a folder' + (', it is a file' if os.path.exists(folder) else ''))
  splits = [[picture for place in places for picture in _found(
      place, settings.client_folders, refusal)] for places in _splits(folder)]
  x = images.stack([path for path, *_ in (*splits[0], *splits[1])], size, 'images.size', refusal)
  count = len(splits[0])
  y_train, y_test = (np.array([name for _, name, _ in split], str) for split in splits)
  client, owners = None, ()
  if settings.client_folders:
    client, owners = columns.numbered_owners(np.array([owner for *_, owner in splits[0]]))
  return Dataset(f'images:{path}', x[:count], y_train, x[count:], y_test, 0, client, owners=owners)


def _error(path, text) -> InputError:
  return InputError(f'got dataset=images:{path}; {text}')


def _splits(folder) -> tuple[list[str], list[str]]:
  """Returns the folders to train on, and those to test on: none if there are only classes."""
  names = {name: columns.SPLITS.get(name.lower(), '') for name in _folders(folder)}
  if 'train' not in map(str.lower, names) or not all(names.values()):
    return [folder], []
  of = lambda wanted: [os.path.join(folder, name) for name, split in names.items()
                       if split == wanted]
  return of('train'), of('test')


def _found(folder, client_folders, refusal) -> list[tuple[str, str, str]]:
  """Returns (path, class, client) of each picture, in the order of their names."""
  found = []
  for owner in _folders(folder) if client_folders else ['']:
    for name in _folders(os.path.join(folder, owner)):
      own = os.path.join(folder, owner, name)
      pictures = [os.path.join(own, file) for file in sorted(os.listdir(own)) if _is_picture(file)]
      if not pictures and (others := [file for file in os.listdir(own) if file[0] != '.']):
        raise refusal(f'{own} has {min(others)!r} and no picture ({", ".join(_ENDINGS)}); expected '
                      + _wanted(client_folders))
      found += [(path, name, owner) for path in pictures]
  if not found:
    raise refusal(f'expected {_wanted(client_folders)}, there is none in {folder}')
  return found


def _is_picture(file) -> bool:
  return file.lower().endswith(_ENDINGS) and not file.startswith('.')


def _wanted(client_folders) -> str:
  return ('pictures in CLIENT/CLASS, as images.client_folders=True says' if client_folders else
          'pictures in CLASS, or in CLIENT/CLASS with images.client_folders=True')


def _folders(folder) -> list[str]:
  return sorted(entry.name for entry in os.scandir(folder)
                if entry.is_dir() and not entry.name.startswith('.'))


SOURCE = Source(
    'images', lambda path, settings, data_dir: load(path, settings),
    {'size': Setting('', "pixels that pictures are resized to, such as 32 or 32x48 (height x "
                     "width); '': all have one size"),
     'client_folders': Setting(False, 'whether there is a folder for each client, with folders of '
                               'classes in it')},
    path=True,
    summary='a folder of PNG or JPEG pictures: CLASS/*, or CLIENT/CLASS/*; train and test above')
