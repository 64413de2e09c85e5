"""The statements of a flush."""

from __future__ import annotations

from psycopg import sql

CAS = """
UPDATE sentstream.watermarks
SET lsn = %s::pg_lsn, seq = %s::bigint, based = %s::boolean, as_of = %s::timestamptz,
    next_offset = coalesce(%s::bigint, next_offset), flushed_at = clock_timestamp()
WHERE partition = %s::int AND epoch = %s::bigint AND lsn = %s::pg_lsn AND seq = %s::bigint
  AND %s::pg_lsn <= pg_current_wal_insert_lsn()"""

DUE = sql.SQL("""
WITH due AS (
    SELECT d.id, d.sent, p.written
    FROM unnest(%(ids)s::bigint[], %(sent)s::bigint[]) AS d(id, sent)
    LEFT JOIN sentstream.progress p ON p.campaign_id = d.id
    WHERE p.floor_lsn IS NULL OR p.floor_lsn <= %(lsn)s::pg_lsn
), locked AS (
    SELECT c.id, c.sent AS found
    FROM {campaigns} c JOIN due ON due.id = c.id
    WHERE c.sent IS DISTINCT FROM due.sent
    ORDER BY c.id
    FOR NO KEY UPDATE OF c SKIP LOCKED
)
SELECT due.id, due.sent, due.written, locked.id IS NOT NULL, coalesce(locked.found, 0)::bigint
FROM due JOIN {campaigns} c ON c.id = due.id AND c.sent IS DISTINCT FROM due.sent
LEFT JOIN locked ON locked.id = due.id
ORDER BY due.id""")

PROGRESS = """
INSERT INTO sentstream.progress AS p (
    campaign_id, partition, queue_queued, queue_sending, queue_sent, queue_failed, queue_cancelled, removed, sent,
    verified_at, verified_lsn, unmatched)
SELECT campaign, %s::int, queued, sending, sent_rows, failed, cancelled, removed, sent,
       verified_at, verified_lsn::pg_lsn, unmatched
FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[],
            %s::bigint[], %s::timestamptz[], %s::text[], %s::bigint[])
    AS r(campaign, queued, sending, sent_rows, failed, cancelled, removed, sent, verified_at, verified_lsn, unmatched)
ON CONFLICT (campaign_id) DO UPDATE SET
    partition = excluded.partition, queue_queued = excluded.queue_queued, queue_sending = excluded.queue_sending,
    queue_sent = excluded.queue_sent, queue_failed = excluded.queue_failed, queue_cancelled = excluded.queue_cancelled,
    removed = excluded.removed, sent = excluded.sent,
    verified_at = excluded.verified_at, verified_lsn = excluded.verified_lsn, unmatched = excluded.unmatched,
    overwritten_with = CASE WHEN p.verified_at IS NOT DISTINCT FROM excluded.verified_at THEN p.overwritten_with END"""

WRITTEN = """
UPDATE sentstream.progress p SET written = w.sent
FROM unnest(%s::bigint[], %s::bigint[]) AS w(id, sent)
WHERE p.campaign_id = w.id"""

# Another writer's counter that this flush replaced; the next recount reports it, and clears what it showed.
OVERWRITTEN = """
UPDATE sentstream.progress p SET overwritten_at = clock_timestamp(), overwritten_with = w.found
FROM unnest(%s::bigint[], %s::bigint[]) AS w(id, found)
WHERE p.campaign_id = w.id"""

# A counter that was right when we met the campaign is as good as written by us.
FOUND_RIGHT = sql.SQL("""
UPDATE sentstream.progress p SET written = c.sent
FROM {campaigns} c
WHERE p.campaign_id = ANY(%s::bigint[]) AND p.written IS NULL AND c.id = p.campaign_id AND c.sent = p.sent""")

HISTORY = """
INSERT INTO sentstream.history AS h (campaign_id, minute, kind, sent)
SELECT campaign, to_timestamp(minute * 60.0), kind, n
FROM unnest(%s::bigint[], %s::bigint[], %s::text[], %s::bigint[]) AS r(campaign, minute, kind, n)
ON CONFLICT (campaign_id, minute, kind) DO UPDATE SET sent = h.sent + excluded.sent"""

# A sealed run takes no more verdicts, or its digest would not hold; sealing waits for this lock.
VERDICTS = """
INSERT INTO sentstream.verdicts (run_id, campaign_id, verdict, cause, before, after, delta, corrected, estimated)
SELECT %s::bigint, %s::bigint, %s::text, %s::text, %s::jsonb, %s::jsonb, %s::jsonb, %s::boolean, %s::boolean
WHERE EXISTS (SELECT FROM sentstream.recounts WHERE run_id = %s::bigint AND status = 'open' FOR KEY SHARE)
ON CONFLICT (run_id, campaign_id, verdict) DO NOTHING"""

ANSWERS = """
INSERT INTO sentstream.answers (
    run_id, partition, epoch, conclusive, reason, verified, drift, inconclusive, baseline)
SELECT %s::bigint, %s::int, %s::bigint, %s::boolean, %s::text, %s::int, %s::int, %s::int, %s::int
WHERE EXISTS (SELECT FROM sentstream.recounts WHERE run_id = %s::bigint AND status = 'open' FOR KEY SHARE)
ON CONFLICT (run_id, partition) DO NOTHING"""

STORED = """
SELECT campaign_id, queue_queued, queue_sending, queue_sent, queue_failed, queue_cancelled, removed
FROM sentstream.progress WHERE campaign_id = ANY(%s::bigint[])"""

# Campaigns that only a raise of a recount has met so far.
RAISED = """
SELECT campaign_id, coalesce(written, 0) FROM sentstream.progress
WHERE campaign_id = ANY(%s::bigint[]) AND (floor_lsn IS NULL OR floor_lsn <= %s::pg_lsn)"""

# A row that was raised ahead of the stream is of a campaign that exists where the stream will get to.
DELETE_PROGRESS = """
DELETE FROM sentstream.progress
WHERE campaign_id = ANY(%s::bigint[]) AND (floor_lsn IS NULL OR floor_lsn <= %s::pg_lsn)"""

DELETE_HISTORY = "DELETE FROM sentstream.history WHERE campaign_id = ANY(%s::bigint[])"
