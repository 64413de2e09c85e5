"""The topics: which are needed, how each must be configured, and how a cluster differs from that.

Three topics, all with KAFKA_PARTITIONS partitions, so that a campaign has the same partition number in each:

- ``<prefix>.changes``: batches of entries, no key. Lost records are counted again, so they are kept for days only.
- ``<prefix>.progress``: the newest counts of each campaign, key: campaign id as text; compacted. Also the changelog of
  the worker's Faust table.
- ``<prefix>.verdicts``: verdicts of recounts, key: campaign id as text.

`plan` says what is needed, `check` what differs, `ensure` creates what is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import kafka.errors
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType

from connectors.kafka.cluster import Cluster, KafkaSettings
from stream.core.errors import PreconditionError

#: bytes of the largest record; the recount of a partition is one record, some 30 bytes a campaign
RECORD_LIMIT: Final = 8 << 20
_DAY: Final = 86_400_000
_EXISTS: Final = 36  # TOPIC_ALREADY_EXISTS
_UNKNOWN: Final = 3  # UNKNOWN_TOPIC_OR_PARTITION


@dataclass(frozen=True, slots=True)
class Names:
    """The topics' names under a prefix."""

    prefix: str = "sentstream"

    @property
    def group(self) -> str:
        """Consumer group of the workers, and their Faust app id."""
        return f"{self.prefix}-work"

    @property
    def changes(self) -> str:
        return f"{self.prefix}.changes"

    @property
    def progress(self) -> str:
        return f"{self.prefix}.progress"

    @property
    def verdicts(self) -> str:
        return f"{self.prefix}.verdicts"


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as it should be. ``replicas`` 0: as many as there are brokers, three at most."""

    name: str
    partitions: int
    replicas: int
    configs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Difference:
    """How a topic differs from the plan. ``critical``: sentstream can't work, or may lose records."""

    topic: str
    what: Literal["missing", "partitions", "config", "replicas"]
    finding: str
    fix: str
    critical: bool = True


def plan(settings: KafkaSettings) -> tuple[Topic, ...]:
    """The topics that the settings ask for."""
    names = Names(settings.kafka_topic_prefix)
    partitions, replicas = settings.kafka_partitions, settings.kafka_replication_factor
    size = {"max.message.bytes": str(RECORD_LIMIT)}
    retention = str(int(settings.kafka_changes_retention * 1000))
    # compaction of `progress` early and often: a consumer that starts reads little more than one row a campaign
    compact = {"cleanup.policy": "compact", "segment.ms": str(_DAY // 4), "min.cleanable.dirty.ratio": "0.2"}
    return (
        Topic(names.changes, partitions, replicas, {"cleanup.policy": "delete", "retention.ms": retention, **size}),
        Topic(names.progress, partitions, replicas, compact),
        Topic(names.verdicts, partitions, replicas, {"cleanup.policy": "delete", "retention.ms": str(90 * _DAY)}),
    )


def resolved(topics: Iterable[Topic], brokers: int) -> tuple[Topic, ...]:
    """The plan on a cluster of so many brokers: the number of replicas, and of those that must have a record before it
    is acknowledged (one less, so that a broker may be away)."""
    result = []
    for topic in topics:
        replicas = topic.replicas or max(1, min(3, brokers))
        insync = str(max(1, replicas - 1))
        result.append(Topic(topic.name, topic.partitions, replicas, {**topic.configs, "min.insync.replicas": insync}))
    return tuple(result)


def command(topic: Topic) -> str:
    """The command line by which an administrator creates the topic."""
    configs = " ".join(f"--config {key}={value}" for key, value in topic.configs.items())
    return (
        f"kafka-topics.sh --bootstrap-server ... --create --topic {topic.name} --partitions {topic.partitions} "
        f"--replication-factor {topic.replicas} {configs}"
    )


def brokers_of(admin: KafkaAdminClient) -> int:
    """The number of brokers in the cluster."""
    return len(admin.describe_cluster()["brokers"])


def check(admin: KafkaAdminClient, topics: Iterable[Topic]) -> list[Difference]:
    """How the cluster differs from the (resolved) topics. Reads only."""
    wanted = {topic.name: topic for topic in topics}
    found = {it["name"]: it for it in admin.describe_topics(list(wanted)) if it["error_code"] != _UNKNOWN}
    differences = [
        Difference(topic.name, "missing", f"The topic {topic.name} does not exist.", command(topic))
        for topic in wanted.values()
        if topic.name not in found
    ]
    configs = _configs(admin, list(found)) if found else {}
    for name, description in found.items():
        differences += _of_partitions(wanted[name], description)
        differences += _of_configs(wanted[name], configs.get(name, {}))
    return differences


def _of_partitions(topic: Topic, description: Mapping[str, Any]) -> list[Difference]:
    partitions = description["partitions"]
    differences = []
    if len(partitions) != topic.partitions:
        differences.append(
            Difference(
                topic.name,
                "partitions",
                f"The topic {topic.name} has {len(partitions)} partitions, KAFKA_PARTITIONS is {topic.partitions}.",
                f"Set SENTSTREAM_KAFKA_PARTITIONS={len(partitions)}, or make the topics anew (docs/topics.md, "
                "'Another number of partitions').",
            )
        )
    replicas = min((len(partition["replica_nodes"]) for partition in partitions), default=0)
    if replicas < topic.replicas:
        differences.append(
            Difference(
                topic.name,
                "replicas",
                f"The topic {topic.name} has {replicas} replica(s), {topic.replicas} are planned: a record that is "
                "acknowledged can be lost with a broker (the gap is then seen, and counted anew).",
                "Reassign the partitions (kafka-reassign-partitions.sh), or set KAFKA_REPLICATION_FACTOR.",
                critical=False,
            )
        )
    return differences


def _of_configs(topic: Topic, actual: Mapping[str, str]) -> list[Difference]:
    differences = []
    for key, value in topic.configs.items():
        found = actual.get(key)
        if found is None or _good_enough(key, value, found):
            continue
        # with both policies a topic without keys takes no record, and one with keys forgets what rests for long
        forgets = key == "cleanup.policy" and value == "compact" and value in found.split(",")
        critical = key in ("max.message.bytes", "cleanup.policy") and not forgets
        differences.append(
            Difference(
                topic.name,
                "config",
                f"The topic {topic.name} has {key}={found}, {value} is planned.",
                f"kafka-configs.sh --bootstrap-server ... --alter --topic {topic.name} --add-config {key}={value}",
                critical,
            )
        )
    return differences


def _good_enough(key: str, planned: str, found: str) -> bool:
    if key in ("max.message.bytes", "min.insync.replicas"):
        return int(found) >= int(planned)
    if key == "cleanup.policy":
        return set(found.split(",")) == {planned}
    if key == "retention.ms":
        return int(found) < 0 or int(found) >= int(planned)
    return True  # tuning, left to the operator of the cluster


def _configs(admin: KafkaAdminClient, names: list[str]) -> dict[str, dict[str, str]]:
    """All configurations of the topics; none without the right DESCRIBE_CONFIGS."""
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    try:
        answer = admin.describe_configs(resources, config_filter="all")
    except (kafka.errors.AuthorizationError, kafka.errors.UnsupportedVersionError):
        return {}
    return {
        name: {key: it["value"] for key, it in entries.items() if it["value"] is not None}
        for name, entries in answer.get("topic", {}).items()
    }


def create(admin: KafkaAdminClient, topics: Iterable[Topic]) -> list[str]:
    """Create the (resolved) topics and wait until they have leaders; the names of those created. A topic that exists
    already, or that another process creates at the same time, is not an error."""
    wanted = {
        topic.name: {
            "num_partitions": topic.partitions,
            "replication_factor": topic.replicas,
            "configs": dict(topic.configs),
        }
        for topic in topics
    }
    if not wanted:
        return []
    answer = admin.create_topics(wanted, raise_errors=False)
    made = []
    for it in answer["topics"]:
        if it["error_code"] == 0:
            made.append(it["name"])
        elif it["error_code"] != _EXISTS:
            raise PreconditionError(
                f"The topic {it['name']} can't be created: {it['error_message'] or it['error_code']}.",
                "Let an administrator create it, or give sentstream the right to (docs/topics.md, 'Rights').",
            )
    admin.wait_for_topics(list(wanted), timeout_ms=30_000)
    return made


def ensure(settings: KafkaSettings, *, create_missing: bool | None = None) -> list[Difference]:
    """Create the missing topics (unless KAFKA_CREATE_TOPICS is false) and return what still differs from the plan.

    UnreachableError where no broker answers.
    """
    cluster = Cluster.of(settings)
    allowed = settings.kafka_create_topics if create_missing is None else create_missing
    admin = cluster.admin()
    try:
        topics = resolved(plan(settings), brokers_of(admin))
        differences = check(admin, topics)
        missing = {difference.topic for difference in differences if difference.what == "missing"}
        if missing and allowed:
            create(admin, [topic for topic in topics if topic.name in missing])
            differences = check(admin, topics)
    except kafka.errors.KafkaError as error:
        raise cluster.refused(error) from error
    finally:
        admin.close()
    return differences


def require(differences: Iterable[Difference]) -> None:
    """PreconditionError that names every critical difference and its fix, where there is any."""
    critical = [difference for difference in differences if difference.critical]
    if critical:
        raise PreconditionError(
            "\n".join(difference.finding for difference in critical),
            "\nTo do:\n" + "\n".join(f"  {difference.fix}" for difference in critical),
        )
