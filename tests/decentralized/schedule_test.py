"""Tests of communication schedules against values written out."""

import re

from absl.testing import absltest, parameterized
import jax
import numpy as np
from reference import toys

from hmm_jax.decentralized.schedule import schedule
from hmm_jax.types import InputError


def play(text, *, rate=0.25, rounds=6):
  """Returns the rates and the dense rounds of a run."""
  at = jax.vmap(schedule(text, rate=rate, rounds=rounds).at)
  rates, dense = toys.jit(at)(np.arange(rounds, dtype=np.int32))
  assert (rates.shape, rates.dtype) == ((rounds,), np.float32)
  assert (dense.shape, dense.dtype) == ((rounds,), bool)
  return rates.tolist(), np.flatnonzero(dense).tolist()


class ScheduleTest(parameterized.TestCase):

  @parameterized.parameters(
      ('', [0.25] * 6),
      (' , ', [0.25] * 6),
      ('constant:0.5', [0.5] * 6),
      ('constant:1@4:', [0.25] * 4 + [1] * 2),
      ('constant:1@:2', [1] * 2 + [0.25] * 4),
      ('constant:1@2:4', [0.25] * 2 + [1] * 2 + [0.25] * 2),
      ('constant:0@5:6', [0.25] * 5 + [0]),
      ('linear:0:1', [0, 0.2, 0.4, 0.6, 0.8, 1]),
      ('linear:0:1@:', [0, 0.2, 0.4, 0.6, 0.8, 1]),
      ('linear:1:0.5@1:', [0.25, 1, 0.875, 0.75, 0.625, 0.5]),
      ('linear:0:1@:3', [0, 0.5, 1] + [0.25] * 3),
      ('linear:0.5:1@3:4', [0.25] * 3 + [0.5] + [0.25] * 2),
      ('cosine:1:0@1:', [0.25, 1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0]),
      ('cosine:0.2:0.6@2:5', [0.25] * 2 + [0.2, 0.4, 0.6] + [0.25]),
      # The last of several pieces counts.
      ('constant:0.5,constant:1@2:4', [0.5] * 2 + [1] * 2 + [0.5] * 2),
      ('constant:1@2:4, constant:0.5', [0.5] * 6),
      ('linear:0:1@:3,constant:0@2:', [0, 0.5, 0, 0, 0, 0]),
  )
  def test_rates(self, text, expected):
    rates, dense = play(text)
    np.testing.assert_allclose(rates, expected, rtol=0, atol=1e-6)
    self.assertEmpty(dense)

  @parameterized.parameters(
      ('dense', [0, 1, 2, 3, 4, 5]),
      ('dense@2:4', [2, 3]),
      ('dense@:1,dense@5:', [0, 5]),
      ('dense,constant:0@1:3', [0, 3, 4, 5]),
      ('constant:0,dense@3:4', [3]),
  )
  def test_dense_rounds(self, text, expected):
    self.assertEqual(play(text)[1], expected)

  def test_a_rise_over_the_whole_run_ends_at_its_last_value_exactly(self):
    rates, _ = play('linear:0:1', rounds=300)
    self.assertEqual((rates[0], rates[-1]), (0, 1))
    np.testing.assert_allclose(rates, np.arange(300) / 299, rtol=1e-6)

  def test_a_run_of_one_round(self):
    self.assertEqual(play('linear:0.5:1', rounds=1), ([0.5], []))

  @parameterized.parameters(
      ('', None), ('constant:1@3:', None), ('dense', None), ('linear:0:1@:6', None),
      ('cosine:0:1@2:4', None), ('linear:0:1', 6), ('cosine:0:1@3:', 6),
      ('linear:0:1,constant:1', 6))
  def test_reads_the_length_only_where_a_change_has_no_end(self, text, expected):
    self.assertEqual(schedule(text, rate=0.25, rounds=6).length, expected)

  def test_the_most_that_the_topology_can_give_is_fine(self):
    schedule('linear:0:0.8,dense', rate=0.8, rounds=6, max_rate=0.8)

  @parameterized.parameters(
      ('', 1.5, 'got rate=1.5'), ('', float('nan'), 'got rate=nan'),
      ('', 0.9, 'got rate=0.9; expected at most 0.8'),
      ('constant:1.5', 0.2, "'constant:1.5' .*rate=1.5"),
      ('linear:0:0.9', 0.2, "'linear:0:0.9' .*rate=0.9; expected at most 0.8"),
      *((text, 0.2, re.escape(repr(text))) for text in (
          'sine:0:1', 'linear:0', 'constant:0:1', 'dense:1', 'constant:x', 'dense@', 'dense@3',
          'dense@1:2:3', 'dense@-1:3', 'dense@1.5:3', 'dense@1:2@3:4', 'dense@2:7', 'dense@6:',
          'dense@3:3', 'dense@:0')),
      ('dense@1:2, dense@8:9', 0.2, "'dense@8:9'"))
  def test_refuses(self, text, rate, message):
    with self.assertRaisesRegex(InputError, message):
      schedule(text, rate=rate, rounds=6, max_rate=0.8)


if __name__ == '__main__':
  absltest.main()
