"""All settings in one typed model. Values are checked by their types (``fields.py``); ``sources.py`` says where they
come from.

A key has one name in four spellings: ``FLUSH_INTERVAL`` in texts, ``SENTSTREAM_FLUSH_INTERVAL`` in the environment,
``flush_interval`` in the file and in code, ``--flush-interval`` on the command line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, PrivateAttr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from stream.config.fields import choices_of, extra_of, kind_of
from stream.config.http_api import HttpSettings
from stream.config.kafka import KafkaSettings
from stream.config.operations import LagSettings, LogSettings, TestingSettings
from stream.config.postgres import CountingSettings, PostgresSettings, RecountSettings
from stream.config.values import SecretText, mask_url, show_duration, show_size
from stream.core.errors import ConfigurationError
from stream.core.masking import mask_passwords, passwords_in

PREFIX: Final = "SENTSTREAM_"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value comes from. ``kind``: flag, environment, file or default; ``where``: the flag, variable or path."""

    kind: Literal["flag", "environment", "file", "default"]
    where: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.where}".rstrip()


class Settings(
    PostgresSettings,
    CountingSettings,
    RecountSettings,
    HttpSettings,
    KafkaSettings,
    LagSettings,
    LogSettings,
    TestingSettings,
    BaseSettings,
):
    """All settings, checked and immutable. Built by ``sources.load``; ``Settings(...)`` itself reads no source."""

    model_config = SettingsConfigDict(
        title="Settings",
        env_prefix=PREFIX,
        extra="forbid",
        frozen=True,
        validate_default=True,
        hide_input_in_errors=True,
    )

    _origins: Mapping[str, Origin] = PrivateAttr(default_factory=dict)
    _secret_files: Mapping[str, Path] = PrivateAttr(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        *_: Any,
        **__: Any,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what the caller gives: ``sources.load`` reads environment and file, and remembers where each value came
        from."""
        return (init_settings,)

    def origin(self, name: str) -> Origin:
        """Where the value of the setting ``name`` (lower case) comes from."""
        return self._origins.get(name, Origin("default"))

    def remember(self, origins: Mapping[str, Origin], secret_files: Mapping[str, Path] | None = None) -> Settings:
        """These settings, knowing where each value comes from. ``secret_files``: the files that hold secrets."""
        copy = self.model_copy()
        copy._origins = origins  # noqa: SLF001 (our own class)
        if secret_files is not None:
            copy._secret_files = secret_files  # noqa: SLF001
        return copy

    def secret(self, name: str) -> str:
        """The secret ``name`` as it is now: one in a file is read again, for it may have been rotated. A file that
        can't be read, or is being written, leaves the value that is known."""
        path = self._secret_files.get(name)
        try:
            read = "" if path is None else path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            read = ""
        known: str = getattr(self, name)
        return SecretText(read) if read else known

    def require_database(self) -> str:
        """DATABASE_URL as it is now (see `secret`), or a ConfigurationError that says how to give it."""
        if not self.database_url:
            raise ConfigurationError(
                "DATABASE_URL is not set.",
                "Give --database-url postgresql://user@host/database or set SENTSTREAM_DATABASE_URL; "
                "`sentstream demo` needs none.",
            )
        return self.secret("database_url")

    def shown(self, name: str) -> Any:
        """The value of ``name`` for people: durations and sizes readable, secrets masked."""
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


_GROUPS: Final = tuple(
    group for group in Settings.__bases__ if issubclass(group, BaseModel) and not issubclass(group, BaseSettings)
)
_FIELDS: Final = {name: field for group in _GROUPS for name, field in group.model_fields.items()}
_GROUP_OF: Final = {name: str(group.model_config["title"]) for group in _GROUPS for name in group.model_fields}
#: titles of the groups, in the order of the reference and of `config`
GROUPS: Final = tuple(dict.fromkeys(_GROUP_OF.values()))


def setting_names() -> tuple[str, ...]:
    """Names of all settings, in the order of the reference."""
    return tuple(_GROUP_OF)


def setting_group(name: str) -> str:
    """The title it is listed under, one of GROUPS."""
    return _GROUP_OF[name]


def setting_kind(name: str) -> str:
    """What sort of value it is: see `fields.kind_of`."""
    return kind_of(_FIELDS[name])


def setting_text(name: str) -> str:
    """What it means, one sentence or two, in Markdown."""
    return _FIELDS[name].description or ""


def setting_example(name: str) -> str:
    """A value to start from, where the default is none."""
    return str(extra_of(_FIELDS[name])["example"])


def setting_choices(name: str) -> tuple[str, ...]:
    """The words it may be, where it is one of a few."""
    return choices_of(_FIELDS[name])


def is_reloadable(name: str) -> bool:
    """Whether SIGHUP takes a new value without a restart."""
    return bool(extra_of(_FIELDS[name])["reload"])


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
            return mask_passwords(str(value))
        case "webhook":
            return mask_url(str(value)) if value else ""
        case "duration":
            return show_duration(value)
        case "size":
            return show_size(value)
        case "list":
            return list(value)
    return value
