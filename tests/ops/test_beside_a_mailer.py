"""The newcomer's path of docs/operations/deploying.md: the unit's own command, files and variables; a role that owns
nothing; a server that demands TLS and a password; a token. Only systemd itself is missing."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest

from stream.demo.child_process import free_port
from stream.demo.installations import Installation, find_installations
from stream.demo.private_postgres import PrivateServer
from tests.certificates import self_signed
from tests.fix_postgres import Database, create_database
from tests.ops.prometheus import ROOT
from tests.ops.test_deploy import unit
from tests.ops.test_metrics import value
from tests.postgres.preparing import fill, own_tables, prepare
from tests.waiting import eventually

UNIT = ROOT / "deploy" / "systemd" / "sentstream.service"
ENVIRONMENT = ROOT / "deploy" / "systemd" / "sentstream.env"
TOKEN = "a-long-random-word"


def can_tls(installation: Installation) -> bool:
    """Whether that server was built with OpenSSL: those of the wheels were not."""
    config = installation.bindir / "pg_config"
    names = [config] if config.exists() else []
    for name in names:
        said = subprocess.run([str(name), "--configure"], capture_output=True, text=True, check=False).stdout
        return "openssl" in said
    found = subprocess.run(["ldd", str(installation.bindir / "postgres")], capture_output=True, text=True, check=False)
    return "libssl" in found.stdout


@pytest.fixture
def tls_server(tmp_path: Path) -> Iterator[tuple[PrivateServer, Path]]:
    """A server that lets nobody in over TCP but by TLS and password; the certificate of its authority."""
    found = [installation for installation in find_installations() if can_tls(installation)]
    if not found:
        pytest.fail("no PostgreSQL with TLS here: the wheel's servers have none. See CONTRIBUTING.md.", pytrace=False)
    with PrivateServer(found[0]) as server:
        key, certificate = server.data / "server.key", server.data / "server.crt"
        self_signed(key, certificate)
        owner = server.data.stat()
        for path in (key, certificate):
            os.chown(path, owner.st_uid, owner.st_gid)
            path.chmod(0o600)
        authority = tmp_path / "ca.pem"
        authority.write_text(certificate.read_text())
        server.configure({"ssl": "on"})
        yield server, authority


def demand_tls(server: PrivateServer) -> None:
    (server.data / "pg_hba.conf").write_text("local all all trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n")
    with psycopg.connect(server.url(over_socket=True), autocommit=True) as session:
        session.execute("SELECT pg_reload_conf()")


def environment_of(db: Database, runner: str, authority: Path, folder: Path, port: int) -> dict[str, str]:
    """What the unit hands to the process: its EnvironmentFile with this server's address, Environment, credentials."""
    credentials = folder / "credentials"
    credentials.mkdir()
    password = db.url_of(runner).partition("://")[2].partition("@")[0].partition(":")[2]
    (credentials / "http_token").write_text(TOKEN + "\n")
    (credentials / "pgpass").write_text(f"*:*:*:{runner}:{password}\n")
    (credentials / "pgpass").chmod(0o400)
    given = dict(re.findall(r"^(SENTSTREAM_\w+)=(.*)$", ENVIRONMENT.read_text(), re.MULTILINE))
    for line in unit(UNIT)["Environment"]:
        name, _, text = line.partition("=")
        given[name] = text.replace("%d", str(credentials))
    url = given["SENTSTREAM_DATABASE_URL"]
    assert "sslmode=verify-full" in url
    url = url.replace("sentstream_runner@db.example.org/listmonk", f"{runner}@127.0.0.1:{db.server.port}/{db.name}")  # type: ignore[attr-defined]
    given["SENTSTREAM_DATABASE_URL"] = url.replace("/etc/sentstream/ca.pem", str(authority))
    given["SENTSTREAM_HTTP_LISTEN"] = f"127.0.0.1:{port}"
    given["SENTSTREAM_SLOT_NAME"] = db.slot
    return {"PATH": os.environ["PATH"], **given}


@pytest.mark.system
def test_the_unit_counts_as_a_role_that_owns_nothing_over_tls(
    tls_server: tuple[PrivateServer, Path], tmp_path: Path
) -> None:
    server, authority = tls_server
    db = create_database(server, mailer=True)
    owner, runner = db.role("LOGIN"), db.role("LOGIN REPLICATION")
    own_tables(db, owner)
    fill(db)
    prepare(db, user=owner, part="owner", role=runner)
    prepare(db, user=runner, part="replication")
    demand_tls(server)
    port = free_port()
    words = shlex.split(unit(UNIT)["ExecStart"][0])
    command = [sys.executable, "-m", "stream.cli", *words[1:]]
    environment = environment_of(db, runner, authority, tmp_path, port)
    asked = {"Authorization": f"Bearer {TOKEN}"}
    with (tmp_path / "log").open("w") as log:
        child = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:

            def ready() -> bool:
                assert child.poll() is None, (tmp_path / "log").read_text()
                try:
                    return httpx.get(f"http://127.0.0.1:{port}/readyz?verbose").status_code == 200
                except httpx.TransportError:
                    return False

            eventually(ready, 60)
            assert httpx.get(f"http://127.0.0.1:{port}/api/campaigns").status_code == 401
            found = httpx.get(f"http://127.0.0.1:{port}/api/campaigns", headers=asked).json()
            assert found["campaigns"]
            with psycopg.connect(server.url(db.name, over_socket=True), autocommit=True) as session:
                tls = session.execute(
                    "SELECT bool_and(coalesce(ssl, false)) FROM pg_stat_activity a LEFT JOIN pg_stat_ssl s USING (pid)"
                    " WHERE a.application_name LIKE 'sentstream %' AND a.application_name <> 'sentstream test'"
                ).fetchone()
                assert tls == (True,)
                session.execute("UPDATE email_queue SET status = 'sent'")

                def counted() -> bool:
                    wrong = session.execute(
                        "SELECT count(*) FROM campaigns c JOIN (SELECT campaign_id, count(*) n FROM email_queue"
                        " GROUP BY 1) q ON q.campaign_id = c.id WHERE c.sent < q.n"
                    ).fetchone()
                    return wrong == (0,)

                eventually(counted, 20)
            text = httpx.get(f"http://127.0.0.1:{port}/metrics", headers=asked).text
            assert value(text, "sentstream_database_up") == 1
            probe = subprocess.run(
                [sys.executable, "-m", "stream.metrics.probe", "readyz"],
                env=environment,
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
            )
            assert probe.returncode == 0, probe.stdout + probe.stderr
            child.send_signal(signal.SIGTERM)
            assert child.wait(30) == 0, (tmp_path / "log").read_text()
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
    log_text = (tmp_path / "log").read_text()
    assert TOKEN not in log_text
    assert environment["SENTSTREAM_LOG_FORMAT"] == "json"
    assert all(line.startswith("{") for line in log_text.splitlines())


def test_a_probe_of_what_is_not_there_says_so() -> None:
    environment = {"PATH": os.environ["PATH"], "SENTSTREAM_HTTP_LISTEN": f"127.0.0.1:{free_port()}"}
    command = [sys.executable, "-m", "stream.metrics.probe"]
    found = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "refused" in found.stdout
