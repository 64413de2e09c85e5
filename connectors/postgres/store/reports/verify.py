"""Verifying the chain of sealed runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row, tuple_row

from connectors.postgres.store.reports.read import RUN_COLUMNS, answers_of, run_of, verdicts_of
from stream.core.digest import Checked, Link, walk
from stream.core.report import parts_of

Connection = psycopg.Connection[Any]

#: runs read at once: their counts may be half a megabyte each
_PAGE: Final = 50


def verify(
    conn: Connection, *, anchor: str | None = None, progress: Callable[[int, int], None] = lambda *_: None
) -> Checked:
    """Walk the chain from its first run to its newest; the first break, if there is one.

    ``anchor``: a digest that was noted elsewhere and must be in the chain. ``progress``: told links done, and in all.
    """
    with conn.transaction():
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        with conn.cursor(row_factory=tuple_row) as cursor:
            head = cursor.execute("SELECT chain_no, digest FROM sentstream.chain").fetchone()
        return walk(_links(conn, progress, head[0] if head else 0), head if head and head[0] else None, anchor)


def _links(conn: Connection, progress: Callable[[int, int], None], total: int) -> Iterator[Link]:
    query = f"""
        SELECT {RUN_COLUMNS}, counts FROM sentstream.recounts
        WHERE status = 'sealed' AND (coalesce(chain_no, 0), run_id) > (%s::bigint, %s::bigint)
        ORDER BY coalesce(chain_no, 0), run_id LIMIT {_PAGE}"""  # noqa: S608 - our own column names
    after, done = (-1, -1), 0
    while True:
        with conn.cursor(row_factory=dict_row) as cursor:
            rows = cursor.execute(query.encode(), after).fetchall()
        if not rows:
            return
        ids = [row["run_id"] for row in rows]
        verdicts, answers = verdicts_of(conn, ids), answers_of(conn, ids)
        for row in rows:
            counts = row.pop("counts")
            run = run_of(row)
            found = None
            if run.pruned_at is None:
                rows_of_run = (verdicts.get(run.run_id, ()), answers.get(run.run_id, ()))
                found = parts_of(counts, run.observations, *rows_of_run)
            yield Link(run.run_id, run.chain_no, run.words(), run.previous_digest, run.digest, run.parts or {}, found)
            done += 1
            progress(done, total)
        after = (rows[-1]["chain_no"] or 0, ids[-1])
