"""python -m hmm_jax.main [--config=FILE] [--config.key=value ...]: the same as `hmm_jax run`."""

import signal

# Until `entry`, Ctrl-C ends the process without a traceback; unless it is ignored.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
  signal.signal(signal.SIGINT, signal.SIG_DFL)

import sys

from hmm_jax.main.train import entry

if __name__ == '__main__':
  entry(sys.argv)
