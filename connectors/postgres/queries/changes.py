"""Following the store of record cheaply: what changed in ``sentstream.progress`` and in the mailer's campaigns.

Every look asks for the watermarks, one row a partition. Only where one of them moved are the changed rows read, and
those are told by the transaction that wrote them (``xmin``) against the snapshot of the look before: no column, trigger
or notification of ours is needed, and nothing here ever looks at the queue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from psycopg import Connection, sql
from psycopg.rows import tuple_row

from connectors.postgres.queries.shadow import flushes_in_shadow
from stream.core.committed import CampaignRow, CommittedFlush
from stream.core.position import Position, parse_lsn
from stream.core.progress import rate_per_minute
from stream.core.verdict import Verdict

if TYPE_CHECKING:
    from typing_extensions import LiteralString

#: seconds between two looks at the mailer's campaigns, and at the rates
CAMPAIGNS_EVERY: Final = 1.0
RATES_EVERY: Final = 2.0

_NONE: Final = (0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Changes:
    """What one look found. ``now``: the database's clock; ``reached``: epoch and position by partition; ``outside``:
    changed campaigns as the mailer has them; ``existing``: the ids of all campaigns, ``counted``: of those with counts;
    ``rates``: mails in the last minute, by campaign; ``run``: the newest recount;
    ``shadow``: what flushes is in shadow mode. None where it was not their turn."""

    now: datetime
    reached: Mapping[int, tuple[int, Position]]
    flushes: tuple[CommittedFlush, ...] = ()
    outside: tuple[CampaignRow, ...] = ()
    existing: frozenset[int] | None = None
    counted: frozenset[int] | None = None
    rates: Mapping[int, float] | None = None
    run: int | None = None
    shadow: bool | None = None


@dataclass(slots=True)
class Follower:
    """Remembers how far it has looked; `poll` does the next one. Belongs to one thread; a new connection may be given
    at any time, `forget` makes the next look a full one."""

    mailer_schema: str
    _marks: Sequence[tuple[Any, ...]] = ()
    _seen: int | None = None
    _campaigns_seen: int | None = None
    _campaigns_at: float = float("-inf")
    _rates_at: float = float("-inf")

    def forget(self) -> None:
        """Changes at everything again."""
        self._marks, self._seen = (), None
        self._rates_at = float("-inf")
        self.forget_campaigns()

    def forget_campaigns(self) -> None:
        """Changes at all of the mailer's campaigns again."""
        self._campaigns_seen, self._campaigns_at = None, float("-inf")

    def poll(self, connection: Connection[Any], at: float) -> Changes:
        """What changed since the look before. ``at``: seconds of any clock that goes on."""
        with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            marks = cursor.execute(_MARKS).fetchall()
            now, horizon = marks[0][:2]
            flushes: tuple[CommittedFlush, ...] = ()
            if self._marks != (stands := [mark[2:] for mark in marks]):
                flushes = self._changed(cursor, stands)
            outside: tuple[CampaignRow, ...] = ()
            existing = counted = None
            if at - self._campaigns_at >= CAMPAIGNS_EVERY:
                outside = self._mailer(cursor)
                existing, counted = map(frozenset, cursor.execute(self._sql(_IDS)).fetchone() or ((), ()))
            rates = run = shadow = None
            if at - self._rates_at >= RATES_EVERY:
                rates = {number: rate_per_minute(*minutes) for number, *minutes in cursor.execute(_RATES)}
                (run,) = cursor.execute(_LAST_RUN).fetchone() or (None,)
                shadow = bool(flushes_in_shadow(connection))
        # Only now: a look that failed half-way is done again
        if self._marks != stands:
            self._marks, self._seen = stands, horizon
        if existing is not None:
            self._campaigns_at, self._campaigns_seen = at, horizon
        if rates is not None:
            self._rates_at = at
        reached = {
            partition: (epoch, Position(parse_lsn(lsn), seq))
            for partition, epoch, lsn, seq, *_ in stands
            if partition is not None
        }
        return Changes(now, reached, flushes, outside, existing, counted, rates, run, shadow)

    def _changed(self, cursor: Any, stands: Sequence[tuple[Any, ...]]) -> tuple[CommittedFlush, ...]:
        cursor.execute(self._sql(_PROGRESS), {"since": self._seen})
        rows: dict[int, list[CampaignRow]] = {}
        for partition, *values in cursor:
            rows.setdefault(partition, []).append(_row(values))
        verdicts: list[Verdict] = []
        if self._seen is not None:  # what was decided before the first look is no news
            verdicts = [Verdict(*values) for values in cursor.execute(self._sql(_VERDICTS), {"since": self._seen})]
        return tuple(
            CommittedFlush(
                epoch,
                partition,
                Position(parse_lsn(lsn), seq),
                as_of,
                based,
                tuple(rows.get(partition, ())),
                verdicts=tuple(verdicts) if place == 0 else (),
                whole=self._seen is None,
            )
            for place, (partition, epoch, lsn, seq, based, as_of, _) in enumerate(stands)
            if partition is not None
        )

    def _mailer(self, cursor: Any) -> tuple[CampaignRow, ...]:
        cursor.execute(self._sql(_CAMPAIGNS), {"since": self._campaigns_seen})
        return tuple(CampaignRow(n, name, status, to_send, _NONE, 0, sent) for n, name, status, to_send, sent in cursor)

    def _sql(self, text: LiteralString) -> sql.Composed:
        campaigns = sql.Identifier(self.mailer_schema, "campaigns")
        return sql.SQL(text).format(campaigns=campaigns, written_since=sql.SQL(_WRITTEN_SINCE))


def _row(values: Sequence[Any]) -> CampaignRow:
    number, name, status, to_send, queued, sending, sent, failed, cancelled, removed, shown, verified_at, lsn = values
    counts = (queued, sending, sent, failed, cancelled)
    return CampaignRow(
        number, name, status, to_send, counts, removed, shown, verified_at, None if lsn is None else parse_lsn(lsn)
    )


# Whether a row was written by a transaction that the snapshot before could not see. xids are 32 bits and wrap; a row
# that was frozen long ago may be taken for a new one, which costs nothing but reading it.
_WRITTEN_SINCE: Final = """(%(since)s::bigint IS NULL
    OR ((xid::text::bigint - %(since)s::bigint) & 4294967295) < 2147483648)"""

# xmin of the watermark: a recount that writes ahead of the stream touches the row and leaves its values alone
_MARKS: Final = """
SELECT clock_timestamp(), pg_snapshot_xmin(pg_current_snapshot())::text::bigint & 4294967295,
       w.partition, w.epoch, w.lsn::text, w.seq, w.based, w.as_of, w.xmin::text
FROM (SELECT) AS always LEFT JOIN sentstream.watermarks AS w ON true
ORDER BY w.partition
"""

_PROGRESS: Final = """
SELECT p.partition, p.campaign_id, coalesce(c.name::text, ''), coalesce(c.status::text, ''),
       coalesce(c.to_send, 0)::bigint,
       p.queue_queued, p.queue_sending, p.queue_sent, p.queue_failed, p.queue_cancelled, p.removed, p.sent,
       p.verified_at, p.verified_lsn::text
FROM (SELECT xmin AS xid, * FROM sentstream.progress) AS p LEFT JOIN {campaigns} AS c ON c.id = p.campaign_id
WHERE {written_since}
"""

_CAMPAIGNS: Final = """
SELECT id::bigint, coalesce(name::text, ''), coalesce(status::text, ''), coalesce(to_send, 0)::bigint,
       coalesce(sent, 0)::bigint
FROM (SELECT xmin AS xid, id, name, status, to_send, sent FROM {campaigns}) AS c
WHERE {written_since}
"""

_IDS: Final = """
SELECT coalesce((SELECT array_agg(id::bigint) FROM {campaigns}), '{{}}'),
       coalesce((SELECT array_agg(campaign_id::bigint) FROM sentstream.progress), '{{}}')
"""

_RATES: Final = """
SELECT campaign_id, coalesce(sum(sent) FILTER (WHERE minute = date_trunc('minute', now())), 0)::bigint,
       coalesce(sum(sent) FILTER (WHERE minute < date_trunc('minute', now())), 0)::bigint,
       extract(second FROM now())::float8
FROM sentstream.history
WHERE kind = 'flow' AND minute BETWEEN date_trunc('minute', now()) - interval '1 minute' AND now()
GROUP BY campaign_id
"""

# of the newest runs alone, which bounds what is read; an older one takes no more verdicts
_VERDICTS: Final = """
SELECT run_id, campaign_id, verdict, cause, before, after, corrected, estimated
FROM (SELECT xmin AS xid, * FROM sentstream.verdicts
      WHERE run_id > (SELECT max(run_id) FROM sentstream.recounts) - 20) AS v
WHERE {written_since}
ORDER BY run_id, campaign_id
LIMIT 10000
"""

_LAST_RUN: Final = "SELECT max(run_id) FROM sentstream.recounts"
