"""Merge operators: one file per operator, each with its record at the end.

This is the registry: an operator is built in if its file is listed here.
"""

from hmm_jax.registry import Operator, records

FILES = (
    'average',
    'slerp',
    'task_arithmetic',
    'ties',
    'dare',
    'breadcrumbs',
    'model_stock',
    'soups',
    'adamerging',
    'fisher',
    'regmean',
    'cat',
    'alignment.weight_matching',
    'alignment.activation_matching',
    'pleas',
)

OPERATORS = records(__name__, FILES, Operator)
