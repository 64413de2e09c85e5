-- Views for people and dashboards. What they read of the mailer's tables comes through functions whose bodies are
-- text: a view's own column references would forbid the mailer's migrations to retype or drop such a column.
-- Both are plain functions of one SELECT, which the planner takes in, so a recount by hand stays an index-only scan;
-- they run with the rights of whoever asks. The mailer's schema is put in by setup, like a psql variable.

CREATE FUNCTION sentstream.mailer_campaigns()
    RETURNS TABLE (id bigint, name text, status text, to_send bigint, sent bigint)
    LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    SELECT c.id::bigint, c.name::text, c.status::text, coalesce(c.to_send, 0)::bigint, coalesce(c.sent, 0)::bigint
    FROM :"mailer".campaigns c
$$;

CREATE FUNCTION sentstream.live_counts()
    RETURNS TABLE (campaign_id bigint, queue_rows bigint, queue_sent bigint)
    LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    SELECT q.campaign_id::bigint, count(*), count(*) FILTER (WHERE q.status = 'sent')
    FROM :"mailer".email_queue q GROUP BY q.campaign_id
$$;

-- The numbers as sentstream shows them; campaigns outside the queue with what the mailer says. LEAST ignores NULL,
-- so the NULL of a campaign with nothing to send is decided before the clamp.
CREATE VIEW sentstream.campaign_progress AS
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

-- campaigns.sent against the queue itself, counted now and without a look at what sentstream counted: rows that
-- differ. What deleted rows explain (removed) is told, for a deleted row does not unsend a mail.
CREATE VIEW sentstream.discrepancies AS
SELECT c.id, c.name, c.sent AS campaign_sent, coalesce(q.queue_sent, 0) AS queue_sent,
       coalesce(q.queue_sent, 0) - c.sent AS discrepancy,
       coalesce(p.removed, 0) AS removed,
       c.sent - coalesce(q.queue_sent, 0) = coalesce(p.removed, 0) AS explained_by_removed
FROM sentstream.mailer_campaigns() c
LEFT JOIN sentstream.live_counts() q ON q.campaign_id = c.id
LEFT JOIN sentstream.progress p ON p.campaign_id = c.id
WHERE (q.queue_rows IS NOT NULL OR p.campaign_id IS NOT NULL)
  AND coalesce(q.queue_sent, 0) <> c.sent;

COMMENT ON VIEW sentstream.campaign_progress IS 'Progress of every campaign, as sentstream shows it.';
COMMENT ON VIEW sentstream.discrepancies IS
    'Campaigns whose counter differs from the live count of the queue; explained_by_removed: by deleted rows alone.';
