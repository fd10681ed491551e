#!/usr/bin/env bash
# Written by `scaling sweep --launcher tpu`; change the sweep, not this file.
command=(venv/bin/python -m scaling.cli worker gs://my-bucket/scaling isoflop.v2 --config sweep/sweep.py)
fetch=(venv/bin/python -m scaling.launch.fetch gs://my-bucket/text text)
secret=wandb
secret_variable=WANDB_API_KEY
project=my-project
export PYTHONUNBUFFERED=1
export JAX_PLATFORMS=tpu,cpu
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
export SCALING_WORKERS=2

# shellcheck shell=bash disable=SC2154  # the settings are above
# On a host of a slice, beside code.tgz: `install`, `run` or `stop` its worker. The worker outlives the connection that
# started it; `run` again follows one that still runs, and ends as it ends.
set -u

cd "$(dirname "$0")" || exit 1

running() { ! flock --nonblock worker.lock true; } # a worker holds the lock as long as it lives

stop() {
  running || return 0
  kill -TERM "$(cat worker.pid)"
  flock --timeout 120 worker.lock true || kill -KILL "$(cat worker.pid)"
}

install() {
  local sum
  sum="$(sha256sum <code.tgz)"
  if [ "$sum" = "$(cat installed 2>/dev/null)" ]; then return 0; fi
  stop # it is of other code
  rm -rf source venv && mkdir source && tar -xzf code.tgz -C source &&
    python3 -m pip install --quiet --user uv && # the machines' own Python is older than 3.11
    ~/.local/bin/uv venv --quiet --python 3.13 venv &&
    ~/.local/bin/uv pip install --quiet --python venv/bin/python --constraint source/constraints.txt './source[tpu,gcs]' &&
    echo "$sum" >installed
}

run() {
  local lines=20 value
  if ! running; then
    export SCALING_CACHE="$PWD/cache" JAX_COMPILATION_CACHE_DIR="$PWD/cache/compiled"
    if [ -n "$secret" ]; then
      value="$(gcloud secrets versions access latest --secret="$secret" --project="$project")" || exit 1
      export "$secret_variable=$value"
    fi
    [ "${#fetch[@]}" -eq 0 ] || "${fetch[@]}" || exit 1
    rm -f worker.pid worker.code
    : >worker.log
    lines=+1
    # shellcheck disable=SC2016  # its own variables
    setsid flock worker.lock bash -c '"$@" >>worker.log 2>&1 & echo $! >worker.pid; wait $!; echo $? >worker.code' \
      worker "${command[@]}" </dev/null >/dev/null 2>&1 &
    until [ -s worker.pid ]; do sleep 0.1; done
  fi
  tail --lines="$lines" --follow --pid="$(cat worker.pid)" worker.log
  flock worker.lock true
  exit "$(cat worker.code 2>/dev/null || echo 75)" # without a word: the machine is going down
}

case "${1-}" in
  install | run | stop) "$1" ;;
  *) echo "usage: $0 install | run | stop" >&2 && exit 2 ;;
esac
