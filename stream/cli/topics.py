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


def report(call: Call, differences: Iterable[Difference], *, checking: bool) -> int:
    """Print the differences with their fixes; 1 where one of them keeps sentstream from running. Topics that `run`
    makes as it starts don't."""
    code = 0
    for difference in differences:
        made_by_run = checking and difference.what == "missing" and call.settings.kafka_create_topics
        if made_by_run:
            call.err.print(f"{difference.finding} `setup` makes it, or `run` as it starts.")
            continue
        out = call.err if call.json else call.out
        out.print(f"topic    {difference.finding}", style="red" if difference.critical else "yellow")
        out.print(f"         {difference.fix}", soft_wrap=True)
        code = max(code, int(difference.critical))
    return code
