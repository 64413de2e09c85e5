"""The broker is away: roles wait for it, cheaply, say so, and hide no error of their own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import urllib.error
import urllib.request
from collections.abc import Callable

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import client as aiokafka_client
from aiokafka.errors import KafkaError

from connectors.kafka.cluster import BrokerUnreachableError, Cluster
from connectors.kafka.publish import Publisher
from connectors.kafka.topics import ensure
from stream.config.settings import Settings
from stream.core.position import Position
from stream.demo.child_process import free_port
from stream.demo.private_kafka import PrivateKafka
from stream.kafka import faust_patches
from tests.fix_postgres import Database
from tests.kafka.in_process import WorkerThread, kafka_values
from tests.kafka.shape import Shape
from tests.kafka.test_topics import batch
from tests.postgres.running import prepared, settings_for
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(240)


class FirstError(Exception):
    pass


def test_a_publisher_that_closes_with_records_in_flight_hides_no_error_and_leaves_no_thread(
    private_kafka: PrivateKafka,
) -> None:
    settings = Settings(kafka_bootstrap_servers=(private_kafka.bootstrap,), kafka_topic_prefix="t", kafka_partitions=1)
    ensure(settings)
    before = set(threading.enumerate())

    def fail_with_records_in_flight() -> None:
        with Publisher(Cluster.of(settings), "t.changes", 1, Position(0)) as publisher:
            publisher.send(batch(0, 0, 100))
            assert publisher.drain(20)
            private_kafka.nodes[0].pause()
            publisher.send(batch(0, 100, 200))
            raise FirstError

    with pytest.raises(FirstError):
        fail_with_records_in_flight()
    private_kafka.nodes[0].resume()
    eventually(lambda: not set(threading.enumerate()) - before, 20)


@pytest.mark.slow
def test_roles_started_while_the_broker_is_away_wait_and_say_so(
    make_shape: Callable[..., Shape], mailer_db: Database, private_kafka: PrivateKafka
) -> None:
    shape = make_shape(mailer_db, bootstrap=private_kafka.bootstrap)
    private_kafka.kill()
    ports = [free_port(), free_port()]
    for name, port in zip(("read", "work"), ports, strict=True):
        shape.start(name, name="w0", metrics_listen=f"127.0.0.1:{port}")
    for role, port in zip(shape.roles, ports, strict=True):
        eventually(lambda: "does not answer" in role.said, 60)  # noqa: B023 - asked at once
        eventually(lambda: ready(port) == 503, 20)  # noqa: B023
        assert role.process.poll() is None
    private_kafka.start()
    shape.until_based(60)
    for port in ports:
        eventually(lambda: ready(port) == 200, 30)  # noqa: B023


def test_a_worker_whose_broker_goes_away_as_it_starts_says_so(mailer_db: Database) -> None:
    prepared(mailer_db)
    worker = WorkerThread(settings_for(mailer_db, **kafka_values(mailer_db, f"127.0.0.1:{free_port()}")))
    worker.start()
    eventually(lambda: worker.failure is not None, 60)
    assert isinstance(worker.failure, BrokerUnreachableError)


@pytest.mark.slow
def test_readiness_says_that_the_broker_is_away(
    make_shape: Callable[..., Shape], mailer_db: Database, private_kafka: PrivateKafka
) -> None:
    shape = make_shape(mailer_db, bootstrap=private_kafka.bootstrap)
    ports = [free_port(), free_port()]
    for name, port in zip(("read", "work"), ports, strict=True):
        shape.start(name, name="w0", metrics_listen=f"127.0.0.1:{port}")
    shape.until_based()
    for port in ports:
        eventually(lambda: ready(port) == 200, 30)  # noqa: B023
    private_kafka.kill()
    for port in ports:
        eventually(lambda: ready(port) == 503, 40)  # noqa: B023
    private_kafka.start()
    for port in ports:
        eventually(lambda: ready(port) == 200, 60)  # noqa: B023


def ready(port: int) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_a_client_without_its_broker_connects_rarely(
    private_kafka: PrivateKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(kafka_bootstrap_servers=(private_kafka.bootstrap,), kafka_topic_prefix="t", kafka_partitions=1)
    ensure(settings)
    faust_patches.patch_clients()
    attempts = 0
    real = aiokafka_client.create_conn

    async def counting(*args: object, **values: object) -> object:
        nonlocal attempts
        attempts += 1
        return await real(*args, **values)

    monkeypatch.setattr(aiokafka_client, "create_conn", counting)

    async def main() -> int:
        nonlocal attempts
        arguments = Cluster.of(settings).aiokafka()
        consumer = AIOKafkaConsumer("t.changes", group_id="g", auto_offset_reset="earliest", **arguments)
        producer = AIOKafkaProducer(**arguments)
        await producer.start()
        await consumer.start()
        await producer.send_and_wait("t.changes", b"x", partition=0)
        await consumer.getone()
        private_kafka.kill()
        found = asyncio.ensure_future(consumer.getone())

        async def send_again() -> None:
            while not found.done():
                with contextlib.suppress(KafkaError):
                    await producer.send_and_wait("t.changes", b"y", partition=0)
                await asyncio.sleep(0.2)

        sending = asyncio.ensure_future(send_again())
        await asyncio.sleep(2)
        attempts = 0
        await asyncio.sleep(5)
        seen = attempts
        private_kafka.start()
        await asyncio.wait_for(found, 120)  # and it comes back
        await sending
        await consumer.stop()
        await producer.stop()
        return seen

    assert asyncio.run(main()) < 50
