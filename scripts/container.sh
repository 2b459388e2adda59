#!/bin/sh
# Builds the Dockerfile's image and uses it as a user does; as root on Debian or Ubuntu, no daemon is needed.
#   sh scripts/container.sh                      on a Debian base made here by debootstrap
#   BASE=IMAGE sh scripts/container.sh           on a base of yours
#   sh scripts/container.sh --volume=/etc/pip.conf:/etc/pip.conf:ro   with options of `buildah bud`, for your network
# As the image's ordinary user USER_ID (1000; under sudo, you): doctor, the smoke run and tests (TESTS="PATH …"), with
# OUT/runs of this machine mounted. OUT (a new folder under runs/) gets container.log and container.json.
# The images stay, so that the next build is quick; `buildah rmi localhost/rdcd localhost/rdcd-base:bookworm` ends that.
set -eu

say() { printf 'container: %s\n' "$*" >&2; }
fail() {
    say "$*"
    exit 1
}

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
image=localhost/rdcd debian=bookworm work=/home/rdcd/work
user=${USER_ID:-${SUDO_UID:-1000}}
tests=${TESTS:-tests/losses tests/models tests/scripts tests/test_files.py tests/test_provenance.py tests/test_errors.py}

[ "$(id -u)" -eq 0 ] || fail "building without a daemon takes root: sudo sh scripts/container.sh"
needed=buildah missing=
[ -n "${BASE:-}" ] || needed="buildah debootstrap"
for tool in $needed; do command -v "$tool" >/dev/null || missing="$missing $tool"; done
[ -z "$missing" ] || fail "missing:$missing; on Debian and Ubuntu: apt-get install$missing"
for option; do
    case $option in --*) ;; *) fail "'$option' is no option: write those of buildah bud as --NAME=VALUE" ;; esac
done

out=${OUT:-$root/runs/container-$(date +%Y%m%d-%H%M%S)}
mkdir -p "$out"
out=$(CDPATH='' cd -- "$out" && pwd)
mkdir "$out/runs" 2>/dev/null || fail "$out/runs is there already: name a new folder, OUT=DIR"
chown "$user" "$out/runs"
log=$out/container.log rows=$out/rows
: >"$log"
: >"$rows"
scratch=$(mktemp -d) container=
leave() {
    [ -z "$container" ] || buildah rm "$container" >/dev/null 2>&1 || :
    rm -rf "$scratch" "$rows"
}
trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# stage NAME COMMAND …: runs it with its output in the log; `seconds` is how long it took.
stage() {
    what=$1
    shift
    say "$what …"
    echo "== $what" >>"$log"
    seconds=$(date +%s)
    "$@" >>"$log" 2>&1 || {
        tail -n 30 "$log" >&2
        fail "$what failed; all of it is in $log"
    }
    seconds=$(($(date +%s) - seconds))
}
found() { printf '%s\t%s\t%s\n' "$what" "$seconds" "$*" >>"$rows"; }
size() { buildah images --format '{{.Size}}' "$1" | head -n 1; }

# The folder that debootstrap fills, as an image.
make_base() {
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates "$debian" "$scratch/base"
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$scratch/base" /
    buildah commit --quiet "$container" "$BASE"
    buildah rm "$container"
    container=
}
if [ -z "${BASE:-}" ]; then
    BASE=localhost/rdcd-base:$debian
    if [ -n "$(buildah images --quiet "$BASE" 2>/dev/null)" ]; then
        what="base image" seconds=
        found "$BASE, $(size "$BASE"), made before"
    else
        stage "base image" make_base
        found "$BASE, $(size "$BASE")"
    fi
fi

commit=$(git -c safe.directory="$root" -C "$root" rev-parse HEAD 2>/dev/null) &&
    { git -c safe.directory="$root" -C "$root" diff --quiet HEAD || commit=$commit+dirty; } || commit=
stage "image" buildah bud --layers --isolation=chroot --network=host --build-arg "BASE=$BASE" \
    --build-arg "USER_ID=$user" --build-arg "COMMIT=$commit" "$@" --tag "$image" "$root"
cached=$(grep -c '^--> Using cache' "$log") && cached=", $cached steps made before" || cached=
found "$(size "$image")$cached"

container=$(buildah from "$image")
# In the image, as its user; PIP_NO_INDEX: what is used is what was built.
inside() { buildah run --isolation=chroot --volume "$out/runs:$work/runs" "$container" -- env PIP_NO_INDEX=1 "$@"; }

stage "rdcd doctor" inside rdcd doctor
found "as user $(inside id -u)"

stage "sh train.sh experiment=smoke" inside sh train.sh experiment=smoke
student=$(find "$out/runs" -maxdepth 2 -name student.safetensors)
[ -f "$student" ] || fail "the smoke run left no student.safetensors in $out/runs"
stranger=$(find "$out/runs" ! -user "$user" | head -n 1)
[ -z "$stranger" ] || fail "$stranger does not belong to user $user"
found "$(find "$out/runs" -type f | wc -l) files of user $user on this machine"

# shellcheck disable=SC2086 # a list of paths
stage "sh scripts/test.sh $tests" inside sh scripts/test.sh -rs $tests
found "$(grep -E '^[0-9]+ passed' "$log" | tail -n 1)"

options=
for option; do options="$options ${option%%=*}=…"; done # their values are this machine's, and may be secret
inside python -c '
import json, sys
from pathlib import Path
from rdcd.provenance import provenance
rows = [dict(zip(("what", "seconds", "found"), line.rstrip("\n").split("\t"))) for line in sys.stdin]
rows = [row | {"seconds": int(row["seconds"]) if row["seconds"] else None} for row in rows]
system = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
record = {"rows": rows, "provenance": provenance() | {
    "command": sys.argv[1], "engine": sys.argv[2], "system": system["PRETTY_NAME"].strip("\"")}}
print(json.dumps(record, indent=2, ensure_ascii=False))
' "sh scripts/container.sh$options" "$(buildah --version)" <"$rows" >"$out/container.json.part"
mv "$out/container.json.part" "$out/container.json"
chown "$user" "$out" "$log" "$out/container.json"
cat "$rows"
say "all of it works; the figures are in $out/container.json"
