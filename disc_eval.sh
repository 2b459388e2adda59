#!/bin/sh
# Evaluates: sets up what is missing, then runs `rdcd evaluate` in the caller's folder.
#   sh disc_eval.sh             the newest finished run, from its weights
#   sh disc_eval.sh key=value   any key of `rdcd evaluate --help`
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
python=$(sh "$root/scripts/setup.sh")
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" # this checkout, whatever else is installed

set -- -m rdcd evaluate "$@"
printf 'rdcd: python %s\n' "$*" >&2
exec "$python" "$@"
