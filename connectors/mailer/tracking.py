"""What other tables of the mailer say about the mails sent: observations of a run, never written anywhere else.

The mailer notes each mail that it hands to Azure in ``azure_message_tracking``, and what Azure tells of it in the
delivery and engagement tables. None of that is what is counted (a row's status is), and none of it must be equal:
events come late or never, tracking rows go with their subscriber. But who reads a report wants to see the other
numbers, and a campaign outside the queue has nothing else to be compared with.

| kind               | expected                              | actual                         | reported where     |
|--------------------|---------------------------------------|--------------------------------|--------------------|
| `tracked`          | `sent` by our count                   | rows of azure_message_tracking | they differ        |
| `delivered`        | `sent` by our count                   | mails with a Delivered event   | they differ        |
| `engaged`          | mails with a Delivered event          | mails opened or clicked        | more than expected |
| `unqueued_tracked` | `campaigns.sent`, nothing ever queued | rows of azure_message_tracking | they differ        |

A table that is missing, unreadable or empty says nothing, so nothing is compared with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from psycopg import Connection, sql
from psycopg.rows import tuple_row

from connectors.mailer import catalog
from connectors.mailer.tables import (
    AZURE_DELIVERY_EVENTS,
    AZURE_ENGAGEMENT_EVENTS,
    AZURE_MESSAGE_TRACKING,
    CAMPAIGNS,
    DELIVERED,
    Table,
)

TRACKED: Final = "tracked"
DELIVERED_KIND: Final = "delivered"
ENGAGED: Final = "engaged"
UNQUEUED_TRACKED: Final = "unqueued_tracked"

PerCampaign = Mapping[int, int]

_ROWS = "SELECT campaign_id::bigint, count(*) FROM {} WHERE campaign_id IS NOT NULL GROUP BY 1"
# a mail of which an event came twice is one mail
_MAILS = "SELECT campaign_id::bigint, count(DISTINCT azure_message_id) FROM {} WHERE campaign_id IS NOT NULL GROUP BY 1"
_DELIVERED = (
    "SELECT campaign_id::bigint, count(DISTINCT azure_message_id) FROM {} "
    "WHERE campaign_id IS NOT NULL AND status = %s::text GROUP BY 1"
)


@dataclass(frozen=True, slots=True)
class Observation:
    """Two numbers of one campaign that differ; see the table above."""

    campaign_id: int
    kind: str
    expected: int
    actual: int

    def as_json(self) -> dict[str, int | str]:
        """The object that a report shows."""
        return {
            "campaign_id": self.campaign_id,
            "kind": self.kind,
            "expected": self.expected,
            "actual": self.actual,
        }


@dataclass(frozen=True, slots=True)
class Tracking:
    """Mails by campaign, as the tables tell; None: the table says nothing.

    ``sent`` is ``campaigns.sent``, and names every campaign that exists."""

    sent: PerCampaign
    tracked: PerCampaign | None = None
    delivered: PerCampaign | None = None
    engaged: PerCampaign | None = None


def read_tracking(conn: Connection[Any], schema: str) -> Tracking:
    """All numbers by campaign, as they stand now: an aggregate over each table, for a recount and not for a request."""
    with conn.cursor(row_factory=tuple_row) as cursor:
        shown = sql.SQL("SELECT id::bigint, coalesce(sent, 0)::bigint FROM {}")
        sent: dict[int, int] = dict(cursor.execute(shown.format(sql.Identifier(schema, CAMPAIGNS.name))).fetchall())
    return Tracking(
        sent,
        tracked=_count(conn, schema, AZURE_MESSAGE_TRACKING, _ROWS),
        delivered=_count(conn, schema, AZURE_DELIVERY_EVENTS, _DELIVERED, DELIVERED),
        engaged=_count(conn, schema, AZURE_ENGAGEMENT_EVENTS, _MAILS),
    )


def observations(counted: PerCampaign, tracking: Tracking) -> list[Observation]:
    """What differs, by campaign. ``counted``: what ``campaigns.sent`` should be (``queue_sent + removed``) for every
    campaign that has or had rows in the queue; the others are compared as campaigns outside the queue. Campaigns that
    exist no more are left out."""
    found: list[Observation] = []
    for campaign in sorted(tracking.sent):
        compared = (
            _queued(counted[campaign], campaign, tracking) if campaign in counted else _unqueued(campaign, tracking)
        )
        found.extend(Observation(campaign, kind, expected, actual) for kind, expected, actual in compared)
    return found


def news(now: Iterable[Observation], before: Iterable[Observation]) -> list[Observation]:
    """Those of ``now`` that the run before did not have with the same numbers.

    An old campaign's numbers go on to differ, and need not be kept with every run."""
    known = set(before)
    return [observation for observation in now if observation not in known]


def _queued(sent: int, campaign: int, tracking: Tracking) -> Iterator[tuple[str, int, int]]:
    tracked = _of(tracking.tracked, campaign, sent)
    if tracked != sent:
        yield TRACKED, sent, tracked
    delivered = _of(tracking.delivered, campaign, sent)
    if delivered != sent:
        yield DELIVERED_KIND, sent, delivered
    engaged = _of(tracking.engaged, campaign, 0)
    if tracking.delivered is not None and engaged > delivered:
        yield ENGAGED, delivered, engaged


def _unqueued(campaign: int, tracking: Tracking) -> Iterator[tuple[str, int, int]]:
    sent = tracking.sent[campaign]
    tracked = _of(tracking.tracked, campaign, sent)
    if tracked != sent:
        yield UNQUEUED_TRACKED, sent, tracked


def _of(numbers: PerCampaign | None, campaign: int, silent: int) -> int:
    """The campaign's number; ``silent`` where the table says nothing."""
    return silent if numbers is None else numbers.get(campaign, 0)


def _count(conn: Connection[Any], schema: str, table: Table, query: str, *values: str) -> PerCampaign | None:
    """Rows or mails by campaign; None where the table is missing, unreadable or empty."""
    if not catalog.is_readable(conn, schema, table):
        return None
    name = sql.Identifier(schema, table.name)
    with conn.cursor(row_factory=tuple_row) as cursor:
        any_row = cursor.execute(sql.SQL("SELECT EXISTS (SELECT FROM {})").format(name)).fetchone()
        if any_row is None or not any_row[0]:
            return None
        return dict(cursor.execute(sql.SQL(query).format(name), values).fetchall())
