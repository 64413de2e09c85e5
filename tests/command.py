"""`sentstream` as a process of its own that starts at once.

A new interpreter spends a second on imports, most of what a test costs that starts one. So every process that runs
tests keeps one child that has imported everything and forks itself for each command. What the fork runs is
``python -m stream.cli``, with an environment, files and signals of its own. It is killed when the test process goes.

    with log.open("ab") as output:
        command = Command(["run"], environment, stderr=output.fileno())
    command.send_signal(signal.SIGTERM)
    assert command.wait(30) == 0

Tests of the command line itself start the interpreter, as people do.
"""

from __future__ import annotations

import importlib
import os
import pickle
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

_SOURCE = Path(__file__).parent.parent
_lock = threading.Lock()


class Command:
    """A running command, with the methods of `subprocess.Popen` that tests use. Output goes to the files given, or
    nowhere."""

    def __init__(
        self, words: Sequence[str], environment: Mapping[str, str], stdout: int | None = None, stderr: int | None = None
    ) -> None:
        self.returncode: int | None = None
        self._words = list(words)
        self._line, theirs = socket.socketpair()
        request = pickle.dumps((self._words, dict(environment), str(Path.cwd())))
        with theirs, Path(os.devnull).open("r+b") as nothing, _lock:
            files = [nothing.fileno() if it is None else it for it in (None, stdout, stderr)]
            socket.send_fds(_forker(), [len(request).to_bytes(4, "big")], [theirs.fileno(), *files])
            _forker().sendall(request)
        self.pid = int.from_bytes(self._line.recv(4), "big")

    def poll(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it runs."""
        if self.returncode is None and select.select([self._line], [], [], 0)[0]:
            self._read()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._line], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self._words, timeout or 0)
            self._read()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _read(self) -> None:
        self.returncode = int.from_bytes(self._line.recv(4), "big", signed=True)
        self._line.close()


@cache
def _forker() -> socket.socket:
    """Our end of the line to the process that forks; it ends when this line does."""
    ours, theirs = socket.socketpair()
    with theirs:
        subprocess.Popen(
            [sys.executable, "-c", "from tests.command import serve; serve()", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            cwd=_SOURCE,
        )
    return ours


def serve() -> None:
    """Imports everything, then forks for each request. Returns in a fork, when its command has ended."""
    line = socket.socket(fileno=int(sys.argv[1]))
    for package in ("stream", "connectors"):
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            if not module.name.endswith("__main__") and not module.name.startswith("stream.demo"):
                importlib.import_module(module.name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks need no waiting for
    while True:
        head, files, _, _ = socket.recv_fds(line, 4, 4)
        if not head:
            return
        size = int.from_bytes(head, "big")
        request = b""
        while len(request) < size:
            request += line.recv(size - len(request))
        if os.fork() == 0:
            line.close()
            _keep(files, *pickle.loads(request))
            return
        for file in files:
            os.close(file)


def _keep(files: Sequence[int], words: Sequence[str], environment: Mapping[str, str], folder: str) -> None:
    """Starts the command and sends its process id, and then its exit code; ends it where the test is gone. Returns in
    the command's own process, when it has been run."""
    line = socket.socket(fileno=files[0])
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno())
    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for one in (line, woken, wake):
            one.close()
        for target, file in enumerate(files[1:]):
            os.dup2(file, target)
            os.close(file)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv[1:] = words
        sys.orig_argv = [sys.executable, "-m", "stream.cli", *words]  # by which a role starts itself anew
        runpy.run_module("stream.cli", run_name="__main__", alter_sys=True)
        return
    for file in files[1:]:
        os.close(file)
    line.sendall(pid.to_bytes(4, "big"))
    ended = status = 0
    while not ended:
        if line in select.select([line, woken], [], [])[0]:
            os.kill(pid, signal.SIGKILL)
            os._exit(0)
        woken.recv(1)  # it has ended, or was stopped
        ended, status = os.waitpid(pid, os.WNOHANG)
    line.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True))
    os._exit(0)
