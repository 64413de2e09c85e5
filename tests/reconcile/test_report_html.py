"""What readers of a report get: the page and the CSV, for no runs, one, and thousands."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.core.report import COUNTS, Report, Ruled, Run, Tally, snapshot_json
from stream.reconcile.report_export import as_csv
from stream.reconcile.report_html import BARS, as_page

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)
RUN = Run(
    run_id=1, trigger="interval", requested_by="reconciler", status="sealed", started_at=NOW, lsn="0/1",
    snapshot="700:712:700,705", epoch=1, removed_policy="keep", version="1", count_ms=1.5, campaigns=3,
    finished_at=NOW, tally=Tally(verified=3), chain_no=1, previous_digest="0" * 64, digest="a" * 64,
)  # fmt: skip


def run(number: int, at: timedelta, tally: Tally = RUN.tally, **changes: object) -> Report:
    return Report(replace(RUN, run_id=number, started_at=NOW + at, tally=tally, **changes))  # type: ignore[arg-type]


def page(*reports: Report, **words: object) -> str:
    given = {"made_at": NOW, "source": "mailer", "head": (1, "a" * 64), **words}
    return as_page(reports, **given)  # type: ignore[arg-type]


def bars(html: str) -> list[tuple[float, float]]:
    """(x, width) of the bars of the chart's strip."""
    strip = re.findall(r'<rect class="\w+" x="([\d.]+)" y="\d+" width="([\d.]+)" height="10"/>', html)
    return [(float(x), float(width)) for x, width in strip]


def test_no_runs_are_no_error() -> None:
    assert "Nothing was counted yet" in page()
    assert list(as_csv([])) == list(as_csv([]))[:1]


def test_one_run_is_one_bar() -> None:
    html = page(run(1, timedelta()))
    assert len(bars(html)) == 1
    assert 'class="verified"' in html


def test_thousands_of_runs_are_as_many_bars_as_fit() -> None:
    many = [
        run(n, timedelta(minutes=5 * n), Tally(verified=2, drift=1) if n == 700 else RUN.tally)
        for n in range(5000, 0, -1)
    ]
    html = page(*many)
    assert len(bars(html)) == BARS
    assert all(x >= 0 and x + width <= 920 for x, width in bars(html))
    assert html.count('<rect class="drift"') == 2, "one in the plot, one in the strip"
    assert "Campaigns that drifted, over time: 1 in 5000 runs, at most 1 in one bar." in html


def test_an_open_run_is_shown_as_open_and_colours_nothing() -> None:
    html = page(run(1, timedelta(), Tally(), status="open", digest=None))
    assert "<td>open" in html
    assert '<rect class="none"' in html


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "a & b", "\"'><img src=x onerror=y>"])
def test_markup_is_text(text: str) -> None:
    verdict = Ruled(7, "drift", NOW, "missed_change", {"sent": 1}, {"sent": 2}, {"sent": 1}, corrected=True)
    report = replace(run(1, timedelta(), requested_by=text), verdicts=(verdict,))
    html = page(report, name_of=lambda _: text, source=text)
    assert text not in html
    assert "<script" not in html
    assert "<img" not in html


class Balanced(HTMLParser):
    """Every element that must be closed is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002
        if tag not in {"meta", "rect", "line", "tr", "td", "th", "dt", "dd", "li", "p"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag


tallies = st.builds(Tally, *[st.integers(0, 3)] * 5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**7), tallies), max_size=30))
def test_any_history_makes_a_page(history: list[tuple[int, Tally]]) -> None:
    times = sorted(history, key=lambda one: -one[0])
    reports = [run(len(times) - n, timedelta(seconds=at), tally) for n, (at, tally) in enumerate(times)]
    html = page(*reports)
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    assert len(bars(html)) <= BARS
    rows = list(csv.DictReader(io.StringIO("".join(as_csv(reports)))))
    assert [int(row["run_id"]) for row in rows] == [report.run.run_id for report in reports]


def test_counts_are_in_the_order_of_the_statuses() -> None:
    verdict = Ruled(7, "baseline", NOW, None, {"counter": 0}, dict.fromkeys(reversed(COUNTS), 1), {"counter": 1})
    assert list(verdict.as_json()["after"]) == list(COUNTS)


def test_a_snapshot_as_an_object() -> None:
    assert snapshot_json("700:712:700,705") == {"xmin": 700, "xmax": 712, "xip": [700, 705]}
    assert snapshot_json("1:1:") == {"xmin": 1, "xmax": 1, "xip": []}


def test_a_run_is_proved_when_nothing_is_left_to_say() -> None:
    assert Tally(verified=3, baseline=1).proved
    for other in ("drift", "inconclusive", "not_comparable"):
        assert not Tally(verified=3, **{other: 1}).proved
