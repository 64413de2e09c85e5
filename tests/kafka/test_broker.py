"""The private broker is a real one: what it acknowledged survives kill -9, a cluster survives the loss of a node."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from signal import SIGKILL

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic
from kafka.errors import KafkaError

from stream.demo.private_kafka import QUICK_START, PrivateKafka
from tests.fix_kafka import Kafka
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

_STARTS_ONE_AND_DIES = """
import os, signal
from stream.demo.private_kafka import PrivateKafka, QUICK_START
kafka = PrivateKafka(jvm=QUICK_START)
kafka._make_nodes()
kafka.nodes[0].start()
print(kafka.nodes[0].pid, kafka.directory, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_record_comes_back_compressed_or_not(kafka: Kafka, topic_prefix: str) -> None:
    topic = f"{topic_prefix}plain"
    _create(kafka, topic, partitions=3)
    for compression in (None, "lz4"):
        producer = KafkaProducer(**kafka.client(), acks="all", compression_type=compression)
        sent = [producer.send(topic, value=f"{compression} {p}".encode(), partition=p) for p in range(3)]
        assert [future.get(timeout=20).partition for future in sent] == [0, 1, 2]
        producer.close()
    assert sorted(_read(kafka, topic, 3, 6)) == [b"None 0", b"None 1", b"None 2", b"lz4 0", b"lz4 1", b"lz4 2"]


def test_a_topic_that_nobody_made_is_not_made_by_a_typing_error(kafka: Kafka, topic_prefix: str) -> None:
    producer = KafkaProducer(**kafka.client(), max_block_ms=1500)
    with pytest.raises(KafkaError):
        producer.send(f"{topic_prefix}nobody", value=b"x").get(timeout=5)
    producer.close()


def test_acknowledged_records_survive_a_kill_and_a_pause(private_kafka: PrivateKafka) -> None:
    _create(private_kafka, "kept")
    producer = KafkaProducer(**private_kafka.client(), acks="all")
    producer.send("kept", value=b"before").get(timeout=20)
    private_kafka.kill()
    assert not private_kafka.nodes[0].running
    private_kafka.start()
    producer.send("kept", value=b"after").get(timeout=60)
    private_kafka.nodes[0].pause()
    held = producer.send("kept", value=b"held")
    private_kafka.nodes[0].resume()
    held.get(timeout=60)
    producer.close()
    assert _read(private_kafka, "kept", 1, 3) == [b"before", b"after", b"held"]


def test_users_must_log_in() -> None:
    with PrivateKafka(users={"app": "hunter2"}, jvm=QUICK_START) as server:
        _create(server, "closed")
        wrong = {**server.client(), "sasl_plain_password": "wrong"}
        with pytest.raises(KafkaError):
            KafkaAdminClient(**wrong, bootstrap_timeout_ms=3000).list_topics()


def test_a_cluster_goes_on_without_one_of_three(kafka_cluster: PrivateKafka) -> None:
    _create(kafka_cluster, "shared", replicas=3)
    producer = KafkaProducer(**kafka_cluster.client(), acks="all")
    producer.send("shared", value=b"three").get(timeout=30)
    kafka_cluster.nodes[1].kill()
    producer.send("shared", value=b"two").get(timeout=60)
    kafka_cluster.nodes[1].start()
    kafka_cluster.wait()
    producer.send("shared", value=b"three again").get(timeout=60)
    producer.close()
    assert _read(kafka_cluster, "shared", 1, 3) == [b"three", b"two", b"three again"]


def test_a_directory_of_its_own_keeps_the_records(tmp_path: Path) -> None:
    with PrivateKafka(directory=tmp_path, jvm=QUICK_START) as server:
        _create(server, "kept")
        producer = KafkaProducer(**server.client(), acks="all")
        producer.send("kept", value=b"x").get(timeout=20)
        producer.close()
    with PrivateKafka(directory=tmp_path, jvm=QUICK_START) as server:
        assert _read(server, "kept", 1, 1) == [b"x"]


def test_nothing_is_left_when_we_are_killed() -> None:
    done = subprocess.run([sys.executable, "-c", _STARTS_ONE_AND_DIES], stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == -SIGKILL
    pid, directory = done.stdout.split()
    eventually(lambda: not Path(directory).exists(), 20)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def _create(server: Kafka | PrivateKafka, topic: str, *, partitions: int = 1, replicas: int = 1) -> None:
    admin = KafkaAdminClient(**server.client())
    admin.create_topics([NewTopic(topic, num_partitions=partitions, replication_factor=replicas)])
    admin.close()


def _read(server: Kafka | PrivateKafka, topic: str, partitions: int, count: int) -> list[bytes]:
    consumer = KafkaConsumer(**server.client(), auto_offset_reset="earliest", consumer_timeout_ms=20_000)
    consumer.assign([TopicPartition(topic, partition) for partition in range(partitions)])
    values: list[bytes] = []
    for record in consumer:
        values.append(record.value)
        if len(values) == count:
            break
    consumer.close()
    return values
