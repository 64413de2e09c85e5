"""The servers that all tests of a run share: each is started when the first test asks for it, and ends with the run.

pytest-xdist runs the tests in several processes. The process that started these is the one that owns the servers: its
workers ask it for an address, over a connection on loopback. So one broker serves them all, and nothing is left
when the run ends, not even where it is killed (see `stream.demo.child_process`).

    address(request.config, "kafka")
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Client, Connection, Listener
from typing import Any, Final

import pytest

#: starts a server that ends with the stack, and returns its address
Start = Callable[[ExitStack], str]

_STARTS: Final[dict[str, Start]] = {}


def shared_server(name: str) -> Callable[[Start], Start]:
    """Marks the function that starts the shared server ``name``."""

    def register(start: Start) -> Start:
        _STARTS[name] = start
        return start

    return register


def address(config: pytest.Config, name: str) -> str:
    """The address of the shared server ``name``, started first where it does not run yet. Where that fails, so does
    the test."""
    worker: dict[str, Any] | None = getattr(config, "workerinput", None)
    if worker is None:
        return config.stash[_OWNER].address(name)
    with Client(tuple(worker["servers"]), authkey=worker["servers_key"]) as connection:
        connection.send(name)
        started, text = connection.recv()
    if not started:
        pytest.fail(text, pytrace=False)
    return str(text)


class Owner:
    """Starts servers on demand, and keeps them until `close`."""

    def __init__(self) -> None:
        self.key = os.urandom(16)
        self._closing = ExitStack()
        self._lock = threading.Lock()
        self._addresses: dict[str, str] = {}
        self._listener: Listener | None = None

    def address(self, name: str) -> str:
        with self._lock:
            if name not in self._addresses:
                self._addresses[name] = _STARTS[name](self._closing)
            return self._addresses[name]

    def listen(self) -> tuple[str, int]:
        """Answers workers from now on; where they reach us."""
        if self._listener is None:
            self._listener = Listener(("127.0.0.1", 0), backlog=64, authkey=self.key)
            threading.Thread(target=self._accept, args=(self._listener,), name="servers", daemon=True).start()
        host, port = self._listener.address
        return str(host), int(port)

    def close(self) -> None:
        self._closing.close()

    def _accept(self, listener: Listener) -> None:
        while True:
            connection = listener.accept()
            threading.Thread(target=self._answer, args=(connection,), name="servers", daemon=True).start()

    def _answer(self, connection: Connection[Any, Any]) -> None:
        with connection:
            name = connection.recv()
            try:
                answer = (True, self.address(name))
            except BaseException as error:  # the worker's test fails with it
                answer = (False, f"The shared server {name!r} did not start: {error}")
            connection.send(answer)


_OWNER: Final = pytest.StashKey[Owner]()


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.stash[_OWNER] = Owner()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """pytest-xdist prepares a worker."""
    owner = node.config.stash[_OWNER]
    node.workerinput["servers"] = owner.listen()
    node.workerinput["servers_key"] = owner.key


def pytest_unconfigure(config: pytest.Config) -> None:
    if owner := config.stash.get(_OWNER, None):
        owner.close()
