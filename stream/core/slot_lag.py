"""How far the slot and the flush are behind, and what to do about it: the PostgreSQL half of ``lag``.

Two numbers matter. *Seconds*: the age of ``as_of``, up to which everything is counted; it is two at rest, for the tick
carries it on. *Bytes*: the WAL that the slot holds back, which fills the server's disk while it is not read. A
watermark remembers when it was written, so one look can already tell what has been standing still for long.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from stream.core.lag import LagVerdict, LagWindow, Sample, judge, worst

#: what ``pg_replication_slots.wal_status`` says of a slot whose WAL is gone, or about to go
LOST: Final = "lost"
UNRESERVED: Final = "unreserved"
#: seconds after a flush in which the process that made it is taken to be alive
STILL_THERE: Final = 10.0


@dataclass(frozen=True, slots=True)
class WatermarkSample:
    """A row of ``sentstream.watermarks``. Times are seconds of the database's clock."""

    partition: int
    lsn: int
    based: bool
    as_of: float | None
    flushed_at: float | None


@dataclass(frozen=True, slots=True)
class SlotSample:
    """One look at the slot and the watermarks. ``at``: seconds of the database's clock; ``wal``: end of the WAL; where
    there is no slot of that name, its LSNs are None and ``exists`` is false."""

    at: float
    wal: int
    slot: str
    exists: bool = False
    active_pid: int | None = None
    wal_status: str | None = None
    confirmed: int | None = None
    restart: int | None = None
    safe_wal_size: int | None = None
    marks: tuple[WatermarkSample, ...] = ()


@dataclass(frozen=True, slots=True)
class SlotLag:
    """``bytes``: WAL that is not confirmed; ``held``: WAL that the server keeps for it; ``safe``: how much more it
    may grow before the server gives the slot up (None: without end)."""

    name: str
    verdict: LagVerdict
    bytes: int | None
    seconds: float | None
    wal_status: str | None
    active_pid: int | None
    held: int | None
    safe: int | None
    advice: str = ""

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "bytes": self.bytes,
            "seconds": self.seconds,
            "wal_status": self.wal_status,
            "active": self.active_pid is not None,
            "held_bytes": self.held,
            "safe_wal_size": self.safe,
            "verdict": self.verdict.value,
            "advice": self.advice,
        }


@dataclass(frozen=True, slots=True)
class FlushLag:
    """``age``: seconds since the partition that waits longest was flushed."""

    verdict: LagVerdict
    age: float | None
    partitions: int
    unbased: tuple[int, ...]
    advice: str = ""

    def as_json(self) -> dict[str, Any]:
        return {
            "age_seconds": self.age,
            "partitions": self.partitions,
            "unbased": list(self.unbased),
            "verdict": self.verdict.value,
            "advice": self.advice,
        }


@dataclass(slots=True)
class LagJudge:
    """Judges samples over a window. ``window`` and ``allowed`` in seconds; ``allowed_bytes``: WAL held without worry;
    ``temporary``: the slot lives as long as its reader (SLOT_KIND)."""

    window: float
    allowed: float
    allowed_bytes: int
    temporary: bool = False
    _slot: LagWindow = field(init=False)
    _marks: dict[int, LagWindow] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._slot = LagWindow(self.window)

    def judge(self, sample: SlotSample) -> tuple[SlotLag, FlushLag]:
        """The verdicts on a sample, with those before it."""
        return self._judge_slot(sample), self._judge_flush(sample)

    def _judge_slot(self, sample: SlotSample) -> SlotLag:
        seconds = _age(sample)
        if not self._slot.samples:
            for earlier in _remembered(sample, self.window):
                self._slot.add(earlier)
        self._slot.add(Sample(sample.at, _read_up_to(sample), sample.wal, seconds, _is_read(sample)))
        verdict = judge(list(self._slot.samples), now=sample.at, window=self.window, allowed=self.allowed)
        held = None if sample.restart is None else max(0, sample.wal - sample.restart)
        if not sample.exists or sample.wal_status == LOST:
            verdict = LagVerdict.STOP
        elif sample.wal_status == UNRESERVED or (held or 0) > self.allowed_bytes:
            verdict = worst((verdict, LagVerdict.WARN))
        return SlotLag(
            sample.slot,
            verdict,
            None if sample.confirmed is None else max(0, sample.wal - sample.confirmed),
            None if seconds is None else round(seconds, 3),
            sample.wal_status,
            sample.active_pid,
            held,
            sample.safe_wal_size,
            _slot_advice(sample, verdict, self.temporary),
        )

    def _judge_flush(self, sample: SlotSample) -> FlushLag:
        verdicts = [self._judge_mark(sample, mark) for mark in sample.marks]
        ages = [sample.at - mark.flushed_at for mark in sample.marks if mark.flushed_at is not None]
        unbased = tuple(mark.partition for mark in sample.marks if not mark.based)
        verdict = worst(verdicts) if verdicts else LagVerdict.STOP
        if unbased:
            verdict = worst((verdict, LagVerdict.WARN))
        age = round(max(0.0, *ages), 3) if ages else None
        return FlushLag(verdict, age, len(sample.marks), unbased, _flush_advice(sample, verdict, unbased))

    def _judge_mark(self, sample: SlotSample, mark: WatermarkSample) -> LagVerdict:
        window = self._marks.setdefault(mark.partition, LagWindow(self.window))
        if not window.samples and mark.flushed_at is not None:
            window.add(Sample(max(mark.flushed_at, sample.at - self.window), mark.lsn, mark.lsn))
        seconds = None if mark.as_of is None else abs(sample.at - mark.as_of)
        window.add(Sample(sample.at, mark.lsn, sample.wal, seconds))
        return judge(list(window.samples), now=sample.at, window=self.window, allowed=self.allowed)


def _age(sample: SlotSample) -> float | None:
    """Seconds since the oldest ``as_of``; of one in the future, for the clock was put back, those until then."""
    times = [mark.as_of for mark in sample.marks]
    known = [time for time in times if time is not None]
    return abs(sample.at - min(known)) if known and len(known) == len(times) else None


def _remembered(sample: SlotSample, window: float) -> list[Sample]:
    """What the watermarks tell of the time before the first sample: nothing has moved since the newest of them."""
    flushed = [mark.flushed_at for mark in sample.marks if mark.flushed_at is not None]
    if not flushed:
        return []
    at = max(*flushed, sample.at - window)
    done = _read_up_to(sample)
    return [Sample(at, done, sample.wal)] if at < sample.at and done is not None else []


def _read_up_to(sample: SlotSample) -> int | None:
    """How far the slot has been read. The confirmed LSN, or what is flushed already: while a backlog is caught up, the
    slot itself stands still, for its copy is read."""
    if sample.confirmed is None or not sample.marks:
        return sample.confirmed
    return max(sample.confirmed, min(mark.lsn for mark in sample.marks))


def _is_read(sample: SlotSample) -> bool:
    """Whether the slot is read, or its copy: then something is flushed every two seconds."""
    ages = [sample.at - mark.flushed_at for mark in sample.marks if mark.flushed_at is not None]
    return sample.active_pid is not None or (bool(ages) and min(ages) < STILL_THERE)


def _slot_advice(sample: SlotSample, verdict: LagVerdict, temporary: bool) -> str:
    if verdict is LagVerdict.OK:
        return ""
    if not sample.exists and temporary:
        return (
            f"There is no reader, so there is no slot {sample.slot!r}: it is temporary (SLOT_KIND), made by "
            "`sentstream run` (Kafka mode: `read`) when it starts. Counts are right again after the recount that "
            "follows."
        )
    if not sample.exists:
        return (
            f"There is no slot {sample.slot!r}: `sentstream setup --part replication` makes it, and so does a reader "
            "that starts. Counts are right again after the recount that follows."
        )
    if sample.wal_status == LOST:
        return "The server gave the slot's WAL up. A reader that starts makes a new slot; a recount brings the counts."
    if sample.active_pid is None:
        return "The slot is not read, and WAL piles up on the server: start `sentstream run` (Kafka mode: `read`)."
    if sample.wal_status == UNRESERVED:
        return "The server will give the slot up soon: raise max_slot_wal_keep_size, or let the reader catch up."
    if verdict is LagVerdict.STALL:
        return "The slot is read and does not get on: see the reader's log, and pg_stat_activity for long transactions."
    if verdict is LagVerdict.WARN:
        return "The reader is behind: it catches up, or has just stopped. Look again in half a minute."
    if verdict is LagVerdict.REWIND:
        return "The slot moved back: the database was restored. A new epoch and a recount follow by themselves."
    return "Too few samples to say: ask again in a minute."


def _flush_advice(sample: SlotSample, verdict: LagVerdict, unbased: tuple[int, ...]) -> str:
    if verdict is LagVerdict.OK:
        return ""
    if not sample.marks:
        return "Nothing has been flushed yet: run `sentstream setup`, then `sentstream run`."
    if unbased:
        return "Counts wait for a baseline: the next recount brings it. `sentstream recount` asks for one now."
    if verdict is LagVerdict.STALL:
        return "Counts are not being written: see that sentstream runs, and what its log says of the flush."
    if verdict is LagVerdict.WARN:
        return "Counts are behind: they catch up, or have just stopped. Look again in half a minute."
    if verdict is LagVerdict.REWIND:
        return "The database was restored: a new epoch and a recount follow by themselves."
    return "Too few samples to say: ask again in a minute."
