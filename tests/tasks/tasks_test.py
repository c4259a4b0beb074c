"""Losses and metrics of every task equal scikit-learn's on the same predictions."""

import os
import pathlib
import tempfile

from absl.testing import absltest, parameterized
import jax
import numpy as np
from scipy import special
from sklearn import metrics as oracle

from hmm_jax.tasks import TASKS, classification, groups, metrics, multilabel, next_token, regression
from hmm_jax.types import Dataset, InputError

RNG = np.random.default_rng(3)
COUNT = 60
CLASSES = RNG.integers(4, size=COUNT)
LOGITS = RNG.standard_normal((COUNT, 4)).astype(np.float32)
LABELS = RNG.integers(2, size=(COUNT, 4)).astype(np.uint8)
VALUES = (RNG.standard_normal((COUNT, 2)) * [3, 200] + [1, -50]).astype(np.float32)
MEAN, STD = VALUES.mean(axis=0), VALUES.std(axis=0)
TOKENS = RNG.integers(4, size=(COUNT, 7))
SEQUENCES = RNG.standard_normal((COUNT, 7, 4)).astype(np.float32)


def measured(task, outputs, y):
  """Returns a task's metrics on all examples, by means of scores as in an evaluation."""
  means = {name: np.asarray(x).mean(axis=0) for name, x in task.scores(outputs, y).items()}
  return task.metrics(means)


def data(y, x=None, *, classes=0, names=(), test=0):
  x = np.zeros((len(y), 3), np.float32) if x is None else x
  return Dataset('set', x, y, x[:test], y[:test], classes, names=names)


class ClassificationTest(parameterized.TestCase):

  def test_loss_and_accuracy(self):
    task = classification.CLASSIFICATION
    self.assertAlmostEqual(float(task.loss(LOGITS, CLASSES).mean()), oracle.log_loss(
        CLASSES, special.softmax(LOGITS.astype(np.float64), axis=1)), places=5)
    self.assertAlmostEqual(measured(task, LOGITS, CLASSES)['accuracy'],
                           oracle.accuracy_score(CLASSES, LOGITS.argmax(1)), places=6)

  def test_entropy(self):
    p = np.array([[0.5, 0.25, 0.25], [1 / 3] * 3, [0.98, 0.01, 0.01]])
    np.testing.assert_allclose(classification.entropy(np.float32(np.log(p) + 7)),
                               -(p * np.log(p)).sum(axis=1), rtol=1e-5)
    self.assertEqual(classification.entropy(np.float32([[500, 0, 0]]))[0], 0)

  def test_mix_is_of_probabilities(self):
    weights = np.float32([0.3, 0.7])
    p = special.softmax(np.stack([LOGITS, 2 * LOGITS[::-1]]), axis=-1)
    mixed = classification.mix(np.stack([LOGITS, 2 * LOGITS[::-1]]), weights)
    np.testing.assert_allclose(special.softmax(mixed, axis=-1), np.tensordot(weights, p, 1),
                               rtol=1e-5)

  def test_labels_of_files_are_numbered(self):
    for y, names in ((np.array(['b', 'a', 'b']), ('a', 'b')), (np.array([7, 3, 7]), ('3', '7')),
                     (np.array([[1], [0], [1]]), ()), (np.array([True, False, True]), ())):
      made = classification.prepare(data(y))
      self.assertEqual((made.y_train.tolist(), made.classes, made.names), ([1, 0, 1], 2, names))

  @parameterized.parameters(
      (np.array([0.5, 1.0]), r'whose labels are float64 \(2,\); expected integers or strings'),
      (np.array([1.0, 2.0]), 'task=regression learns other numbers'),
      (np.zeros((2, 3)), r'labels are float64 \(2, 3\)'),
      (np.array([-1, 1]), 'labels from -1 to 1; expected classes from 0'))
  def test_refuses(self, y, said):
    with self.assertRaisesRegex(InputError, said):
      classification.prepare(data(y))


class MultilabelTest(parameterized.TestCase):

  def test_loss_and_metrics(self):
    task, p = multilabel.MULTILABEL, special.expit(LOGITS.astype(np.float64))
    wanted = [oracle.log_loss(LABELS[:, c], p[:, c]) for c in range(4)]
    self.assertAlmostEqual(float(task.loss(LOGITS, LABELS).mean()), np.mean(wanted), places=5)
    got = measured(task, LOGITS, LABELS)
    said = LOGITS > 0
    self.assertAlmostEqual(got['f1_micro'], oracle.f1_score(LABELS, said, average='micro'), 5)
    self.assertAlmostEqual(got['f1_macro'], oracle.f1_score(LABELS, said, average='macro'), 5)
    self.assertAlmostEqual(got['label_accuracy'], 1 - oracle.hamming_loss(LABELS, said), 5)
    self.assertAlmostEqual(got['exact_match'], oracle.accuracy_score(LABELS, said), 5)

  def test_a_label_that_is_never_true_nor_predicted_counts_as_zero(self):
    y, logits = LABELS.copy(), LOGITS.copy()
    y[:, 1], logits[:, 1] = 0, -1
    wanted = oracle.f1_score(y, logits > 0, average='macro', zero_division=0)
    self.assertAlmostEqual(measured(multilabel.MULTILABEL, logits, y)['f1_macro'], wanted, 5)

  def test_mix_is_of_probabilities(self):
    mixed = multilabel.mix(np.stack([LOGITS, LOGITS[::-1]]), np.float32([0.25, 0.75]))
    np.testing.assert_allclose(special.expit(mixed), 0.25 * special.expit(LOGITS)
                               + 0.75 * special.expit(LOGITS[::-1]), rtol=1e-4)

  @parameterized.parameters(
      (np.array([0, 1]),), (np.array([[0, 2]]),), (np.array([[0.5, 1]]),), (np.array([['a']]),))
  def test_refuses(self, y):
    with self.assertRaisesRegex(InputError, 'expected 0 or 1 for each example and label'):
      multilabel.prepare(data(y))


class RegressionTest(parameterized.TestCase):

  def task(self, loss=None):
    return regression.regression(MEAN, STD, loss)

  def test_loss_and_metrics_are_in_two_units(self):
    outputs = LOGITS[:, :2]
    values, got = outputs * STD + MEAN, measured(self.task(), outputs, VALUES)
    np.testing.assert_allclose(self.task().predict(outputs), values, rtol=1e-6)
    self.assertAlmostEqual(float(self.task().loss(outputs, VALUES).mean()),
                           oracle.mean_squared_error((VALUES - MEAN) / STD, outputs), places=5)
    for name, wanted in (('mae', oracle.mean_absolute_error(VALUES, values)),
                         ('rmse', oracle.root_mean_squared_error(VALUES, values)),
                         ('r2', oracle.r2_score(VALUES, values))):
      self.assertAlmostEqual(float(got[name]), wanted, delta=1e-5 * abs(wanted), msg=name)

  def test_a_constant_target_has_no_r2(self):
    y = np.full((5, 2), 2, np.float32)
    self.assertEqual(float(measured(self.task(), LOGITS[:5, :2], y)['r2']),
                     oracle.r2_score(y, LOGITS[:5, :2]))

  def test_what_is_drawn_has_the_variance_of_the_loss(self):
    outputs = np.zeros((20_000, 2), np.float32)
    drawn = np.asarray(self.task().draw(outputs, jax.random.key(0)))
    np.testing.assert_allclose((drawn - MEAN).std(axis=0), STD / np.sqrt(2), rtol=0.03)

  def test_other_losses(self):
    residual = np.abs(LOGITS[:, :2] - (VALUES - MEAN) / STD)
    wanted = {'squared': residual**2, 'absolute': residual,
              'huber': np.where(residual < 1, residual**2 / 2, residual - 0.5)}
    for name, values in wanted.items():
      got = self.task(TASKS['regression'].losses[name]).loss(LOGITS[:, :2], VALUES)
      np.testing.assert_allclose(got, values.mean(axis=1), rtol=1e-4, atol=1e-6)

  @parameterized.parameters(
      (np.array(['a', 'b']), 'whose labels are strings'),
      (np.array([1, np.nan]), r'the target \[nan\] in y_train\[1\]; expected finite numbers'),
      (np.array([1, 1e300]), r'target \[inf\] in y_train\[1\]'),
      (np.zeros((2, 0)), 'at least one target'))
  def test_refuses(self, y, said):
    with self.assertRaisesRegex(InputError, said):
      regression.prepare(data(y))

  def test_targets_keep_their_names(self):
    made = regression.prepare(data(VALUES, names=('height', 'weight'), test=2))
    self.assertEqual((made.names, made.classes), (('height', 'weight'), 2))
    self.assertEqual(made.y_test.dtype, np.float32)
    self.assertEqual(regression.prepare(data(CLASSES)).names, ('target',))


class GroupsTest(absltest.TestCase):

  def test_quantiles_of_the_first_target(self):
    targets = np.stack([np.arange(100) ** 2, -np.arange(100)], axis=1)
    number = groups.by_quantile(targets, 4)
    np.testing.assert_array_equal(number(targets), np.repeat([0, 1, 2, 3], 25))
    self.assertEqual(number(np.array([[-5.0, 0], [1e9, 0]])).tolist(), [0, 3])

  def test_equal_targets_are_in_one_group_the_upper_one_at_an_edge(self):
    number = groups.by_quantile(np.array([[0], [1], [1], [1], [2]]), 2)
    self.assertEqual(number(np.array([[0], [1], [2]])).tolist(), [0, 1, 1])


class NextTokenTest(absltest.TestCase):

  def test_loss_and_metrics(self):
    task, p = next_token.NEXT_TOKEN, special.softmax(SEQUENCES.astype(np.float64), axis=-1)
    nats = oracle.log_loss(TOKENS.ravel(), p.reshape(-1, 4))
    self.assertAlmostEqual(float(task.loss(SEQUENCES, TOKENS).mean()), nats, places=5)
    got = measured(task, SEQUENCES, TOKENS)
    self.assertAlmostEqual(float(got['perplexity']), np.exp(nats), places=4)
    self.assertAlmostEqual(float(got['token_accuracy']),
                           (SEQUENCES.argmax(-1) == TOKENS).mean(), places=6)

  def test_targets_are_the_inputs_shifted(self):
    made = next_token.prepare(data(TOKENS[:, -1], TOKENS[:, :-1].astype(np.int32)))
    np.testing.assert_array_equal(made.y_train, TOKENS[:, 1:])
    self.assertEqual((made.classes, made.y_train.dtype), (4, np.int32))

  def test_refuses(self):
    for y, x in ((CLASSES, None), (VALUES, TOKENS), (TOKENS[:, :3], TOKENS), (-TOKENS, TOKENS)):
      x = x if x is None else x.astype(np.int32)
      with self.assertRaisesRegex(InputError, 'tokens'):
        next_token.prepare(data(y, x))


class FurtherTest(parameterized.TestCase):

  P = special.softmax(LOGITS, axis=1)

  def test_equal_scikit_learn(self):
    self.assertAlmostEqual(metrics.balanced_accuracy(CLASSES, self.P),
                           oracle.balanced_accuracy_score(CLASSES, self.P.argmax(1)))
    self.assertAlmostEqual(metrics.f1_macro(CLASSES, self.P), oracle.f1_score(
        CLASSES, self.P.argmax(1), average='macro'))
    self.assertAlmostEqual(metrics.auroc(CLASSES, self.P), oracle.roc_auc_score(
        CLASSES, self.P, multi_class='ovr', average='macro'))
    p = special.expit(LOGITS)
    self.assertAlmostEqual(metrics.auroc(LABELS, p), oracle.roc_auc_score(LABELS, p))
    self.assertAlmostEqual(metrics.average_precision(LABELS, p),
                           oracle.average_precision_score(LABELS, p))

  def test_a_class_that_no_example_has_is_left_out(self):
    some = CLASSES < 3
    wanted = np.mean([oracle.roc_auc_score(CLASSES[some] == c, self.P[some, c]) for c in range(3)])
    self.assertAlmostEqual(metrics.auroc(CLASSES[some], self.P[some]), wanted)
    self.assertTrue(np.isnan(metrics.auroc(CLASSES[:1], self.P[:1])))

  def test_calibration_error(self):
    p = np.array([[0.9, 0.1], [0.92, 0.08], [0.3, 0.7], [0.5, 0.5]])
    # Bins (13/15, 14/15], (10/15, 11/15] and (7/15, 8/15].
    wanted = (abs(1.82 - 1) + abs(0.7 - 1) + abs(0.5 - 1)) / 4
    self.assertAlmostEqual(metrics.calibration_error(np.array([0, 1, 1, 0]), p), wanted)
    # 9/15 is the upper end of one bin, and what is above it is in the next.
    edge = np.array([[0.6, 0.4], [0.62, 0.38]])
    self.assertAlmostEqual(metrics.calibration_error(np.array([0, 1]), edge), (0.4 + 0.62) / 2)
    sure = np.eye(2)[[0, 1, 1]]
    self.assertEqual(metrics.calibration_error(np.array([0, 1, 1]), sure), 0)

  def test_names(self):
    task = classification.CLASSIFICATION
    self.assertEqual([*metrics.named('auroc, f1_macro', task, CLASSES, 4)], ['auroc', 'f1_macro'])
    self.assertEqual(metrics.named('', task, CLASSES, 4), {})
    with self.assertRaisesRegex(InputError, 'got metrics=auroq with task=classification; expected '
                                'any of .* did you mean auroc'):
      metrics.named('auroq', task, CLASSES, 4)

  def test_one_of_ones_own(self):
    path = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'cost.py')
    pathlib.Path(path).write_text('def cost(y, p):\n  return 1 - p[range(len(y)), y].mean()\n'
                                  'def wrong(y, p):\n  return p + y\n')
    made = metrics.named(f'{path}:cost', classification.CLASSIFICATION, CLASSES, 4)
    self.assertAlmostEqual(made['cost'](CLASSES, self.P),
                           1 - self.P[range(COUNT), CLASSES].mean(), places=6)
    with self.assertRaisesRegex(InputError, 'got metrics=.*:wrong, which fails with '):
      metrics.named(f'{path}:wrong', classification.CLASSIFICATION, CLASSES, 4)


if __name__ == '__main__':
  absltest.main()
