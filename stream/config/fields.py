"""The types of settings, and how a setting is declared. Each type knows how its value is written, checked and shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_origin
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer
from pydantic.fields import FieldInfo
from pydantic_settings import NoDecode

from stream.config.values import SecretText, parse_duration, parse_size, split_address, split_list


@dataclass(frozen=True, slots=True)
class Kind:
    """What sort of value a type holds, where the Python type alone does not tell."""

    name: str


def _database_url(value: str) -> str:
    scheme, found, _rest = value.partition("://")
    if found and scheme not in ("postgresql", "postgres"):
        raise ValueError("must begin with postgresql://")
    if value and not found and "=" not in value:
        raise ValueError("must be a URL such as postgresql://user@host/database")
    return value


def _slot_name(value: str) -> str:
    if not value or len(value) > 63 or not set(value) <= set("abcdefghijklmnopqrstuvwxyz0123456789_"):
        raise ValueError("must be 1 to 63 lower-case letters, digits and underscores: PostgreSQL's rule for slots")
    return value


def _time_zone(value: str) -> str:
    if value:
        try:
            ZoneInfo(value)
        except (ValueError, OSError, KeyError):
            raise ValueError("must be a time zone such as Europe/Berlin or America/New_York") from None
    return value


def _listen(value: str) -> str:
    if value != "off":
        split_address(value)
    return value


def _web_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, brackets that don't match
        good = False
    if value and not good:
        raise ValueError("must be an http:// or https:// address")
    return value


def _addresses(value: tuple[str, ...]) -> tuple[str, ...]:
    for address in value:
        split_address(address)
    return value


def _origins(value: tuple[str, ...]) -> tuple[str, ...]:
    for origin in value:
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.path or parts.query:
            raise ValueError("must be origins such as https://mail.example.org, without a path")
    return value


Duration: TypeAlias = Annotated[float, BeforeValidator(parse_duration), Kind("duration")]
Size: TypeAlias = Annotated[int, BeforeValidator(parse_size), Kind("size")]
Words: TypeAlias = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_list), Kind("list")]
Addresses: TypeAlias = Annotated[Words, AfterValidator(_addresses)]
Origins: TypeAlias = Annotated[Words, AfterValidator(_origins)]
Listen: TypeAlias = Annotated[str, AfterValidator(_listen)]
SlotName: TypeAlias = Annotated[str, AfterValidator(_slot_name)]
TimeZone: TypeAlias = Annotated[str, AfterValidator(_time_zone)]
_Masked: TypeAlias = Annotated[
    str,
    AfterValidator(SecretText),
    PlainSerializer(lambda value: "***" if value else "", return_type=str, when_used="json"),
]
Secret: TypeAlias = Annotated[_Masked, Kind("secret")]
DatabaseUrl: TypeAlias = Annotated[_Masked, AfterValidator(_database_url), Kind("url")]
WebhookUrl: TypeAlias = Annotated[_Masked, AfterValidator(_web_url), Kind("webhook")]


def setting(default: Any, text: str, *, reload: bool = False, example: str = "", **checks: Any) -> Any:
    """A setting: its default and meaning. ``reload``: SIGHUP takes a new value; ``example``: a value to start from."""
    extra: dict[str, Any] = {"reload": reload, "example": example}
    return Field(default, description=text, json_schema_extra=extra, **checks)


def extra_of(field: FieldInfo) -> Mapping[str, Any]:
    """What `setting` was told beside default and text."""
    assert isinstance(field.json_schema_extra, dict)
    return field.json_schema_extra


def kind_of(field: FieldInfo) -> str:
    """What sort of value it is: text, url, webhook, secret, duration, size, number, switch, choice or list."""
    for known in field.metadata:
        if isinstance(known, Kind):
            return known.name
    if choices_of(field):
        return "choice"
    if field.annotation is bool:
        return "switch"
    return "number" if field.annotation is int else "text"


def choices_of(field: FieldInfo) -> tuple[str, ...]:
    """The words it may be, where it is one of a few."""
    return tuple(get_args(field.annotation)) if get_origin(field.annotation) is Literal else ()
