"""A record of the changes topic is a batch, to the bit; whatever is no batch is poison, and says where it lies."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.kafka.codec import Decoder, encode, encode_within, end_of
from stream.core.batch import Batch
from stream.core.entries import Counted, Move
from stream.core.epoch import KafkaEnd
from stream.core.errors import PoisonError
from stream.core.status import QUEUED, SENDING, SENT
from tests.kafka.batches import batches, move_batch, recount_batch

SIMPLE = move_batch(1000, 2000, Move(7, QUEUED, SENDING, 2), Move(7, SENDING, SENT, 1), Move(7, QUEUED, SENDING, 2))

CAMPAIGN = {"type": "campaign", "campaign_id": 7, "name": "x", "status": "running", "to_send": 1, "sent": 1}
RECOUNT = recount_batch(5, 9, {7: Counted((1, 2, 3, 4, 5), 3)})


def changed(path: list[Any], value: Any, batch: Batch = SIMPLE) -> bytes:
    """The record of ``batch`` with one place of its JSON changed."""
    record = orjson.loads(encode(batch))
    place = record
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return json.dumps(record).encode()  # also numbers that orjson refuses to write


@given(batches())
def test_a_batch_comes_back_as_it_was(batch: Batch) -> None:
    record = encode(batch)
    assert Decoder().decode(record, "t", 3, 0) == batch
    assert end_of(record) == KafkaEnd(batch.epoch, batch.end)


@given(batches(), st.integers(200, 5000))
def test_a_batch_is_cut_into_records_within_a_limit_that_tile_it(batch: Batch, limit: int) -> None:
    parts = [Decoder().decode(record, "t", 3, 0) for _, record in encode_within(batch, limit)]
    assert [end for end, _ in encode_within(batch, limit)] == [part.end for part in parts]
    assert (parts[0].begin, parts[-1].end, parts[-1].as_of) == (batch.begin, batch.end, batch.as_of)
    assert all(before.end == after.begin for before, after in pairwise(parts))
    assert tuple(entry for part in parts for entry in part.entries) == batch.entries
    for (_, record), part in zip(encode_within(batch, limit), parts, strict=True):
        assert len(record) <= limit or len(part.entries) < 2
    assert all(part.as_of == 0 for part in parts[:-1])


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
    "a campaign too large": changed(["changes", 0, 0], 1 << 63),
    "an epoch beyond bigint": changed(["epoch"], 1 << 63),
    "a minute beyond time": changed(["minute"], 1 << 40),
    "an ordinal beyond bigint": changed(["end"], "00000000000007D0.8000000000000000"),
    "more rows than a transaction can hold": changed(["changes", 0, 3], 1 << 60),
    "a counter beyond bigint": changed(["changes", 0], CAMPAIGN | {"sent": 1 << 63}),
    "a plan beyond bigint": changed(["changes", 0], CAMPAIGN | {"to_send": -(1 << 64)}),
    "a name that PostgreSQL can't hold": changed(["changes", 0], CAMPAIGN | {"name": "a\0b"}),
    "a time before all": changed(["as_of"], "0001-01-01T00:00:00Z"),
    "a run that is none": changed(["changes", 0, "run_id"], 0, RECOUNT),
    "a run beyond bigint": changed(["changes", 0, "run_id"], 1 << 63, RECOUNT),
    "a count beyond bigint": changed(["changes", 0, "counts", "7", 2], 1 << 63, RECOUNT),
    "a shown counter beyond bigint": changed(["changes", 0, "counts", "7", 5], 1 << 63, RECOUNT),
    "a recount of a campaign beyond bigint": changed(["changes", 0, "counts"], {"9" * 40: [0] * 6}, RECOUNT),
    "a rebase of a campaign beyond bigint": changed(["changes", 0, "rebase"], [1 << 63], RECOUNT),
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
    "negative live counts": encode(RECOUNT).replace(b"[1,2", b"[-1,2"),
    "four live counts": encode(RECOUNT).replace(b"[1,2,", b"["),
    "a recount of no campaign": encode(RECOUNT).replace(b'"7"', b'"x"'),
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
