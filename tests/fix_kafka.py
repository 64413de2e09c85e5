"""Kafka for tests: a broker that is really there, and topic names of its own for every test.

Where it comes from, first match: ``SENTSTREAM_TEST_KAFKA`` (bootstrap servers), a Docker engine that answers
(testcontainers), else a private broker that we start. All tests of a run share it (`fix_servers`). None to be had is a
failure, never a skip.

================  =================================================================================================
`kafka`           a `Kafka` that tests share: do not stop it
`topic_prefix`    a prefix for topics, groups and application ids that no other test uses, ending in a dot; the topics
                  that begin with it are deleted after the test
`private_kafka`   a started `PrivateKafka` of the test's own, to kill, pause and restart
`kafka_cluster`   the same with three nodes
================  =================================================================================================
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from stream.demo.child_process import free_port
from stream.demo.kafka_jars import KAFKA_VERSION
from stream.demo.private_kafka import QUICK_START, PrivateKafka
from tests.fix_postgres import docker_answers
from tests.fix_servers import address, shared_server

ADDRESS = os.environ.get("SENTSTREAM_TEST_KAFKA", "")

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Kafka:
    """A cluster that somebody started. ``bootstrap``: ``host:port,host:port``."""

    bootstrap: str

    def client(self) -> dict[str, Any]:
        """Keyword arguments for kafka-python's clients."""
        return {"bootstrap_servers": self.bootstrap.split(",")}


@shared_server("kafka")
def _start(closing: ExitStack) -> str:
    if docker_answers():
        return closing.enter_context(_container()).bootstrap
    return closing.enter_context(PrivateKafka(jvm=QUICK_START)).bootstrap


@pytest.fixture(scope="session")
def kafka(pytestconfig: pytest.Config) -> Kafka:
    return Kafka(ADDRESS or address(pytestconfig, "kafka"))


@pytest.fixture
def topic_prefix(kafka: Kafka) -> Iterator[str]:
    prefix = f"t{os.getpid()}-{next(_numbers)}."
    yield prefix
    admin = KafkaAdminClient(**kafka.client())
    try:
        mine = [topic for topic in admin.list_topics() if topic.startswith(prefix)]
        if mine:
            admin.delete_topics(mine)
    finally:
        admin.close()


@pytest.fixture
def private_kafka() -> Iterator[PrivateKafka]:
    with PrivateKafka(jvm=QUICK_START) as server:
        yield server


@pytest.fixture
def kafka_cluster() -> Iterator[PrivateKafka]:
    with PrivateKafka(nodes=3, jvm=QUICK_START) as cluster:
        yield cluster


@contextmanager
def _container() -> Iterator[Kafka]:
    """A broker tells its clients its address, so the port has to be known before it starts."""
    from testcontainers.core.container import DockerContainer

    port = free_port()
    environment = {
        "KAFKA_NODE_ID": "1",
        "KAFKA_PROCESS_ROLES": "broker,controller",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
        "KAFKA_LISTENERS": "CLIENT://:9092,CONTROLLER://:9093,BROKER://:9094",
        "KAFKA_ADVERTISED_LISTENERS": f"CLIENT://localhost:{port},BROKER://localhost:9094",
        "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "KAFKA_INTER_BROKER_LISTENER_NAME": "BROKER",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "CLIENT:PLAINTEXT,BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
        "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
    }
    container = DockerContainer(f"apache/kafka:{KAFKA_VERSION}").with_bind_ports(9092, port)
    for name, value in environment.items():
        container = container.with_env(name, value)
    with container:
        found = Kafka(f"{container.get_container_host_ip()}:{port}")
        deadline = time.monotonic() + 90
        while True:
            try:
                KafkaAdminClient(**found.client(), bootstrap_timeout_ms=1000).close()
                break
            except KafkaError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        yield found
