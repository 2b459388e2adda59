#!/bin/sh
# Trains: sets up what is missing, then runs `rdcd train` in the caller's folder.
#   sh train.sh                               the embedded default, end to end
#   sh train.sh trainer.devices=2 key=value   two processes on this machine; any key of `rdcd train --help`
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
python=$(sh "$root/scripts/setup.sh")
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" # this checkout, whatever else is installed

devices=1
for word in "$@"; do
    case $word in trainer.devices=* | +trainer.devices=* | ++trainer.devices=*) devices=${word#*=} ;; esac
done
case $devices in
    '' | *[!0-9]* | 0 | 1) set -- -m rdcd train "$@" ;;
    *) set -- -m torch.distributed.run --standalone --nproc-per-node="$devices" -m rdcd train "$@" ;;
esac
printf 'rdcd: python %s\n' "$*" >&2
exec "$python" "$@"
