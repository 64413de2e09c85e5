"""Where settings come from: flag > environment > ``sentstream.toml`` > default. ``settings.py`` lists them.

`load` reads the sources and remembers the origin of each value; `reload` does it again for SIGHUP. This is the only
module that reads the environment.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import TomlConfigSettingsSource

from stream.config.settings import PREFIX, Origin, Settings, flag_name, is_reloadable, is_secret, setting_names
from stream.core.errors import ConfigurationError

DEFAULT_FILE = Path("sentstream.toml")

__all__ = [
    "child_environment",
    "Settings",
    "Origin",
    "Reloaded",
    "Sources",
    "find_file",
    "load",
    "reload",
    "to_environment",
    "unknown_variables",
]


@dataclass(frozen=True, slots=True, repr=False)
class Sources:
    """Where to look. ``flags``: values of the command line by lower-case name (None: not given); ``path``: the file,
    without one SENTSTREAM_CONFIG or ``./sentstream.toml`` where it exists; ``environ``: in place of the process's.
    """

    flags: Mapping[str, object] | None = None
    path: Path | str | None = None
    environ: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a SIGHUP brought: the settings as they are now, the names that changed, those that need a restart."""

    settings: Settings
    changed: tuple[str, ...]
    need_restart: tuple[str, ...]


def load(
    flags: Mapping[str, object] | None = None,
    *,
    config: Path | str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """The settings, from the sources as `Sources` describes them.

    ConfigurationError names the key, where it was set and what is wrong with it.
    """
    variables = os.environ if environ is None else environ
    values: dict[str, object] = {}
    origins: dict[str, Origin] = {}
    files: dict[str, Path] = {}
    path = find_file(config, variables)
    if path is not None:
        for name, value in _from_file(path).items():
            values[name], origins[name] = value, Origin("file", str(path))
    for name, (value, variable) in _from_environment(variables).items():
        values[name], origins[name] = value, Origin("environment", variable)
        if variable.endswith("_FILE"):
            files[name] = Path(variables[variable])
    for name, value in (flags or {}).items():
        if value is not None:
            values[name], origins[name] = value, Origin("flag", flag_name(name))
            files.pop(name, None)
    try:
        return Settings(**values).remember(origins, files)  # type: ignore[arg-type]
    except ValidationError as error:
        raise _configuration_error(error, values, origins) from None


def reload(settings: Settings, sources: Sources) -> Reloaded:
    """Read ``sources`` again: intervals and limits take their new value, the rest stays until a restart."""
    fresh = load(sources.flags, config=sources.path, environ=sources.environ)
    differing = [name for name in setting_names() if getattr(fresh, name) != getattr(settings, name)]
    changed = tuple(name for name in differing if is_reloadable(name))
    merged = settings.model_copy(update={name: getattr(fresh, name) for name in changed})
    origins = {name: (fresh if name in changed else settings).origin(name) for name in setting_names()}
    return Reloaded(merged.remember(origins), changed, tuple(name for name in differing if name not in changed))


def to_environment(settings: Settings) -> dict[str, str]:
    """Variables for a child process, so that it loads the same settings: what flags and code gave.

    What came from environment and file is left out: the child finds it there, also after a change and SIGHUP.
    Give it the file by ``SENTSTREAM_CONFIG``.
    """
    defaults = Settings()
    child = {}
    for name in setting_names():
        value, kind = getattr(settings, name), settings.origin(name).kind
        if kind == "flag" or (kind == "default" and value != getattr(defaults, name)):
            child[PREFIX + name.upper()] = _as_text(value)
    return child


def without_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for a child process that gets its settings in another way, or needs none: no secret of ours."""
    return {name: value for name, value in environ.items() if not name.startswith(PREFIX)}


def child_environment(settings: Settings, *, config: Path) -> dict[str, str]:
    """The whole environment of a child process that shall have these settings and no others; ``config``: its file."""
    return {**without_settings(os.environ), **to_environment(settings.remember({})), PREFIX + "CONFIG": str(config)}


def unknown_variables(environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Variables that begin with SENTSTREAM_ and are no setting: likely typing errors, so `config` lists them."""
    variables = os.environ if environ is None else environ
    known = {PREFIX + name.upper() for name in setting_names()}
    known |= {PREFIX + name.upper() + "_FILE" for name in setting_names() if is_secret(name)}
    known.add(PREFIX + "CONFIG")
    return tuple(sorted(name for name in variables if name.startswith(PREFIX) and name not in known))


def find_file(config: Path | str | None = None, environ: Mapping[str, str] | None = None) -> Path | None:
    """The configuration file that `load` reads; ConfigurationError where one was asked for and isn't there."""
    variables = os.environ if environ is None else environ
    asked = config or variables.get(PREFIX + "CONFIG")
    if not asked:
        return DEFAULT_FILE if DEFAULT_FILE.is_file() else None
    path = Path(asked)
    if not path.is_file():
        raise ConfigurationError(
            f"The configuration file {path} does not exist.", "Check --config or SENTSTREAM_CONFIG."
        )
    return path


def _from_environment(variables: Mapping[str, str]) -> dict[str, tuple[object, str]]:
    """Name -> (value, variable). An empty variable counts as not set; a secret may be in the file ..._FILE names."""
    found: dict[str, tuple[object, str]] = {}
    for name in filter(is_secret, setting_names()):
        variable = PREFIX + name.upper() + "_FILE"
        if variables.get(variable):
            found[name] = (_secret_in(Path(variables[variable]), variable), variable)
    given = {variable.upper(): value for variable, value in variables.items() if value}
    for name in setting_names():
        variable = PREFIX + name.upper()
        if variable in given:
            found[name] = (given[variable], variable)
    return found


def _secret_in(path: Path, variable: str) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"{variable} names {path}, which can't be read: {_reason(error)}.",
            "Name a readable file that holds the value alone.",
        ) from None


def _from_file(path: Path) -> dict[str, object]:
    """The file's settings. A table's name is the first part of its keys: ``[kafka]`` ``partitions = 12``."""
    try:
        flat = dict(_flatten(TomlConfigSettingsSource(Settings, path).toml_data))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} can't be read: {_reason(error)}.", "Check its rights.") from None
    except ValueError as error:
        raise ConfigurationError(f"{path} is no valid TOML: {error}.", "See docs/configuration.md.") from None
    for name in flat:
        if name not in Settings.model_fields:
            raise ConfigurationError(f"{name.upper()} in {path} is no setting.", _did_you_mean(name))
    return flat


def _flatten(table: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in table.items():
        name = (prefix + key).lower().replace("-", "_")
        if isinstance(value, dict):
            yield from _flatten(value, name + "_")
        else:
            yield name, value


def _configuration_error(
    error: ValidationError, values: Mapping[str, object], origins: Mapping[str, Origin]
) -> ConfigurationError:
    problems = [_problem(detail, values, origins) for detail in error.errors()]
    return ConfigurationError("; ".join(problems) + ".", "`sentstream config --reference` explains every setting.")


def _problem(detail: ErrorDetails, values: Mapping[str, object], origins: Mapping[str, Origin]) -> str:
    name = str(detail["loc"][0])
    if name not in Settings.model_fields:
        return f"{name.upper()} is no setting. {_did_you_mean(name)}".rstrip(".")
    shown = "" if is_secret(name) else f" {str(values.get(name))!r}"
    return f"{name.upper()}{shown} ({origins.get(name, Origin('default'))}) {_requirement(detail)}"


def _requirement(detail: ErrorDetails) -> str:
    """What a value must be, to stand after its name: "must be one of keep or follow"."""
    context: Mapping[str, Any] = detail.get("ctx", {})
    match detail["type"]:
        case "value_error":
            return str(context["error"])
        case "literal_error":
            return f"must be one of {context['expected']}".replace("'", "")
        case "bool_parsing" | "bool_type":
            return "must be true or false"
        case "int_parsing" | "int_type" | "int_from_float":
            return "must be a whole number"
        case "greater_than_equal":
            return f"must be {context['ge']} or more"
        case "less_than_equal":
            return f"must be {context['le']} or less"
        case "string_type":
            return "must be a text"
    return detail["msg"].replace("Input should be", "must be").replace("String should", "must")


def _did_you_mean(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), setting_names(), n=1, cutoff=0.6)
    return f"Did you mean {near[0].upper()}?" if near else "`sentstream config` lists all settings."


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else "it is not UTF-8"
