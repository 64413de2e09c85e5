"""What a flush is: everything one transaction writes, as a value, and what came of it.

A flush first moves the watermark by compare-and-swap from ``expected``; all the rest is written only behind that. See
docs/design/store.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from .entries import Counts
from .position import Position
from .verdict import DRIFT, LOST_STATE, VERIFIED, Verdict, named

HistoryKind = Literal["flow", "baseline", "correction"]
#: (campaign, minute since 1970, kind)
HistoryKey = tuple[int, int, HistoryKind]
#: five counts and ``removed``
Stored = tuple[int, int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class ProgressRow:
    """A row of ``sentstream.progress``, with what the mailer says of the campaign. ``verified_at``: microseconds;
    ``floor``: the LSN of the run that raised the counter, where one did; ``unmatched``: of ``removed``, what the
    counter showed when the campaign was met, and rows may still come for."""

    campaign: int
    counts: Counts
    removed: int
    sent: int
    verified_at: int | None = None
    verified_lsn: int | None = None
    name: str = ""
    status: str = ""
    to_send: int = 0
    floor: int | None = None
    unmatched: int = 0
    overwritten_with: int | None = None

    @property
    def stored(self) -> Stored:
        return (*self.counts, self.removed)


@dataclass(frozen=True, slots=True)
class Answer:
    """How one partition answered one run: a row of ``sentstream.answers``."""

    run_id: int
    conclusive: bool
    reason: str | None = None
    verified: int = 0
    drift: int = 0
    inconclusive: int = 0
    baseline: int = 0


@dataclass(frozen=True, slots=True)
class Flush:
    """One transaction's writes for one partition.

    ``rows``: progress rows that changed; ``deleted``: campaigns that went, removed before any row is written (one that
    came again with the same number is in both); ``due``: campaigns whose ``campaigns.sent`` must show the number given
    (it is written only where it differs, and only from the floor on); ``check``: what the store should hold now, where
    a recount asks for the comparison; ``unmet``: campaigns that a baseline found without rows and that the state did
    not know, with its minute (see :func:`with_raised`); ``keep``: the policy.
    """

    partition: int
    epoch: int
    expected: Position
    position: Position
    based: bool
    as_of: int
    rows: tuple[ProgressRow, ...] = ()
    deleted: tuple[int, ...] = ()
    history: tuple[tuple[HistoryKey, int], ...] = ()
    due: Mapping[int, int] = field(default_factory=dict)
    verdicts: tuple[Verdict, ...] = ()
    answers: tuple[Answer, ...] = ()
    check: Mapping[int, Stored] | None = None
    next_offset: int | None = None
    unmet: Mapping[int, int] = field(default_factory=dict)
    keep: bool = True

    @property
    def empty(self) -> bool:
        """Whether it moves the watermark and nothing else."""
        return not (self.rows or self.deleted or self.history or self.due or self.verdicts or self.answers)


@dataclass(frozen=True, slots=True)
class Overwritten:
    """Another session wrote ``campaigns.sent``: ``found`` where ours was ``written``; put right in the same flush."""

    campaign: int
    found: int
    written: int


@dataclass(frozen=True, slots=True)
class FlushResult:
    """What came of a flush that committed. ``held``: campaigns whose row another session had locked, or whose counter
    the mailer's own constraints or triggers refuse: still due."""

    held: frozenset[int] = frozenset()
    overwritten: tuple[Overwritten, ...] = ()
    #: the flush's verdicts, and those on the store itself
    verdicts: tuple[Verdict, ...] = ()
    #: campaigns that the store knew and the state did not, with what becomes ``removed``
    raised: Mapping[int, int] = field(default_factory=dict)


def without_corrections(flush: Flush, stands: Mapping[int, int]) -> Flush:
    """The flush whose verdicts claim no counter that could not be written. ``stands``: what these campaigns show."""

    def honest(verdict: Verdict) -> Verdict:
        if verdict.campaign not in stands or verdict.after is None or "counter" not in verdict.after:
            return verdict
        return replace(verdict, after={**verdict.after, "counter": stands[verdict.campaign]}, corrected=False)

    return replace(flush, verdicts=tuple(map(honest, flush.verdicts)))


def with_raised(flush: Flush, written: Mapping[int, int]) -> tuple[Flush, Mapping[int, int]]:
    """The flush of a baseline, with the campaigns whose counter a run had raised before and whose rows were all gone
    when they were counted: what was shown does not fall, it becomes ``removed`` (policy ``keep``).

    ``written``: what progress says we wrote, of those of ``flush.unmet`` that have a row there whose floor is behind
    the flush. Returned with what became ``removed``, for the state to take over.
    """
    if not written:
        return flush, {}
    removed = {campaign: n if flush.keep else 0 for campaign, n in written.items()}
    rows = {row.campaign: row for row in flush.rows}
    due, history = dict(flush.due), dict(flush.history)
    for campaign, n in removed.items():
        row = rows.get(campaign) or ProgressRow(campaign, (0, 0, 0, 0, 0), 0, 0)
        rows[campaign] = row = replace(row, removed=row.removed + n, sent=row.sent + n)
        due[campaign] = row.sent
        if n:
            key: HistoryKey = (campaign, flush.unmet[campaign], "baseline")
            history[key] = history.get(key, 0) + n
    return replace(flush, rows=tuple(rows.values()), due=due, history=tuple(history.items())), removed


def with_store_faults(flush: Flush, found: Mapping[int, Stored]) -> Flush:
    """The flush of a recount, with a drift for every progress row that is not as we left it (``lost_state``).

    ``found``: the rows as they stand in the store, before this flush writes them all again.
    """
    if flush.check is None or not flush.answers:
        return flush
    run = flush.answers[-1].run_id
    current = {row.campaign: row for row in flush.rows}
    drifted = {verdict.campaign for verdict in flush.verdicts if verdict.verdict == DRIFT and verdict.run_id == run}
    faults = []
    for campaign, stored in flush.check.items():
        actual = found.get(campaign)
        if actual == stored or campaign not in current or campaign in drifted:
            continue
        before = named(list(actual), actual[5]) if actual is not None else {}
        row = current[campaign]
        after = named(list(row.counts), row.removed)
        faults.append(Verdict(run, campaign, DRIFT, LOST_STATE, before, after, corrected=True))
    if not faults:
        return flush
    faulty = {fault.campaign for fault in faults}
    kept = [v for v in flush.verdicts if not (v.run_id == run and v.campaign in faulty and v.verdict == VERIFIED)]
    last = flush.answers[-1]
    answer = Answer(
        run, last.conclusive, last.reason, last.verified - len(faults), last.drift + len(faults), 0, last.baseline
    )
    return replace(flush, verdicts=(*kept, *faults), answers=(*flush.answers[:-1], answer))
