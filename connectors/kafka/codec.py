"""Encodes and decodes the records of the changes topic, and encodes those of the other two topics.

The JSON is meant for people with kcat as well: see ``schemas/`` and ``docs/topics.md``. An entry is ``[lsn, seq, n]``,
where ``n`` is an index into ``changes``, the distinct changes of the batch. A mailer makes the same few changes
thousands of times, so records are short, and a worker checks each *distinct* change in detail and the thousands of
entries in a few passes at the speed of C.

A record that is not a batch raises `PoisonError`: the worker reports it, counts the partition anew, and goes on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any, Final

import orjson

from stream.core.batch import Batch
from stream.core.entries import CampaignChanged, CampaignDeleted, Counted, Entry, Move, Placed, Recount, Truncate
from stream.core.epoch import KafkaEnd
from stream.core.errors import PoisonError
from stream.core.position import Position, lsn_text, parse_lsn
from stream.core.status import MOVED, NEW, PLACE_BY_NAME, PLACES, REMOVED
from stream.core.verdict import Verdict

#: version of the changes' schema; records of another version are refused
VERSION: Final = 1

_POSITION = re.compile(r"([0-9A-F]{16})\.([0-9A-F]{8,16})\Z")
_1970 = datetime(1970, 1, 1, tzinfo=timezone.utc)
#: what a bigint holds is below it
_BIGINT: Final = 1 << 63
#: rows of one campaign that one transaction may move, or one recount may find
_ROWS: Final = 1 << 48
#: minutes since 1970: in the year 6053
_LAST_MINUTE: Final = 1 << 31
#: the newest epoch in Kafka that a new epoch follows; above it are only those that a reader counted up from there
NEWEST_EPOCH: Final = 1 << 62
#: decoded moves kept, some 150 bytes each
_REMEMBERED: Final = 200_000


# ---- encoding batches -----------------------------------------------------------------------------------------------


def encode(batch: Batch) -> bytes:
    """The record of a batch."""
    number: dict[int, int] = {}
    changes: list[Any] = []
    entries = []
    for lsn, seq, entry in batch.entries:
        n = number.get(id(entry))  # the fold makes one object for each different move
        if n is None:
            n = number[id(entry)] = len(changes)
            changes.append(_change(entry))
        entries.append((lsn, seq, n))
    return orjson.dumps(
        {
            "v": VERSION,
            "partition": batch.partition,
            "epoch": batch.epoch,
            "begin": str(batch.begin),
            "end": str(batch.end),
            "as_of": time_of(batch.as_of) if batch.as_of else None,
            "minute": batch.minute,
            "changes": changes,
            "entries": entries,
        }
    )


def encode_within(batch: Batch, limit: int) -> list[tuple[Position, bytes]]:
    """The records of a batch, each with its end: one, or where that would have more than ``limit`` bytes several that
    tile the batch. A single entry is not cut."""
    record = encode(batch)
    if len(record) <= limit or len(batch.entries) < 2:
        return [(batch.end, record)]
    half = len(batch.entries) // 2
    lsn, seq, _ = batch.entries[half]
    cut = Position(lsn, seq)
    first = replace(batch, end=cut, as_of=0, entries=batch.entries[:half])  # nothing is complete up to a time yet
    return encode_within(first, limit) + encode_within(replace(batch, begin=cut, entries=batch.entries[half:]), limit)


def _change(entry: Entry) -> Any:
    if type(entry) is Move:
        return (entry.campaign, PLACES[entry.source], PLACES[entry.target], entry.n)
    return _rare(entry)


def _rare(entry: Entry) -> dict[str, Any]:
    if isinstance(entry, Truncate):
        return {"type": "truncate", "table": entry.table}
    if isinstance(entry, CampaignChanged):
        return {
            "type": "campaign",
            "campaign_id": entry.campaign,
            "name": entry.name,
            "status": entry.status,
            "to_send": entry.to_send,
            "sent": entry.sent,
        }
    if isinstance(entry, CampaignDeleted):
        return {"type": "deleted", "campaign_id": entry.campaign}
    if isinstance(entry, Recount):
        return {
            "type": "recount",
            "run_id": entry.run_id,
            "trigger": entry.trigger,
            "started_at": time_of(entry.started_at),
            "lsn": lsn_text(entry.lsn),
            "counts": {str(campaign): (*it.counts, it.shown) for campaign, it in entry.expected.items()},
            "rebase": entry.rebase,
            "reason": entry.reason,
        }
    raise TypeError(f"{type(entry).__name__} can't be an entry of a batch")


def time_of(microseconds: int) -> str:
    """Microseconds since 1970 as RFC 3339 in UTC, to the microsecond."""
    return (_1970 + timedelta(microseconds=microseconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


# ---- decoding batches -----------------------------------------------------------------------------------------------


class Decoder:
    """Decodes batches. Keeps decoded moves, so that equal moves of all records share one object."""

    def __init__(self) -> None:
        self._moves: dict[tuple[Any, ...], Move] = {}

    def decode(self, data: bytes | None, topic: str, partition: int, offset: int) -> Batch:
        """The batch of a record; `PoisonError`, with topic, partition and offset, where it is not one."""
        try:
            return self._batch(orjson.loads(data or b""), partition)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
            said = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            raise PoisonError(
                f"The record at {topic}, partition {partition}, offset {offset} ({len(data or b'')} bytes) "
                f"is no batch of changes: {said[:200]}.",
                "It is skipped, and the partition is counted anew.",
            ) from error

    def _batch(self, value: Any, partition: int) -> Batch:
        _need(type(value) is dict, "not a JSON object")
        _need(value.get("v") == VERSION, f"version {value.get('v')!r} instead of {VERSION}")
        _need(value["partition"] == partition, f"made for partition {value['partition']!r}")
        epoch, minute, as_of = value["epoch"], value["minute"], value["as_of"]
        _need(type(epoch) is int and 0 < epoch < _BIGINT, f"epoch {epoch!r}")
        _need(type(minute) is int and 0 <= minute < _LAST_MINUTE, f"minute {minute!r}")
        begin, end = _position(value["begin"]), _position(value["end"])
        _need(begin <= end, "it ends before it begins")
        entries = self._entries(value["entries"], value["changes"], begin, end)
        return Batch(partition, epoch, begin, end, 0 if as_of is None else microseconds_of(as_of), entries, minute)

    def _entries(self, rows: Any, changes: Any, begin: Position, end: Position) -> tuple[Placed, ...]:
        _need(type(rows) is list and type(changes) is list, "entries or changes are no list")
        known = [self._entry(change) for change in changes]
        if not rows:
            return ()
        _need(set(map(type, rows)) == {list} and set(map(len, rows)) == {3}, "an entry is not [lsn, seq, n]")
        lsns, seqs, numbers = zip(*rows, strict=True)
        _need({*map(type, lsns), *map(type, seqs), *map(type, numbers)} == {int}, "an entry is not of whole numbers")
        _need(min(seqs) >= 0 and min(numbers) >= 0 and max(numbers) < len(known), "an entry's number is out of range")
        positions = list(zip(lsns, seqs, strict=True))
        _need(begin <= positions[0] and positions[-1] < end, "an entry lies outside the batch")
        _need(positions == sorted(positions), "the entries are not in order")
        return tuple(zip(lsns, seqs, map(known.__getitem__, numbers), strict=True))

    def _entry(self, change: Any) -> Entry:
        if type(change) is list:
            key = tuple(change)
            move = self._moves.get(key)
            return move if move is not None and type(key[0]) is type(key[3]) is int else self._move(key)
        _need(type(change) is dict, "a change is neither a list nor an object")
        return _READ[change["type"]](change)

    def _move(self, key: tuple[Any, ...]) -> Move:
        campaign, source, target, n = key
        _need(_is_id(campaign), f"campaign {campaign!r}")
        _need(type(n) is int and 0 < n < _ROWS, f"a move of {n!r} rows")
        place, goal = PLACE_BY_NAME[source], PLACE_BY_NAME[target]
        _need(place != goal and place not in (REMOVED, MOVED) and goal != NEW, f"a move from {source} to {target}")
        if len(self._moves) >= _REMEMBERED:
            self._moves.clear()
        move = self._moves[key] = Move(campaign, place, goal, n)
        return move


def _need(good: bool, what: str) -> None:
    if not good:
        raise ValueError(what)


def _is_id(value: Any) -> bool:
    return type(value) is int and -_BIGINT <= value < _BIGINT


def _text(value: Any) -> str:
    _need(type(value) is str and "\0" not in value, f"{value!r} is no text")
    return str(value)


def _whole(value: Any, least: int = -_BIGINT, below: int = _BIGINT) -> int:
    _need(type(value) is int, f"{value!r} is no whole number")
    _need(least <= value < below, f"{value!r} is out of range")
    return int(value)


def _campaign(value: Any) -> int:
    _need(_is_id(value), f"campaign {value!r}")
    return int(value)


def _position(text: str) -> Position:
    match = _POSITION.match(text)
    _need(match is not None, f"position {text!r}")
    assert match is not None
    return Position(int(match[1], 16), _whole(int(match[2], 16)))


def microseconds_of(text: str) -> int:
    """RFC 3339 in UTC as microseconds since 1970; ValueError where it can't be read."""
    _need(text.endswith("Z"), f"time {text!r}")
    return _whole((datetime.fromisoformat(text[:-1] + "+00:00") - _1970) // timedelta(microseconds=1), 0)


def _read_truncate(change: Mapping[str, Any]) -> Truncate:
    _need(change["table"] in ("queue", "campaigns"), f"truncate of {change['table']!r}")
    return Truncate(change["table"])


def _read_campaign(change: Mapping[str, Any]) -> CampaignChanged:
    name = change["name"]
    return CampaignChanged(
        _campaign(change["campaign_id"]),
        None if name is None else _text(name),
        _text(change["status"]),
        _whole(change["to_send"]),
        _whole(change["sent"]),
    )


def _read_deleted(change: Mapping[str, Any]) -> CampaignDeleted:
    return CampaignDeleted(_campaign(change["campaign_id"]))


def _read_recount(change: Mapping[str, Any]) -> Recount:
    expected = {}
    for campaign, row in change["counts"].items():
        *counts, shown = map(_whole, row)
        _need(len(counts) == 5 and min(counts) >= 0 and max(counts) < _ROWS, f"counts of campaign {campaign}: {row}")
        queued, sending, sent, failed, cancelled = counts
        expected[_campaign(int(campaign))] = Counted((queued, sending, sent, failed, cancelled), shown)
    rebase, reason = change["rebase"], change["reason"]
    if rebase is not None and rebase != "all":
        rebase = tuple(map(_campaign, rebase))
    return Recount(
        _whole(change["run_id"], 1),
        _text(change["trigger"]),
        microseconds_of(change["started_at"]),
        parse_lsn(change["lsn"]),
        expected,
        rebase,
        None if reason is None else _text(reason),
    )


_READ: Final[dict[str, Callable[[Mapping[str, Any]], Entry]]] = {
    "truncate": _read_truncate,
    "campaign": _read_campaign,
    "deleted": _read_deleted,
    "recount": _read_recount,
}


def end_of(data: bytes | None) -> KafkaEnd | None:
    """Epoch and end of a record, without decoding the rest; None where it is not a batch."""
    try:
        value = orjson.loads(data or b"")
        return KafkaEnd(_whole(value["epoch"]), _position(value["end"]))
    except (ValueError, TypeError, KeyError):
        return None


# ---- the other topics -----------------------------------------------------------------------------------------------


def campaign_key(campaign: int) -> bytes:
    """The key of a campaign's records in ``progress`` and ``verdicts``."""
    return b"%d" % campaign


def watermark_key(partition: int) -> bytes:
    """The key of a partition's watermark in ``progress``."""
    return b"watermark:%d" % partition


def encode_watermark(partition: int, epoch: int, position: str, lsn: int, as_of: int, based: bool) -> bytes:
    """The value of a partition's watermark in ``progress``: its campaigns are complete up to ``as_of``.
    ``position``: of epoch and position, as text that sorts."""
    return orjson.dumps(
        {
            "v": VERSION,
            "partition": partition,
            "epoch": epoch,
            "position": position,
            "lsn": lsn_text(lsn),
            "as_of": time_of(as_of) if as_of else None,
            "based": based,
        }
    )


def encode_progress(value: Mapping[str, Any]) -> bytes:
    """The value of a campaign in ``progress``: its JSON, and the schema's version."""
    return orjson.dumps({"v": VERSION, **value})


def encode_verdict(verdict: Verdict, partition: int) -> bytes:
    """The value of a verdict on one campaign in one run."""
    return orjson.dumps(
        {
            "v": VERSION,
            "run_id": verdict.run_id,
            "campaign_id": verdict.campaign,
            "partition": partition,
            "verdict": verdict.verdict,
            "cause": verdict.cause,
            "before": None if verdict.before is None else dict(verdict.before),
            "after": None if verdict.after is None else dict(verdict.after),
            "delta": verdict.delta,
            "corrected": verdict.corrected,
            "estimated": verdict.estimated,
        }
    )
