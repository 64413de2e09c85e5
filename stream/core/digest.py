"""The digest of a report: SHA-256 over canonical JSON, each run's bound to that of the run sealed before it.

Canonical JSON is RFC 8785 (JCS): no white space, keys in order of their UTF-16 code units, the shortest writing of a
number. One deviation: an integer keeps all its digits, where JCS would round it to a double. Anybody can compute a
digest again with ``jq -cS`` and ``sha256sum``; see docs/reports.md.

A run's digest does not cover its bulk (counts, verdicts, answers, observations) directly but the digests of these
parts. So retention can take the bulk away, and the run's own words and its place in the chain can still be verified.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

#: what the first run of a chain is bound to
GENESIS: Final = "0" * 64


def canonical(value: Any) -> bytes:
    """``value`` (what JSON can hold) as canonical JSON; TypeError for all else, ValueError for NaN and infinity."""
    if _is_plain(value):  # the counts of 10,000 campaigns: twenty times as fast
        return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode("utf-8")
    return "".join(_parts(value)).encode("utf-8")


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of ``value``, 64 hexadecimal digits."""
    return hashlib.sha256(canonical(value)).hexdigest()


def _is_plain(value: Any) -> bool:
    """Whether the standard library writes ``value`` as JCS asks: no doubles, and keys whose order is the same by code
    points and by UTF-16 units."""
    kind = type(value)
    if kind is dict:
        return all(type(key) is str and key.isascii() for key in value) and all(map(_is_plain, value.values()))
    if kind is list:
        return all(map(_is_plain, value))
    return kind in _PLAIN


_PLAIN: Final = frozenset((int, str, bool, type(None)))


def _parts(value: Any) -> Iterator[str]:
    if value is None:
        yield "null"
    elif isinstance(value, bool):
        yield "true" if value else "false"
    elif isinstance(value, str):
        yield json.dumps(value, ensure_ascii=False)
    elif isinstance(value, int):
        yield str(value)
    elif isinstance(value, float):
        yield _number(value)
    elif isinstance(value, Mapping):
        yield "{"
        separator = ""
        for key in sorted(value, key=_utf16):
            yield f"{separator}{json.dumps(key, ensure_ascii=False)}:"
            yield from _parts(value[key])
            separator = ","
        yield "}"
    elif isinstance(value, (list, tuple)):
        yield "["
        for place, item in enumerate(value):
            if place:
                yield ","
            yield from _parts(item)
        yield "]"
    else:
        raise TypeError(f"{type(value).__name__} is nothing that JSON can hold")


def _utf16(key: Any) -> bytes:
    if not isinstance(key, str):
        raise TypeError(f"a key of an object must be text, not {type(key).__name__}")
    return key.encode("utf-16-be")


def _number(value: float) -> str:
    """A double as ECMAScript writes it (ECMA-262, Number::toString), which RFC 8785 asks for."""
    if not math.isfinite(value):
        raise ValueError(f"{value} is no number of JSON")
    if value == 0:
        return "0"
    sign = "-" if value < 0 else ""
    mantissa, _, exponent = repr(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    point = len(whole) + int(exponent or 0)  # where the decimal point stands in whole + fraction
    point -= len(whole + fraction) - len(digits)
    digits = digits.rstrip("0")
    n = len(digits)
    if n <= point <= 21:
        return sign + digits + "0" * (point - n)
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    power = f"e{'+' if point > 0 else '-'}{abs(point - 1)}"
    return f"{sign}{digits[0]}.{digits[1:]}{power}" if n > 1 else f"{sign}{digits}{power}"


@dataclass(frozen=True, slots=True)
class Link:
    """A sealed run as the chain sees it.

    ``number``: its place, counted from 1; ``words``: what it says, its parts' digests, place and ``previous_digest``
    included; ``previous`` and ``sealed``: the digests that its row holds; ``parts``: digests of its bulk as its row
    holds them; ``found``: the same, computed from the rows there now, None where retention has taken them away.
    """

    run_id: int
    number: int | None
    words: Mapping[str, Any]
    previous: str | None
    sealed: str | None
    parts: Mapping[str, str]
    found: Mapping[str, str] | None


@dataclass(frozen=True, slots=True)
class Break:
    """Where a chain does not hold: the run, its place, and what is wrong in a sentence."""

    run_id: int | None
    number: int
    kind: str
    what: str


@dataclass(frozen=True, slots=True)
class Checked:
    """What came of walking a chain. ``runs``: links that hold; ``pruned``: those among them without their bulk;
    ``head``: the digest of the last that holds; ``broken``: the first that does not."""

    runs: int
    pruned: int
    head: str
    broken: Break | None = None
    anchored: bool | None = None


def walk(links: Iterable[Link], head: tuple[int, str] | None, anchor: str | None = None) -> Checked:
    """Walk a chain from its first link; stop at the first break.

    ``links`` come in order of their place, those without one first. ``head``: place and digest of the newest run as the
    store remembers them beside the runs (None: no run was ever sealed), so that runs cut off at the end are missed.
    ``anchor``: a digest known from elsewhere, which must be among those of the chain.
    """
    at, last, pruned, before = 0, GENESIS, 0, None
    seen = anchor == GENESIS
    for link in links:
        broken = _break(link, at, last, before, head)
        if broken is not None:
            return Checked(at, pruned, last, broken, None if anchor is None else seen)
        assert link.sealed is not None
        at, last, before = at + 1, link.sealed, link.run_id
        pruned += link.found is None
        seen = seen or last == anchor
    broken = _break_of_head(at, last, before, head)
    if broken is None and anchor is not None and not seen:
        broken = Break(None, at, "anchor", f"No run of the chain has the digest {anchor}: the past was written anew.")
    return Checked(at, pruned, last, broken, None if anchor is None else seen)


def _break(link: Link, at: int, last: str, before: int | None, head: tuple[int, str] | None) -> Break | None:
    run, place = link.run_id, at + 1
    inserted = _inserted(link, place, head)
    if inserted is not None:
        return Break(run, place, "inserted", f"Run {run} was inserted: it {inserted}.")
    assert link.number is not None
    if link.number > place:
        where = f"before run {run}" if before is None else f"between run {before} and run {run}"
        return Break(run, place, "removed", f"{_missing(place, link.number - 1)} removed, {where}.")
    changed = [] if link.found is None else sorted(_differing(link.parts, link.found))
    if changed:
        return Break(run, place, "edited", f"Run {run} was edited: its {' and '.join(changed)} are not those sealed.")
    if link.sealed is None or digest(link.words) != link.sealed:
        return Break(run, place, "edited", f"Run {run} was edited: its row is not the one sealed.")
    if link.previous == last:
        return None
    if before is None:
        return Break(run, place, "removed", f"Run {run} is bound to an earlier one: all before it were removed.")
    what = f"Run {before} was replaced: run {run}, the next, is bound to another in its place."
    return Break(before, at, "replaced", what)


def _inserted(link: Link, place: int, head: tuple[int, str] | None) -> str | None:
    """Why a row can't be a run that was sealed where it stands."""
    if link.number is None:
        return "is called sealed but has no place in the chain"
    if link.number < place:
        return f"claims place {link.number}, which another run holds"
    if head is None or link.number > head[0]:
        return "stands behind the newest run that was sealed"
    return None


def _differing(parts: Mapping[str, str], found: Mapping[str, str]) -> set[str]:
    return {name for name in (*parts, *found) if parts.get(name) != found.get(name)}


def _missing(first: int, last: int) -> str:
    return f"The run at place {first} was" if first == last else f"The runs at places {first} to {last} were"


def _break_of_head(at: int, last: str, before: int | None, head: tuple[int, str] | None) -> Break | None:
    number, sealed = head if head is not None else (0, GENESIS)
    if at < number:
        return Break(None, at + 1, "removed", f"{_missing(at + 1, number)} removed, at the end of the chain.")
    if last != sealed:
        return Break(before, at, "replaced", f"Run {before}, the newest, is not the one that was sealed at place {at}.")
    return None
