"""The calls, on a real server and a real database."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime, timedelta, timezone
from typing import Any

import httpx
import pytest

from stream.config.settings import Settings
from stream.core.errors import UnreachableError
from stream.metrics.poller import DatabasePoller
from tests.fix_postgres import Database
from tests.interfaces.fix_web import (
    Run,
    Site,
    counted_db,
    counting_website,
    own_website,
    prepared_db,
    run,
    serve,
    shared_db,
    website,
)
from tests.waiting import eventually

__all__ = ["counted_db", "counting_website", "own_website", "prepared_db", "run", "shared_db", "website"]

PROGRESS = """campaign_id name status sent queue_queued queue_sending queue_sent queue_failed queue_cancelled
queue_total removed to_send percent rate_per_minute eta as_of verified_at lsn position stale source"""
STATS = """id status to_send sent started_at updated_at rate net_rate use_queue messenger queue_queued queue_sending
queue_sent queue_failed queue_cancelled queue_total auto_paused auto_paused_at views clicks azure_sent"""
FRESH = "UPDATE sentstream.watermarks SET as_of = clock_timestamp(), seq = seq + 1"


def test_a_campaign_has_the_names_of_the_contract(website: Site, shared_db: Database) -> None:
    shared_db.execute(FRESH)
    eventually(lambda: website.campaign(7)["rate_per_minute"] and not website.campaign(7)["stale"])
    found = website.campaign(7)
    assert set(PROGRESS.split()) <= found.keys()
    assert {name: found[name] for name in ("name", "status", "sent", "queue_queued", "percent", "source")} == {
        "name": "Spring sale",
        "status": "running",
        "sent": 40,
        "queue_queued": 54,
        "percent": 40.0,
        "source": "queue",
    }
    assert found["queue_total"] == 100
    assert 12 <= found["rate_per_minute"] <= 42
    assert re.fullmatch(r"[0-9A-F]+/[0-9A-F]+", found["lsn"])


def test_a_campaign_outside_the_queue_has_the_mailers_number(website: Site) -> None:
    found = website.campaign(10)
    assert (found["source"], found["sent"], found["queue_total"], found["percent"]) == ("mailer", 5, 0, 10.0)
    assert website.campaign(11)["percent"] is None


def test_old_numbers_say_that_they_are_stale(website: Site) -> None:
    eventually(lambda: website.campaign(7)["stale"], 10)  # nobody counts on this database
    assert website.get("/readyz").status_code in (200, 503)


def test_the_list_is_filtered_and_paged(website: Site) -> None:
    def ids(query: str) -> list[int]:
        return [it["campaign_id"] for it in website.get(f"/api/campaigns?{query}").json()["campaigns"]]

    assert ids("") == [11, 10, 9, 8, 7]
    assert ids("status=running&status=paused") == [10, 9, 7]
    assert ids("q=twice") == [9, 8]
    assert ids("q=7") == [7]
    page = website.get("/api/campaigns?limit=2").json()
    seen = [it["campaign_id"] for it in page["campaigns"]]
    while page["next_cursor"]:
        page = website.get("/api/campaigns", params={"limit": 2, "cursor": page["next_cursor"]}).json()
        seen += [it["campaign_id"] for it in page["campaigns"]]
    assert (seen, page["total"]) == ([11, 10, 9, 8, 7], 5)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/campaigns/99", 404),
        ("/api/campaigns/0", 422),
        ("/api/campaigns/x", 422),
        ("/api/campaigns?limit=0", 422),
        ("/api/campaigns?cursor=nonsense", 422),
        ("/api/campaigns?status=asleep", 422),
        ("/api/campaigns/99/history", 404),
        ("/api/campaigns/99/events", 404),
        ("/api/campaigns/7/history?since=2026-01-02&until=2026-01-01", 422),
        ("/api/campaigns/7/history?since=2020-01-01&until=2026-01-01", 422),
        ("/api/recounts/99", 404),
        ("/api/nothing", 404),
        ("/static/../app.py", 404),
        ("/static/nothing.js", 404),
    ],
)
def test_errors_are_problems_with_a_request_id(website: Site, path: str, status: int) -> None:
    response = website.get(path, headers={"X-Request-Id": "mine-1"})
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"] == "mine-1"
    problem = response.json()
    assert (problem["status"], problem["request_id"]) == (status, "mine-1")
    assert problem["title"]
    assert problem["detail"]


def test_a_method_that_is_not_there_is_a_problem(website: Site) -> None:
    response = httpx.delete(website.url + "/api/campaigns/7")
    assert (response.status_code, response.headers["content-type"]) == (405, "application/problem+json")


def test_a_request_id_of_ours_is_given_where_none_came(website: Site) -> None:
    ids = {website.get("/api/campaigns").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
    odd = website.get("/api/campaigns", headers={"X-Request-Id": "a b<script>"}).headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{16}", odd)


def test_etags_are_strong_and_spare_the_body(website: Site) -> None:
    path = "/api/recounts/17"
    first = website.get(path)
    tag = first.headers["etag"]
    assert re.fullmatch(r'"[^"]+"', tag)
    for asked in (tag, f'"other", {tag}', f"W/{tag}", "*"):
        again = website.get(path, headers={"If-None-Match": asked})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert website.get(path, headers={"If-None-Match": '"other"'}).content == first.content


def test_an_etag_changes_with_the_number(counting_website: Site, prepared_db: Database) -> None:
    prepared_db.execute(
        "INSERT INTO campaigns (id, name, status, to_send) VALUES (1, 'Spring', 'running', 5);"
        "INSERT INTO subscribers (id, email) VALUES (1, 'a@example.org');"
        "INSERT INTO email_queue (campaign_id, subscriber_id, scheduled_at)"
        " SELECT 1, 1, now() FROM generate_series(1, 5)"
    )
    site = counting_website
    eventually(lambda: site.campaign(1)["queue_queued"] == 5)
    tag = site.get("/api/campaigns/1").headers["etag"]
    prepared_db.execute("UPDATE email_queue SET status = 'sent' WHERE id = 1")
    eventually(lambda: site.campaign(1)["sent"] == 1)
    changed = site.get("/api/campaigns/1", headers={"If-None-Match": tag})
    assert (changed.status_code, changed.json()["percent"]) == (200, 20.0)


def test_head_has_the_headers_and_no_body(website: Site) -> None:
    response = httpx.head(website.url + "/api/recounts/17")
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["etag"] == website.get("/api/recounts/17").headers["etag"]
    assert httpx.head(website.url + "/api/events").headers["content-type"].startswith("text/event-stream")


def test_history_adds_up(website: Site) -> None:
    found = website.get("/api/campaigns/7/history").json()
    assert [it["sent"] for it in found["minutes"]] == [30, 12]
    assert [(it["kind"], it["sent"]) for it in found["adjustments"]] == [("baseline", -2)]
    assert sum(it["sent"] for it in found["minutes"] + found["adjustments"]) == website.campaign(7)["sent"]
    since = (datetime.now(timezone.utc) - timedelta(hours=1)).isoformat()
    assert website.get("/api/history", params={"since": since}).json()["campaign_id"] is None
    assert sum(it["sent"] for it in website.get("/api/history").json()["minutes"]) == 42


def test_runs_and_their_verdicts(website: Site) -> None:
    runs = website.get("/api/recounts").json()["recounts"]
    assert [(run["run_id"], run["counts"]["drift"], run["verdicts"]) for run in runs] == [(17, 1, [])]
    run = website.get("/api/recounts/17").json()
    (verdict,) = run["verdicts"]
    assert (verdict["campaign_id"], verdict["verdict"], verdict["cause"]) == (9, "drift", "missed_change")
    assert (verdict["before"], verdict["after"], verdict["delta"]) == (
        {"sent": 9},
        {"sent": 8},
        {"sent": -1, "cancelled": 1},
    )
    assert website.get("/api/recounts?campaign_id=7").json()["recounts"] == []
    assert len(website.get("/api/recounts?campaign_id=9&drift=true").json()["recounts"]) == 1


def test_runs_and_verdicts_are_paged(own_website: Site, counted_db: Database) -> None:
    counted_db.execute(
        "INSERT INTO sentstream.recounts (run_id, trigger, requested_by, lsn, snapshot, epoch, removed_policy, version,"
        " count_ms) SELECT n, 'interval', 'test', '0/1', '1:1:', 5, 'keep', '1', 1 FROM generate_series(20, 24) n;"
        "INSERT INTO sentstream.verdicts (run_id, campaign_id, verdict)"
        " SELECT 20, n, 'baseline' FROM generate_series(1, 5) n"
    )
    page = own_website.get("/api/recounts?limit=4").json()
    assert [run["run_id"] for run in page["recounts"]] == [24, 23, 22, 21]
    rest = own_website.get("/api/recounts", params={"limit": 4, "cursor": page["next_cursor"]}).json()
    assert ([run["run_id"] for run in rest["recounts"]], rest["next_cursor"]) == ([20, 17], None)
    run = own_website.get("/api/recounts/20?limit=3").json()
    assert [it["campaign_id"] for it in run["verdicts"]] == [1, 2, 3]
    more = own_website.get("/api/recounts/20", params={"limit": 3, "cursor": run["next_cursor"]}).json()
    assert ([it["campaign_id"] for it in more["verdicts"]], more["next_cursor"]) == ([4, 5], None)


def test_a_recount_is_asked_for_and_its_location_leads_to_it(counting_website: Site, prepared_db: Database) -> None:
    prepared_db.execute("INSERT INTO campaigns (id, name) VALUES (1, 'Spring')")
    site = counting_website
    eventually(lambda: site.campaign(1))
    for path in ("/api/recounts", "/api/campaigns/1/sync-counts"):
        response = site.post(path)
        assert response.status_code == 202, response.text
        location = response.headers["location"]
        assert location == f"/api/recounts/{response.json()['run_id']}"
        eventually(lambda where=location: site.get(where).json()["status"] == "sealed", 20)  # type: ignore[misc]
        run = site.get(location).json()
        assert (run["trigger"], run["requested_by"]) == ("manual", "http")
    assert site.post("/api/campaigns/99/sync-counts").status_code == 404


def test_behind_a_proxy_addresses_have_its_prefix(counting_website: Site) -> None:
    response = counting_website.post("/api/recounts", headers={"X-Forwarded-Prefix": "/admin/sentstream"})
    assert response.headers["location"].startswith("/admin/sentstream/api/recounts/")
    odd = counting_website.post("/api/recounts", headers={"X-Forwarded-Prefix": "//evil.example"})
    assert odd.headers["location"].startswith("/api/recounts/")


def test_a_recount_that_can_not_be_made_now_says_when_to_try_again(own_website: Site, counted_db: Database) -> None:
    with counted_db.connect() as session, session.transaction():
        session.execute("LOCK TABLE email_queue IN ACCESS EXCLUSIVE MODE")
        response = own_website.post("/api/recounts")
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    assert "locked" in response.json()["detail"]


def test_no_recount_where_no_stream_has_ever_run(own_website: Site, counted_db: Database, run: Run) -> None:
    """Nobody could compare. The words are those of the command."""
    counted_db.execute("DELETE FROM sentstream.watermarks")
    said = run("recount", "--database-url", counted_db.url).err
    for path in ("/api/recounts", "/api/campaigns/7/sync-counts"):
        response = own_website.post(path)
        assert (response.status_code, response.headers["content-type"]) == (409, "application/problem+json")
        assert said == f"sentstream: {response.json()['detail']}\n"
    assert "No stream has ever counted here" in said
    assert counted_db.value("SELECT count(*) FROM sentstream.recounts") == 1


def test_the_mailers_own_stats_shape(own_website: Site, counted_db: Database) -> None:
    counted_db.execute(
        "UPDATE campaigns SET started_at = now() - interval '10 minutes', use_queue = true WHERE id = 7;"
        "UPDATE campaigns SET updated_at = '2026-03-01 12:00:00.123450Z' WHERE id = 7;"
    )

    def running() -> dict[int, dict[str, object]]:
        response = own_website.get("/api/campaigns/running/stats")
        if response.status_code == 503:
            return {7: {"use_queue": None}}
        return {row["id"]: row for row in response.json()["data"]}

    with kept_fresh(counted_db):
        eventually(lambda: running()[7]["use_queue"] and running()[7]["started_at"])
        stats = running()
    assert set(stats) == {7, 10}, "running campaigns alone"
    assert list(stats[7]) == STATS.split()
    assert {name: stats[7][name] for name in ("sent", "net_rate", "queue_total", "auto_paused", "clicks")} == {
        "sent": 40,
        "net_rate": 4,
        "queue_total": 100,
        "auto_paused": False,
        "clicks": 0,
    }
    assert (stats[10]["sent"], stats[10]["queue_total"]) == (5, 0)
    assert stats[7]["updated_at"] == "2026-03-01T12:00:00.12345Z", "as precise as the mailer, and written as Go does"


@contextmanager
def kept_fresh(db: Database) -> Iterator[None]:
    """Nothing counts in these tests: let what was counted pass for current."""
    stop = threading.Event()

    def refresh() -> None:
        while not stop.is_set():
            db.execute("UPDATE sentstream.watermarks SET as_of = clock_timestamp()")
            stop.wait(0.5)

    thread = threading.Thread(target=refresh)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("how", ["as_of = now() - interval '6 s'", "as_of = now(), based = false"])
def test_stale_stats_are_refused_so_that_a_proxy_falls_back_to_the_mailer(counted_db: Database, how: str) -> None:
    with serve(counted_db) as site:

        def answer() -> tuple[int, str]:
            response = site.get("/api/campaigns/running/stats")
            return response.status_code, response.headers["content-type"]

        with kept_fresh(counted_db):
            eventually(lambda: answer() == (200, "application/json"))
        counted_db.execute(f"UPDATE sentstream.watermarks SET {how}")
        eventually(lambda: answer() == (503, "application/problem+json"))
        counted_db.execute("UPDATE campaigns SET status = 'paused'")
        eventually(lambda: answer() == (200, "application/json"), 5)  # no campaign runs: nothing that could be old


def test_stats_are_refused_where_nothing_was_ever_counted(prepared_db: Database) -> None:
    prepared_db.execute(
        "INSERT INTO campaigns (id, name, subject, body, status, to_send, sent)"
        " VALUES (1, 'a', 's', 'b', 'running', 9, 0)"
    )
    with serve(prepared_db) as site:
        response = site.get("/api/campaigns/running/stats")
        assert (response.status_code, response.headers["content-type"]) == (503, "application/problem+json")
        assert "Retry-After" in response.headers


def test_views_and_delivered_mails_come_with_the_recount(counted_db: Database) -> None:
    counted_db.execute(
        "INSERT INTO campaign_views (campaign_id) SELECT 7 FROM generate_series(1, 3);"
        "INSERT INTO azure_message_tracking (azure_message_id, campaign_id, subscriber_id)"
        " SELECT gen_random_uuid(), 7, n FROM generate_series(1, 9) n;"
        "INSERT INTO azure_delivery_events (azure_message_id, campaign_id, subscriber_id, status, event_timestamp)"
        " SELECT azure_message_id, 7, subscriber_id,"
        " CASE WHEN subscriber_id <= 4 THEN 'Delivered' ELSE 'Bounced' END, now() FROM azure_message_tracking"
    )
    with serve(counted_db) as site, kept_fresh(counted_db):

        def row() -> dict[str, object]:
            found = (
                site.get("/api/campaigns/running/stats").json().get("data", [{"id": 7, "views": 0, "azure_sent": 0}])
            )
            return next(it for it in found if it["id"] == 7)

        eventually(lambda: (row()["views"], row()["azure_sent"]) == (3, 4))


def test_the_stats_of_a_mailer_that_lacks_columns(counted_db: Database) -> None:
    counted_db.execute(
        "ALTER TABLE campaigns DROP COLUMN auto_paused, DROP COLUMN auto_paused_at, DROP COLUMN use_queue;"
        "DROP TABLE campaign_views, link_clicks, azure_engagement_events, azure_delivery_events, azure_message_tracking"
    )
    with serve(counted_db) as site, kept_fresh(counted_db):
        eventually(lambda: site.get("/api/campaigns/running/stats").status_code == 200)
        rows = site.get("/api/campaigns/running/stats").json()["data"]
    assert [(it["id"], it["auto_paused"], it["auto_paused_at"], it["views"]) for it in rows] == [
        (7, False, None, 0),
        (10, False, None, 0),
    ]


def test_no_call_ever_counts_the_queue(own_website: Site, counted_db: Database) -> None:
    """The queue's own statistics say whether anybody has read it."""

    def scans() -> int:
        counted_db.execute("SELECT pg_stat_force_next_flush()")
        return int(
            counted_db.value(
                "SELECT coalesce(seq_scan, 0) + coalesce(idx_scan, 0) FROM pg_stat_user_tables"
                " WHERE relname = 'email_queue'"
            )
        )

    before = scans()
    for path in ("/api/campaigns", "/api/campaigns/7", "/api/campaigns/running/stats", "/api/lag", "/api/status"):
        for _ in range(3):
            assert own_website.get(path).status_code == 200
    time.sleep(1.2)  # the server's sessions tell their statistics when they are idle, once a second
    assert scans() == before


def test_lag_and_status_as_the_commands_have_them(counting_website: Site) -> None:
    eventually(lambda: counting_website.get("/api/lag").status_code == 200)
    eventually(lambda: counting_website.get("/api/lag").json()["verdict"] == "OK", 20)
    lag = counting_website.get("/api/lag").json()
    assert lag["groups"] == []
    assert {"bytes", "seconds", "wal_status", "verdict"} <= lag["slot"].keys()
    assert lag["flush"]["age_seconds"] < 5
    status = counting_website.get("/api/status").json()
    assert status["healthy"] is True
    assert {"flush", "http", "reader"} & {role["role"] for role in status["roles"]}


def test_the_lag_of_a_database_that_went_away_is_not_shown_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = threading.Event()

    def session() -> AbstractContextManager[Any]:
        if gone.is_set():
            raise UnreachableError("Gone.")
        return nullcontext()

    poller = DatabasePoller(Settings(), session)
    monkeypatch.setattr(poller._reading, "poll", lambda _connection: {"verdict": "OK"})
    monkeypatch.setattr(poller.view, "saw", lambda _read: None)
    monkeypatch.setattr("stream.metrics.poller.read_metrics", lambda _connection: None)
    monkeypatch.setattr("stream.metrics.poller.LAG_EVERY", 0.01)
    monkeypatch.setattr("stream.metrics.poller.KEPT_FAILING", 0.1)
    poller.start()
    try:
        eventually(lambda: poller.lag() == {"verdict": "OK"})
        gone.set()
        eventually(lambda: poller.lag() is None)
    finally:
        poller.stop()


def test_health_is_judged_by_progress(website: Site) -> None:
    assert website.get("/livez").json() == {"ok": True, "checks": None}
    ready = website.get("/readyz?verbose").json()
    assert {check["name"] for check in ready["checks"]} == {
        "publisher",
        "follower",
        "loaded",
        "database",
        "baseline",
        "stream",
    }


def test_a_server_before_setup_is_alive_and_not_ready(mailer_db: Database) -> None:
    from tests.interfaces.fix_web import site

    with site("serve", database=mailer_db) as bare:
        eventually(lambda: _status(bare, "/livez") == 200)
        assert bare.get("/readyz?verbose").status_code == 503
        response = bare.get("/api/campaigns")
        assert (response.status_code, response.headers["content-type"]) == (503, "application/problem+json")
        assert mailer_db.name not in bare.get("/readyz?verbose").text


def _status(site: Site, path: str) -> int:
    try:
        return site.get(path).status_code
    except httpx.HTTPError:
        return 0


def test_metrics_are_prometheus_text_and_bounded(website: Site) -> None:
    for number in range(50):
        website.get(f"/api/campaigns/{number + 1}")
        website.get(f"/nowhere/{number}")
    response = website.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    assert 'method="GET",route="/api/campaigns/{campaign_id}",status="200"' in response.text
    assert "nowhere" not in response.text
    assert "sentstream_http_campaigns 5.0" in response.text
    assert len(response.text) < 60_000


def test_openapi_is_3_1_and_names_every_call(website: Site) -> None:
    schema = website.get("/openapi.json").json()
    assert schema["openapi"].startswith("3.1")
    assert {
        "/api/campaigns",
        "/api/campaigns/{campaign_id}",
        "/api/campaigns/{campaign_id}/history",
        "/api/campaigns/{campaign_id}/events",
        "/api/campaigns/{campaign_id}/sync-counts",
        "/api/campaigns/running/stats",
        "/api/events",
        "/api/recounts",
        "/api/recounts/{run_id}",
        "/api/login",
        "/api/lag",
        "/api/status",
        "/livez",
        "/readyz",
        "/metrics",
    } <= schema["paths"].keys()


def test_the_database_may_go_and_come_back(counted_db: Database) -> None:
    with serve(counted_db) as site:
        counted_db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'sentstream http'"
            " AND datname = current_database()"
        )
        counted_db.execute("UPDATE sentstream.progress SET sent = 41, queue_sent = 41 WHERE campaign_id = 7")
        counted_db.execute("UPDATE sentstream.watermarks SET seq = seq + 1")
        eventually(lambda: site.campaign(7)["sent"] == 41, 10)
        assert site.get("/api/recounts").status_code in (200, 503)
        eventually(lambda: site.get("/api/recounts").status_code == 200)


def test_a_campaign_that_goes_is_gone(own_website: Site, counted_db: Database) -> None:
    counted_db.execute(
        "DELETE FROM campaigns WHERE id IN (9, 10); DELETE FROM sentstream.progress WHERE campaign_id = 9"
    )
    for number in (9, 10):
        eventually(lambda n=number: own_website.get(f"/api/campaigns/{n}").status_code == 404)  # type: ignore[misc]
    assert own_website.campaign(7)["sent"] == 40


def test_a_body_that_is_too_large_is_refused(website: Site) -> None:
    response = website.post("/api/login", content=b"x" * 70_000)
    assert (response.status_code, response.headers["content-type"]) == (413, "application/problem+json")

    def endless() -> object:
        for _ in range(20):
            yield b"x" * 8192

    chunked = website.post("/api/login", content=endless())
    assert chunked.status_code == 413


def test_a_head_that_is_too_large_or_no_http_is_refused(website: Site) -> None:
    for sent in (
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"\x16\x03\x01 nonsense\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", website.port), timeout=10) as raw:
            try:
                raw.sendall(sent)
                answer = raw.recv(4096)
            except ConnectionError:
                continue
            assert answer.split(b" ")[1] in (b"400", b"431")
            assert b"application/problem+json" in answer
    assert website.get("/livez").status_code == 200


def test_run_keeps_six_sessions_open(counting_website: Site, prepared_db: Database) -> None:
    """The number that docs/operations/deploying.md gives."""
    ours = """SELECT application_name FROM pg_stat_activity
              WHERE datname = current_database() AND application_name LIKE 'sentstream %'
                AND application_name <> 'sentstream test' AND pid <> pg_backend_pid() ORDER BY 1"""
    eventually(lambda: counting_website.get("/api/lag").status_code == 200)
    roles = [row[0].removeprefix("sentstream ") for row in prepared_db.execute(ours)]
    assert roles == ["control", "flush", "http", "http", "reader", "reconciler"]
