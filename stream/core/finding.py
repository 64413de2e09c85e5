"""What ``doctor`` says of one precondition: code, severity, finding, fix.

A check is a function of one subject that yields findings, an ``ok`` one where all is well. Each connector has its list
of them; ``stream/cli/doctor.py`` runs the lists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Severity = Literal["ok", "warning", "critical"]
SEVERITIES: Final[tuple[Severity, ...]] = ("ok", "warning", "critical")


@dataclass(frozen=True, slots=True)
class Finding:
    """``code``: for programs, stable. ``fix``: SQL (it then ends with ``;`` or a ``--`` remark), a command in
    backticks, or words; empty where there is nothing to do."""

    code: str
    severity: Severity
    finding: str
    fix: str = ""


def ok(code: str, finding: str) -> Finding:
    """All is well, and what was seen."""
    return Finding(code, "ok", finding)


def warning(code: str, finding: str, fix: str) -> Finding:
    """Counting works, and something will hurt."""
    return Finding(code, "warning", finding, fix)


def critical(code: str, finding: str, fix: str) -> Finding:
    """Counting can't work, counts wrongly, or hurts the mailer."""
    return Finding(code, "critical", finding, fix)


def worst(findings: list[Finding]) -> Severity:
    """The gravest severity among them."""
    return max((finding.severity for finding in findings), key=SEVERITIES.index, default="ok")
