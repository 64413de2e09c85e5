"""Decoding pgoutput messages, without I/O.

The messages delimit themselves, so a block of many is as good as one; ``fold`` walks the block and comes here for what
is rare: relations, and tuples whose bytes it has not met before. Columns are found by name, through the Relation
message that precedes a table's first change, never by a fixed order.

Source: PostgreSQL documentation, "Logical Replication Message Formats" (protocol version 1).
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from struct import Struct
from typing import Any, Final

import orjson

from .errors import ProtocolError

BEGIN: Final = Struct(">QqI")  # final LSN, commit time, xid
COMMIT: Final = Struct(">BQQq")  # flags, commit LSN, end LSN, commit time
U16: Final = Struct(">H")
I32: Final = Struct(">i")
U32: Final = Struct(">I")
#: microseconds from 1970 to PostgreSQL's own epoch, 2000-01-01
EPOCH_2000: Final = 946_684_800_000_000

_BOOL, _INT8, _INT2, _INT4, _OID, _JSON, _LSN, _TIMESTAMPTZ, _JSONB = 16, 20, 21, 23, 26, 114, 3220, 1184, 3802


class _Unchanged:
    def __repr__(self) -> str:
        return "UNCHANGED"


class _Unreadable:
    def __repr__(self) -> str:
        return "UNREADABLE"


#: a TOASTed value that the update did not touch: the log does not carry it
UNCHANGED: Final = _Unchanged()
#: a JSON value that can't be parsed
UNREADABLE: Final = _Unreadable()


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    type_oid: int
    key: bool


@dataclass(frozen=True, slots=True)
class Relation:
    """A table as the log describes it. ``identity``: d(efault), n(othing), f(ull) or i(ndex)."""

    oid: int
    schema: str
    name: str
    identity: str
    columns: tuple[Column, ...]

    def index(self, column: str) -> int | None:
        for number, candidate in enumerate(self.columns):
            if candidate.name == column:
                return number
        return None


def _string(data: bytes, pos: int) -> tuple[str, int]:
    end = data.index(b"\0", pos)
    return data[pos:end].decode(errors="replace"), end + 1


def read_relation(data: bytes, pos: int) -> tuple[Relation, int]:
    """The Relation message whose body begins at ``pos`` (after the tag), and where it ends."""
    (oid,) = U32.unpack_from(data, pos)
    schema, pos = _string(data, pos + 4)
    name, pos = _string(data, pos)
    identity = chr(data[pos])
    (count,) = U16.unpack_from(data, pos + 1)
    pos += 3
    columns = []
    for _ in range(count):
        key = bool(data[pos] & 1)
        column, pos = _string(data, pos + 1)
        (type_oid,) = U32.unpack_from(data, pos)
        columns.append(Column(column, type_oid, key))
        pos += 8
    return Relation(oid, schema or "pg_catalog", name, identity, tuple(columns)), pos


def skip_type(data: bytes, pos: int) -> int:
    """The end of a Type message whose body begins at ``pos``."""
    _, pos = _string(data, pos + 4)
    _, pos = _string(data, pos)
    return pos


def skip_origin(data: bytes, pos: int) -> int:
    """The end of an Origin message whose body begins at ``pos``."""
    _, pos = _string(data, pos + 8)
    return pos


def skip_message(data: bytes, pos: int) -> int:
    """The end of a logical decoding message whose body begins at ``pos``: flags, LSN, prefix, content."""
    _, pos = _string(data, pos + 9)
    (length,) = U32.unpack_from(data, pos)
    return pos + 4 + int(length)


def read_tuple(data: bytes, pos: int) -> tuple[list[tuple[int, bytes]], int]:
    """TupleData at ``pos``: for each column its kind (n, u, t or b as a number) and its bytes; and where it ends.

    Raises :exc:`ProtocolError` for a kind that the protocol does not have or a value that runs over the end.
    """
    (count,) = U16.unpack_from(data, pos)
    pos += 2
    values: list[tuple[int, bytes]] = []
    for _ in range(count):
        kind = data[pos]
        if kind == 0x62 or kind == 0x74:  # b(inary), t(ext)
            (length,) = U32.unpack_from(data, pos + 1)
            pos += 5
            end = pos + length
            if end > len(data):
                raise ProtocolError(f"a column of {length} bytes runs over the end of its message.")
            values.append((kind, data[pos:end]))
            pos = end
        elif kind == 0x6E or kind == 0x75:  # n(ull), u(nchanged)
            values.append((kind, b""))
            pos += 1
        else:
            raise ProtocolError(f"unknown kind {kind:#x} of a column.")
    return values, pos


def value(kind: int, raw: bytes, type_oid: int) -> Any:  # noqa: C901 - a table of types
    """A column as a Python value: int, str, bool, parsed JSON, an LSN or a time as int; None; or ``UNCHANGED``.

    Enums and everything else arrive as text in either format.
    """
    if kind == 0x6E:
        return None
    if kind == 0x75:
        return UNCHANGED
    if kind == 0x62:
        if type_oid in (_INT2, _INT4, _INT8):
            return int.from_bytes(raw, "big", signed=True)
        if type_oid in (_OID, _LSN):
            return int.from_bytes(raw, "big")
        if type_oid == _TIMESTAMPTZ:
            return int.from_bytes(raw, "big", signed=True) + EPOCH_2000
        if type_oid == _BOOL:
            return raw != b"\0"
        if type_oid == _JSONB:
            if raw[:1] != b"\x01":
                raise ProtocolError(f"unknown version {raw[:1].hex()} of a jsonb value.")
            return _json(raw[1:])
        return _json(raw) if type_oid == _JSON else raw.decode(errors="replace")
    # A database that is not in UTF-8 may hold bytes that are none: a name is then shown damaged, and nothing stops.
    text = raw.decode(errors="replace")
    if type_oid in (_INT2, _INT4, _INT8, _OID):
        return int(text)
    if type_oid in (_JSON, _JSONB):
        return _json(raw)
    if type_oid == _BOOL:
        return text == "t"
    if type_oid == _LSN:
        high, low = text.split("/")
        return int(high, 16) << 32 | int(low, 16)
    return text


def _json(raw: bytes) -> Any:
    """Parsed JSON; ``UNREADABLE`` for what PostgreSQL takes and the parser does not (numbers beyond any bound)."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return UNREADABLE


def record(relation: Relation, values: list[tuple[int, bytes]], names: Container[str] | None = None) -> dict[str, Any]:
    """A tuple as ``{column name: value}``; of the columns ``names`` alone, where the others may be of any type."""
    if len(values) != len(relation.columns):
        raise ProtocolError(
            f"a tuple of {relation.schema}.{relation.name} has {len(values)} columns, "
            f"its relation {len(relation.columns)}."
        )
    return {
        column.name: value(kind, raw, column.type_oid)
        for column, (kind, raw) in zip(relation.columns, values, strict=True)
        if names is None or column.name in names
    }
