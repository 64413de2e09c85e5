"""Versions of the schema ``sentstream``: files ``NNNN_name.sql``, each run once, in order, in a transaction of its own.

A file may name the mailer's schema as ``:"mailer"``, the way psql writes a variable that is an identifier.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata, resources
from typing import Final

from connectors.postgres.catalog.names import quoted

_FILE: Final = re.compile(r"(\d{4})_(\w+)\.sql")
_MAILER: Final = ':"mailer"'


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema: its version, its name, and the SQL as it is in the file."""

    version: int
    name: str
    text: str

    def sql(self, mailer_schema: str) -> str:
        """The statements, with the mailer's schema put in."""
        return self.text.replace(_MAILER, quoted(mailer_schema)).strip()


def migrations() -> tuple[Migration, ...]:
    """All of them, in order of version."""
    found = []
    for file in resources.files(__package__).joinpath("migrations").iterdir():
        match = _FILE.fullmatch(file.name)
        if match is not None:
            found.append(Migration(int(match[1]), match[2], file.read_text(encoding="utf-8")))
    return tuple(sorted(found, key=lambda migration: migration.version))


def release() -> str:
    """The version of this distribution, as ``schema_version`` notes it."""
    try:
        return metadata.version("sentstream")
    except metadata.PackageNotFoundError:
        return "0.0.0"
