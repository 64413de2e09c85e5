"""What ``setup`` makes, by name: the schema, the identity index, and the publication's tables with their columns.

The plan, conformance and doctor take the names from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from psycopg import sql

from connectors.mailer.tables import CAMPAIGNS, EMAIL_QUEUE, PUBLISHED_CAMPAIGN_COLUMNS, PUBLISHED_QUEUE_COLUMNS

SCHEMA: Final = "sentstream"
IDENTITY_INDEX: Final = "email_queue_sentstream"
#: in this order the index serves a recount as an index-only scan
IDENTITY_COLUMNS: Final = ("campaign_id", "status", "id")
#: the publication's ``publish`` parameter
ACTIONS: Final = ("insert", "update", "delete", "truncate")
PLUGIN: Final = "pgoutput"

WATERMARK_COLUMNS: Final = ("partition", "epoch")
RECOUNT_COLUMNS: Final = (
    "run_id",
    "trigger",
    "requested_by",
    "started_at",
    "lsn",
    "snapshot",
    "counts",
    "rebase",
    "epoch",
    "removed_policy",
)


@dataclass(frozen=True, slots=True)
class Member:
    """A table of the publication: its schema, name, the columns listed, and whether it is the mailer's."""

    schema: str
    table: str
    columns: tuple[str, ...]
    mailer: bool

    @property
    def name(self) -> str:
        """``schema.table`` as SQL, quoted where it must be."""
        return quoted(self.schema, self.table)

    @property
    def is_queue(self) -> bool:
        """Whether it is the queue, the only table whose identity is not DEFAULT."""
        return self.mailer and self.table == EMAIL_QUEUE.name


def members(mailer_schema: str) -> tuple[Member, ...]:
    """The four tables of the publication, with the lists they have in mode ``index``."""
    return (
        Member(mailer_schema, EMAIL_QUEUE.name, PUBLISHED_QUEUE_COLUMNS, True),
        Member(mailer_schema, CAMPAIGNS.name, PUBLISHED_CAMPAIGN_COLUMNS, True),
        Member(SCHEMA, "watermarks", WATERMARK_COLUMNS, False),
        Member(SCHEMA, "recounts", RECOUNT_COLUMNS, False),
    )


_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_")
# words that a person could choose as a name and PostgreSQL takes only in quotes
_RESERVED = frozenset(("all", "analyse", "analyze", "default", "end", "group", "order", "primary", "table", "user"))


def quoted(*parts: str) -> str:
    """Identifiers joined by dots, as people write them: quotes only where needed."""
    return ".".join(_quoted(part) for part in parts)


def _quoted(part: str) -> str:
    if part and set(part) <= _PLAIN and not part[0].isdigit() and part not in _RESERVED:
        return part
    return sql.Identifier(part).as_string(None)


def literal(value: str) -> str:
    """``value`` as an SQL string constant."""
    return sql.Literal(value).as_string(None).strip()
