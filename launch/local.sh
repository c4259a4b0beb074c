#!/usr/bin/env bash
# Trains in N processes on this machine, one CPU device each: a cluster in small.
#
#   launch/local.sh N [flags of hmm_jax.main...]
#
# Process 0 writes the files and its output is shown; another's only if it fails. When
# one process dies the others are stopped, and its exit code is the script's. Ctrl-C or a
# TERM lets them finish their round and save, for at most GRACE seconds (20).
# Needs bash 5.1. PYTHON names another interpreter.
set -uo pipefail

if ! [[ "${1:-}" =~ ^[1-9][0-9]{0,3}$ ]]; then
  echo "local.sh: got N=${1:-}; expected how many processes, then flags of hmm_jax.main" >&2
  exit 2
fi
n=$1
shift

python=${PYTHON:-python}
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])') || exit
export JAX_PLATFORMS=cpu JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo
# The coordinator would listen on every network otherwise.
export JAX_COORDINATOR_BIND_ADDRESS=127.0.0.1:$port

errors=$(mktemp -d)
pids=()

# What process 0 says, but for its complaint when another has died, which is told below.
exec 4> >(trap '' INT TERM; grep --line-buffered -v '^hmm_jax: lost another process' >&2)
said=$!

told() {
  exec 4>&-
  wait "$said"
}
# Killed outright, in the end: files survive any kill.
stop() {
  kill -KILL $(jobs -pr)
  ((${#pids[@]} == 0)) || wait "${pids[@]}"  # Without a name it would wait for grep, too.
  told
  rm -rf "$errors"
}
finish() {
  kill -TERM $(jobs -pr)
  for ((tenths = 0; tenths < 10 * ${GRACE:-20}; tenths++)); do
    [[ -n "$(jobs -pr)" ]] || break
    sleep 0.1
  done
  exit "$1"
}
trap stop EXIT
trap 'finish 130' INT
trap 'finish 143' TERM

run() {
  exec "$python" -m hmm_jax.main "$@" --coordinator="127.0.0.1:$port" --processes="$n" \
    --process="$i" --cpu_devices=1
}
for ((i = 0; i < n; i++)); do
  if ((i == 0)); then run "$@" 2>&4 4>&- & else run "$@" >/dev/null 2>"$errors/$i" 4>&- & fi
  pids+=($!)
done

# Bash would report each job that is killed below.
exec 3>&2 2>/dev/null

for ((left = n; left > 0; left--)); do
  wait -n -p dead
  code=$?
  ((code == 0)) || break
done
((code == 0)) && exit

for ((i = 0; pids[i] != dead; i++)); do :; done
if ((i > 0)); then
  # What is wrong for all, process 0 is about to say too, and once is enough.
  for ((tenths = 0; tenths < 100; tenths++)); do
    kill -0 "${pids[0]}" || break
    sleep 0.1
  done
  first=stopped
  kill -KILL "${pids[0]}" || { wait "${pids[0]}"; first=$?; }
  kill -KILL $(jobs -pr)
  told
  if [[ "$first" != "$code" ]] || { ((code != 2)) && [[ -s "$errors/$i" ]]; }; then
    sed "s/^/process $i: /" "$errors/$i" >&3
    ((code == 2)) || echo "local.sh: process $i of $n ended with code $code" >&3
  fi
fi
exit "$code"
