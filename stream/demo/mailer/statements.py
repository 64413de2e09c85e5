"""The statements of the mailer, as it sends them: unqualified names, found by ``search_path``.

As in the real mailer, only the pick checks the row's status; all later statements overwrite it.
"""

from __future__ import annotations

from typing import Final

# single rows ------------------------------------------------------------------------------------------------------

PICK: Final = (
    "UPDATE email_queue SET status = 'sending', updated_at = now() WHERE id = %s::bigint AND status = 'queued'"
)
SENT: Final = "UPDATE email_queue SET status = 'sent', sent_at = now(), updated_at = now() WHERE id = %s::bigint"
FAILED: Final = (
    "UPDATE email_queue SET status = 'failed', last_error = 'smtp: 550 mailbox unavailable', "
    "retry_count = retry_count + 1, updated_at = now() WHERE id = %s::bigint"
)
LIMITED: Final = (
    "UPDATE email_queue SET status = 'queued', scheduled_at = now() + interval '1 minute', updated_at = now() "
    "WHERE id = %s::bigint"
)

# bulk -------------------------------------------------------------------------------------------------------------

QUEUE_ALL: Final = """
INSERT INTO email_queue (campaign_id, subscriber_id, status, priority, scheduled_at)
SELECT %s::int, s, 'queued', 0, now() FROM unnest(%s::int[]) s RETURNING id
"""
SCHEDULE_ALL: Final = """
UPDATE email_queue SET scheduled_at = now(), assigned_smtp_server_uuid = %s::text, updated_at = now()
WHERE campaign_id = %s::int AND status = 'queued'
"""
CANCEL_ALL: Final = """
UPDATE email_queue SET status = 'cancelled', updated_at = now()
WHERE campaign_id = %s::int AND status IN ('queued', 'sending')
"""
RESUME_ALL: Final = (
    "UPDATE email_queue SET status = 'queued', updated_at = now() WHERE campaign_id = %s::int AND status = 'cancelled'"
)
RETRY_ALL: Final = """
UPDATE email_queue SET status = 'queued', retry_count = 0, last_error = NULL, updated_at = now()
WHERE campaign_id = %s::int AND status = ANY(%s::text[])
"""

# campaigns --------------------------------------------------------------------------------------------------------

CREATE: Final = """
INSERT INTO campaigns (uuid, name, subject, body, status, messenger)
VALUES (%s::uuid, %s::text, %s::text, %s::text, 'draft', %s::text) RETURNING id
"""
SET_STATUS: Final = """
UPDATE campaigns SET status = %s::text::campaign_status, auto_paused = false, updated_at = now() WHERE id = %s::int
"""
BEGIN_SENDING: Final = """
UPDATE campaigns SET status = %s::text::campaign_status, to_send = %s::int, started_at = now(), updated_at = now()
WHERE id = %s::int
"""
SET_USE_QUEUE: Final = "UPDATE campaigns SET use_queue = true, queued_at = now(), updated_at = now() WHERE id = %s::int"
FINISH: Final = """
UPDATE campaigns SET status = %s::text::campaign_status, queue_completed_at = now(), updated_at = now()
WHERE id = %s::int
"""
SENT_DIRECTLY: Final = "UPDATE campaigns SET sent = sent + %s::int, updated_at = now() WHERE id = %s::int"
DELETE_CAMPAIGN: Final = "DELETE FROM campaigns WHERE id = %s::int"

AUTO_PAUSE: Final = """
UPDATE campaigns SET status = 'paused', auto_paused = true, auto_paused_at = now(), updated_at = now()
WHERE status = 'running' AND use_queue RETURNING id
"""
AUTO_RESUME: Final = """
UPDATE campaigns SET status = 'running', auto_paused = false, updated_at = now()
WHERE status = 'paused' AND use_queue RETURNING id
"""

# subscribers ------------------------------------------------------------------------------------------------------

NEW_SUBSCRIBERS: Final = """
INSERT INTO subscribers (email, name)
SELECT format('%%s.%%s@example.org', %s::text, n), format('Reader %%s', n)
FROM generate_series(%s::int, %s::int) n ORDER BY n RETURNING id
"""
DELETE_SUBSCRIBERS: Final = "DELETE FROM subscribers WHERE id = ANY(%s::int[])"
#: the rows that will go with them, as they stand; locked, so that they go as they were read
ROWS_OF_SUBSCRIBERS: Final = (
    "SELECT id, campaign_id FROM email_queue WHERE subscriber_id = ANY(%s::int[]) ORDER BY id FOR UPDATE"
)

# after a lost connection ------------------------------------------------------------------------------------------

WHERE_WAL_STANDS: Final = "SELECT pg_current_wal_insert_lsn()::text"
BACKEND: Final = "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
END_BACKEND: Final = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = %s::int AND backend_start = %s::timestamptz"
)
ROWS_OF_CAMPAIGNS: Final = "SELECT id, campaign_id, status FROM email_queue WHERE campaign_id = ANY(%s::int[])"
CAMPAIGNS_NOW: Final = (
    "SELECT id, name, status::text, use_queue, auto_paused, coalesce(to_send, 0), messenger, coalesce(sent, 0) "
    "FROM campaigns ORDER BY id"
)
SUBSCRIBERS_NOW: Final = "SELECT id FROM subscribers ORDER BY id"
MARK: Final = """
SELECT concat_ws('.', (SELECT max(id) FROM subscribers), (SELECT max(id) FROM campaigns),
                 (SELECT max(id) FROM email_queue))
"""

# tracking (what the mailer notes of each mail, and what comes back of it) -----------------------------------------

TRACK: Final = """
INSERT INTO azure_message_tracking (azure_message_id, campaign_id, subscriber_id)
SELECT %s::uuid, campaign_id, subscriber_id FROM email_queue WHERE id = %s::bigint
"""
LAST_TRACKED: Final = "SELECT coalesce(max(id), 0) FROM azure_message_tracking"
NEWLY_TRACKED: Final = """
SELECT id FROM azure_message_tracking WHERE id > %s::bigint AND created_at < now() - interval '2 seconds'
ORDER BY id LIMIT 500
"""
DELIVERED: Final = """
INSERT INTO azure_delivery_events (azure_message_id, campaign_id, subscriber_id, status)
SELECT azure_message_id, campaign_id, subscriber_id, 'Delivered' FROM azure_message_tracking
WHERE id = ANY(%s::bigint[])
"""
OPENED: Final = """
INSERT INTO azure_engagement_events (azure_message_id, campaign_id, subscriber_id, engagement_type)
SELECT azure_message_id, campaign_id, subscriber_id, 'view' FROM azure_message_tracking WHERE id = ANY(%s::bigint[])
"""
CLICKED: Final = """
INSERT INTO azure_engagement_events (azure_message_id, campaign_id, subscriber_id, engagement_type)
SELECT azure_message_id, campaign_id, subscriber_id, 'click' FROM azure_message_tracking WHERE id = ANY(%s::bigint[])
"""
VIEWS: Final = """
INSERT INTO campaign_views (campaign_id, subscriber_id)
SELECT campaign_id, subscriber_id FROM azure_message_tracking WHERE id = ANY(%s::bigint[])
"""
CLICKS: Final = """
INSERT INTO link_clicks (campaign_id, subscriber_id)
SELECT campaign_id, subscriber_id FROM azure_message_tracking WHERE id = ANY(%s::bigint[])
"""

# settings ---------------------------------------------------------------------------------------------------------

SET_SETTING: Final = """
INSERT INTO settings (key, value) VALUES (%s::text, %s::jsonb)
ON CONFLICT (key) DO UPDATE SET value = excluded.value, updated_at = now()
"""
