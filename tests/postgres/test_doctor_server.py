"""doctor: findings that are about a whole server, made real on a server of the test's own."""

from __future__ import annotations

import shutil
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing, suppress

import psycopg
import pytest
from psycopg import conninfo

from connectors.postgres import connect
from connectors.postgres.doctor import examine
from connectors.postgres.doctor.server import standby_names
from connectors.postgres.store.counters import CounterWriter
from stream.core.errors import UnreachableError
from stream.demo.private_postgres import PrivateServer, unprivileged_user
from stream.pipeline.wal_options import WalOptions
from stream.pipeline.wal_reader import WalReader
from tests.fix_postgres import Database
from tests.postgres.preparing import fill, findings, prepare, run_fix, wanted
from tests.postgres.test_setup import connect_reader
from tests.waiting import eventually


@pytest.fixture
def db(private_mailer_db: Database) -> Database:
    """A prepared database whose server has no finding at all."""
    private_mailer_db.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '16GB'")
    private_mailer_db.execute("SELECT pg_reload_conf()")
    prepare(private_mailer_db)
    assert findings(private_mailer_db) == {}
    return private_mailer_db


def server_of(db: Database) -> PrivateServer:
    assert isinstance(db.server, PrivateServer)
    return db.server


def cured(db: Database, code: str, *, restart: bool = False) -> None:
    """The fix is SQL; running it (and restarting, where it says so) removes the finding."""
    finding = findings(db)[code]
    assert ("restart" in finding.fix) == restart
    run_fix(db, finding.fix)
    if restart:
        server_of(db).restart()
    eventually(lambda: code not in findings(db))


def test_wal_level(db: Database) -> None:
    db.execute("SELECT pg_drop_replication_slot(%s)", db.slot)
    server_of(db).configure({"wal_level": "replica"})
    server_of(db).restart()
    assert findings(db)["wal_level"].severity == "critical"
    cured(db, "wal_level", restart=True)


def test_slots_left(db: Database) -> None:
    server_of(db).configure({"max_replication_slots": "1"})
    server_of(db).restart()
    assert findings(db)["slots_left"].severity == "warning", "ours is there, the copy has no room"
    db.execute("SELECT pg_drop_replication_slot(%s)", db.slot)
    db.execute("SELECT pg_create_physical_replication_slot('other')")
    assert findings(db)["slots_left"].severity == "critical"
    cured(db, "slots_left", restart=True)


def test_senders_left(db: Database) -> None:
    server_of(db).configure({"max_wal_senders": "1"})
    server_of(db).restart()
    db.execute("SELECT pg_create_logical_replication_slot('other', 'pgoutput')")
    with closing(connect_reader(db, "other")):
        eventually(lambda: "senders_left" in findings(db))
        assert findings(db)["senders_left"].severity == "critical"
        run_fix(db, findings(db)["senders_left"].fix)
    server_of(db).restart()
    with closing(connect_reader(db, "other")):
        assert "senders_left" not in findings(db)


def test_no_limit_and_too_small_a_limit_for_slots(db: Database) -> None:
    for value in ("-1", "100MB"):
        run_fix(db, f"ALTER SYSTEM SET max_slot_wal_keep_size = '{value}'; SELECT pg_reload_conf();")
        eventually(lambda: "max_slot_wal_keep_size" in findings(db))
        cured(db, "max_slot_wal_keep_size")
    assert "max_slot_wal_keep_size" not in findings(db, temporary_slot=True)


def test_idle_limit_for_slots(db: Database) -> None:
    """Servers before 18 have none, and there is no finding."""
    if db.version < 18:
        assert "idle_replication_slot_timeout" not in findings(db)
        return
    run_fix(db, "ALTER SYSTEM SET idle_replication_slot_timeout = '1d'; SELECT pg_reload_conf();")
    eventually(lambda: "idle_replication_slot_timeout" in findings(db))
    cured(db, "idle_replication_slot_timeout")


def test_a_slot_near_its_end_and_one_that_is_lost(db: Database) -> None:
    run_fix(db, "ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'; SELECT pg_reload_conf();")
    eventually(lambda: "max_slot_wal_keep_size" in findings(db))
    for _ in range(4):
        db.execute("SELECT pg_logical_emit_message(false, 'x', 'y'); SELECT pg_switch_wal()")
    assert findings(db)["slot_disk"].severity == "critical"
    db.execute("CHECKPOINT")
    assert findings(db)["slot_lost"].severity == "critical"
    run_fix(db, "ALTER SYSTEM SET max_slot_wal_keep_size = '16GB'; SELECT pg_reload_conf();")
    prepare(db)
    eventually(lambda: findings(db) == {})


def test_a_slot_that_holds_half_of_what_it_may_is_told(db: Database) -> None:
    """Long before the server's limit is reached, and far below what is too much without a limit."""
    run_fix(db, "ALTER SYSTEM SET max_slot_wal_keep_size = '32MB'; SELECT pg_reload_conf();")
    eventually(lambda: "max_slot_wal_keep_size" in findings(db))
    for _ in range(2):
        assert "slot_disk" not in findings(db)
        db.execute("SELECT pg_logical_emit_message(true, 'x', repeat('y', 9000000))")
    finding = findings(db)["slot_disk"]
    assert finding.severity == "warning"
    assert "of 32 MB allowed" in finding.finding


@pytest.mark.parametrize("value", ["*", "ANY 1 (somebody, *)", '"sentstream reader"', "FIRST 2 (Sentstream, real)"])
def test_a_flush_that_would_wait_for_its_own_reader(db: Database, value: str) -> None:
    """The session that sets it commits locally: any other would hang by now."""
    with db.connect() as conn:
        conn.execute("SET synchronous_commit = local")
        conn.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{value}'".encode())
        conn.execute("SELECT pg_reload_conf()")
    eventually(lambda: "synchronous_standby_names" in findings(db))
    assert findings(db)["synchronous_standby_names"].severity == "critical"
    cured(db, "synchronous_standby_names")


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("", []),
        ("*", ["*"]),
        ("s1", ["s1"]),
        ("s1, s2", ["s1", "s2"]),
        ('FIRST 2 (s1, "my ""own"", one")', ["s1", 'my "own", one']),
        ("2 (a,b,*)", ["a", "b", "*"]),
        ("ANY 1 (sentstream_like)", ["sentstream_like"]),
    ],
)
def test_names_of_synchronous_standbys(value: str, names: list[str]) -> None:
    assert standby_names(value) == names


def test_a_standby(db: Database) -> None:
    server = server_of(db)
    server.kill()
    signal_file = server.data / "standby.signal"
    signal_file.touch()
    user = unprivileged_user()
    if user is not None:
        shutil.chown(signal_file, user)
    server.start()
    try:
        assert findings(db)["server_standby"].severity == "critical"
        reader = WalReader(WalOptions(db.url, slot=db.slot, publication="sentstream", mailer_schema="public"))
        with closing(reader), pytest.raises(UnreachableError, match=r"standby.*Point DATABASE_URL at the primary"):
            reader.open(threading.Event())
    finally:
        db.execute("SELECT pg_promote()")


@pytest.mark.system
def test_a_statement_of_somebody_else_that_sets_the_counter(db: Database) -> None:
    """The mailer's own sync, as pg_stat_statements remembers it; ours is not taken for it."""
    server_of(db).configure({"shared_preload_libraries": "pg_stat_statements"})
    server_of(db).restart()
    db.execute("CREATE EXTENSION pg_stat_statements")
    campaign = fill(db)
    with db.connect() as conn, conn.transaction():
        assert CounterWriter("public").write(conn, {campaign: 1}) == {}
    assert db.value("SELECT count(*) FROM pg_stat_statements WHERE query ~ 'UPDATE .*campaigns'") == 2
    assert findings(db) == {}
    db.execute("UPDATE campaigns SET to_send = 5, sent = (SELECT count(*) FROM email_queue WHERE campaign_id = id)")
    finding = findings(db)["counter_statement"]
    assert finding.severity == "warning"
    assert "UPDATE campaigns SET to_send" in finding.finding


class Pooler:
    """What tells a pooler from a server: it makes up the process id of the session. A real server answers behind it."""

    def __init__(self, port: int, *, drops_options: bool = False) -> None:
        self._port = port
        self._drops_options = drops_options
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                for pair in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pass, args=pair, daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        key = b"K\x00\x00\x00\x0c"
        with suppress(OSError):
            if self._drops_options and not answers:
                target.sendall(without_options(source.recv(65536)))
            while data := source.recv(65536):
                at = data.find(key) if answers else -1
                if at >= 0:
                    answers = False
                    data = data[: at + 5] + struct.pack(">i", 77) + data[at + 9 :]
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def without_options(startup: bytes) -> bytes:
    """The message that begins a session, without the parameter `options`."""
    words = startup[8:].rstrip(b"\0").split(b"\0")
    pairs = [pair for pair in zip(words[::2], words[1::2], strict=True) if pair[0] != b"options"]
    body = startup[4:8] + b"".join(name + b"\0" + value + b"\0" for name, value in pairs) + b"\0"
    return struct.pack(">i", len(body) + 4) + body


def test_a_pooler_that_drops_our_settings_is_named_and_not_used(db: Database) -> None:
    """Without `row_security = off` a policy would make a count 0."""
    with closing(Pooler(server_of(db).port, drops_options=True)) as between:
        url = conninfo.make_conninfo(db.url, port=between.port, sslmode="disable", gssencmode="disable")
        for opens in (connect.connect, connect.connect_replication):
            with pytest.raises(UnreachableError, match=r"pooler.*own host and port"):
                opens(url, "probe")


@pytest.fixture
def pooler(db: Database) -> Iterator[Pooler]:
    between = Pooler(server_of(db).port)
    yield between
    between.close()


def test_a_pooler_in_between(db: Database, pooler: Pooler) -> None:
    url = conninfo.make_conninfo(db.url, port=pooler.port, sslmode="disable")
    with psycopg.connect(url, autocommit=True) as conn:
        found = {finding.code: finding for finding in examine(conn, wanted(db)) if finding.severity != "ok"}
    assert set(found) == {"pooler"}
    assert found["pooler"].severity == "critical"
    assert str(server_of(db).port) in found["pooler"].fix
