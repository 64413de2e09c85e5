"""The parent's side of an HTTP server in a child process: starts, feeds, restarts and stops it."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from stream.config.settings import Settings
from stream.config.sources import without_settings
from stream.service.inbox import Inbox

log = logging.getLogger(__name__)

#: seconds between two frames of changes: the page shows no more
EVERY: Final = 0.05
METRICS_EVERY: Final = 5.0
#: seconds that a child gets to end by itself
GRACE: Final = 10.0
RESTART_FIRST: Final = 0.5
RESTART_LAST: Final = 15.0

_HEAD: Final = struct.Struct("!I")


class ServerProcess:
    """An HTTP server in a child process, listening at ``url`` until `stop`."""

    def __init__(
        self,
        settings: Settings,
        sock: socket.socket,
        url: str,
        feed: Inbox,
        metrics: Callable[[], bytes] | None = None,
    ) -> None:
        self.url = url
        self.restarts = 0
        self._settings = settings
        self._sock = sock
        self._feed = feed
        self._metrics = metrics
        self._stopping = threading.Event()
        self._arrived = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None
        feed.on_arrival(self._arrived.set)
        self._thread = threading.Thread(target=self._supervise, name="http", daemon=True)
        self._thread.start()
        log.info("The dashboard is at %s", self.url)

    @property
    def pid(self) -> int | None:
        """The child's process id."""
        return self._child.pid if self._child is not None else None

    def stop(self) -> None:
        """End the child, which ends its event streams first."""
        self._stopping.set()
        self._arrived.set()
        self._thread.join(GRACE + 5)
        self._sock.close()

    def _supervise(self) -> None:
        pause = RESTART_FIRST
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                self._run_child()
            except OSError as error:
                log.warning("The HTTP process can't be started: %s", error)
            if self._stopping.is_set():
                return
            if time.monotonic() - began > 60:
                pause = RESTART_FIRST
            self.restarts += 1
            log.warning("The HTTP process ended; it is started again in %.1f s. Counting goes on.", pause)
            self._stopping.wait(pause)
            pause = min(pause * 2, RESTART_LAST)

    def _run_child(self) -> None:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                fds = (theirs.fileno(), self._sock.fileno())
                self._child = subprocess.Popen(
                    [sys.executable, "-m", "stream.web.child_main", *map(str, fds)],
                    pass_fds=fds,
                    env=without_settings(os.environ),  # the settings come through the pipe
                    stdin=subprocess.DEVNULL,
                )
            try:
                with contextlib.suppress(OSError):
                    send(ours, ("settings", self._settings))
                    self._feed_child(ours)
            finally:
                self._end_child()

    def _feed_child(self, pipe: socket.socket) -> None:
        """Send committed flushes and metrics, a frame when the child has taken the last. OSError when it ends."""
        metrics_at = 0.0
        while not self._stopping.is_set():
            # the child asks for the next frame with a byte, and closes the pipe when it ends
            if not self._wait_for_byte(pipe):
                return
            while not self._arrived.wait(0.5):
                if self._is_due(metrics_at) or self._has_ended():
                    break
            self._arrived.clear()
            if self._stopping.is_set():
                return
            flushes = self._feed.take()
            metrics = None
            if self._metrics is not None and self._is_due(metrics_at):
                metrics, metrics_at = self._read_metrics(), time.monotonic()
            send(pipe, ("flushed", flushes, metrics))
            self._stopping.wait(EVERY)

    def _wait_for_byte(self, pipe: socket.socket) -> bool:
        pipe.settimeout(0.5)
        while not self._stopping.is_set():
            try:
                return bool(pipe.recv(1))
            except TimeoutError:
                if self._has_ended():
                    return False
        return False

    def _is_due(self, metrics_at: float) -> bool:
        return self._metrics is not None and time.monotonic() - metrics_at > METRICS_EVERY

    def _has_ended(self) -> bool:
        return self._child is None or self._child.poll() is not None

    def _read_metrics(self) -> bytes | None:
        try:
            return self._metrics() if self._metrics is not None else None
        except Exception:  # a fault in the metrics must not end the page
            log.exception("Metrics can't be read")
            return None

    def _end_child(self) -> None:
        child = self._child
        if child is None:
            return
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
        try:
            child.wait(GRACE)
        except subprocess.TimeoutExpired:
            log.warning("The HTTP process does not end; it is killed.")
            child.kill()
            child.wait()


def send(pipe: socket.socket, frame: Any) -> None:
    """Send one frame: its length, then the pickled value. Both ends are this program."""
    body = pickle.dumps(frame, pickle.HIGHEST_PROTOCOL)
    pipe.settimeout(None)
    pipe.sendall(_HEAD.pack(len(body)) + body)
