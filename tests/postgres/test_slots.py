"""A slot that is lost, dropped, advanced by somebody, temporary, or of another server's history: a new baseline, and
no counter falls."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from stream.core.errors import PreconditionError, UnreachableError
from stream.demo.private_postgres import PrivateServer, unprivileged_user
from tests.fix_postgres import Database, SmallDisk, create_database
from tests.postgres.processes import sentstream
from tests.postgres.running import add_campaign, add_rows, at_rest, based, prepared, running, shown, streaming
from tests.waiting import eventually


def counted(db: Database) -> Database:
    prepared(db)
    add_campaign(db, 1, queued=5, sent_rows=10)
    add_campaign(db, 2, sent_rows=4)
    with running(db):
        based(db)
        at_rest(db)
    return db


def verdicts(db: Database) -> list[tuple[object, ...]]:
    return db.execute(
        "SELECT campaign_id, verdict, cause, estimated FROM sentstream.verdicts"
        " WHERE run_id = (SELECT max(run_id) FROM sentstream.verdicts WHERE verdict = 'baseline') ORDER BY 1"
    )


def test_a_dropped_slot_is_made_again_and_what_vanished_meanwhile_stays_sent(any_mailer_db: Database) -> None:
    db = counted(any_mailer_db)
    db.execute("SELECT pg_drop_replication_slot(%s)", db.slot)
    db.execute("DELETE FROM email_queue WHERE campaign_id = 1 AND status = 'sent' AND id % 2 = 0")
    gone = 10 - db.value("SELECT count(*) FROM email_queue WHERE campaign_id = 1 AND status = 'sent'")
    add_rows(db, 2, "sent", 3)
    with running(db):
        based(db)
        eventually(lambda: shown(db) == {1: 10, 2: 7})
        told = [(1, "baseline", "rows_vanished_unwatched", True), (2, "baseline", "gap", False)]
        eventually(lambda: verdicts(db) == told)  # a raise may have come before
        assert db.value("SELECT removed FROM sentstream.progress WHERE campaign_id = 1") == gone
        add_rows(db, 1, "sent", 1)
        eventually(lambda: shown(db) == {1: 11, 2: 7})


def test_a_slot_advanced_by_somebody_is_a_gap(mailer_db: Database) -> None:
    db = counted(mailer_db)
    add_rows(db, 1, "sent", 6)
    db.execute("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", db.slot)
    with running(db):
        based(db)
        eventually(lambda: shown(db) == {1: 16, 2: 4})
        eventually(lambda: {row[2] for row in verdicts(db)} == {"gap"})  # a raise may have come before


def test_an_invalidated_slot_is_made_again(private_mailer_db: Database) -> None:
    db = counted(private_mailer_db)
    db.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '16MB'")
    db.execute("SELECT pg_reload_conf()")
    db.execute("CREATE TABLE filler (t text)")

    def lost() -> bool:
        db.execute("INSERT INTO filler SELECT repeat(md5(i::text), 40) FROM generate_series(1, 20000) i")
        db.execute("SELECT pg_switch_wal()")
        db.execute("CHECKPOINT")
        return bool(db.value("SELECT wal_status = 'lost' FROM pg_replication_slots WHERE slot_name = %s", db.slot))

    eventually(lost, 60)
    add_rows(db, 1, "sent", 6)
    with running(db):
        based(db)
        eventually(lambda: shown(db) == {1: 16, 2: 4})


def test_a_temporary_slot_starts_from_a_new_baseline_and_pins_nothing(mailer_db: Database) -> None:
    db = mailer_db
    prepared(db, temporary_slot=True)
    add_campaign(db, 1, queued=5, sent_rows=10)
    for sent in (10, 13, 16):
        with running(db, slot_kind="temporary"):
            eventually(lambda sent=sent: shown(db) == {1: sent}, 30)  # type: ignore[misc]
            add_rows(db, 1, "sent", 1)
            eventually(lambda sent=sent: shown(db) == {1: sent + 1}, 30)  # type: ignore[misc]
        eventually(lambda: not db.execute("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s", db.slot))
        add_rows(db, 1, "sent", 2)


def test_a_slot_of_another_plugin_is_refused(mailer_db: Database) -> None:
    db = counted(mailer_db)
    db.execute("SELECT pg_drop_replication_slot(%s)", db.slot)
    db.execute("SELECT pg_create_physical_replication_slot(%s)", db.slot)
    with pytest.raises(PreconditionError, match="pgoutput"), streaming(db) as stream:
        eventually(lambda: stream.failure is not None)


def test_positions_beyond_the_servers_wal_begin_a_new_epoch(mailer_db: Database) -> None:
    """As after a restore from an older backup: what is remembered can't be compared."""
    db = counted(mailer_db)
    epoch = db.value("SELECT epoch FROM sentstream.watermarks")
    db.execute("UPDATE sentstream.watermarks SET lsn = 'FFF/0'")
    add_rows(db, 1, "sent", 2)
    with running(db):
        eventually(lambda: shown(db) == {1: 12, 2: 4}, 30)
        assert db.value("SELECT epoch FROM sentstream.watermarks") > epoch
        assert {row[2] for row in verdicts(db)} == {"new_epoch"}


def test_another_system_identifier_begins_a_new_epoch(mailer_db: Database) -> None:
    db = counted(mailer_db)
    db.execute("UPDATE sentstream.watermarks SET system_identifier = '42'")
    with running(db):
        eventually(lambda: {row[2] for row in verdicts(db)} == {"new_epoch"}, 30)
        assert shown(db) == {1: 10, 2: 4}


def test_a_full_disk_loses_nothing(small_disk_pg: SmallDisk, tmp_path: Path) -> None:
    """The server can't write: one line says so, nothing is confirmed, and with room again the counts are right."""
    server = small_disk_pg.server
    db = counted(create_database(server, mailer=True))
    with sentstream(db, tmp_path / "run.log") as process:
        add_rows(db, 1, "sent", 5)
        eventually(lambda: shown(db)[1] == 15, 20)
        small_disk_pg.fill()
        with suppress(psycopg.Error, UnreachableError):  # the mailer is told as well, sooner or later
            for _ in range(200):
                add_rows(db, 1, "failed", 500)
        small_disk_pg.free()
        if not server.running:
            server.start()
        eventually(lambda: _writes(db), 60)
        add_rows(db, 1, "sent", 5)
        at_rest(db)
        assert shown(db)[1] == 20
        assert process.alive
        assert "Traceback" not in process.said


def _writes(db: Database) -> bool:
    try:
        add_rows(db, 1, "cancelled", 1)
    except (psycopg.Error, UnreachableError):
        return False
    return True


def promote(db: Database) -> None:
    """The server as its own standby, with all its data and slots, which becomes the primary: timeline 2."""
    server = db.server
    assert isinstance(server, PrivateServer)
    server.kill()
    signal_file = server.data / "standby.signal"
    signal_file.touch()
    user = unprivileged_user()
    if user is not None:
        shutil.chown(signal_file, user)
    server.start()
    db.execute("SELECT pg_promote()")


def test_a_failover_whose_slot_came_along_continues_the_epoch(private_mailer_db: Database) -> None:
    """What was removed before the switch, and not yet read, is still in the WAL behind the slot."""
    db = prepared(private_mailer_db)
    add_campaign(db, 1, sent_rows=30)
    with running(db):
        at_rest(db)
        based(db)
    epoch = db.value("SELECT epoch FROM sentstream.watermarks")
    db.execute("DELETE FROM email_queue WHERE id IN (SELECT id FROM email_queue ORDER BY id LIMIT 10)")
    promote(db)
    with running(db):
        eventually(lambda: db.value("SELECT removed FROM sentstream.progress") == 10)
        at_rest(db)
    assert shown(db) == {1: 30}
    assert db.execute("SELECT epoch, timeline, based FROM sentstream.watermarks") == [(epoch, 2, True)]
    assert db.value("SELECT bool_or(estimated) FROM sentstream.verdicts") is not True
