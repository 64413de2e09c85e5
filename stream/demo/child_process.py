"""Child processes that end with this process, also when it is killed.

`start` runs a program in a session of its own: Ctrl-C in the terminal reaches only this process. A watchdog runs beside
it, a shell that reads from a pipe which only this process holds. When this process ends, the pipe ends: the watchdog
ends the program and removes its scratch directory.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import SIGTERM, Signals
from typing import Any, Final

from stream.core.errors import PreconditionError

#: below what Linux (32768) and macOS (49152) give to outgoing connections
_PORTS: Final = (15_000, 32_000)

#: $1 signal, $2 pid, $3 directory to remove or nothing. SIGKILL after five seconds.
_WATCH: Final = """
cat >/dev/null
kill -s "$1" "$2" 2>/dev/null
i=0; while kill -0 "$2" 2>/dev/null && [ $i -lt 50 ]; do i=$((i + 1)); sleep 0.1; done
kill -s KILL "$2" 2>/dev/null
[ -n "$3" ] && rm -rf -- "$3"
"""


class Child:
    """A running program and its watchdog. Made by `start`."""

    def __init__(self, process: subprocess.Popen[bytes], watchdog: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._watchdog = watchdog

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        code = self._process.poll()
        if code is not None:
            self._dismiss()
        return code

    def signal(self, number: Signals) -> None:
        """Sends a signal; does nothing when the program has ended."""
        self._process.send_signal(number)

    def end(self, number: Signals, timeout: float) -> int:
        """Signal, wait ``timeout`` seconds, then SIGKILL. Returns the exit code."""
        self._process.send_signal(number)
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._dismiss()
        return code

    def _dismiss(self) -> None:
        """The program has ended and its process id may be used again, so the watchdog must not signal it."""
        if self._watchdog.poll() is None:
            self._watchdog.kill()
            self._watchdog.wait()
        if self._watchdog.stdin is not None:
            self._watchdog.stdin.close()


def start(
    argv: Sequence[str],
    *,
    log: Path,
    directory: Path,
    environment: Mapping[str, str] | None = None,
    user: str | None = None,
    orphaned: Signals = SIGTERM,
    remove_when_orphaned: Path | None = None,
) -> Child:
    """Runs ``argv`` in ``directory``, its output appended to ``log``.

    ``environment``: the whole of it (ours where None). ``user``: run as that user (we are root). ``orphaned``: the
    signal it gets when we die, after which ``remove_when_orphaned`` is deleted.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=None if environment is None else dict(environment),
            start_new_session=True,
            **as_user(user),
        )
    name = Signals(orphaned).name.removeprefix("SIG")
    watchdog = subprocess.Popen(
        ["/bin/sh", "-c", _WATCH, "watchdog", name, str(process.pid), str(remove_when_orphaned or "")],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )
    return Child(process, watchdog)


def as_user(user: str | None) -> dict[str, Any]:
    """Arguments for ``subprocess`` that run a program as ``user``; none where it is None."""
    if user is None:
        return {}
    import pwd  # noqa: PLC0415 - there is none on Windows, and only root gets here

    record = pwd.getpwnam(user)
    return {"user": record.pw_uid, "group": record.pw_gid, "extra_groups": []}


def environment_of(home: Path) -> dict[str, str]:
    """A small environment for a server, without this process's credentials and PG* or JAVA_* settings."""
    path = os.environ.get("PATH") or os.defpath
    return {"PATH": path, "HOME": str(home), "LC_ALL": "C", "TZ": "UTC"}


def remove(directory: Path) -> None:
    """Deletes a scratch directory. A server that was just killed may still write files, so this tries three times."""
    for _ in range(3):
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return


def free_port() -> int:
    """A free port of 127.0.0.1, outside the range of outgoing connections: a server that restarts must find its port
    free again."""
    for _ in range(200):
        port = random.randrange(*_PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise PreconditionError(
        f"No free port between {_PORTS[0]} and {_PORTS[1]} on 127.0.0.1.", "Close what listens there, or give a port."
    )
