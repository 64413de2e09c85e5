"""Server-sent events on a real server that counts, or that follows PostgreSQL."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from stream.web.live_state import COMMENT_EVERY, LiveState
from tests.fix_postgres import Database
from tests.interfaces.fix_web import Site, counted_db, counting_website, own_website, prepared_db, serve, site
from tests.waiting import eventually

__all__ = ["counted_db", "counting_website", "own_website", "prepared_db"]

FILL = """
INSERT INTO campaigns (id, name, status, to_send) VALUES (1, 'Spring', 'running', 100), (2, 'Summer', 'running', 100);
INSERT INTO subscribers (id, email) SELECT n, n || '@example.org' FROM generate_series(1, 100) n;
INSERT INTO email_queue (id, campaign_id, subscriber_id, scheduled_at)
    SELECT (c - 1) * 100 + n, c, n, now() FROM generate_series(1, 100) n, generate_series(1, 2) c
"""

TOGGLE = "UPDATE email_queue SET status = CASE status WHEN 'queued' THEN 'sending' ELSE 'queued' END WHERE id = %s"


@pytest.fixture
def filled(counting_website: Site, prepared_db: Database) -> Site:
    """Two campaigns of a hundred queued rows each, ids 1..100 and 101..200, known to the stream."""
    prepared_db.execute(FILL)
    eventually(lambda: counting_website.campaign(2)["queue_queued"] == 100)
    return counting_website


def send(database: Database, first: int, last: int) -> None:
    database.execute("UPDATE email_queue SET status = 'sent' WHERE id BETWEEN %s AND %s", first, last)


def test_a_snapshot_first_then_what_changes(filled: Site, prepared_db: Database) -> None:
    with filled.events() as events:
        kind, data = events.next()
        assert kind == "snapshot"
        assert {it["campaign_id"]: it["sent"] for it in data["campaigns"]} == {1: 0, 2: 0}
        assert len(events.retries) == 1
        send(prepared_db, 1, 10)
        began = time.monotonic()
        _, changed = events.until(lambda kind, it: kind == "progress" and it["sent"] == 10)
        assert (changed["campaign_id"], changed["queue_queued"], changed["percent"]) == (1, 90, 10.0)
        assert time.monotonic() - began < 5
        assert len(events.retries) == 1, "`retry:` once"


def test_one_campaigns_stream_is_silent_about_the_others(filled: Site, prepared_db: Database) -> None:
    with filled.events("/api/campaigns/2/events") as events:
        _, data = events.next("snapshot")
        assert [it["campaign_id"] for it in data["campaigns"]] == [2]
        send(prepared_db, 1, 50)
        eventually(lambda: filled.campaign(1)["sent"] == 50)
        send(prepared_db, 101, 101)
        kind, data = events.next("progress", "deleted", "verdict")
        while data.get("sent") != 1:  # its rate may be told before
            assert data["campaign_id"] == 2
            kind, data = events.next("progress", "deleted", "verdict")
        assert (kind, data["campaign_id"]) == ("progress", 2)


def test_each_campaign_at_most_four_times_a_second(filled: Site, prepared_db: Database) -> None:
    stop = threading.Event()

    def busy() -> None:
        number = 0
        with prepared_db.connect() as session:
            while not stop.is_set():
                session.execute(TOGGLE, (1 + number % 100,))
                number += 1

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        with filled.events() as events:
            events.next("snapshot")
            times: list[float] = []
            while not times or times[-1] - times[0] < 3:
                _, data = events.next("progress")
                if data["campaign_id"] == 1:
                    times.append(time.monotonic())
    finally:
        stop.set()
        thread.join()
    # counted over the whole time: under load a reader may get two rounds in one piece
    assert 3 <= len(times) <= 4 * (times[-1] - times[0]) + 2


def test_last_event_id_goes_on_with_what_changed_since(filled: Site, prepared_db: Database) -> None:
    with filled.events() as events:
        events.next("snapshot")
        seen = events.last_id
    send(prepared_db, 1, 5)
    prepared_db.execute("DELETE FROM campaigns WHERE id = 2")
    eventually(lambda: filled.campaign(1)["sent"] == 5)
    eventually(lambda: filled.get("/api/campaigns/2").status_code == 404)
    ways: list[dict[str, Any]] = [{"headers": {"Last-Event-ID": seen}}, {"params": {"last_event_id": seen}}]
    for how in ways:
        with filled.events(**how) as events:
            told: set[tuple[str, Any]] = set()
            while {("progress", 1), ("deleted", 2)} - told:
                kind, data = events.next()
                assert kind != "snapshot"
                told.add((kind, data.get("campaign_id")))


@pytest.mark.parametrize("foreign", ["nonsense", "ffffffff-1", "0-0", "-", "x" * 150])
def test_an_id_that_says_nothing_brings_a_snapshot(filled: Site, foreign: str) -> None:
    with filled.events(headers={"Last-Event-ID": foreign}) as events:
        assert events.next()[0] == "snapshot"


def test_after_a_restart_an_old_id_brings_a_snapshot(counted_db: Database) -> None:
    with serve(counted_db) as first, first.events() as events:
        events.next("snapshot")
        seen = events.last_id
    with serve(counted_db) as second, second.events(headers={"Last-Event-ID": seen}) as events:
        assert events.next()[0] == "snapshot"


def test_a_deleted_campaign_is_told_and_its_own_stream_ends(filled: Site, prepared_db: Database) -> None:
    with filled.events("/api/campaigns/2/events") as own, filled.events() as every:
        own.next("snapshot")
        every.next("snapshot")
        prepared_db.execute("DELETE FROM campaigns WHERE id = 2")
        assert own.next("deleted") == ("deleted", {"campaign_id": 2})
        with pytest.raises(AssertionError, match="ended"):
            own.next("progress")
        assert every.next("deleted")[1] == {"campaign_id": 2}


def test_a_drift_is_told_as_a_verdict(filled: Site, prepared_db: Database) -> None:
    with filled.events() as events:
        events.next("snapshot")
        send(prepared_db, 1, 5)
        eventually(lambda: prepared_db.value("SELECT sent FROM campaigns WHERE id = 1") == 5)
        prepared_db.execute("UPDATE campaigns SET sent = 77 WHERE id = 1")
        eventually(lambda: prepared_db.value("SELECT sent FROM campaigns WHERE id = 1") == 5)
        assert filled.post("/api/recounts").status_code == 202
        _, verdict = events.until(lambda kind, it: kind == "verdict" and it["verdict"] == "drift")
    assert (verdict["campaign_id"], verdict["cause"], verdict["corrected"]) == (1, "counter_overwritten", True)


def test_events_follow_postgresql_where_nobody_pushes(own_website: Site, counted_db: Database) -> None:
    with own_website.events() as events:
        events.next("snapshot")
        counted_db.execute(
            "UPDATE sentstream.progress SET queue_sent = 55, sent = 55 WHERE campaign_id = 7;"
            "UPDATE sentstream.watermarks SET seq = seq + 1, as_of = clock_timestamp();"
            "INSERT INTO sentstream.verdicts (run_id, campaign_id, verdict, cause, corrected)"
            " VALUES (17, 7, 'drift', 'unknown', true)"
        )
        told: dict[str, Any] = {}
        while len(told) < 2:
            kind, data = events.next("progress", "verdict")
            if kind == "verdict" or data["sent"] == 55:
                told[kind] = data
    assert told["verdict"]["cause"] == "unknown"


def test_a_stream_that_stopped_is_told_to_be_stale_within_five_seconds(filled: Site, prepared_db: Database) -> None:
    with filled.events() as events:
        events.next("snapshot")
        events.until(lambda kind, it: kind == "watermark" and not it["stale"])
        filled.child.send_signal(signal.SIGSTOP)  # the counting process; the one that serves goes on
        began = time.monotonic()
        try:
            events.until(lambda kind, it: kind == "watermark" and it["stale"])
            assert time.monotonic() - began < 6
            assert filled.campaign(1)["stale"] is True
        finally:
            filled.child.send_signal(signal.SIGCONT)
        events.until(lambda kind, it: kind == "watermark" and not it["stale"])


def test_a_server_that_goes_down_ends_its_streams_properly(own_website: Site) -> None:
    with own_website.events() as events:
        events.next("snapshot")
        own_website.child.send_signal(signal.SIGTERM)
        with pytest.raises(AssertionError, match="ended"):  # an unfinished body would be a RemoteProtocolError
            events.next("never")
    assert own_website.child.wait(15) == 0


def test_run_ends_its_streams_properly_too(filled: Site) -> None:
    with filled.events() as events:
        events.next("snapshot")
        filled.child.send_signal(signal.SIGTERM)
        with pytest.raises(AssertionError, match="ended"):
            events.next("never")
    assert filled.child.wait(20) == 0


def test_the_serving_process_is_started_again_and_counting_goes_on(filled: Site, prepared_db: Database) -> None:
    import psutil

    (child,) = [it for it in psutil.Process(filled.child.pid).children() if "stream.web.child_main" in it.cmdline()]
    child.kill()
    send(prepared_db, 1, 3)
    eventually(lambda: prepared_db.value("SELECT sent FROM campaigns WHERE id = 1") == 3)
    eventually(lambda: _sent(filled) == 3, 20)


def test_it_ends_with_the_process_that_started_it(filled: Site) -> None:
    import psutil

    (child,) = [it for it in psutil.Process(filled.child.pid).children() if "stream.web.child_main" in it.cmdline()]
    filled.child.kill()
    eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 10)


def _sent(site_: Site) -> int:
    try:
        return int(site_.campaign(1)["sent"])
    except httpx.HTTPError:
        return -1


@contextmanager
def silent(site_: Site, path: str = "/api/events") -> Iterator[socket.socket]:
    """A client that asks and then reads nothing, with a small window."""
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.settimeout(30)
        raw.connect(("127.0.0.1", site_.port))
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        yield raw


def test_a_client_that_does_not_read_is_dropped_and_others_go_on(counted_db: Database) -> None:
    counted_db.execute(
        "INSERT INTO campaigns (id, name, status, to_send, sent)"
        " SELECT 1000 + n, repeat('a long name ', 20), 'running', n, 0 FROM generate_series(1, 5000) n"
    )
    with serve(counted_db) as site_:
        eventually(lambda: site_.get("/api/campaigns?limit=1").json()["total"] > 5000)
        with silent(site_), silent(site_):
            eventually(lambda: "sentstream_http_event_streams 2.0" in site_.get("/metrics").text)
            eventually(lambda: "sentstream_http_event_streams 0.0" in site_.get("/metrics").text, 20)
        with site_.events() as events:
            assert len(events.next("snapshot")[1]["campaigns"]) > 5000


def test_no_more_streams_than_allowed(counted_db: Database) -> None:
    with serve(counted_db, HTTP_MAX_STREAMS="2") as site_, site_.events() as one, site_.events() as two:
        one.next("snapshot")
        two.next("snapshot")
        response = site_.get("/api/events")
        assert (response.status_code, response.headers["content-type"]) == (503, "application/problem+json")
        assert "HTTP_MAX_STREAMS" in response.json()["detail"]
        assert site_.get("/api/campaigns").status_code == 200


def test_a_comment_comes_whatever_else_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a stream that counts a watermark comes every two seconds."""
    live = LiveState()
    monkeypatch.setattr(live, "tail", lambda *_: b"event: watermark\n\n")
    stream = live.stream(None, None)
    live.join(stream)
    assert list(stream._news()) == [b"event: watermark\n\n"]
    stream.commented -= COMMENT_EVERY
    live.ticked = time.monotonic()
    live._comment()
    assert stream.wake.is_set()
    assert list(stream._news()) == [b"event: watermark\n\n", b":\n\n"]
    assert list(stream._news()) == [b"event: watermark\n\n"]


@pytest.mark.slow
def test_a_silent_stream_says_a_comment_every_fifteen_seconds(counted_db: Database) -> None:
    counted_db.execute("UPDATE sentstream.watermarks SET as_of = NULL")  # stale from the start: no news at all
    with site("serve", database=counted_db) as site_:
        eventually(lambda: _sent_of_seven(site_) == 40, 20)
        counted_db.execute("DELETE FROM sentstream.history")
        eventually(lambda: not site_.campaign(8)["rate_per_minute"])  # which is news
        with site_.events("/api/campaigns/8/events") as events:
            events.next("snapshot")
            began = time.monotonic()
            for line in events._lines:
                if line.startswith(":"):
                    break
            assert 10 < time.monotonic() - began < 20


def _sent_of_seven(site_: Site) -> int:
    try:
        return int(site_.campaign(7)["sent"])
    except (httpx.HTTPError, AssertionError):
        return -1


def test_events_say_that_what_flushes_is_in_shadow_mode(own_website: Site, counted_db: Database) -> None:
    import psycopg

    with own_website.events() as events:
        assert events.next("snapshot")[1]["shadow"] is False
        with psycopg.connect(counted_db.url, application_name="sentstream flush (shadow)"):
            counted_db.execute("UPDATE sentstream.watermarks SET as_of = clock_timestamp(), seq = seq + 1")
            events.until(lambda kind, data: kind == "watermark" and data["shadow"])
