#!/bin/sh
# Makes .venv with exact versions: scripts/bootstrap.sh run|dev
#   run   what `make run` needs: sentstream, a private PostgreSQL, Java for a private Kafka
#   dev   that, and what tests, linters and proofs need
# PYTHON=... names the interpreter; else the first of python3, python3.13 .. python3.10 that is fit.
set -eu
cd "$(dirname "$0")/.."
what=${1:-run}
mark=.venv/.made-$what

fit() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; }
whole() { "$1" -c 'import venv, ensurepip' >/dev/null 2>&1; }
fail() { echo "sentstream: $1" >&2; exit 2; }

if ! { [ -x .venv/bin/python ] && .venv/bin/python -m pip --version >/dev/null 2>&1 && fit .venv/bin/python; }; then
    python= almost=
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
        fit "$candidate" || continue
        if whole "$candidate"; then python=$candidate; break; fi
        almost=${almost:-$candidate}
    done
    if [ -z "$python" ] && [ -n "$almost" ]; then
        version=$("$almost" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        fail "$almost lacks the module venv: install it (Debian, Ubuntu: apt-get install python$version-venv), then run make again."
    fi
    if [ -z "$python" ]; then
        found=$("${PYTHON:-python3}" --version 2>/dev/null || echo none)
        fail "needs Python 3.10 or newer, found $found: install one (python.org, or your system's packages), then run make again, or name it: make ... PYTHON=/path/to/python3.12"
    fi
    echo "sentstream: making .venv with $("$python" --version)" >&2
    rm -rf .venv
    "$python" -m venv .venv
fi

echo "sentstream: installing what locks/$what.txt lists into .venv" >&2
pip="env PIP_DISABLE_PIP_VERSION_CHECK=1 .venv/bin/python -m pip --quiet install"
$pip --require-hashes -r "locks/$what.txt"
$pip --no-deps --no-build-isolation -e .
# what is there for dev is there for run
[ "$what" = dev ] && touch .venv/.made-run
touch "$mark"
