"""Campaigns that the topic still shows and that are gone: found, taken off, and never one that lives."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stream.core.campaign import MailerCampaign
from stream.core.flushing import ProgressRow
from stream.core.partition import Loaded, Partition
from stream.core.partitioner import partition_of
from stream.core.position import Position
from stream.core.tombstones import Due, campaigns_of, fold


def test_what_lives_in_a_topic_is_every_key_whose_newest_value_is_no_tombstone() -> None:
    living: set[bytes] = set()
    fold(living, [(b"1", b"{}"), (b"2", b"{}"), (b"watermark:0", b"{}"), (None, b"{}"), (b"1", None), (b"3", None)])
    assert living == {b"2"}
    fold(living, [(b"2", None), (b"1", b"{}"), (b"2", b"{}"), (b"2", None)])
    assert living == {b"1"}


def test_keys_that_are_no_campaign_of_the_partition_are_left_alone() -> None:
    other = next(number for number in range(1, 100) if partition_of(number, 4) != partition_of(7, 4))
    keys = [b"7", b"%d" % other, b"007", b"-7", b"seven", b"", b"\xb2", b"7" * 40, b"watermark:1"]
    assert campaigns_of(keys, partition_of(7, 4), 4) == {7}


def test_a_suspect_that_the_state_lacks_gets_a_tombstone_and_only_once() -> None:
    due = Due()
    due.suspect({7, 8})
    assert due
    assert due.take({7}.__contains__) == ({b"8": None}, [8])
    assert not due
    assert due.take({7}.__contains__) == ({}, [])


def test_while_nobody_can_tell_who_lives_suspects_wait_and_rows_do_not() -> None:
    due = Due()
    due.suspect({7, 8})
    due.put(b"7", b"row")
    assert due.take(None) == ({b"7": b"row"}, [])
    assert due.take({7}.__contains__) == ({b"8": None}, [8])


def test_a_campaign_that_came_while_the_topic_was_read_keeps_its_row() -> None:
    due = Due()
    due.put(b"8", b"row")
    due.suspect({8})
    assert due.take({8}.__contains__) == ({b"8": b"row"}, [])


def test_a_row_replaces_a_tombstone_that_could_not_be_sent() -> None:
    due = Due()
    due.suspect({8})
    values, _ = due.take(set[int]().__contains__)
    due.put(b"8", b"row")
    due.again(values)
    assert due.take({8}.__contains__) == ({b"8": b"row"}, [])


def test_a_row_of_a_life_that_is_over_does_not_come_behind_the_tombstone() -> None:
    due = Due()
    due.put(b"8", b"old row")
    values, _ = due.take({8}.__contains__)
    due.suspect({8})
    due.again(values)
    assert due.take(set[int]().__contains__) == ({b"8": None}, [8])


@given(
    st.lists(st.sampled_from(["come", "go", "flush", "read", "round", "failed round", "unbased"]), max_size=40),
    st.booleans(),
)
def test_what_the_topic_shows_in_the_end_is_what_the_state_has(steps: list[str], owed: bool) -> None:
    """One campaign comes, goes, is flushed and published in any order, the topic is read at any time; ``owed``: a
    worker before died before it sent the tombstone."""
    topic: list[bytes | None] = [b"row"] if owed else []
    has, changed, due = False, False, Due()
    based = True

    def flush() -> None:
        nonlocal changed
        if changed:
            due.put(b"8", b"row" if has else None)
        changed = False

    def round_(*, fails: bool = False) -> None:
        values, _ = due.take((lambda _: has) if based else None)
        if fails:
            due.again(values)
        else:
            topic.extend(values.values())

    for step in steps:
        based = step != "unbased"
        if step in ("come", "go"):
            changed = changed or has != (step == "come")
            has = step == "come"
        elif step == "flush":
            flush()
        elif step == "read" and topic and topic[-1] is not None:
            due.suspect({8})
        elif step.endswith("round"):
            round_(fails=step != "round")
    based = True
    if owed and topic[-1] is not None:
        due.suspect({8})
    flush()
    round_()
    assert (topic[-1] if topic else None) == (b"row" if has else None)


def test_the_state_has_what_only_a_raise_has_met() -> None:
    partition = Partition(0)
    rows = (ProgressRow(1, (0, 0, 3, 0, 0), 0, 3), ProgressRow(2, (0, 0, 0, 0, 0), 0, 0))
    campaigns = {number: MailerCampaign(f"campaign {number}", "running", 0, 0) for number in (1, 2, 3)}
    partition.load(Loaded(1, Position(5), False, 0, rows, campaigns))
    assert [partition.has(number) for number in (1, 2, 3)] == [True, True, False]
