"""pgoutput messages as PostgreSQL writes them (protocol version 1), built by hand for tests.

A :class:`Table` knows its columns and turns rows (dicts by column name) into Relation, Insert, Update, Delete messages,
in binary or text format, with the old side that its replica identity logs. :func:`transaction` puts Begin and Commit
around. Source: PostgreSQL documentation, "Logical Replication Message Formats".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from struct import pack
from typing import Any, Final, Literal

INT8, INT4, INT2, TEXT, VARCHAR, JSONB, TIMESTAMPTZ, PG_LSN, ENUM = 20, 23, 21, 25, 1043, 3802, 1184, 3220, 16_999
EPOCH_2000: Final = 946_684_800_000_000
#: a value that the log does not carry, because the update did not touch it (TOAST)
UNCHANGED: Final = object()

Row = Mapping[str, Any]


def begin(lsn: int, time: int = EPOCH_2000, xid: int = 700) -> bytes:
    """``lsn``: of the commit record; ``time``: microseconds since 1970."""
    return pack(">cQqI", b"B", lsn, time - EPOCH_2000, xid & 0xFFFFFFFF)


def commit(lsn: int, end: int, time: int = EPOCH_2000) -> bytes:
    return pack(">cBQQq", b"C", 0, lsn, end, time - EPOCH_2000)


def origin(name: str = "elsewhere", lsn: int = 1) -> bytes:
    return pack(">cQ", b"O", lsn) + _text(name)


def type_(oid: int = ENUM, schema: str = "public", name: str = "campaign_status") -> bytes:
    return pack(">cI", b"Y", oid) + _text(schema) + _text(name)


def message(prefix: str = "somebody", content: bytes = b"hello", transactional: bool = True, lsn: int = 1) -> bytes:
    return pack(">cBQ", b"M", transactional, lsn) + _text(prefix) + pack(">I", len(content)) + content


def _text(text: str) -> bytes:
    return text.encode() + b"\0"


@dataclass(frozen=True)
class Table:
    """``columns``: (name, type oid) in the order of the log; ``keys``: the identity's columns (FULL: all)."""

    oid: int
    name: str
    columns: tuple[tuple[str, int], ...]
    keys: tuple[str, ...]
    identity: Literal["d", "n", "f", "i"] = "d"
    schema: str = "public"
    binary: bool = True

    def relation(self) -> bytes:
        head = pack(">cI", b"R", self.oid) + _text("" if self.schema == "pg_catalog" else self.schema)
        out = head + _text(self.name) + self.identity.encode() + pack(">H", len(self.columns))
        for name, oid in self.columns:
            key = self.identity == "f" or name in self.keys
            out += pack(">B", key) + _text(name) + pack(">Ii", oid, -1)
        return out

    def insert(self, row: Row) -> bytes:
        return pack(">cIc", b"I", self.oid, b"N") + self.tuple(row)

    def update(self, old: Row | None, new: Row) -> bytes:
        """As PostgreSQL logs it: with an old side only under FULL, or where a column of the identity changed."""
        out = pack(">cI", b"U", self.oid)
        if self.identity == "f":
            out += b"O" + self.tuple(old or {})
        elif old is not None and any(old[key] != new[key] for key in self.keys):
            out += b"K" + self.tuple(old, only_keys=True)
        return out + b"N" + self.tuple(new)

    def delete(self, old: Row) -> bytes:
        full = self.identity == "f"
        return pack(">cIc", b"D", self.oid, b"O" if full else b"K") + self.tuple(old, only_keys=not full)

    def tuple(self, row: Row, only_keys: bool = False) -> bytes:
        out = pack(">H", len(self.columns))
        for name, oid in self.columns:
            value = row.get(name)
            if value is UNCHANGED:
                out += b"u"
            elif value is None or (only_keys and name not in self.keys):
                out += b"n"
            else:
                raw = _binary(value, oid) if self.binary else _as_text(value, oid)
                out += (b"b" if self.binary else b"t") + pack(">I", len(raw)) + raw
        return out


def truncate(*tables: Table, options: int = 0) -> bytes:
    return pack(">cIB", b"T", len(tables), options) + b"".join(pack(">I", table.oid) for table in tables)


def _binary(value: Any, oid: int) -> bytes:
    if oid == INT8:
        return pack(">q", value)
    if oid == INT4:
        return pack(">i", value)
    if oid == INT2:
        return pack(">h", value)
    if oid == JSONB:
        return b"\x01" + json.dumps(value).encode()
    if oid == TIMESTAMPTZ:
        return pack(">q", value - EPOCH_2000)
    if oid == PG_LSN:
        return pack(">Q", value)
    return str(value).encode()


def _as_text(value: Any, oid: int) -> bytes:
    if oid == JSONB:
        return json.dumps(value).encode()
    if oid == PG_LSN:
        return f"{value >> 32:X}/{value & 0xFFFFFFFF:X}".encode()
    return str(value).encode()


#: as ``setup`` leaves them
QUEUE: Final = Table(
    16_400,
    "email_queue",
    (("id", INT8), ("campaign_id", INT4), ("status", VARCHAR)),
    ("id", "campaign_id", "status"),
    "i",
)
QUEUE_FULL: Final = replace(
    QUEUE,
    columns=(
        ("id", INT8),
        ("campaign_id", INT4),
        ("subscriber_id", INT4),
        ("status", VARCHAR),
        ("last_error", TEXT),
        ("updated_at", TIMESTAMPTZ),
    ),
    identity="f",
)
CAMPAIGNS: Final = Table(
    16_500,
    "campaigns",
    (("id", INT4), ("name", TEXT), ("status", ENUM), ("to_send", INT4), ("sent", INT4)),
    ("id",),
)
WATERMARKS: Final = Table(
    16_600, "watermarks", (("partition", INT4), ("epoch", INT8)), ("partition",), schema="sentstream"
)
RECOUNTS: Final = Table(
    16_700,
    "recounts",
    (
        ("run_id", INT8),
        ("trigger", TEXT),
        ("requested_by", TEXT),
        ("started_at", TIMESTAMPTZ),
        ("lsn", PG_LSN),
        ("snapshot", TEXT),
        ("counts", JSONB),
        ("rebase", JSONB),
        ("epoch", INT8),
        ("removed_policy", TEXT),
    ),
    ("run_id",),
    schema="sentstream",
)


def relations(*tables: Table) -> bytes:
    return b"".join(table.relation() for table in tables or (QUEUE, CAMPAIGNS, WATERMARKS, RECOUNTS))


def row(campaign: int, status: str, number: int = 1, **more: Any) -> dict[str, Any]:
    """A row of the queue."""
    return {"id": number, "campaign_id": campaign, "status": status, **more}


def campaign(number: int, status: str = "running", to_send: int = 0, sent: int = 0, name: Any = "A") -> dict[str, Any]:
    """A row of ``campaigns``."""
    return {"id": number, "name": name, "status": status, "to_send": to_send, "sent": sent}


def recount(
    run: int = 1, snapshot: str = "1:1:", counts: Mapping[int, Iterable[int]] | None = None, **more: Any
) -> bytes:
    """The INSERT of a recount."""
    values = {
        "run_id": run,
        "trigger": "manual",
        "requested_by": "test",
        "started_at": EPOCH_2000,
        "lsn": 1,
        "snapshot": snapshot,
        "counts": {str(c): list(n) for c, n in (counts or {}).items()},
        "rebase": None,
        "epoch": 1,
        "removed_policy": "keep",
        **more,
    }
    return RECOUNTS.insert(values)


def transaction(lsn: int, *messages: bytes, end: int | None = None, time: int = EPOCH_2000, xid: int = 700) -> bytes:
    """Begin, messages, Commit; the next transaction may begin at ``end``."""
    return begin(lsn, time, xid) + b"".join(messages) + commit(lsn, lsn + 40 if end is None else end, time)
