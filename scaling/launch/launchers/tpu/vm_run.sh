# shellcheck shell=bash disable=SC2154  # the settings are above
# Asks Cloud TPU for slices, runs a worker on each until its sweep has nothing left, and deletes them. Where a slice is
# taken away it is deleted and asked for again; a worker whose machines failed is started again on the same ones.
#
# Run it on a machine that stays on. Ctrl-C, once: workers save their runs, slices are deleted. Started again, it goes
# on, also with slices that are still there. Ends with 0: nothing is left to claim; 2: refused; 1: stopped, or given up.
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")" || exit 2
stopping="$(mktemp)"
rm "$stopping" # there once the slices are to be given back
poll_seconds=20
quick_seconds=60 # what ends sooner than this after its start counts as a crash, whatever it says
exec > >(trap '' INT TERM HUP && tee -a log.txt) 2>&1

say() { echo "$(date '+%F %T') $*"; }

tpus() { gcloud compute tpus "$@" --project="$project" --zone="$zone" --quiet </dev/null; }

on_hosts() { tpus tpu-vm ssh "$1" --worker=all --command="$2"; }

# The state of a slice's queued resource; nothing where there is none.
state() { tpus queued-resources list --filter="name ~ /$1\$" --format='value(state.state)'; }

delete() { tpus queued-resources delete "$1" --force; }

# Waits until a slice is there, and asks for it where it is not.
acquire() {
  local now
  while [ ! -e "$stopping" ]; do
    if ! now="$(state "$1")"; then
      say "$1: Cloud TPU does not answer; asking again"
    else
      case "$now" in
        ACTIVE) return 0 ;;
        '')
          say "$1: asked for"
          tpus queued-resources create "$1" --node-id="$1" "${create[@]}" || return 1
          ;;
        SUSPENDED)
          say "$1: was taken away; deleted"
          delete "$1"
          ;;
        FAILED)
          say "$1: cannot be had:"
          tpus queued-resources describe "$1"
          delete "$1"
          return 1
          ;;
      esac
    fi
    sleep "$poll_seconds"
  done
  return 1
}

install() {
  on_hosts "$1" 'mkdir -p scaling' &&
    tpus tpu-vm scp --recurse "${sent[@]}" "$1:scaling/" --worker=all &&
    on_hosts "$1" 'bash scaling/worker.sh install'
}

resumes() {
  local code
  for code in "${resumed[@]}" 255; do # 255: the connection broke
    [ "$1" != "$code" ] || return 0
  done
  return 1
}

# Keeps a worker on a slice until it has nothing left to claim (0), is refused (2), or is given up (1).
keep() {
  local began code now crashes=0
  while [ ! -e "$stopping" ]; do
    code=1 now=''
    if acquire "$1"; then
      began=$SECONDS
      if install "$1"; then
        say "$1: the worker starts"
        on_hosts "$1" 'bash scaling/worker.sh run'
        code=$?
        say "$1: the worker ended with $code"
      fi
      if [ "$code" -eq 0 ] || [ "$code" -eq "$refused" ]; then return "$code"; fi
      now="$(state "$1")"
      if [ -n "$now" ] && [ "$now" != ACTIVE ]; then
        say "$1: is $now"
        continue
      fi
      if resumes "$code" && [ $((SECONDS - began)) -ge "$quick_seconds" ]; then continue; fi
    fi
    [ ! -e "$stopping" ] || break
    crashes=$((crashes + 1))
    if [ "$crashes" -gt "$restarts" ]; then
      say "$1: given up"
      return 1
    fi
    say "$1: started again ($crashes of $restarts)"
    sleep "$poll_seconds"
  done
  return 1
}

# A slice from its request to its deletion.
slice() {
  local code now
  trap '' INT TERM HUP # the parent is told, and tells the workers
  keep "$1"
  code=$?
  if ! now="$(state "$1")" || { [ -n "$now" ] && ! delete "$1"; }; then
    say "$1: COULD NOT BE DELETED and may cost money; look: gcloud compute tpus queued-resources list \
--project=$project --zone=$zone"
  fi
  return "$code"
}

# shellcheck disable=SC2317  # by the trap below
stop() {
  local i
  touch "$stopping"
  say 'stopping: the workers save their runs, then the slices are deleted'
  for ((i = 0; i < slices; i++)); do
    (trap '' INT TERM HUP && on_hosts "$name-$i" 'bash scaling/worker.sh stop') &
  done
}

if ! state "$name-0" >/dev/null; then
  say "Cloud TPU does not answer for project $project, zone $zone; see above"
  exit 2
fi
tar -czf code.tgz --exclude=__pycache__ -C "$checkout" "${code[@]}" || exit 2
trap stop INT TERM HUP
pids=()
for ((i = 0; i < slices; i++)); do
  slice "$name-$i" &
  pids+=($!)
done
worst=0
for pid in "${pids[@]}"; do
  wait "$pid"
  ended=$?
  while kill -0 "$pid" 2>/dev/null; do # a signal ends `wait` early
    wait "$pid"
    ended=$?
  done
  [ "$ended" -le "$worst" ] || worst=$ended
done
rm -f "$stopping"
case "$worst" in
  0) say 'nothing is left to claim' ;;
  *) say 'runs may be left: fix what is said above, and start this script again to go on' ;;
esac
exit "$worst"
