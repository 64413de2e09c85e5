"""Output that can't take what is written: another encoding, a full disk, a closed descriptor, a reader that left."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.interfaces.fix_counted import SOURCE

NAME = "Größe-年-😀"


def shell(line: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    """A shell command in which ``$S`` is `sentstream`."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("SENTSTREAM_")}
    environment = {**others, "PYTHONPATH": str(SOURCE), "S": f"{sys.executable} -m stream.cli", **env}
    return subprocess.run(["bash", "-c", line], capture_output=True, env=environment, timeout=60, check=False)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_what_an_encoding_lacks_is_replaced(encoding: str) -> None:
    found = shell(f"$S config --http-allowed-hosts {NAME}", PYTHONIOENCODING=encoding)
    assert found.returncode == 0, found.stderr
    shown = NAME.encode(encoding, "replace").decode(encoding)
    assert shown in found.stdout.decode(encoding)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_json_is_whole_in_every_encoding(encoding: str) -> None:
    found = shell(f"$S config --json --http-allowed-hosts {NAME}", PYTHONIOENCODING=encoding)
    assert found.returncode == 0, found.stderr
    assert NAME in str(json.loads(found.stdout.decode(encoding)))


def test_an_error_with_other_letters_is_still_one_line() -> None:
    found = shell(f"$S config --kafka-partitions {NAME}", PYTHONIOENCODING="ascii")
    assert found.returncode == 2
    assert len(found.stderr.splitlines()) == 1
    assert b"fault" not in found.stderr


@pytest.mark.parametrize(
    ("line", "why"), [("$S config > /dev/full", "No space left"), ("$S config >&-", "Bad file descriptor")]
)
@pytest.mark.parametrize("more", ["", " --json"])
def test_output_that_can_not_be_written_is_a_plain_error(line: str, why: str, more: str) -> None:
    found = shell(line.replace("config", "config" + more))
    assert (found.returncode, found.stdout) == (2, b"")
    assert found.stderr.decode().startswith("sentstream: Standard output can't be written: " + why)
    assert len(found.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "words", ["config", "config --json", "config --reference", "--help", "run --help", "--version"]
)
def test_a_reader_that_left_ends_the_command_as_the_shell_expects(words: str) -> None:
    found = shell(f"set -o pipefail; (sleep 0.3; $S {words}) | true")
    assert found.returncode in (0, 141)
    assert found.stderr == b""
