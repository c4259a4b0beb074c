"""Inputs of another shape or type than a model was trained on are refused in one line."""

from absl.testing import absltest, parameterized
import jax
import numpy as np
from reference import networks

from hmm_jax.experiment import blueprint, federation
from hmm_jax.experiment.predictor import Predictor, checked
from hmm_jax.types import InputError


class InputsTest(parameterized.TestCase):

  def load(self, kind, network='mlp'):
    config, data = networks.of(network, {}, kind)
    made = federation.federation(config, data)
    about = blueprint.describe(config, data, made)
    variables = blueprint.model(about).init(jax.random.key(0))
    return Predictor(about, variables), data.x_test

  @parameterized.named_parameters(
      ('channels_first', lambda x: x.transpose(0, 3, 1, 2),
       r'uint8 \[5, 3, 32, 32\]; expected uint8 \[B, 32, 32, 3\].*the channels come last'),
      ('one', lambda x: x[0], r'one example is x\[None\]'),
      ('floats', lambda x: x / np.float32(255), r'got inputs float32 \[5, 32.*expected uint8'),
      ('number', lambda x: 3, r'got inputs int64 \[\]; expected uint8'),
      ('ragged', lambda x: [[1], [1, 2]], 'make no array; expected uint8'),
      ('modalities', lambda x: {'image': x}, 'got inputs object'))
  def test_what_no_image_is_refused(self, change, wanted):
    model, x = self.load('images')
    with self.assertRaisesRegex(InputError, wanted) as caught:
      model.predict(change(x))
    self.assertNotIn('\n', str(caught.exception))

  def test_gray_images_need_a_channel(self):
    entry = {'modality': '', 'shape': [4, 4, 1], 'dtype': 'float32'}
    with self.assertRaisesRegex(InputError, 'a channel is an axis of its own'):
      checked({'inputs': [entry], 'vocabulary': 0}, np.zeros((2, 4, 4), np.float32))

  def test_floats_of_any_precision_but_no_nan(self):
    model, x = self.load('vectors')
    np.testing.assert_array_equal(model.predict(x.astype(np.float64)), model.predict(x))
    with self.assertRaisesRegex(InputError, 'some are NaN'):
      model.predict(np.where(x > 0, x, np.nan))
    with self.assertRaisesRegex(InputError, 'got inputs int64'):
      model.predict(x.astype(np.int64))

  def test_tokens_of_any_integers_but_of_the_vocabulary(self):
    model, x = self.load('tokens', 'lstm')
    np.testing.assert_array_equal(model.predict(x.astype(np.int64)), model.predict(x))
    for wrong in (x + 1, x - 1):
      with self.assertRaisesRegex(InputError, 'tokens from 0 to 6; they are from'):
        model.predict(wrong)
    with self.assertRaisesRegex(InputError, 'got inputs float64'):
      model.predict(x / 1)

  def test_modalities_are_named_and_as_many(self):
    model, x = self.load('modalities', 'fusion')
    with self.assertRaisesRegex(InputError, 'got inputs of image; expected .* image, text'):
      model.predict({'image': x['image']})
    with self.assertRaisesRegex(InputError, r'got inputs of \[2, 5\] examples'):
      model.predict({'image': x['image'], 'text': x['text'][:2]})
    with self.assertRaisesRegex(InputError, 'got inputs of a single array'):
      model.predict(x['image'])

  def test_more_inputs_than_are_run_at_a_time(self):
    model, x = self.load('vectors')
    many = np.concatenate([x] * 250)
    np.testing.assert_allclose(model.predict(many), np.concatenate([model.predict(x)] * 250),
                               atol=1e-6)


if __name__ == '__main__':
  absltest.main()
