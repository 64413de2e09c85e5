"""The table and the picture of `benchmarks.rivals`: reads its raw figures, writes Markdown and an SVG.

python -m benchmarks.rivals_table out/rivals.json --markdown out/rivals.md --picture out/rivals.svg
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape

#: column: title, key of the figures, whether it is shown as a ratio to "none"
COLUMNS: Final = (
    ("sender at saturation", "saturation_tps", True),
    ("its median at the rate", "median_ms", True),
    ("its p99", "p99_ms", True),
    ("fresh p50, ms", "fresh_p50_ms", False),
    ("fresh p99, ms", "fresh_p99_ms", False),
    ("CPU ms a mail", "cpu_per_thousand", False),
    ("memory beside PostgreSQL, MB", "memory_mb", False),
    ("WAL bytes a mail", "wal_bytes_per_mail", False),
)
_BAR: Final = 26
_WIDE: Final = 860


def markdown(figures: dict[str, Any]) -> str:
    """The medians as a table; the sender's columns as ratios to "none", least and most of the rounds in brackets."""
    titles = ["", *(title for title, _, _ in COLUMNS), "right after TRUNCATE", "right after kill -9"]
    lines = [_line(titles), _line(["---"] * len(titles))]
    for way in figures["medians"]:
        right = figures["right_after"][way]
        cells = [way, *(_cell(figures, way, key, ratio) for _, key, ratio in COLUMNS)]
        lines.append(_line([*cells, _word(right["truncate"]), _word(right["kill"])]))
    about = (
        f"{figures['date']}, commit {figures['commit']}: {figures['rounds']} rounds of {figures['seconds']:g} s at "
        f"{figures['rate']:,} mails a second, then saturation; medians, least and most in brackets."
    )
    return "\n".join([*lines, "", about, ""])


def _cell(figures: dict[str, Any], way: str, key: str, ratio: bool) -> str:
    runs = figures["runs"][way]
    values = [run[key] for run in runs if run[key] is not None]
    if not values:
        return "-"
    if ratio:
        base = [run[key] for run in figures["runs"]["none"]]
        values = [value / none for value, none in zip(values, base, strict=True)]
    ordered = sorted(values)
    middle = ordered[len(ordered) // 2]
    form = ".2f" if ratio else ",.1f" if middle < 100 else ",.0f"
    return f"{middle:{form}} ({ordered[0]:{form}}-{ordered[-1]:{form}})"


def _word(right: bool | None) -> str:
    return "-" if right is None else "yes" if right else "**no**"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def picture(figures: dict[str, Any]) -> str:
    """Two rows of bars: the sender at saturation as a share of none, and freshness p99 on a scale of powers of ten."""
    medians = figures["medians"]
    none = medians["none"]["saturation_tps"]
    shares = [
        (way, row["saturation_tps"] / none, f"{row['saturation_tps'] / none:.0%}") for way, row in medians.items()
    ]
    fresh = [
        (way, min(1.0, max(0.02, _log(row["fresh_p99_ms"]) / 5)), f"{row['fresh_p99_ms']:,.0f} ms")
        for way, row in medians.items()
        if row["fresh_p99_ms"] is not None
    ]
    parts, at = [], 30
    for title, bars in (
        ("What the sender keeps of its throughput", shares),
        ("How old the number is, p99 (each fifth: ten times)", fresh),
    ):
        parts.append(f'<text x="10" y="{at}" class="title">{escape(title)}</text>')
        at += 14
        for way, share, words in bars:
            ours = way in ("embedded", "kafka")
            width = max(2, round(share * 520))
            parts.append(f'<text x="10" y="{at + 17}">{escape(("sentstream, " if ours else "") + way)}</text>')
            colour = "#0b7285" if ours else "#868e96"
            parts.append(f'<rect x="190" y="{at + 3}" width="{width}" height="{_BAR - 8}" fill="{colour}" rx="2"/>')
            parts.append(f'<text x="{200 + width}" y="{at + 17}">{escape(words)}</text>')
            at += _BAR
        at += 34
    style = "text{font:13px system-ui,sans-serif;fill:#343a40}.title{font-weight:600}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDE} {at}" role="img">'
        f"<title>Ways to keep campaigns.sent true</title><desc>{escape(markdown(figures).splitlines()[-1])}</desc>"
        f'<style>{style}</style><rect width="{_WIDE}" height="{at}" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _log(value: float) -> float:
    digits = 0.0
    while value >= 10:
        value, digits = value / 10, digits + 1
    return digits + (value - 1) / 9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    figures = json.loads(given.figures.read_text())
    table = markdown(figures)
    if given.markdown is not None:
        given.markdown.write_text(table)
    if given.picture is not None:
        given.picture.write_text(picture(figures))
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
