"""What setup, doctor and recounts say of one precondition: code, severity, finding, fix.

Setup refuses to begin while a critical finding of its part stands, a recount and the reader stop at one that makes
counts wrong, and doctor prints all of them: the same words everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Severity = Literal["ok", "warning", "critical"]
#: the part of setup that has to deal with it
Part = Literal["owner", "replication"]
SEVERITIES: Final[tuple[Severity, ...]] = ("ok", "warning", "critical")


@dataclass(frozen=True, slots=True)
class Finding:
    """``code``: for programs, stable. ``fix``: SQL (it then ends with ``;`` or a ``--`` remark), a command in
    backticks, or words; empty where there is nothing to do."""

    code: str
    severity: Severity
    finding: str
    fix: str = ""
    part: Part = "owner"

    def __str__(self) -> str:
        return f"{self.finding} {self.fix}".rstrip()

    def as_json(self) -> dict[str, str]:
        """The object that doctor prints."""
        return {"code": self.code, "severity": self.severity, "finding": self.finding, "fix": self.fix}


def ok(code: str, finding: str) -> Finding:
    """All is well, and what was seen."""
    return Finding(code, "ok", finding)


def warning(code: str, finding: str, fix: str) -> Finding:
    """Counting works, and something will hurt."""
    return Finding(code, "warning", finding, fix)


def critical(code: str, finding: str, fix: str, part: Part = "owner") -> Finding:
    """Counting can't work, counts wrongly, or hurts the mailer."""
    return Finding(code, "critical", finding, fix, part)


def worst(findings: list[Finding]) -> Severity:
    """The gravest severity among them."""
    return max((finding.severity for finding in findings), key=SEVERITIES.index, default="ok")
