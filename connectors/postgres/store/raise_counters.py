"""What a recount does while the stream is behind or down: raise ``campaigns.sent`` by itself (DESIGN 4).

One transaction a partition. It first takes the watermark's row with an update that changes nothing: flushes move that
row first, so the two queue there, and a transaction that touches ``watermarks`` is ours, so the stream skips its
campaign changes. What it writes lies ahead of the stream; ``floor_lsn`` keeps flushes from writing an older number
until the stream gets there, and the recount's own entry, which lies behind the floor, makes the campaign due again.

Raises only: rows may have been removed that the stream has not seen go. (With the policy ``follow`` removed rows do not
count, and the counter is set.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
from psycopg import errors, sql
from psycopg.rows import tuple_row

from connectors.mailer.tables import CAMPAIGNS
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

# Whoever seals the run takes its row for update, so until we commit it stays open: a sealed run gets no more verdicts.
_OPEN = "SELECT FROM sentstream.recounts WHERE run_id = %(run)s::bigint AND status = 'open' FOR KEY SHARE"

# A campaign that never had a queue row is never written; one whose rows have all gone still has its progress row.
# A later run may have written already: its floor is higher.
_RAISE = sql.SQL("""
WITH wanted AS (
    SELECT k.id, k.sent + CASE WHEN %(keep)s::boolean THEN coalesce(p.removed, 0) ELSE 0 END AS sent
    FROM unnest(%(ids)s::int[], %(sent)s::bigint[], %(counted)s::boolean[]) AS k(id, sent, counted)
    LEFT JOIN sentstream.progress p ON p.campaign_id = k.id
    WHERE (k.counted OR p.campaign_id IS NOT NULL) AND (p.floor_lsn IS NULL OR p.floor_lsn <= %(lsn)s::pg_lsn)
), differing AS (
    SELECT c.id, coalesce(c.sent, 0) AS found, w.sent
    FROM {campaigns} c JOIN wanted w ON w.id = c.id
    WHERE CASE WHEN %(keep)s::boolean THEN coalesce(c.sent, 0) < w.sent ELSE coalesce(c.sent, 0) <> w.sent END
), locked AS (
    SELECT c.id, coalesce(c.sent, 0) AS found, w.sent
    FROM {campaigns} c JOIN wanted w ON w.id = c.id
    WHERE CASE WHEN %(keep)s::boolean THEN coalesce(c.sent, 0) < w.sent ELSE coalesce(c.sent, 0) <> w.sent END
    ORDER BY c.id
    FOR NO KEY UPDATE OF c SKIP LOCKED
), raised AS (
    UPDATE {campaigns} c SET sent = l.sent FROM locked l WHERE c.id = l.id
), floors AS (
    INSERT INTO sentstream.progress AS p (campaign_id, partition, floor_lsn, written)
    SELECT l.id, %(partition)s::int, %(lsn)s::pg_lsn, l.sent FROM locked l ORDER BY l.id
    ON CONFLICT (campaign_id) DO UPDATE SET floor_lsn = excluded.floor_lsn, written = excluded.written
), verdicts AS (
    INSERT INTO sentstream.verdicts (run_id, campaign_id, verdict, before, after, delta, corrected)
    SELECT %(run)s::bigint, l.id, 'not_comparable', jsonb_build_object('counter', l.found),
           jsonb_build_object('counter', l.sent), jsonb_build_object('counter', l.sent - l.found), true
    FROM locked l
    ON CONFLICT (run_id, campaign_id, verdict) DO NOTHING
)
SELECT d.id, d.found, d.sent, l.id IS NOT NULL FROM differing d LEFT JOIN locked l ON l.id = d.id ORDER BY d.id
""")


@dataclass(frozen=True, slots=True)
class Raise:
    """A counter that was raised: from what it showed to what it shows."""

    campaign_id: int
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Raised:
    """What came of it. ``partitions``: those that were behind the run; ``held``: campaigns whose row somebody else had
    locked, or whose partition was busy: worth another try."""

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
    statement = _RAISE.format(campaigns=sql.Identifier(mailer_schema, CAMPAIGNS.name))
    raises: list[Raise] = []
    held: list[int] = []
    for partition in concerned:
        rows, busy = _raise_partition(conn, run, partition, statement)
        raises += [Raise(number, found, sent) for number, found, sent, locked in rows if locked]
        held += [number for number, _, _, locked in rows if not locked] + busy
    return Raised(tuple(concerned), tuple(raises), tuple(held))


def _read(conn: Connection, run_id: int) -> _Run | None:
    with conn.cursor(row_factory=tuple_row) as cursor:
        row = cursor.execute(_RUN, (run_id,)).fetchone()
    if row is None:
        return None
    counts, policy, epoch, lsn, partitions = row
    return _Run(run_id, epoch, lsn, policy == "keep", partitions, counts)


def _raise_partition(
    conn: Connection, run: _Run, partition: int, statement: sql.Composed
) -> tuple[Sequence[tuple[int, int, int, bool]], list[int]]:
    """Rows (campaign, found, wanted, whether written), and the campaigns of a partition that stayed busy."""
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
                    return (), []  # it got there meanwhile
                if cursor.execute(_OPEN, values).rowcount != 1:
                    return (), []
                return cursor.execute(statement, values).fetchall(), []
        except _AGAIN:
            continue
    return (), ids
