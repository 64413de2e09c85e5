"""Topics made, checked, and left alone; how the client is let in; lag and publishing against the real broker."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.future import Future

from connectors.kafka.cluster import Cluster
from connectors.kafka.codec import Decoder
from connectors.kafka.live_keys import live_campaigns
from connectors.kafka.publish import Publisher, PublishError, last_ends
from connectors.kafka.topics import Names, brokers_of, check, ensure, plan, require, resolved
from stream.config.settings import Settings
from stream.core.batch import Batch
from stream.core.entries import Move
from stream.core.epoch import KafkaEnd
from stream.core.errors import ConfigurationError, PreconditionError, SentstreamError, UnreachableError
from stream.core.position import Position
from stream.demo.child_process import free_port
from stream.demo.private_kafka import QUICK_START, PrivateKafka
from tests.kafka.batches import EPOCH, move_batch
from tests.waiting import eventually


def changed(settings: Settings, **values: Any) -> Settings:
    return settings.model_copy(update=values)


# ---- topics ---------------------------------------------------------------------------------------------------------


def test_missing_topics_are_made_as_planned_and_a_second_time_nothing_happens(settings: Settings) -> None:
    missing = ensure(settings, create_missing=False)
    assert [it.what for it in missing] == ["missing"] * 3
    with pytest.raises(PreconditionError):
        require(missing)
    assert ensure(settings) == []
    assert ensure(settings) == []
    names = Names(settings.kafka_topic_prefix)
    admin = Cluster.of(settings).admin()
    found = {it["name"]: len(it["partitions"]) for it in admin.describe_topics([names.changes, names.progress])}
    assert set(found.values()) == {3}
    admin.close()


def test_where_the_broker_makes_no_topics_it_says_which_to_make(settings: Settings) -> None:
    asked = changed(settings, kafka_create_topics=False)
    missing = ensure(asked)
    assert len(missing) == 3
    assert "--create --topic" in missing[0].fix
    assert "--partitions 3" in missing[0].fix
    assert ensure(asked) == missing


def test_another_number_of_partitions_is_critical_and_says_what_to_do(made: Settings) -> None:
    found = ensure(changed(made, kafka_partitions=4))
    assert {it.what for it in found} == {"partitions"}
    assert all(it.critical for it in found)
    assert "SENTSTREAM_KAFKA_PARTITIONS=3" in found[0].fix


def test_what_an_administrator_changed_is_found(made: Settings) -> None:
    names = Names(made.kafka_topic_prefix)
    admin = Cluster.of(made).admin()
    admin.alter_configs(
        [
            ConfigResource(ConfigResourceType.TOPIC, names.changes, {"max.message.bytes": "1000000"}),
            ConfigResource(ConfigResourceType.TOPIC, names.progress, {"cleanup.policy": "delete"}),
            ConfigResource(ConfigResourceType.TOPIC, names.verdicts, {"retention.ms": "1000"}),
        ]
    )
    wanted = resolved(plan(made), brokers_of(admin))
    eventually(lambda: len(check(admin, wanted)) == 3)
    found = check(admin, wanted)
    assert [(it.topic.rsplit(".", 1)[1], it.what, it.critical) for it in found] == [
        ("changes", "config", True),
        ("progress", "config", True),
        ("verdicts", "config", False),
    ]
    admin.close()


def test_replicas_follow_the_number_of_brokers() -> None:
    settings = Settings(kafka_bootstrap_servers=("a:1",))
    for brokers, replicas, insync in ((1, 1, "1"), (2, 2, "1"), (3, 3, "2"), (9, 3, "2")):
        topic = resolved(plan(settings), brokers)[0]
        assert (topic.replicas, topic.configs["min.insync.replicas"]) == (replicas, insync)


def test_a_broker_that_does_not_answer_is_said_in_one_line() -> None:
    with pytest.raises(UnreachableError) as caught:
        Cluster(("127.0.0.1:1",)).admin(timeout=1)
    assert "127.0.0.1:1" in str(caught.value)


def test_reading_the_topic_of_progress_ends_without_a_broker_without_patience_and_when_nobody_waits() -> None:
    nobody = Cluster((f"127.0.0.1:{free_port()}",))
    with pytest.raises(UnreachableError):
        live_campaigns(nobody, "any.progress", 0, 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        cluster = Cluster((f"127.0.0.1:{silent.getsockname()[1]}",))
        for bounds in ({"patience": 0.3}, {"give_up": lambda: True}):
            began = time.monotonic()
            with pytest.raises(SentstreamError):
                live_campaigns(cluster, "any.progress", 0, 1, **bounds)
            assert time.monotonic() - began < 10


# ---- security -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded() -> Iterator[PrivateKafka]:
    with PrivateKafka(users={"ann": "a-secret"}, jvm=QUICK_START) as server:
        yield server


def test_sasl_lets_in_who_knows_the_password(guarded: PrivateKafka) -> None:
    good = Cluster(tuple(guarded.bootstrap.split(",")), "SASL_PLAINTEXT", "PLAIN", "ann", "a-secret")
    good.admin().close()
    bad = Cluster(good.servers, "SASL_PLAINTEXT", "PLAIN", "ann", "wrong")
    with pytest.raises(SentstreamError) as caught:
        bad.admin(timeout=5)
    assert "wrong" not in str(caught.value)
    assert "a-secret" not in repr(good)


def test_both_clients_get_the_same_settings() -> None:
    cluster = Cluster(("k:9",), "SASL_SSL", "SCRAM-SHA-512", "ann", "a-secret")
    python, faust = cluster.kafka_python(), cluster.faust()
    assert python["sasl_mechanism"] == faust["broker_credentials"].mechanism.value == "SCRAM-SHA-512"
    assert python["security_protocol"] == faust["broker_credentials"].protocol.value == "SASL_SSL"
    assert python["sasl_plain_password"] == faust["broker_credentials"].password
    assert python["ssl_context"].verify_mode == faust["broker_credentials"].ssl_context.verify_mode


def test_a_certificate_that_is_none_names_its_setting() -> None:
    with pytest.raises(ConfigurationError, match="KAFKA_SSL_CAFILE"):
        Cluster(("k:9",), "SSL", cafile="/nowhere.pem").context()


# ---- publishing -----------------------------------------------------------------------------------------------------


def batch(number: int, begin: int, end: int) -> Batch:
    return move_batch(begin, end, Move(7, 0, 1, 1), partition=number)


def test_a_topic_of_both_cleanup_policies_is_found(made: Settings) -> None:
    """A topic without keys that is compacted as well takes no record; one with keys forgets campaigns that rest."""
    names = Names(made.kafka_topic_prefix)
    admin = Cluster.of(made).admin()
    both = {"cleanup.policy": "compact,delete"}
    topics = (names.changes, names.progress)
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, both) for topic in topics])
    admin.close()
    eventually(lambda: len(ensure(made)) == 2)
    found = {it.topic: it for it in ensure(made)}
    assert {topic: it.critical for topic, it in found.items()} == {names.changes: True, names.progress: False}
    assert "cleanup.policy=delete" in found[names.changes].fix


def test_an_end_is_durable_when_every_partition_has_everything_before_it(made: Settings) -> None:
    topic = Names(made.kafka_topic_prefix).changes
    cluster = Cluster.of(made)
    with Publisher(cluster, topic, 3, Position(10)) as publisher:
        publisher.send(batch(0, 10, 20))
        publisher.send(batch(1, 10, 30))
        assert publisher.drain(20)
        assert publisher.durable == Position(10)
        publisher.send(batch(2, 10, 25))
        assert publisher.drain(20)
        assert publisher.durable == Position(20)
        assert (publisher.records, publisher.in_flight) == (3, 0)
    assert sorted(last_ends(cluster, topic, 3), key=lambda it: it.end) == [
        KafkaEnd(EPOCH, Position(20)),
        KafkaEnd(EPOCH, Position(25)),
        KafkaEnd(EPOCH, Position(30)),
    ]


def test_a_record_is_acknowledged_by_all_in_sync_replicas_once_and_in_order(made: Settings) -> None:
    """With acks=1 a leader that dies takes away what was confirmed; without idempotence a repeated send may come twice,
    or overtake another."""
    with Publisher(Cluster.of(made), Names(made.kafka_topic_prefix).changes, 3, Position(10)) as publisher:
        settings = publisher._producer.config
        assert (settings["acks"], settings["enable_idempotence"]) in ((-1, True), ("all", True))


def test_an_end_counts_when_all_records_before_it_are_acknowledged(monkeypatch: pytest.MonkeyPatch) -> None:
    futures: list[Future] = []

    class Producer:
        def __init__(self, **_settings: Any) -> None: ...

        def send(self, *_: Any, **__: Any) -> Future:
            futures.append(Future())
            return futures[-1]

        def close(self, **_: Any) -> None: ...

    monkeypatch.setattr("connectors.kafka.publish.KafkaProducer", Producer)
    with Publisher(Cluster(("k:9",)), "t", 1, Position(10)) as publisher:
        for at in (10, 20, 30):
            publisher.send(batch(0, at, at + 10))
        futures[1].success(None)
        futures[2].success(None)
        publisher.poll()
        assert publisher.durable == Position(10)
        futures[0].success(None)
        publisher.poll()
        assert publisher.durable == Position(40)


def test_the_last_end_is_found_behind_poison(made: Settings) -> None:
    topic = Names(made.kafka_topic_prefix).changes
    cluster = Cluster.of(made)
    assert last_ends(cluster, topic, 3) == []
    with Publisher(cluster, topic, 3, Position(10)) as publisher:
        publisher.send(batch(0, 10, 20))
        assert publisher.drain(20)
        publisher._producer.send(topic, value=b"no batch", partition=0).get(20)
    assert last_ends(cluster, topic, 3) == [KafkaEnd(EPOCH, Position(20))]


def test_a_record_that_the_broker_refuses_ends_the_reader_and_nothing_behind_it_is_durable(made: Settings) -> None:
    topic = Names(made.kafka_topic_prefix).changes
    admin = Cluster.of(made).admin()
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": "300"})])
    admin.close()
    large = move_batch(10, 5000, *(Move(campaign, 0, 1, campaign) for campaign in range(1, 900)), partition=0)

    def send_for_ever(publisher: Publisher) -> None:
        while True:
            publisher.send(large)
            publisher.drain(1)
            assert publisher.durable == Position(10)

    with Publisher(Cluster.of(made), topic, 3, Position(10)) as publisher:
        with pytest.raises(PublishError, match=r"max.message.bytes"):
            send_for_ever(publisher)
        publisher.close(0)


def test_a_broker_that_is_away_fills_no_memory_and_loses_nothing(private_kafka: PrivateKafka) -> None:
    settings = Settings(kafka_bootstrap_servers=(private_kafka.bootstrap,), kafka_topic_prefix="t", kafka_partitions=1)
    ensure(settings)
    with Publisher(Cluster.of(settings), "t.changes", 1, Position(0), in_flight=20_000) as publisher:
        publisher.send(batch(0, 0, 100))
        assert publisher.drain(20)
        private_kafka.nodes[0].pause()
        resume = threading.Timer(6, private_kafka.nodes[0].resume)
        resume.start()
        at, sent = 100, 0
        until = time.monotonic() + 5
        while time.monotonic() < until:
            if not publisher.room:
                publisher.wait(0.1)
                publisher.poll()
                continue
            publisher.send(batch(0, at, at + 100))
            at, sent = at + 100, sent + 1
        assert publisher.durable == Position(100)
        assert publisher.in_flight < 21_000
        assert sent < 150
        assert publisher.drain(60)
        assert publisher.durable == Position(at)
        resume.join()


def test_records_of_another_partition_are_poison() -> None:
    """A partition's state must never take what belongs to another."""
    from connectors.kafka.codec import encode

    with pytest.raises(SentstreamError):
        Decoder().decode(encode(batch(1, 1, 2)), "t", 2, 0)
