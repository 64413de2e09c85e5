"""A run of the recount as its readers see it: values, JSON names, and the words that its digest covers.

Pure: rows come in from ``connectors/postgres/store/``, JSON goes out to the command line, HTTP and the exports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any, Final

from stream.core.digest import digest
from stream.core.status import STATUSES

#: the format of what a digest covers; another number when that changes, so that old runs stay verifiable
FORMAT: Final = 1
#: the verdicts in the order of a report
VERDICTS: Final = ("verified", "drift", "inconclusive", "not_comparable", "baseline")
#: what ``before``, ``after`` and ``delta`` may name: the live counts, rows gone after they were sent, campaigns.sent
COUNTS: Final = (*STATUSES, "removed", "counter")
PARTS: Final = ("answers", "counts", "observations", "verdicts")


def rfc3339(at: datetime) -> str:
    """A time in UTC, always with six decimals: text that sorts, and that is the same wherever it is computed."""
    return at.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass(frozen=True, slots=True)
class Tally:
    """How many campaigns got which verdict."""

    verified: int = 0
    drift: int = 0
    inconclusive: int = 0
    not_comparable: int = 0
    baseline: int = 0

    def as_json(self) -> dict[str, int]:
        return {name: int(getattr(self, name)) for name in VERDICTS}

    @property
    def proved(self) -> bool:
        """Whether every campaign was compared and equal, or met for the first time."""
        return not (self.drift or self.inconclusive or self.not_comparable)


@dataclass(frozen=True, slots=True)
class Ruled:
    """A row of ``sentstream.verdicts``: what one run says of one campaign."""

    campaign_id: int
    verdict: str
    decided_at: datetime
    cause: str | None = None
    before: Mapping[str, int] | None = None
    after: Mapping[str, int] | None = None
    delta: Mapping[str, int] | None = None
    corrected: bool = False
    estimated: bool = False

    def as_json(self) -> dict[str, Any]:
        return {
            "campaign_id": self.campaign_id,
            "verdict": self.verdict,
            "cause": self.cause,
            "before": _in_order(self.before),
            "after": _in_order(self.after),
            "delta": _in_order(self.delta),
            "corrected": self.corrected,
            "estimated": self.estimated,
            "decided_at": rfc3339(self.decided_at),
        }


@dataclass(frozen=True, slots=True)
class Answered:
    """A row of ``sentstream.answers``: how one partition answered one run."""

    partition: int
    epoch: int
    conclusive: bool
    answered_at: datetime
    reason: str | None = None
    verified: int = 0
    drift: int = 0
    inconclusive: int = 0
    baseline: int = 0

    def as_json(self) -> dict[str, Any]:
        return {
            "partition": self.partition,
            "epoch": self.epoch,
            "conclusive": self.conclusive,
            "reason": self.reason,
            "verified": self.verified,
            "drift": self.drift,
            "inconclusive": self.inconclusive,
            "baseline": self.baseline,
            "answered_at": rfc3339(self.answered_at),
        }


@dataclass(frozen=True, slots=True)
class Run:
    """A row of ``sentstream.recounts`` without its counts.

    ``also``: triggers that fell together with ``trigger``; ``campaigns``: rows of the mailer's table when it was
    counted; ``lag_bytes``: WAL between the slowest partition and the count; ``not_covered``: what it says nothing
    about, each with ``what`` and ``why``; ``parts``: digests of its bulk.
    """

    run_id: int
    trigger: str
    requested_by: str
    status: str
    started_at: datetime
    lsn: str
    snapshot: str
    epoch: int
    removed_policy: str
    version: str
    count_ms: float
    campaigns: int
    also: tuple[str, ...] = ()
    rebase: Any = None
    index_only: bool | None = None
    finished_at: datetime | None = None
    tally: Tally = field(default_factory=Tally)
    lag_bytes: int | None = None
    not_covered: tuple[Mapping[str, Any], ...] = ()
    observations: tuple[Mapping[str, Any], ...] = ()
    chain_no: int | None = None
    parts: Mapping[str, str] | None = None
    pruned_at: datetime | None = None
    previous_digest: str | None = None
    digest: str | None = None

    @property
    def sealed(self) -> bool:
        return self.status == "sealed"

    def words(self) -> dict[str, Any]:
        """What the digest covers: all that the run says, the digests of its parts, its place in the chain."""
        return {
            "format": FORMAT,
            "run_id": self.run_id,
            "trigger": self.trigger,
            "also": list(self.also),
            "requested_by": self.requested_by,
            "started_at": rfc3339(self.started_at),
            "finished_at": None if self.finished_at is None else rfc3339(self.finished_at),
            "lsn": self.lsn,
            "snapshot": self.snapshot,
            "epoch": self.epoch,
            "removed_policy": self.removed_policy,
            "version": self.version,
            "rebase": self.rebase,
            "campaigns": self.campaigns,
            "count_us": round(self.count_ms * 1000),
            "index_only": self.index_only,
            "lag_bytes": self.lag_bytes,
            "counts": self.tally.as_json(),
            "not_covered": [dict(item) for item in self.not_covered],
            "parts": dict(self.parts or {}),
            "chain_no": self.chain_no,
            "previous_digest": self.previous_digest,
        }

    def as_json(self) -> dict[str, Any]:
        """The run by its JSON names, without verdicts (``Report`` has these)."""
        return {
            "run_id": self.run_id,
            "trigger": self.trigger,
            "also": list(self.also),
            "requested_by": self.requested_by,
            "status": self.status,
            "started_at": rfc3339(self.started_at),
            "finished_at": None if self.finished_at is None else rfc3339(self.finished_at),
            "lsn": self.lsn,
            "snapshot": snapshot_json(self.snapshot),
            "epoch": self.epoch,
            "removed_policy": self.removed_policy,
            "version": self.version,
            "rebase": self.rebase,
            "campaigns": self.campaigns,
            "count_ms": round(self.count_ms, 3),
            "index_only": self.index_only,
            "lag_bytes": self.lag_bytes,
            "counts": self.tally.as_json(),
            "not_covered": [dict(item) for item in self.not_covered],
            "observations": [dict(item) for item in self.observations],
            "chain_no": self.chain_no,
            "pruned": self.pruned_at is not None,
            "previous_digest": self.previous_digest,
            "digest": self.digest,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """A run with what was said of campaigns. Of an open run: as far as it has got."""

    run: Run
    verdicts: tuple[Ruled, ...] = ()
    answers: tuple[Answered, ...] = ()

    def only(self, campaigns: Iterable[int]) -> Report:
        """The report with the verdicts (and observations) of these campaigns alone; all of it where none is named."""
        wanted = frozenset(campaigns)
        if not wanted:
            return self
        run = replace(self.run, observations=tuple(o for o in self.run.observations if o.get("campaign_id") in wanted))
        return replace(self, run=run, verdicts=tuple(v for v in self.verdicts if v.campaign_id in wanted))

    def completed(
        self, counted: Mapping[int, Sequence[int]], partition: Callable[[int], int], chosen: Iterable[int] = ()
    ) -> Report:
        """The report of these campaigns (none named: all of it) with the verdicts that are not kept: `verified` of a
        named campaign whose counts had not changed, `inconclusive` of every one whose partition could not tell.

        ``counted``: the counts that the run found, of the campaigns that sentstream counts; ``partition``: of a
        campaign. An open run is as far as it got: nothing is added."""
        named = tuple(chosen)
        report = self.only(named)
        if not self.run.sealed:
            return report
        decided = self.run.finished_at or self.run.started_at
        conclusive = {answer.partition: answer.conclusive for answer in self.answers}
        known = {verdict.campaign_id for verdict in self.verdicts}
        added = []
        for campaign in named or counted:
            if campaign in known or campaign not in counted:
                continue
            told = conclusive.get(partition(campaign))
            if told is False:
                added.append(Ruled(campaign, "inconclusive", decided))
            elif told and named:
                counts = dict(zip(STATUSES, counted[campaign], strict=False))
                added.append(Ruled(campaign, "verified", decided, before=counts, after=counts, delta={}))
        return replace(report, verdicts=tuple(sorted((*report.verdicts, *added), key=lambda v: v.campaign_id)))

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it was inconclusive, each reason once."""
        return tuple(dict.fromkeys(answer.reason for answer in self.answers if answer.reason))

    def as_json(self) -> dict[str, Any]:
        result = self.run.as_json()
        observations = result.pop("observations")
        tail = {name: result.pop(name) for name in ("chain_no", "pruned", "previous_digest", "digest")}
        result["answers"] = [answer.as_json() for answer in self.answers]
        result["verdicts"] = [verdict.as_json() for verdict in self.verdicts]
        result["observations"] = observations
        return {**result, **tail}


def _in_order(counts: Mapping[str, int] | None) -> dict[str, int] | None:
    """The five statuses first, in the store's order or another."""
    if counts is None:
        return None
    return {name: counts[name] for name in (*(n for n in COUNTS if n in counts), *sorted(counts.keys() - set(COUNTS)))}


def parts_of(
    counts: Any, observations: Sequence[Any] | None, verdicts: Sequence[Ruled], answers: Sequence[Answered]
) -> dict[str, str]:
    """The digests of a run's bulk, by the names of ``PARTS``. ``counts``: the JSON value of its row."""
    ruled = sorted(verdicts, key=lambda v: (v.campaign_id, v.verdict))
    return {
        "answers": digest([answer.as_json() for answer in sorted(answers, key=lambda a: a.partition)]),
        "counts": digest(counts),
        "observations": digest(list(observations or ())),
        "verdicts": digest([verdict.as_json() for verdict in ruled]),
    }


def snapshot_json(text: str) -> dict[str, Any]:
    """``xmin:xmax:xip,xip`` as an object."""
    xmin, _, rest = text.partition(":")
    xmax, _, xip = rest.partition(":")
    return {"xmin": int(xmin), "xmax": int(xmax), "xip": [int(x) for x in xip.split(",") if x]}
