"""Checks of the mailer's side: its tables and settings."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg

from connectors.mailer import catalog
from connectors.mailer.tables import CAMPAIGNS, EMAIL_QUEUE, SETTINGS, Need
from connectors.mailer.window import read_window
from connectors.postgres.catalog.names import quoted
from connectors.postgres.doctor.target import Target
from connectors.postgres.setup import preconditions
from stream.core.errors import ConfigurationError
from stream.core.finding import Finding, ok, warning

#: campaigns named in a finding
_SHOWN = 5


def mailer_tables(target: Target) -> Iterator[Finding]:
    """Queue and campaigns are there, plain, logged, with columns and statuses that can be counted."""
    schema = target.wanted.mailer_schema
    unmet = list(preconditions.mailer_tables(target.found, target.wanted))
    both = f"{quoted(schema, EMAIL_QUEUE.name)} and {quoted(schema, CAMPAIGNS.name)}"
    yield from unmet or [ok("mailer_tables", f"{both} can be counted.")]


def mailer_extras(target: Target) -> Iterator[Finding]:
    """What is shown beside the numbers."""
    campaigns = target.found.tables.get(CAMPAIGNS.name)
    if campaigns is None:
        return
    missing = [name for name in CAMPAIGNS.names(Need.SHOWING) if name not in campaigns.columns]
    table = quoted(target.wanted.mailer_schema, CAMPAIGNS.name)
    if missing:
        yield warning(
            "mailer_columns",
            f"{table} has no {', '.join(missing)}: what they say is not shown.",
            "Nothing breaks; check MAILER_SCHEMA and the mailer's version if you miss it.",
        )
    else:
        yield ok("mailer_columns", f"{table} has all columns that are shown.")


def mailer_settings(target: Target) -> Iterator[Finding]:
    """The settings that say when the send window ends, read as the reconciler reads them."""
    schema = target.wanted.mailer_schema
    table = quoted(schema, SETTINGS.name)
    columns = [
        row["name"]
        for row in target.rows(
            "SELECT a.attname::text AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped "
            "WHERE n.nspname = %s::text AND c.relname = %s::text",
            schema,
            SETTINGS.name,
        )
    ]
    missing = [name for name in SETTINGS.names() if name not in columns]
    if not columns:
        what = f"There is no table {table}: its pauses can't be foreseen."
        yield warning("mailer_settings", what, "Check MAILER_SCHEMA.")
    elif missing:
        yield warning(
            "mailer_settings",
            f"{table} has no column {', '.join(missing)}: its pauses can't be foreseen.",
            "Check MAILER_SCHEMA, and whether this is the mailer's table.",
        )
    elif not catalog.is_readable(target.conn, schema, SETTINGS):
        user = quoted(target.found.user)
        yield warning(
            "mailer_settings",
            f"Role {user} may not read {table}: its pauses can't be foreseen.",
            f"GRANT USAGE ON SCHEMA {quoted(schema)} TO {user}; GRANT SELECT ON {table} TO {user};",
        )
    else:
        try:
            window = read_window(target.conn, schema, zone=target.zone)
        except ConfigurationError as error:
            yield warning("mailer_settings", error.what, error.fix)
        else:
            yield ok("mailer_settings", f"The mailer's settings say when it sends: {window}.")


def campaign_names(target: Target) -> Iterator[Finding]:
    """Names that the server can't turn into UTF-8, which every session of ours asks for."""
    encoding = target.row("SELECT getdatabaseencoding()::text AS name")["name"]
    campaigns = target.found.tables.get(CAMPAIGNS.name)
    if campaigns is None or not {"id", "name"} <= set(campaigns.columns):
        return
    ids = [] if encoding == "UTF8" else sorted(_unreadable(target))
    if not ids:
        yield ok("campaign_names", "All names of campaigns can be read.")
        return
    table = quoted(target.wanted.mailer_schema, CAMPAIGNS.name)
    listed = ", ".join(map(str, ids))
    shown = ", ".join(map(str, ids[:_SHOWN])) + (f" and {len(ids) - _SHOWN} others" if len(ids) > _SHOWN else "")
    yield warning(
        "campaign_names",
        f"The names of campaigns {shown} hold bytes of {encoding} that UTF-8 lacks, so they can't be read.",
        f"UPDATE {table} SET name = 'campaign ' || id WHERE id IN ({listed}); -- or a better name",  # noqa: S608
    )


def _unreadable(target: Target) -> Iterator[int]:
    """Ids of campaigns whose name the server refuses to convert: the refusal names none, so halves are asked."""
    table = quoted(target.wanted.mailer_schema, CAMPAIGNS.name)
    ids = [row["id"] for row in target.rows(f"SELECT id::bigint AS id FROM {table} ORDER BY 1")]  # noqa: S608
    count = f"SELECT count(convert_to(name::text, 'UTF8')) FROM {table} WHERE id::bigint BETWEEN %s AND %s"  # noqa: S608
    ranges = [ids] if ids else []
    while ranges:
        some = ranges.pop()
        try:
            target.rows(count, some[0], some[-1])
        except (psycopg.errors.UntranslatableCharacter, psycopg.errors.CharacterNotInRepertoire):
            middle = len(some) // 2
            if middle:
                ranges += [some[:middle], some[middle:]]
            else:
                yield some[0]


CHECKS = (mailer_tables, mailer_extras, mailer_settings, campaign_names)
