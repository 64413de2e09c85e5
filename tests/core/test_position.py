"""Positions, and LSNs as PostgreSQL prints them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.core.position import Position, lsn_text, parse_lsn

lsns = st.integers(0, 2**64 - 1)
positions = st.builds(Position, lsns, st.integers(0, 2**32 - 1))


@given(lsns)
def test_an_lsn_comes_back_as_it_was(lsn: int) -> None:
    assert parse_lsn(lsn_text(lsn)) == lsn


def test_an_lsn_as_postgresql_prints_it() -> None:
    assert lsn_text(0x16_B374D848) == "16/B374D848"
    assert parse_lsn("16/b374d848") == 0x16_B374D848


@pytest.mark.parametrize("text", ["", "16", "16/", "/1", "G/1", "1/2/3", "1/2 ", "123456789/0"])
def test_what_is_no_lsn_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an LSN"):
        parse_lsn(text)


@given(positions, positions)
def test_the_text_of_a_position_sorts_as_the_position_does(a: Position, b: Position) -> None:
    assert (str(a) < str(b)) == (a < b)
