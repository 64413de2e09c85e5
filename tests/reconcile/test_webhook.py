"""News to NOTIFY_URL: delivered, retried, bounded, and never in anybody's way."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from stream.reconcile.webhook import ROOM, Notifier
from tests.waiting import eventually


class Listener:
    """An HTTP server of the test: what it was told, and what it answers."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.answers: list[int] = []
        self.waits = threading.Event()
        self.waits.set()
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                listener.waits.wait(10)
                listener.told.append({**body, "path": self.path, "type": self.headers["Content-Type"]})
                status = listener.answers.pop(0) if listener.answers else 204
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?token=secret"


@pytest.fixture
def listener() -> Iterator[Listener]:
    one = Listener()
    yield one
    one.waits.set()
    one.server.shutdown()
    one.server.server_close()


def test_news_arrives_as_json(listener: Listener) -> None:
    notifier = Notifier(lambda: listener.url)
    notifier.notify("drift", {"run": {"run_id": 7}})
    told = eventually(lambda: listener.told)[0]
    assert (told["event"], told["run"]) == ("drift", {"run_id": 7})
    assert told["at"].endswith("Z")
    assert (told["path"], told["type"]) == ("/hook?token=secret", "application/json")
    notifier.close()


def test_a_failure_is_tried_again_and_order_is_kept(listener: Listener) -> None:
    listener.answers = [503, 500]
    notifier = Notifier(lambda: listener.url, pauses=(0.0, 0.05, 0.05))
    notifier.notify("stall", {})
    notifier.notify("recovery", {})
    eventually(lambda: len(listener.told) == 4)
    assert [told["event"] for told in listener.told] == ["stall", "stall", "stall", "recovery"]
    notifier.close()


def test_after_a_few_tries_it_gives_up_and_says_so_without_the_secret(
    listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    listener.answers = [500] * 3
    notifier = Notifier(lambda: listener.url, pauses=(0.0, 0.01, 0.01))
    notifier.notify("drift", {})
    eventually(lambda: "could not be delivered" in caplog.text)
    assert "HTTP status 500" in caplog.text
    assert "secret" not in caplog.text
    notifier.notify("stall", {})
    eventually(lambda: listener.told[-1]["event"] == "stall")
    notifier.close()


def test_a_redirect_is_not_followed(listener: Listener, caplog: pytest.LogCaptureFixture) -> None:
    listener.answers = [302]
    notifier = Notifier(lambda: listener.url, pauses=(0.0,))
    notifier.notify("drift", {})
    eventually(lambda: "HTTP status 302" in caplog.text)
    assert [told["path"] for told in listener.told] == ["/hook?token=secret"]
    notifier.close()


def test_nobody_waits_for_a_slow_other_side(listener: Listener, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    listener.waits.clear()
    notifier = Notifier(lambda: listener.url, timeout=5)
    began = time.monotonic()
    for number in range(ROOM + 20):
        notifier.notify("drift", {"number": number})
    assert time.monotonic() - began < 2
    assert "was dropped" in caplog.text
    began = time.monotonic()
    notifier.close(timeout=0.1)
    assert time.monotonic() - began < 2
    listener.waits.set()
    eventually(lambda: not posting())


def test_without_an_address_nothing_happens() -> None:
    notifier = Notifier(lambda: "")
    notifier.notify("drift", {})
    notifier.close()
    assert not posting()


def posting() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "notify" and thread.is_alive()]


def test_nobody_there_is_a_warning_and_no_more(caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier(lambda: "http://127.0.0.1:1/x", pauses=(0.0,))
    notifier.notify("drift", {})
    eventually(lambda: "could not be delivered to http://127.0.0.1" in caplog.text)
    notifier.close()
