"""`explain`: in plain words, why a campaign's number is what it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Annotated, Final

import typer

from connectors.postgres.queries.explain import Explanation, HistoryEntry, RecordedVerdict, explain
from connectors.postgres.queries.progress import find_campaign
from stream.cli import words
from stream.cli.call import Call, command
from stream.core.progress import to_json
from stream.core.status import STATUSES

app = typer.Typer()

CAUSES: Final[Mapping[str, str]] = {
    "missed_change": "a change of the queue had not reached the count",
    "duplicate_change": "a change of the queue had been counted twice",
    "counter_overwritten": "another program wrote campaigns.sent",
    "rows_vanished_unwatched": "rows left the queue while no reader followed the WAL",
    "gap": "a part of the WAL had not been seen (the slot was away or moved)",
    "new_epoch": "the history of the WAL is another one (a restore, a fail-over, another number of partitions)",
    "lost_state": "the stored counts were not the ones that had been written",
    "unknown": "the difference does not point to a cause",
}
VERDICTS: Final[Mapping[str, str]] = {
    "verified": "equal to the queue",
    "drift": "DIFFERENT from the queue",
    "inconclusive": "could not be decided, and is repeated",
    "not_comparable": "counted while the stream was behind or down",
    "baseline": "counted for the first time, with nothing to compare",
}
_KINDS: Final[Mapping[str, str]] = {
    "flow": "mails seen going out, minute by minute",
    "baseline": "taken over at a baseline",
    "correction": "corrected by recounts",
    "pruned": "older minutes, folded into one row by HISTORY_RETENTION",
}


@command(
    app,
    "explain",
    shows=("mailer_schema", "removed", "write_back"),
    epilog='Examples: `sentstream explain 7`, `sentstream explain "Spring sale"`',
)
def explain_command(
    call: Call, campaign: Annotated[str, typer.Argument(metavar="CAMPAIGN", help="Its id or exact name.")]
) -> None:
    """In plain words: what the campaign counts, its last changes, recounts and drifts, why the number is what it is."""
    settings = call.settings
    with call.connect("explain") as connection:
        number = find_campaign(connection, settings.mailer_schema, campaign)
        found = explain(connection, settings.mailer_schema, number)
    why = list(reasons(found, removed=settings.removed, write_back=settings.write_back))
    if call.json:
        call.print_json({**asdict(found), "progress": to_json(found.progress), "reasons": why})
        return
    it = found.progress
    call.out.print(f'Campaign {it.campaign_id} "{words.safe(it.name)}", {it.status}', style="bold")
    for reason in why:
        call.out.print(reason, soft_wrap=False)
    for title, lines in (
        ("Last changes of sent", [_change(change) for change in found.changes]),
        ("Recounts with a finding", [text for finding in found.findings for text in _finding(finding)]),
    ):
        call.out.print()
        call.out.print(title, style="bold")
        for line in lines or ["  none"]:
            call.out.print(line, soft_wrap=True)


def reasons(found: Explanation, *, removed: str, write_back: bool) -> Iterator[str]:
    """Sentences, the most important first."""
    it = found.progress
    if it.source == "mailer" and not found.based:
        yield (
            f"campaigns.sent is {words.number(found.counter)}, the mailer's own number. sentstream has not counted "
            "yet: the first recount finds which campaigns have rows in the queue (`sentstream status`)."
        )
        yield from _blocked(found)
        return
    if it.source == "mailer":
        yield (
            f"campaigns.sent is {words.number(found.counter)}. The campaign has no rows in the queue, so sentstream "
            "does not count it and never writes its number: it is the mailer's own."
        )
        if sum(found.live.values()):
            yield (
                f"The queue does hold {words.count_of(sum(found.live.values()), 'row')} of it now: the stream has not "
                "reached them yet, or does not run (`sentstream status`)."
            )
        return
    yield from _what_it_counts(it.sent, it.queue_sent, it.removed, removed)
    yield (
        f"Of {words.number(it.to_send)} to send that is {words.percent(it.percent)}."
        if it.to_send
        else "The mailer says that there is nothing to send (to_send is 0), so there is no percentage."
    )
    yield from _freshness(found)
    yield from _blocked(found)
    yield from _counter(found, not write_back if found.shadow is None else found.shadow)
    yield from _queue_now(found)
    yield from _proof(found)
    yield from _history(found)
    yield from _rebases(found)


def _what_it_counts(sent: int, in_queue: int, gone: int, removed: str) -> Iterator[str]:
    if not gone:
        yield f"sent is {words.number(sent)}: so many rows of the queue have the status sent."
    elif removed == "keep":
        yield (
            f"sent is {words.number(sent)}: {words.count_of(in_queue, 'row')} of the queue with the status sent, and "
            f"{words.number(gone)} that had been sent when they were deleted (queue cleared, subscribers or rows "
            "deleted). A deleted row does not unsend a mail (REMOVED=keep)."
        )
    else:
        yield (
            f"sent is {words.number(sent)}: the rows of the queue with the status sent. {words.number(gone)} more had "
            "been sent when they were deleted; they do not count (REMOVED=follow)."
        )


def _freshness(found: Explanation) -> Iterator[str]:
    it = found.progress
    if not found.based:
        yield (
            "The number has no baseline at the moment: a part of the WAL was not seen, and the next recount sets it. "
            "Until then changes are not added."
        )
    elif it.stale:
        yield (
            f"The number is stale: it is true as of {words.ago(it.as_of, found.now)}. Either sentstream does not run, "
            "or it is catching up (`sentstream status`, `sentstream lag`)."
        )
    else:
        yield f"The number is live: true as of {words.ago(it.as_of, found.now)}."


def _blocked(found: Explanation) -> Iterator[str]:
    if found.old_transaction is not None:
        text = words.transaction_text(found.old_transaction)
        yield f"{text[0].upper()}{text[1:]}."


def _counter(found: Explanation, shadow: bool) -> Iterator[str]:
    it = found.progress
    if found.overwritten_at is not None:
        yield (
            f"Another program wrote campaigns.sent, last noticed {words.moment(found.overwritten_at)}; sentstream "
            "corrected it with the flush that noticed it."
        )
    if found.counter == it.sent:
        yield "campaigns.sent shows the same." + (" sentstream does not write it: shadow mode." if shadow else "")
        return
    text = f"campaigns.sent shows {words.number(found.counter)} instead: "
    if shadow:
        yield text + "sentstream runs in shadow mode and does not write it (WRITE_BACK=false)."
    elif found.ahead is not None:
        yield text + (
            f"a recount, made while the stream was behind, wrote it; the stream does not lower it until it reaches "
            f"{found.ahead}."
        )
    elif found.written is not None and found.counter != found.written:
        yield text + (
            f"another program wrote it after sentstream (which wrote {words.number(found.written)}); it is corrected "
            "within seconds while sentstream runs."
        )
    else:
        yield text + "the next flush writes it; a locked row is tried again with every flush."


def _queue_now(found: Explanation) -> Iterator[str]:
    it = found.progress
    shown = (it.queue_queued, it.queue_sending, it.queue_sent, it.queue_failed, it.queue_cancelled)
    counts = ", ".join(f"{name} {words.number(found.live[name])}" for name in STATUSES)
    if tuple(found.live[name] for name in STATUSES) == shown:
        yield f"The queue itself, counted just now, says the same: {counts}."
        return
    ours = ", ".join(f"{name} {words.number(count)}" for name, count in zip(STATUSES, shown, strict=True))
    yield (
        f"The queue itself, counted just now, says {counts}; sentstream has {ours}. While mail flows the two are "
        "moments apart; `sentstream recount` compares them at the same point of the WAL."
    )
    strange = sorted(set(found.live) - set(STATUSES))
    if strange:
        yield f"The queue holds rows with a status that is none of the five: {words.safe(', '.join(strange))}."


def _proof(found: Explanation) -> Iterator[str]:
    if found.progress.verified_at is None:
        first = next((one for one in found.findings if one.verdict == "baseline"), None)
        counted = f" Run {first.run_id} counted it ({words.ago(first.decided_at, found.now)})." if first else ""
        yield f"No recount has verified it yet.{counted}"
    else:
        yield (
            f"A recount found it equal to the queue {words.ago(found.progress.verified_at, found.now)} "
            f"({words.moment(found.progress.verified_at)}, WAL position {found.verified_lsn})."
        )


def _history(found: Explanation) -> Iterator[str]:
    if not found.history:
        return
    parts = [f"{words.number(found.history[kind])} {_KINDS[kind]}" for kind in _KINDS if found.history.get(kind)]
    total = sum(found.history.values())
    yield f"Where it comes from: {'; '.join(parts) or 'nothing yet'}. Together {words.number(total)}."


def _rebases(found: Explanation) -> Iterator[str]:
    for rebase in found.rebases:
        yield (
            f"Run {rebase.run_id} rebased it (`recount --rebase`, asked for by {words.safe(rebase.requested_by)}, "
            f"{words.moment(rebase.at)}): rows that had been sent when they were deleted, up to then, count no longer. "
            "That is among the corrections."
        )


def _change(change: HistoryEntry) -> str:
    kind = "" if change.kind == "flow" else f"  {change.kind}"
    return f"  {words.moment(change.minute)[:16]}  {change.sent:+,}{kind}"


def _finding(finding: RecordedVerdict) -> Iterator[str]:
    head = f"  run {finding.run_id}  {words.moment(finding.decided_at)}  {finding.verdict}: {VERDICTS[finding.verdict]}"
    yield f"{head} (trigger {finding.trigger}, by {words.safe(finding.requested_by)})"
    if finding.cause is not None:
        yield f"    cause: {finding.cause}, {CAUSES.get(finding.cause, 'not known to this version')}"
    if finding.delta:
        delta = ", ".join(f"{name} {count:+,}" for name, count in finding.delta.items())
        done = "corrected" if finding.corrected else "not corrected yet"
        yield f"    {delta}; {done}" + ("; removed is an estimate" if finding.estimated else "")
