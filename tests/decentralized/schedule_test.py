"""Tests of communication schedules against values written out."""

from absl.testing import absltest, parameterized
import numpy as np
from reference import toys

from hmm_jax.decentralized.schedule import schedule
from hmm_jax.types import InputError


def play(text, *, rate=0.25, rounds=6):
  """Returns the rates and the dense rounds of a run."""
  at = toys.jit(schedule(text, rate=rate, rounds=rounds).at)
  rates, dense = zip(*(at(np.int32(t)) for t in range(rounds)))
  assert {(x.shape, x.dtype) for x in rates} == {((), np.dtype(np.float32))}
  assert {(x.shape, x.dtype) for x in dense} == {((), np.dtype(bool))}
  return np.array(rates).tolist(), [t for t in range(rounds) if dense[t]]


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
      ('', 1.5, 'gossip.rate=1.5; expected a number from 0 to 1'),
      ('', -0.1, 'gossip.rate=-0.1; expected a number from 0 to 1'),
      ('', float('nan'), 'gossip.rate=nan; expected a number from 0 to 1'),
      ('', 0.9, 'gossip.rate=0.9; expected at most 0.8, all that the topology can give'),
      ('constant:1.5', 0.2, "'constant:1.5' in gossip.schedule, rate=1.5; expected a number"),
      ('linear:0:-0.1', 0.2, "'linear:0:-0.1' in gossip.schedule, rate=-0.1; expected a number"),
      ('cosine:nan:0', 0.2, 'rate=nan; expected a number from 0 to 1'),
      ('linear:0:0.9', 0.2, "'linear:0:0.9' in gossip.schedule, rate=0.9; expected at most 0.8"),
      ('sine:0:1', 0.2, "'sine:0:1' in gossip.schedule; expected constant:R, linear:A:B"),
      ('linear:0', 0.2, "'linear:0' in gossip.schedule; expected constant"),
      ('constant', 0.2, "'constant' in gossip.schedule; expected constant"),
      ('constant:0:1', 0.2, "'constant:0:1' in gossip.schedule; expected constant"),
      ('dense:x', 0.2, "'dense:x' in gossip.schedule; expected constant"),
      ('dense:1', 0.2, "'dense:1' in gossip.schedule; expected constant"),
      ('constant:x', 0.2, "'constant:x' in gossip.schedule; expected constant"),
      ('dense@', 0.2, "'dense@' in gossip.schedule; expected constant"),
      ('dense@3', 0.2, "'dense@3' in gossip.schedule; expected constant"),
      ('dense@1:2:3', 0.2, "'dense@1:2:3' in gossip.schedule; expected constant"),
      ('dense@-1:3', 0.2, "'dense@-1:3' in gossip.schedule; expected constant"),
      ('dense@1.5:3', 0.2, "'dense@1.5:3' in gossip.schedule; expected constant"),
      ('dense@1:2@3:4', 0.2, "'dense@1:2@3:4' in gossip.schedule; expected constant"),
      ('dense@2:7', 0.2, "'dense@2:7' in gossip.schedule; expected a window from 0 to rounds=6"),
      ('dense@6:', 0.2, "'dense@6:' in gossip.schedule; expected a window from 0 to rounds=6"),
      ('dense@3:3', 0.2, "'dense@3:3' in gossip.schedule; expected a window"),
      ('dense@4:3', 0.2, "'dense@4:3' in gossip.schedule; expected a window"),
      ('dense@:0', 0.2, "'dense@:0' in gossip.schedule; expected a window"),
      ('dense@1:2, dense@8:9', 0.2, "'dense@8:9' in gossip.schedule; expected a window"),
  )
  def test_bad_input_is_one_line(self, text, rate, expected):
    with self.assertRaises(InputError) as caught:
      schedule(text, rate=rate, rounds=6, max_rate=0.8)
    self.assertStartsWith(str(caught.exception), 'got ')
    self.assertIn(expected, str(caught.exception))
    self.assertNotIn('\n', str(caught.exception))


if __name__ == '__main__':
  absltest.main()
