"""PostgreSQL for tests: a server that is really there, and a fresh database for every test.

Where the server comes from, first match: ``SENTSTREAM_TEST_DATABASE_URL`` (a superuser's URL; its server gets databases
and roles of ours), a Docker engine that answers (testcontainers), else a private server that we start, one a version
and xdist worker. None to be had is a failure, never a skip.

=====================  ============================================================================================
`pg`                   a fresh, empty `Database` on the default server; ``@pytest.mark.versions(15, 16)`` runs the
                       test on each of those, ``@pytest.mark.versions()`` on every version found
`mailer_db`            the same with the mailer's tables
`any_pg`               like `pg` on every version found: ``make test`` takes the default one, ``test-more`` the others
`any_mailer_db`        like `mailer_db` on every version found
`private_pg`           a started `PrivateServer` of the test's own, to kill, restart and configure
`private_mailer_db`    the mailer's tables on the test's own server (its ``private_pg``)
`small_disk_pg`        the test's own server on a disk of 400 MB that it may fill (Linux, root)
`make_database`        a function that makes more databases on the test's server
=====================  ============================================================================================
"""

from __future__ import annotations

import itertools
import os
import secrets
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import psycopg
import pytest
from psycopg import conninfo, sql

from connectors.mailer.tables import schema_sql
from connectors.postgres import connect
from stream.demo.installations import Installation, default_installation, find_installations
from stream.demo.private_postgres import SETTINGS, PrivateServer

ADDRESS = os.environ.get("SENTSTREAM_TEST_DATABASE_URL", "")

#: what testcontainers runs where no private server is wanted: as found on Debian, and the newest
CONTAINER_VERSIONS = (15, 16, 18)

#: bytes that have to be free in memory for a server's data to be put there
_MEMORY = 2 << 30

_numbers = itertools.count(1)


class Server(Protocol):
    """What a test needs of a server, whoever started it. ``version``: the major one."""

    @property
    def version(self) -> int: ...

    def url(self, dbname: str = "postgres", user: str = "postgres", *, password: str = "") -> str: ...


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A server that we did not start: ``address`` is a superuser's URL of some database on it."""

    address: str
    version: int

    def url(self, dbname: str = "postgres", user: str = "postgres", *, password: str = "") -> str:
        """For ``user`` postgres: the superuser of the address, whatever its name."""
        given = {key: value for key, value in conninfo.conninfo_to_dict(self.address).items() if value is not None}
        given["dbname"] = dbname
        if user != "postgres":
            given |= {"user": user, "password": password}
        return conninfo.make_conninfo("", **given)


class Database:
    """One test's own database. ``url`` is the superuser's; ``slot`` a slot name that no other test uses."""

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        self.name = name
        self.url = server.url(name)
        self.slot = f"s_{name}"
        self._roles: dict[str, str] = {}
        self._kept = threading.local()

    @property
    def version(self) -> int:
        """The server's major version."""
        return self.server.version

    def connect(self, *, autocommit: bool = True, user: str = "") -> connect.Connection:
        """A session of the test's, as the superuser or as ``user`` (made by `role`). The test closes it."""
        return connect.connect(self.url_of(user) if user else self.url, "test", autocommit=autocommit)

    def execute(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Runs one statement (or several, without parameters); returns the rows, if any. In a session that is kept for
        the next one, as opening one costs ten times as much as most statements; one that was lost meanwhile is opened
        again, one in which something failed is not used any more."""
        session: connect.Connection | None = getattr(self._kept, "session", None)
        if session is None or _is_over(session):
            session = self._kept.session = self.connect()
        try:
            cursor = session.execute(statement.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []
        except BaseException:
            session.close()
            raise

    def value(self, statement: str, *parameters: Any) -> Any:
        """The first column of the only row."""
        ((value, *_),) = self.execute(statement, *parameters)
        return value

    def role(self, options: str = "LOGIN") -> str:
        """Makes a role with a password and returns its name; it is dropped with the database."""
        name = f"r{len(self._roles) + 1}_{self.name}"
        self._roles[name] = secrets.token_hex(8)
        self.execute(f"CREATE ROLE {name} {options} PASSWORD '{self._roles[name]}'")
        return name

    def url_of(self, role: str) -> str:
        """The database's URL for a role made by `role`."""
        return self.server.url(self.name, role, password=self._roles[role])

    def drop(self) -> None:
        """Ends whoever still uses it, then drops it with its slots and roles."""
        with connect.connect(self.server.url(), "test cleanup") as admin:
            _drop_database(admin, self)
            for role in self._roles:
                admin.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(role)))


def _is_over(session: connect.Connection) -> bool:
    """Whether it was closed, by us or by the server: nothing but an end can have arrived while nothing was asked."""
    return session.closed or bool(select.select([session.fileno()], [], [], 0)[0])


def create_database(server: Server, *, mailer: bool = False) -> Database:
    """A new database on ``server``, empty or with the mailer's tables. The caller drops it."""
    name = f"t{os.getpid()}_{next(_numbers)}"
    with connect.connect(server.url(), "test setup") as admin:
        template = _mailer_template(admin, server) if mailer else "template0"
        # by files: no other test's reader has to decode its way through a copy that went through the WAL
        copy = "CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy"
        admin.execute(sql.SQL(copy).format(sql.Identifier(name), sql.Identifier(template)))
    return Database(server, name)


def _mailer_template(admin: connect.Connection, server: Server) -> str:
    """A database with the mailer's tables that others are copied from; one a process, as another may copy its own."""
    name = f"mailer_template_{os.getpid()}"
    if admin.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone() is None:
        admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
        with connect.connect(server.url(name), "test setup") as session:
            session.execute(schema_sql().encode())
    return name


def _drop_database(admin: connect.Connection, database: Database, timeout: float = 20) -> None:
    """A prepared transaction, a session or a slot in use each hold a database: they go first."""
    name = sql.Identifier(database.name)
    prepared = admin.execute("SELECT gid FROM pg_prepared_xacts WHERE database = %s", (database.name,)).fetchall()
    if prepared:
        with connect.connect(database.url, "test cleanup") as session:
            for (gid,) in prepared:
                session.execute(sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(gid)))
    if admin.execute("SELECT 1 FROM pg_database WHERE datname = %s", (database.name,)).fetchone() is None:
        return
    admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(name))
    deadline = time.monotonic() + timeout
    while True:
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (database.name,))
        try:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
            return
        except psycopg.errors.ObjectInUse:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


class Servers:
    """The servers of this test session, each started when the first test asks for its version."""

    def __init__(self, closing: ExitStack) -> None:
        self._closing = closing
        self._by_version: dict[int, Server] = {}

    def get(self, version: int) -> Server:
        if version not in self._by_version:
            self._by_version[version] = self._start(version)
        return self._by_version[version]

    def _start(self, version: int) -> Server:
        if ADDRESS:
            return _elsewhere(version)
        if docker_answers():
            return self._closing.enter_context(_container(version))
        return self._closing.enter_context(private_server(version))


def private_server(version: int) -> PrivateServer:
    """A server, not started yet; its data in memory where there is room: databases are made ten times faster there."""
    memory = Path("/dev/shm")
    room = shutil.disk_usage(memory).free if memory.is_dir() else 0
    return PrivateServer(
        installed(version), scratch_in=memory if room > _MEMORY else None, settings={"max_wal_size": "256MB"}
    )


@cache
def installed(version: int) -> Installation:
    """The programs of that version. Where there are none the test fails: whoever runs the tests can put that right."""
    installations = find_installations()
    for installation in installations:
        if installation.version == version:
            return installation
    found = ", ".join(str(i.version) for i in installations) or "none"
    pytest.fail(f"PostgreSQL {version} is needed, not installed (found: {found}). See CONTRIBUTING.md.", pytrace=False)


def _elsewhere(version: int) -> Server:
    with connect.connect(ADDRESS, "test setup") as session:
        wal_level = session.execute("SHOW wal_level").fetchone()
        found = session.info.server_version // 10000
    if wal_level != ("logical",):
        pytest.fail("The server of SENTSTREAM_TEST_DATABASE_URL needs wal_level = logical.", pytrace=False)
    if found != version:
        pytest.fail(
            f"The test needs PostgreSQL {version}, SENTSTREAM_TEST_DATABASE_URL leads to {found}.", pytrace=False
        )
    return Elsewhere(ADDRESS, found)


@cache
def docker_answers() -> bool:
    """Whether a Docker engine is there to start containers on."""
    import docker

    try:
        client = docker.from_env(timeout=3)
        try:
            return bool(client.ping())
        finally:
            client.close()
    except (docker.errors.DockerException, OSError):
        return False


class _container:  # noqa: N801 - a context manager, used as a function
    def __init__(self, version: int) -> None:
        from testcontainers.core.container import DockerContainer

        words = [f"-c {name}={value}" for name, value in SETTINGS.items()]
        self._container = (
            DockerContainer(f"postgres:{version}")
            .with_env("POSTGRES_PASSWORD", "test")
            .with_exposed_ports(5432)
            .with_command(" ".join(["postgres", *words, "-c fsync=off"]))
        )
        self._version = version

    def __enter__(self) -> Server:
        self._container.start()
        where = f"{quote(self._container.get_container_host_ip())}:{self._container.get_exposed_port(5432)}"
        address = f"postgresql://postgres:test@{where}/postgres"
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(address, connect_timeout=5).close()
                return Elsewhere(address, self._version)
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def __exit__(self, *exc: object) -> None:
        self._container.stop()


def default_version() -> int:
    """Of the server that a test gets which doesn't care."""
    return available_versions()[0]


@cache
def available_versions() -> tuple[int, ...]:
    """Versions that tests can run on here; the default one first."""
    if ADDRESS:
        with connect.connect(ADDRESS, "test setup") as session:
            return (session.info.server_version // 10000,)
    if docker_answers():
        return CONTAINER_VERSIONS
    default = default_installation().version
    return (default, *sorted({i.version for i in find_installations()} - {default}))


_ON_EVERY_VERSION = {"any_pg", "any_mailer_db"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The versions that a test runs on: those of its marker, or all found where it asks for `any_pg`."""
    if "pg_version" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("versions")
    every = bool(_ON_EVERY_VERSION & set(metafunc.fixturenames)) or (marker is not None and not marker.args)
    if not every and marker is None:
        return
    versions = sorted(available_versions()) if every else list(marker.args if marker else ())
    parameters = [
        pytest.param(version, id=f"pg{version}", marks=() if version == default_version() else pytest.mark.slow)
        for version in versions
    ]
    metafunc.parametrize("pg_version", parameters, indirect=True)


@pytest.fixture
def pg_version(request: pytest.FixtureRequest) -> int:
    return int(getattr(request, "param", None) or default_version())


@pytest.fixture(scope="session")
def pg_servers() -> Iterator[Servers]:
    with ExitStack() as closing:
        yield Servers(closing)


@pytest.fixture
def pg_server(pg_servers: Servers, pg_version: int) -> Server:
    """The server that the test's databases are on. Shared: do not stop it or change its settings."""
    return pg_servers.get(pg_version)


@pytest.fixture
def make_database(pg_server: Server) -> Iterator[Callable[..., Database]]:
    """``make_database(mailer=True)``: one more database, dropped after the test."""
    made: list[Database] = []

    def make(*, mailer: bool = False) -> Database:
        made.append(create_database(pg_server, mailer=mailer))
        return made[-1]

    yield make
    for database in made:
        database.drop()


@pytest.fixture
def pg(make_database: Callable[..., Database]) -> Database:
    return make_database()


@pytest.fixture
def any_pg(make_database: Callable[..., Database]) -> Database:
    return make_database()


@pytest.fixture
def mailer_db(make_database: Callable[..., Database]) -> Database:
    return make_database(mailer=True)


@pytest.fixture
def any_mailer_db(make_database: Callable[..., Database]) -> Database:
    return make_database(mailer=True)


@pytest.fixture
def private_pg(pg_version: int) -> Iterator[PrivateServer]:
    with private_server(pg_version) as server:
        yield server


@pytest.fixture
def private_mailer_db(private_pg: PrivateServer) -> Database:
    return create_database(private_pg, mailer=True)


class SmallDisk:
    """A server whose disk the test fills and frees."""

    def __init__(self, server: PrivateServer, disk: Path) -> None:
        self.server = server
        self._ballast = disk / "ballast"

    def fill(self, leave: int = 0) -> None:
        """Takes every free byte but ``leave``."""
        room = os.statvfs(self._ballast.parent)
        rest = room.f_bavail * room.f_frsize - leave
        with self._ballast.open("ab") as file:
            os.posix_fallocate(file.fileno(), file.tell(), max(rest, 1))

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)


@pytest.fixture
def small_disk_pg(pg_version: int) -> Iterator[SmallDisk]:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root on Linux can make a small disk")
    with tempfile.TemporaryDirectory(prefix="sentstream-disk-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m,mode=0755", "tmpfs", folder], check=True)
        try:
            with PrivateServer(installed(pg_version), directory=Path(folder) / "pg") as server:
                yield SmallDisk(server, Path(folder))
        finally:
            subprocess.run(["umount", folder], check=True)
