"""The terminal view: snapshots at 80 and 120 columns, no colour needed, nothing old that looks live.

`UPDATE_SNAPSHOTS=1 pytest tests/interfaces/test_terminal.py` writes the snapshots anew; look at them before you commit.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from stream.cli import words
from stream.cli.output import is_ascii
from stream.cli.progress_view import View, bar, draw, plain_line
from stream.core.position import Position
from stream.core.progress import CampaignProgress, measure

NOW = datetime(2026, 3, 1, 12, 0, 30, tzinfo=timezone.utc)
SNAPSHOTS = Path(__file__).parent / "snapshots"


def campaign(
    number: int, name: str, status: str, to_send: int, counts: Sequence[int], *, removed: int = 0, rate: float = 0.0,
    age: float = 0.2, sent: int | None = None,
) -> CampaignProgress:  # fmt: skip
    return measure(
        campaign_id=number, name=name, status=status, to_send=to_send, counts=counts, removed=removed,
        sent=counts[2] + removed if sent is None else sent, rate=rate, now=NOW, as_of=NOW - timedelta(seconds=age),
        based=True, epoch=1, position=Position(255), source="queue" if sent is None else "mailer",
    )  # fmt: skip


VIEW = View(
    now=NOW,
    campaigns=(
        campaign(7, "Spring sale", "running", 20_323, (9_050, 12, 10_900, 320, 41), rate=151.0),
        campaign(8, "Ein \x1b[2J 漢字 Name, länger als der Platz", "paused", 200, (0, 1, 100, 2, 97), removed=4),
        campaign(9, "Welcome", "finished", 5, (0, 0, 5, 0, 0)),
        campaign(10, "Plain", "running", 100, (0, 0, 0, 0, 0), sent=55),
        campaign(11, "Empty", "draft", 0, (0, 0, 0, 0, 0)),
        campaign(12, "Million", "running", 1_234_567, (617_283, 100, 617_184, 0, 0), rate=10_800.0),
    ),
    as_of=NOW - timedelta(seconds=0.2),
    lag_bytes=12_345,
    last_run="run 17: verified 5, 2 min ago",
    notes=("Dashboard: http://127.0.0.1:8087/",),
)  # fmt: skip
OLD = NOW - timedelta(seconds=42)
STALE = replace(
    VIEW, as_of=OLD, campaigns=tuple(replace(it, as_of=OLD, stale=True, eta=None) for it in VIEW.campaigns[:3])
)
LOST = replace(STALE, trouble="PostgreSQL at db:5432, database mailer can't be reached: connection refused.")


def text_of(view: View, width: int, height: int | None = None, *, ascii_only: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None, highlight=False, markup=False)
    for line in draw(view, width, height, ascii_only=ascii_only):
        console.print(line, no_wrap=True, crop=False, overflow="ignore")
    return "".join(line.rstrip() + "\n" for line in out.getvalue().splitlines())


@pytest.mark.parametrize(
    ("name", "view", "width", "height", "ascii_only"),
    [
        ("live-80", VIEW, 80, None, False),
        ("live-120", VIEW, 120, None, False),
        ("ascii-80", VIEW, 80, None, True),
        ("short-80x20", VIEW, 80, 20, False),
        ("stale-80", STALE, 80, None, False),
        ("stale-120", STALE, 120, None, False),
        ("disconnected-80", LOST, 80, None, False),
        ("empty-80", View(now=NOW, campaigns=(), started=False), 80, None, False),
    ],
)
def test_the_view_looks_as_it_did(name: str, view: View, width: int, height: int | None, ascii_only: bool) -> None:
    drawn = text_of(view, width, height, ascii_only=ascii_only)
    path = SNAPSHOTS / f"{name}.txt"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.write_text(drawn, encoding="utf-8")
    assert drawn == path.read_text(encoding="utf-8")


def test_no_line_is_wider_than_the_terminal_and_no_view_higher() -> None:
    for width in (40, 60, 80, 100, 119, 120, 200):
        for view in (VIEW, STALE, LOST):
            assert max(cell_len(line) for line in text_of(view, width).splitlines()) <= width
            for height in (12, 20, 24, 50):
                assert len(draw(view, width, height)) <= height


def test_with_ascii_only_no_bar_needs_more() -> None:
    view = replace(VIEW, campaigns=VIEW.campaigns[:1])
    assert text_of(view, 80, ascii_only=True).isascii()
    assert is_ascii(Console(file=io.TextIOWrapper(io.BytesIO(), encoding="ascii")))
    assert not is_ascii(Console(file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8")))


def test_a_number_that_is_not_live_says_so_without_colour() -> None:
    assert "LIVE" in text_of(VIEW, 80)
    for view, state in (
        (STALE, "STALE"),
        (LOST, "DISCONNECTED"),
        (replace(VIEW, based=False), "NO BASELINE"),
        (replace(VIEW, started=False), "NOT STARTED"),
        (replace(VIEW, as_of=None), "STALE"),
    ):
        assert state in text_of(view, 80).splitlines()[0]
        assert "LIVE" not in text_of(view, 80)
    for view in (replace(VIEW, based=False), replace(VIEW, started=False)):
        assert "not counted yet" in text_of(view, 80)
        assert "the mailer's own" not in text_of(view, 80)
    assert text_of(STALE, 80).count("as of 42 s ago") == 4, "the head, and each campaign"
    assert text_of(STALE, 120).count("STALE") == 4
    assert "ETA in" not in text_of(STALE, 80)


counts = st.tuples(*[st.integers(0, 10**7)] * 5)


@given(counts, st.integers(0, 10**7), st.integers(0, 10**7), st.integers(10, 200))
def test_a_bar_fills_its_width_and_hides_no_status(
    five: tuple[int, int, int, int, int], removed: int, to_send: int, width: int
) -> None:
    it = campaign(1, "x", "running", to_send, five, removed=removed)
    drawn = bar(it, width).plain
    assert len(drawn) == width
    for glyph, count in zip("█▓░×-", (it.sent, five[1], five[0], five[3], five[4]), strict=True):
        assert (glyph in drawn) is (count > 0)
    whole = max(to_send, it.sent + sum(five) - five[2])
    if whole:
        assert abs(drawn.count("█") - it.sent * width / whole) <= 5
    if it.sent + sum(five) - five[2] >= to_send > 0:
        assert " " not in drawn


@given(st.text(), st.integers(2, 60))
def test_a_fitted_name_has_its_width_and_moves_no_cursor(name: str, width: int) -> None:
    fitted = words.fitted(name, width)
    assert cell_len(fitted) == width
    assert not set(fitted) & {chr(code) for code in (*range(32), *range(127, 160), 0x202E)}


def test_plain_lines_hold_every_number() -> None:
    line = plain_line(VIEW.campaigns[1], NOW)
    assert "\x1b" not in line
    for field in ("sent=104", "queued=0", "sending=1", "failed=2", "cancelled=97", "removed=4", "age=0.2s"):
        assert field in line.split() or field in line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0.0 s"), (0.24, "0.2 s"), (9.94, "9.9 s"), (9.96, "10 s"), (99, "99 s"), (100, "2 min"), (3540, "59 min"),
     (3600, "1 h 00"), (7500, "2 h 05"), (172_800, "2 d")],
)  # fmt: skip
def test_spans_are_short(seconds: float, text: str) -> None:
    assert words.span(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 kB"), (12_345, "12 kB"), (-5, "-5 B"), (5 << 40, "5.0 TB"),
     (5000 << 40, "5000 TB")],
)  # fmt: skip
def test_sizes_are_short(count: int, text: str) -> None:
    assert words.size(count) == text
