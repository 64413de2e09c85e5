"""A record of the changes topic is a batch, to the bit; whatever is no batch is poison, and says where it lies."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.kafka.codec import Decoder, encode, end_of
from stream.core.batch import Batch
from stream.core.entries import Counted, Move
from stream.core.epoch import KafkaEnd
from stream.core.errors import PoisonError
from stream.core.status import QUEUED, SENDING, SENT
from tests.kafka.batches import batches, move_batch, recount_batch

SIMPLE = move_batch(1000, 2000, Move(7, QUEUED, SENDING, 2), Move(7, SENDING, SENT, 1), Move(7, QUEUED, SENDING, 2))


def changed(path: list[Any], value: Any, batch: Batch = SIMPLE) -> bytes:
    """The record of ``batch`` with one place of its JSON changed."""
    record = orjson.loads(encode(batch))
    place = record
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return orjson.dumps(record)


@given(batches())
def test_a_batch_comes_back_as_it_was(batch: Batch) -> None:
    record = encode(batch)
    assert Decoder().decode(record, "t", 3, 0) == batch
    assert end_of(record) == KafkaEnd(batch.epoch, batch.end)


def test_equal_moves_are_one_object_for_all_records() -> None:
    decoder = Decoder()
    first, second = (decoder.decode(encode(SIMPLE), "t", 3, offset) for offset in (0, 1))
    assert first.entries[0][2] is second.entries[0][2] is first.entries[2][2]


POISON = {
    "nothing": b"",
    "not JSON": b"\xff\xfe{",
    "cut off": encode(SIMPLE)[:-7],
    "no object": b"[1,2]",
    "null": b"null",
    "5 MB of nonsense": b"x" * (5 << 20),
    "5 MB of JSON": b'"' + b"x" * (5 << 20) + b'"',
    "another version": changed(["v"], 2),
    "no version": changed(["v"], None),
    "of another partition": changed(["partition"], 4),
    "no epoch": changed(["epoch"], None),
    "an epoch as text": changed(["epoch"], "17"),
    "ends before it begins": changed(["end"], "0000000000000001.00000000"),
    "an LSN as PostgreSQL prints it": changed(["end"], "0/16B3748"),
    "a time that is none": changed(["as_of"], "yesterday"),
    "a time without zone": changed(["as_of"], "2026-11-24T09:00:00"),
    "a negative minute": changed(["minute"], -1),
    "a negative count": changed(["changes", 0, 3], -2),
    "nothing moved": changed(["changes", 0, 3], 0),
    "half a row": changed(["changes", 0, 3], 1.5),
    "true rows": changed(["changes", 0, 3], True),
    "an unknown status": changed(["changes", 0, 1], "bounced"),
    "a status that is a list": changed(["changes", 0, 1], []),
    "from removed": changed(["changes", 0, 1], "removed"),
    "to new": changed(["changes", 0, 2], "new"),
    "a move to where it was": changed(["changes", 0, 2], "queued"),
    "a campaign as text": changed(["changes", 0, 0], "7"),
    "a campaign that is true": changed(["changes", 0, 0], True),
    "a campaign too large": changed(["changes", 0, 0], 1 << 40),
    "too short a move": changed(["changes", 0], [7, "queued", "sent"]),
    "an unknown kind": changed(["changes", 0], {"type": "explosion"}),
    "entries that are no list": changed(["entries"], {}),
    "an entry too short": changed(["entries", 0], [1000, 0]),
    "an entry as text": changed(["entries", 0], ["1000", 0, 0]),
    "an entry that points nowhere": changed(["entries", 0, 2], 17),
    "an entry that points backwards": changed(["entries", 0, 2], -1),
    "entries out of order": changed(["entries", 0, 0], 1002),
    "an entry before the batch": changed(["entries", 0, 0], 1),
    "an entry behind the batch": changed(["entries", 2, 0], 2000),
    "negative live counts": encode(recount_batch(5, 9, {7: Counted((1, 2, 3, 4, 5), 3)})).replace(b"[1,2", b"[-1,2"),
    "four live counts": encode(recount_batch(5, 9, {7: Counted((1, 2, 3, 4, 5), 3)})).replace(b"[1,2,", b"["),
    "a recount of no campaign": encode(recount_batch(5, 9, {7: Counted((1, 2, 3, 4, 5), 3)})).replace(b'"7"', b'"x"'),
}


@pytest.mark.parametrize("record", POISON.values(), ids=POISON.keys())
def test_what_is_no_batch_is_poison_and_says_where(record: bytes) -> None:
    with pytest.raises(PoisonError) as caught:
        Decoder().decode(record, "sentstream.changes", 3, 4711)
    said = str(caught.value)
    assert "sentstream.changes, partition 3, offset 4711" in said
    assert len(said) < 500


def test_poison_is_found_also_where_the_good_move_is_known() -> None:
    decoder = Decoder()
    one = move_batch(1000, 2000, Move(1, QUEUED, SENT, 1))
    decoder.decode(encode(one), "t", 3, 0)
    with pytest.raises(PoisonError):  # True == 1, and hashes alike
        decoder.decode(changed(["changes", 0, 3], True, one), "t", 3, 1)


@given(batches(), st.data())
def test_a_damaged_record_is_poison_or_a_batch_but_nothing_else(batch: Batch, data: st.DataObject) -> None:
    record = bytearray(encode(batch))
    for _ in range(data.draw(st.integers(1, 3))):
        record[data.draw(st.integers(0, len(record) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = Decoder().decode(bytes(record), "t", 3, 0)
    except PoisonError:
        return
    for _, _, entry in found.entries:
        if isinstance(entry, Move):
            assert entry.n > 0
