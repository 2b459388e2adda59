#!/bin/sh
# Trains: sets up what is missing, then runs `rdcd train` in the caller's folder.
#   sh train.sh               the embedded default, end to end
#   sh train.sh key=value …   any key of `rdcd train --help`; trainer.devices=N runs N processes, one a GPU
# Several machines: docs/multi-node.md.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
python=$(sh "$root/scripts/setup.sh")
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" # this checkout, whatever else is installed
exec "$python" "$root/scripts/launch.py" "$@"
