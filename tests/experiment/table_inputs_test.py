"""A model that was trained on a table predicts on a table, for a client by its owner's name."""

import os
import tempfile

from absl.testing import absltest
import numpy as np

import hmm_jax as hmm
from hmm_jax.experiment import inputs, predictions
from hmm_jax.types import InputError


class TableInputsTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    rng = np.random.default_rng(0)
    age, color = rng.normal(size=120), rng.choice(['red', 'blue', 'green'], 120)
    site = rng.choice(['north', 'south'], 120)
    sick = np.where(age + (color == 'red') > 0.5, 'yes', 'no')
    cls.rows = np.column_stack([age.round(3), color, site, sick])
    cls.save('all.csv', ['age', 'color', 'site', 'sick'], cls.rows)
    cls.run_ = hmm.run(hmm.config({
        'dataset': f'csv:{cls.folder}/all.csv', 'csv.target': 'sick', 'csv.client': 'site',
        'algorithm': 'local', 'partition.kind': 'natural', 'clients': 0, 'participation': 0,
        'rounds': 3, 'eval_every': 3, 'seeds': 1, 'plots': False}),
        f'{cls.folder}/run', silent=True)

  @classmethod
  def save(cls, name, header, rows):
    path = os.path.join(cls.folder, name)
    np.savetxt(path, np.concatenate([[header], rows]), '%s', ',')
    return path

  def test_columns_may_come_in_another_order_with_others(self):
    path = self.save('new.csv', ['site', 'color', 'age'], self.rows[:5][:, [2, 1, 0]])
    read = inputs.read(path, self.run_.about)
    np.testing.assert_array_equal(read.x, self.run_.dataset.x_train[:5])
    self.assertEqual(read.names, [*'01234'])

  def test_a_client_goes_by_the_name_of_its_owner(self):
    x = self.run_.dataset.x_train[:5]
    for place, name in enumerate(('north', 'south')):
      np.testing.assert_array_equal(hmm.load(f'{self.folder}/run', client=name).predict(x),
                                    self.run_.predict(x, view='clients', client=place)
                                    if 'clients' in self.run_.models() else
                                    self.run_.predict(x, view='locals', client=place))

  def test_predictions_name_the_classes(self):
    model = hmm.load(f'{self.folder}/run', client='north')
    header, rows = predictions.table(model, ['a'], model.predict(self.run_.dataset.x_train[:1]))
    self.assertEqual(header, ['input', 'class', 'probability', 'p(no)', 'p(yes)'])
    self.assertIn(rows[0][1], ('no', 'yes'))

  def test_refuses(self):
    for header, row, said in (
        (['age'], ['1'], "it has no column 'color'; expected it among 'age'"),
        (['age', 'color'], ['1', 'pink'], "column 'color' has 'pink'; expected 3: 'blue', 'green'"),
        (['age', 'color'], ['old', 'red'], "column 'age' has 'old'; expected numbers"),
        (['age', 'color'], ['', 'red'], "column 'age' has no value in row 1")):
      with self.assertRaisesRegex(InputError, said):
        inputs.read(self.save('odd.csv', header, [row]), self.run_.about)


if __name__ == '__main__':
  absltest.main()
