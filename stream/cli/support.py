"""`support`: one file for a bug report. Parts are read independently; errors.json names those that could not be read.

It holds versions, `config`, `status`, `lag` (several samples), `doctor` and the last runs with their verdicts; no
passwords, tokens, names of campaigns, addresses of subscribers or mails.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from stream.cli.call import Call, command
from stream.cli.output import json_text
from stream.core.errors import SentstreamError
from stream.core.masking import mask_values

app = typer.Typer()

#: samples of the lag, and seconds between them: a verdict needs several
SAMPLES: Final = 4
BETWEEN: Final = 1.5
RUNS: Final = 50
#: packages whose versions are listed
PACKAGES: Final = (
    "sentstream",
    "psycopg",
    "faust-streaming",
    "aiokafka",
    "kafka-python",
    "pydantic",
    "fastapi",
    "uvicorn",
)

_README = """What `sentstream support` found. Look through it before you hand it on.

versions.json  program, Python, packages, machine
config.json    settings and where each comes from; secrets masked
status.json    roles, positions, slot, last flush
lag.json       samples of slot, flush and topics, some seconds apart
doctor.json    every precondition
runs.json      the last recounts with what they found
errors.json    what could not be read, and why
"""


@command(
    app,
    "support",
    epilog="Example: `sentstream support --output bundle.zip`; `sentstream support --json | jq .errors`",
)
def support(
    call: Call,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; default: sentstream-support-TIME.zip here.")
    ] = None,
) -> int:
    """One file for a bug report: versions, config, status, lag, doctor, the last runs. Secrets are masked."""
    now = datetime.now(timezone.utc)
    parts, errors = _collect(call)
    parts["errors"] = errors
    mask = _mask_of(call)
    masked = {name: mask_values(json.loads(json_text(part)), mask) for name, part in parts.items()}
    if call.json:
        call.print_json(masked)
        return 0
    path = output or Path(f"sentstream-support-{now:%Y%m%d-%H%M%S}.zip")
    try:
        with open(path, "wb", opener=_owner_only) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as bundle:
            bundle.writestr("README.txt", _README)
            for name, part in masked.items():
                bundle.writestr(f"{name}.json", json_text(part) + "\n")
    except OSError as error:
        raise SentstreamError(f"{path} can't be written: {error.strerror}.", "Name another file: --output.") from error
    call.out.print(f"Written: {path}. Secrets are masked; look through it before you hand it on.", soft_wrap=True)
    for name, words in errors.items():
        call.err.print(f"{name} could not be read: {words}", style="yellow", soft_wrap=True)
    return 0


def _owner_only(path: str, flags: int) -> int:
    """Opens a file that only its owner may read, also where it exists already."""
    number = os.open(path, flags, 0o600)
    os.fchmod(number, 0o600)
    return number


def _collect(call: Call) -> tuple[dict[str, Any], dict[str, str]]:
    errors: dict[str, str] = {}
    parts: dict[str, Any] = {}
    readers: Mapping[str, Callable[[Call], Any]] = {
        "versions": lambda _: _versions(),
        "config": _config,
        "status": _status,
        "lag": _lag,
        "doctor": _doctor,
        "runs": _runs,
    }
    for name, read in readers.items():
        try:
            parts[name] = read(call)
        except Exception as error:  # the bundle is made for a system that is broken
            parts[name] = None
            errors[name] = " ".join(f"{type(error).__name__}: {error}".split())
    return parts, errors


def _mask_of(call: Call) -> Callable[[str], str]:
    """A function that masks passwords and the secrets of the settings in a text."""
    from stream.core.masking import MASK, mask_passwords

    secrets: list[str] = []
    with contextlib.suppress(SentstreamError):  # wrong settings are in errors.json
        secrets = sorted((word for word in call.settings.secrets() if len(word) >= 3), key=len, reverse=True)

    def mask(text: str) -> str:
        for word in secrets:
            text = text.replace(word, MASK)
        return mask_passwords(text)

    return mask


def _versions() -> dict[str, Any]:
    def installed() -> Iterator[tuple[str, str]]:
        for name in PACKAGES:
            with contextlib.suppress(PackageNotFoundError):
                yield name, version(name)

    return {
        "packages": dict(installed()),
        "python": platform.python_version(),
        "system": platform.platform(),
        "made_at": datetime.now(timezone.utc),
    }


def _config(call: Call) -> dict[str, Any]:
    from stream.config.settings import setting_names
    from stream.config.sources import unknown_variables

    settings = call.settings
    values = {name: {"value": settings.shown(name), "origin": str(settings.origin(name))} for name in setting_names()}
    return {"settings": values, "file": call.sources.path, "unknown_variables": unknown_variables()}


def _status(call: Call) -> dict[str, Any]:
    from connectors.postgres.queries.status import read_status

    with call.connect("support") as connection:
        found = read_status(connection, call.settings.slot_name)
    return {**asdict(found), "alive": found.alive, "healthy": found.healthy, "shadow": found.shadow}


def _lag(call: Call) -> list[Any]:
    from stream.metrics.lag import LagReading

    samples = []
    with LagReading(call.settings) as reading, call.connect("support") as connection:
        for number in range(SAMPLES):
            samples.append(reading.poll(connection))
            if number < SAMPLES - 1:
                time.sleep(BETWEEN)
    return samples


def _doctor(call: Call) -> list[Any]:
    from stream.cli.doctor import SECTIONS

    sections = [section for section in SECTIONS if section.is_used(call.settings)]
    return [asdict(finding) for section in sections for finding in section.examine(call)]


def _runs(call: Call) -> list[Any]:
    from connectors.postgres.store.reports import read_reports, read_runs

    with call.connect("support") as connection:
        runs = read_runs(connection, limit=RUNS)
        found = read_reports(connection, [run.run_id for run in runs])
    return [{**report.run.as_json(), "verdicts": [v.as_json() for v in report.verdicts[:200]]} for report in found]
