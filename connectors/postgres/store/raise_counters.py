"""What a recount does while the stream is behind or down: raise ``campaigns.sent`` by itself.

One transaction a partition. It first takes the watermark's row with an update that changes nothing: flushes move that
row first, so the two queue there, and a transaction that touches ``watermarks`` is ours, so the stream skips its
campaign changes. What it writes lies ahead of the stream; ``floor_lsn`` keeps flushes from writing an older number
until the stream gets there, and the recount's own entry, which lies behind the floor, makes the campaign due again.

Raises only: rows may have been removed that the stream has not seen go. (With the policy ``follow`` removed rows do not
count, and the counter is set.) See docs/design/recount.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import psycopg
from psycopg import errors, sql
from psycopg.rows import tuple_row

from connectors.mailer.tables import CAMPAIGNS
from connectors.postgres.store.counters import CounterWriter
from stream.core.partitioner import partition_of

Connection = psycopg.Connection[Any]

#: times that a transaction which gave way to another is tried
_TRIES: Final = 3
_AGAIN: Final = (errors.SerializationFailure, errors.DeadlockDetected, errors.LockNotAvailable)

_RUN = """
SELECT counts, removed_policy, epoch, lsn::text, (SELECT count(*) FROM sentstream.watermarks)
FROM sentstream.recounts WHERE run_id = %s::bigint AND status = 'open' AND counts IS NOT NULL
"""

# Partitions that have not answered this run or a later one, and whose numbers are older than the run's. Another epoch
# is another history of LSNs: no floor could be compared with it, and a recount of its own is due anyway.
_CONCERNED = """
SELECT w.partition FROM sentstream.watermarks w
WHERE w.epoch = %(epoch)s::bigint AND (NOT w.based OR w.lsn < %(lsn)s::pg_lsn)
  AND NOT EXISTS (
      SELECT FROM sentstream.answers a
      WHERE a.partition = w.partition AND a.epoch = w.epoch AND a.run_id >= %(run)s::bigint AND a.conclusive)
ORDER BY w.partition
"""

_OURS = """
UPDATE sentstream.watermarks w SET partition = w.partition
WHERE w.partition = %(partition)s::int AND w.epoch = %(epoch)s::bigint AND (NOT w.based OR w.lsn < %(lsn)s::pg_lsn)
"""

# Sealing takes the row of the run for update, so until we commit it stays open: a sealed run gets no more verdicts.
_OPEN = "SELECT FROM sentstream.recounts WHERE run_id = %(run)s::bigint AND status = 'open' FOR KEY SHARE"

# A campaign that never had a queue row is never written; one whose rows have all gone still has its progress row.
# A later run may have written already: its floor is higher.
_DUE = sql.SQL("""
WITH wanted AS (
    SELECT k.id, k.sent + CASE WHEN %(keep)s::boolean THEN coalesce(p.removed, 0) ELSE 0 END AS sent
    FROM unnest(%(ids)s::bigint[], %(sent)s::bigint[], %(counted)s::boolean[]) AS k(id, sent, counted)
    LEFT JOIN sentstream.progress p ON p.campaign_id = k.id
    WHERE (k.counted OR p.campaign_id IS NOT NULL) AND (p.floor_lsn IS NULL OR p.floor_lsn <= %(lsn)s::pg_lsn)
), differing AS (
    SELECT c.id, coalesce(c.sent, 0) AS found, w.sent
    FROM {campaigns} c JOIN wanted w ON w.id = c.id
    WHERE CASE WHEN %(keep)s::boolean THEN coalesce(c.sent, 0) < w.sent ELSE coalesce(c.sent, 0) <> w.sent END
), locked AS (
    SELECT c.id FROM {campaigns} c JOIN differing d ON d.id = c.id
    ORDER BY c.id
    FOR NO KEY UPDATE OF c SKIP LOCKED
)
SELECT d.id, d.found::bigint, d.sent, l.id IS NOT NULL FROM differing d LEFT JOIN locked l ON l.id = d.id ORDER BY d.id
""")

_RAISED = """
WITH raised AS (
    SELECT * FROM unnest(%(ids)s::bigint[], %(found)s::bigint[], %(sent)s::bigint[]) AS r(id, found, sent)
), floors AS (
    INSERT INTO sentstream.progress AS p (campaign_id, partition, floor_lsn, written)
    SELECT r.id, %(partition)s::int, %(lsn)s::pg_lsn, r.sent FROM raised r ORDER BY r.id
    ON CONFLICT (campaign_id) DO UPDATE SET floor_lsn = excluded.floor_lsn, written = excluded.written
)
INSERT INTO sentstream.verdicts (run_id, campaign_id, verdict, before, after, delta, corrected)
SELECT %(run)s::bigint, r.id, 'not_comparable', jsonb_build_object('counter', r.found),
       jsonb_build_object('counter', r.sent), jsonb_build_object('counter', r.sent - r.found), true
FROM raised r
ON CONFLICT (run_id, campaign_id, verdict) DO NOTHING
"""


@dataclass(frozen=True, slots=True)
class Raise:
    """A counter that was raised: from what it showed to what it shows."""

    campaign_id: int
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Raised:
    """What came of it. ``partitions``: those that were behind the run; ``held``: campaigns worth another try (the row
    is locked by another session, the counter was refused, the partition was busy)."""

    partitions: tuple[int, ...] = ()
    raises: tuple[Raise, ...] = ()
    held: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Run:
    """What a raise takes from a run."""

    run_id: int
    epoch: int
    lsn: str
    keep: bool
    partitions: int
    counts: dict[str, list[int]] = field(repr=False)

    def of_partition(self, partition: int) -> tuple[list[int], list[int], list[bool]]:
        """Ids, rows sent, and whether there are rows at all, of the campaigns of a partition."""
        ids = sorted(number for number in map(int, self.counts) if partition_of(number, self.partitions) == partition)
        counts = [self.counts[str(number)][:5] for number in ids]
        return ids, [row[2] for row in counts], [any(row) for row in counts]


def raise_counters(conn: Connection, run_id: int, *, mailer_schema: str) -> Raised:
    """Raise ``campaigns.sent`` to what the run counted, in every partition that is not based or behind it.

    ``conn``: in autocommit, outside a transaction. Harmless to repeat, and does nothing for a run that is sealed, or
    counted in another epoch. Not to be called with WRITE_BACK=false.
    """
    run = _read(conn, run_id)
    if run is None:
        return Raised()
    with conn.cursor(row_factory=tuple_row) as cursor:
        values = {"epoch": run.epoch, "lsn": run.lsn, "run": run_id}
        concerned = [row[0] for row in cursor.execute(_CONCERNED, values).fetchall()]
    statement = _DUE.format(campaigns=sql.Identifier(mailer_schema, CAMPAIGNS.name))
    writer = _writer(mailer_schema)
    raises: list[Raise] = []
    held: list[int] = []
    try:
        for partition in concerned if writer.may_try else ():
            done, waiting = _raise_partition(conn, run, partition, statement, writer)
            raises += done
            held += waiting
    except errors.InsufficientPrivilege as error:
        writer.missing_right(error)
    return Raised(tuple(concerned), tuple(raises), tuple(held))


@cache
def _writer(mailer_schema: str) -> CounterWriter:
    """One for the process: it remembers what was refused, and said."""
    return CounterWriter(mailer_schema)


def _read(conn: Connection, run_id: int) -> _Run | None:
    with conn.cursor(row_factory=tuple_row) as cursor:
        row = cursor.execute(_RUN, (run_id,)).fetchone()
    if row is None:
        return None
    counts, policy, epoch, lsn, partitions = row
    return _Run(run_id, epoch, lsn, policy == "keep", partitions, counts)


def _raise_partition(
    conn: Connection, run: _Run, partition: int, statement: sql.Composed, writer: CounterWriter
) -> tuple[list[Raise], list[int]]:
    """The counters of a partition that were raised, and the campaigns that were not to be had."""
    ids, sent, counted = run.of_partition(partition)
    values: dict[str, Any] = {
        "partition": partition,
        "epoch": run.epoch,
        "lsn": run.lsn,
        "run": run.run_id,
        "keep": run.keep,
        "ids": ids,
        "sent": sent,
        "counted": counted,
    }
    for _ in range(_TRIES):
        try:
            with conn.transaction(), conn.cursor(row_factory=tuple_row) as cursor:
                cursor.execute("SET LOCAL lock_timeout = '2s'")
                if cursor.execute(_OURS, values).rowcount != 1:
                    return [], []  # it got there meanwhile
                if cursor.execute(_OPEN, values).rowcount != 1:
                    return [], []
                rows = cursor.execute(statement, values).fetchall()
                due = [Raise(campaign, found, wanted) for campaign, found, wanted, locked in rows if locked]
                refused = writer.write(conn, {it.campaign_id: it.after for it in due})
                raises = [it for it in due if it.campaign_id not in refused]
                written = {
                    "ids": [it.campaign_id for it in raises],
                    "found": [it.before for it in raises],
                    "sent": [it.after for it in raises],
                }
                cursor.execute(_RAISED, values | written)
                return raises, [campaign for campaign, _, _, locked in rows if not locked] + sorted(refused)
        except _AGAIN:
            continue
    return [], ids
