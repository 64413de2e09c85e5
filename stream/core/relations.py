"""The relations that are read: which table plays which role, whether it can be counted from, and a queue row's side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from . import pgoutput
from .errors import PreconditionError, ProtocolError, UncountableError
from .pgoutput import Relation
from .status import STATUS_BY_NAME

_QUEUE: Final = frozenset({"campaign_id", "status"})
_CAMPAIGNS: Final = frozenset({"id", "name", "status", "to_send", "sent"})
#: (campaign, status)
Side = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Tables:
    """Which relations are read: the schema of the mailer's tables, and our own. ``roles``: the roles of the tables as
    they are now, by oid, for a table that had another name for a moment."""

    mailer_schema: str = "public"
    own_schema: str = "sentstream"
    roles: Mapping[int, str] = field(default_factory=dict)

    def role(self, relation: Relation) -> str | None:
        """queue, campaigns, watermarks or recounts; None for a table of others. ``unknown`` is one with the columns of
        the queue or of campaigns under another name: it may be ours, renamed for a while."""
        if relation.schema == self.mailer_schema and relation.name in ("email_queue", "campaigns"):
            return "queue" if relation.name == "email_queue" else "campaigns"
        if relation.schema == self.own_schema and relation.name in ("watermarks", "recounts"):
            return relation.name
        if relation.oid in self.roles:
            return self.roles[relation.oid]
        names = {column.name for column in relation.columns}
        return "unknown" if names >= _QUEUE or names >= _CAMPAIGNS else None


def check_columns(relation: Relation, needed: tuple[str, ...]) -> None:
    """:exc:`PreconditionError` where the publication carries not all of these columns."""
    missing = [name for name in needed if relation.index(name) is None]
    if missing:
        raise PreconditionError(
            f"the publication no longer carries {', '.join(missing)} of {relation.schema}.{relation.name}.",
            "Counting stopped. Run `sentstream setup`, then start again.",
        )


def check_queue(relation: Relation) -> None:
    """:exc:`PreconditionError` where the queue's log does not tell what a row's status was."""
    check_columns(relation, ("campaign_id", "status"))
    table = f"{relation.schema}.{relation.name}"
    if relation.identity not in ("d", "n", "f", "i"):
        raise ProtocolError(f"the replica identity of {table} is {relation.identity!r}, which does not exist.")
    if relation.identity in "dn":
        name = {"d": "DEFAULT", "n": "NOTHING"}[relation.identity]
        raise PreconditionError(
            f"the replica identity of {table} is {name}: its log does not say what a row's status was.",
            "Counting stopped. Run `sentstream setup`, then start again.",
        )
    keys = {column.name for column in relation.columns if column.key}
    if relation.identity == "i" and not {"campaign_id", "status"} <= keys:
        raise PreconditionError(
            f"the replica identity index of {table} does not contain campaign_id and status.",
            "Counting stopped. Run `sentstream setup`, then start again.",
        )


def status_number(text: Any) -> int:
    """The number of a status; :exc:`UncountableError` where it is none of the five."""
    number = STATUS_BY_NAME.get(text)
    if number is None and isinstance(text, str):
        number = STATUS_BY_NAME.get(text.rstrip(" "))  # of type char(n)
    if number is None:
        raise UncountableError(
            f"a row of email_queue has status {text!r}, which is none of {', '.join(STATUS_BY_NAME)}.",
            "Nothing from its transaction on is confirmed; correct the row.",
        )
    return number


def queue_side(relation: Relation, values: list[tuple[int, bytes]]) -> Side:
    """Campaign and status of a tuple of the queue."""
    columns = relation.columns
    campaign_at, status_at = relation.index("campaign_id"), relation.index("status")
    assert campaign_at is not None
    assert status_at is not None
    if len(values) != len(columns):
        raise ProtocolError(f"a tuple of email_queue has {len(values)} columns, its relation {len(columns)}.")
    campaign = pgoutput.value(*values[campaign_at], columns[campaign_at].type_oid)
    if not isinstance(campaign, int):
        raise UncountableError(
            f"a row of email_queue has campaign_id {campaign!r}.",
            "It can't be counted for any campaign; correct the row.",
        )
    return campaign, status_number(pgoutput.value(*values[status_at], columns[status_at].type_oid))
