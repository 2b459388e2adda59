#!/bin/sh
# Finds, mends or makes the Python environment of this checkout and prints its interpreter.
#   sh scripts/setup.sh        with what rdcd needs
#   sh scripts/setup.sh test   and with what its tests need
# Takes the first of: $RDCD_PYTHON; the active environment (venv or conda); .venv in the checkout; a python3
# that has every requirement already; a new .venv, made with $PYTHON or the first python that fits.
# Everything said goes to standard error. `.rdcd-setup` in the environment records what was installed.
set -eu

say() { printf 'rdcd: %s\n' "$*" >&2; }
fail() {
    say "$*"
    exit 1
}

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
extra=${1:-}
case $extra in '' | test) ;; *) fail "setup.sh takes nothing or 'test', not '$extra'" ;; esac
files=$(cd "$root" && cat requirements.txt pyproject.toml setup.py | cksum)

# Learns the version, prefix and full name of interpreter $1; fails where it does not run.
inspect() {
    facts='import sys; print("%d.%d\n%s\n%s" % (sys.version_info[:2] + (sys.prefix, sys.executable)))'
    facts=$("$1" -c "$facts" 2>/dev/null) || return 1
    { IFS= read -r version && IFS= read -r prefix && IFS= read -r executable; } <<EOF
$facts
EOF
    key="$files $version $root"
}
supported() { case $version in 3.10 | 3.11 | 3.12 | 3.13) ;; *) return 1 ;; esac; }

# Is $python complete? Its record knows what this script installed; without one, its packages tell.
ready() {
    inspect "$python" || return 1
    supported || fail "$python is Python $version; rdcd needs 3.10 to 3.13. $mend"
    record=$prefix/.rdcd-setup
    case $(cat "$record" 2>/dev/null) in
        "$key test") return 0 ;;
        "$key") [ -z "$extra" ] ;;
        '') # an environment that cannot be written need not hold the package: the scripts run the checkout
            if [ -w "$prefix" ]; then package=rdcd; else package=; fi
            "$python" "$root/scripts/prepared.py" ${package:+"$package"} ${extra:+"$extra"} ;;
        *" $root" | *" $root test") return 1 ;;
        *) # set up by another checkout, whose it stays where it has all that this one needs: scripts run the checkout
            [ "$prefix" != "$root/.venv" ] && "$python" "$root/scripts/prepared.py" ${extra:+"$extra"} ;;
    esac
}

# Sets base to a Python that can make an environment.
find_base() {
    refused=
    set -- python3 python3.13 python3.12 python3.11 python3.10
    [ -z "${PYTHON:-}" ] || set -- "$PYTHON"
    for base in "$@"; do
        if ! inspect "$base"; then
            [ -z "${PYTHON:-}" ] || refused=" PYTHON=$PYTHON does not run;"
        elif ! supported; then
            refused="$refused $base is $version;"
        elif ! "$base" -c 'import ensurepip, venv' 2>/dev/null; then
            refused="$refused $base ($version) lacks the venv module, on Debian and Ubuntu the package"
            refused="$refused python$version-venv;"
        else
            return 0
        fi
    done
    fail "no Python to make an environment with:${refused:- none on the PATH;}" \
        "install Python 3.10 to 3.13 with venv, or name one: PYTHON=/path/to/python3 sh …"
}

# One set-up at a time for one environment; a lock whose owner has died is taken over.
lock() {
    lock=${TMPDIR:-/tmp}/rdcd-setup-$(id -u)-$(printf %s "$python" | cksum | tr -d ' ').lock
    told=
    until mkdir "$lock" 2>/dev/null; do
        owner=$(cat "$lock/pid" 2>/dev/null) || owner=
        if [ -n "$owner" ] && ! kill -0 "$owner" 2>/dev/null; then
            rm -rf "$lock"
        else
            [ -n "$told" ] ||
                say "waiting for another set-up${owner:+ (process $owner)}; if there is none: rm -r $lock"
            told=1
            sleep 1
        fi
    done
    trap 'rm -rf "$lock"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    echo $$ >"$lock/pid"
}

install() {
    if [ "$python" = "$root/.venv/bin/python" ] && ! "$python" -m pip --version >/dev/null 2>&1; then
        find_base
        say "making .venv with $base (Python $version)"
        "$base" -m venv --clear "$root/.venv" >&2
    fi
    inspect "$python" || fail "$python does not run. $mend"
    "$python" -m pip --version >/dev/null 2>&1 || fail "$python has no pip. $mend"
    record=$prefix/.rdcd-setup
    echo unfinished 2>/dev/null >"$record" || fail "$prefix cannot be written. $mend"
    say "installing requirements.txt into $prefix (about 7 GB and some minutes the first time)"
    "$python" -m pip install -r "$root/requirements.txt" >&2
    say "installing rdcd${extra:+ and what its tests need}"
    "$python" -m pip install --quiet -e "$root${extra:+[$extra]}" >&2
    # PDQ's library exists as source alone; where it cannot be built, the one test that needs it is left out.
    [ -z "$extra" ] || "$python" -m pip install --quiet 'pdqhash>=0.2.7' >/dev/null 2>&1 ||
        say "pdqhash could not be installed (it needs a C++ compiler): one test is left out"
    echo "$key${extra:+ $extra}" >"$record"
}

mend="Activate another environment, or none for one of this checkout's own."
if [ -n "${RDCD_PYTHON:-}" ]; then
    python=$RDCD_PYTHON mend="Correct or unset RDCD_PYTHON."
elif [ -n "${VIRTUAL_ENV:-}" ]; then
    python=$VIRTUAL_ENV/bin/python
elif [ -n "${CONDA_PREFIX:-}" ] && [ -x "$CONDA_PREFIX/bin/python" ]; then
    python=$CONDA_PREFIX/bin/python
else
    python=$root/.venv/bin/python mend="Remove $root/.venv and run this again."
    base=${PYTHON:-python3}
    if [ ! -e "$root/.venv" ] && inspect "$base" && supported &&
        "$base" "$root/scripts/prepared.py" ${extra:+"$extra"} 2>/dev/null; then
        say "using $base (Python $version), which has every requirement"
        printf '%s\n' "$executable"
        exit
    fi
fi

if ! ready; then
    lock
    ready 2>/dev/null || install # a set-up that was waited for may have done it
fi
say "using Python $version in $prefix"
printf '%s\n' "$executable"
