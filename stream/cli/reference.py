"""Generates docs/configuration.md from the settings: ``sentstream config --reference > docs/configuration.md``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from stream.config.settings import (
    GROUPS,
    PREFIX,
    Settings,
    flag_name,
    is_reloadable,
    is_secret,
    setting_choices,
    setting_example,
    setting_group,
    setting_names,
    setting_text,
)

_HEAD: Final = """\
# Configuration

<!-- Made by `sentstream config --reference > docs/configuration.md`; a test holds it to the code. -->

A setting has one name in four spellings. The first of these that is given counts:

| where | spelling | example |
|---|---|---|
| flag | `--flush-interval` | `sentstream run --flush-interval 50ms` |
| environment | `SENTSTREAM_FLUSH_INTERVAL` | `export SENTSTREAM_FLUSH_INTERVAL=50ms` |
| file | `flush_interval` | `flush_interval = "50ms"` in `sentstream.toml` |
| default | | see below |

`sentstream config` shows the effective values and where each comes from, secrets masked.

The file is the one of `--config` or `SENTSTREAM_CONFIG`, else `sentstream.toml` in the working directory, where there
is one. A key that is no setting is an error. A table may stand for the first part of a name:

```toml
database_url = "postgresql://sentstream@db.example.org/listmonk"

[recount]
interval = "5m"

[kafka]
bootstrap_servers = ["kafka-1:9092", "kafka-2:9092"]
```

Durations are `100ms`, `5s`, `5m`, `2h`, `400d`, or seconds. Sizes are `500kB`, `64MB`, `1GB` (powers of 1024), or
bytes. Switches are `true` or `false`. Lists are separated by commas. An empty variable counts as not set.

Secrets belong in the environment or in a file of their own, not on the command line, where other users of the machine
can read them: `SENTSTREAM_HTTP_TOKEN_FILE=/run/secrets/token` reads the value from that file; the same holds for each
setting that is marked *secret*. A secret in a file is read again at each
connect, so that a rotated password of the database needs no restart.

On SIGHUP the sources are read again. The settings marked *reload* take their new value, the others wait for a restart,
and the log says which.
"""


def reference_text() -> str:
    """The page, in Markdown."""
    return "\n".join([_HEAD, *_tables()])


def _tables() -> Iterator[str]:
    defaults = Settings()
    for group in GROUPS:
        yield f"## {group}\n\n| setting | default | meaning |\n|---|---|---|"
        for name in setting_names():
            if setting_group(name) == group:
                names = f"`{PREFIX}{name.upper()}`<br>`{flag_name(name)}`"
                yield f"| {names} | {_default(defaults, name)} | {_meaning(name)} |"
        yield ""


def _default(defaults: Settings, name: str) -> str:
    value = defaults.shown(name)
    if isinstance(value, bool):
        return "`true`" if value else "`false`"
    return f"`{value}`" if value not in ("", []) else ""


def _meaning(name: str) -> str:
    words = [setting_text(name)]
    if any(f"`{choice}`" not in words[0] for choice in setting_choices(name)):
        words.append("One of " + ", ".join(f"`{choice}`" for choice in setting_choices(name)) + ".")
    if setting_example(name):
        words.append(f"Example: `{setting_example(name)}`.")
    marks = [mark for mark, holds in (("secret", is_secret(name)), ("reload", is_reloadable(name))) if holds]
    words.extend(f"*{mark}*" for mark in marks)
    return " ".join(words).replace("|", "\\|")
