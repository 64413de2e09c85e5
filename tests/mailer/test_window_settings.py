"""The send window, read from the mailer's settings rows as they stand."""

from __future__ import annotations

import json

import pytest
from psycopg import Connection
from psycopg.rows import TupleRow

from connectors.mailer.window import read_window
from stream.core.errors import ConfigurationError
from stream.core.window import always_open, parse_window

Conn = Connection[TupleRow]


def set_setting(conn: Conn, key: str, value: object) -> None:
    conn.execute("UPDATE settings SET value = %s::jsonb WHERE key = %s", (json.dumps(value), key))


def test_a_fresh_mailer_is_always_open_in_new_york(conn: Conn) -> None:
    assert read_window(conn, "public") == always_open("America/New_York")


def test_the_three_settings_make_the_window(conn: Conn) -> None:
    set_setting(conn, "app.send_time_start", "09:00")
    set_setting(conn, "app.send_time_end", "17:30")
    set_setting(conn, "app.timezone", "Europe/Berlin")
    assert read_window(conn, "public") == parse_window("09:00", "17:30", "Europe/Berlin")


def test_settings_changed_while_running_are_seen_by_the_next_reading(conn: Conn) -> None:
    set_setting(conn, "app.send_time_start", "09:00")
    set_setting(conn, "app.send_time_end", "17:30")
    before = read_window(conn, "public")
    set_setting(conn, "app.send_time_end", "16:00")
    assert read_window(conn, "public") == parse_window("09:00", "16:00", None) != before


def test_our_own_time_zone_goes_before_the_mailers(conn: Conn) -> None:
    set_setting(conn, "app.timezone", "Mars/Olympus")
    assert read_window(conn, "public", zone="UTC") == always_open("UTC")


@pytest.mark.parametrize(
    "state",
    [
        "DROP TABLE settings",
        "DELETE FROM settings",
        "UPDATE settings SET value = 'null' WHERE key LIKE 'app.send%' OR key = 'app.timezone'",
        "ALTER TABLE settings DROP COLUMN value",
    ],
)
def test_what_is_missing_has_the_mailers_default(conn: Conn, state: str) -> None:
    conn.execute(state)
    assert read_window(conn, "public") == always_open()


def test_without_the_right_to_read_settings_the_transaction_goes_on(conn: Conn) -> None:
    set_setting(conn, "app.send_time_start", "09:00")
    conn.execute("CREATE ROLE no_reader")
    with conn.transaction():
        conn.execute("SET LOCAL ROLE no_reader")
        assert read_window(conn, "public") == always_open()
        assert conn.execute("SELECT 1").fetchone() == (1,)
    conn.execute("DROP ROLE no_reader")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("app.send_time_start", "morning"),
        ("app.send_time_end", 17),
        ("app.send_time_end", {"hour": 17}),
        ("app.timezone", "Mars/Olympus"),
        ("app.timezone", ["UTC"]),
    ],
)
def test_a_malformed_setting_is_an_error_that_names_it(conn: Conn, key: str, value: object) -> None:
    set_setting(conn, key, value)
    with pytest.raises(ConfigurationError, match=key.replace(".", r"\.")):
        read_window(conn, "public")


def test_a_setting_that_is_no_json_is_an_error_that_names_it(conn: Conn) -> None:
    """As in a fork whose column is a text; the transaction goes on, and what is not used may be anything."""
    conn.execute("ALTER TABLE settings ALTER COLUMN value DROP DEFAULT, ALTER COLUMN value TYPE text USING value::text")
    assert read_window(conn, "public") == always_open()
    conn.execute("UPDATE settings SET value = 'Berlin' WHERE key = 'app.timezone'")
    assert read_window(conn, "public", zone="UTC") == always_open("UTC")
    conn.execute("UPDATE settings SET value = '08:00' WHERE key = 'app.send_time_start'")
    with conn.transaction():
        with pytest.raises(ConfigurationError, match=r"app\.send_time_start.*08:00.*no JSON"):
            read_window(conn, "public", zone="UTC")
        assert conn.execute("SELECT 1").fetchone() == (1,)


def test_another_schema_and_row_factory_make_no_difference(conn: Conn) -> None:
    from psycopg.rows import dict_row

    conn.execute("CREATE SCHEMA other; ALTER TABLE settings SET SCHEMA other")
    conn.execute("""UPDATE other.settings SET value = '"UTC"' WHERE key = 'app.timezone'""")
    conn.row_factory = dict_row  # type: ignore[assignment]
    assert read_window(conn, "other") == always_open("UTC")
