"""The laws of merge operators, over the registry, and that what is wrong breaks them."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import pytest

from hmm_jax import tree
from hmm_jax.check.operators import LAWS
from hmm_jax.merging import OPERATORS
from hmm_jax.registry import REQUIRED, Operator, Setting
from hmm_jax.types import InputError

# Uncompiled, searches and matchings take long.
LONG = [(name, 'compiled is eager') for name in (
    'learned_soup', 'adamerging', 'cat', 'weight_matching', 'activation_matching', 'pleas')]
PLAIN = Operator('mine', lambda: lambda stacked, base, key: tree.mean(stacked), ('shared init',),
                 summary='the mean')
ON_DATA = PLAIN._replace(needs=('shared init', 'network', 'data'))


def plain(merge, **changes):
  """Returns an operator that merges so."""
  return PLAIN._replace(make=lambda: merge, **changes)


def labels_read(model, stacked, base, examples, indices, key):
  """Shrinks the mean by what the labels are."""
  return tree.scale(1 / (1 + examples.y[indices[0]].sum()), tree.mean(stacked['params']))


def padding_read(model, stacked, base, examples, indices, key):
  """Shrinks the mean by the examples in the place of -1."""
  return tree.scale(1 / (1 + jnp.abs(examples.x[indices]).sum()), tree.mean(stacked['params']))


def scaled(check):
  """Returns an operator with a setting, which it checks in this way."""

  def make(*, scale=1.0):
    check(scale)
    return lambda stacked, base, key: tree.mean(stacked)

  return PLAIN._replace(make=make, settings={'scale': Setting(1.0, 'of it', above=0)})


def refuse(error, message):
  def check(scale):
    if not 0 < scale < float('inf'):
      raise error(message.format(scale))

  return check


WRONG = {
    'a sum instead of a mean': (
        plain(lambda stacked, base, key: jax.tree.map(lambda x: x.sum(axis=0), stacked)),
        'copies of one model merge to that model',
        '3 copies of one model merge to another model: this is 3 times the model, a sum of the 3 '
        'and not their mean'),
    'NaN': (
        plain(lambda stacked, base, key: tree.scale(jnp.nan, tree.mean(stacked))),
        'copies of one model merge to that model', 'a difference of inf'),
    'the base whatever the models are': (
        plain(lambda stacked, base, key: base, needs=('base',)), 'the models matter',
        'merge to this base'),
    'the first model': (
        plain(lambda stacked, base, key: tree.take(stacked, 0)),
        'the order of the models does not matter', 'in another order merge to another model'),
    'by chance mostly the first model': (
        plain(lambda stacked, base, key: tree.take(
            stacked, jax.random.choice(key, 3, p=jnp.array([0.6, 0.2, 0.2])))),
        'the order of the models does not matter', 'in another order merge to another model'),
    'a wider type': (
        plain(lambda stacked, base, key: jax.tree.map(
            lambda x: x.astype(jnp.float32).mean(axis=0), stacked)),
        'parameters keep their structure, shapes and types',
        r'float32\[.*\] after the merge, expected'),
    'a leaf less': (
        plain(lambda stacked, base, key: {'head': tree.mean(stacked['head'])}),
        'parameters keep their structure, shapes and types', 'another structure'),
    'variables instead of parameters': (
        ON_DATA._replace(make=lambda: lambda model, stacked, *args: tree.mean(stacked)),
        'parameters keep their structure, shapes and types', 'another structure'),
    'half precision inside': (
        plain(lambda stacked, base, key: jax.tree.map(lambda x: (x[0] + x[1] + x[2]) / 3, stacked)),
        'half precision is rounded once', 'it is computed in float16'),
    'another result under jit': (
        plain(lambda stacked, base, key: tree.scale(
            2.0 if isinstance(key, jax.core.Tracer) else 1.0, tree.mean(stacked))),
        'compiled is eager', 'a compiled merge differs from an eager one'),
    'labels read though none are needed': (
        ON_DATA._replace(make=lambda: labels_read), 'labels matter where they are needed',
        "must need 'labels'"),
    'labels needed but not read': (
        ON_DATA._replace(
            needs=(*ON_DATA.needs, 'labels'),
            make=lambda: lambda model, stacked, *args: tree.mean(stacked['params'])),
        'labels matter where they are needed', 'other labels give the same merge'),
    'padding that is read': (
        ON_DATA._replace(make=lambda: padding_read), 'padding is not read',
        'examples that no index names are read'),
    'an unknown need': (
        PLAIN._replace(needs=('shared init', 'luck')), 'needs are known', 'needs luck'),
    'nothing said of how models start': (
        PLAIN._replace(needs=()), 'needs are known', 'exactly one of any init, shared init, base'),
    'data without a network': (
        PLAIN._replace(needs=('base', 'data')), 'needs are known', 'so it needs network, too'),
    'an argument that is no setting': (
        OPERATORS['ties']._replace(settings={}), 'settings are the arguments',
        'which is no setting'),
    'a setting that is no argument': (
        PLAIN._replace(settings={'scale': Setting(1.0, 'of it')}), 'settings are the arguments',
        'scale is a setting, but make does not take it'),
    'another default': (
        scaled(refuse(InputError, 'got scale={}'))._replace(
            settings={'scale': Setting(2.0, 'of it')}),
        'settings are the arguments', 'scale is 2.0 by default, but for make it is 1.0'),
    'a setting that is not checked': (
        scaled(lambda scale: None), 'impossible settings are refused', 'scale=0 is not refused'),
    'another error': (
        scaled(refuse(ValueError, 'got scale={}')), 'impossible settings are refused',
        'scale=0 raises ValueError'),
    'an error that does not name the setting': (
        scaled(refuse(InputError, 'no: {}')), 'impossible settings are refused',
        'does not say "got scale=..."'),
    'weights of any number': (
        PLAIN._replace(make=lambda *, weights=None: lambda stacked, base, key: tree.mean(stacked),
                       settings={'weights': Setting(None, 'one for each')}),
        'impossible settings are refused', 'weights=.* is not refused'),
}


def case(*words):
  return '-'.join(words).replace(',', '').replace(' ', '-')


class LawsTest(parameterized.TestCase):

  @parameterized.named_parameters(
      (case(name, law), name, law) for name in OPERATORS for law in LAWS if (name, law) not in LONG)
  def test_holds(self, name, law):
    LAWS[law](OPERATORS[name])

  @parameterized.named_parameters((case(name, law), name, law) for name, law in LONG)
  @pytest.mark.slow
  def test_holds_after_long(self, name, law):
    LAWS[law](OPERATORS[name])

  @parameterized.named_parameters((case(fault), fault) for fault in WRONG)
  def test_is_broken_by(self, fault):
    operator, law, message = WRONG[fault]
    with self.assertRaisesRegex(AssertionError, message):
      LAWS[law](operator)

  def test_merges_by_chance_that_are_fair_on_average_obey(self):
    LAWS['the order of the models does not matter'](plain(lambda stacked, base, key: tree.take(
        stacked, jax.random.choice(key, 3))))

  def test_settings_without_a_default_are_given_a_possible_value(self):

    def make(*, share):
      refuse(InputError, 'got share={}')(share)
      return lambda stacked, base, key: tree.mean(stacked)

    operator = PLAIN._replace(make=make, settings={'share': Setting(REQUIRED, 'of it', above=0)})
    for law in LAWS.values():
      law(operator)

  def test_summaries_differ(self):
    self.assertLen({operator.summary for operator in OPERATORS.values()}, len(OPERATORS))


if __name__ == '__main__':
  absltest.main()
