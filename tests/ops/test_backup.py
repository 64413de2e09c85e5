"""docs/operations/backup.md and "several databases": what is said there to follow by itself, made and seen."""

from __future__ import annotations

import subprocess
from pathlib import Path

from stream.demo.private_postgres import PrivateServer
from tests.fix_postgres import Database, create_database
from tests.postgres.running import add_campaign, add_rows, at_rest, based, prepared, running, shown, truth
from tests.waiting import eventually


def epoch(db: Database) -> int:
    ((found,),) = db.execute("SELECT max(epoch) FROM sentstream.watermarks")
    return int(found)


def counted(server: PrivateServer) -> Database:
    """A campaign that has sent 30, ten of which were deleted since; the mailer's counter is right."""
    db = prepared(create_database(server, mailer=True))
    add_campaign(db, 1, queued=5, sent_rows=30)
    with running(db):
        based(db)
        at_rest(db)
        db.execute("DELETE FROM email_queue WHERE id IN (SELECT id FROM email_queue WHERE status = 'sent' LIMIT 10)")
        eventually(lambda: db.execute("SELECT removed FROM sentstream.progress") == [(10,)], 20)
    assert shown(db) == {1: 30}
    return db


def test_a_dump_that_is_restored_into_another_database(private_pg: PrivateServer, tmp_path: Path) -> None:
    db = counted(private_pg)
    copy = create_database(private_pg)
    dump = tmp_path / "dump"
    dump_words = [str(private_pg.program("pg_dump")), "--format=custom", f"--file={dump}", f"--dbname={db.url}"]
    subprocess.run(dump_words, check=True)
    restore = [str(private_pg.program("pg_restore")), "--exit-on-error", f"--dbname={copy.url}", str(dump)]
    subprocess.run(restore, check=True)
    prepared(copy)  # `sentstream setup`
    add_rows(copy, 1, "sent", 3)  # before anybody reads
    with running(copy):
        based(copy)
        eventually(lambda: shown(copy) == {1: 33}, 30)
        add_rows(copy, 1, "sent", 4)
        eventually(lambda: shown(copy) == {1: 37}, 30)
    assert copy.execute("SELECT removed FROM sentstream.progress") == [(10,)]


def test_a_schema_that_is_lost(private_pg: PrivateServer) -> None:
    """First contact: no counter falls, and what is not in the queue any more becomes `removed`."""
    db = counted(private_pg)
    db.execute("DROP SCHEMA sentstream CASCADE")
    prepared(db)
    with running(db):
        based(db)
        eventually(lambda: db.execute("SELECT removed FROM sentstream.progress") == [(10,)], 20)
        add_rows(db, 1, "sent", 2)
        eventually(lambda: shown(db) == {1: 32}, 30)


def test_a_snapshot_of_the_disk_that_is_put_back(private_pg: PrivateServer, tmp_path: Path) -> None:
    db = counted(private_pg)
    private_pg.kill()
    backup = tmp_path / "backup"
    subprocess.run(["cp", "-a", str(private_pg.data), str(backup)], check=True)
    private_pg.start()
    before = epoch(db)
    with running(db):
        add_rows(db, 1, "sent", 50)
        eventually(lambda: shown(db) == {1: 80}, 30)
    db.execute("SELECT pg_switch_wal()")
    private_pg.kill()
    subprocess.run(["rm", "-rf", str(private_pg.data)], check=True)
    subprocess.run(["cp", "-a", str(backup), str(private_pg.data)], check=True)
    private_pg.start()
    with running(db):
        add_rows(db, 1, "sent", 1)
        eventually(lambda: shown(db) == {1: 31}, 30)
        assert truth(db) == {1: (5, 0, 21, 0, 0)}
    # slot and position were put back with all the rest: the same history goes on from there
    assert epoch(db) == before


def test_two_databases_on_one_server(private_pg: PrivateServer) -> None:
    first, second = (prepared(create_database(private_pg, mailer=True)) for _ in range(2))
    add_campaign(first, 1, sent_rows=2)
    add_campaign(second, 1, sent_rows=5)
    with running(first), running(second):
        eventually(lambda: (shown(first), shown(second)) == ({1: 2}, {1: 5}), 40)
        add_rows(first, 1, "sent", 1)
        add_rows(second, 1, "sent", 1)
        eventually(lambda: (shown(first), shown(second)) == ({1: 3}, {1: 6}), 30)
