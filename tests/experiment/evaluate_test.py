"""Tests of accuracies and losses against a plain NumPy computation."""

from functools import cache

from absl.testing import absltest, parameterized
import jax
import numpy as np
from reference import softmax_regression, toys

from hmm_jax import tree
from hmm_jax.experiment.evaluate import evaluator
from hmm_jax.types import Mixture, Split

LIFTS = toys.lifts()
FEDERATION = toys.federation()
NOBODY = toys.clients([[]] * 5)


def split(rows, own):
  return Split(np.array(rows, np.int32), toys.clients(own))


# The test rows of the clients overlap each other and the global ones; two hold none.
SPLITS = FEDERATION._replace(
    validation=split([2, 5, 7, 11, 13, 17], [[2, 5, 7], [11], [13], [17], []]),
    test=split([1, 3, 4, 6, 8, 9, 10], [[1, 3, 3, 20, 21], [], [4], [20, 1], []]))


@cache
def models():
  """Returns K models unlike each other."""
  keys = jax.random.split(toys.key(0), 5)
  return tree.scale(2.0, toys.jit(jax.vmap(toys.linear().init))(keys))


def make(network=toys.linear, *, federation=SPLITS, batch=4, lift='map'):
  return evaluator(network(), federation, federation.examples, mapper=LIFTS[lift], batch=batch,
                   sharding=toys.sharding(lift))


def evaluate(views, **settings):
  return make(**settings)(views).metrics


def score(variables, rows):
  """Returns (accuracy, mean loss) of one model on row numbers, in NumPy."""
  params = toys.twin(variables)
  x = np.asarray(FEDERATION.examples.x, np.float64)[rows]
  y = np.asarray(FEDERATION.examples.y)[rows]
  correct = softmax_regression.logits(params, x).argmax(axis=1) == y
  return correct.mean(), softmax_regression.losses(params, x, y).mean()


def named(view, part, scores):
  """Returns the metrics of a view; several models count equally."""
  accuracy, loss = np.mean(scores, axis=0)
  return {f'{view}/{part}/accuracy': accuracy, f'{view}/{part}/loss': loss}


def on_own_rows(federation, choose):
  """Returns the clients' metrics, if `choose(k)` is the model of client k."""
  expected = {}
  for part in ('validation', 'test'):
    held = [(k, own) for k, own in enumerate(toys.rows(getattr(federation, part).clients))
            if len(own)]
    scores = [score(choose(k), own) for k, own in held]
    expected |= named('clients', part, scores)
    every_row = [s for s, (_, own) in zip(scores, held, strict=True) for _ in own]
    expected |= named('clients_weighted', part, every_row)
    expected |= named('clients_worst', part, [min(scores, key=lambda s: s[0])])
  return expected


def on_all_rows(view, variables):
  """Returns a view's metrics on the global rows, a mean over a list of models."""
  expected = {}
  for part in ('validation', 'test'):
    scores = [score(v, getattr(SPLITS, part).rows) for v in variables]
    expected |= named(view, part, scores)
    if view == 'locals':
      accuracy = [correct for correct, _ in scores]
      expected |= {f'locals_min/{part}/accuracy': min(accuracy),
                   f'locals_max/{part}/accuracy': max(accuracy)}
  return expected


class EvaluateTest(parameterized.TestCase):

  @parameterized.parameters(4, 512)
  def test_global_model(self, batch):
    model = tree.take(models(), 0)
    expected = on_all_rows('global', [model]) | on_own_rows(SPLITS, lambda k: model)
    got = evaluate({'global': model}, batch=batch)
    toys.assert_close(got, expected)
    self.assertTrue(all(type(value) is float for value in got.values()))

  @parameterized.parameters(2, 512)
  def test_models_of_their_own(self, batch):
    expected = on_own_rows(SPLITS, lambda k: tree.take(models(), k))
    toys.assert_close(evaluate({'clients': models()}, batch=batch), expected)

  @parameterized.parameters(4, 512)
  def test_locals_on_the_global_rows(self, batch):
    expected = on_all_rows('locals', tree.unstack(models()))
    toys.assert_close(evaluate({'locals': models()}, batch=batch), expected)

  def test_mergeability_is_what_merging_takes_off_the_loss(self):
    merged = tree.mix(np.full(5, 0.2, np.float32), models())
    expected = on_all_rows('locals', tree.unstack(models())) | on_all_rows('merged', [merged])
    gaps = {f'mergeability/{part}/gap':
            expected[f'locals/{part}/loss'] - expected[f'merged/{part}/loss']
            for part in ('validation', 'test')}
    self.assertGreater(min(map(abs, gaps.values())), 0.01)
    views = {'merged': merged, 'locals': models()}
    toys.assert_close(evaluate(views), expected | gaps)
    self.assertEqual(evaluate({'merged': merged}).keys(), on_all_rows('merged', [merged]).keys())

  @parameterized.parameters('map', 'sharded-map')
  def test_all_views_together(self, lift):
    # The clients' own models replace the global one on their rows.
    views = {'global': tree.take(models(), 1), 'clients': models(), 'locals': models(),
             'teacher': tree.take(models(), 2)}
    expected = (on_all_rows('global', [views['global']])
                | on_own_rows(SPLITS, lambda k: tree.take(models(), k))
                | on_all_rows('locals', tree.unstack(models()))
                | on_all_rows('teacher', [views['teacher']]))
    toys.assert_close(evaluate(views, lift=lift), expected)

  @parameterized.parameters('global', 'clients')
  def test_tables_of_the_clients(self, view):
    chosen = {'global': lambda k: tree.take(models(), 1),
              'clients': lambda k: tree.take(models(), k)}
    views = {'global': tree.take(models(), 1), 'clients': models()}
    got = make()({view: views[view]}).clients
    for part in ('validation', 'test'):
      held = toys.rows(getattr(SPLITS, part).clients)
      self.assertEqual(got[f'{part}/rows'].tolist(), [len(own) for own in held])
      scores = np.array([score(chosen[view](k), own) if len(own) else (np.nan, np.nan)
                         for k, own in enumerate(held)])
      toys.assert_close([got[f'{part}/accuracy'], got[f'{part}/loss']], [*scores.T])

  def test_the_worst_tenth_is_by_accuracy_and_rounded_up(self):
    rng = np.random.default_rng(0)
    own = [rng.permutation(23)[:3] for _ in range(11)]
    federation = SPLITS._replace(
        test=Split(np.array([1]), toys.clients(own, ids=range(11))),
        validation=Split(np.array([], np.int32), toys.clients([[]] * 11, ids=range(11))))
    stacked = tree.take(models(), rng.integers(0, 5, 11))
    got = make(federation=federation)({'clients': stacked})
    order = np.argsort(got.clients['test/accuracy'], kind='stable')[:2]
    for metric in ('accuracy', 'loss'):
      self.assertAlmostEqual(got.metrics[f'clients_worst/test/{metric}'],
                             got.clients[f'test/{metric}'][order].mean(), places=6)

  @parameterized.parameters('map', 'sharded-map')
  def test_a_mixture_of_models_predicts_the_mean_of_their_probabilities(self, lift):
    weights = np.random.default_rng(0).dirichlet([0.5] * 3, 5).astype(np.float32)
    weights[0] = [0, 1, 0]
    three = tree.take(models(), np.arange(3))
    got = make(lift=lift)({'clients': Mixture(three, weights)}).clients
    params = [toys.twin(model) for model in tree.unstack(three)]
    for k, own in enumerate(toys.rows(SPLITS.test.clients)):
      x = np.asarray(FEDERATION.examples.x, np.float64)[own]
      y = np.asarray(FEDERATION.examples.y)[own]
      if len(own):
        p = sum(w * softmax_regression.probabilities(m, x)
                for w, m in zip(weights[k], params, strict=True))
        loss = -np.log(p[np.arange(len(y)), y]).mean()
        np.testing.assert_allclose(got['test/loss'][k], loss, rtol=1e-5)
        self.assertAlmostEqual(got['test/accuracy'][k], (p.argmax(1) == y).mean(), places=6)

  def test_splits_without_rows_give_no_entry(self):
    model = tree.take(models(), 0)
    views = {'global': model, 'clients': models(), 'locals': models()}
    nothing = SPLITS._replace(validation=Split(np.zeros(0, np.int32), NOBODY))
    self.assertEqual({name.split('/')[1] for name in evaluate(views, federation=nothing)},
                     {'test'})
    no_own = SPLITS._replace(test=SPLITS.test._replace(clients=NOBODY))
    names = evaluate(views, federation=no_own).keys()
    self.assertEmpty([name for name in names if name.startswith('clients') and 'test' in name])
    self.assertContainsSubset(['global/test/loss', 'locals/test/loss'], names)
    only_own = SPLITS._replace(test=SPLITS.test._replace(rows=np.zeros(0, np.int32)))
    got = evaluate({'global': model, 'locals': models()}, federation=only_own)
    self.assertEqual({name.split('/')[0] for name in got if '/test/' in name},
                     {'clients', 'clients_weighted', 'clients_worst'})

  def test_scores_with_running_statistics(self):
    start = toys.start(toys.norm)
    moved = {**start, 'batch_stats': {'trunk': {'BatchNorm_0': {
        'mean': np.full(4, 0.5, np.float32), 'var': np.full(4, 3.0, np.float32)}}}}
    folded = toys.twin(moved)
    folded['bias'] = folded['bias'] - (0.5 / np.sqrt(3 + 1e-5) * folded['kernel']).sum(axis=0)
    folded['kernel'] = folded['kernel'] / np.sqrt(3 + 1e-5)
    expected = on_all_rows('global', [{'params': {'head': folded}}])
    got = evaluate({'global': moved}, network=toys.norm)
    toys.assert_close({name: got[name] for name in expected}, expected)

  def test_compiles_once(self):
    traces = []
    network = toys.linear()

    def apply(*args, **kwargs):
      traces.append(1)
      return network.apply(*args, **kwargs)

    score = make(lambda: network._replace(apply=apply))
    views = {'global': tree.take(models(), 0), 'clients': models(), 'locals': models()}
    score(views)
    before = len(traces)
    score(tree.add(views, views))
    self.assertLen(traces, before)


if __name__ == '__main__':
  absltest.main()
