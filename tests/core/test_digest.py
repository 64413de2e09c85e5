"""Canonical JSON and the chain of digests: the same bytes for the same value, and every change of the past is found."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.core.digest import GENESIS, Checked, Link, _is_plain, _parts, canonical, digest, walk

texts = st.text(st.characters(codec="utf-8"))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@given(values)
def test_canonical_json_means_the_same(value: Any) -> None:
    assert json.loads(canonical(value), parse_int=float) == value  # a double may be written without a point


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(max_codepoint=127)), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(plain)
def test_the_quick_way_writes_the_same_bytes(value: Any) -> None:
    assert _is_plain(value)
    assert canonical(value) == "".join(_parts(value)).encode()


@given(st.dictionaries(texts, st.integers(), max_size=6), st.randoms())
def test_the_order_of_keys_does_not_matter(value: dict[str, int], random: Any) -> None:
    items = list(value.items())
    random.shuffle(items)
    assert canonical(dict(items)) == canonical(value)


# RFC 8785, appendix B: the bits of a double and how ECMAScript writes it
@pytest.mark.parametrize(
    ("bits", "text"),
    [
        ("0000000000000000", "0"),
        ("8000000000000000", "0"),
        ("0000000000000001", "5e-324"),
        ("8000000000000001", "-5e-324"),
        ("7fefffffffffffff", "1.7976931348623157e+308"),
        ("4340000000000000", "9007199254740992"),
        ("4430000000000000", "295147905179352830000"),
        ("44b52d02c7e14af5", "9.999999999999997e+22"),
        ("44b52d02c7e14af6", "1e+23"),
        ("44b52d02c7e14af7", "1.0000000000000001e+23"),
        ("444b1ae4d6e2ef4e", "999999999999999700000"),
        ("444b1ae4d6e2ef4f", "999999999999999900000"),
        ("444b1ae4d6e2ef50", "1e+21"),
        ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
        ("3eb0c6f7a0b5ed8d", "0.000001"),
        ("41b3de4355555553", "333333333.3333332"),
        ("41b3de4355555555", "333333333.3333333"),
        ("becbf647612f3696", "-0.0000033333333333333333"),
        ("43143ff3c1cb0959", "1424953923781206.2"),
    ],
)
def test_numbers_are_written_as_rfc_8785_does(bits: str, text: str) -> None:
    (number,) = struct.unpack(">d", bytes.fromhex(bits))
    assert canonical(number).decode() == text


def test_the_example_of_rfc_8785() -> None:
    value = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": "\u20ac$\u000f\u000aA'\u0042\u0022\u005c\\\"/",
        "literals": [None, True, False],
    }
    assert canonical(value).decode() == (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )


def test_keys_are_in_order_of_their_utf16_units() -> None:
    # RFC 8785, 3.2.3: an astral character sorts by its surrogates, before U+FB33
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    assert list(json.loads(canonical(dict.fromkeys(keys, 0)))) == [
        "\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33",
    ]  # fmt: skip


def test_integers_keep_all_their_digits() -> None:
    assert canonical(2**63 + 1) == b"9223372036854775809"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_json_lacks_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="no number"):
        canonical({"a": [value]})


@pytest.mark.parametrize("value", [b"x", {1, 2}, {1: 2}, object()])
def test_what_is_no_json_is_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        canonical(value)


def test_a_digest_is_the_sha256_of_the_bytes() -> None:
    assert digest({"b": 1, "a": "ü"}) == hashlib.sha256('{"a":"ü","b":1}'.encode()).hexdigest()


# ---- the chain ---------------------------------------------------------------------------------------------------


def link(run_id: int, number: int, previous: str, what: str = "", pruned: bool = False) -> Link:
    parts = {"verdicts": digest(f"verdicts of {run_id}{what}")}
    words = {"run_id": run_id, "what": what, "parts": parts, "chain_no": number, "previous_digest": previous}
    return Link(run_id, number, words, previous, digest(words), parts, None if pruned else dict(parts))


def chain(length: int, first: int = 10, what: str = "") -> list[Link]:
    links: list[Link] = []
    for n in range(length):
        links.append(link(first + n, n + 1, links[-1].sealed or "" if links else GENESIS, what))
    return links


def head_of(links: list[Link]) -> tuple[int, str] | None:
    return (len(links), links[-1].sealed or "") if links else None


def found(links: list[Link], head: tuple[int, str] | None) -> tuple[int | None, int, str]:
    broken = walk(sorted(links, key=lambda x: (x.number or 0, x.run_id)), head).broken
    assert broken is not None
    assert broken.what.endswith(".")
    return broken.run_id, broken.number, broken.kind


@given(st.integers(0, 8))
def test_a_chain_that_nobody_touched_holds(length: int) -> None:
    links = chain(length)
    assert walk(links, head_of(links)) == Checked(length, 0, links[-1].sealed or "" if links else GENESIS)


def test_a_pruned_run_still_holds_its_place() -> None:
    links = chain(3)
    links[1] = dataclasses.replace(links[1], found=None)
    assert walk(links, head_of(links)).pruned == 1
    assert walk(links, head_of(links)).broken is None


@given(st.integers(1, 8), st.data())
def test_a_row_edited_is_named(length: int, data: st.DataObject) -> None:
    links = chain(length)
    at = data.draw(st.integers(0, length - 1))
    words: Mapping[str, Any] = {**links[at].words, "what": "something else"}
    edited = [*links]
    edited[at] = dataclasses.replace(links[at], words=words)
    assert found(edited, head_of(links)) == (10 + at, at + 1, "edited")


@given(st.integers(1, 8), st.data())
def test_a_verdict_edited_is_named(length: int, data: st.DataObject) -> None:
    links = chain(length)
    at = data.draw(st.integers(0, length - 1))
    edited = [*links]
    edited[at] = dataclasses.replace(links[at], found={"verdicts": digest("other verdicts")})
    assert found(edited, head_of(links)) == (10 + at, at + 1, "edited")


@given(st.integers(1, 8), st.data())
def test_a_row_edited_with_a_digest_to_match_is_named(length: int, data: st.DataObject) -> None:
    links = chain(length)
    at = data.draw(st.integers(0, length - 1))
    forged = [*links]
    forged[at] = link(10 + at, at + 1, links[at].previous or "", "forged")
    assert found(forged, head_of(links)) == (10 + at, at + 1, "replaced")


@given(st.integers(1, 8), st.data())
def test_a_row_removed_is_named_by_its_place(length: int, data: st.DataObject) -> None:
    links = chain(length)
    at = data.draw(st.integers(0, length - 1))
    run = None if at == length - 1 else 11 + at
    assert found(links[:at] + links[at + 1 :], head_of(links)) == (run, at + 1, "removed")


@given(st.integers(0, 6), st.integers(1, 9))
def test_a_row_inserted_is_named(length: int, number: int) -> None:
    links = chain(length)
    number = min(number, length + 1)
    inserted = link(99, number, links[number - 2].sealed or "" if number > 1 else GENESIS, "inserted")
    assert found([*links, inserted], head_of(links)) == (99, number if number > length else number + 1, "inserted")


def test_a_row_called_sealed_without_a_place_is_named() -> None:
    links = chain(2)
    stray = dataclasses.replace(link(99, 0, ""), number=None)
    assert found([*links, stray], head_of(links)) == (99, 1, "inserted")


def test_a_chain_cut_off_and_numbered_anew_is_found() -> None:
    links = chain(3)
    cut = [
        dataclasses.replace(x, number=(x.number or 0) - 1, words={**x.words, "chain_no": (x.number or 0) - 1})
        for x in links[1:]
    ]
    assert found(cut, head_of(links))[2] == "edited"


def test_a_chain_written_anew_is_found_by_an_anchor() -> None:
    old, new = chain(3), chain(3, what="nicer")
    assert walk(new, head_of(new)).broken is None
    noted = old[1].sealed
    checked = walk(new, head_of(new), anchor=noted)
    assert checked.broken is not None
    assert checked.broken.kind == "anchor"
    assert checked.anchored is False
    assert walk(old, head_of(old), anchor=noted) == Checked(3, 0, old[2].sealed or "", None, anchored=True)
