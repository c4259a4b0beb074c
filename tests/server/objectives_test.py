"""What the server's rows teach, by hand."""

from functools import cache

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
from reference import softmax_regression, toys

from hmm_jax import tree
from hmm_jax.client import losses
from hmm_jax.server import objectives
from hmm_jax.types import Batch, Examples

SERVER = toys.hybrid().server
X, Y = toys.central(toys.hybrid())


def linear(seed):
  """Returns a softmax regression with parameters of its own."""
  rng = np.random.default_rng(seed)
  head = {'kernel': rng.normal(size=(4, 3)), 'bias': rng.normal(size=3)}
  return {'params': {'head': jax.tree.map(jnp.float32, head)}}


def probabilities(variables):
  return softmax_regression.probabilities(toys.twin(variables), X)


@cache
def program(make):
  """Returns the compiled losses of all rows, and the gradient of their mean."""
  made = make(toys.linear())

  def rows(variables, examples, models):
    wanted = made.targets(models, examples)
    values, after = made.rows(
        variables, wanted.x, wanted.y, made.context(variables, wanted))
    return values.mean(), (values, after)

  return toys.jit(jax.value_and_grad(rows, has_aux=True))


def rows(make, variables, examples=SERVER.examples, models=()):
  return program(make)(variables, examples, models)[0][1]


def slope(make, variables, models=()):
  (value, _), gradient = program(make)(variables, SERVER.examples, models)
  return value, gradient


class RowsTest(parameterized.TestCase):

  def test_labels_are_compared_by_cross_entropy(self):
    values, after = rows(objectives.labels, linear(1))
    np.testing.assert_allclose(values, softmax_regression.losses(toys.twin(linear(1)), X, Y),
                               rtol=1e-4)
    toys.assert_close(after, linear(1), rtol=0, atol=0)

  def test_entropy_by_hand_and_without_labels(self):
    p = probabilities(linear(1))
    for examples in (SERVER.examples, SERVER.examples._replace(y=SERVER.examples.y * 0 + 999)):
      values, after = rows(objectives.entropy, linear(1), examples)
      np.testing.assert_allclose(values, -(p * np.log(p)).sum(axis=1), rtol=1e-4)
      toys.assert_close(after, linear(1), rtol=0, atol=0)

  def test_entropy_of_certain_and_of_even_predictions(self):
    head = {'kernel': jnp.zeros((4, 3)), 'bias': jnp.zeros(3)}
    even, _ = rows(objectives.entropy, {'params': {'head': head}})
    np.testing.assert_allclose(even, np.log(3), rtol=1e-6)
    head['bias'] = jnp.array([1e4, 0, -1e4])
    value, gradient = slope(objectives.entropy, {'params': {'head': head}})
    self.assertEqual(value, 0)
    self.assertTrue(tree.all_finite(gradient))

  def test_distillation_compares_with_the_softmax_of_the_mean_logits(self):
    models = [linear(seed) for seed in range(3)]
    unread = SERVER.examples._replace(y=SERVER.examples.y * 0 + 999)
    made = objectives.distill(toys.linear())
    mean = np.mean([softmax_regression.logits(toys.twin(model), X) for model in models], axis=0)
    q = np.exp(mean) / np.exp(mean).sum(axis=1, keepdims=True)
    wanted = toys.jit(made.targets)(tree.stack(models), unread)
    np.testing.assert_allclose(wanted.y, q, rtol=1e-4)
    np.testing.assert_array_equal(wanted.x, SERVER.examples.x)
    # The mean of the probabilities would be another teacher.
    self.assertGreater(np.abs(q - np.mean([probabilities(m) for m in models], axis=0)).max(), 0.05)
    values, _ = rows(objectives.distill, linear(9), unread, tree.stack(models))
    p = probabilities(linear(9))
    np.testing.assert_allclose(values, (q * np.log(q / p)).sum(axis=1), rtol=1e-4)

  def test_distillation_is_zero_at_the_teacher_and_nowhere_lower(self):
    models = [linear(seed) for seed in range(3)]
    # Logits are linear in the parameters: the mean model has the mean logits.
    teacher = tree.mix(np.full(3, 1 / 3, np.float32), tree.stack(models))
    value, gradient = slope(objectives.distill, teacher, tree.stack(models))
    np.testing.assert_allclose(value, 0, atol=1e-6)
    toys.assert_close(gradient, tree.zeros(gradient), atol=1e-6)
    values, _ = rows(objectives.distill, linear(9), models=tree.stack(models))
    self.assertGreater(float(values.min()), 0)

  @parameterized.parameters(objectives.labels, objectives.entropy)
  def test_clients_models_teach_nothing_else(self, make):
    made = make(toys.linear())
    self.assertIs(made.targets(None, SERVER.examples), SERVER.examples)
    self.assertEqual(made.context(None, SERVER.examples), ())


@cache
def fresh_head(classes):
  return objectives.fresh_head(toys.perceptron(), classes)


@cache
def fitted(classes):
  return toys.jit(fresh_head(classes).context)


class FreshHeadTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.variables = toys.start(toys.perceptron)
    self.hidden = np.asarray(toys.perceptron().features(
        self.variables, SERVER.examples.x), np.float64)

  def fit(self, classes, labels=None, variables=None):
    made = fresh_head(classes)
    examples = SERVER.examples._replace(
        y=SERVER.examples.y if labels is None else jnp.asarray(labels, jnp.int32))
    return made, examples, fitted(classes)(variables or self.variables, examples)

  def test_is_the_ridge_solution(self):
    classes = 7
    labels = np.random.default_rng(0).permutation(np.arange(len(Y)) % classes)
    _, _, head = self.fit(classes, labels)
    self.assertEqual(head['kernel'].shape, (5, classes))
    head = jax.tree.map(np.float64, head)
    before, after = (softmax_regression.gradient(at, self.hidden, labels)
                     for at in (jax.tree.map(np.zeros_like, head), head))
    self.assertLess(np.abs(after['kernel'] + 1e-3 * head['kernel']).max(),
                    0.01 * np.abs(before['kernel']).max())
    self.assertLess(np.abs(after['bias']).max(), 1e-3)
    self.assertGreater(np.abs(1e-3 * head['kernel']).max(), 0.01 * np.abs(before['kernel']).max())

  def test_separable_labels_have_a_finite_head(self):
    variables = self.variables | {'params': self.variables['params'] | {
        'trunk': {'Dense_0': {'kernel': jnp.eye(4, 5), 'bias': jnp.zeros(5)}}}}
    # As many rows as the server holds, so that this is the program of the tests above.
    which = np.arange(13) % 4
    examples = Examples(jnp.eye(4)[which], jnp.asarray(which, jnp.int32))
    head = fitted(7)(variables, examples)
    self.assertTrue(tree.all_finite(head))
    head = jax.tree.map(np.float64, head)
    slope = softmax_regression.gradient(head, np.eye(4, 5)[which], which)
    np.testing.assert_allclose(slope['kernel'] + 1e-3 * head['kernel'], 0, atol=2e-4)

  def test_the_networks_own_head_does_not_matter(self):
    other = self.variables | {'params': self.variables['params'] | {
        'head': {'kernel': jnp.full((5, 3), jnp.nan), 'bias': jnp.full(3, jnp.nan)}}}
    toys.assert_close(self.fit(7)[2], self.fit(7, variables=other)[2], rtol=0, atol=0)
    made, examples, head = self.fit(7)
    for variables in (self.variables, other):
      values, after = made.rows(variables, *examples, head)
      wanted = softmax_regression.losses(jax.tree.map(np.float64, head), self.hidden, Y)
      np.testing.assert_allclose(values, wanted, rtol=1e-4)
      toys.assert_close(after, variables, rtol=0, atol=0)

  def test_rows_teach_the_trunk_only(self):
    made, examples, head = self.fit(7)
    gradient = toys.jit(jax.grad(lambda v: made.rows(v, *examples, head)[0].mean()))(
        self.variables)
    self.assertFalse(np.any(gradient['params']['head']['kernel']))
    self.assertGreater(np.abs(gradient['params']['trunk']['Dense_0']['kernel']).max(), 1e-3)


class TrainingLossTest(parameterized.TestCase):

  def batch(self, mask, y=SERVER.examples.y):
    return Batch(SERVER.examples.x, y, jnp.asarray(mask))

  def test_of_labels_is_the_cross_entropy_of_clients(self):
    variables = toys.start(toys.norm)
    statistics = {name: value for name, value in variables.items() if name != 'params'}
    batch = self.batch(np.arange(len(Y)) < 6)
    given = variables['params'], statistics, batch, None, (), toys.key(0)
    got, wanted = toys.jit(lambda *given: [loss(*given) for loss in (
        objectives.training_loss(objectives.labels(toys.norm())),
        losses.supervised(toys.norm()))])(*given)
    toys.assert_close(got, wanted)

  @parameterized.named_parameters(*((name, name) for name in (
      'labels', 'entropy', 'distill', 'head')))
  def test_passes_the_mask_the_statistics_and_the_key(self, name):
    variables, seen = toys.start(toys.norm), []

    def watched(method):
      def watching(variables, x, **mode):
        seen.append(mode)
        return method(variables, x, **mode)
      return watching

    net = toys.norm()._replace(apply=watched(toys.norm().apply),
                               features=watched(toys.norm().features))
    made = {'labels': objectives.labels, 'entropy': objectives.entropy,
            'distill': objectives.distill,
            'head': lambda net: objectives.fresh_head(net, 3)}[name](net)
    y = jnp.full((len(Y), 3), 1 / 3) if name == 'distill' else SERVER.examples.y
    context = {'kernel': jnp.ones((4, 3)) * jnp.arange(3.0)[None], 'bias': jnp.zeros(3)}
    mask = jnp.asarray(np.arange(len(Y)) % 2 == 0)
    norm = variables['batch_stats']['trunk']['BatchNorm_0']
    statistics = {'batch_stats': {'trunk': {'BatchNorm_0': {**norm, 'mean': norm['mean'] + 5}}}}
    batch = Batch(SERVER.examples.x.at[1].set(1e3), y,
                  mask)
    loss = objectives.training_loss(made)
    (value, (after, report)), given = toys.jit(lambda batch, key: (
        loss(variables['params'], statistics, batch, None, context, key),
        [seen[0][name] for name in ('mask', 'key')]))(batch, toys.key(3))
    self.assertLen(seen, 1)
    self.assertIs(seen[0]['train'], True)
    np.testing.assert_array_equal(given[0], mask)
    self.assertEqual(given[1], toys.key(3))
    self.assertEqual(value, report)
    own = np.asarray(X)[np.asarray(mask)]
    toys.assert_close(after['params'], variables['params'], rtol=0, atol=0)
    if name == 'head':  # Features alone say nothing of the statistics' new values.
      return
    toys.assert_close(after['batch_stats']['trunk']['BatchNorm_0']['mean'],
                      0.9 * 5 + 0.1 * own.mean(axis=0))
    normal = (own - own.mean(axis=0)) / np.sqrt(own.var(axis=0) + 1e-5)
    params = toys.twin(variables)
    p = softmax_regression.probabilities(params, normal)
    wanted = {'labels': lambda: -np.log(p[np.arange(len(own)), Y[np.asarray(mask)]]),
              'entropy': lambda: -(p * np.log(p)).sum(axis=1),
              'distill': lambda: -np.log(3 * p).mean(axis=1)}[name]()
    np.testing.assert_allclose(value, wanted.mean(), rtol=1e-4)


if __name__ == '__main__':
  absltest.main()
