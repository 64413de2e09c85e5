"""Who holds which partition, and how long they stand still when somebody dies; a broker that goes away."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import pytest

from stream.demo.private_kafka import PrivateKafka
from tests.fix_postgres import Database
from tests.kafka.shape import Role, Shape, load
from tests.kafka.test_shape import proved, running
from tests.waiting import eventually

log = logging.getLogger(__name__)

pytestmark = pytest.mark.timeout(300)


def flushed_at(shape: Shape) -> dict[int, float]:
    """When each partition was last flushed, in seconds of the server's clock."""
    return dict(shape.db.execute("SELECT partition, extract(epoch FROM flushed_at)::float8 FROM sentstream.watermarks"))


def partitions_of(shape: Shape, name: str) -> set[int]:
    """What the static member ``name`` holds, by the broker."""
    admin = shape.cluster.admin()
    try:
        group = admin.describe_groups([shape.names.group])[shape.names.group]
        return {
            partition
            for member in group["members"]
            if member["group_instance_id"] == f"{shape.db.name}-{name}.{shape.settings.kafka_partitions}"
            for it in (member["member_assignment"] or {}).get("assigned_partitions", ())
            if it["topic"] == shape.names.changes
            for partition in it["partitions"]
        }
    finally:
        admin.close()


def members_named(shape: Shape, name: str) -> int:
    """How many members of the group have this static name."""
    admin = shape.cluster.admin()
    try:
        members = admin.describe_groups([shape.names.group])[shape.names.group]["members"]
        full = f"{shape.db.name}-{name}.{shape.settings.kafka_partitions}"
        return sum(member["group_instance_id"] == full for member in members)
    finally:
        admin.close()


def longest_pause(shape: Shape, partitions: set[int], until: Callable[[], bool], timeout: float = 60) -> float:
    """The longest time that one of these partitions was not flushed, watched until ``until`` says so."""
    longest = 0.0
    last, seen = flushed_at(shape), {partition: time.monotonic() for partition in partitions}
    deadline = time.monotonic() + timeout
    while not until():
        assert time.monotonic() < deadline
        now, marks = time.monotonic(), flushed_at(shape)
        for partition in partitions:
            longest = max(longest, now - seen[partition])
            if marks[partition] != last[partition]:
                seen[partition], last[partition] = now, marks[partition]
        time.sleep(0.05)
    return longest


def test_partitions_of_a_killed_worker_move_within_fifteen_seconds(shape: Shape) -> None:
    running(shape, workers=2)
    _, first, _ = shape.roles
    eventually(lambda: len(partitions_of(shape, "w0")) == 2 and len(partitions_of(shape, "w1")) == 2, 40, every=0.5)
    lost = partitions_of(shape, "w0")
    with load(shape.db, 8):
        before = flushed_at(shape)
        first.kill()
        began = time.monotonic()
        eventually(
            lambda: all(
                at > before[partition] + 2.5 for partition, at in flushed_at(shape).items() if partition in lost
            ),
            30,
        )
        assert time.monotonic() - began < 15 + 2.5
    proved(shape)


def test_partitions_of_a_worker_that_leaves_have_an_owner_long_before_its_session_ends(shape: Shape) -> None:
    running(shape, workers=2)
    _, first, second = shape.roles
    eventually(lambda: len(partitions_of(shape, "w0")) == 2 and len(partitions_of(shape, "w1")) == 2, 40, every=0.5)
    with load(shape.db, 8):
        began = time.monotonic()
        assert first.stop() == 0
        eventually(lambda: len(partitions_of(shape, "w1")) == 4, 30, every=0.05)
        log.info("stopped and taken over after %.1f s", time.monotonic() - began)
    assert members_named(shape, "w0") == 0
    assert second.process.poll() is None
    proved(shape)


def test_of_two_workers_with_one_name_the_younger_stops_and_says_so(shape: Shape) -> None:
    running(shape)
    elder = shape.roles[1]
    with load(shape.db, 8) as done:
        younger = shape.start("work", name="w0")
        eventually(lambda: younger.process.poll() is not None, 40)
        assert younger.process.poll() == 2
        assert "same KAFKA_INSTANCE" in younger.said
        seen = done()
        eventually(lambda: done() > seen + 300, 30)
    assert elder.process.poll() is None
    proved(shape)


@pytest.mark.slow
def test_a_worker_restarted_under_its_name_goes_on_and_the_others_are_untouched(shape: Shape) -> None:
    """Within five seconds of its being there again; on a machine so busy that Python itself takes longer than the
    session time-out to start, the member is missed, and it is tried again."""
    running(shape, workers=2)
    _, first, second = shape.roles
    in_time = False
    while not in_time:
        eventually(lambda: len(partitions_of(shape, "w0")) == 2 and len(partitions_of(shape, "w1")) == 2, 60, every=0.5)
        in_time = restarted_in_time(shape, first, second)
    proved(shape)


def restarted_in_time(shape: Shape, first: Role, second: Role) -> bool:
    """Kill and restart the first worker; False where its process took too long to start."""
    mine, others = partitions_of(shape, "w0"), partitions_of(shape, "w1")
    assigned, joined = second.said.count("partitions assigned"), first.said.count("joins the group")
    with load(shape.db, 8):
        before = flushed_at(shape)
        first.kill()
        killed = time.monotonic()
        first.again()
        eventually(lambda: first.said.count("joins the group") > joined, 60)
        began = time.monotonic()
        if began - killed > 5:
            return False

        def back() -> bool:
            now = flushed_at(shape)
            return all(now[partition] > before[partition] + (began - killed) for partition in mine)

        longest = longest_pause(shape, others, back)
        assert time.monotonic() - began < 5 + 2.5  # a partition in which nothing happens is flushed every two seconds
    assert partitions_of(shape, "w0") == mine
    assert second.said.count("partitions assigned") == assigned
    assert longest < 5
    return True


@pytest.mark.slow
def test_a_broker_away_is_waited_for_and_nothing_is_confirmed(
    make_shape: Callable[..., Shape], mailer_db: Database, private_kafka: PrivateKafka
) -> None:
    """For a minute: the reader's memory stays, the slot holds the log, all goes on."""
    shape = running(make_shape(mailer_db, bootstrap=private_kafka.bootstrap))
    kafka, (reader, _) = private_kafka, shape.roles
    confirmed = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %s"
    with load(shape.db, 8, rate=2000) as done:
        eventually(lambda: done() > 300, 30)
        kafka.kill()
        time.sleep(1.5)  # what was acknowledged before is confirmed by now
        stands, memory = shape.db.value(confirmed, shape.db.slot), reader.memory
        until = time.monotonic() + 60
        while time.monotonic() < until:
            assert shape.db.value(confirmed, shape.db.slot) == stands
            assert reader.memory - memory < 64 << 20
            time.sleep(0.5)
        kafka.start()
        seen = done()
        eventually(lambda: done() > seen + 500, 60)
    proved(shape, 120)


@pytest.mark.slow
def test_a_broker_that_is_killed_under_load(
    make_shape: Callable[..., Shape], mailer_db: Database, private_kafka: PrivateKafka
) -> None:
    shape = running(make_shape(mailer_db, bootstrap=private_kafka.bootstrap))
    with load(shape.db, 8) as done:
        for _ in range(2):
            seen = done()
            eventually(lambda: done() > seen + 300, 30)  # noqa: B023 - asked at once
            kafka = private_kafka
            kafka.kill()
            kafka.start()
    proved(shape, 120)
