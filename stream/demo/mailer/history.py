"""What a mailer has when sentstream comes: a campaign that was sent long ago and still shows 0, and its odd numbers.

Laid before ``setup``, it lets the first recount find what all this is about.
"""

from __future__ import annotations

from typing import Any, Final

from psycopg import Connection, sql

from connectors.mailer.tables import QUEUE_MESSENGER
from stream.demo.mailer import newsletters

_READERS = """
INSERT INTO subscribers (email, name)
SELECT format('archive.%%s@example.org', n), format('Reader %%s', n) FROM generate_series(1, %s::int) n ORDER BY n
RETURNING id
"""
_CAMPAIGN = """
INSERT INTO campaigns (name, subject, body, status, messenger, to_send, sent, use_queue, started_at, queued_at,
                       queue_completed_at, created_at, updated_at)
SELECT %(name)s, %(name)s, repeat(md5(%(name)s), 200), %(status)s::campaign_status, %(messenger)s,
       %(to_send)s::int, %(sent)s::int, %(messenger)s::text = 'automatic', began, began, began + interval '4 hours',
       began, began + interval '4 hours'
FROM (SELECT now() - interval '60 days' AS began) AS times
RETURNING id
"""
_QUEUE = """
INSERT INTO email_queue (campaign_id, subscriber_id, status, scheduled_at, sent_at, created_at, updated_at)
SELECT %(campaign)s::int, reader, 'sent', began, went, began, went
FROM (SELECT reader, now() - interval '60 days' AS began,
             now() - interval '60 days' + n * interval '0.7 seconds' AS went
      FROM unnest(%(readers)s::int[]) WITH ORDINALITY AS them(reader, n)) AS mails
"""
_TRACKED = """
INSERT INTO azure_message_tracking (azure_message_id, campaign_id, subscriber_id, sent_at, created_at)
SELECT gen_random_uuid(), campaign_id, subscriber_id, sent_at, sent_at
FROM email_queue WHERE campaign_id = %(campaign)s::int ORDER BY id LIMIT %(tracked)s::int
"""
_DELIVERED = """
INSERT INTO azure_delivery_events (azure_message_id, campaign_id, subscriber_id, status, event_timestamp)
SELECT azure_message_id, campaign_id, subscriber_id, 'Delivered', sent_at + interval '3 seconds'
FROM azure_message_tracking WHERE campaign_id = %(campaign)s::int ORDER BY id LIMIT %(delivered)s::int
"""

_CATALOGUE: Final = {
    "name": newsletters.HISTORY_NAME,
    "status": "finished",
    "messenger": QUEUE_MESSENGER,
    "to_send": newsletters.HISTORY_SENT,
    "sent": 0,
}
_OUTSIDE: Final = {
    "name": newsletters.OUTSIDE_THE_QUEUE,
    "status": "running",
    "messenger": "email",
    "to_send": newsletters.OUTSIDE_TO_SEND,
    "sent": newsletters.OUTSIDE_SENT,
}


def lay_history(conn: Connection[Any], schema: str = "public") -> int:
    """Makes that campaign (20,323 rows `sent`, 20,318 tracked, 1,282 delivered, `sent` = 0) and one outside the queue.

    For a mailer without campaigns. Returns the id of the first.
    """
    with conn.transaction(), conn.cursor() as cursor:
        cursor.execute(sql.SQL("SET LOCAL search_path TO {}").format(sql.Identifier(schema)))
        readers = [row[0] for row in cursor.execute(_READERS, (newsletters.HISTORY_SENT,)).fetchall()]
        ((campaign,),) = cursor.execute(_CAMPAIGN, _CATALOGUE).fetchall()
        given = {
            "campaign": campaign,
            "readers": readers,
            "tracked": newsletters.HISTORY_TRACKED,
            "delivered": newsletters.HISTORY_DELIVERED,
        }
        for statement in (_QUEUE, _TRACKED, _DELIVERED):
            cursor.execute(statement, given)
        cursor.execute(_CAMPAIGN, _OUTSIDE)
        return int(campaign)
