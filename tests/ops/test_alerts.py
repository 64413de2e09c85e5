"""Alert rules and dashboard: valid, tested, each alert with its page, and no name that we don't export."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.ops import exported, metrics_page
from tests.ops.prometheus import ROOT, program

PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD = ROOT / "deploy" / "grafana" / "sentstream.json"
RUNBOOKS = ROOT / "docs" / "operations" / "runbooks"
HEADINGS = ["What it means", "How to see it", "What to do", "What not to do"]

_NAME = re.compile(r"\b(?:sentstream|kafka|process|python)_[a-z_]+")


def rules() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"][0]["rules"]
    return found


def queries() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]


def promtool(*words: str | Path) -> None:
    command = [program("promtool"), *map(str, words)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=PROMETHEUS, timeout=100, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.alerts
@pytest.mark.timeout(900)  # promtool may have to be built
def test_rules_are_valid_and_do_what_their_tests_say() -> None:
    promtool("check", "rules", "rules.yml")
    promtool("test", "rules", "rules.test.yml")


@pytest.mark.alerts
@pytest.mark.timeout(900)
def test_scrape_configuration_is_valid(tmp_path: Path) -> None:
    text = (PROMETHEUS / "prometheus.yml").read_text()
    (tmp_path / "token").write_text("x")
    (tmp_path / "rules.yml").write_text((PROMETHEUS / "rules.yml").read_text())
    (tmp_path / "prometheus.yml").write_text(text.replace("/run/secrets/http_token", str(tmp_path / "token")))
    promtool("check", "config", tmp_path / "prometheus.yml")


@pytest.mark.alerts
@pytest.mark.timeout(900)
def test_queries_of_the_dashboard_can_be_parsed(tmp_path: Path) -> None:
    recording = [
        {"record": f"panel:{number}", "expr": query.replace("$job", "sentstream")}
        for number, query in enumerate(queries())
    ]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recording}]}))
    promtool("check", "rules", path)


def test_every_alert_is_tested_firing_and_silent() -> None:
    names = [test["name"] for test in yaml.safe_load((PROMETHEUS / "rules.test.yml").read_text())["tests"]]
    assert set(names) == {f"{rule['alert']} {word}" for rule in rules() for word in ("fires", "is silent")}


def test_every_alert_has_its_page_and_every_page_its_alert() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket")
        page = ROOT / rule["annotations"]["runbook"]
        text = page.read_text()
        assert text.startswith(f"# {rule['alert']}\n")
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == HEADINGS
    assert {page.stem for page in RUNBOOKS.glob("*.md")} == {rule["alert"] for rule in rules()}


def test_rules_and_dashboard_name_only_what_we_export() -> None:
    known = exported.names()
    for query in [*(rule["expr"] for rule in rules()), *queries()]:
        assert set(_NAME.findall(query)) <= known, query


def test_the_page_of_metrics_is_that_of_the_code() -> None:
    page = (ROOT / "docs" / "operations" / "metrics.md").read_text()
    assert page == metrics_page.text(), "python -m tests.ops.metrics_page > docs/operations/metrics.md"


def test_dashboard_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
