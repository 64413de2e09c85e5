"""A mailer's day in a few rows, for pictures and for tests of the page: campaigns in every state, and mail that flows.

The statements are those of the mailer; the queue is real, so whatever the page shows of it has come through the stream.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

MARKUP = "<b>Black Friday</b> <img src=x onerror=alert(1)> & friends"


@dataclass(frozen=True, slots=True)
class Cast:
    """A campaign of the scene: rows by status, and mails a second."""

    name: str
    status: str
    queued: int = 0
    sent: int = 0
    failed: int = 0
    cancelled: int = 0
    pace: float = 0.0


DAY: Sequence[Cast] = (
    Cast("Weekly digest #47", "finished", sent=8412, failed=9),
    Cast("Imported list, sent without the queue", "finished"),
    Cast("Abandoned cart, second try", "paused", sent=1210, cancelled=2790),
    Cast("Win-back: we miss you", "cancelled", sent=310, cancelled=1690),
    Cast(MARKUP, "scheduled", queued=12000),
    Cast("Product launch: early access", "running", queued=6200, sent=5800, failed=14, pace=9),
    Cast("Weekly digest #48", "running", queued=3900, sent=4500, pace=6),
    Cast("Spring newsletter", "running", queued=11800, sent=8500, failed=23, pace=17),
)


class Scene:
    """Makes the campaigns, then sends: `start` and `stop`, or `send` one mail by hand."""

    def __init__(self, url: str, cast: Sequence[Cast] = DAY, seed: int = 7) -> None:
        self.url = url
        self.cast = cast
        self.ids: list[int] = []
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def prepare(self) -> Scene:
        """Subscribers, campaigns and their queue rows."""
        with psycopg.connect(self.url) as session:
            session.execute(
                "INSERT INTO subscribers (email) SELECT 'reader' || n || '@example.org' FROM generate_series(1, 100) n"
            )
            for cast in self.cast:
                self.ids.append(self._campaign(session, cast))
        return self

    def send(self, campaign_id: int, mails: int = 1) -> int:
        """Send ``mails`` of a campaign now; how many there were to send."""
        with psycopg.connect(self.url, autocommit=True) as session:
            return _send(session, campaign_id, mails)

    def start(self) -> None:
        self._stop.clear()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            owed = dict.fromkeys(self.ids, 0.0)
            with psycopg.connect(self.url, autocommit=True) as session:
                before = time.monotonic()
                while not self._stop.wait(0.1):
                    now = time.monotonic()
                    for number, cast in zip(self.ids, self.cast, strict=True):
                        owed[number] += cast.pace * (now - before) * self._random.uniform(0.5, 1.5)
                        if owed[number] >= 1:
                            _send(session, number, int(owed[number]))
                            owed[number] %= 1
                    before = now
        except BaseException as error:
            self._error = error

    def _campaign(self, session: psycopg.Connection[Any], cast: Cast) -> int:
        rows = {"queued": cast.queued, "sent": cast.sent, "failed": cast.failed, "cancelled": cast.cancelled}
        total = sum(rows.values())
        in_queue = total > 0
        row = session.execute(
            "INSERT INTO campaigns (name, subject, status, to_send, sent, messenger, use_queue, started_at)"
            " VALUES (%s, 'Hello', %s::campaign_status, %s, %s, %s, %s, now() - interval '40 minutes') RETURNING id",
            (
                cast.name,
                cast.status,
                total or 2500,
                0 if in_queue else 2431,
                "automatic" if in_queue else "email",
                in_queue,
            ),
        ).fetchone()
        assert row is not None
        for status, count in rows.items():
            session.execute(
                "INSERT INTO email_queue (campaign_id, subscriber_id, status, scheduled_at)"
                " SELECT %s, readers.ids[1 + n %% 100], %s, now()"
                " FROM (SELECT array_agg(id) AS ids FROM subscribers) readers, generate_series(1, %s) n",
                (row[0], status, count),
            )
        return int(row[0])


def _send(session: psycopg.Connection[Any], campaign_id: int, mails: int) -> int:
    """queued -> sending -> sent, as the mailer does; a mail in a hundred fails."""
    ids = [
        row[0]
        for row in session.execute(
            "UPDATE email_queue SET status = 'sending' WHERE id IN (SELECT id FROM email_queue WHERE campaign_id = %s"
            " AND status = 'queued' ORDER BY id LIMIT %s) AND status = 'queued' RETURNING id",
            (campaign_id, mails),
        )
    ]
    for number in ids:
        status = "failed" if number % 211 == 0 else "sent"
        session.execute("UPDATE email_queue SET status = %s, sent_at = now() WHERE id = %s", (status, number))
    return len(ids)


def backdate_history(url: str, minutes: int = 180, seed: int = 3) -> None:
    """For pictures alone: minutes of the past, which no scene can wait for. What is shown of now stays real."""
    chance = random.Random(seed)
    with psycopg.connect(url) as session:
        ids = [row[0] for row in session.execute("SELECT campaign_id FROM sentstream.progress ORDER BY 1")]
        for place, number in enumerate(ids):
            for back in range(2, minutes if place % 2 else minutes // 2):
                wave = 1 + 0.5 * ((back // 23) % 3)
                session.execute(
                    "INSERT INTO sentstream.history (campaign_id, minute, kind, sent) VALUES"
                    " (%s, date_trunc('minute', now()) - make_interval(mins => %s), 'flow', %s) ON CONFLICT DO NOTHING",
                    (number, back, int(chance.uniform(150, 260) * wave)),
                )
