#!/bin/sh
# Trains: sets up what is missing, then runs `rdcd train` in the caller's folder.
#   sh train.sh               the embedded default, end to end
#   sh train.sh key=value …   any key of `rdcd train --help`
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
python=$(sh "$root/scripts/setup.sh")
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" # this checkout, whatever else is installed

set -- -m rdcd train "$@"
printf 'rdcd: python %s\n' "$*" >&2
exec "$python" "$@"
