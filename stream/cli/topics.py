"""The part of `setup` that is about Kafka: topics made, checked, or printed for an administrator."""

from __future__ import annotations

from collections.abc import Iterable

from connectors.kafka.topics import Difference, ensure
from stream.cli.call import Call


def look(call: Call, *, make: bool) -> list[Difference]:
    """What differs from the plan, after the missing topics were made (where ``make`` and KAFKA_CREATE_TOPICS say so).
    Nothing where Kafka is not configured."""
    settings = call.settings
    if not settings.kafka:
        return []
    settings.require_kafka()
    return ensure(settings, create_missing=None if make else False)


def make(call: Call) -> tuple[list[str], list[Difference]]:
    """Make the missing topics; the names of those made, and what still differs from the plan."""
    missing = _missing(look(call, make=False))
    left = look(call, make=True)
    return sorted(missing - _missing(left)), left


def report(call: Call, differences: Iterable[Difference], *, checking: bool) -> int:
    """Print the differences with their fixes; 1 where one of them keeps sentstream from running, and, when only
    checking, where a topic is missing."""
    code = 0
    out = call.err if call.json else call.out
    for difference in differences:
        if checking and difference.what == "missing" and call.settings.kafka_create_topics:
            out.print(
                f"missing  {difference.finding} `sentstream setup` makes it, or `run` as it starts.", style="yellow"
            )
        else:
            out.print(f"topic    {difference.finding}", style="red" if difference.critical else "yellow")
            out.print(f"         {difference.fix}", soft_wrap=True)
        code = max(code, int(difference.critical))
    return code


def as_json(differences: Iterable[Difference]) -> list[dict[str, str]]:
    """The differences for programs."""
    return [{"topic": it.topic, "what": it.what, "finding": it.finding, "fix": it.fix} for it in differences]


def _missing(differences: Iterable[Difference]) -> set[str]:
    return {difference.topic for difference in differences if difference.what == "missing"}
