"""How to reach the brokers: one value from the settings, as arguments for each of the two clients.

kafka-python (reader, setup, lag) and aiokafka under Faust (worker) name the same things differently. Both get the same
TLS context, so that they trust the same authorities.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import kafka.errors
from kafka import KafkaAdminClient

from stream.core.errors import ConfigurationError, SentstreamError, UnreachableError


class KafkaSettings(Protocol):
    """The settings that concern Kafka."""

    @property
    def kafka_bootstrap_servers(self) -> Sequence[str]: ...
    @property
    def kafka_security_protocol(self) -> str: ...
    @property
    def kafka_sasl_mechanism(self) -> str: ...
    @property
    def kafka_sasl_username(self) -> str: ...
    @property
    def kafka_sasl_password(self) -> str: ...
    @property
    def kafka_ssl_cafile(self) -> str: ...
    @property
    def kafka_ssl_certfile(self) -> str: ...
    @property
    def kafka_ssl_keyfile(self) -> str: ...
    @property
    def kafka_ssl_keyfile_password(self) -> str: ...
    @property
    def kafka_topic_prefix(self) -> str: ...
    @property
    def kafka_partitions(self) -> int: ...
    @property
    def kafka_replication_factor(self) -> int: ...
    @property
    def kafka_create_topics(self) -> bool: ...
    @property
    def kafka_changes_retention(self) -> float: ...


class BrokerUnreachableError(UnreachableError):
    """No broker answers, or a topic is gone. The roles that keep running wait until that is over."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Brokers (``host:port``) and credentials. Passwords are in no repr."""

    servers: tuple[str, ...]
    protocol: str = "PLAINTEXT"
    mechanism: str = "PLAIN"
    username: str = ""
    password: str = field(default="", repr=False)
    cafile: str = ""
    certfile: str = ""
    keyfile: str = ""
    keyfile_password: str = field(default="", repr=False)

    @classmethod
    def of(cls, settings: KafkaSettings) -> Cluster:
        """The cluster that the settings name."""
        return cls(
            tuple(settings.kafka_bootstrap_servers),
            settings.kafka_security_protocol,
            settings.kafka_sasl_mechanism,
            settings.kafka_sasl_username,
            settings.kafka_sasl_password,
            settings.kafka_ssl_cafile,
            settings.kafka_ssl_certfile,
            settings.kafka_ssl_keyfile,
            settings.kafka_ssl_keyfile_password,
        )

    @property
    def tls(self) -> bool:
        return self.protocol.endswith("SSL")

    @property
    def sasl(self) -> bool:
        return self.protocol.startswith("SASL")

    def context(self) -> ssl.SSLContext | None:
        """The TLS context, None without TLS. ConfigurationError where a file can't be used."""
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.cafile or None)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"KAFKA_SSL_CAFILE {self.cafile} can't be used: {error}.", "Name a file of PEM certificates."
            ) from error
        if self.certfile:
            try:
                context.load_cert_chain(self.certfile, self.keyfile or None, self.keyfile_password or None)
            except (OSError, ssl.SSLError) as error:
                raise ConfigurationError(
                    f"KAFKA_SSL_CERTFILE {self.certfile} and KAFKA_SSL_KEYFILE can't be used: {error}.",
                    "Name a PEM certificate, the key that belongs to it, and the key's password.",
                ) from error
        return context

    def kafka_python(self) -> dict[str, Any]:
        """Keyword arguments of kafka-python's clients."""
        arguments: dict[str, Any] = {
            "bootstrap_servers": list(self.servers),
            "security_protocol": self.protocol,
        }
        context = self.context()
        if context is not None:
            arguments["ssl_context"] = context
        if self.sasl:
            arguments["sasl_mechanism"] = self.mechanism
            arguments["sasl_plain_username"] = self.username
            arguments["sasl_plain_password"] = self.password
        return arguments

    def aiokafka(self) -> dict[str, Any]:
        """Keyword arguments of aiokafka's clients, where they are used without Faust."""
        return {
            "bootstrap_servers": list(self.servers),
            "security_protocol": self.protocol,
            "ssl_context": self.context(),
            "sasl_mechanism": self.mechanism,
            "sasl_plain_username": self.username or None,
            "sasl_plain_password": self.password or None,
        }

    def faust(self) -> dict[str, Any]:
        """Keyword arguments of ``faust.App``: where the brokers are, and credentials."""
        import faust  # noqa: PLC0415 - slow to import, and only the worker needs it

        arguments: dict[str, Any] = {"broker": [f"kafka://{server}" for server in self.servers]}
        context = self.context()
        if self.sasl:
            arguments["broker_credentials"] = faust.SASLCredentials(
                username=self.username, password=self.password, mechanism=self.mechanism, ssl_context=context
            )
        elif context is not None:
            arguments["broker_credentials"] = faust.SSLCredentials(context)
        return arguments

    def admin(self, *, timeout: float = 10.0) -> KafkaAdminClient:
        """An admin client; UnreachableError where no broker answers within ``timeout`` seconds, or none accepts us."""
        try:
            return KafkaAdminClient(
                client_id="sentstream",
                request_timeout_ms=int(max(timeout, 2) * 1000),
                bootstrap_timeout_ms=int(timeout * 1000),
                **self.kafka_python(),
            )
        except (kafka.errors.KafkaError, OSError) as error:
            raise self.refused(error) from error

    def refused(self, error: BaseException) -> SentstreamError:
        """The `SentstreamError` for an ``error`` of a Kafka client."""
        brokers = ", ".join(self.servers)
        if isinstance(error, kafka.errors.SaslAuthenticationFailedError):
            return UnreachableError(
                f"Kafka at {brokers} refuses the SASL user {self.username!r} ({self.mechanism}).",
                "Check KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD and KAFKA_SASL_MECHANISM.",
            )
        if isinstance(error, kafka.errors.AuthorizationError):
            return SentstreamError(
                f"Kafka at {brokers} does not allow this ({type(error).__name__}: {error}).",
                "Grant the rights that docs/topics.md lists for this role.",
            )
        if isinstance(error, kafka.errors.UnknownTopicOrPartitionError):
            return BrokerUnreachableError(
                f"A topic is missing in Kafka at {brokers} ({error}).",
                "Where it does not come back, `sentstream setup` creates it.",
            )
        return BrokerUnreachableError(
            f"Kafka at {brokers} does not answer ({type(error).__name__}: {error}).",
            f"Check {self._keys()}, and that the brokers run and advertise an address that can be reached from here.",
        )

    def _keys(self) -> str:
        """The settings to check: to a client that is refused it may look as if no broker answered."""
        keys = ["KAFKA_BOOTSTRAP_SERVERS", "KAFKA_SECURITY_PROTOCOL"]
        keys += ["KAFKA_SSL_CAFILE"] if self.tls else []
        keys += ["KAFKA_SASL_MECHANISM", "KAFKA_SASL_USERNAME", "KAFKA_SASL_PASSWORD"] if self.sasl else []
        return f"{', '.join(keys[:-1])} and {keys[-1]}"
