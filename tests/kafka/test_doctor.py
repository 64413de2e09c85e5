"""doctor's look at the group, with an admin client that answers as a broker would."""

from __future__ import annotations

from typing import Any

import pytest
from kafka.errors import CoordinatorNotAvailableError

from connectors.kafka import doctor
from stream.config.settings import Settings
from stream.core.finding import Finding


class Admin:
    """Answers for the group after so many refusals."""

    def __init__(self, refusals: int, members: list[dict[str, str]]) -> None:
        self.refusals = refusals
        self._members = members

    def describe_groups(self, names: list[str]) -> dict[str, Any]:
        self.refusals -= 1
        if self.refusals >= 0:
            raise CoordinatorNotAvailableError
        return {name: {"members": self._members, "group_state": "Stable"} for name in names}


def told(admin: Any, monkeypatch: pytest.MonkeyPatch) -> Finding:
    monkeypatch.setattr(doctor, "_AGAIN", 0.001)
    monkeypatch.setattr(doctor, "_COORDINATOR", 0.1)
    (finding,) = doctor._group(admin, Settings(kafka_bootstrap_servers=("a:1",)))
    return finding


def test_a_coordinator_that_is_a_moment_away_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(Admin(3, []), monkeypatch).severity == "ok"


def test_no_coordinator_is_a_warning_and_nothing_that_keeps_sentstream_from_counting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finding = told(Admin(1_000_000, []), monkeypatch)
    assert (finding.code, finding.severity) == ("kafka_group", "warning")


def test_a_member_of_another_program_is_critical(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = told(Admin(0, [{"client_id": "other", "client_host": "/10.0.0.1"}]), monkeypatch)
    assert (finding.code, finding.severity) == ("kafka_group_foreign", "critical")
    assert "other at /10.0.0.1" in finding.finding
