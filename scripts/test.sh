#!/bin/sh
# Tests: sets up what is missing, then runs pytest in the checkout's folder.
#   sh scripts/test.sh                       the whole suite, on all cores
#   sh scripts/test.sh tests/data -k folder  any arguments of pytest
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
python=$(sh "$root/scripts/setup.sh" test)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" # this checkout, whatever else is installed

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # threads that wait for a busy core are slower than one
[ $# -gt 0 ] || set -- -n auto --maxprocesses 8 --dist loadscope --no-loadscope-reorder
set -- -m pytest "$@"
printf 'rdcd: in %s: python %s\n' "$root" "$*" >&2
cd "$root"
exec "$python" "$@"
