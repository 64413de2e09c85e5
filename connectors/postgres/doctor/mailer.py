"""Checks of the mailer's side: its tables, what is in them, and who else writes the counter."""

from __future__ import annotations

from collections.abc import Iterator

from connectors.mailer import catalog
from connectors.mailer.tables import CAMPAIGNS, EMAIL_QUEUE, SETTINGS, Need
from connectors.mailer.window import read_window
from connectors.postgres.catalog.names import SCHEMA, quoted
from connectors.postgres.doctor.target import Target
from connectors.postgres.setup import preconditions
from stream.core.errors import ConfigurationError
from stream.core.finding import Finding, critical, ok, warning

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


def counters_above(target: Target) -> Iterator[Finding]:
    """Counters that show more than the queue holds and than deletions explain: rows went before we watched."""
    tables = target.found.tables
    if {EMAIL_QUEUE.name, CAMPAIGNS.name} - set(tables) or any(
        column not in tables[CAMPAIGNS.name].columns for column in ("id", "name", "sent")
    ):
        return
    schema = target.wanted.mailer_schema
    removed = (
        f"LEFT JOIN {SCHEMA}.progress p ON p.campaign_id = c.id" if "progress" in target.found.schema_tables else ""
    )
    explained = "coalesce(p.removed, 0)" if removed else "0"
    rows = target.rows(
        f"""
        SELECT c.id, c.name::text AS name, c.sent - q.live AS above, count(*) OVER () AS n
        FROM {quoted(schema, CAMPAIGNS.name)} c
        JOIN (SELECT campaign_id, count(*) FILTER (WHERE status = 'sent') AS live
              FROM {quoted(schema, EMAIL_QUEUE.name)} GROUP BY campaign_id) q ON q.campaign_id = c.id
        {removed}
        WHERE c.sent > q.live + {explained} ORDER BY c.sent - q.live DESC, c.id LIMIT {_SHOWN}
        """  # noqa: S608
    )
    if not rows:
        yield ok("counters_above", "No counter shows more than the queue holds and deletions explain.")
        return
    shown = ", ".join(f"{row['id']} ({row['name']}: {row['above']} more)" for row in rows)
    more = f" and {rows[0]['n'] - len(rows)} others" if rows[0]["n"] > len(rows) else ""
    what = f"{rows[0]['n']} campaigns show more than the queue holds: {shown}{more}."
    if target.follow:
        yield warning(
            "counters_above", f"{what} With REMOVED=follow these counters fall.", "Set REMOVED=keep to keep them."
        )
    else:
        yield warning(
            "counters_above",
            f"{what} The first baseline takes the difference for deleted rows (`removed`), so that no counter falls.",
            f"Nothing to do; `sentstream recount {rows[0]['id']} --rebase` takes the live count instead.",
        )


_TOUCHES = r"\mupdate\s+(only\s+)?(\"?\w+\"?\.)?\"?campaigns\"?\M.*\mset\M.*\msent\M\"?\s*="
_ASSIGNS = r"\mnew\.\"?sent\M\"?\s*:?="

_WRITERS = """
SELECT n.nspname::text AS schema, p.proname::text AS name, pg_get_function_identity_arguments(p.oid) AS arguments,
       p.prokind::text AS kind, p.prorettype = 'trigger'::regtype AS for_triggers,
       ARRAY(SELECT jsonb_build_array(tn.nspname, c.relname, t.tgname) FROM pg_trigger t
             JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace tn ON tn.oid = c.relnamespace
             WHERE t.tgfoid = p.oid AND NOT t.tgisinternal AND t.tgenabled <> 'D') AS triggers
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
CROSS JOIN LATERAL (SELECT coalesce(nullif(p.prosrc, ''), pg_get_function_sqlbody(p.oid)) AS body) b
WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', %s::text) AND p.prokind IN ('f', 'p')
  AND (b.body ~* %s::text OR (p.prorettype = 'trigger'::regtype AND b.body ~* %s::text))
ORDER BY 1, 2
"""


def other_writers(target: Target) -> Iterator[Finding]:
    """Triggers and functions that set ``campaigns.sent``, by their text."""
    found = False
    for row in target.rows(_WRITERS, SCHEMA, _TOUCHES, _ASSIGNS):
        function = f"{quoted(row['schema'], row['name'])}({row['arguments']})"
        for schema, table, trigger in row["triggers"]:
            found = True
            yield critical(
                "counter_trigger",
                f"Trigger {quoted(trigger)} of {quoted(schema, table)} writes campaigns.sent too (by {function}): "
                "the two of us would overwrite each other.",
                f"ALTER TABLE {quoted(schema, table)} DISABLE TRIGGER {quoted(trigger)};",
            )
        if not row["for_triggers"]:
            found = True
            word = "PROCEDURE" if row["kind"] == "p" else "FUNCTION"
            yield warning(
                "counter_function",
                f"{word.capitalize()} {function} sets campaigns.sent; whoever calls it overwrites our count.",
                f"DROP {word} {function}; -- or see to it that nobody calls it",
            )
    if not found:
        yield ok("other_writers", "No trigger or function in this database sets campaigns.sent.")


def counter_overwritten(target: Target) -> Iterator[Finding]:
    """What the recounts saw: counters that somebody else had set."""
    if "verdicts" not in target.found.schema_tables:
        return
    row = target.row(
        "SELECT count(*) AS n, count(DISTINCT campaign_id) AS campaigns, "
        "to_char(max(decided_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') AS last "
        "FROM sentstream.verdicts WHERE cause = 'counter_overwritten' AND decided_at > now() - interval '1 day'"
    )
    if row["n"]:
        yield warning(
            "counter_overwritten",
            f"Somebody else set campaigns.sent of {row['campaigns']} campaigns within the last day, {row['n']} times, "
            f"last at {row['last']} (the mailer's own sync of counts, or a person); each was put right.",
            "Find who writes it (`sentstream report list`, log_statement = 'mod') and switch that off.",
        )
    else:
        yield ok("counter_overwritten", "Nobody else set campaigns.sent within the last day.")


def statements_of_others(target: Target) -> Iterator[Finding]:
    """What pg_stat_statements remembers: the mailer's own sync of counts, for one.

    Our own statements are told by the role, or, where the mailer uses the same, by not beginning with UPDATE.
    """
    extension = target.rows(
        "SELECT n.nspname::text AS schema FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace "
        "WHERE e.extname = 'pg_stat_statements' "
        # the library is loaded where its settings are known; what is preloaded only some roles may read
        "AND current_setting('pg_stat_statements.max', true) IS NOT NULL"
    )
    if not extension:
        yield ok("counter_statement", "pg_stat_statements is not in use, so statements of others are not known.")
        return
    rows = target.rows(
        f"""
        SELECT left(regexp_replace(s.query, '\\s+', ' ', 'g'), 150) AS query, s.calls,
               coalesce(pg_get_userbyid(s.userid)::text, '') AS role
        FROM {quoted(extension[0]["schema"])}.pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid
        WHERE d.datname = current_database() AND s.query ~* %s::text
          AND (pg_get_userbyid(s.userid) <> current_user OR s.query ~* '^\\s*update\\M')
        ORDER BY s.calls DESC LIMIT 3
        """,  # noqa: S608
        _TOUCHES,
    )
    for row in rows:
        yield warning(
            "counter_statement",
            f"Role {quoted(row['role'])} has set campaigns.sent {row['calls']} times by: {row['query']}.",
            "Switch that off in the mailer, unless it only concerns campaigns outside the queue.",
        )
    if not rows:
        yield ok("counter_statement", "pg_stat_statements knows no statement of others that sets campaigns.sent.")


CHECKS = (
    mailer_tables,
    mailer_extras,
    mailer_settings,
    counters_above,
    other_writers,
    counter_overwritten,
    statements_of_others,
)
