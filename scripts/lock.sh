#!/usr/bin/env bash
# Makes the lock files anew: exact versions with hashes, for every Python from 3.10 on, without any address in them.
#   scripts/lock.sh [--upgrade]
# locks/run.txt is what `make run` installs, locks/dev.txt everything; dev keeps the versions of run.
set -euo pipefail
cd "$(dirname "$0")/.."
compile=(.venv/bin/uv pip compile --quiet --python .venv/bin/python --universal --python-version 3.10 --generate-hashes
         --no-emit-index-url --no-emit-find-links --no-header --no-annotate)
"${compile[@]}" "$@" --extra kafka --extra local --extra build pyproject.toml -o locks/run.txt
"${compile[@]}" "$@" --all-extras -c locks/run.txt pyproject.toml -o locks/dev.txt
if grep -nE '://|^-' locks/*.txt; then
    echo "an address or an option got into a lock file" >&2
    exit 1
fi
