"""Every merge operator by its name: what it needs, its settings, and how it is made.

`make` takes an operator's settings and returns the merge, a pure function that jit takes:

  (stacked, base, key) -> params                                if it needs no network;
  (model, stacked, base, examples, rows, key) -> params         if it does.

The former takes parameters: any tree of [K, ...], and one of [...]. The latter takes variables,
for their running statistics normalise where a model runs by itself, and returns parameters all
the same: the merged model's statistics are to be estimated anew (calibrate.py). `rows`, as the
examples on the device, are [S, B] batches of them, or [K, S, B], each model's own. A base that is
not needed may be None.
"""

from collections.abc import Callable, Mapping
import inspect
from typing import Any, NamedTuple

from hmm_jax.merging import aligned, average, conflict, fisher, recipes, regmean, task_vectors

NEEDS = {
    'any start': 'nothing: units are brought into one order',
    'shared start': 'models trained from one start, or aligned before',
    'base': 'the parameters that they started from',
    'two models': 'no more and no fewer',
    'network': 'the network that the parameters are of',
    'data': 'inputs to run it on',
    'labels': 'and their labels',
}

REQUIRED = inspect.Parameter.empty


class Operator(NamedTuple):
  """A row of the table."""

  make: Callable
  needs: tuple[str, ...]  # of `NEEDS`
  summary: str

  @property
  def settings(self) -> Mapping[str, Any]:
    """Names the settings and their defaults, `REQUIRED` for one without."""
    parameters = inspect.signature(self.make).parameters
    return {name: parameter.default for name, parameter in parameters.items()}


OPERATORS = {
    'uniform': Operator(
        average.uniform, ('shared start',), 'the mean of the models'),
    'weighted': Operator(
        average.weighted, ('shared start',), 'a mean by weights that sum to 1'),
    'slerp': Operator(
        average.slerp, ('shared start', 'two models'), 'an arc between two models, by tensor'),
    'task_arithmetic': Operator(
        task_vectors.task_arithmetic, ('base',), 'the start and a scaled sum of task vectors'),
    'ties': Operator(
        task_vectors.ties, ('base',), 'the largest entries of task vectors that agree in sign'),
    'dare': Operator(
        task_vectors.dare, ('base',), 'task arithmetic with random entries, rescaled'),
    'dare_ties': Operator(
        task_vectors.dare_ties, ('base',), 'random entries, rescaled, that agree in sign'),
    'breadcrumbs': Operator(
        task_vectors.breadcrumbs, ('base',),
        'task arithmetic without the smallest and the largest entries'),
    'model_stock': Operator(
        average.model_stock, ('base',), 'the mean, nearer to the start where models disagree'),
    'greedy_soup': Operator(
        recipes.greedy_soup, ('shared start', 'network', 'data', 'labels'),
        'the mean of the models that raise held-out accuracy, the best first'),
    'learned_soup': Operator(
        recipes.learned_soup, ('shared start', 'network', 'data', 'labels'),
        'a mean by weights learnt on held-out data'),
    'adamerging': Operator(
        recipes.adamerging, ('base', 'network', 'data'),
        "task arithmetic by each layer's own factors, learnt for confident predictions"),
    'fisher': Operator(
        fisher.fisher, ('shared start', 'network', 'data', 'labels'),
        'a mean of each parameter by its Fisher information'),
    'regmean': Operator(
        regmean.regmean, ('shared start', 'network', 'data'),
        "linear layers that fit every model's outputs on its own inputs"),
    'cat': Operator(
        conflict.cat, ('base', 'network', 'data'),
        "task vectors less what would disturb the other tasks' features"),
    'weight_matching': Operator(
        aligned.weight_matching, ('any start', 'network'),
        'the mean of models whose units were matched by their weights'),
    'activation_matching': Operator(
        aligned.activation_matching, ('any start', 'network', 'data'),
        'the mean of models whose units were matched by what they answer'),
    'pleas': Operator(
        aligned.pleas, ('any start', 'network', 'data'),
        'matched models, merged by least squares on what their layers compute'),
}
