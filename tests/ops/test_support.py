"""`sentstream support`: everything is in it, and no secret, whatever is broken."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from stream.cli import support
from tests.fix_postgres import Database
from tests.interfaces.fix_counted import Run, counted_db, prepared_db, run

__all__ = ["counted_db", "prepared_db", "run"]

PARTS = {"versions", "config", "status", "lag", "doctor", "runs", "errors"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "BETWEEN", 0.05)


def test_bundle_holds_all_parts(run: Run, counted_db: Database, tmp_path: Path) -> None:
    path = tmp_path / "bundle.zip"
    path.touch(0o644)
    found = run("support", "--output", str(path), "--database-url", counted_db.url, "--slot-name", counted_db.slot)
    assert found.code == 0, found.err
    assert path.stat().st_mode & 0o777 == 0o600
    with zipfile.ZipFile(path) as bundle:
        names = set(bundle.namelist())
        parts = {name.removesuffix(".json"): json.loads(bundle.read(name)) for name in names - {"README.txt"}}
    assert set(parts) == PARTS
    assert parts["errors"] == {}
    assert parts["status"]["campaigns"] == 3
    assert len(parts["lag"]) == support.SAMPLES
    assert parts["runs"][0]["verdicts"][0]["cause"] == "missed_change"
    assert any(finding["code"] for finding in parts["doctor"])
    assert parts["versions"]["packages"]["psycopg"]


def test_no_secret_and_no_name_of_a_campaign_is_in_it(run: Run, counted_db: Database) -> None:
    url = counted_db.url + ("&" if "?" in counted_db.url else "?") + "password=hunter2secret"
    found = run(
        "support", "--json", "--database-url", url, "--slot-name", counted_db.slot,
        "--http-token", "token-hunter2", "--kafka-sasl-password", "sasl-hunter2",
        "--notify-url", "https://hooks.example.org/T00/hunter2",
    )  # fmt: skip
    assert found.code == 0, found.err
    assert set(found.json) == PARTS
    assert "hunter2" not in found.out + found.err
    assert "Spring sale" not in found.out


def test_a_database_that_is_away_is_said_in_its_place(run: Run) -> None:
    url = "postgresql://u:hunter2secret@127.0.0.1:1/x"
    found = run("support", "--json", "--database-url", url)
    assert found.code == 0
    assert set(found.json["errors"]) == {"status", "lag", "doctor", "runs"}
    assert found.json["config"]["settings"]["recount_interval"]["value"] == "5m"
    assert "hunter2" not in found.out + found.err
