"""Settings of the Kafka mode."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from stream.config.fields import Addresses, Duration, Secret, setting
from stream.core.errors import ConfigurationError


class KafkaSettings(BaseModel):
    model_config = ConfigDict(title="Kafka")

    kafka_bootstrap_servers: Addresses = setting(
        (), "Brokers as host:port. Empty: embedded, without Kafka.", example="kafka-1:9092,kafka-2:9092"
    )
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = setting(
        "PLAINTEXT", "How to talk to the brokers."
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = setting("PLAIN", "SASL mechanism.")
    kafka_sasl_username: str = setting("", "SASL user (Event Hubs: `$ConnectionString`).")
    kafka_sasl_password: Secret = setting("", "SASL password.")
    kafka_ssl_cafile: str = setting("", "File of the certificate authorities; empty: the system's.")
    kafka_ssl_certfile: str = setting("", "File of the client's certificate.")
    kafka_ssl_keyfile: str = setting("", "File of the client's key.")
    kafka_ssl_keyfile_password: Secret = setting("", "Password of that key.")
    kafka_partitions: int = setting(
        12,
        "Partitions of the topics: the most workers that can share the work. Another number begins a new epoch.",
        ge=1,
        le=1000,
    )
    kafka_topic_prefix: str = setting(
        "sentstream", "First word of the topics' names.", pattern=r"^[A-Za-z0-9._-]{1,100}$"
    )
    kafka_replication_factor: int = setting(
        0, "Replicas of topics that `setup` makes; 0: as many as there are brokers, 3 at most.", ge=0, le=10
    )
    kafka_create_topics: bool = setting(
        True,
        "Whether `setup` makes the topics. `false` for brokers that allow none (Event Hubs): then it says "
        "which to make.",
    )
    kafka_changes_retention: Duration = setting("7d", "How long the topic of changes is kept.")
    kafka_instance: str = setting(
        "",
        "Name under which a worker is a static member of its group, so that a crash and restart move no partitions; "
        "empty: host name and place among the workers of one host.",
    )
    kafka_workers: int = setting(1, "Workers that `run` starts.", ge=1, le=64)

    @property
    def kafka(self) -> bool:
        """Whether the Kafka mode is configured."""
        return bool(self.kafka_bootstrap_servers)

    @property
    def partitions(self) -> int:
        """Partitions of the campaigns: one when embedded, KAFKA_PARTITIONS with Kafka."""
        return self.kafka_partitions if self.kafka else 1

    def require_kafka(self) -> tuple[str, ...]:
        """The brokers, after a check that what the security protocol needs is there; else a ConfigurationError."""
        if not self.kafka:
            raise ConfigurationError(
                "KAFKA_BOOTSTRAP_SERVERS is not set.",
                "Set SENTSTREAM_KAFKA_BOOTSTRAP_SERVERS=host:port; without Kafka use `sentstream run`.",
            )
        protocol = self.kafka_security_protocol
        if protocol.startswith("SASL") and not (self.kafka_sasl_username and self.kafka_sasl_password):
            missing = "KAFKA_SASL_PASSWORD" if self.kafka_sasl_username else "KAFKA_SASL_USERNAME"
            raise ConfigurationError(
                f"{missing} is not set, but KAFKA_SECURITY_PROTOCOL is {protocol}.", f"Set SENTSTREAM_{missing}."
            )
        if bool(self.kafka_ssl_certfile) != bool(self.kafka_ssl_keyfile):
            missing = "KAFKA_SSL_KEYFILE" if self.kafka_ssl_certfile else "KAFKA_SSL_CERTFILE"
            raise ConfigurationError(
                f"{missing} is not set: certificate and key go together.", f"Set SENTSTREAM_{missing}."
            )
        return self.kafka_bootstrap_servers
