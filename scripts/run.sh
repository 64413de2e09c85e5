#!/bin/sh
# `make run`: the demo where no database is named; else that database, or the command that is still missing.
#   KAFKA=1   the Kafka shape, with a private broker unless SENTSTREAM_KAFKA_BOOTSTRAP_SERVERS names one
set -eu
cd "$(dirname "$0")/.."
sentstream=.venv/bin/sentstream

if [ -z "${SENTSTREAM_DATABASE_URL:-}" ]; then
    [ -z "${KAFKA:-}" ] || exec "$sentstream" demo --kafka
    exec "$sentstream" demo
fi
# shellcheck disable=SC2016 # expanded by the inner shell, which the broker's address has reached
set -- sh -c '
    "$0" setup --check && exec "$0" run
    status=$?
    [ $status -ne 1 ] || echo "sentstream: not set up yet. Run: $0 setup    (--dry-run shows the SQL first)" >&2
    exit $status
' "$sentstream"
if [ -n "${KAFKA:-}" ] && [ -z "${SENTSTREAM_KAFKA_BOOTSTRAP_SERVERS:-}" ]; then
    set -- .venv/bin/python -m stream.demo.private_kafka "$@"
fi
exec "$@"
