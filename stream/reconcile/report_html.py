"""Reports as one self-contained HTML page: no script, nothing loaded, readable in print and in dark mode.

A summary, a chart of drift over time, every drift with its cause, then all runs. The chart is inline SVG; what it
shows is in the tables too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from html import escape
from typing import Final

from stream.core.report import COUNTS, VERDICTS, Report, Ruled

#: bars of the chart at most; with more runs, those of one stretch of time are one bar
BARS: Final = 96
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 920, 220, 44, 46, 14
_STRIP: Final = 10
_WORDS: Final[Mapping[str, str]] = {
    "verified": "Verified",
    "drift": "Drift",
    "inconclusive": "Inconclusive",
    "not_comparable": "Not comparable",
    "baseline": "Baseline",
}
#: the worst first: it gives a stretch of time its colour
_WORST: Final = ("drift", "inconclusive", "not_comparable", "baseline", "verified")


def as_page(
    reports: Sequence[Report],
    *,
    made_at: datetime,
    source: str,
    head: tuple[int, str],
    name_of: Callable[[int], str] = lambda _: "",
) -> str:
    """The page. ``reports``: newest first; ``source``: which database they are of; ``head``: place and digest of the
    chain's newest run; ``name_of``: what a campaign is called, empty where unknown."""
    title = f"Reconciliation of {escape(source)}"
    return "".join(
        (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
            f"<title>{title}</title><style>{_STYLE}</style></head>\n<body><main>",
            f"<h1>{title}</h1>",
            "".join(_summary(reports, made_at, head)),
            "<h2>Drift over time</h2>",
            _chart(reports),
            "<h2>Drifts</h2>",
            "".join(_verdicts(reports, "drift", name_of)),
            "<h2>First contact and new baselines</h2>",
            "".join(_verdicts(reports, "baseline", name_of)),
            "<h2>What other tables say</h2>",
            "".join(_observations(reports, name_of)),
            "<h2>All runs</h2>",
            "".join(_runs(reports)),
            f"<footer>{_FOOTER}</footer></main></body></html>\n",
        )
    )


def _summary(reports: Sequence[Report], made_at: datetime, head: tuple[int, str]) -> Iterator[str]:
    totals = {name: sum(getattr(report.run.tally, name) for report in reports) for name in VERDICTS}
    if reports:
        span = f"{len(reports)} runs from {_time(reports[-1].run.started_at)} to {_time(reports[0].run.started_at)}"
    else:
        span = "no runs"
    yield f"<p>{span}; made {_time(made_at)}.</p><dl class=tiles>"
    for name in VERDICTS:
        tone = name if totals[name] else "none"
        yield f"<div class={tone}><dt>{_WORDS[name]}</dt><dd>{totals[name]:,}</dd></div>"
    yield "</dl>"
    yield f"<p class=note>Head of the chain: place {head[0]:,}, <code>{escape(head[1])}</code></p>"


# ---- the chart ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Bar:
    """A stretch of time: its runs, the campaigns that drifted in it, and its worst verdict (None: no run)."""

    begin: datetime
    end: datetime
    runs: int
    drift: int
    worst: str | None


def _bars(reports: Sequence[Report]) -> list[_Bar]:
    runs = [report.run for report in reports]
    first = min(run.started_at for run in runs)
    last = max(run.started_at for run in runs)
    most = min(BARS, len(runs))
    step = max((last - first) / most, timedelta(seconds=1))
    number = min(most, int((last - first) / step) + 1)
    stretches: list[list[Mapping[str, int]]] = [[] for _ in range(number)]
    for run in filter(lambda run: run.sealed, runs):
        stretches[min(number - 1, int((run.started_at - first) / step))].append(run.tally.as_json())
    bars = []
    for place, tallies in enumerate(stretches):
        found = {name for tally in tallies for name, n in tally.items() if n}
        worst = next((name for name in _WORST if name in found), "verified" if tallies else None)
        drift = sum(tally["drift"] for tally in tallies)
        bars.append(_Bar(first + step * place, first + step * (place + 1), len(tallies), drift, worst))
    return bars


def _chart(reports: Sequence[Report]) -> str:
    if not reports:
        return "<p>Nothing was counted yet.</p>"
    bars = _bars(reports)
    most = max(1, *(bar.drift for bar in bars))
    total = sum(bar.drift for bar in bars)
    plot_width, plot_height = _WIDTH - _LEFT - 4, _HEIGHT - _BOTTOM - _TOP
    width = plot_width / len(bars)
    label = (
        f"Campaigns that drifted, over time: {total} in {len(reports)} runs, at most {most if total else 0} in one bar."
    )
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">']
    for value in sorted({0, most, most // 2 if most > 1 else most}):
        y = _TOP + plot_height * (1 - value / most)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - 4}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value}</text>')
    for place, bar in enumerate(bars):
        x, gap = _LEFT + place * width, min(1.5, width / 5)
        title = f"{_time(bar.begin)}: {bar.runs} runs, {bar.drift} campaigns drifted"
        parts.append(f"<g><title>{title}</title>")
        height = plot_height * bar.drift / most
        if bar.drift:
            y = _TOP + plot_height - height
            parts.append(
                f'<rect class="drift" x="{x:.1f}" y="{y:.1f}" width="{width - gap:.1f}" height="{height:.1f}"/>'
            )
        y = _TOP + plot_height + 6
        tone = bar.worst or "none"
        parts.append(f'<rect class="{tone}" x="{x:.1f}" y="{y}" width="{width - gap:.1f}" height="{_STRIP}"/></g>')
    parts.append(_axis(bars))
    legend = "".join(f"<li><i class={name}></i>{_WORDS[name]}</li>" for name in _WORST)
    note = "Bars: campaigns that drifted. The strip below: the worst verdict of each stretch of time."
    return "".join(parts) + f"</svg><p class=note>{note}</p><ul class=legend>{legend}</ul>"


def _axis(bars: Sequence[_Bar]) -> str:
    y = _HEIGHT - 10
    first, last = bars[0].begin, bars[-1].end
    middle = first + (last - first) / 2
    short = last - first < timedelta(days=2)
    ticks = ((_LEFT, "start", first), (_LEFT + (_WIDTH - _LEFT) / 2, "middle", middle), (_WIDTH - 4, "end", last))
    return "".join(
        f'<text x="{x:.0f}" y="{y}" text-anchor="{anchor}">{_time(at) if short else _day(at)}</text>'
        for x, anchor, at in (ticks if len(bars) > 1 else ticks[:1])
    )


# ---- the tables --------------------------------------------------------------------------------------------------


def _verdicts(reports: Sequence[Report], kind: str, name_of: Callable[[int], str]) -> Iterator[str]:
    found = [(report, verdict) for report in reports for verdict in report.verdicts if verdict.verdict == kind]
    if not found:
        yield "<p>None.</p>"
        return
    yield from _head("Run", "Time", "Campaign", "Cause", "Before", "After", "Difference", "")
    for report, verdict in found:
        yield (
            f'<tr><td><a href="#run{report.run.run_id}">{report.run.run_id}</a>'
            f"<td class=t>{_time(report.run.started_at)}"
            f"<td>{_campaign(verdict.campaign_id, name_of)}<td>{escape((verdict.cause or '-').replace('_', ' '))}"
            f"<td>{_counts(verdict.before)}<td>{_counts(verdict.after)}<td>{_delta(verdict)}<td>{_remarks(verdict)}"
        )
    yield "</table></div>"


def _observations(reports: Sequence[Report], name_of: Callable[[int], str]) -> Iterator[str]:
    found = [(report, o) for report in reports for o in report.run.observations]
    if not found:
        yield "<p>Nothing that differs.</p>"
        return
    yield from _head("Run", "Campaign", "What", "Expected", "Found")
    for report, o in found:
        yield (
            f'<tr><td><a href="#run{report.run.run_id}">{report.run.run_id}</a>'
            f"<td>{_campaign(int(o['campaign_id']), name_of)}<td>{escape(str(o['kind']).replace('_', ' '))}"
            f"<td class=n>{o['expected']:,}<td class=n>{o['actual']:,}"
        )
    yield "</table></div>"


def _runs(reports: Sequence[Report]) -> Iterator[str]:
    if not reports:
        yield "<p>None.</p>"
        return
    yield from _head("Run", "Time", "Trigger", "Asked by", "Campaigns", *_WORDS.values(), "Count", "Digest")
    for report in reports:
        run = report.run
        numbers = "".join(f"<td class='n {name if n else 'zero'}'>{n:,}" for name, n in run.tally.as_json().items())
        digest = f"<code title='{run.digest}'>{run.digest[:12]}</code>" if run.digest else "open"
        also = f" ({', '.join(run.also)})" if run.also else ""
        yield (
            f"<tr id=run{run.run_id}><td>{run.run_id}<td class=t>{_time(run.started_at)}"
            f"<td>{escape(run.trigger + also)}<td>{escape(run.requested_by)}<td class=n>{run.campaigns:,}{numbers}"
            f"<td class=n>{run.count_ms:.1f} ms<td>{digest}"
        )
    yield "</table></div>"


def _head(*titles: str) -> Iterator[str]:
    numbers = {"Expected", "Found", "Campaigns", "Count", *_WORDS.values()}
    cells = (f"<th class=n>{title}" if title in numbers else f"<th>{title}" for title in titles)
    yield "<div class=scroll><table><tr>" + "".join(cells)


def _campaign(campaign: int, name_of: Callable[[int], str]) -> str:
    name = name_of(campaign)
    return f"{campaign} {escape(name)}" if name else str(campaign)


def _counts(counts: Mapping[str, int] | None) -> str:
    if not counts:
        return "-"
    return ", ".join(f"{name} {counts[name]:,}" for name in COUNTS if counts.get(name)) or "nothing"


def _delta(verdict: Ruled) -> str:
    delta = verdict.delta or {}
    return ", ".join(f"{name} {delta[name]:+,}" for name in COUNTS if delta.get(name)) or "-"


def _remarks(verdict: Ruled) -> str:
    remarks = [word for word, holds in (("corrected", verdict.corrected), ("estimated", verdict.estimated)) if holds]
    return ", ".join(remarks)


def _time(at: datetime) -> str:
    return at.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def _day(at: datetime) -> str:
    return at.astimezone(timezone.utc).strftime("%Y-%m-%d")


_FOOTER: Final = (
    "Counts are of the mailer's queue, compared with what sentstream showed at the same point of the write-ahead log. "
    "<em>Verified</em>: equal. <em>Drift</em>: a real fault, put right. <em>Inconclusive</em>: could not be compared, "
    "and was repeated. <em>Not comparable</em>: the stream was behind or down. <em>Baseline</em>: first contact, or a "
    "new beginning after something was lost. Whether these reports are those that were sealed is told by "
    "<code>sentstream report verify</code>."
)

_STYLE: Final = """
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5b6675;--line:#d5dae1;--paper:#fff;--panel:#f4f6f8;
--verified:#2e7d4f;--drift:#c62828;--inconclusive:#a86400;--not_comparable:#6b7280;--baseline:#2563a8}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ee;--soft:#9aa5b4;--line:#37404d;--paper:#14181e;--panel:#1d232c;
--verified:#5cb883;--drift:#ff7a6e;--inconclusive:#e0a042;--not_comparable:#9aa3b0;--baseline:#74aef0}}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:70rem;margin:0 auto;padding:1.5rem}
h1{font-size:1.5rem;margin:0 0 .5rem}h2{font-size:1.15rem;margin:2rem 0 .5rem}
.note,footer{color:var(--soft);font-size:.87rem}
footer{margin-top:2rem;border-top:1px solid var(--line);padding-top:1rem}
code{font-size:.85em;overflow-wrap:anywhere}
.tiles{display:flex;flex-wrap:wrap;gap:.75rem;margin:1rem 0}
.tiles div{background:var(--panel);border-left:4px solid var(--line);padding:.4rem .9rem;min-width:7rem}
.tiles dt{color:var(--soft);font-size:.85rem}.tiles dd{margin:0;font-size:1.4rem;font-variant-numeric:tabular-nums}
.tiles .verified{border-color:var(--verified)}.tiles .drift{border-color:var(--drift)}
.tiles .inconclusive{border-color:var(--inconclusive)}.tiles .not_comparable{border-color:var(--not_comparable)}
.tiles .baseline{border-color:var(--baseline)}
svg{width:100%;height:auto;background:var(--panel)}svg text{fill:var(--soft);font-size:12px}
svg .grid{stroke:var(--line)}svg .none{fill:var(--line)}
svg .verified{fill:var(--verified)}svg .drift{fill:var(--drift)}svg .inconclusive{fill:var(--inconclusive)}
svg .not_comparable{fill:var(--not_comparable)}svg .baseline{fill:var(--baseline)}
.legend{display:flex;flex-wrap:wrap;gap:1rem;list-style:none;padding:0;margin:.3rem 0;font-size:.87rem}
.legend i{display:inline-block;width:.8em;height:.8em;margin-right:.4em}
.legend .verified{background:var(--verified)}.legend .drift{background:var(--drift)}
.legend .inconclusive{background:var(--inconclusive)}.legend .not_comparable{background:var(--not_comparable)}
.legend .baseline{background:var(--baseline)}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.87rem}
th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--soft);font-weight:600;white-space:nowrap}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}.t{white-space:nowrap}
.zero{color:var(--soft)}
table code{overflow-wrap:normal}
td.drift{color:var(--drift);font-weight:600}td.inconclusive{color:var(--inconclusive)}td.baseline{color:var(--baseline)}
@media print{:root{color-scheme:light}main{max-width:none}.scroll{overflow:visible}}
"""
