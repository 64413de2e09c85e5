"""Draws progress on a terminal: campaigns with bars, five statuses, rate, ETA, and the age of the numbers.

`draw` turns a `View` into lines for a width and a height; it reads no clock and no database. Statuses differ by glyph
as well as by colour, the state is a word, and stale numbers look different from live ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from rich.text import Text

from stream.cli import words
from stream.core.progress import CampaignProgress

#: from this width on a campaign is one line of a table, below it three lines of a block
TABLE_WIDTH: Final = 120
BLOCK_LINES: Final = 3
BAR_WIDTH: Final = 60
#: columns right of a bar: percent, and ETA or age
BESIDE_BAR: Final = 28

#: status, glyph, glyph where the terminal has ASCII only, style; in the order of the bar
GLYPHS: Final = (
    ("sent", "█", "#", "green"),
    ("sending", "▓", ">", "cyan"),
    ("queued", "░", ".", "blue"),
    ("failed", "×", "x", "red"),
    ("cancelled", "-", "-", "yellow"),
)

_STATE_STYLES: Final = {
    "LIVE": "bold green",
    "STALE": "bold yellow",
    "NO BASELINE": "bold yellow",
    "NOT STARTED": "bold yellow",
    "DISCONNECTED": "bold red",
}
_ORDER: Final = ("running", "paused", "scheduled", "draft", "finished", "cancelled")


@dataclass(frozen=True, slots=True)
class View:
    """What is shown at ``now`` (the server's time).

    ``as_of``: of the partition furthest behind; ``based``: whether all have a baseline; ``lag_bytes``: WAL that the
    slot has not confirmed; ``last_run``: one line on the last recount; ``trouble``: why the database can't be read;
    ``notes``: lines for the end, such as the dashboard's address.
    """

    now: datetime
    campaigns: tuple[CampaignProgress, ...]
    started: bool = True
    based: bool = True
    as_of: datetime | None = None
    lag_bytes: int | None = None
    last_run: str = ""
    trouble: str = ""
    notes: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        """LIVE, STALE, NO BASELINE, NOT STARTED or DISCONNECTED."""
        if self.trouble:
            return "DISCONNECTED"
        if not self.started:
            return "NOT STARTED"
        if not self.based:
            return "NO BASELINE"
        if self.as_of is None or (self.now - self.as_of).total_seconds() > 5:
            return "STALE"
        return "LIVE"


def draw(view: View, width: int, height: int | None = None, *, ascii_only: bool = False) -> list[Text]:
    """The view as lines of at most ``width`` columns; with ``height``, of at most so many lines."""
    head = list(_head(view, width))
    foot = [*_legend(view, ascii_only), *(Text(words.safe(note)) for note in view.notes)]
    for line in foot:
        line.truncate(width, overflow="ellipsis")
    campaigns = sorted(view.campaigns, key=_rank)
    if ascii_only:
        campaigns = [replace(campaign, name=words.ascii_text(campaign.name)) for campaign in campaigns]
    table = width >= TABLE_WIDTH
    lines_each = 1 if table else BLOCK_LINES
    room = len(campaigns)
    if height is not None:
        left = height - len(head) - len(foot) - (1 if table else 0)
        if lines_each * len(campaigns) > left:
            room = max(1, (left - 1) // lines_each)
    body: list[Text] = [_table_head()] if table and campaigns else []
    for campaign in campaigns[:room]:
        body.extend([_row(campaign, view, ascii_only)] if table else _block(campaign, view, width, ascii_only))
    if len(campaigns) > room:
        rest = words.count_of(len(campaigns) - room, "more campaign")
        body.append(Text(f"        ... and {rest}: `sentstream progress` lists all", style="dim"))
    lines = [*head, *body, *foot]
    for line in lines if ascii_only else ():
        line.plain = words.ascii_text(line.plain)
    return lines


def bar(campaign: CampaignProgress, width: int, *, ascii_only: bool = False) -> Text:
    """``width`` columns: each status in its share of all that is to be sent, at least one column where it is not 0."""
    counts = {
        "sent": campaign.sent,
        "sending": campaign.queue_sending,
        "queued": campaign.queue_queued,
        "failed": campaign.queue_failed,
        "cancelled": campaign.queue_cancelled,
    }
    whole = max(campaign.to_send, sum(counts.values()))
    shares = _shares([counts[status] for status, *_ in GLYPHS], whole, width)
    text = Text()
    for (_status, glyph, plain, style), columns in zip(GLYPHS, shares, strict=True):
        text.append((plain if ascii_only else glyph) * columns, style=style)
    text.append(("." if ascii_only else "·") * (width - sum(shares)) if not whole else " " * (width - sum(shares)))
    return text


def plain_line(campaign: CampaignProgress, now: datetime) -> str:
    """A campaign as one line of logfmt, for a pipe or a log."""
    age = "none" if campaign.as_of is None else f"{max(0.0, (now - campaign.as_of).total_seconds()):.1f}s"
    known = "-" if campaign.percent is None else f"{campaign.percent}"
    fields = [
        f"campaign_id={campaign.campaign_id}",
        f"name={_quoted(words.safe(campaign.name))}",
        f"status={campaign.status}",
        f"sent={campaign.sent}",
        f"to_send={campaign.to_send}",
        f"percent={known}",
        f"queued={campaign.queue_queued}",
        f"sending={campaign.queue_sending}",
        f"failed={campaign.queue_failed}",
        f"cancelled={campaign.queue_cancelled}",
        f"removed={campaign.removed}",
        f"rate={campaign.rate_per_minute}/min",
        f"eta={'-' if campaign.eta is None else campaign.eta.isoformat().replace('+00:00', 'Z')}",
        f"age={age}",
        f"source={campaign.source}",
    ]
    return " ".join(fields) + (" STALE" if campaign.stale else "")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _head(view: View, width: int) -> Iterator[Text]:
    sending = sum(1 for campaign in view.campaigns if campaign.rate_per_minute > 0)
    flow = sum(campaign.rate_per_minute for campaign in view.campaigns)
    first = Text("sentstream  ", style="bold")
    first.append(view.state, style=_STATE_STYLES[view.state])
    first.append(f"  {words.clock(view.now)}   {words.count_of(len(view.campaigns), 'campaign')}, {sending} sending")
    first.append(f"   {words.rate(flow)}" if flow else "")
    second = [f"as of {words.ago(view.as_of, view.now)}"]
    if view.lag_bytes is not None:
        second.append(f"{words.size(view.lag_bytes)} behind")
    if view.last_run:
        second.append(view.last_run)
    lines = [first, Text(" · ".join(second), style="dim" if view.state == "LIVE" else "yellow")]
    if view.trouble:
        lines.append(Text(words.safe(view.trouble), style="red"))
    lines.append(Text())
    for line in lines:
        line.truncate(width, overflow="ellipsis")
        yield line


def _legend(view: View, ascii_only: bool) -> Iterator[Text]:
    if not view.campaigns:
        yield Text("No campaigns yet.", style="dim")
        return
    text = Text()
    for status, glyph, plain, style in GLYPHS:
        text.append(plain if ascii_only else glyph, style=style)
        text.append(f" {status}  ", style="dim")
    yield Text()
    yield text


def _block(campaign: CampaignProgress, view: View, width: int, ascii_only: bool) -> Iterator[Text]:
    """Three lines of a campaign, for a narrow terminal."""
    live = view.state == "LIVE" and not campaign.stale
    right = f"{campaign.status:<9} {_of(campaign):>21}  {words.rate(campaign.rate_per_minute):>10}"
    name_width = width - 8 - len(right) - 1
    first = Text(f"{campaign.campaign_id:>6}  ")
    first.append(words.fitted(campaign.name, name_width), style="bold" if live else "")
    first.append(" " + right)
    second = Text(" " * 8)
    bar_width = min(BAR_WIDTH, width - 8 - BESIDE_BAR)
    second.append_text(bar(campaign, bar_width, ascii_only=ascii_only))
    beside = _eta(campaign, view) if live else _age(campaign, view)
    second.append(f" {words.percent(campaign.percent):>8}  {beside:>{BESIDE_BAR - 11}}")
    counts = (
        f"queued {words.number(campaign.queue_queued)}  sending {words.number(campaign.queue_sending)}  "
        f"sent {words.number(campaign.queue_sent)}  failed {words.number(campaign.queue_failed)}  "
        f"cancelled {words.number(campaign.queue_cancelled)}"
    )
    if campaign.removed:
        counts += f"  removed {words.number(campaign.removed)}"
    if campaign.source == "mailer":
        counted = view.started and view.based
        counts = "not in the queue: the number is the mailer's own" if counted else "not counted yet"
    third = Text(" " * 8 + counts, style="dim" if live else "yellow")
    for line in (first, second, third):
        line.truncate(width, overflow="ellipsis")
        yield line


_COLUMNS: Final = (
    ("ID", 6, ">"),
    ("CAMPAIGN", 20, "<"),
    ("STATUS", 9, "<"),
    ("PROGRESS", 12, "<"),
    ("", 7, ">"),
    ("SENT", 9, ">"),
    ("QUEUED", 8, ">"),
    ("SENDING", 7, ">"),
    ("FAILED", 6, ">"),
    ("CANCELLED", 9, ">"),
    ("RATE", 9, ">"),
)


def _table_head() -> Text:
    cells = [f"{title:{side}{width}}" for title, width, side in _COLUMNS]
    return Text(" ".join(cells) + " ETA", style="bold")


def _row(campaign: CampaignProgress, view: View, ascii_only: bool) -> Text:
    """One line of a campaign, for a wide terminal."""
    live = view.state == "LIVE" and not campaign.stale
    in_queue = campaign.source == "queue"
    values = [
        f"{campaign.campaign_id}",
        words.fitted(campaign.name, _COLUMNS[1][1]),
        campaign.status,
        "",
        words.percent(campaign.percent),
        words.number(campaign.sent),
        *(
            words.number(count) if in_queue else "-"
            for count in (
                campaign.queue_queued,
                campaign.queue_sending,
                campaign.queue_failed,
                campaign.queue_cancelled,
            )
        ),
        words.rate(campaign.rate_per_minute),
    ]
    text = Text()
    for (title, width, side), value in zip(_COLUMNS, values, strict=True):
        if title == "PROGRESS":
            text.append_text(bar(campaign, width, ascii_only=ascii_only))
            text.append(" ")
        else:
            text.append(f"{value:{side}{width}} ", style="" if live else "yellow")
    if campaign.source == "queue":
        text.append(_eta(campaign, view).removeprefix("ETA in ") if live else "STALE", style="" if live else "yellow")
    return text


def _of(campaign: CampaignProgress) -> str:
    return f"{words.number(campaign.sent)} of {words.number(campaign.to_send)}"


def _eta(campaign: CampaignProgress, view: View) -> str:
    return "" if campaign.eta is None else f"ETA in {words.span((campaign.eta - view.now).total_seconds())}"


def _age(campaign: CampaignProgress, view: View) -> str:
    if campaign.source == "mailer":
        return ""
    return "no baseline yet" if campaign.as_of is None else f"as of {words.ago(campaign.as_of, view.now)}"


def _rank(campaign: CampaignProgress) -> tuple[bool, bool, int, int]:
    """Campaigns whose mail flows first, then by status, newest first; those outside the queue last."""
    place = _ORDER.index(campaign.status) if campaign.status in _ORDER else len(_ORDER)
    return campaign.source == "mailer", campaign.rate_per_minute <= 0, place, -campaign.campaign_id


def _shares(counts: Sequence[int], whole: int, width: int) -> list[int]:
    """Columns of each count in ``width`` for ``whole``: by largest remainder, at least one where the count is not 0."""
    if whole <= 0:
        return [0] * len(counts)
    shares = [count * width // whole for count in counts]
    shares = [max(share, 1) if count > 0 else 0 for share, count in zip(shares, counts, strict=True)]
    goal = min(width, -(-sum(counts) * width // whole))
    remainders = sorted(range(len(counts)), key=lambda i: -(counts[i] * width % whole))
    for index in remainders:
        if sum(shares) < goal and counts[index]:
            shares[index] += 1
    while sum(shares) > width:
        shares[shares.index(max(shares))] -= 1
    return shares
