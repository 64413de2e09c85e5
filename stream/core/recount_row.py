"""A row of ``sentstream.recounts`` as it stands in the WAL, read into a value."""

from __future__ import annotations

from typing import Any

from .entries import Counted, RecountRow
from .errors import ProtocolError


def read_recount(row: dict[str, Any]) -> RecountRow:
    """The recount that a row holds; ``row`` by column name."""
    counts = row["counts"]
    if not isinstance(counts, dict):
        raise ProtocolError(f"recount {row['run_id']} carries no counts.")
    rebase = row.get("rebase")
    return RecountRow(
        run_id=row["run_id"],
        trigger=row.get("trigger") or "manual",
        requested_by=row.get("requested_by") or "",
        started_at=row.get("started_at") or 0,
        lsn=row.get("lsn") or 0,
        snapshot=row["snapshot"],
        counts={int(k): Counted((v[0], v[1], v[2], v[3], v[4]), v[5]) for k, v in counts.items()},
        rebase="all" if rebase == "all" else tuple(rebase) if rebase else None,
        epoch=row.get("epoch") or 0,
    )
