"""Read model of `explain`: all that is known of one campaign's number, and the queue itself beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from connectors.postgres.queries.errors import reading
from connectors.postgres.queries.old_transaction import OldTransaction, read_old_transaction
from connectors.postgres.queries.progress import read_progress
from connectors.postgres.queries.shadow import flushes_in_shadow
from stream.core.errors import ConfigurationError
from stream.core.progress import CampaignProgress
from stream.core.status import STATUSES

Connection = psycopg.Connection[Any]

#: rows of each kind that are told
LATEST = 10


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """A row of history. ``kind``: flow (mails of that minute), baseline, correction, pruned (older minutes in one)."""

    minute: datetime
    kind: str
    sent: int


@dataclass(frozen=True, slots=True)
class RecordedVerdict:
    """A verdict on the campaign that was kept, with the run it belongs to."""

    run_id: int
    trigger: str
    requested_by: str
    decided_at: datetime
    verdict: str
    cause: str | None
    before: Mapping[str, int] | None
    after: Mapping[str, int] | None
    delta: Mapping[str, int] | None
    corrected: bool
    estimated: bool


@dataclass(frozen=True, slots=True)
class Rebase:
    """A run that set the campaign's ``removed`` to 0, on request (``--rebase``)."""

    run_id: int
    at: datetime
    requested_by: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """``counter``: ``campaigns.sent`` now; ``written``: what we wrote there last; ``live``: the queue counted now, by
    status; ``history``: sums by kind; ``shadow``: whether what flushes is in shadow mode, None where nothing
    flushes; ``ahead``: a recount wrote the counter ahead of the stream (its LSN)."""

    now: datetime
    progress: CampaignProgress
    counter: int
    written: int | None
    overwritten_at: datetime | None
    ahead: str | None
    live: Mapping[str, int]
    history: Mapping[str, int]
    changes: tuple[HistoryEntry, ...]
    findings: tuple[RecordedVerdict, ...]
    rebases: tuple[Rebase, ...]
    verified_lsn: str | None
    based: bool
    shadow: bool | None
    old_transaction: OldTransaction | None
    watermark_lsn: str | None


_OURS = sql.SQL("""
SELECT coalesce(c.sent, 0)::bigint, p.written, p.floor_lsn::text, p.verified_lsn::text,
       coalesce(w.based, (SELECT bool_and(based) FROM sentstream.watermarks)), w.lsn::text,
       CASE WHEN p.floor_lsn > w.lsn THEN p.floor_lsn END::text,
       (to_jsonb(p) ->> 'overwritten_at')::timestamptz
FROM {campaigns} c
LEFT JOIN sentstream.progress p ON p.campaign_id = c.id
LEFT JOIN sentstream.watermarks w ON w.partition = p.partition
WHERE c.id = %(id)s::bigint""")

_LIVE = sql.SQL("SELECT status::text, count(*) FROM {queue} WHERE campaign_id = %(id)s::bigint GROUP BY 1")

_CHANGES = """
SELECT minute, kind, sent FROM sentstream.history
WHERE campaign_id = %(id)s::bigint ORDER BY minute DESC, kind LIMIT %(latest)s::int"""

_SUMS = "SELECT kind, sum(sent)::bigint FROM sentstream.history WHERE campaign_id = %(id)s::bigint GROUP BY kind"

_FINDINGS = """
SELECT v.run_id, r.trigger, r.requested_by, v.decided_at, v.verdict, v.cause, v.before, v.after, v.delta, v.corrected,
       v.estimated
FROM sentstream.verdicts v JOIN sentstream.recounts r USING (run_id)
WHERE v.campaign_id = %(id)s::bigint ORDER BY v.run_id DESC, v.decided_at DESC LIMIT %(latest)s::int"""

# A run that could not be decided has rebased nothing. ``counts``: the campaigns there were then; None once pruned.
_REBASES = """
SELECT run_id, started_at AS at, requested_by FROM sentstream.recounts
WHERE rebase IS NOT NULL AND (rebase = '"all"' OR rebase @> to_jsonb(%(id)s::bigint))
  AND verified + drift + baseline > 0 AND (counts IS NULL OR jsonb_exists(counts, %(id)s::text))
ORDER BY run_id DESC LIMIT %(latest)s::int"""


def explain(connection: Connection, mailer_schema: str, campaign_id: int) -> Explanation:
    """What there is to know of campaign ``campaign_id``; ConfigurationError where there is none of that id.

    One REPEATABLE READ transaction, so that queue, counter and our numbers are of one moment (autocommit connection).
    """
    given = {"id": campaign_id, "latest": LATEST}
    with reading("The campaign"), connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        read = read_progress(connection, mailer_schema, [campaign_id])
        ours = connection.execute(_OURS.format(campaigns=sql.Identifier(mailer_schema, "campaigns")), given).fetchone()
        if not read.campaigns or ours is None:
            raise ConfigurationError(f"There is no campaign {campaign_id}.", "`sentstream progress` lists them.")
        live = connection.execute(_LIVE.format(queue=sql.Identifier(mailer_schema, "email_queue")), given).fetchall()
        shadow = flushes_in_shadow(connection)
        sums = connection.execute(_SUMS, given).fetchall()
        with connection.cursor(row_factory=class_row(HistoryEntry)) as cursor:
            changes = cursor.execute(_CHANGES, given).fetchall()
        with connection.cursor(row_factory=class_row(RecordedVerdict)) as cursor:
            findings = cursor.execute(_FINDINGS, given).fetchall()
        with connection.cursor(row_factory=class_row(Rebase)) as cursor:
            rebases = cursor.execute(_REBASES, given).fetchall()
        inconclusive = bool(findings) and findings[0].verdict == "inconclusive"
        old_transaction = read_old_transaction(connection) if not ours[4] or inconclusive else None
    counter, written, _floor, verified_lsn, based, watermark_lsn, ahead, overwritten_at = ours
    return Explanation(
        now=read.now,
        progress=read.campaigns[0],
        counter=counter,
        written=written,
        overwritten_at=overwritten_at,
        ahead=ahead,
        live=dict.fromkeys(STATUSES, 0) | dict(live),
        history=dict(sums),
        changes=tuple(changes),
        findings=tuple(findings),
        rebases=tuple(rebases),
        verified_lsn=verified_lsn,
        based=bool(based),
        shadow=shadow,
        old_transaction=old_transaction,
        watermark_lsn=watermark_lsn,
    )
