"""The mailer's tables as data: which names, columns and types sentstream relies on, and which it merely uses.

``doctor`` and ``setup`` compare these with the catalog; readers of the mailer's tables take their names from here.
Types are names of ``pg_type`` (``typname``, without length): a column may have any of those listed, since a migration
of the mailer may widen an ``int`` or turn a ``varchar`` into ``text`` without anything going wrong for us.

The outside facts come from the mailer's own schema (a listmonk fork); ``schema.sql`` beside this file makes such
tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from importlib import resources
from typing import Final

INTEGERS: Final = ("int2", "int4", "int8")
TEXTS: Final = ("varchar", "text", "bpchar")
FLAGS: Final = ("bool",)
TIMES: Final = ("timestamptz", "timestamp")
#: the status of a campaign: an enum in the mailer; text does as well
CAMPAIGN_STATUS_TYPE: Final = "campaign_status"

#: what a campaign's status can be, in the order of the mailer's enum
CAMPAIGN_STATUSES: Final = ("draft", "running", "scheduled", "paused", "cancelled", "finished")

#: value of ``campaigns.messenger`` that means the queue
QUEUE_MESSENGER: Final = "automatic"
#: value of ``azure_delivery_events.status`` that means the mail arrived
DELIVERED: Final = "Delivered"

SETTING_SEND_TIME_START: Final = "app.send_time_start"
SETTING_SEND_TIME_END: Final = "app.send_time_end"
SETTING_TIMEZONE: Final = "app.timezone"


class Need(Enum):
    """How much hangs on a table or column."""

    #: without it nothing can be counted
    COUNTING = "counting"
    #: without it the numbers are right, and something that is shown beside them is missing
    SHOWING = "showing"


@dataclass(frozen=True, slots=True)
class Column:
    """A column we read or write, and the type names with which that works."""

    name: str
    types: tuple[str, ...]
    need: Need = Need.COUNTING


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the mailer, and the columns of it that we use."""

    name: str
    columns: tuple[Column, ...]
    need: Need = Need.COUNTING

    def column(self, name: str) -> Column:
        """The column of that name; KeyError where we use none so called."""
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(name)

    def names(self, need: Need | None = None) -> tuple[str, ...]:
        """Names of its columns, in order; with ``need`` only those of that need."""
        return tuple(c.name for c in self.columns if need is None or c.need is need)


EMAIL_QUEUE: Final = Table(
    "email_queue",
    (
        Column("id", INTEGERS),
        Column("campaign_id", INTEGERS),
        Column("status", TEXTS),
    ),
)

CAMPAIGNS: Final = Table(
    "campaigns",
    (
        Column("id", INTEGERS),
        Column("name", TEXTS),
        Column("status", (CAMPAIGN_STATUS_TYPE, *TEXTS)),
        Column("to_send", INTEGERS),
        Column("sent", INTEGERS),
        Column("messenger", TEXTS, Need.SHOWING),
        Column("use_queue", FLAGS, Need.SHOWING),
        Column("started_at", TIMES, Need.SHOWING),
        Column("created_at", TIMES, Need.SHOWING),
        Column("updated_at", TIMES, Need.SHOWING),
        Column("auto_paused", FLAGS, Need.SHOWING),
        Column("auto_paused_at", TIMES, Need.SHOWING),
    ),
)

SETTINGS: Final = Table("settings", (Column("key", TEXTS), Column("value", ("jsonb", "json"))), Need.SHOWING)

AZURE_MESSAGE_TRACKING: Final = Table(
    "azure_message_tracking",
    (Column("azure_message_id", ("uuid",)), Column("campaign_id", INTEGERS)),
    Need.SHOWING,
)
AZURE_DELIVERY_EVENTS: Final = Table(
    "azure_delivery_events",
    (Column("azure_message_id", ("uuid",)), Column("campaign_id", INTEGERS), Column("status", TEXTS)),
    Need.SHOWING,
)
AZURE_ENGAGEMENT_EVENTS: Final = Table(
    "azure_engagement_events",
    (Column("azure_message_id", ("uuid",)), Column("campaign_id", INTEGERS), Column("engagement_type", TEXTS)),
    Need.SHOWING,
)
CAMPAIGN_VIEWS: Final = Table("campaign_views", (Column("campaign_id", INTEGERS),), Need.SHOWING)
LINK_CLICKS: Final = Table("link_clicks", (Column("campaign_id", INTEGERS),), Need.SHOWING)

#: every table we look at; the two without which nothing is counted come first
TABLES: Final = (
    EMAIL_QUEUE,
    CAMPAIGNS,
    SETTINGS,
    AZURE_MESSAGE_TRACKING,
    AZURE_DELIVERY_EVENTS,
    AZURE_ENGAGEMENT_EVENTS,
    CAMPAIGN_VIEWS,
    LINK_CLICKS,
)

#: columns of the publication, in the order of its lists
PUBLISHED_QUEUE_COLUMNS: Final = ("id", "campaign_id", "status")
PUBLISHED_CAMPAIGN_COLUMNS: Final = ("id", "name", "status", "to_send", "sent")


def needed() -> Iterator[tuple[Table, Column]]:
    """Every column without which nothing can be counted, with its table."""
    for table in TABLES:
        if table.need is Need.COUNTING:
            for column in table.columns:
                if column.need is Need.COUNTING:
                    yield table, column


def schema_sql() -> str:
    """SQL that makes such tables in the first schema of ``search_path`` (for the demo, tests and benchmarks)."""
    return resources.files(__package__).joinpath("schema.sql").read_text(encoding="utf-8")
