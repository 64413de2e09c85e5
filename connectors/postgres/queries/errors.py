"""What a read model says when the database can't answer: what is missing, where, and the next command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from stream.core.errors import PreconditionError, UnreachableError


@contextmanager
def reading(subject: str) -> Iterator[None]:
    """Turn errors of PostgreSQL while ``subject`` is read into errors of ours: PreconditionError, UnreachableError."""
    try:
        yield
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName, psycopg.errors.UndefinedColumn) as error:
        said = _first_line(error)
        fix = (
            "Run `sentstream setup`."
            if "sentstream." in said
            else "Check MAILER_SCHEMA and the database in DATABASE_URL; `sentstream doctor` says what is there."
        )
        raise PreconditionError(f"{subject} can't be read: {said}.", fix) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise PreconditionError(
            f"{subject} can't be read: {_first_line(error)}.",
            "Let the owner run `sentstream setup --part owner --role NAME`, which grants what is needed.",
        ) from error
    except psycopg.OperationalError as error:
        raise UnreachableError(
            f"{subject} can't be read: {_first_line(error)}.", "Try again when the server answers."
        ) from error


def _first_line(error: psycopg.Error) -> str:
    return (error.diag.message_primary or str(error).strip().partition("\n")[0] or type(error).__name__).rstrip(".")
