"""A capture of the stream: what is recorded from a real slot is what a replay folds."""

from __future__ import annotations

from pathlib import Path

from benchmarks.capture import load, made, recorded, replay, save
from connectors.postgres.connect import connect
from connectors.postgres.setup import Wanted, set_up
from tests.fix_postgres import Database


def test_a_made_day_is_folded_whole() -> None:
    stages = replay(made(2_000))
    assert stages.transactions == 2_000


def test_a_recorded_stream_is_replayed_without_the_server(mailer_db: Database, tmp_path: Path) -> None:
    with connect(mailer_db.url, "test") as session:
        set_up(session, Wanted(slot=mailer_db.slot))
    mailer_db.execute("INSERT INTO campaigns (name, status) VALUES ('a', 'running')")
    mailer_db.execute("INSERT INTO subscribers (email) VALUES ('a@example.org')")
    for _ in range(3):
        mailer_db.execute("INSERT INTO email_queue (campaign_id, subscriber_id, scheduled_at) VALUES (1, 1, now())")
    file = tmp_path / "capture.gz"
    size = save(file, recorded(mailer_db.url, mailer_db.slot, "sentstream", 1_000))
    again = save(tmp_path / "again.gz", recorded(mailer_db.url, mailer_db.slot, "sentstream", 1_000))
    assert size == again > 0  # the slot was not moved
    stages = replay(load(file))
    assert stages.bytes == size
    assert stages.transactions == 4  # the campaign and three rows; a subscriber is not published
