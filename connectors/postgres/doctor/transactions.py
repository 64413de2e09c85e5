"""Checks of transactions that keep the slot from being made, or recounts from being conclusive, in any database."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from connectors.postgres.catalog.names import literal, quoted
from connectors.postgres.doctor.target import Target
from stream.core.finding import Finding, critical, ok, warning

#: seconds after which a transaction is worth a finding while recounts are inconclusive
_YOUNG: Final = 5.0

_INCONCLUSIVE = """
SELECT EXISTS (SELECT FROM sentstream.watermarks WHERE NOT based)
    OR EXISTS (SELECT FROM sentstream.answers a
               WHERE NOT a.conclusive AND a.run_id = (SELECT max(run_id) FROM sentstream.answers)) AS so
"""

_PREPARED = """
SELECT gid, owner::text AS owner, database::text AS database, prepared::text AS since,
       extract(epoch FROM clock_timestamp() - prepared)::int AS age
FROM pg_prepared_xacts WHERE clock_timestamp() - prepared > make_interval(secs => %s::float8) ORDER BY prepared
"""

# another role's transaction shows its id to everybody, and its age only to pg_read_all_stats
_OPEN = """
SELECT pid, coalesce(usename::text, '') AS role, coalesce(datname::text, '') AS database,
       coalesce(application_name, '') AS application, coalesce(state, 'state not shown') AS state,
       extract(epoch FROM clock_timestamp() - xact_start)::int AS age,
       left(regexp_replace(coalesce(query, ''), '\\s+', ' ', 'g'), 100) AS query
FROM pg_stat_activity
WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
  AND (clock_timestamp() - xact_start > make_interval(secs => %s::float8) OR %s::boolean AND xact_start IS NULL)
ORDER BY xact_start LIMIT 5
"""


def prepared_transactions(target: Target) -> Iterator[Finding]:
    """Left behind, they keep a slot from being made, pin WAL, and make recounts inconclusive."""
    rows = target.rows(_PREPARED, _patience(target, target.thresholds.prepared)[0])
    for row in rows:
        say = critical if target.found.slot is None and not target.wanted.temporary_slot else warning
        effect = "no slot can be made" if say is critical else "it pins WAL, and recounts stay inconclusive"
        yield say(
            "prepared_transactions",
            f"Prepared transaction {row['gid']!r} of {quoted(row['owner'])} in database {quoted(row['database'])} was "
            f"left behind at {row['since']}, {row['age']} s ago: while it is there, {effect}.",
            f"ROLLBACK PREPARED {literal(row['gid'])}; -- in that database, as its owner; or COMMIT PREPARED",
        )
    if not rows:
        yield ok("prepared_transactions", "No prepared transaction was left behind.")


def long_transactions(target: Target) -> Iterator[Finding]:
    """Writing transactions that are open for long: a recount can't conclude across them, and no slot gets made."""
    rows = target.rows(_OPEN, *_patience(target, target.thresholds.transaction))
    for row in rows:
        age = "a time not shown to this role" if row["age"] is None else f"{row['age']} s"
        yield warning(
            "long_transaction",
            f"Process {row['pid']} ({row['application'] or 'no application name'}, role {row['role']}, database "
            f"{row['database']}) has a writing transaction open for {age} ({row['state']}, last statement: "
            f"{row['query'] or 'not shown'}): recounts stay inconclusive, and the slot holds back WAL from there on.",
            f"SELECT pg_terminate_backend({row['pid']}); -- or let it end",
        )
    if not rows:
        yield ok("long_transaction", "No writing transaction is open for long.")


def _patience(target: Target, usual: float) -> tuple[float, bool]:
    """Seconds that a transaction may be open, and whether recounts are inconclusive now, when seconds count."""
    if not {"watermarks", "answers"} <= set(target.found.schema_tables):
        return usual, False
    inconclusive = bool(target.row(_INCONCLUSIVE)["so"])
    return (min(usual, _YOUNG) if inconclusive else usual), inconclusive


CHECKS = (prepared_transactions, long_transactions)
