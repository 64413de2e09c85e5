"""A real TCP proxy between client and server, which the test can make fail the ways a network does.

It can cut (both ends see a reset), stall (both ends stay open, nothing moves), resume, refuse new connections, cut in
the middle of a message after so many bytes, and cut where a given text passes: ``cut_at(b"COMMIT", answers=True)``
loses the answer to a commit that the server has made.

    def test_...(mailer_db, proxy):
        between = proxy(mailer_db.url)
        url = between.url(mailer_db.url)
"""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from psycopg import conninfo

#: closing with this set sends a reset instead of an orderly end
_RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Listens on ``host``:``port`` of this machine and passes everything to the target."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host, self.port = self._listener.getsockname()
        self._lock = threading.Lock()
        self._pairs: list[_Pair] = []
        self._flowing = threading.Event()
        self._flowing.set()
        self._refusing = False
        self._closed = False
        #: bytes that came to be passed on so far: to the server, and back
        self.sent = 0
        self.answered = 0
        #: connections accepted so far
        self.accepted = 0
        #: times that `cut`, `cut_after` or `cut_at` ended connections
        self.cuts = 0
        self._trap: _Trap | None = None
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def url(self, url: str) -> str:
        """``url`` led through this proxy."""
        given = {key: value for key, value in conninfo.conninfo_to_dict(url).items() if value is not None}
        return conninfo.make_conninfo("", **{**given, "host": self.host, "hostaddr": self.host, "port": self.port})

    def cut(self) -> None:
        """Ends every connection that is open now, abruptly. New ones are let in."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
            self.cuts += bool(pairs)
        for pair in pairs:
            pair.reset()

    def stall(self) -> None:
        """From now on nothing moves, in either direction; connections stay open and new ones are accepted."""
        self._flowing.clear()

    def resume(self) -> None:
        """Ends `stall` and `refuse`: what was held back goes on."""
        self._refusing = False
        self._flowing.set()

    def refuse(self) -> None:
        """New connections are reset at once, as by a firewall; open ones go on."""
        self._refusing = True

    def cut_after(self, count: int, *, answers: bool = True) -> None:
        """Passes ``count`` more bytes to the client (``answers``) or to the server, then cuts every connection: most
        likely in the middle of a message. Once."""
        self._trap = _Trap(answers=answers, left=count)

    def cut_at(self, pattern: bytes, *, answers: bool = True, occurrence: int = 1) -> None:
        """Cuts every connection when ``pattern`` is about to pass for the ``occurrence``-th time; what comes before it
        in the same stream still passes. Once."""
        self._trap = _Trap(answers=answers, pattern=pattern, occurrences=occurrence)

    def close(self) -> None:
        self._closed = True
        self._flowing.set()
        # a thread that waits in accept() holds the port open until it returns
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refusing:
                _reset(client)
                continue
            self.accepted += 1
            threading.Thread(target=self._connect, args=(client,), name="proxy", daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        self._flowing.wait()
        try:
            server = socket.create_connection(self._target, timeout=10)
        except OSError:
            _reset(client)
            return
        server.settimeout(None)
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pair = _Pair(client, server)
        with self._lock:
            self._pairs.append(pair)
        threading.Thread(target=self._pump, args=(pair, True), name="proxy", daemon=True).start()
        self._pump(pair, False)

    def _pump(self, pair: _Pair, answers: bool) -> None:
        source, target = (pair.server, pair.client) if answers else (pair.client, pair.server)
        try:
            while data := source.recv(65536):
                while not self._flowing.wait(0.1) and not pair.aborted:
                    pass
                passing, cut = self._through_trap(data, answers)
                if answers:  # before they are passed on: whoever has them may look
                    self.answered += len(passing)
                else:
                    self.sent += len(passing)
                if not pair.pass_on(passing, target):
                    return
                if cut:
                    self.cut()
                    return
            if not pair.aborted:
                target.shutdown(socket.SHUT_WR)
        except OSError:
            pair.reset()
        finally:
            if pair.ended():
                with self._lock:
                    if pair in self._pairs:
                        self._pairs.remove(pair)
                pair.close()

    def _through_trap(self, data: bytes, answers: bool) -> tuple[bytes, bool]:
        with self._lock:
            trap = self._trap
            if trap is None or trap.answers is not answers:
                return data, False
            passing, sprung = trap.take(data)
            if sprung:
                self._trap = None
            return passing, sprung


class _Trap:
    """Where to cut: after ``left`` bytes, or before ``pattern``."""

    def __init__(self, *, answers: bool, left: int = 0, pattern: bytes = b"", occurrences: int = 1) -> None:
        self.answers = answers
        self._left = left
        self._pattern = pattern
        self._occurrences = occurrences
        self._tail = b""

    def take(self, data: bytes) -> tuple[bytes, bool]:
        """What of ``data`` passes, and whether it is cut then."""
        if not self._pattern:
            passing = data[: self._left]
            self._left -= len(passing)
            return passing, self._left == 0
        window = self._tail + data
        at = -1
        while self._occurrences and (at := window.find(self._pattern, at + 1)) >= 0:
            self._occurrences -= 1
        if not self._occurrences:
            return data[: max(at - len(self._tail), 0)], True
        self._tail = window[-(len(self._pattern) - 1) :] if len(self._pattern) > 1 else b""
        return data, False


class _Pair:
    """The two ends of one connection."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.aborted = False
        self._pumps = 2
        self._lock = threading.Lock()

    def ended(self) -> bool:
        """One of the two directions is over; true for the second."""
        with self._lock:
            self._pumps -= 1
            return self._pumps == 0

    def pass_on(self, data: bytes, target: socket.socket) -> bool:
        """Sends ``data``, however slowly ``target`` takes it; false where the connection was cut meanwhile."""
        view = memoryview(data)
        while view and not self.aborted:
            if select.select([], [target], [], 0.1)[1]:
                view = view[target.send(view, socket.MSG_DONTWAIT) :]
        return not self.aborted

    def reset(self) -> None:
        """Wakes both directions; the last to end closes, and that close is a reset. Closing here would leave a thread
        asleep in a socket whose number may soon be another's."""
        self.aborted = True
        for end in (self.client, self.server):
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                end.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        for end in (self.client, self.server):
            end.close()


def _reset(end: socket.socket) -> None:
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    end.close()


@pytest.fixture
def proxy() -> Iterator[Callable[..., Proxy]]:
    """``proxy(url)`` or ``proxy(host=..., port=...)``: a proxy to that server, closed after the test."""
    made: list[Proxy] = []

    def make(url: str = "", **place: Any) -> Proxy:
        place = place or conninfo.conninfo_to_dict(url)
        made.append(Proxy(str(place.get("host") or "127.0.0.1"), int(place.get("port") or 5432)))
        return made[-1]

    yield make
    for one in made:
        one.close()
