"""What a worker is told: its options, and how they follow from the settings."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from connectors.kafka.cluster import Cluster
from connectors.kafka.members import CLIENT_ID
from connectors.kafka.topics import Names
from stream.config.settings import Settings
from stream.core.partition import Policy


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """``database_url``: asked for at each connect; ``instance``: name of a static member, empty: dynamic; ``room``:
    bytes of records applied and not yet written at which a worker takes no more; ``interval``: seconds between flushes
    while counts change."""

    database_url: Callable[[], str]
    cluster: Cluster
    names: Names = field(default_factory=Names)
    partitions: int = 12
    mailer_schema: str = "public"
    policy: Policy = "keep"
    write_back: bool = True
    instance: str = ""
    room: int = 64 << 20
    reconnect_max: float = 30.0
    interval: Callable[[], float] = lambda: 0.1
    started_at: int = field(default_factory=lambda: time.time_ns() // 1_000_000)

    @property
    def client_id(self) -> str:
        """Shows to the broker, and so to another worker of the same name, which of them started first."""
        return f"{CLIENT_ID}-{self.started_at}"

    @property
    def member(self) -> str | None:
        """The static member's name in its group. A member that comes back under its name gets the partitions that it
        had, without a rebalance; so with another number of partitions it must have another name, or the new partitions
        have no owner."""
        return f"{self.instance}.{self.partitions}" if self.instance else None

    @classmethod
    def of(cls, settings: Settings, interval: Callable[[], float], instance: str) -> WorkerOptions:
        """The options that the settings ask for."""
        settings.require_database()
        return cls(
            settings.require_database,
            Cluster.of(settings),
            Names(settings.kafka_topic_prefix),
            settings.kafka_partitions,
            settings.mailer_schema,
            settings.removed,
            settings.write_back,
            instance,
            room=settings.pending_limit,
            reconnect_max=settings.reconnect_max,
            interval=interval,
        )
