"""Another number of partitions, another shape, another history of the log: positions start anew, counts stay right."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.fix_kafka import Kafka
from tests.fix_postgres import Database
from tests.kafka.in_process import kafka_shape
from tests.kafka.shape import Shape, load
from tests.kafka.test_shape import proved, running
from tests.postgres import running as embedded
from tests.postgres.running import add_campaign, add_rows, shown, truth
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(240)


def test_another_number_of_partitions(make_shape: Callable[..., Shape], mailer_db: Database) -> None:
    few = running(make_shape(mailer_db, partitions=2))
    few.until_right()
    for role in reversed(few.roles):
        role.stop()
    add_rows(mailer_db, 1, "sent", 7)
    admin = few.cluster.admin()
    names = [few.names.changes, few.names.progress, few.names.verdicts]
    admin.delete_topics(names)
    eventually(lambda: not set(names) & set(admin.list_topics()), 20)
    admin.close()
    many = make_shape(mailer_db, partitions=5)
    many.start("read")
    many.start("work", name="w0")
    many.until_based(120)  # clients of the old topics may look for them for a while
    proved(many)
    assert len(mailer_db.execute("SELECT partition FROM sentstream.watermarks")) == 5


def test_from_embedded_to_kafka_and_back(kafka: Kafka, mailer_db: Database) -> None:
    embedded.prepared(mailer_db)
    for number in (1, 2, 3):
        add_campaign(mailer_db, number, queued=10, sent_rows=number)
    for change in ("queued", "sent", "failed"):
        with embedded.running(mailer_db):
            add_rows(mailer_db, 1, change, 3)
            right(mailer_db)
        add_rows(mailer_db, 2, "sent", 1)
        with kafka_shape(mailer_db, kafka.bootstrap):
            add_rows(mailer_db, 3, change, 2)
            right(mailer_db)
        add_rows(mailer_db, 1, "sent", 1)
    with embedded.running(mailer_db):
        right(mailer_db)
    epochs = mailer_db.value("SELECT count(DISTINCT epoch) FROM sentstream.answers")
    assert epochs == 7


def right(db: Database) -> None:
    def so() -> bool:
        assert shown(db) == {campaign: counts[2] for campaign, counts in truth(db).items()}
        assert not db.execute("SELECT 1 FROM sentstream.watermarks WHERE NOT based")
        return True

    eventually(so, 40)
    assert db.execute("SELECT * FROM sentstream.verdicts WHERE verdict = 'drift'") == []


@pytest.mark.slow
@pytest.mark.parametrize("what", ["lsn = 'FFFF/0'", "timeline = 77", "system_identifier = '1'", "fold_version = 0"])
def test_a_log_whose_positions_cannot_be_compared_begins_an_epoch(shape: Shape, what: str) -> None:
    """A restore leaves the watermark beyond the log, or on another timeline; LSNs that are smaller are applied."""
    running(shape, campaigns=3)
    shape.until_right()
    for role in shape.roles:
        role.stop()
    before = shape.db.value("SELECT max(epoch) FROM sentstream.watermarks")
    shape.db.execute(f"UPDATE sentstream.watermarks SET {what}")
    for role in shape.roles:
        role.again()
    add_rows(shape.db, 1, "sent", 7)
    shape.until_based()
    shape.until_right()
    assert shape.db.value("SELECT min(epoch) FROM sentstream.watermarks") > before


@pytest.mark.slow
def test_a_slot_that_somebody_dropped_is_made_again_and_a_baseline_taken(shape: Shape) -> None:
    running(shape, campaigns=3)
    shape.until_right()
    reader = shape.roles[0]
    reader.stop()
    shape.db.execute("SELECT pg_drop_replication_slot(%s)", shape.db.slot)
    add_rows(shape.db, 1, "sent", 9)
    reader.again()
    eventually(lambda: "reading from" in reader.said.split("bye")[-1], 30)
    shape.until_based()
    shape.until_right()


@pytest.mark.slow
def test_workers_that_run_before_the_reader_wait_for_it(shape: Shape) -> None:
    add_campaign(shape.db, 1, queued=5)
    worker = shape.start("work", name="w0")
    eventually(lambda: "has no watermark" in worker.said, 30)
    shape.start("read")
    shape.until_based()
    with load(shape.db, 1) as done:
        eventually(lambda: done() > 20, 20)
    proved(shape)
