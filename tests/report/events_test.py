"""Event files hold every row once, whenever a run was killed and resumed."""

import os
import pathlib
import struct
import tempfile

from absl.testing import absltest
from tensorboardX.proto import event_pb2

from hmm_jax.report.events import Events


def values(folder):
  """Reads all event files of a folder: sorted (name, step, value)."""
  found = []
  for path in pathlib.Path(folder).iterdir():
    content = path.read_bytes()
    while content:
      size, = struct.unpack('<Q', content[:8])  # Then four bytes of a checksum, and after.
      event = event_pb2.Event.FromString(content[12:12 + size])
      found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
      content = content[16 + size:]
  return sorted(found)


class EventsTest(absltest.TestCase):

  def test_rows_of_a_run_that_goes_on_are_there_once(self):
    folder = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'events')
    row = lambda number: {'round': number, 'seed': 3, 'loss': 0.5 * number}
    first = Events(folder, [])
    first.write([row(1)])
    first.write([row(2)])  # After which a kill took the checkpoint.
    first.close()
    second = Events(folder, [row(1)])
    second.write([row(2), row(3)])
    second.close()
    self.assertEqual(values(folder), [('seed3/loss', k, 0.5 * k) for k in (1, 2, 3)])


if __name__ == '__main__':
  absltest.main()
