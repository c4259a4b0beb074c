"""How many inputs the fuzzers draw: FUZZ_TIMES=3 draws thrice as many, FUZZ_SEED=7 others."""

import os

TIMES = int(os.environ.get('FUZZ_TIMES', '1'))
SEED = int(os.environ.get('FUZZ_SEED', '0'))
