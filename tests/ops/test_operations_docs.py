"""docs/operations: every command can be typed, every query runs on a database that is set up, every link leads on."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from stream.config.settings import Settings
from tests.fix_postgres import Database
from tests.interfaces.fix_counted import Run, prepared_db, run
from tests.ops.prometheus import ROOT

__all__ = ["prepared_db", "run"]

PAGES = [*sorted((ROOT / "docs" / "operations").rglob("*.md")), *sorted((ROOT / "deploy").rglob("*.md"))]

_FENCED = re.compile(r"^( *)```([^\n]*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def blocks(*kinds: str) -> Iterator[tuple[str, str]]:
    """(page, text) of the fenced blocks of these kinds, without their indentation."""
    for page in PAGES:
        for indent, kind, text in re.findall(
            r"^( *)```([^\n]*)\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL
        ):
            if kind in kinds:
                yield page.stem, "\n".join(line.removeprefix(indent) for line in text.splitlines())


def commands() -> list[str]:
    """Lines that begin with ``sentstream``, in blocks and in the text."""
    found = set()
    for _, text in blocks("sh", "console"):
        for line in text.splitlines():
            line = re.sub(r"^\$ ", "", line.strip()).partition(" #")[0]
            if line.startswith("sentstream "):
                found.add(line)
            else:
                assert re.match(
                    r"(python3 -m venv|/opt/sentstream/bin/pip|useradd|install|systemctl|export|$)", line
                ), line
    for page in PAGES:
        found |= set(re.findall(r"`(sentstream [a-z][^`]*)`", page.read_text()))
    return sorted(found)


def test_every_command_can_be_typed(run: Run) -> None:
    for line in commands():
        words = [word.replace("CAMPAIGN", "7") for word in shlex.split(line)[1:]]
        found = run(*words, "--help")
        assert (found.code, found.err) == (0, ""), line


def test_every_query_runs(prepared_db: Database) -> None:
    with prepared_db.connect() as session:
        for page, text in blocks("sql"):
            for statement in filter(None, (part.strip() for part in text.split(";"))):
                found = session.execute(statement.encode()).description
                assert found is not None, f"{page}: {statement}"  # they look, and change nothing


def test_statements_that_change_something_are_marked_and_can_be_parsed(prepared_db: Database) -> None:
    for page, text in blocks("sql dangerous"):
        for statement in filter(None, (part.strip() for part in text.split(";"))):
            assert re.match(
                r"(ALTER SYSTEM|CREATE ROLE|GRANT|SELECT pg_drop_replication_slot|SELECT pg_reload_conf)", statement
            )
            assert page


def test_every_link_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_setting_that_is_named_exists() -> None:
    names = {name.upper() for name in Settings.model_fields}
    groups = ("KAFKA_", "HTTP_", "RECOUNT_", "LAG_", "LOG_", "METRICS_", "SLOT_", "WRITE_", "DATABASE_", "PENDING_")
    for page in PAGES:
        for word in re.findall(r"\b[A-Z]+_[A-Z_]+\b", page.read_text()):
            if word.startswith(groups) and not word.endswith("_FILE"):
                assert word in names, f"{page.name}: {word}"
