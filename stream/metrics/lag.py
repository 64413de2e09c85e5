"""The lag of everything, as one object: slot and flush from PostgreSQL, the group from Kafka where there is one.

Keep a `LagReading` and poll: its verdicts come from a window of polls.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

import psycopg

from connectors.postgres.queries.errors import reading
from connectors.postgres.queries.slot_lag import read_lag
from stream.config.settings import Settings
from stream.core.errors import SentstreamError
from stream.core.lag import LagVerdict, worst
from stream.core.slot_lag import LagJudge

if TYPE_CHECKING:
    from connectors.kafka.group_lag import LagReader, PartitionLag


class LagReading:
    """Polls and judges. Not for several threads at once."""

    def __init__(self, settings: Settings) -> None:
        self._slot = settings.slot_name
        self._judge = LagJudge(
            settings.lag_window, settings.lag_allowed, settings.slot_allowed, settings.slot_kind == "temporary"
        )
        self._groups = _group_reader(settings)

    def poll(self, connection: psycopg.Connection[Any]) -> dict[str, Any]:
        """The lag as `/api/lag` shows it. UnreachableError; PreconditionError where `setup` has not been run."""
        with reading("Lag"):
            found = read_lag(connection, self._slot)
        slot, flush = self._judge.judge(found)
        groups, error = self._read_groups()
        verdicts = [slot.verdict, flush.verdict, *(group.verdict for group in groups)]
        verdict = worst([*verdicts, LagVerdict.UNKNOWN] if error else verdicts)
        return {
            "verdict": verdict.value,
            "slot": slot.as_json(),
            "groups": [group.json() for group in groups],
            "groups_error": error,
            "flush": flush.as_json(),
        }

    def _read_groups(self) -> tuple[list[PartitionLag], str | None]:
        """What Kafka says; where it says nothing, why: the rest of the lag is known all the same."""
        if self._groups is None:
            return [], None
        try:
            return self._groups.read(), None
        except SentstreamError as error:
            return [], str(error)

    def close(self) -> None:
        if self._groups is not None:
            self._groups.close()

    def __enter__(self) -> LagReading:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _group_reader(settings: Settings) -> LagReader | None:
    if not settings.kafka:
        return None
    from connectors.kafka.cluster import Cluster  # noqa: PLC0415 - the embedded mode needs no Kafka client
    from connectors.kafka.group_lag import LagReader  # noqa: PLC0415
    from connectors.kafka.topics import Names  # noqa: PLC0415

    names = Names(settings.kafka_topic_prefix)
    return LagReader(
        Cluster.of(settings),
        names.group,
        names.changes,
        window=settings.lag_window,
        allowed=settings.lag_allowed,
    )
