"""When positions can no longer be compared: a new epoch, and its number."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stream.core.epoch import KafkaEnd, Server, Watermark, next_epoch, reason_for_new_epoch
from stream.core.position import Position

MARKS = tuple(Watermark(n, 7, Position(1000 + n), True, "cluster", 1, 1) for n in range(3))
SERVER = Server("cluster", 1, 5000)


def test_nothing_changed_is_the_same_epoch() -> None:
    ends = (KafkaEnd(7, Position(4999)), KafkaEnd(6, Position(10**9)))
    assert reason_for_new_epoch(MARKS, SERVER, 3, 1, ends) is None
    assert reason_for_new_epoch(tuple(reversed(MARKS)), SERVER, 3, 1) is None


def test_the_first_start_begins_one() -> None:
    assert reason_for_new_epoch((), SERVER, 3, 1) == "first start"


@pytest.mark.parametrize(
    ("server", "match"),
    [
        (replace(SERVER, system_identifier="other"), "system"),
        (replace(SERVER, timeline=2), "timeline"),
        (replace(SERVER, wal_end=1001), "beyond the server's WAL"),
    ],
)
def test_a_new_epoch_begins_where_the_server_is_another(server: Server, match: str) -> None:
    assert match in (reason_for_new_epoch(MARKS, server, 3, 1) or "")


def test_a_timeline_that_forked_behind_all_that_is_known_continues_its_history() -> None:
    promoted = replace(SERVER, timeline=3, forks={1: 1002, 2: 4000})
    assert reason_for_new_epoch(MARKS, promoted, 3, 1) is None
    assert reason_for_new_epoch(MARKS, promoted, 3, 1, (KafkaEnd(7, Position(1002)),)) is None
    assert "timeline" in (reason_for_new_epoch(MARKS, promoted, 3, 1, (KafkaEnd(7, Position(1003)),)) or "")
    before = replace(promoted, forks={1: 1001, 2: 4000})
    assert "timeline" in (reason_for_new_epoch(MARKS, before, 3, 1) or "")


def test_a_new_epoch_begins_where_kafka_lies_beyond_the_servers_wal() -> None:
    reason = reason_for_new_epoch(MARKS, SERVER, 3, 1, (KafkaEnd(7, Position(5001)),))
    assert reason == "position 0/1389 lies beyond the server's WAL, which ends at 0/1388"


def test_a_new_epoch_begins_where_kafka_holds_a_newer_one() -> None:
    assert "changes topic" in (reason_for_new_epoch(MARKS, SERVER, 3, 1, (KafkaEnd(8, Position(1)),)) or "")


@pytest.mark.parametrize("partitions", [1, 2, 4])
def test_a_new_epoch_begins_with_another_number_of_partitions(partitions: int) -> None:
    assert "number of partitions" in (reason_for_new_epoch(MARKS, SERVER, partitions, 1) or "")


def test_a_new_epoch_begins_with_a_release_that_folds_differently() -> None:
    assert "folds" in (reason_for_new_epoch(MARKS, SERVER, 3, 2) or "")


def test_a_new_epoch_begins_where_watermarks_are_of_several() -> None:
    torn = (*MARKS[:2], replace(MARKS[2], epoch=8))
    assert "several epochs" in (reason_for_new_epoch(torn, SERVER, 3, 1) or "")


def test_its_number_is_above_every_known_one_and_not_below_the_time() -> None:
    assert next_epoch(MARKS, 3) == 8
    assert next_epoch(MARKS, 3, (KafkaEnd(12, Position(1)),)) == 13
    assert next_epoch(MARKS, 1_795_513_728_081) == 1_795_513_728_081
    assert next_epoch((), 5) == 5
