"""Tasks: what networks learn, each with its record at the end of its file.

This is the registry: a task is built in if its file is listed here.
"""

from hmm_jax.registry import TaskKind, records

FILES = (
    'classification',
    'multilabel',
    'regression',
    'next_token',
)

TASKS = records(__name__, FILES, TaskKind)
