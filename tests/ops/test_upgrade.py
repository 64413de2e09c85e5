"""An upgrade of the embedded shape as docs/operations/upgrading.md has it: the counts, the history and the chain of
reports that the earlier release wrote go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stream.config.sources import to_environment
from tests.fix_postgres import Database
from tests.next_release import ROOT, command, next_release
from tests.postgres.preparing import to_version_1
from tests.postgres.running import (
    add_campaign,
    add_rows,
    based,
    count,
    prepared,
    running_process,
    settings_for,
    shown,
    truth,
)
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(180)


@contextmanager
def running_release(home: Path, db: Database) -> Iterator[None]:
    """`sentstream run` of the release in ``home``, until the counters show the truth and a recount has proved it."""
    with running_process(db, home=home):
        based(db)
        yield
        eventually(lambda: shown(db) == {campaign: counts[2] for campaign, counts in truth(db).items()}, 40)
        with db.connect() as conn:
            run = count(conn).run_id
        eventually(
            lambda: db.execute("SELECT 1 FROM sentstream.recounts WHERE run_id = %s AND status = 'sealed'", run), 40
        )


@pytest.mark.slow
def test_to_the_next_release_and_back(mailer_db: Database, tmp_path: Path) -> None:
    db = prepared(mailer_db)
    home = next_release(tmp_path)
    environment = to_environment(settings_for(db))
    add_campaign(db, 1, queued=20, sent_rows=30)
    with running_release(ROOT, db):
        add_rows(db, 1, "sent", 5)
    old = history(db)
    add_rows(db, 1, "sent", 7)  # while nobody reads
    command(home, environment, "setup")
    with running_release(home, db):
        add_rows(db, 1, "sent", 11)
    assert shown(db) == {1: 53}
    assert history(db) - old == 18
    assert db.value("SELECT of_the_next_release FROM sentstream.progress") == 0
    add_rows(db, 1, "sent", 13)
    with running_release(ROOT, db):  # going back needs no migration back
        add_rows(db, 1, "sent", 17)
    assert shown(db) == {1: 83}
    assert db.value("SELECT count(*) FROM sentstream.verdicts WHERE verdict = 'drift'") == 0
    assert db.value("SELECT count(DISTINCT epoch) FROM sentstream.answers") >= 3
    for release in (ROOT, home):
        assert "The chain holds" in command(release, environment, "report", "verify")


def test_what_an_earlier_version_of_the_schema_holds_is_kept(mailer_db: Database) -> None:
    """Version 1 has the tables, not the views: counts, history and chain go on, and no drift is found."""
    db = prepared(mailer_db)
    add_campaign(db, 1, queued=20, sent_rows=30)
    with running_release(ROOT, db):
        add_rows(db, 1, "sent", 5)
    to_version_1(db)
    tables = ("progress", "history", "recounts", "verdicts", "watermarks")
    before = {table: db.execute(f"SELECT * FROM sentstream.{table} ORDER BY 1, 2") for table in tables}
    add_rows(db, 1, "sent", 7)  # while nobody reads
    prepared(db)  # `sentstream setup`
    for table, rows in before.items():
        after = db.execute(f"SELECT * FROM sentstream.{table} ORDER BY 1, 2")
        assert [new[: len(old)] for new, old in zip(after, rows, strict=True)] == rows, (
            "columns of later versions aside"
        )
    with running_release(ROOT, db):
        add_rows(db, 1, "sent", 11)
    assert shown(db) == {1: 53}
    assert db.value("SELECT sent FROM sentstream.campaign_progress WHERE id = 1") == 53
    assert db.value("SELECT count(*) FROM sentstream.verdicts WHERE verdict = 'drift'") == 0
    assert db.value("SELECT count(DISTINCT epoch) FROM sentstream.answers") == 1
    assert "The chain holds" in command(ROOT, to_environment(settings_for(db)), "report", "verify")


def history(db: Database) -> int:
    return int(db.value("SELECT sum(sent) FROM sentstream.history"))
