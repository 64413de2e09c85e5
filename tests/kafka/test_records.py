"""What is in the topics: poison, lost records, topics made anew, and what a consumer of ours can do with them."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from jsonschema import Draft202012Validator
from kafka import TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType

from connectors.kafka.codec import encode, end_of
from connectors.kafka.schemas import TOPICS, schema
from connectors.kafka.topics import create, plan, resolved
from stream.core.entries import Move
from stream.core.position import Position
from stream.core.status import NEW, SENT
from tests.kafka.batches import move_batch
from tests.kafka.shape import Shape, load
from tests.kafka.test_shape import proved, running
from tests.postgres.running import add_rows, truth
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(240)


def rebuilt(records: list[Any], run_id: int) -> dict[int, list[int]]:
    """Every live count from the topic of changes alone, starting at a recount, as docs/topics.md has it."""
    names = ("queued", "sending", "sent", "failed", "cancelled")
    counts: dict[int, list[int]] = {}
    begun: set[int] = set()
    for record in records:
        batch = orjson.loads(record.value)
        for _lsn, _ordinal, number in batch["entries"]:
            change = batch["changes"][number]
            if isinstance(change, dict):
                if change["type"] == "recount" and change["run_id"] == run_id:
                    begun.add(record.partition)
                    counts |= {int(campaign): row[:5] for campaign, row in change["counts"].items()}
                elif record.partition in begun and change["type"] == "deleted":
                    counts.pop(change["campaign_id"], None)
                elif record.partition in begun and change["type"] == "truncate":
                    for campaign in [it for it in counts if it % 1 == 0]:
                        counts[campaign] = [0] * 5
            elif record.partition in begun:
                campaign, before, after, n = change
                row = counts.setdefault(campaign, [0] * 5)
                if before in names:
                    row[names.index(before)] -= n
                if after in names:
                    row[names.index(after)] += n
    return counts


def test_all_records_keep_to_their_schemas_and_the_counts_can_be_rebuilt_from_any_recount(shape: Shape) -> None:
    running(shape)
    runs = []
    with load(shape.db, 8) as done:
        for _ in range(3):
            seen = done()
            eventually(lambda: done() > seen + 200, 30)  # noqa: B023 - asked at once
            runs.append(shape.recount().run_id)
    shape.db.execute("DELETE FROM campaigns WHERE id = 8")
    proved(shape)
    changes = shape.records(shape.names.changes)
    for run_id in runs:
        found = {campaign: tuple(row) for campaign, row in rebuilt(changes, run_id).items() if any(row)}
        assert found == truth(shape.db)
    for topic in TOPICS:
        validator = Draft202012Validator(schema(topic))
        for record in shape.records(f"{shape.names.prefix}.{topic}"):
            if record.value is not None:
                validator.validate(orjson.loads(record.value))


def test_progress_holds_the_newest_counts_and_a_tombstone_of_what_is_gone(shape: Shape) -> None:
    running(shape)
    shape.db.execute("UPDATE email_queue SET status = 'sent' WHERE id % 3 = 0")
    shape.db.execute("DELETE FROM campaigns WHERE id = 8")
    shape.until_right()

    def newest() -> dict[bytes, Any]:
        found: dict[bytes, Any] = {}
        for record in shape.records(shape.names.progress):
            found[record.key] = None if record.value is None else orjson.loads(record.value)
            if not record.key.startswith(b"watermark"):
                assert shape.partition_of(int(record.key)) == record.partition
        return found

    def right() -> bool:
        rows = newest()
        for campaign, counts in truth(shape.db).items():
            row = rows[b"%d" % campaign]
            names = ("queue_queued", "queue_sending", "queue_sent", "queue_failed", "queue_cancelled")
            assert tuple(row[name] for name in names) == counts
            assert (row["campaign_id"], row["name"]) == (campaign, f"campaign {campaign}")
        assert rows[b"8"] is None
        for partition in range(shape.settings.kafka_partitions):
            mark = rows[b"watermark:%d" % partition]
            assert mark["based"]
            assert mark["as_of"] > "2020"
        return True

    eventually(right, 20, every=0.3)
    verdicts = [orjson.loads(record.value) for record in shape.records(shape.names.verdicts)]
    assert {it["verdict"] for it in verdicts} >= {"baseline"}


def test_one_statement_of_many_long_names_is_several_records(shape: Shape) -> None:
    """A batch is bounded in bytes, not in entries alone."""
    running(shape)
    reader = shape.roles[0]
    shape.db.execute(
        "INSERT INTO campaigns (id, name, status, to_send)"
        " SELECT i, i || repeat('x', 2080), 'running', 0 FROM generate_series(100, 9100) i"
    )
    add_rows(shape.db, 1, "sent", 5)
    proved(shape)
    assert "Traceback" not in reader.said
    assert "larger than" not in reader.said
    assert max(len(record.value) for record in shape.records(shape.names.changes)) < 2 << 20


POISON = {
    "not_json": b"\x00\x01 this is no JSON",
    "wrong_schema": b'{"v":1,"hello":"world"}',
    "negative_count": encode(move_batch(1, 2, Move(1, NEW, SENT, 1), partition=1)).replace(b'"sent",1]', b'"sent",-1]'),
    "five_megabytes": b"x" * (5 << 20),
}


def forged(epoch: int, begin: Position, end: Position, rows: list[list[int]]) -> bytes:
    """A record of partition 1 that looks as if a reader had made it."""
    record = orjson.loads(encode(move_batch(1, 2, Move(1, NEW, SENT, (1 << 48) - 1), partition=1)))
    return orjson.dumps(record | {"epoch": epoch, "begin": str(begin), "end": str(end), "entries": rows})


@pytest.mark.parametrize("name", ["an end beyond the log", "counts beyond bigint"])
def test_what_a_forged_record_says_is_refused_and_the_partition_counted_anew(shape: Shape, name: str) -> None:
    running(shape)
    shape.until_right()
    shape.roles[0].stop()
    last = end_of([it for it in shape.records(shape.names.changes) if it.partition == 1][-1].value)
    assert last is not None
    epoch, here = last.epoch, last.end
    if name == "an end beyond the log":
        shape.put(forged(epoch, here, Position((1 << 63) - 1), []), partition=1)
    else:
        rows = [[here.lsn, here.seq + number, 0] for number in range(1 << 16)]
        shape.put(forged(epoch, here, Position(here.lsn, here.seq + (1 << 16)), rows), partition=1)
    worker = shape.roles[1]
    eventually(lambda: "It is skipped" in worker.said or "They are skipped" in worker.said, 20)
    shape.roles[0].again()
    add_rows(shape.db, 1, "sent", 5)
    proved(shape)
    assert worker.process.poll() is None
    assert "waiting for the database" not in worker.said


@pytest.mark.parametrize(
    "name", [pytest.param(it, marks=[] if it == "wrong_schema" else [pytest.mark.slow]) for it in POISON]
)
def test_a_poisonous_record_is_reported_and_its_partition_counted_anew(shape: Shape, name: str) -> None:
    running(shape)
    shape.until_right()
    worker = shape.roles[1]
    offset = shape.put(POISON[name], partition=1)
    said = f"{shape.names.changes}, partition 1, offset {offset}"
    eventually(lambda: said in worker.said, 20)
    unbased = "SELECT partition FROM sentstream.watermarks WHERE NOT based"
    eventually(lambda: shape.db.execute(unbased) == [(1,)], 20)
    add_rows(shape.db, 1, "sent", 5)
    run = shape.recount()
    assert shape.verdicts_of(run.run_id)["drift"] == 0
    proved(shape)
    assert worker.process.poll() is None


def test_a_topic_that_lost_records_is_counted_anew(shape: Shape) -> None:
    """Retention, or an administrator, took records that no worker had read."""
    running(shape)
    shape.until_right()
    worker = shape.roles[1]
    worker.stop()
    held = len(shape.records(shape.names.changes))
    with load(shape.db, 8) as done:
        eventually(lambda: done() > 500, 30)
        admin = shape.cluster.admin()
        tps = [TopicPartition(shape.names.changes, number) for number in range(4)]
        eventually(lambda: len(shape.records(shape.names.changes)) > held, 20)
        ends = {tp: len([r for r in shape.records(shape.names.changes) if r.partition == tp.partition]) for tp in tps}
        admin.delete_records({tp: -1 for tp in tps if ends[tp]})
        admin.close()
        worker.again()
        seen = done()
        eventually(lambda: done() > seen + 300, 30)
    eventually(lambda: "is lost; the partition is counted anew" in worker.said, 30)
    shape.until_based()
    proved(shape)


@pytest.mark.slow
def test_topics_made_anew_are_counted_anew(shape: Shape) -> None:
    running(shape)
    shape.until_right()
    reader, worker = shape.roles
    reader.stop()
    worker.stop()
    shape.db.execute("UPDATE email_queue SET status = 'sent' WHERE id % 2 = 0")
    admin = shape.cluster.admin()
    names = [topic.name for topic in plan(shape.settings)]
    admin.delete_topics(names)
    eventually(lambda: not set(names) & set(admin.list_topics()), 20)
    create(admin, resolved(plan(shape.settings), 1))
    admin.close()
    reader.again()
    worker.again()
    add_rows(shape.db, 1, "sent", 5)
    shape.until_based()
    proved(shape)


def test_a_topic_made_anew_under_running_roles_is_counted_anew(shape: Shape) -> None:
    """Its partitions have no owner for a moment, and its offsets begin at 0 again."""
    running(shape)
    shape.until_right()
    admin = shape.cluster.admin()
    wanted = [topic for topic in resolved(plan(shape.settings), 1) if topic.name == shape.names.changes]
    admin.delete_topics([shape.names.changes])
    eventually(lambda: shape.names.changes not in admin.list_topics(), 20)
    shape.db.execute("UPDATE email_queue SET status = 'sent' WHERE id % 2 = 0")
    worker = shape.roles[1]
    seen = worker.said.count("partitions assigned")
    eventually(lambda: worker.said.count("partitions assigned") > seen, 30)  # none
    create(admin, wanted)
    admin.close()
    add_rows(shape.db, 1, "sent", 5)
    proved(shape, 60)
    assert all(role.process.poll() is None for role in shape.roles)


def test_nothing_of_a_lost_history_is_applied_to_a_database_of_another(shape: Shape) -> None:
    """The database was restored elsewhere, and the worker is there before the reader, who begins a new epoch."""
    running(shape)
    shape.until_right()
    reader, worker = shape.roles
    worker.stop()
    with load(shape.db, 8) as done:
        eventually(lambda: done() > 300, 30)
    reader.stop()
    shape.db.execute("UPDATE sentstream.watermarks SET system_identifier = '1'")
    before = shape.db.execute("SELECT * FROM sentstream.progress ORDER BY campaign_id")
    worker.again()
    eventually(lambda: "is not loaded" in worker.said, 30)
    assert shape.db.execute("SELECT * FROM sentstream.progress ORDER BY campaign_id") == before
    reader.again()
    shape.until_based()
    proved(shape)


@pytest.mark.slow
def test_a_changelog_that_lost_its_tail_changes_nothing(shape: Shape) -> None:
    running(shape)
    shape.until_right()
    worker = shape.roles[1]
    worker.stop()
    admin = shape.cluster.admin()
    # a broker deletes records of a topic only while it is not compacted
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, shape.names.progress, {"cleanup.policy": "delete"})])
    admin.delete_records({TopicPartition(shape.names.progress, number): -1 for number in range(4)})
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, shape.names.progress, {"cleanup.policy": "compact"})])
    admin.close()
    before = shape.db.execute("SELECT * FROM sentstream.progress ORDER BY campaign_id")
    worker.again()
    eventually(lambda: len([r for r in shape.records(shape.names.progress) if r.value]) >= 8, 30, every=0.3)
    assert shape.db.execute("SELECT * FROM sentstream.progress ORDER BY campaign_id") == before
    proved(shape)


@pytest.mark.slow
def test_offsets_that_were_moved_back_count_nothing_twice(shape: Shape) -> None:
    running(shape)
    with load(shape.db, 8) as done:
        eventually(lambda: done() > 500, 30)
    shape.until_right()
    worker = shape.roles[1]
    worker.stop()
    admin = shape.cluster.admin()
    tps = [TopicPartition(shape.names.changes, number) for number in range(4)]
    eventually(lambda: not admin.describe_groups([shape.names.group])[shape.names.group]["members"], 20)
    admin.delete_group_offsets(shape.names.group, tps)
    admin.close()
    worker.again()
    add_rows(shape.db, 1, "sent", 5)
    proved(shape)
    assert not shape.db.execute("SELECT 1 FROM sentstream.watermarks WHERE NOT based")
