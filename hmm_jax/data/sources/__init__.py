"""Data sources, each with its record at the end of its file.

This is the registry: a source is built in if its file is listed here.
"""

from hmm_jax.registry import Source, records

FILES = (
    'builtin',
    'npz',
    'csv',
    'images',
    'leaf',
    'hf',
    'given',
    'text',
    'tfds',
    'crisismmd',
)

SOURCES = records(__name__, FILES, Source)
