"""The runs to compare with, and what is wrong with them in one line."""

from absl.testing import absltest, parameterized

from hmm_jax.experiment import comparisons
from hmm_jax.experiment import config as configs
from hmm_jax.types import InputError


def changed(**values):
  config = configs.get_config()
  config.update_from_flattened_dict(values)
  return config


class ComparisonsTest(parameterized.TestCase):

  def test_references_and_variants_change_what_they_name(self):
    config = changed(
        references='linear,local', name='mine', rounds=7, variants=(
            'hot local.lr=0.5 mlp.hidden=(7,)', 'file dataset=npz:a=b.npz keep_best=True',
            'rare algorithm=gossip gossip.rate=0 gossip.schedule=dense@2:3'))
    others = comparisons.comparisons(config)
    self.assertEqual(list(others), ['linear', 'local', 'hot', 'file', 'rare'])
    expected = {
        'linear': {'model': 'mlp', 'mlp.hidden': ()},
        'local': {'algorithm': 'local'},
        'hot': {'local.lr': 0.5, 'mlp.hidden': (7,)},
        'file': {'dataset': 'npz:a=b.npz', 'keep_best': True},
        'rare': {'algorithm': 'gossip', 'gossip.rate': 0.0, 'gossip.schedule': 'dense@2:3'},
    }
    plain = configs.flat(changed(rounds=7))
    for name, other in others.items():
      self.assertEqual(configs.flat(other), plain | expected[name], name)
    self.assertEqual((config.name, config.references), ('mine', 'linear,local'))

  def test_there_may_be_none(self):
    self.assertEqual(comparisons.comparisons(changed()), {})

  @parameterized.named_parameters(
      ('reference', {'references': 'lokal'}, 'got references=lokal; .*did you mean local'),
      ('empty', {'variants': ('',)}, "got '' in variants"),
      ('no_value', {'variants': ('low local.lr',)}, "got 'low local.lr' in variants"),
      ('no_name', {'variants': ('local.lr=0.5',)}, "got 'local.lr=0.5' in variants"),
      ('no_text', {'variants': (3,)}, 'got 3 in variants'),
      ('path', {'variants': ('../x rounds=3',)}, "got '../x rounds=3' in variants"),
      ('key', {'variants': ('low local.lrr=1',)}, 'got local.lrr in low; .*did you mean local.lr'),
      ('type', {'variants': ('low rounds=2.5',)}, 'got rounds=2.5; expected a value like 100'),
      ('bounds', {'variants': ('good rounds=3', 'low local.lr=-1')}, 'got local.lr=-1.0'),
      ('twice', {'variants': ('a rounds=3', 'a rounds=4')}, 'got a twice'),
      ('itself', {'variants': ('fedavg rounds=3',)}, 'got fedavg .*the run itself'))
  def test_a_bad_one_is_named_in_one_line(self, values, expected):
    with self.assertRaisesRegex(InputError, expected) as caught:
      comparisons.comparisons(changed(**values))
    self.assertNotIn('\n', str(caught.exception))


class WritingTest(parameterized.TestCase):

  def test_what_is_written_is_read(self):
    text = comparisons.variant('mine', {'rounds': 3, 'mlp.hidden': (7,), 'dataset': 'npz:a.npz'})
    config = changed(variants=(text,))
    got = comparisons.comparisons(config)['mine']
    self.assertEqual((got.rounds, tuple(got.mlp.hidden), got.dataset), (3, (7,), 'npz:a.npz'))

  @parameterized.parameters(
      ('', ('main', 'small')), ('scale=paper', ('main', 'paper')),
      ('scale=paper,setting=other', ('other', 'paper')))
  def test_arguments(self, text, expected):
    got = comparisons.arguments(text, setting=('main', 'other'), scale={'small': 1, 'paper': 2})
    self.assertEqual(got, dict(zip(('setting', 'scale'), expected, strict=True)))

  @parameterized.parameters('scale=huge', 'size=paper', 'paper', 'scale')
  def test_arguments_that_are_none(self, text):
    with self.assertRaisesRegex(InputError, f"got '{text}'; expected scale=small.paper"):
      comparisons.arguments(text, scale=('small', 'paper'))


if __name__ == '__main__':
  absltest.main()
