"""The files that a hosting site and editors read: valid by their schemas, and in step with the project."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
import yaml

ROOT: Final = Path(__file__).parent.parent
WORKFLOWS: Final = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def _valid(schema: str, *files: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "check-jsonschema", "--builtin-schema", schema, *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.manifests
def test_workflows_and_dependabot_are_valid_by_their_schemas() -> None:
    assert WORKFLOWS
    _valid("vendor.github-workflows", *WORKFLOWS)
    _valid("vendor.dependabot", ROOT / ".github" / "dependabot.yml")


def test_continuous_integration_calls_what_anybody_can_call() -> None:
    steps = [
        step["run"]
        for path in WORKFLOWS
        for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
        for step in job["steps"]
        if "run" in step
    ]
    assert any(".ci/run" in step for step in steps)
    targets = {word for step in steps if step.startswith("make ") for word in step.split()[1:]}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {target for target in targets if f"\n{target}:" not in makefile} == set()


def test_a_fault_report_asks_for_the_support_file() -> None:
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "fault.yml").read_text(encoding="utf-8"))
    (asked,) = [field for field in form["body"] if field.get("id") == "support"]
    assert "sentstream support" in asked["attributes"]["label"]
    assert asked["validations"]["required"]
