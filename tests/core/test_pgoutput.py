"""Decoding pgoutput: what the protocol can say arrives as it was, and what it can't say is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.core import pgoutput
from stream.core.errors import ProtocolError
from stream.core.pgoutput import UNCHANGED, Column, Relation
from tests.core import wal

ALL = wal.Table(
    9,
    "t",
    (
        ("i2", 21),
        ("i4", wal.INT4),
        ("i8", wal.INT8),
        ("oid", 26),
        ("text", wal.TEXT),
        ("json", wal.JSONB),
        ("at", wal.TIMESTAMPTZ),
        ("lsn", wal.PG_LSN),
        ("mood", wal.ENUM),
    ),
    ("i4",),
)


def learned(table: wal.Table) -> Relation:
    data = b"head" + table.relation() + b"tail"
    relation, end = pgoutput.read_relation(data, 5)
    assert data[end:] == b"tail"
    return relation


def test_a_relation_by_name() -> None:
    relation = learned(wal.QUEUE)
    assert relation == Relation(
        16_400,
        "public",
        "email_queue",
        "i",
        (Column("id", 20, True), Column("campaign_id", 23, True), Column("status", 1043, True)),
    )
    assert relation.index("status") == 2
    assert relation.index("nothing") is None


def test_an_empty_schema_name_is_pg_catalog() -> None:
    assert learned(replace(wal.QUEUE, schema="pg_catalog")).schema == "pg_catalog"


def test_names_may_hold_any_text() -> None:
    assert learned(replace(wal.QUEUE, name="Käse ✉")).name == "Käse ✉"


def record(table: wal.Table, row: dict[str, Any]) -> dict[str, Any]:
    data = table.tuple(row) + b"tail"
    values, end = pgoutput.read_tuple(data, 0)
    assert data[end:] == b"tail"
    return pgoutput.record(learned(table), values)


@given(
    st.integers(-(2**31), 2**31 - 1),
    st.integers(-(2**63), 2**63 - 1),
    st.text().filter(lambda text: "\0" not in text),
    st.dictionaries(st.text(), st.integers(-(2**53), 2**53)),
    st.integers(0, 2**64 - 1),
)
def test_values_come_back_as_they_were_in_both_formats(i4: int, i8: int, text: str, json: Any, lsn: int) -> None:
    row = {"i4": i4, "i8": i8, "text": text, "json": json, "lsn": lsn, "mood": "running", "at": None}
    for binary in (True, False):
        found = record(replace(ALL, binary=binary), row)
        assert found == {"i2": None, "oid": None, **row}


def test_a_time_in_binary_is_microseconds_since_1970() -> None:
    assert record(ALL, {"at": 1_795_513_728_081_000})["at"] == 1_795_513_728_081_000


def test_booleans_in_both_formats() -> None:
    assert [pgoutput.value(0x62, raw, 16) for raw in (b"\0", b"\1")] == [False, True]
    assert [pgoutput.value(0x74, raw, 16) for raw in (b"f", b"t")] == [False, True]


def test_a_value_that_the_update_did_not_touch_is_no_value() -> None:
    assert record(ALL, {"text": wal.UNCHANGED})["text"] is UNCHANGED
    assert repr(UNCHANGED) == "UNCHANGED"


def test_an_unknown_version_of_jsonb_is_refused() -> None:
    with pytest.raises(ProtocolError, match="jsonb"):
        pgoutput.value(0x62, b"\x02{}", wal.JSONB)


def test_a_tuple_of_another_width_than_its_relation_is_refused() -> None:
    values, _ = pgoutput.read_tuple(replace(ALL, columns=ALL.columns[:-1]).tuple({}), 0)
    with pytest.raises(ProtocolError, match="8 columns, its relation 9"):
        pgoutput.record(learned(ALL), values)


def test_a_value_that_runs_over_the_end_is_refused() -> None:
    data = wal.QUEUE.tuple(wal.row(1, "queued"))
    with pytest.raises(ProtocolError, match="runs over"):
        pgoutput.read_tuple(data[:-1], 0)


def test_an_unknown_kind_of_column_is_refused() -> None:
    with pytest.raises(ProtocolError, match="kind 0x78"):
        pgoutput.read_tuple(b"\0\1x", 0)


@pytest.mark.parametrize(
    ("message", "skip"),
    [
        (wal.type_(), pgoutput.skip_type),
        (wal.origin("somewhere"), pgoutput.skip_origin),
        (wal.message("p", b"content\0with zero"), pgoutput.skip_message),
    ],
)
def test_what_does_not_concern_us_is_skipped_whole(message: bytes, skip: Any) -> None:
    data = message + b"tail"
    assert data[skip(data, 1) :] == b"tail"
