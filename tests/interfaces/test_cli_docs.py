"""docs/commands.md: every command and every option of its own is there, and every line of it can be typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import typer

from stream.cli import commands
from stream.config.settings import setting_names
from tests.interfaces.fix_counted import Run, run

__all__ = ["run"]

PAGE = (Path(__file__).parents[2] / "docs" / "commands.md").read_text(encoding="utf-8")
LINES = re.findall(r"^\$ sentstream (.+)$", PAGE, re.MULTILINE)
#: what every command has, and what is for our own processes
COMMON = {"config", "json", "verbose", "help", *setting_names()}


def test_every_command_has_its_section() -> None:
    sections = {name for line in re.findall(r"^### (.+)$", PAGE, re.MULTILINE) for name in line.split(", ")}
    assert sections == {entry.name for entry in commands.COMMANDS}
    assert {line.split()[0] for line in LINES} == sections


def test_every_line_can_be_typed(run: Run) -> None:
    assert len(LINES) > 30
    for line in LINES:
        found = run(*shlex.split(line), "--help")
        assert (found.code, found.err) == (0, ""), line


def test_every_option_of_a_command_is_told() -> None:
    told = set(re.findall(r"--[a-z][a-z-]+", PAGE))
    root = typer.main.get_command(commands.assemble([], everything=True))
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        for parameter in command.params:
            if parameter.name not in COMMON and parameter.param_type_name == "option" and not parameter.hidden:
                assert told & {*parameter.opts, *parameter.secondary_opts}, f"{name} {parameter.opts}"
