"""Every precondition in Kafka, each with its fix: reached, let in, topics as planned, who may what, the group.

A finding's code never changes; what is well says what was seen.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final

import kafka.errors
from kafka import KafkaAdminClient

from connectors.kafka.cluster import Cluster, KafkaSettings
from connectors.kafka.topics import Names, brokers_of, check, plan, resolved
from stream.core.errors import SentstreamError
from stream.core.finding import Finding, critical, ok, warning

#: seconds that an answer may take before the broker is called slow
_SLOW: Final = 1.0
#: seconds for the coordinator of the group to be chosen, and between two questions
_COORDINATOR: Final = 5.0
_AGAIN: Final = 0.25
_CODES: Final = {
    "missing": "kafka_topic_missing",
    "partitions": "kafka_topic_partitions",
    "config": "kafka_topic_config",
    "replicas": "kafka_topic_replicas",
}


def examine(settings: KafkaSettings) -> Iterator[Finding]:
    """All findings about the brokers, the topics and the group."""
    cluster = Cluster.of(settings)
    began = time.monotonic()
    try:
        admin = cluster.admin()
    except SentstreamError as error:
        yield critical("kafka_reachable", error.what, error.fix)
        return
    try:
        yield from _brokers(admin, cluster, time.monotonic() - began)
        yield from _topics(admin, settings)
        yield from _group(admin, settings)
    except kafka.errors.KafkaError as error:
        said = cluster.refused(error)
        yield critical("kafka_answers", said.what, said.fix)
    finally:
        admin.close()


def _brokers(admin: KafkaAdminClient, cluster: Cluster, seconds: float) -> Iterator[Finding]:
    brokers = brokers_of(admin)
    if seconds > _SLOW * 3:
        yield warning(
            "kafka_reachable",
            f"{brokers} broker(s) answer, but it took {seconds:.1f} s.",
            "Look at the network between here and the brokers.",
        )
    else:
        yield ok("kafka_reachable", f"{brokers} broker(s) at {', '.join(cluster.servers)} answer.")
    if cluster.sasl and not cluster.tls:
        yield warning(
            "kafka_security",
            "The SASL password crosses the network without TLS (KAFKA_SECURITY_PROTOCOL=SASL_PLAINTEXT).",
            "Set KAFKA_SECURITY_PROTOCOL=SASL_SSL where the brokers offer it.",
        )
    else:
        yield ok("kafka_security", f"KAFKA_SECURITY_PROTOCOL is {cluster.protocol}.")
    if brokers < 3:
        yield warning(
            "kafka_replicas",
            f"With {brokers} broker(s) a record that is acknowledged can be lost with a broker; the gap is then seen, "
            "and counted anew.",
            "Use three brokers or more, and topics with three replicas.",
        )


def _topics(admin: KafkaAdminClient, settings: KafkaSettings) -> Iterator[Finding]:
    topics = resolved(plan(settings), brokers_of(admin))
    differences = check(admin, topics)
    for difference in differences:
        fix = difference.fix
        if difference.what == "missing" and settings.kafka_create_topics:
            fix = f"Run `sentstream setup`, or: {fix}"
        make = critical if difference.critical else warning
        yield make(_CODES[difference.what], difference.finding, fix)
    wrong = {difference.topic for difference in differences}
    for topic in topics:
        if topic.name not in wrong:
            yield ok("kafka_topic", f"{topic.name} has {topic.partitions} partitions and is as planned.")


def _group(admin: KafkaAdminClient, settings: KafkaSettings) -> Iterator[Finding]:
    name = Names(settings.kafka_topic_prefix).group
    group = _described(admin, name)
    if group is None:
        yield warning(
            "kafka_group",
            f"The brokers have no coordinator for the group {name} yet; fresh ones take seconds to choose it.",
            "Run `sentstream doctor` again; if it stays so, look for __consumer_offsets in the brokers' log.",
        )
        return
    members = group["members"]
    if not members:
        yield ok("kafka_group", f"No worker is a member of the group {name} now.")
        return
    foreign = [member for member in members if not member["client_id"].startswith("sentstream-work")]
    if foreign:
        yield critical(
            "kafka_group_foreign",
            f"Another program is a member of the group {name}: {foreign[0]['client_id']} at "
            f"{foreign[0]['client_host']}. The partitions that it holds are not counted.",
            "Give that program another group, or sentstream another KAFKA_TOPIC_PREFIX.",
        )
        return
    yield ok("kafka_group", f"{len(members)} worker(s) in the group {name}, which is {group['group_state'].lower()}.")


def _described(admin: KafkaAdminClient, name: str) -> dict[str, Any] | None:
    """The group, once it has a coordinator; None where that takes too long."""
    deadline = time.monotonic() + _COORDINATOR
    while True:
        try:
            found: dict[str, Any] = admin.describe_groups([name])[name]
        except kafka.errors.RetriableError:
            if time.monotonic() > deadline:
                return None
            time.sleep(_AGAIN)
        else:
            return found
