"""Networks of one's own under the whole contract, by what flax and NumPy say of them."""

import functools
import pathlib

from absl.testing import absltest, parameterized
from flax import nnx
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest
from reference import newcomers, permutations

from hmm_jax.check.methods import Trial
from hmm_jax.experiment import config as configs
from hmm_jax.merging.alignment.permutation import permute
from hmm_jax.merging.alignment.weight_matching import match_weights
from hmm_jax.registry import Inputs
from hmm_jax.types import InputError

FILE = pathlib.Path(newcomers.__file__)
IMAGES = Inputs((8, 8, 1), 3, jnp.float32)
ROWS = Inputs((4,), 3, jnp.float32)
TOKENS = Inputs((6,), 5, jnp.float32, vocabulary=5, positions=True)
NETS = {'Mlp': IMAGES, 'NnxMlp': IMAGES, 'Vit': IMAGES, 'NnxVit': IMAGES, 'Cnn': IMAGES,
        'Tokens': TOKENS, 'chain': IMAGES, 'made': ROWS}
WITH_HEAD = [name for name in NETS if name != 'Cnn']
HEADS = {'Mlp': 'Dense_2', 'NnxMlp': 'out', 'Vit': 'Dense_0', 'NnxVit': 'out', 'Tokens': 'Dense_0',
         'chain': 'layers_5', 'made': 'layers_2'}


def build(name, inputs, **changed):
  record = configs.network(f'{FILE}:{name}')
  settings = {key: setting.default for key, setting in record.settings.items()}
  return record.build(inputs, ConfigDict(settings | changed))


@functools.cache
def model(name):
  """Returns the network, whose functions are compiled."""
  made = build(name, NETS[name])
  return made._replace(
      apply=jax.jit(made.apply, static_argnames='train'),
      statistics=jax.jit(made.statistics), linear=jax.jit(made.linear))


@functools.cache
def variables(name):
  """Returns weights none of which is 0 or 1, as after training."""
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: x + 0.3 * np.abs(rng.normal(size=x.shape)).astype(np.float32),
                      model(name).init(jax.random.key(1)))


def batch(name, size=5):
  inputs, rng = NETS[name], np.random.default_rng(2)
  if inputs.vocabulary:
    return jnp.asarray(rng.integers(0, inputs.vocabulary, (size, *inputs.shape)), jnp.int32)
  return jnp.asarray(rng.normal(size=(size, *inputs.shape)), jnp.float32)


def at(tree, path):
  return functools.reduce(lambda inner, name: inner[name], path.split('/'), tree)


class OwnTest(parameterized.TestCase):

  @parameterized.parameters(
      ('Mlp', dict(num_classes=3)), ('Vit', dict(num_classes=3)), ('Cnn', dict(classes=3)),
      ('Tokens', dict(outputs=5, vocab_size=5, max_len=6)))
  def test_computes_what_linen_does(self, name, given):
    out, _ = model(name).apply(variables(name), batch(name))
    wanted = jax.jit(getattr(newcomers, name)(**given).apply)(variables(name), batch(name))
    np.testing.assert_array_equal(out, wanted)
    self.assertEqual(out.dtype, jnp.float32)

  def test_computes_what_nnx_does(self):
    net = newcomers.NnxVit(3, 1, 8, rngs=nnx.Rngs(jax.random.key(1)))
    net.eval()
    own = model('NnxVit').init(jax.random.key(1))
    wanted = nnx.jit(lambda net, x: net(x))(net, batch('NnxVit'))
    np.testing.assert_allclose(model('NnxVit').apply(own, batch('NnxVit'))[0], wanted, atol=1e-6)

  @parameterized.parameters(*NETS)
  def test_variables_are_named_and_float32(self, name):
    for path, leaf in jax.tree.leaves_with_path(model(name).shapes):
      self.assertTrue(all(isinstance(step.key, str) for step in path), path)
      self.assertEqual(leaf.dtype, jnp.float32)

  @parameterized.parameters(*WITH_HEAD)
  def test_the_head_is_the_rest(self, name):
    features = model(name).features(variables(name), batch(name))
    head = at(variables(name)['params'], HEADS[name])
    logits, _ = model(name).apply(variables(name), batch(name))
    np.testing.assert_allclose(model(name).head(variables(name), features), logits, atol=1e-4)
    wanted = np.asarray(features) @ np.asarray(head['kernel']) + np.asarray(head['bias'])
    np.testing.assert_allclose(wanted, logits, atol=1e-4)
    groups = model(name).groups(variables(name))
    self.assertEqual(at(groups['params'], HEADS[name])['kernel'], 'head')

  def test_without_a_head_the_rest_works(self):
    for use in (model('Cnn').features, model('Cnn').head):
      with self.assertRaisesRegex(InputError, r'newcomers.py:Cnn, whose outputs are not those of a '
                                  'Dense or Linear layer'):
        use(variables('Cnn'), batch('Cnn'))
    self.assertNotIn('head', model('Cnn').modules())

  @parameterized.parameters('fedper', 'fedrep', 'moon', 'fedgen', 'fedmerge')
  def test_methods_that_need_a_head_say_so(self, name):
    with self.assertRaisesRegex(InputError, 'not those of a Dense or Linear layer'):
      images = Trial('fedavg').federation
      x = jnp.zeros((len(images.examples.x), 8, 8, 1))
      trial = Trial(name, model=model('Cnn'), federation=images._replace(
          examples=images.examples._replace(x=x)))
      jax.eval_shape(trial.algorithm.init, jax.random.key(0), trial.federation)

  def test_modules_are_in_the_order_of_the_forward_pass(self):
    self.assertEqual(model('Mlp').modules(),
                     ('Dense_0', 'BatchNorm_0', 'Dense_1', 'BatchNorm_1', 'head'))
    self.assertEqual(model('NnxMlp').modules(),
                     ('layers/0', 'norms/0', 'layers/1', 'norms/1', 'head'))
    self.assertEqual(model('Cnn').modules(),
                     ('Conv_0', 'GroupNorm_0', 'Conv_1', 'Conv_2', 'Dense_0', 'Dense_1'))
    self.assertEqual(model('NnxVit').modules()[:4],
                     ('patches', 'positions', 'blocks/0/before', 'blocks/0/attention/query'))

  @parameterized.parameters(*NETS)
  def test_modules_and_groups_agree(self, name):
    self.assertSameElements(model(name).modules(),
                            jax.tree.leaves(model(name).groups(variables(name))))

  @parameterized.parameters(*NETS)
  def test_linear_layers_are_products(self, name):
    seen = model(name).linear(variables(name), batch(name))
    self.assertNotEmpty(seen)
    for path, (x, out) in seen.items():
      own = at(variables(name)['params'], path)
      kernel = np.asarray(own['kernel'], np.float64).reshape(x.shape[1], out.shape[1])
      np.testing.assert_allclose(np.asarray(x) @ kernel + np.asarray(own['bias']), out, atol=2e-5)

  @parameterized.parameters('Mlp', 'NnxMlp')
  def test_statistics_are_those_of_the_valid_examples(self, name):
    x, mask = batch(name), jnp.array([True, False, True, True, False])
    got = model(name).statistics(variables(name), x, mask=mask)['batch_stats']
    linear, norm = ('Dense_0', 'BatchNorm_0') if name == 'Mlp' else ('layers/0', 'norms/0')
    seen = np.asarray(model(name).linear(variables(name), x)[linear].outputs)[np.asarray(mask)]
    np.testing.assert_allclose(at(got, norm)['mean'], seen.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(at(got, norm)['var'], seen.var(axis=0), rtol=1e-3)

  @parameterized.parameters('Mlp', 'NnxMlp')
  def test_padding_changes_nothing(self, name):
    x, mask = batch(name), jnp.array([True, True, True, False, False])
    out, after = model(name).apply(variables(name), x, train=True, mask=mask)
    wanted, wanted_after = model(name).apply(variables(name), x[:3], train=True)
    np.testing.assert_allclose(out[:3], wanted, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), after, wanted_after)
    _, nobody = model(name).apply(variables(name), x, train=True, mask=jnp.zeros(5, bool))
    jax.tree.map(np.testing.assert_array_equal, nobody, variables(name))

  @parameterized.parameters('Mlp', 'NnxMlp', 'Vit', 'NnxVit')
  def test_a_key_switches_dropout_on(self, name):
    run = lambda **mode: model(name).apply(variables(name), batch(name), **mode)[0]
    key = jax.random.key(3)
    train = functools.partial(run, train=True)
    np.testing.assert_array_equal(train(key=key), train(key=key))
    np.testing.assert_array_equal(train(), train())
    self.assertGreater(np.abs(train(key=key) - train(key=jax.random.key(4))).max(), 1e-3)
    self.assertGreater(np.abs(train(key=key) - train()).max(), 1e-3)
    np.testing.assert_array_equal(run(key=key), run())

  @parameterized.parameters('Mlp', 'NnxMlp')
  def test_seeds_begin_with_different_weights(self, name):
    a, b = (model(name).init(jax.random.key(seed)) for seed in range(2))
    self.assertGreater(np.abs(a['params'][HEADS[name]]['kernel']
                              - b['params'][HEADS[name]]['kernel']).max(), 0.01)

  @parameterized.parameters(
      ('Mlp', {'Dense_0': 16, 'Dense_1': 16}),
      ('NnxMlp', {'layers/0': 16, 'layers/1': 16}),
      ('Cnn', {'Conv_0': 6, 'Conv_2': 8, 'Dense_0': 7}),
      ('chain', {'layers_1': 5, 'layers_3': 5}),
      ('NnxVit', {'patches': 16} | {f'blocks/{i}/{what}': size for i in range(2) for what, size in (
          ('attention/query/kernel:1', 2), ('attention/query/kernel:2', 8),
          ('attention/value/kernel:2', 8), ('up', 32))}))
  def test_hidden_units_are_found(self, name, sizes):
    self.assertEqual(model(name).symmetry().size, sizes)

  @parameterized.parameters(*NETS)
  def test_permutations_keep_the_outputs(self, name):
    symmetry = model(name).symmetry()
    drawn = permutations.draw(np.random.default_rng(3), symmetry)
    moved = permute(symmetry, variables(name), drawn)
    run = lambda own: np.asarray(model(name).apply(own, batch(name))[0])
    scale = np.abs(run(variables(name))).max()
    np.testing.assert_allclose(run(moved), run(variables(name)), atol=1e-5 * scale)

  @parameterized.parameters('Mlp', 'NnxMlp', 'Cnn', 'chain')
  def test_weight_matching_finds_planted_permutations(self, name):
    self.check_planted(name)

  @parameterized.parameters('Vit', 'NnxVit')
  @pytest.mark.slow
  def test_weight_matching_finds_planted_permutations_of_a_transformer(self, name):
    self.check_planted(name)

  def check_planted(self, name):
    """Plants permutations; of a transformer, of the units between its dense layers."""
    symmetry = model(name).symmetry()
    a = model(name).init(jax.random.key(5))
    drawn = permutations.draw(np.random.default_rng(4), symmetry)
    if 'Vit' in name:
      drawn = {group: order if len(order) == 32 else np.arange(len(order))
               for group, order in drawn.items()}
    moved = permute(symmetry, a, drawn)
    find = jax.jit(lambda key, a, b: permute(model(name).symmetry(), b, match_weights(
        key, model(name).symmetry(), a, b)))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6),
                 find(jax.random.key(0), a, moved), a)

  def test_simple_fields_are_settings(self):
    config = configs.configure({'model': f'{FILE}:Mlp', 'Mlp.width': 8, 'Mlp.rate': 0})
    self.assertEqual(config.Mlp.to_dict(), {'width': 8, 'rate': 0.0})
    self.assertEqual(build('Mlp', IMAGES, width=8).shapes['params']['Dense_1']['kernel'].shape,
                     (8, 8))
    with self.assertRaisesRegex(InputError, 'Mlp.widht.* did you mean Mlp.width?'):
      configs.configure({'model': f'{FILE}:Mlp', 'Mlp.widht': 8})

  @parameterized.parameters(
      ('Needy', ROWS, 'needs depth; expected a default of it, .* classes .the number of out'),
      ('Two', ROWS, 'returns a tuple; expected one array'),
      ('TwoInputs', ROWS, 'a call that needs lengths; expected one that needs its inputs'),
      ('Cached', ROWS, 'variables of cache; expected only those of params and batch_stats'),
      ('Failing', ROWS, 'shape .4,. .floats. with ValueError: no such luck; expected a module'),
      ('nothing', ROWS, 'fails when it is made: got a list; expected a flax module'),
      ('unseeded', ROWS, 'without a parameter rngs; expected one, by which each seed'),
      ('value', ROWS, 'expected a Network or flax module, .* has Mlp, NnxMlp, Cnn, '),
      ('Mpl', ROWS, 'did you mean Mlp?'),
      ('made', ROWS._replace(classes=7), r'outputs \[B, 3\] float32; expected \[B, 7\] floats'),
      ('made', TOKENS, r'outputs .B, 3. float32; expected .B, 6, 5.'),
      ('Cnn', ROWS, 'fails on inputs of shape .4,.'),
      ('NnxVit', ROWS, 'shape .4,. for in_channels, the channels of an image'),
      ('Tokens', IMAGES, 'for vocab_size, the number of tokens'))
  def test_one_line_for_what_does_not_go(self, name, inputs, line):
    with self.assertRaisesRegex(InputError, line) as caught:
      build(name, inputs)
    self.assertNotIn('\n', str(caught.exception))

  def test_outputs_at_each_position(self):
    self.assertEqual(model('Tokens').apply(variables('Tokens'), batch('Tokens'))[0].shape,
                     (5, 6, 5))
    with self.assertRaisesRegex(InputError, r'outputs \[B, 6, 5\] float32; expected \[B, 5\]'):
      build('Tokens', TOKENS._replace(positions=False))

  def test_half_precision_needs_a_parameter(self):
    with self.assertRaisesRegex(InputError, 'compute_dtype=bfloat16 .* dtype'):
      build('Mlp', IMAGES._replace(dtype=jnp.bfloat16))


if __name__ == '__main__':
  absltest.main()
