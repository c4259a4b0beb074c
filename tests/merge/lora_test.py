"""LoRA pairs, against products in NumPy."""

import os
import tempfile

from absl.testing import absltest, parameterized
import numpy as np

from hmm_jax.merge import lora, models
from hmm_jax.merging import OPERATORS
from hmm_jax.models import files
from hmm_jax.types import InputError

RANK, INPUTS, OUTPUTS = 2, 9, 7


def drawn(seed, *shape):
  return np.float32(np.random.default_rng(seed).normal(size=shape))


def adapter(seed, a='q.lora_A.weight', b='q.lora_B.weight'):
  return {a: drawn(seed, RANK, INPUTS), b: drawn(seed + 9, OUTPUTS, RANK)}


def product(model):
  (_, a), (_, b) = sorted(model.items())
  return np.float64(b) @ np.float64(a)


class LoraTest(parameterized.TestCase):

  def saved(self, *given):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    paths = [os.path.join(folder, f'{k}.npz') for k in range(len(given))]
    for path, model in zip(paths, given, strict=True):
      files.save(path, model)
    return paths

  @parameterized.parameters(
      ('q.lora_A.weight', 'q.lora_B.weight'), ('q.lora_A.mine.weight', 'q.lora_B.mine.weight'),
      ('q/lora_a', 'q/lora_b'), ('lora_te_q.lora_down.weight', 'lora_te_q.lora_up.weight'),
      ('to_q_lora.down.weight', 'to_q_lora.up.weight'), ('kernel_lora_a', 'kernel_lora_b'),
      ('q.lora_linear_layer.down.weight', 'q.lora_linear_layer.up.weight'), ('loraA', 'loraB'))
  def test_the_mean_of_products(self, a, b):
    given = [adapter(seed, a, b) for seed in range(3)]
    paths = self.saved(*given)
    with self.assertRaisesRegex(InputError, f'^got the LoRA pair {a} and {b}, .*lora_rank=2, '):
      models.merge('uniform', paths)
    merged = models.merge('uniform', paths, lora_rank=3 * RANK)
    self.assertEqual([merged[name].shape for name in (a, b)], [(6, INPUTS), (OUTPUTS, 6)])
    wanted = sum(map(product, given)) / 3
    np.testing.assert_allclose(product(merged), wanted, rtol=1e-5, atol=1e-5)

  def test_factors_the_other_way_around(self):
    given = [{'x/lora_a': drawn(seed, INPUTS, RANK), 'x/lora_b': drawn(seed + 9, RANK, OUTPUTS)}
             for seed in range(2)]
    merged = models.merge('uniform', self.saved(*given), lora_rank=4)
    wanted = sum(np.float64(m['x/lora_a']) @ m['x/lora_b'] for m in given) / 2
    np.testing.assert_allclose(merged['x/lora_a'] @ merged['x/lora_b'], wanted, atol=1e-5)

  def test_a_lower_rank_is_the_nearest(self):
    given = [adapter(seed) for seed in range(3)]
    made = models.merge_files(
        OPERATORS['uniform'], {}, self.saved(*given), base=None, evaluate=None, seed=0, batch=1,
        lora_rank=RANK)
    wanted = sum(map(product, given)) / 3
    u, s, v = np.linalg.svd(wanted)
    np.testing.assert_allclose(
        product(made.merged), u[:, :RANK] * s[:RANK] @ v[:RANK], rtol=1e-5, atol=1e-5)
    self.assertAlmostEqual(made.cut, np.linalg.norm(s[RANK:]) / np.linalg.norm(s), places=5)

  def test_operators_see_products(self):
    base, *given = (adapter(seed) for seed in range(3))
    merged = models.merge('task_arithmetic', self.saved(*given), base=self.saved(base)[0],
                          settings={'scale': 0.5}, lora_rank=3 * RANK)
    wanted = product(base) + 0.5 * sum(product(model) - product(base) for model in given)
    np.testing.assert_allclose(product(merged), wanted, rtol=1e-4, atol=1e-5)

  def test_a_rank_above_the_smaller_side(self):
    given = [adapter(seed) for seed in range(4)]
    merged = models.merge('uniform', self.saved(*given), lora_rank=8)
    self.assertEqual(merged['q.lora_A.weight'].shape, (8, INPUTS))
    np.testing.assert_allclose(product(merged), sum(map(product, given)) / 4, atol=1e-5)

  def test_the_scale_stays(self):
    given = [adapter(seed) | {'q.alpha': np.float32(3)} for seed in range(2)]
    merged = models.merge('uniform', self.saved(*given), lora_rank=4)
    self.assertEqual(merged['q.alpha'] / 4, 3 / RANK)
    given[1]['q.alpha'] += 1
    with self.assertRaisesRegex(InputError, '^got q.alpha=3, 4 '):
      models.merge('uniform', self.saved(*given), lora_rank=4)

  def test_other_tensors_are_merged_as_ever(self):
    given = [adapter(seed) | {'head': drawn(seed, 4)} for seed in range(2)]
    merged = models.merge('uniform', self.saved(*given), lora_rank=4)
    np.testing.assert_allclose(merged['head'], (given[0]['head'] + given[1]['head']) / 2, rtol=1e-6)
    self.assertEqual([*merged], [*given[0]])

  @parameterized.parameters(
      {'c.lora_A.weight': (2, 3, 1, 1), 'c.lora_B.weight': (4, 2, 1, 1)},
      {'e.lora_embedding_A': (2, 9), 'e.lora_embedding_B': (4, 2)}, {'q.lora_A.weight': (2, 9)},
      {'q.lora_B.weight': (9, 2)}, {'q.lora_A': (3, 9), 'q.lora_B': (4, 2)},
      {'q.lora_A': (4, 4), 'q.lora_B': (4, 4)}, {'q.hada_w1_a': (4, 2)}, {'q.lokr_w1': (2, 2)},
      {'q.lora_A': (2, 9), 'q.lora_B': (9, 2), 'q.lora_magnitude_vector': (9,)})
  def test_refuses_other_adapters(self, **shapes):
    with self.assertRaisesRegex(InputError, f'^got ({"|".join(shapes)}) of shape '):
      lora.pairs(shapes)

  @parameterized.parameters('flora.a', 'lora_unet_down_blocks.weight', 'lora_update', 'explorable')
  def test_names_of_no_adapters(self, name):
    self.assertEqual(lora.pairs({name: (2, 3)}), [])

  @parameterized.parameters(
      (4, {'w': drawn(0, 3)}), (-1, {'w': drawn(0, 3)}), (-1, adapter(0)), (5, adapter(0)),
      (10**12, adapter(0)))
  def test_refuses_a_rank_that_no_pairs_have(self, rank, model):
    with self.assertRaisesRegex(InputError, f'^got lora_rank={rank} for models with '):
      models.merge('uniform', self.saved(model, model), lora_rank=rank)


if __name__ == '__main__':
  absltest.main()
