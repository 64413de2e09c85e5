#!/usr/bin/env bash
# Runs a command as on a machine that has Python and make, and of what a system's packages bring nothing that tests use:
# no PostgreSQL, Kafka client, Java, browser, Go, Prometheus.   scripts/without_packages.sh COMMAND...
# In a mount namespace of its own, with empty folders and files in their places (Linux, root).
set -euo pipefail

if [ "${1:-}" != --inside ]; then
    unshare --mount true 2>/dev/null || { echo "$0: needs root and mount namespaces" >&2; exit 2; }
    exec unshare --mount --propagation private "$0" --inside "$@"
fi
shift
for folder in /usr/lib/postgresql /usr/share/postgresql /usr/lib/jvm /usr/lib/chromium /usr/local/go /usr/lib/go*; do
    [ ! -d "$folder" ] || mount -t tmpfs -o size=1m,mode=0755 none "$folder"
done
empty=$(mktemp -d)
mount -t tmpfs -o size=1m,mode=0755 none "$empty"
touch "$empty/program"
for name in psql pg_config kcat java chromium chromium-browser google-chrome go prometheus promtool docker hadolint; do
    for program in /usr/bin/$name /usr/local/bin/$name; do
        [ ! -e "$program" ] || mount --bind "$empty/program" "$program"
    done
done
exec "$@"
