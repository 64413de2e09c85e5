"""What all commands have in common: exit codes, one line an error, help, settings as flags, imports when called."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stream.cli import call, commands
from stream.config.settings import flag_name, setting_names
from stream.core.errors import PreconditionError, UnreachableError
from tests.interfaces.fix_counted import SOURCE, Run, process, run

__all__ = ["run"]

SECRET = "hunter2-is-no-secret"
CONTRACT = {
    "setup", "doctor", "run", "read", "work", "reconcile", "serve", "recount", "progress", "explain", "status", "lag",
    "report", "config", "teardown", "demo",
}  # fmt: skip
NOBODY = f"postgresql://user:{SECRET}@127.0.0.1:1/db"


def _is_here(entry: commands.Entry) -> bool:
    return (SOURCE / "stream" / "cli" / f"{entry.module}.py").exists()


def test_help_lists_the_commands_of_the_contract(run: Run) -> None:
    found = run("--help")
    assert found.code == 0
    for name in CONTRACT & {entry.name for entry in commands.COMMANDS if _is_here(entry)}:
        assert f" {name} " in found.out, name
    assert {entry.name for entry in commands.COMMANDS} >= CONTRACT


@pytest.mark.parametrize("name", sorted(CONTRACT))
def test_every_command_of_the_contract_has_help(run: Run, name: str) -> None:
    assert [entry.name for entry in commands.COMMANDS if entry.name == name and _is_here(entry)] == [name]
    found = run(name, "--help")
    assert found.code == 0, found.err
    assert "Usage: sentstream " in found.out


def test_no_arguments_show_the_help_and_are_a_usage_error(run: Run) -> None:
    found = run()
    assert found.code == 2
    assert "Usage: sentstream" in found.out + found.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["confi"], "Did you mean 'config'?"),
        (["config", "--nonsense"], "No such option"),
        (["explain"], "Missing argument"),
        (["progress"], "DATABASE_URL is not set."),
        (
            ["progress", "--flush-interval", "soon", "--database-url", NOBODY],
            "FLUSH_INTERVAL 'soon' (flag --flush-interval)",
        ),
        (["config", "--config", "nowhere.toml"], "nowhere.toml does not exist"),
        (["progress", "--watch", "--every", "often", "--database-url", NOBODY], "--every 'often' must be a duration"),
        (["demo", "--duration", "0"], "--duration '0' must be a duration above 0"),
    ],
)
def test_usage_and_configuration_errors_exit_with_2(run: Run, words: list[str], said: str) -> None:
    found = run(*words)
    assert found.code == 2
    assert said in found.err
    assert found.out == ""
    assert SECRET not in found.err


@pytest.mark.parametrize("words", [["progress"], ["status"], ["explain", "7"], ["progress", "--watch"]])
def test_a_server_that_cannot_be_reached_exits_with_3_in_one_line(run: Run, words: list[str]) -> None:
    found = run(*words, "--database-url", NOBODY)
    assert found.code == 3
    assert found.err.startswith("sentstream: ")
    assert found.err.count("\n") == 1
    assert "127.0.0.1:1" in found.err
    assert SECRET not in found.err
    assert "Traceback" not in found.err


def test_a_traceback_comes_only_with_vv(run: Run) -> None:
    assert "Traceback" not in run("progress", "-v", "--database-url", NOBODY).err
    for words in (["progress", "-vv"], ["progress", "-v", "-v"], ["-vv", "progress"]):
        found = run(*words, "--database-url", NOBODY)
        assert "Traceback" in found.err
        assert SECRET not in found.err
        assert found.code == 3


def test_a_fault_of_ours_is_one_line_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("something\nodd")

    monkeypatch.setattr("stream.config.sources.load", broken)
    found = run("config")
    assert found.code == 1
    assert found.err.count("\n") == 1
    assert "KeyError" in found.err
    assert "please report it" in found.err


def test_errors_carry_their_exit_code_and_fix(capsys: pytest.CaptureFixture[str]) -> None:
    assert call.report_error(PreconditionError("No slot.", "Run `sentstream setup`."), []) == 1
    assert call.report_error(UnreachableError("Gone."), []) == 3
    assert capsys.readouterr().err == "sentstream: No slot. Run `sentstream setup`.\nsentstream: Gone.\n"


def test_options_work_before_and_after_the_command(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "other.toml"
    path.write_text('slot_name = "other"')
    for words in (["--config", str(path), "--json", "config"], ["config", "--json", "--config", str(path)]):
        assert run(*words).json["settings"]["slot_name"] == {"value": "other", "origin": "file", "where": str(path)}
    before = run("--database-url", "postgresql://a/b", "config", "--json").json["settings"]["database_url"]
    assert before == {"value": "postgresql://a/b", "origin": "flag", "where": "--database-url"}
    both = run("--database-url", "postgresql://a/b", "config", "--json", "--database-url", "postgresql://c/d")
    assert both.json["settings"]["database_url"]["value"] == "postgresql://c/d"


def test_every_setting_is_a_flag_of_run(run: Run) -> None:
    text = run("run", "--help").out
    for name in setting_names():
        assert flag_name(name) in text, name


def test_a_hidden_flag_of_a_setting_works_all_the_same(run: Run) -> None:
    assert "--kafka-partitions" not in run("progress", "--help").out
    assert "KAFKA_PARTITIONS 'x'" in run("progress", "--kafka-partitions", "x").err


def test_config_masks_secrets_and_names_origins(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENTSTREAM_HTTP_TOKEN", SECRET)
    monkeypatch.setenv("SENTSTREAM_NONSENSE", "1")
    for words in (["config"], ["config", "--json"]):
        found = run(*words, "--database-url", NOBODY, "--write-back", "false")
        assert SECRET not in found.out + found.err
        assert "SENTSTREAM_NONSENSE" in found.out + found.err
        assert "SENTSTREAM_HTTP_TOKEN" in found.out
        assert "postgresql://user:***@127.0.0.1:1/db" in found.out
    assert found.json["settings"]["write_back"] == {"value": False, "origin": "flag", "where": "--write-back"}


def test_the_version_is_printed(run: Run) -> None:
    found = run("--version")
    assert (found.code, found.err) == (0, "")
    assert found.out.startswith("sentstream ")


def test_help_imports_no_command_and_nothing_slow() -> None:
    code = (
        "import sys; from stream.cli import main; main(['--help']);"
        "slow = {'psycopg', 'pydantic_settings', 'fastapi', 'faust', 'kafka', 'stream.cli.run'};"
        "slow |= {'stream.config.settings'};"
        "print(sorted(slow & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=SOURCE, check=True)
    assert done.stderr.strip() == "[]"


def test_one_command_imports_no_other() -> None:
    code = (
        "import sys; from stream.cli import main; main(['config']);"
        "print([m for m in sys.modules if m in {'fastapi', 'faust', 'kafka', 'stream.cli.run', 'psycopg'}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=SOURCE, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_shell_gets_completions() -> None:
    child = process(
        "", env={"_SENTSTREAM_COMPLETE": "complete_bash", "COMP_WORDS": "sentstream pro", "COMP_CWORD": "1"}
    )
    out, err = child.communicate(timeout=60)
    assert "progress" in out.split(), err
    assert "setup" not in out.split()
