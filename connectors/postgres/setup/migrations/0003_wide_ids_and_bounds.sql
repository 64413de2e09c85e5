-- Ids of campaigns may be bigint, and rows of recounts are checked.

-- A flush takes this lock first: none may hold a part of what follows, and wait for another.
LOCK TABLE sentstream.watermarks IN SHARE ROW EXCLUSIVE MODE;

-- The views stop reading `progress` while its column changes. They are replaced and not dropped: grants of others, and
-- views of others on them, stay.
CREATE OR REPLACE VIEW sentstream.campaign_progress AS
SELECT c.id, c.name, c.status, c.sent, c.to_send, NULL::numeric AS progress_pct, 0::bigint AS queue_queued,
       0::bigint AS queue_sending, 0::bigint AS queue_sent, 0::bigint AS queue_failed, 0::bigint AS queue_cancelled,
       0::bigint AS removed
FROM sentstream.mailer_campaigns() c;

CREATE OR REPLACE VIEW sentstream.discrepancies AS
SELECT c.id, c.name, c.sent AS campaign_sent, 0::bigint AS queue_sent, 0::bigint AS discrepancy, 0::bigint AS removed,
       false AS explained_by_removed
FROM sentstream.mailer_campaigns() c;

ALTER TABLE sentstream.progress ALTER COLUMN campaign_id TYPE bigint;
ALTER TABLE sentstream.verdicts ALTER COLUMN campaign_id TYPE bigint;
ALTER TABLE sentstream.history ALTER COLUMN campaign_id TYPE bigint;

-- Of `removed`: what the counter showed when the campaign was met, and rows may still come for.
ALTER TABLE sentstream.progress ADD COLUMN IF NOT EXISTS unmatched bigint NOT NULL DEFAULT 0;
-- When another writer's counter was last replaced, and what it showed as long as no recount has reported it.
ALTER TABLE sentstream.progress
    ADD COLUMN IF NOT EXISTS overwritten_at timestamptz,
    ADD COLUMN IF NOT EXISTS overwritten_with bigint;

CREATE OR REPLACE VIEW sentstream.campaign_progress AS
SELECT c.id, c.name, c.status, coalesce(p.sent, c.sent) AS sent, c.to_send,
       CASE WHEN c.to_send <> 0 THEN
           least(100.0, greatest(0.0, round(100 * coalesce(p.sent, c.sent)::numeric / nullif(c.to_send, 0), 1)))
       END AS progress_pct,
       coalesce(p.queue_queued, 0) AS queue_queued,
       coalesce(p.queue_sending, 0) AS queue_sending,
       coalesce(p.queue_sent, 0) AS queue_sent,
       coalesce(p.queue_failed, 0) AS queue_failed,
       coalesce(p.queue_cancelled, 0) AS queue_cancelled,
       coalesce(p.removed, 0) AS removed
FROM sentstream.mailer_campaigns() c
LEFT JOIN sentstream.progress p ON p.campaign_id = c.id;

CREATE OR REPLACE VIEW sentstream.discrepancies AS
SELECT c.id, c.name, c.sent AS campaign_sent, coalesce(q.queue_sent, 0) AS queue_sent,
       coalesce(q.queue_sent, 0) - c.sent AS discrepancy,
       coalesce(p.removed, 0) AS removed,
       c.sent - coalesce(q.queue_sent, 0) = coalesce(p.removed, 0) AS explained_by_removed
FROM sentstream.mailer_campaigns() c
LEFT JOIN sentstream.live_counts() q ON q.campaign_id = c.id
LEFT JOIN sentstream.progress p ON p.campaign_id = c.id
WHERE (q.queue_rows IS NOT NULL OR p.campaign_id IS NOT NULL)
  AND coalesce(q.queue_sent, 0) <> c.sent;

-- A row of recounts travels through the stream, and a role with INSERT alone may write one: what can't be a count is
-- refused here. jsonb prints itself in one form, so one expression says it all: ids, five counts, campaigns.sent (which
-- may have been set below 0). NOT VALID: rows that are there stay.
ALTER TABLE sentstream.recounts
    ADD CONSTRAINT recounts_counts CHECK (
        counts::text ~ '^\{("-?[0-9]{1,19}": \[([0-9]{1,18}, ){5}-?[0-9]{1,19}\](, )?)*\}$') NOT VALID,
    ADD CONSTRAINT recounts_rebase CHECK (rebase::text ~ '^("all"|\[(-?[0-9]{1,19}(, )?)*\])$') NOT VALID,
    ADD CONSTRAINT recounts_snapshot CHECK (pg_snapshot_xmin(snapshot::pg_snapshot) IS NOT NULL) NOT VALID,
    ADD CONSTRAINT recounts_policy CHECK (removed_policy IN ('keep', 'follow')) NOT VALID,
    ADD CONSTRAINT recounts_numbers CHECK (
        epoch >= 0 AND campaigns >= 0 AND count_ms >= 0 AND count_ms < 1e12 AND isfinite(started_at)) NOT VALID;
