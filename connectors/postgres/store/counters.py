"""Writing ``campaigns.sent``: each campaign's refusal is its own.

The mailer's table may have constraints, triggers and rules. They refuse a value by any
SQLSTATE, at once or deferred, take the update away in silence, or wait for a lock that another session holds. So all
counters are written in a savepoint where deferred checks run at once and waits for locks are short; where that fails,
by halves, down to the campaign that is refused. Campaigns that were refused before are tried one by one, behind the
others. Only a lost connection, and a right that is missing on the table itself, concern all of them.

The flush and the raise of a recount write by this alone. See docs/design/store.md.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
from psycopg import pq, sql

log = logging.getLogger("sentstream.store")

Connection = psycopg.Connection[Any]

#: a trigger may wait for a lock so long
_PATIENCE: Final = "250ms"
#: seconds for finding out which campaign is refused; the others of that time are tried again with the next flush
_BUDGET: Final = 2.0
#: seconds for the campaigns that were refused before
_AGAIN_BUDGET: Final = 0.25
#: seconds between two attempts where the right to write counters is missing
_RIGHT_EVERY: Final = 5.0

# EXPLAIN takes the lock on the table (waiting as the session does) and checks our rights on it, and fires no trigger.
_PRELUDE: Final = sql.SQL(
    "EXPLAIN UPDATE {campaigns} SET sent = sent WHERE false; SET CONSTRAINTS ALL IMMEDIATE;"
    " SET LOCAL lock_timeout = {patience}"
)

# Only `sent`: updated_at is indexed, and leaving it alone keeps the update HOT.
_WRITE: Final = sql.SQL("""
UPDATE {campaigns} c SET sent = w.sent
FROM unnest(%s::bigint[], %s::bigint[]) AS w(id, sent)
WHERE c.id = w.id""")

# Triggers that run after the row was written, or with another campaign's row, may have changed it since.
_SHOWN: Final = sql.SQL("SELECT id::bigint, coalesce(sent, 0)::bigint FROM {campaigns} WHERE id = ANY(%s::bigint[])")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a counter could not be written, and what it shows now (None: what it showed before)."""

    why: str
    shows: int | None = None


@dataclass(slots=True)
class CounterWriter:
    """Writes counters to one database; remembers who was refused. Belongs to one thread."""

    mailer_schema: str
    #: campaign -> why, the one first that was tried longest ago
    _refused: dict[int, str] = field(default_factory=dict)
    _no_right_at: float | None = None

    def write(self, connection: Connection, wanted: Mapping[int, int]) -> dict[int, Refusal]:
        """Write the counters ``wanted``, whose rows the caller has locked; those that were refused.

        Inside the caller's transaction. psycopg.errors.InsufficientPrivilege where the right on the table itself is
        missing (see :meth:`missing_right`).
        """
        if not wanted:
            return {}
        refused: dict[int, Refusal] = {}
        fresh = [campaign for campaign in wanted if campaign not in self._refused]
        again = [campaign for campaign in self._refused if campaign in wanted]
        lock_timeout = self._prepare(connection)
        self._by_halves(connection, wanted, fresh, time.monotonic() + _BUDGET, refused)
        deadline = time.monotonic() + _AGAIN_BUDGET
        for campaign in again:
            if time.monotonic() < deadline:
                self._by_halves(connection, wanted, [campaign], deadline, refused)
            else:
                refused[campaign] = Refusal(self._refused[campaign])
        connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(lock_timeout))
        refused |= self._changed_since(connection, wanted, refused)
        self._remember(wanted, refused)
        return refused

    def shown(self, connection: Connection, campaigns: Collection[int]) -> dict[int, int]:
        """What ``campaigns.sent`` shows now."""
        statement = _SHOWN.format(campaigns=sql.Identifier(self.mailer_schema, "campaigns"))
        return dict(connection.execute(statement, (list(campaigns),)).fetchall())

    def missing_right(self, error: psycopg.errors.InsufficientPrivilege) -> None:
        """Say once that the table may not be written at all, and what helps; counting goes on."""
        if self._no_right_at is None:
            log.error(
                "campaigns.sent can't be written: %s. Counting goes on; as the tables' owner: GRANT UPDATE (sent) ON %s"
                " TO <this role>; `sentstream doctor` says more, and WRITE_BACK=false needs no such right",
                error.diag.message_primary or type(error).__name__,
                f"{self.mailer_schema}.campaigns",
            )
        self._no_right_at = time.monotonic()

    @property
    def may_try(self) -> bool:
        """Whether the right to write is there, as far as known, or it is time to look again."""
        return self._no_right_at is None or time.monotonic() - self._no_right_at >= _RIGHT_EVERY

    def _prepare(self, connection: Connection) -> str:
        """Take the table's lock, and make waits for others short; how long they were before."""
        (before,) = connection.execute("SHOW lock_timeout").fetchone() or ("0",)
        campaigns = sql.Identifier(self.mailer_schema, "campaigns")
        connection.execute(_PRELUDE.format(campaigns=campaigns, patience=_PATIENCE))
        if self._no_right_at is not None:
            self._no_right_at = None
            log.info("campaigns.sent can be written again")
        return str(before)

    def _by_halves(
        self,
        connection: Connection,
        wanted: Mapping[int, int],
        campaigns: Sequence[int],
        deadline: float,
        refused: dict[int, Refusal],
    ) -> None:
        """Write ``campaigns`` in a savepoint; where that fails, each half in one of its own."""
        if not campaigns:
            return
        statement = _WRITE.format(campaigns=sql.Identifier(self.mailer_schema, "campaigns"))
        try:
            with connection.transaction():
                connection.execute(statement, (list(campaigns), [wanted[campaign] for campaign in campaigns]))
        except psycopg.Error as error:
            if connection.info.transaction_status != pq.TransactionStatus.INTRANS:
                raise  # the connection is lost
            if len(campaigns) == 1 or time.monotonic() > deadline:
                why = error.diag.message_primary or type(error).__name__
                refused.update(dict.fromkeys(campaigns, Refusal(why)))
                return
            middle = len(campaigns) // 2
            self._by_halves(connection, wanted, campaigns[:middle], deadline, refused)
            self._by_halves(connection, wanted, campaigns[middle:], deadline, refused)

    def _changed_since(
        self, connection: Connection, wanted: Mapping[int, int], refused: Mapping[int, Refusal]
    ) -> dict[int, Refusal]:
        """The counters that were written and don't show it."""
        written = [campaign for campaign in wanted if campaign not in refused]
        if not written:
            return {}
        shown = self.shown(connection, written)
        return {
            campaign: Refusal(f"a trigger or rule keeps it at {shown.get(campaign, 0)}", shown.get(campaign))
            for campaign in written
            if shown.get(campaign) != wanted[campaign]
        }

    def _remember(self, wanted: Mapping[int, int], refused: Mapping[int, Refusal]) -> None:
        """Say once what is refused, and why."""
        for campaign in wanted:
            before = self._refused.pop(campaign, None)
            refusal = refused.get(campaign)
            if refusal is None:
                continue
            self._refused[campaign] = refusal.why
            if before != refusal.why:
                log.warning("campaigns.sent of campaign %d can't be written: %s; it stays due", campaign, refusal.why)
