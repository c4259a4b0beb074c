"""Merge operators: one operator, one file, each with its record at the end.

This is the registry: an operator is built in when its file is named here.
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
