"""The tables and the picture at the end of a command."""

from absl.testing import absltest, parameterized

from hmm_jax.report import tables


class Paper:
  """A screen that remembers its tables, {title: rows with the header first}."""

  def __init__(self):
    self.tables = {}

  def say(self, text):
    pass

  def table(self, title, header, rows):
    self.tables[title] = [header, *rows]


def measured(**means):
  """Returns what a summary says of metrics, whose seeds are 0.1 above and below the mean."""
  return {name.replace('__', '/'): {'mean': mean, 'std': 0.1, 'seeds': [mean - 0.1, mean + 0.1]}
          for name, mean in means.items()}


class ShowTest(parameterized.TestCase):

  def test_one_seed_has_no_spread(self):
    self.assertEqual(tables.spread({'mean': 0.5, 'std': 0.0, 'seeds': [0.5]}), '0.5000')
    self.assertEqual(tables.spread({'mean': -1e-8, 'std': 0.0, 'seeds': [-1e-8]}), '0.0000')
    self.assertEqual(tables.spread({'mean': 0.5, 'std': 0.1, 'seeds': [0.4, 0.6]}),
                     '0.5000 ± 0.1000')

  def test_models_before_and_after_the_finish(self):
    summary = {
        'last': measured(merged__test__accuracy=0.9, locals__test__accuracy=0.8),
        'before_finish': measured(merged__test__accuracy=0.7, locals__test__accuracy=0.2)}
    self.assertEqual([row[:3] for row in tables.of_global_models({'talk': summary}, 'accuracy')], [
        ['talk', 'merged', '0.9000 ± 0.1000'], ['talk', 'locals', '0.8000 ± 0.1000'],
        ['talk', 'merged, before', '0.7000 ± 0.1000'],
        ['talk', 'locals, before', '0.2000 ± 0.1000']])
    for summary in ({'last': measured(global__test__accuracy=0.5)},
                    {'last': measured(global__test__accuracy=0.5), 'before_finish': None}):
      self.assertEqual(tables.of_global_models({'mean': summary}, 'accuracy'), [
          ['mean', 'global', '0.5000 ± 0.1000', '0.4000', '0.6000']])

  def own(self, mean, **others):
    return measured(clients__test__accuracy=mean, clients_weighted__test__accuracy=mean + 0.05,
                    clients_worst__test__accuracy=mean - 0.3, **others)

  def test_clients_before_and_after_the_finish(self):
    selected = self.own(0.6, global__test__accuracy=0.4)
    summaries = {
        'merge': {'last': self.own(0.8), 'before_finish': self.own(0.7),
                  'selected_on_validation': selected},
        'mean': {'last': self.own(0.5, global__test__accuracy=0.1), 'before_finish': None,
                 'selected_on_validation': None},
        'nobody': {'last': measured(global__test__accuracy=0.1),
                   'selected_on_validation': measured(global__test__accuracy=0.2)},
        # As runs from before the worst tenth was measured left it.
        'old': {'last': measured(clients__test__accuracy=0.1), 'selected_on_validation': selected}}
    self.assertEqual(tables.of_own_models(summaries, 'accuracy'), [
        ['merge', 'clients', '0.8000 ± 0.1000', '0.6000 ± 0.1000', '0.8500 ± 0.1000',
         '0.5000 ± 0.1000', '0.7000', '0.9000'],
        ['merge', 'clients, before', '0.7000 ± 0.1000', '', '0.7500 ± 0.1000', '0.4000 ± 0.1000',
         '0.6000', '0.8000'],
        ['mean', 'clients', '0.5000 ± 0.1000', '', '0.5500 ± 0.1000', '0.2000 ± 0.1000', '0.4000',
         '0.6000']])
    self.assertEmpty(tables.of_own_models(
        {name: summaries[name] for name in ('nobody', 'old')}, 'accuracy'))

  def test_the_short_table_has_each_run_and_model_once(self):
    run = {'last': self.own(0.8, global__test__accuracy=0.5, train__loss=1), 'seeds': [0, 1],
           'selected_on_validation': self.own(0.6), 'train_seconds': 1.0, 'compile_seconds': 1.0,
           'peak_memory_bytes': 1, 'device': 'one'}
    paper = Paper()
    tables.brief({'merge': run, 'bare': {**run, 'selected_on_validation': None,
                                         'last': measured(locals__test__accuracy=0.3)}}, paper)
    (title, rows), = paper.tables.items()
    self.assertIn('± std over 2 seeds, which share one partition', title)
    self.assertEqual(rows[1:], [
        ['merge', 'global', '0.5000 ± 0.1000', ''],
        ['merge', 'clients, mean on their own examples', '0.8000 ± 0.1000', '0.6000 ± 0.1000'],
        ['bare', 'locals, mean', '0.3000 ± 0.1000', '']])
    self.assertEqual(tables.about_seeds([{'seeds': [0]}]), '')

  def test_tables(self):
    costs = {'rounds': 4, 'seeds': [5, 6], 'train_seconds': 1.0, 'compile_seconds': 1.0,
             'peak_memory_bytes': 1, 'device': 'one'}
    gossip = {**costs, 'selected_on_validation': None,
              'before_finish': measured(round=4, consensus=2, merged__test__accuracy=0.7),
              'last': measured(round=4, consensus=1, merged__test__accuracy=0.9)}
    other = {**costs, 'selected_on_validation': measured(global__test__accuracy=0.4),
             'last': measured(global__test__accuracy=0.5)}
    merge = {**costs, 'selected_on_validation': self.own(0.6), 'last': self.own(0.8)}
    paper = Paper()
    tables.show({'talk': gossip, 'mean': other}, paper)
    self.assertEqual(paper.tables['talk, mean ± std over seeds'], [
        ['metric', 'round 4', 'round 4, before the finish'],
        ['consensus', '1.0000 ± 0.1000', '2.0000 ± 0.1000'],
        ['merged/test/accuracy', '0.9000 ± 0.1000', '0.7000 ± 0.1000']])
    self.assertEqual(paper.tables['accuracy on the global test split'], [
        ['run', 'model', 'round 4', 'seed 5', 'seed 6'],
        ['talk', 'merged', '0.9000 ± 0.1000', '0.8000', '1.0000'],
        ['talk', 'merged, before', '0.7000 ± 0.1000', '0.6000', '0.8000'],
        ['mean', 'global', '0.5000 ± 0.1000', '0.4000', '0.6000']])
    self.assertLen(paper.tables, 2)  # No table of clients who have no rows.
    tables.show({'mean': other, 'merge': merge}, paper)
    self.assertEqual(paper.tables["accuracy of each client's model on its own test examples"], [
        ['run', 'model', 'mean', 'selected', 'weighted by examples', 'worst tenth', 'seed 5',
         'seed 6'],
        ['merge', 'clients', '0.8000 ± 0.1000', '0.6000 ± 0.1000', '0.8500 ± 0.1000',
         '0.5000 ± 0.1000', '0.7000', '0.9000']])
    self.assertEqual(paper.tables['accuracy on the global test split'][1:], [
        ['mean', 'global', '0.5000 ± 0.1000', '0.4000', '0.6000']])
    self.assertEqual(paper.tables['mean, mean ± std over seeds'][0],
                     ['metric', 'round 4', 'selected on validation'])


if __name__ == '__main__':
  absltest.main()
