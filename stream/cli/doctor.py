"""`doctor`: every precondition, each with its fix. Sections are lists of checks, one for each server that is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import typer

from stream.cli.call import Call, command
from stream.core.finding import SEVERITIES, Finding, worst

if TYPE_CHECKING:
    from stream.config.sources import Settings

app = typer.Typer()

#: seconds that one look may take; the count of a big queue is the longest
_PATIENCE: Final = "60s"
_STYLES: Final = {"ok": "green", "warning": "yellow", "critical": "bold red"}


@dataclass(frozen=True, slots=True)
class Section:
    """The checks of one server: whether it is used by these settings, and its findings."""

    name: str
    is_used: Callable[[Settings], bool]
    examine: Callable[[Call], Iterable[Finding]]


@command(
    app,
    "doctor",
    shows=("slot_name", "slot_kind", "publication", "mailer_schema", "write_back", "removed"),
    epilog="Example: `sentstream doctor --json | jq '.[] | select(.severity != \"ok\")'`",
)
def doctor(
    call: Call,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Leave out what is well.")] = False,
) -> int:
    """Check every precondition; each finding comes with its fix. Exit 1 when one is critical."""
    settings = call.settings
    findings = [finding for section in SECTIONS if section.is_used(settings) for finding in section.examine(call)]
    shown = [finding for finding in findings if not quiet or finding.severity != "ok"]
    if call.json:
        call.print_json([finding.as_json() for finding in shown])
    else:
        _print(call, shown, findings)
    return 1 if worst(findings) == "critical" else 0


def _print(call: Call, shown: list[Finding], findings: list[Finding]) -> None:
    """What is well first and briefly, the gravest last, where the eye ends up. Fixes on lines of their own, to copy."""
    for finding in sorted(shown, key=lambda finding: SEVERITIES.index(finding.severity)):
        call.out.print(f"{finding.severity:<8}", style=_STYLES[finding.severity], end="  ")
        call.out.print(f"{finding.code}: {finding.finding}", soft_wrap=True)
        if finding.fix:
            call.out.print(
                f"          fix: {finding.fix}", style="dim" if finding.severity == "ok" else "", soft_wrap=True
            )
    counted = {severity: sum(finding.severity == severity for finding in findings) for severity in SEVERITIES}
    line = ", ".join(f"{number} {severity}" for severity, number in counted.items())
    call.out.print(line, style=_STYLES[worst(findings)])


def _uses_postgres(_: Settings) -> bool:
    return True


def _postgres(call: Call) -> Iterable[Finding]:
    from connectors.postgres.doctor import examine
    from connectors.postgres.setup import Wanted

    settings = call.settings
    wanted = Wanted(
        slot=settings.slot_name,
        publication=settings.publication,
        mailer_schema=settings.mailer_schema,
        temporary_slot=settings.slot_kind == "temporary",
        write_back=settings.write_back,
    )
    with call.connect("doctor", settings={"statement_timeout": _PATIENCE, "lock_timeout": "3s"}) as conn:
        return examine(conn, wanted, follow=settings.removed == "follow", zone=settings.timezone)


def _uses_kafka(settings: Settings) -> bool:
    return settings.kafka


def _kafka(call: Call) -> Iterable[Finding]:
    from connectors.kafka.doctor import examine

    call.settings.require_kafka()
    return examine(call.settings)


#: in the order in which they are printed; each further server adds itself here
SECTIONS: Final = [Section("PostgreSQL", _uses_postgres, _postgres), Section("Kafka", _uses_kafka, _kafka)]
