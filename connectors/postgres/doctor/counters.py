"""Checks of `campaigns.sent`: what it shows, who else writes it, and what keeps us from writing it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final

from connectors.mailer.tables import CAMPAIGNS, EMAIL_QUEUE
from connectors.postgres.catalog.names import SCHEMA, quoted
from connectors.postgres.doctor.target import Target
from stream.core.finding import Finding, critical, ok, warning

#: campaigns named in a finding
_SHOWN: Final = 5
#: seconds between two looks at counters that are not as counted: a flush tries a refused one again every second
_AGAIN: Final = 1.5
#: a campaign's name; where the database may hold what UTF-8 lacks, without anything but ASCII
_NAME: Final = (
    "CASE WHEN getdatabaseencoding() = 'UTF8' THEN c.name::text "
    "ELSE regexp_replace(c.name::text, '[^ -~]', '?', 'g') END"
)


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
        SELECT c.id, {_NAME} AS name, c.sent - q.live AS above, count(*) OVER () AS n
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
# how the store writes counters, and what it asks before
_OURS = r"\mas\s+w\s*\(\s*id,\s*sent\s*\)|^\s*explain\M"
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
                f"{word.capitalize()} {function} sets campaigns.sent; each call overwrites our count.",
                f"DROP {word} {function}; -- or make sure that it is not called",
            )
    if not found:
        yield ok("other_writers", "No trigger or function in this database sets campaigns.sent.")


def counter_overwritten(target: Target) -> Iterator[Finding]:
    """What the recounts saw: counters that another writer had set."""
    if "verdicts" not in target.found.schema_tables:
        return
    row = target.row(
        "SELECT count(DISTINCT campaign_id) AS campaigns, "
        "to_char(max(at) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') AS last FROM ("
        " SELECT campaign_id, decided_at AS at FROM sentstream.verdicts WHERE cause = 'counter_overwritten'"
        " UNION ALL"  # before the next recount; an older schema does not have the column
        " SELECT campaign_id, (to_jsonb(p) ->> 'overwritten_at')::timestamptz FROM sentstream.progress p"
        ") AS seen WHERE at > now() - interval '1 day'"
    )
    if row["campaigns"]:
        yield warning(
            "counter_overwritten",
            f"Another writer set campaigns.sent of {row['campaigns']} campaigns within the last day, "
            f"last at {row['last']} (the mailer's own sync of counts, or a person); each was put right.",
            "Find who writes it (`sentstream report list`, log_statement = 'mod') and switch that off.",
        )
    else:
        yield ok("counter_overwritten", "No other writer set campaigns.sent within the last day.")


def statements_of_others(target: Target) -> Iterator[Finding]:
    """What pg_stat_statements remembers: the mailer's own sync of counts, for one.

    Our own are known by their text, for the mailer may use the same role as sentstream.
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
          AND s.query !~* %s::text
        ORDER BY s.calls DESC LIMIT 3
        """,  # noqa: S608
        _TOUCHES,
        _OURS,
    )
    for row in rows:
        yield warning(
            "counter_statement",
            f"Role {quoted(row['role'])} has set campaigns.sent {row['calls']} times by: {row['query']}.",
            "Switch that off in the mailer, unless it only concerns campaigns outside the queue.",
        )
    if not rows:
        yield ok("counter_statement", "pg_stat_statements knows no statement of others that sets campaigns.sent.")


# counters that a flush has not brought to what is counted, though the stream is applied
_BEHIND = """
SELECT c.id::bigint AS id, coalesce(c.sent, 0)::bigint AS shown, p.sent AS counted
FROM {campaigns} c JOIN sentstream.progress p ON p.campaign_id = c.id
JOIN sentstream.watermarks w ON w.partition = p.partition
WHERE w.based AND p.floor_lsn IS NULL AND c.sent IS DISTINCT FROM p.sent AND p.written IS DISTINCT FROM p.sent
ORDER BY c.id
"""

# tgtype: 16 is UPDATE, 2 is BEFORE; tgattr: the columns of UPDATE OF
_GUARDS = """
SELECT 'trigger' AS kind, t.tgname::text AS name,
       n.nspname::text AS schema, p.proname::text AS function, t.tgdeferrable AS deferrable, p.prosecdef AS definer
FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE t.tgrelid = %(table)s::regclass AND NOT t.tgisinternal AND t.tgenabled <> 'D' AND t.tgtype & 16 = 16
  AND (t.tgattr = ''::int2vector OR (SELECT a.attnum FROM pg_attribute a
                                     WHERE a.attrelid = t.tgrelid AND a.attname = 'sent') = ANY (t.tgattr::int2[]))
UNION ALL
SELECT 'constraint', k.conname::text, '', pg_get_constraintdef(k.oid), false, false
FROM pg_constraint k
WHERE k.conrelid = %(table)s::regclass AND k.contype IN ('c', 'x', 'u')
  AND (SELECT a.attnum FROM pg_attribute a WHERE a.attrelid = k.conrelid AND a.attname = 'sent') = ANY (k.conkey)
UNION ALL
SELECT 'rule', r.rulename::text, '', '', false, false
FROM pg_rewrite r WHERE r.ev_class = %(table)s::regclass AND r.ev_type = '2'
ORDER BY 1 DESC, 2
"""


def counter_refused(target: Target) -> Iterator[Finding]:
    """Counters that stay other than counted, and what of the mailer's own may refuse the write."""
    tables = target.found.tables
    known = {"progress", "watermarks"} <= set(target.found.schema_tables)
    if not target.wanted.write_back or not known or "sent" not in getattr(tables.get(CAMPAIGNS.name), "columns", ()):
        return
    behind = _behind(target)
    if behind:
        time.sleep(_AGAIN)
        behind = {campaign: row for campaign, row in _behind(target).items() if behind.get(campaign) == row}
    if not behind:
        yield ok("counter_refused", "No counter is kept from being written.")
        return
    table = quoted(target.wanted.mailer_schema, CAMPAIGNS.name)
    guards = target.rows(_GUARDS.replace("%(table)s", "%s"), table, table, table)
    shown = ", ".join(f"{it} ({row[0]} shown, {row[1]} counted)" for it, row in list(behind.items())[:_SHOWN])
    more = f" and {len(behind) - _SHOWN} others" if len(behind) > _SHOWN else ""
    what = f"campaigns.sent is not written for {shown}{more}"
    if not guards:
        yield critical(
            "counter_refused",
            f"{what}, and {table} has no trigger, constraint or rule that could refuse it.",
            "Is sentstream running? Its log says why (`can't be written`); or a session holds these rows locked: "
            "SELECT pid, query FROM pg_stat_activity WHERE backend_xid IS NOT NULL;",
        )
        return
    yield critical(
        "counter_refused",
        f"{what}. What may refuse it: {'; '.join(_guard(table, row) for row in guards)}.",
        f"{' '.join(_without(table, row) for row in guards)} -- the one of them that sentstream's log names",
    )


def _behind(target: Target) -> dict[int, tuple[int, int]]:
    table = quoted(target.wanted.mailer_schema, CAMPAIGNS.name)
    return {row["id"]: (row["shown"], row["counted"]) for row in target.rows(_BEHIND.format(campaigns=table))}


def _guard(table: str, row: dict[str, Any]) -> str:
    if row["kind"] != "trigger":
        return f"{row['kind']} {quoted(row['name'])} of {table} {row['function']}".rstrip()
    when = ", which fires at COMMIT" if row["deferrable"] else ""
    whose = "" if row["definer"] else ", with the rights of sentstream's role"
    return f"trigger {quoted(row['name'])} of {table} (function {quoted(row['schema'], row['function'])}{when}{whose})"


def _without(table: str, row: dict[str, Any]) -> str:
    name = quoted(row["name"])
    if row["kind"] == "constraint":
        return f"ALTER TABLE {table} DROP CONSTRAINT {name};"
    return f"ALTER TABLE {table} DISABLE {row['kind'].upper()} {name};"


CHECKS = (counters_above, other_writers, counter_overwritten, statements_of_others, counter_refused)
