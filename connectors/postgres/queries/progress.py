"""Read model: the progress of campaigns, by one statement whose cost does not depend on the size of the queue.

It reads what the flush wrote (progress, watermarks, the last two minutes of history) and the mailer's own row of each
campaign. Times are the server's, so that "five seconds old" does not depend on the caller's clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql

from connectors.postgres.queries.errors import reading
from stream.core.errors import ConfigurationError
from stream.core.position import Position, parse_lsn
from stream.core.progress import CampaignProgress, measure, rate_per_minute

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class ProgressRead:
    """What one look found: the server's time, and the campaigns by id."""

    now: datetime
    campaigns: tuple[CampaignProgress, ...]


# history's minutes are UTC minutes of the commit, as sessions of ours have it
_PROGRESS = sql.SQL("""
WITH recent AS (
    SELECT campaign_id,
           sum(sent) FILTER (WHERE minute >= date_trunc('minute', statement_timestamp())) AS current,
           sum(sent) FILTER (WHERE minute < date_trunc('minute', statement_timestamp())) AS previous
    FROM sentstream.history
    WHERE kind = 'flow' AND minute >= date_trunc('minute', statement_timestamp()) - interval '1 minute'
    GROUP BY campaign_id
)
SELECT c.id::bigint, c.name::text, c.status::text, coalesce(c.to_send, 0)::bigint, coalesce(c.sent, 0)::bigint,
       p.queue_queued, p.queue_sending, p.queue_sent, p.queue_failed, p.queue_cancelled, p.removed, p.sent,
       p.verified_at, w.epoch, w.lsn::text, w.seq, w.based, w.as_of,
       coalesce(r.current, 0)::bigint, coalesce(r.previous, 0)::bigint, statement_timestamp(), s.based, s.as_of
FROM {campaigns} c
CROSS JOIN (SELECT bool_and(based) AS based, CASE WHEN bool_and(as_of IS NOT NULL) THEN min(as_of) END AS as_of
            FROM sentstream.watermarks) s
LEFT JOIN sentstream.progress p ON p.campaign_id = c.id
LEFT JOIN sentstream.watermarks w ON w.partition = p.partition
LEFT JOIN recent r ON r.campaign_id = c.id
WHERE {which}
ORDER BY c.id""")


def read_progress(connection: Connection, mailer_schema: str, ids: Sequence[int] | None = None) -> ProgressRead:
    """The progress of the campaigns ``ids`` (None: all), those outside the queue included, ordered by id.

    PreconditionError where schema `sentstream` or the mailer's tables are missing or may not be read.
    """
    which = sql.SQL("true") if ids is None else sql.SQL("c.id = ANY(%(ids)s::bigint[])")
    query = _PROGRESS.format(campaigns=sql.Identifier(mailer_schema, "campaigns"), which=which)
    with reading("Progress"):
        clock = connection.execute("SELECT clock_timestamp()").fetchone()
        rows = connection.execute(query, {"ids": list(ids or ())}).fetchall()
    assert clock is not None
    return ProgressRead(clock[0], tuple(_campaign(row) for row in rows))


def find_campaigns(connection: Connection, mailer_schema: str, words: Sequence[str]) -> tuple[int, ...]:
    """The ids that ``words`` mean, each an id or an exact name, in their order; several of one name: all of them.

    A number means the campaign of that id where there is one. ConfigurationError names a word that means none.
    """
    query = sql.SQL(
        "SELECT id::bigint, name::text FROM {} WHERE id::text = ANY(%s::text[]) OR name = ANY(%s::text[]) ORDER BY id"
    ).format(sql.Identifier(mailer_schema, "campaigns"))
    with reading("The mailer's campaigns"):
        rows = connection.execute(query, [list(words), list(words)]).fetchall()
    found: dict[int, None] = {}
    for word in words:
        by_id = [number for number, _name in rows if str(number) == word]
        matching = by_id or [number for number, name in rows if name == word]
        if not matching:
            raise ConfigurationError(
                f"There is no campaign with the id or the exact name {word!r}.",
                "`sentstream progress` lists the campaigns.",
            )
        found.update(dict.fromkeys(matching))
    return tuple(found)


def find_campaign(connection: Connection, mailer_schema: str, word: str) -> int:
    """The one campaign that ``word`` means; ConfigurationError where it is none, or several."""
    ids = find_campaigns(connection, mailer_schema, [word])
    if len(ids) > 1:
        raise ConfigurationError(
            f"{len(ids)} campaigns are named {word!r}: {', '.join(map(str, ids))}.", "Give the id of one of them."
        )
    return ids[0]


def _campaign(row: Sequence[Any]) -> CampaignProgress:
    number, name, status, to_send, mailer_sent, *counts, removed, sent, verified_at = row[:13]
    epoch, lsn, seq, based, as_of, current, previous, now, all_based, oldest = row[13:]
    seconds = now.second + now.microsecond / 1_000_000
    common: dict[str, Any] = {"campaign_id": number, "name": name, "status": status, "to_send": to_send, "now": now}
    if sent is None:  # no row of ours: its `sent` is the mailer's business, unless the stream has not got there yet
        return measure(
            **common, counts=(0, 0, 0, 0, 0), removed=0, sent=mailer_sent, rate=0.0, as_of=oldest,
            based=bool(all_based), source="mailer",
        )  # fmt: skip
    return measure(
        **common,
        counts=counts,
        removed=removed,
        sent=sent,
        rate=rate_per_minute(current, previous, seconds),
        as_of=as_of,
        based=bool(based),
        verified_at=verified_at,
        epoch=epoch or 0,
        position=None if lsn is None else Position(parse_lsn(lsn), seq),
    )
