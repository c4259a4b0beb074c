#!/usr/bin/env bash
# Trains on a TPU pod: start this on every worker, with the same flags.
#
#   launch/tpu_pod.sh --workdir=SHARED_FOLDER [flags of hmm_jax.main...]
#
# Process 0 writes and all read, so the folder must be mounted on every worker. JAX
# learns from the pod's metadata who the others are. Start it again to resume.
set -euo pipefail
exec python -m hmm_jax.main --coordinator=auto "$@"
