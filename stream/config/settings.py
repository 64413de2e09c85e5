"""Every setting: its type, default and meaning. Values are checked here; ``sources.py`` says where they come from.

A key has one name in four spellings: ``FLUSH_INTERVAL`` in texts, ``SENTSTREAM_FLUSH_INTERVAL`` in the environment,
``flush_interval`` in the file and in code, ``--flush-interval`` on the command line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, field_serializer, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from stream.config.values import (
    SecretText,
    mask_secrets,
    mask_url,
    parse_duration,
    parse_size,
    passwords_in,
    show_duration,
    show_size,
    split_address,
    split_list,
)
from stream.core.errors import ConfigurationError

PREFIX = "SENTSTREAM_"

Duration = Annotated[float, BeforeValidator(parse_duration)]
Size = Annotated[int, BeforeValidator(parse_size)]
Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_list)]
Secret = Annotated[str, AfterValidator(SecretText)]

#: titles of the groups, in the order of the reference and of `config`
GROUPS = ("PostgreSQL", "Counting", "Recounts and reports", "HTTP", "Kafka", "Lag", "Logs", "Testing")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value comes from. ``kind``: flag, environment, file or default; ``where``: the flag, variable or path."""

    kind: Literal["flag", "environment", "file", "default"]
    where: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.where}".rstrip()


def _key(
    default: Any, group: str, *, text: str, kind: str = "text", reload: bool = False, example: str = "", **checks: Any
) -> Any:
    """A setting: its default, the group it is listed under, what it means, and how its value is shown and masked."""
    extra: dict[str, Any] = {"group": group, "kind": kind, "reload": reload, "example": example}
    return Field(default, description=text, json_schema_extra=extra, **checks)


class Settings(BaseSettings):
    """All settings, checked and immutable. Built by ``config.load``; ``Settings(...)`` itself reads no source."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True
    )

    # fmt: off
    database_url: Secret = _key(
        "", "PostgreSQL", kind="url", example="postgresql://sentstream@db.example.org/listmonk",
        text="The mailer's database as a libpq URL (or `key=value` words), direct and not through a pooler: "
        "replication can't pass one.",
    )
    mailer_schema: str = _key(
        "public", "PostgreSQL", min_length=1, max_length=63,
        text="Schema of the mailer's tables.",
    )
    slot_name: str = _key(
        "sentstream", "PostgreSQL",
        text="Replication slot. Slot names are cluster-wide: give each database of a server its own.",
    )
    publication: str = _key(
        "sentstream", "PostgreSQL", min_length=1, max_length=63,
        text="Publication that the slot is read with.",
    )
    slot_kind: Literal["permanent", "temporary"] = _key(
        "permanent", "PostgreSQL", kind="choice",
        text="`permanent` keeps the WAL while sentstream is down; `temporary` never pins WAL and starts from a new "
        "baseline.",
    )
    reconnect_max: Duration = _key(
        "30s", "PostgreSQL", kind="duration", reload=True,
        text="Longest pause between two attempts to reconnect.",
    )

    flush_interval: Duration = _key(
        "100ms", "Counting", kind="duration", reload=True,
        text="How often changed counts are written while mail flows; later, up to 1 s, when far behind.",
    )
    removed: Literal["keep", "follow"] = _key(
        "keep", "Counting", kind="choice",
        text="`keep`: a deleted row does not unsend a mail, `sent` is the queue's count plus the removed; "
        "`follow`: `sent` is the live count.",
    )
    write_back: bool = _key(
        True, "Counting", kind="switch",
        text="Write `campaigns.sent`. `false` is a shadow mode: it needs no UPDATE right and only shows what it "
        "would write.",
    )
    catchup_threshold: Size = _key(
        "64MB", "Counting", kind="size", reload=True,
        text="WAL behind which the backlog is read by SQL chunks instead of the walsender; `0` never does.",
    )
    pending_limit: Size = _key(
        "64MB", "Counting", kind="size",
        text="Unflushed changes held in memory before reading pauses.",
    )
    history_retention: Duration = _key(
        "400d", "Counting", kind="duration", reload=True,
        text="How long `sent` per minute is kept; older minutes are folded into one row a campaign, so that the "
        "sum stays.",
    )

    recount_interval: Duration = _key(
        "300s", "Recounts and reports", kind="duration", reload=True,
        text="Time between two full recounts.",
    )
    recount_lock_timeout: Duration = _key(
        "2s", "Recounts and reports", kind="duration", reload=True,
        text="How long a recount waits for its table lock (TRUNCATE by the mailer waits behind it); then it tries "
        "again.",
    )
    recount_timeout: Duration = _key(
        "5m", "Recounts and reports", kind="duration", reload=True,
        text="How long the counting statement of a recount may take.",
    )
    recount_patience: Duration = _key(
        "5s", "Recounts and reports", kind="duration", reload=True,
        text="How long a recount waits for the stream's verdict before it raises `campaigns.sent` by itself.",
    )
    timezone: str = _key(
        "", "Recounts and reports", example="Europe/Berlin",
        text="Time zone of the send window; empty: the mailer's `app.timezone`.",
    )
    report_retention: Duration = _key(
        "400d", "Recounts and reports", kind="duration", reload=True,
        text="How long runs keep their counts and verdicts; the chain of digests stays.",
    )
    notify_url: Secret = _key(
        "", "Recounts and reports", kind="webhook", example="https://hooks.example.org/sentstream",
        text="Gets a JSON POST on drift, stall and recovery.",
    )

    http_listen: str = _key(
        "127.0.0.1:8087", "HTTP",
        text="Address and port of the API and the dashboard; `off` for none. Without HTTP_TOKEN only a loopback "
        "address is accepted.",
    )
    http_token: Secret = _key(
        "", "HTTP", kind="secret",
        text="Bearer token that every call but the health calls needs.",
    )
    http_allowed_hosts: Words = _key(
        (), "HTTP", kind="list", example="sentstream.example.org",
        text="Host names, beside loopback, that requests may be addressed to.",
    )
    http_allowed_origins: Words = _key(
        (), "HTTP", kind="list", example="https://mail.example.org",
        text="Origins, beside ours, whose pages may call the API; these get CORS too.",
    )
    http_max_streams: int = _key(
        2000, "HTTP", kind="number", ge=1,
        text="Open event streams at once.",
    )
    http_trusted_proxies: Words = _key(
        (), "HTTP", kind="list", example="127.0.0.1",
        text="Addresses of proxies whose X-Forwarded-* headers are believed.",
    )

    metrics_listen: str = _key(
        "off", "HTTP", example="127.0.0.1:9087",
        text="Address and port at which `run`, `read`, `work` and `reconcile` show `/metrics`, `/livez` and `/readyz`; "
        "the rules of HTTP_LISTEN hold. The roles that `run` starts take the ports from there on.",
    )

    kafka_bootstrap_servers: Words = _key(
        (), "Kafka", kind="list", example="kafka-1:9092,kafka-2:9092",
        text="Brokers as host:port. Empty: embedded, without Kafka.",
    )
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = _key(
        "PLAINTEXT", "Kafka", kind="choice",
        text="How to talk to the brokers.",
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = _key(
        "PLAIN", "Kafka", kind="choice",
        text="SASL mechanism.",
    )
    kafka_sasl_username: str = _key(
        "", "Kafka",
        text="SASL user (Event Hubs: `$ConnectionString`).",
    )
    kafka_sasl_password: Secret = _key(
        "", "Kafka", kind="secret",
        text="SASL password.",
    )
    kafka_ssl_cafile: str = _key(
        "", "Kafka",
        text="File of the certificate authorities; empty: the system's.",
    )
    kafka_ssl_certfile: str = _key(
        "", "Kafka",
        text="File of the client's certificate.",
    )
    kafka_ssl_keyfile: str = _key(
        "", "Kafka",
        text="File of the client's key.",
    )
    kafka_ssl_keyfile_password: Secret = _key(
        "", "Kafka", kind="secret",
        text="Password of that key.",
    )
    kafka_partitions: int = _key(
        12, "Kafka", kind="number", ge=1, le=1000,
        text="Partitions of the topics: the most workers that can share the work. Another number begins a new "
        "epoch.",
    )
    kafka_topic_prefix: str = _key(
        "sentstream", "Kafka", pattern=r"^[A-Za-z0-9._-]{1,100}$",
        text="First word of the topics' names.",
    )
    kafka_replication_factor: int = _key(
        0, "Kafka", kind="number", ge=0, le=10,
        text="Replicas of topics that `setup` makes; 0: as many as there are brokers, 3 at most.",
    )
    kafka_create_topics: bool = _key(
        True, "Kafka", kind="switch",
        text="Whether `setup` makes the topics. `false` for brokers that allow none (Event Hubs): then it says "
        "which to make.",
    )
    kafka_changes_retention: Duration = _key(
        "7d", "Kafka", kind="duration",
        text="How long the topic of changes is kept.",
    )
    kafka_instance: str = _key(
        "", "Kafka",
        text="Name under which a worker is a static member of its group, so that a restart moves no partitions; "
        "empty: host name and place among the workers of one host.",
    )
    kafka_workers: int = _key(
        1, "Kafka", kind="number", ge=1, le=64,
        text="Workers that `run` starts.",
    )

    lag_window: Duration = _key(
        "60s", "Lag", kind="duration", reload=True,
        text="Time over which a lag is judged.",
    )
    lag_allowed: Duration = _key(
        "10s", "Lag", kind="duration", reload=True,
        text="Lag that is no reason to worry.",
    )
    slot_allowed: Size = _key(
        "1GB", "Lag", kind="size", reload=True,
        text="WAL held by the slot that is no reason to worry.",
    )
    stall_restart: Duration = _key(
        "60s", "Lag", kind="duration", reload=True,
        text="A role that stands still this long while there is work restarts itself.",
    )

    log_format: Literal["text", "json"] = _key(
        "text", "Logs", kind="choice",
        text="`text` for people, `json` for machines.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = _key(
        "info", "Logs", kind="choice", reload=True,
        text="Least severity that is logged.",
    )


    failpoints: str = _key(
        "", "Testing", example="after_commit=kill:3",
        text="Named places where the process trips, for tests of crashes: `place=kill|stop|raise[:nth]`.",
    )
    # fmt: on

    _origins: Mapping[str, Origin] = PrivateAttr(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        *_: Any,
        **__: Any,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what the caller gives: ``config.load`` reads environment and file, and remembers who said what."""
        return (init_settings,)

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, value: str) -> str:
        scheme, found, _rest = value.partition("://")
        if found and scheme not in ("postgresql", "postgres"):
            raise ValueError("must begin with postgresql://")
        if value and not found and "=" not in value:
            raise ValueError("must be a URL such as postgresql://user@host/database")
        return value

    @field_validator("slot_name")
    @classmethod
    def _check_slot_name(cls, value: str) -> str:
        if not value or len(value) > 63 or not set(value) <= set("abcdefghijklmnopqrstuvwxyz0123456789_"):
            raise ValueError("must be 1 to 63 lower-case letters, digits and underscores: PostgreSQL's rule for slots")
        return value

    @field_validator("timezone")
    @classmethod
    def _check_timezone(cls, value: str) -> str:
        if value:
            try:
                ZoneInfo(value)
            except (ValueError, OSError, KeyError):
                raise ValueError("must be a time zone such as Europe/Berlin or America/New_York") from None
        return value

    @field_validator("http_listen", "metrics_listen")
    @classmethod
    def _check_http_listen(cls, value: str) -> str:
        if value != "off":
            split_address(value)
        return value

    @field_validator("notify_url")
    @classmethod
    def _check_notify_url(cls, value: str) -> str:
        if value and (urlsplit(value).scheme not in ("http", "https") or not urlsplit(value).hostname):
            raise ValueError("must be an http:// or https:// address")
        return value

    @field_validator("kafka_bootstrap_servers")
    @classmethod
    def _check_brokers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for broker in value:
            split_address(broker)
        return value

    @field_validator("http_allowed_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            parts = urlsplit(origin)
            if parts.scheme not in ("http", "https") or not parts.netloc or parts.path or parts.query:
                raise ValueError("must be origins such as https://mail.example.org, without a path")
        return value

    @field_serializer(
        "database_url",
        "http_token",
        "notify_url",
        "kafka_sasl_password",
        "kafka_ssl_keyfile_password",
        when_used="json",
    )
    def _mask(self, value: str) -> str:
        return "***" if value else ""

    @property
    def kafka(self) -> bool:
        """Whether the Kafka shape is configured."""
        return bool(self.kafka_bootstrap_servers)

    @property
    def partitions(self) -> int:
        """Partitions of the campaigns: one when embedded, KAFKA_PARTITIONS with Kafka."""
        return self.kafka_partitions if self.kafka else 1

    @property
    def http_address(self) -> tuple[str, int] | None:
        """Host and port to listen on, None where HTTP is off."""
        return None if self.http_listen == "off" else split_address(self.http_listen)

    @property
    def metrics_address(self) -> tuple[str, int] | None:
        """Host and port of METRICS_LISTEN, None where it is off."""
        return None if self.metrics_listen == "off" else split_address(self.metrics_listen)

    def require_database(self) -> str:
        """DATABASE_URL, or a ConfigurationError that says how to give it."""
        if not self.database_url:
            raise ConfigurationError(
                "DATABASE_URL is not set.",
                "Give --database-url postgresql://user@host/database or set SENTSTREAM_DATABASE_URL; "
                "`sentstream demo` needs none.",
            )
        return self.database_url

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

    def origin(self, name: str) -> Origin:
        """Where the value of the setting ``name`` (lower case) comes from."""
        return self._origins.get(name, Origin("default"))

    def remember(self, origins: Mapping[str, Origin]) -> Settings:
        """These settings, knowing where each value comes from."""
        copy = self.model_copy()
        copy._origins = origins  # noqa: SLF001 (our own class)
        return copy

    def shown(self, name: str) -> Any:
        """The value of ``name`` as it may be shown to anybody: durations and sizes readable, secrets masked."""
        return show_value(name, getattr(self, name))

    def secrets(self) -> tuple[str, ...]:
        """The words that must never be printed: passwords, tokens and addresses with a secret in them."""
        found: list[str] = []
        for name in setting_names():
            value = getattr(self, name)
            if not value or not is_secret(name):
                continue
            found.extend(passwords_in(value) if setting_kind(name) == "url" else (str(value),))
        return tuple(found)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name in setting_names():
            yield name, self.shown(name)


def setting_names() -> tuple[str, ...]:
    """Names of all settings, in the order of the reference."""
    return tuple(Settings.model_fields)


def setting_kind(name: str) -> str:
    """What sort of value it is: text, url, webhook, secret, duration, size, number, switch, choice or list."""
    return str(_extra(name)["kind"])


def setting_group(name: str) -> str:
    """The title it is listed under, one of GROUPS."""
    return str(_extra(name)["group"])


def setting_text(name: str) -> str:
    """What it means, one sentence or two, in Markdown."""
    return Settings.model_fields[name].description or ""


def setting_example(name: str) -> str:
    """A value to start from, where the default is none."""
    return str(_extra(name)["example"])


def setting_choices(name: str) -> tuple[str, ...]:
    """The words it may be, where it is one of a few."""
    annotation = Settings.model_fields[name].annotation
    return tuple(get_args(annotation)) if setting_kind(name) == "choice" else ()


def is_reloadable(name: str) -> bool:
    """Whether SIGHUP takes a new value without a restart."""
    return bool(_extra(name)["reload"])


def is_secret(name: str) -> bool:
    """Whether its value, or a part of it, must not be shown."""
    return setting_kind(name) in ("secret", "url", "webhook")


def flag_name(name: str) -> str:
    """Its flag on the command line."""
    return "--" + name.replace("_", "-")


def show_value(name: str, value: Any) -> Any:
    """``value`` as the setting ``name`` shows it: text, number or list; secrets masked."""
    match setting_kind(name):
        case "secret":
            return "***" if value else ""
        case "url":
            return mask_secrets(str(value))
        case "webhook":
            return mask_url(str(value)) if value else ""
        case "duration":
            return show_duration(value)
        case "size":
            return show_size(value)
        case "list":
            return list(value)
    return value


def _extra(name: str) -> Mapping[str, Any]:
    extra = Settings.model_fields[name].json_schema_extra
    assert isinstance(extra, dict)
    return extra
