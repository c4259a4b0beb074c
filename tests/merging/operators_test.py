"""The laws of all merge operators, over their table."""

from functools import cache

from absl.testing import absltest, parameterized
from hmm_jax.merging.operators import NEEDS, OPERATORS, REQUIRED
import jax
import jax.numpy as jnp
import numpy as np
import optax
from reference import soups as reference
from reference import toys

from hmm_jax import tree
from hmm_jax.merging import task_vectors
from hmm_jax.merging.soups import entropy
from hmm_jax.types import InputError

KEY = toys.key(0)
ROWS = jnp.array([[0, 4, 9, 11], [3, 20, 30, 5], [7, 8, 1, 17]])
EXAMPLES = toys.federation().examples

# Searches are short here, but learn something.
SETTINGS = {'learned_soup': dict(epochs=2), 'adamerging': dict(lr=0.02, steps=6)}

# Nothing is left out of a task vector, and of one model comes so much of it.
EVERYTHING = {'ties': dict(density=1.0), 'dare': dict(density=1.0), 'dare_ties': dict(density=1.0),
              'breadcrumbs': dict(smallest=0.0, largest=0.0),
              'adamerging': dict(lr=1e-9, initial=0.5)}
ALONE = {'task_arithmetic': 0.3, 'dare': 0.3, 'breadcrumbs': 0.3, 'adamerging': 0.5}

# What is kept by chance hangs on a model's place.
BY_CHANCE = ('dare', 'dare_ties')


def start(network=toys.linear):
  """Returns softmax regression, or that on normalized inputs, everything drawn."""
  noise = lambda x: np.random.default_rng(x.size).uniform(0.5, 1.5, x.shape).astype(np.float32)
  return jax.tree.map(lambda x: x + noise(x), toys.start(network))


def models(count, network=toys.linear):
  """Returns models that went different ways from the start."""
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda x: jnp.asarray(
      x[None] + rng.uniform(-0.4, 0.4, (count, *x.shape)), jnp.float32), start(network))


def needs(*names):
  return [name for name, operator in OPERATORS.items() if {*names} <= {*operator.needs}]


def make(name, count):
  settings = SETTINGS.get(name, {}) | (EVERYTHING.get(name, {}) if count == 1 else {})
  if name == 'weighted':
    settings = {'weights': [1 / count] * count}
  return OPERATORS[name].make(**settings)


def merge_all(stacked, base, key, examples, names=tuple(OPERATORS)):
  """Merges models by operators, {name: params}, and the first two of them where it takes two."""
  merged = {}
  for name in names:
    some = jax.tree.map(lambda x: x[:2], stacked) if name in needs('two models') else stacked
    operator = make(name, len(jax.tree.leaves(some)[0]))
    start = base if name in needs('base') else None
    if name in needs('network'):
      merged[name] = operator(toys.linear(), some, start, examples, ROWS, key)
    else:
      merged[name] = operator(some['params'], start and start['params'], key)
  return merged


compiled = toys.jit(merge_all, static_argnums=4)


@cache
def merged():
  return compiled(models(3), start(), KEY, EXAMPLES)


def each(function, names=OPERATORS):
  return {name: function(name) for name in sorted(names)}


class LawsTest(parameterized.TestCase):
  """A law's complaint names the operator."""

  def test_copies_of_the_start_give_the_start(self):
    got = compiled(tree.repeat(start(), 3), start(), KEY, EXAMPLES)
    toys.assert_close(got, each(lambda _: start()['params']), rtol=1e-6, atol=1e-6)

  def test_the_models_order_does_not_matter(self):
    turned = compiled(tree.take(models(3), jnp.array([1, 0, 2])), start(), KEY, EXAMPLES)
    certain = {*OPERATORS} - {*BY_CHANCE}
    toys.assert_close(each(turned.get, certain), each(merged().get, certain), rtol=1e-4, atol=1e-4)
    for name, params in merged().items():
      with self.subTest(name):
        toys.assert_far(params, start()['params'], least=1e-2)

  def test_compiled_or_not(self):
    # Those that need a network run uncompiled in their own tests.
    names = tuple({*OPERATORS} - {*needs('network')})
    got = merge_all(models(3), start(), KEY, EXAMPLES, names)
    toys.assert_close(got, each(merged().get, names), rtol=1e-4, atol=1e-5)

  def test_of_one_model(self):
    names = tuple(name for name in OPERATORS if name not in needs('two models'))
    got = compiled(models(1), start(), KEY, EXAMPLES, names)
    alone = tree.take(models(1), 0)['params']
    part = lambda share: jax.tree.map(
        lambda x, y: (1 - share) * x + share * y, start()['params'], alone)
    toys.assert_close(got, each(lambda name: part(ALONE.get(name, 1)), names), rtol=1e-5, atol=1e-5)

  def test_narrow_leaves_are_computed_in_float32_and_come_back_narrow(self):
    narrow = lambda variables: jax.tree.map_with_path(lambda path, x: np.asarray(x).astype(
        jnp.bfloat16 if path[-1].key == 'kernel' else jnp.float16), variables)
    wide = lambda variables: jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), variables)
    # So far from the start that a difference has more digits than a narrow number.
    stacked, base = narrow(tree.scale(-2.7, models(3))), narrow(start())
    plain = tuple({*OPERATORS} - {*needs('network')})
    got = compiled(stacked, base, KEY, EXAMPLES, plain)
    wanted = narrow(each(compiled(wide(stacked), wide(base), KEY, EXAMPLES).get, plain))
    self.assertEqual(jax.tree.map(lambda x: x.dtype, got), jax.tree.map(lambda x: x.dtype, wanted))
    toys.assert_close(got, wanted, rtol=0, atol=0)

  def test_labels_are_read_where_they_are_needed(self):
    unlabeled = EXAMPLES._replace(y=0 * EXAMPLES.y)
    other = compiled(models(3), start(), KEY, unlabeled)
    for name in OPERATORS:
      with self.subTest(name):
        compare = toys.assert_far if name in needs('labels') else toys.assert_close
        compare(other[name], merged()[name])

  def test_what_is_kept_by_chance_hangs_on_the_key(self):
    other = compiled(models(3), start(), toys.key(1), EXAMPLES)
    for name in BY_CHANCE:
      toys.assert_far(other[name], merged()[name])


class TableTest(parameterized.TestCase):

  @parameterized.parameters(*OPERATORS)
  def test_needs_are_of_the_list_and_one_says_how_models_start(self, name):
    needs = OPERATORS[name].needs
    self.assertContainsSubset(needs, NEEDS)
    self.assertLen({'any start', 'shared start', 'base'} & {*needs}, 1)
    # Labels are of data, and data are for a network.
    self.assertLessEqual('labels' in needs, 'data' in needs)
    self.assertLessEqual('data' in needs, 'network' in needs)

  @parameterized.parameters(*OPERATORS)
  def test_the_settings_are_those_that_make_it(self, name):
    operator = OPERATORS[name]
    required = [key for key, value in operator.settings.items() if value is REQUIRED]
    self.assertEqual(required, ['weights'] if name == 'weighted' else [])
    values = {key: [1] if value is REQUIRED else value for key, value in operator.settings.items()}
    self.assertTrue(callable(operator.make(**values)))
    with self.assertRaises(TypeError):
      operator.make(**values, other=1)

  def test_defaults_are_the_papers(self):
    defaults = {name: operator.settings for name, operator in OPERATORS.items()}
    self.assertEqual(defaults['ties'],
                     {'density': 0.2, 'scope': 'model', 'scale': 1.0, 'weights': None})
    self.assertEqual(defaults['learned_soup'], {'by': 'model', 'lr': 0.05, 'epochs': 5})
    self.assertEqual(defaults['adamerging'],
                     {'by': 'layer', 'initial': 0.3, 'lr': 1e-3, 'steps': 500})
    self.assertEqual(defaults['regmean'], {'factor': 0.9})
    self.assertEqual(defaults['fisher']['floor'], 1e-6)
    self.assertEqual((defaults['cat']['directions'], defaults['cat']['scale']), (3, 1.0))

  def test_summaries_are_lines(self):
    summaries = [operator.summary for operator in OPERATORS.values()]
    self.assertLen({*summaries}, len(OPERATORS))
    self.assertLess(max(map(len, summaries)), 80)


class RecipesTest(parameterized.TestCase):
  """Soups of networks with BatchNorm, by their predictions on batches that normalize themselves."""

  def setUp(self):
    super().setUp()
    variables = start(toys.norm)
    self.predict = toys.jit(lambda params: jnp.concatenate([toys.norm().apply(
        {**variables, 'params': params}, EXAMPLES.x[rows], train=True)[0] for rows in ROWS]))
    self.stacked, self.labels = models(3, toys.norm), EXAMPLES.y[ROWS.ravel()]

  def runner(self, name, **settings):
    run = toys.jit(OPERATORS[name].make(**settings), static_argnums=0)
    return lambda stacked, rows=ROWS: run(
        toys.norm(), stacked, start(toys.norm), EXAMPLES, rows, KEY)

  def test_the_greedy_soup_counts_hits(self):
    hits = lambda params: (self.predict(params).argmax(axis=-1) == self.labels).mean()
    leaves, structure = jax.tree.flatten(self.stacked['params'])
    flat = [{i: np.asarray(x[k]) for i, x in enumerate(leaves)} for k in range(3)]
    members = reference.greedy(
        flat, lambda model: hits(jax.tree.unflatten(structure, [*model.values()])))
    row = np.isin(np.arange(3), members) / np.float32(len(members))
    got = self.runner('greedy_soup')(self.stacked)
    toys.assert_close(got, tree.mix(row, self.stacked['params']))

  def test_a_learned_soup_predicts_the_labels_better(self):
    loss = lambda params: optax.softmax_cross_entropy_with_integer_labels(
        self.predict(params), self.labels).mean()
    learn = self.runner('learned_soup', by='tensor', epochs=9)
    mean = tree.mix(np.full(3, 1 / 3, np.float32), self.stacked['params'])
    # Of rows of several models all are seen in an epoch.
    self.assertLess(loss(learn(self.stacked, ROWS[None])), loss(mean) - 0.2)

  def test_adamerging_predicts_more_surely(self):
    unsure = lambda params: entropy(self.predict(params)).mean()
    learn = self.runner('adamerging', lr=0.02, steps=30)
    first = task_vectors.task_arithmetic()(
        self.stacked['params'], start(toys.norm)['params'], KEY)
    got = learn(self.stacked)
    self.assertLess(unsure(got), unsure(first) - 0.07)
    # What running statistics there are is not read.
    other = {**self.stacked, 'batch_stats': tree.scale(9.0, self.stacked['batch_stats'])}
    toys.assert_close(learn(other), got, rtol=0, atol=0)

  @parameterized.parameters(
      ('learned_soup', dict(by='row'), 'got by=row; expected one of model, layer, tensor'),
      ('adamerging', dict(by='row'), 'got by=row'),
      ('learned_soup', dict(lr=0), 'got lr=0; expected a finite number above 0'),
      ('adamerging', dict(lr=float('nan')), 'got lr=nan'),
      ('learned_soup', dict(epochs=0), 'got epochs=0; expected at least 1'),
      ('adamerging', dict(steps=0), 'got steps=0; expected at least 1'),
      ('adamerging', dict(initial=1.5), 'got initial=1.5; expected from 0 to 1'))
  def test_settings_that_cannot_be(self, name, settings, message):
    with self.assertRaisesRegex(InputError, message):
      OPERATORS[name].make(**settings)


if __name__ == '__main__':
  absltest.main()
