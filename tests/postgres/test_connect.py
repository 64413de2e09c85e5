"""Opening a session: what each looks like from inside, and what each failure says."""

from __future__ import annotations

import socket
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import conninfo

from connectors.postgres import connect
from stream.core.errors import ConfigurationError, UnreachableError
from stream.demo.private_postgres import PrivateServer
from tests.fix_postgres import Database


def test_a_session_is_as_every_session_of_ours(any_pg: Database) -> None:
    with connect.connect(
        any_pg.url, "flush", settings={"lock_timeout": "3 s", "search_path": '"a b", "c\\d"'}
    ) as session:
        # a value with spaces, quotes and a backslash arrives as it was given
        names = ("row_security", "application_name", "client_encoding", "TimeZone", "lock_timeout", "search_path")
        values = [session.execute("SELECT current_setting(%s)", (name,)).fetchone() for name in names]
        assert values == [("off",), ("sentstream flush",), ("UTF8",), ("UTC",), ("3s",), ('"a b", "c\\d"',)]
        assert session.autocommit


def test_time_outs_of_the_role_are_not_ours(any_pg: Database) -> None:
    """Those of ALTER ROLE would end what takes longer, for good; what a caller asks for holds."""
    role = any_pg.role("LOGIN REPLICATION")
    names = ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout"]
    names += ["transaction_timeout"] if any_pg.version >= 17 else []
    any_pg.execute(";".join(f"ALTER ROLE {role} SET {name} = '70s'" for name in names))
    url = any_pg.url_of(role)
    for opened in (
        connect.connect(url, "flush"),
        connect.connect(url, "flush", autocommit=False),
        connect.connect_replication(url),
    ):
        with opened as session:
            assert {name: session.execute(f"SHOW {name}".encode()).fetchone() for name in names} == dict.fromkeys(
                names, ("0",)
            )
    with connect.connect(url, "flush", settings=dict.fromkeys(names, "3s")) as session:
        assert {session.execute(f"SHOW {name}".encode()).fetchone() for name in names} == {("3s",)}


def test_options_of_the_url_stay_but_do_not_win(pg: Database) -> None:
    url = conninfo.make_conninfo(pg.url, options="-c work_mem=7MB -c row_security=on", application_name="other")
    with connect.connect(url, "flush", autocommit=False) as session:
        row = session.execute("SELECT current_setting('work_mem'), current_setting('row_security')").fetchone()
        assert row == ("7MB", "off")
        assert not session.autocommit


def test_a_replication_session_takes_commands_and_sql(any_pg: Database) -> None:
    with connect.connect_replication(any_pg.url) as session:
        system = session.execute("IDENTIFY_SYSTEM").fetchone()
        assert system is not None
        assert system[3] == any_pg.name
        assert session.execute("SELECT current_setting('application_name')").fetchone() == ("sentstream reader",)


def test_a_refused_connection_names_place_and_fix() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(UnreachableError) as caught:
        connect.connect(f"postgresql://u:hunter2@127.0.0.1:{port}/mailer", "flush")
    assert f"127.0.0.1:{port}, database mailer" in caught.value.what
    assert "Start the server" in caught.value.fix
    assert "hunter2" not in str(caught.value)


def test_an_unknown_database_is_named(pg: Database) -> None:
    with pytest.raises(UnreachableError, match="nowhere") as caught:
        connect.connect(pg.server.url("nowhere"), "flush")
    assert "database in DATABASE_URL" in caught.value.fix


def test_a_wrong_password_is_not_repeated(private_pg: PrivateServer) -> None:
    private_pg.require_passwords()
    with pytest.raises(UnreachableError, match="authentication failed") as caught:
        connect.connect(private_pg.url(password="hunter2"), "flush")
    assert "user and password" in caught.value.fix
    assert "hunter2" not in str(caught.value)


def test_a_role_that_may_not_replicate_is_told_the_grant(pg: Database) -> None:
    role = pg.role("LOGIN NOREPLICATION")
    with pytest.raises(UnreachableError) as caught:
        connect.connect_replication(pg.url_of(role))
    assert "REPLICATION" in caught.value.fix


def test_a_default_of_the_role_makes_no_session_serializable(pg: Database) -> None:
    role = pg.role("LOGIN")
    pg.execute(f"ALTER ROLE {role} SET default_transaction_isolation = 'serializable'")
    with connect.connect(pg.url_of(role), "flush") as conn:
        assert conn.execute("SHOW transaction_isolation").fetchone() == ("read committed",)


def test_a_server_that_accepts_and_stays_silent_is_unreachable_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(UnreachableError, match="time") as caught:
            connect.connect(f"postgresql://u@127.0.0.1:{silent.getsockname()[1]}/d", "flush", connect_timeout=2)
    assert "firewall" in caught.value.fix


@pytest.mark.parametrize(
    "url",
    [
        "http://u:hunter2@h/d",
        "postgresql://u:hun@ter2/x@h:5432/d",
        "host=h password='hunter2",
        "postgresql://u:hunter2@h:port/d?nosuch=1",
        "mysql:hunter2",
    ],
)
def test_an_unreadable_url_is_a_configuration_error_without_the_secret(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        connect.connect(url, "flush")
    assert "hunter2" not in str(caught.value)
    assert "ter2" not in str(caught.value)
    assert "DATABASE_URL" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:p%40ss@h/d?sslmode=require", "postgresql://u:***@h/d?sslmode=require"),
        ("postgres://u@h1:1,h2:2/d", "postgresql://u@h1:1,h2:2/d"),
        ("postgresql://h/d?password=secret", "postgresql://:***@h/d"),
        ("postgresql://u:secret@%2Frun%2Fpg:5433/d", "postgresql://u:***@%2Frun%2Fpg:5433/d"),
        ("host=h user=u password='a b'", "user=u password=*** host=h"),
    ],
)
def test_a_redacted_url_keeps_all_but_the_secret(url: str, shown: str) -> None:
    assert connect.redact(url) == shown


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=4),
    st.sampled_from(["url", "words", "bare"]),
)
def test_no_password_survives_redaction(password: str, form: str) -> None:
    secret = f"s3cr{password}t"
    if form == "words":
        text = conninfo.make_conninfo("host=h user=u", password=secret)
    elif form == "url":
        text = f"postgresql://u:{quote(secret, safe='')}@h:5432/d"
    else:
        text = f"postgresql://u:{secret}@h:5432/d"
    assert "s3cr" not in connect.redact(text)


def test_where_names_no_user_and_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "db.example.org")
    monkeypatch.setenv("PGPORT", "6000")
    assert connect.where("postgresql:///mailer?user=u&password=p") == "db.example.org:6000, database mailer"
