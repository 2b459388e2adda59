#!/bin/sh
# Trains: sets up what is missing, then runs `rdcd train` in the caller's folder.
#   sh train.sh               the embedded default, end to end
#   sh train.sh key=value …   any key of `rdcd train --help`; trainer.devices=N runs N processes, one a GPU
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
python=$(sh "$root/scripts/setup.sh")
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" # this checkout, whatever else is installed

processes=1
for word in "$@"; do
    case $word in trainer.devices=*) processes=${word#*=} ;; esac
done
case ${WORLD_SIZE:+started}$processes in
    '' | 1 | *[!0-9]*) set -- -m rdcd train "$@" ;;
    *) set -- -m torch.distributed.run --standalone --nproc_per_node "$processes" -m rdcd train "$@" ;;
esac
printf 'rdcd: python %s\n' "$*" >&2
exec "$python" "$@"
