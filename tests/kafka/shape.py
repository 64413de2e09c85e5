"""The Kafka shape at work in a test: topics of its own, roles as processes that can be killed, and the truth."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from connectors.kafka.cluster import Cluster
from connectors.kafka.topics import Names, ensure, plan
from stream.config.settings import Settings
from stream.config.sources import to_environment
from stream.core.partitioner import partition_of
from tests.command import Command
from tests.fix_postgres import Database
from tests.postgres.running import count, prepared, truth
from tests.waiting import eventually


def delete_topics(settings: Settings) -> None:
    """Take the topics of a test away."""
    admin = Cluster.of(settings).admin()
    try:
        mine = {topic.name for topic in plan(settings)} & set(admin.list_topics())
        if mine:
            admin.delete_topics(sorted(mine))
    finally:
        admin.close()


class Role:
    """A role as a process of its own. ``home``: the folder whose code it runs, if not ours."""

    def __init__(self, name: str, words: list[str], environment: dict[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self.home: Path | None = None
        self._words = words
        self._environment = environment
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes] | Command:
        with self.log.open("ab") as output:
            if self.home is None:
                return Command(self._words, self._environment, output.fileno(), output.fileno())
            return subprocess.Popen(
                [sys.executable, "-m", "stream.cli", *self._words, "--with-parent", str(os.getpid())],
                env=self._environment,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    @property
    def said(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self, timeout: float = 40) -> int:
        self.process.send_signal(signal.SIGTERM)
        self.process.send_signal(signal.SIGCONT)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def again(self) -> None:
        """Start it once more, under the same name."""
        self.process = self._start()

    @property
    def memory(self) -> int:
        """Resident bytes."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) * 1024
        return 0


class Shape:
    """Reader, workers and reconciler over one database and one set of topics."""

    def __init__(self, db: Database, bootstrap: str, folder: Path, *, partitions: int = 4, **values: Any) -> None:
        self.db = db
        self.folder = folder
        self.settings = Settings(
            database_url=db.url,
            slot_name=db.slot,
            http_listen="off",
            kafka_bootstrap_servers=tuple(bootstrap.split(",")),
            kafka_topic_prefix=db.name,
            kafka_partitions=partitions,
            **values,
        )
        self.names = Names(db.name)
        self.cluster = Cluster.of(self.settings)
        self.roles: list[Role] = []
        self._asked = 0.0

    def prepare(self) -> Shape:
        prepared(self.db)
        assert ensure(self.settings) == []
        return self

    def start(self, role: str, *, name: str = "", **values: Any) -> Role:
        """A role as a process; ``name``: of a static member; ``values``: settings other than the shape's."""
        settings = self.settings.model_copy(update=values)
        environment = {**os.environ, **to_environment(settings)}
        if role == "work":
            environment["SENTSTREAM_KAFKA_INSTANCE"] = f"{self.db.name}-{name}" if name else ""
        log = self.folder / f"{len(self.roles)}-{role}.log"
        self.roles.append(Role(role, [role], environment, log))
        return self.roles[-1]

    def close(self, topics: bool = True) -> None:
        """End what still runs; ``topics``: take them away too, for others use the broker."""
        for role in reversed(self.roles):
            if role.process.poll() is None:
                role.process.send_signal(signal.SIGCONT)
                role.kill()
        if topics:
            delete_topics(self.settings)

    # ---- waiting ------------------------------------------------------------------------------------------------

    def until_based(self, timeout: float = 40) -> None:
        """All partitions rest on a recount."""
        eventually(self.based, timeout, every=0.1)

    def based(self) -> bool:
        """Whether all partitions rest on a recount; as long as they don't, one is asked for every second, as the
        reconciler does."""
        rows = self.db.execute("SELECT based FROM sentstream.watermarks")
        if len(rows) == self.settings.kafka_partitions and all(row[0] for row in rows):
            return True
        if rows and time.monotonic() - self._asked > 1:
            self._asked = time.monotonic()
            self.recount()
        return False

    def recount(self, **values: Any) -> Any:
        with self.db.connect() as connection:
            return count(connection, **values)

    def until_right(self, timeout: float = 30, *, removed: bool = False) -> None:
        """Counts and counters show the truth, all partitions are based."""

        def right() -> bool:
            assert self.based()
            expected = truth(self.db)
            found = {
                row[0]: tuple(row[1:6])
                for row in self.db.execute(
                    "SELECT campaign_id, queue_queued, queue_sending, queue_sent, queue_failed, queue_cancelled"
                    " FROM sentstream.progress WHERE queue_queued + queue_sending + queue_sent + queue_failed"
                    " + queue_cancelled > 0"
                )
            }
            shown = dict(self.db.execute("SELECT id, sent FROM campaigns"))
            gone = dict(self.db.execute("SELECT campaign_id, removed FROM sentstream.progress"))
            assert found == expected
            wanted = {campaign: counts[2] + gone[campaign] for campaign, counts in expected.items()}
            assert {campaign: shown[campaign] for campaign in wanted} == wanted
            assert removed or not any(gone.values()), gone
            return True

        eventually(right, timeout, every=0.05)

    def verdicts_of(self, run_id: int, timeout: float = 20) -> dict[str, int]:
        """What all partitions answered to a run, summed."""

        def answered() -> dict[str, int] | None:
            rows = self.db.execute(
                "SELECT verified, drift, inconclusive, baseline FROM sentstream.answers WHERE run_id = %s", run_id
            )
            if len(rows) < self.settings.kafka_partitions:
                return None
            return dict(
                zip(("verified", "drift", "inconclusive", "baseline"), map(sum, zip(*rows, strict=True)), strict=True)
            )

        found = eventually(answered, timeout)
        assert found is not None
        return found

    # ---- looking and meddling -----------------------------------------------------------------------------------

    def records(self, topic: str) -> list[Any]:
        """All that a topic holds now, by partition and offset."""
        consumer = KafkaConsumer(enable_auto_commit=False, **self.cluster.kafka_python())
        try:
            tps = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())]
            consumer.assign(tps)
            ends = consumer.end_offsets(tps)
            consumer.seek_to_beginning()
            found = []
            deadline = time.monotonic() + 20
            while any(consumer.position(tp) < ends[tp] for tp in tps):
                assert time.monotonic() < deadline
                for batch in consumer.poll(timeout_ms=500).values():
                    found += batch
            return sorted(found, key=lambda it: (it.partition, it.offset))
        finally:
            consumer.close()

    def put(self, value: bytes, partition: int, topic: str = "") -> int:
        """Write a record into the changes topic; its offset."""
        producer = KafkaProducer(max_request_size=16 << 20, **self.cluster.kafka_python())
        try:
            return int(producer.send(topic or self.names.changes, value=value, partition=partition).get(20).offset)
        finally:
            producer.close()

    def partition_of(self, campaign: int) -> int:
        return partition_of(campaign, self.settings.kafka_partitions)


@contextmanager
def load(db: Database, campaigns: int, *, rate: float = 500) -> Iterator[Callable[[], int]]:
    """Rows of these campaigns change all the while, about ``rate`` a second, also while the server is away; yields a
    function that says how many changes there were."""
    stop = threading.Event()
    done = 0

    def work() -> None:
        nonlocal done
        number = 0
        while not stop.is_set():
            try:
                with psycopg.connect(db.url, autocommit=True) as connection:
                    while not stop.is_set():
                        number += 1
                        began = time.monotonic()
                        done += _step(connection, number, campaigns)
                        stop.wait(max(0.0, 20 / rate - (time.monotonic() - began)))
            except psycopg.OperationalError:
                stop.wait(0.2)

    thread = threading.Thread(target=work, name="load", daemon=True)
    thread.start()
    try:
        yield lambda: done
    finally:
        stop.set()
        thread.join()


_NEXT = {"queued": "sending", "sending": "sent", "sent": "failed", "failed": "queued"}


def _step(connection: psycopg.Connection[Any], number: int, campaigns: int) -> int:
    campaign = number % campaigns + 1
    before, after = list(_NEXT.items())[number // campaigns % 4]
    changed = connection.execute(
        "UPDATE email_queue SET status = %s WHERE id IN"
        " (SELECT id FROM email_queue WHERE campaign_id = %s AND status = %s LIMIT 20)",
        (after, campaign, before),
    ).rowcount
    if number % 7 == 0:
        connection.execute(
            "INSERT INTO email_queue (campaign_id, subscriber_id, status)"
            " SELECT %s, 1, 'queued' FROM generate_series(1, 5)",
            (campaign,),
        )
    return changed
