"""The metrics of runs equal scikit-learn's on the runs' own predictions."""

import os
import tempfile

from absl.testing import absltest, parameterized
import numpy as np
import pytest
from sklearn import datasets
from sklearn import metrics as oracle

import hmm_jax as hmm

TINY = {'clients': 10, 'participation': 5, 'rounds': 4, 'eval_every': 4, 'seeds': 1,
        'plots': False, 'mlp.hidden': (8,)}


def regression(folder):
  x, y = datasets.load_diabetes(return_X_y=True)
  np.savez(os.path.join(folder, 'data.npz'), x=x, y=np.stack([y, y**2], axis=1))
  return {'task': 'regression', 'metrics': 'median_absolute_error'}


def classification(folder):
  x, y = datasets.load_breast_cancer(return_X_y=True)
  np.savez(os.path.join(folder, 'data.npz'), x=x, y=np.array(['benign', 'malignant'])[y])
  return {'partition.alpha': 1.0, 'metrics': 'balanced_accuracy,f1_macro,auroc'}


def multilabel(folder):
  x, y = datasets.make_multilabel_classification(n_samples=500, n_classes=4, random_state=0)
  np.savez(os.path.join(folder, 'data.npz'), x=x, y=y)
  return {'task': 'multilabel', 'partition.kind': 'iid', 'metrics': 'auroc,average_precision'}


WANTED = {
    'regression': {
        'rmse': oracle.root_mean_squared_error, 'mae': oracle.mean_absolute_error,
        'r2': oracle.r2_score, 'median_absolute_error': oracle.median_absolute_error},
    'classification': {
        'accuracy': lambda y, p: oracle.accuracy_score(y, p.argmax(1)),
        'balanced_accuracy': lambda y, p: oracle.balanced_accuracy_score(y, p.argmax(1)),
        'f1_macro': lambda y, p: oracle.f1_score(y, p.argmax(1), average='macro'),
        'auroc': lambda y, p: oracle.roc_auc_score(y, p[:, 1])},
    'multilabel': {
        'f1_micro': lambda y, p: oracle.f1_score(y, p > 0.5, average='micro'),
        'f1_macro': lambda y, p: oracle.f1_score(y, p > 0.5, average='macro', zero_division=0),
        'label_accuracy': lambda y, p: 1 - oracle.hamming_loss(y, p > 0.5),
        'exact_match': lambda y, p: oracle.accuracy_score(y, p > 0.5),
        'auroc': oracle.roc_auc_score, 'average_precision': oracle.average_precision_score},
}


class RunTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('regression', regression, 'fedavg'),
      ('classification', classification, 'fedavg'),
      ('multilabel', multilabel, 'fedavg'))
  def test_of_the_global_model(self, make, method):
    run = self.run_with(make, method)
    rows = np.asarray(run.federation.test.rows)
    y = np.asarray(run.federation.examples.y)[rows]
    predicted = run.predict(np.asarray(run.federation.examples.x)[rows])
    for name, metric in WANTED[make.__name__].items():
      self.assertAlmostEqual(
          run.summary['last'][f'global/test/{name}']['mean'] / metric(y, predicted), 1, 4, name)

  @pytest.mark.slow
  @parameterized.named_parameters(
      ('regression', regression, ('rmse', 'mae', 'median_absolute_error')),
      ('classification', classification, ('accuracy',)),
      ('multilabel', multilabel, ('label_accuracy', 'exact_match')))
  def test_of_the_clients_own_models(self, make, names):
    run = self.run_with(make, 'ditto')
    x, y = (np.asarray(leaf) for leaf in run.federation.examples)
    for name in names:
      each = [WANTED[make.__name__][name](y[rows], run.predict(x[rows], view='clients', client=k))
              for k, rows in enumerate(run.federation.test.clients.valid())]
      self.assertAlmostEqual(
          run.summary['last'][f'clients/test/{name}']['mean'], np.mean(each),
          delta=1e-4 * np.mean(each), msg=name)

  def run_with(self, make, method):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    changes = make(folder)
    return hmm.run(hmm.config({
        'dataset': f'npz:{folder}/data.npz', 'algorithm': method, **TINY, **changes}),
        os.path.join(folder, 'run'), silent=True)


if __name__ == '__main__':
  absltest.main()
