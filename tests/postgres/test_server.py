"""The private server: starts, survives being killed, ends with us; and a fresh database for every test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psycopg
import pytest

from stream.demo.installations import find_installations
from stream.demo.private_postgres import PrivateServer
from tests.fix_postgres import Database, SmallDisk
from tests.waiting import eventually

pytestmark = pytest.mark.slow  # what other tests are made of

_STARTS_ONE_AND_DIES = """
import os, signal
from stream.demo.private_postgres import PrivateServer
server = PrivateServer()
server.start()
print(server.pid, server.directory, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.versions
def test_every_installed_version_decodes_logically(pg: Database) -> None:
    assert pg.value("SHOW wal_level") == "logical"
    assert int(pg.value("SHOW server_version_num")) // 10000 == pg.version
    assert int(pg.value("SHOW max_replication_slots")) >= 20
    assert int(pg.value("SHOW max_prepared_transactions")) >= 20
    pg.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", pg.slot)


def test_committed_rows_survive_a_kill_and_uncommitted_ones_do_not(private_pg: PrivateServer) -> None:
    with psycopg.connect(private_pg.url()) as session:
        session.execute("CREATE TABLE t AS SELECT 1 AS a")
        session.commit()
        session.execute("INSERT INTO t VALUES (2)")
        private_pg.kill()
        with pytest.raises(psycopg.OperationalError):
            session.execute("SELECT 1")
    assert not private_pg.running
    port = private_pg.port
    private_pg.start()
    assert private_pg.port == port
    with psycopg.connect(private_pg.url()) as session:
        assert session.execute("SELECT a FROM t").fetchall() == [(1,)]


def test_settings_change_at_the_next_start(private_pg: PrivateServer) -> None:
    private_pg.configure({"work_mem": "5MB", "cluster_name": "it's"})
    private_pg.restart()
    with psycopg.connect(private_pg.url()) as session:
        assert session.execute("SELECT current_setting('work_mem'), current_setting('cluster_name')").fetchone() == (
            "5MB",
            "it's",
        )


def test_a_directory_of_its_own_keeps_the_data() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        with PrivateServer(directory=Path(folder) / "pg") as server, psycopg.connect(server.url()) as session:
            session.execute("CREATE TABLE kept ()")
        with PrivateServer(directory=Path(folder) / "pg") as server, psycopg.connect(server.url()) as session:
            assert session.execute("SELECT count(*) FROM kept").fetchone() == (0,)


def test_nothing_is_left_when_we_are_killed() -> None:
    done = subprocess.run([sys.executable, "-c", _STARTS_ONE_AND_DIES], stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    pid, directory = done.stdout.split()
    eventually(lambda: not Path(directory).exists())
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_programs_of_the_installation_are_found(private_pg: PrivateServer) -> None:
    said = subprocess.run(
        [private_pg.program("pg_recvlogical"), "--version"], capture_output=True, text=True, check=True
    )
    assert f" {private_pg.version}." in said.stdout
    assert private_pg.version in {installation.version for installation in find_installations()}


def test_a_full_disk_is_an_error_of_the_statement_and_passes_when_there_is_room(small_disk_pg: SmallDisk) -> None:
    with psycopg.connect(small_disk_pg.server.url(), autocommit=True) as session:
        session.execute("CREATE TABLE t (a text)")
        small_disk_pg.fill(leave=1 << 20)
        with pytest.raises(psycopg.errors.DiskFull):
            session.execute("INSERT INTO t SELECT repeat(md5(i::text), 30) FROM generate_series(1, 20000) i")
        small_disk_pg.free()
        session.execute("INSERT INTO t SELECT repeat(md5(i::text), 30) FROM generate_series(1, 20000) i")


def test_a_database_goes_with_its_sessions_slots_roles_and_prepared_transactions(any_mailer_db: Database) -> None:
    """What a test leaves behind must not break the next one: the fixture's own clean-up is what is tested."""
    role = any_mailer_db.role("LOGIN REPLICATION")
    with psycopg.connect(any_mailer_db.url_of(role)) as session:
        assert session.execute("SELECT current_user").fetchone() == (role,)
    any_mailer_db.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", any_mailer_db.slot)
    any_mailer_db.execute("BEGIN; CREATE TABLE prepared (); PREPARE TRANSACTION 'left'")
    idle = any_mailer_db.connect(autocommit=False)
    idle.execute("SELECT 1")
    any_mailer_db.drop()
    with psycopg.connect(any_mailer_db.server.url()) as admin:
        for catalog, column in (
            ("pg_database", "datname"),
            ("pg_replication_slots", "database"),
            ("pg_roles", "rolname"),
        ):
            names = [name for (name,) in admin.execute(f"SELECT {column} FROM {catalog}").fetchall()]
            assert any_mailer_db.name not in names
            assert role not in names
