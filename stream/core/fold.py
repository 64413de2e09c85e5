"""Folding the WAL: blocks of pgoutput messages in, transactions as a few entries out.

This is the hot path. A mailer writes mostly one statement, an UPDATE of one row's status, and with the identity index
its message is two short tuples: the id, then a tail (campaign and status) that is one of a few hundred byte strings.
So the tails are sliced, not decoded; a pair of tails is looked up, and decoded only when first seen. Inside a
transaction a dict counts pairs, which keeps memory flat in a transaction of a million rows; at Commit it becomes moves.

Order inside a transaction (a position depends on it, so a change of it is a new ``FOLD_VERSION``): deleted campaigns,
changed campaigns, then moves with the barriers between them. See docs/design/counting.md.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple, TypeAlias

from . import pgoutput
from .entries import CampaignChanged, CampaignDeleted, Entry, Move, RecountRow, Transaction, Truncate, Unreadable
from .errors import ProtocolError, SentstreamError
from .pgoutput import UNCHANGED, Relation
from .recount_row import read_recount
from .relations import Side, Tables, check_columns, check_queue, queue_side, status_number
from .status import MOVED, NEW, REMOVED, STATUSES

#: written to ``watermarks``; a release that folds differently counts it up, and so begins an epoch
FOLD_VERSION: Final = 2

_B, _C, _I, _U, _D, _T, _R, _Y, _O, _M = (ord(c) for c in "BCIUDTRYOM")
_K, _N, _OLD = ord("K"), ord("N"), ord("O")
_COLUMNS_3 = b"\0\x03"
_INT4_COLUMN = b"b\0\0\0\x04"
#: pairs of tails kept decoded, some 400 bytes each
_REMEMBERED: Final = 50_000
#: what is read of `campaigns`: where the column lists are taken off, columns of any type come with them
_OF_CAMPAIGNS: Final = frozenset({"id", "name", "status", "to_send", "sent"})
_KEY: Final = frozenset({"id"})
_TABLES: Final = Tables()

#: a Transaction of its five values, made in C: the named tuple's own constructor is Python
_transaction: Final[Callable[[tuple[int, int, int, int, tuple[Entry, ...]]], Transaction]] = partial(
    tuple.__new__, Transaction
)

#: a side as the log has it (campaign and status columns, with their headers), or decoded; None: there is none
Tail: TypeAlias = bytes | Side | None
#: (campaign, source, target), once or twice, or not at all where both sides are equal
Steps = tuple[tuple[int, int, int], ...]


class _Layout(NamedTuple):
    """The queue's tuples when they are (id, campaign, status) in binary: the twelve bytes behind the tag of a message
    that begins with an old or with a new tuple, the eight between an old tail and the new id; where the first tail
    begins in a message; the size of an id."""

    with_old: bytes
    with_new: bytes
    between: bytes
    tail_at: int
    id_size: int


_NO_LAYOUT: Final = _Layout(b"none", b"none", b"none", 0, 0)


@dataclass(slots=True)
class _Open:
    """The transaction that is being read."""

    lsn: int
    time: int
    xid: int
    pairs: dict[tuple[Tail, Tail], int] = field(default_factory=dict)
    ordered: list[Entry] = field(default_factory=list)
    changed: dict[int, CampaignChanged] = field(default_factory=dict)
    deleted: dict[int, None] = field(default_factory=dict)
    dead: set[int] = field(default_factory=set)
    emptied: bool = False
    #: deleted campaigns of which rows were seen to go as well
    emptied_campaigns: set[int] = field(default_factory=set)
    #: why it is not known what the transaction did to the counts
    unknown: str | None = None

    @property
    def plain(self) -> bool:
        """Whether nothing but rows of the queue was changed so far, and no moves were closed yet."""
        return not (self.ordered or self.changed or self.deleted or self.emptied or self.unknown)


class Fold:
    """Turns blocks of messages into transactions. One for each connection: relations are told anew on each.

    ``end`` and ``time`` are those of the last Commit; ``open`` says whether a transaction is half read.
    """

    def __init__(self, tables: Tables = _TABLES) -> None:
        self._tables = tables
        self._relations: dict[int, tuple[Relation, str | None]] = {}
        self._steps: dict[tuple[Tail, Tail], Steps] = {}
        self._single: dict[tuple[Tail, Tail], tuple[Entry, ...]] = {}
        self._moves: dict[tuple[int, int, int], Move] = {}
        #: tails of updates that moved nothing, each looked at once: a length that lies could hide the next message
        self._quiet: set[bytes] = set()
        self._open: _Open | None = None
        self._layout = _NO_LAYOUT
        self.end = 0
        self.time = 0

    @property
    def open(self) -> bool:
        return self._open is not None

    def block(self, data: bytes) -> list[Transaction]:
        """Fold whole messages, one after the other; the transactions that end in this block and moved something.

        Raises :exc:`ProtocolError` for what is no message of protocol version 1, :exc:`UncountableError` for a status
        outside the five, :exc:`PreconditionError` for a table that can't be counted from its log. Nothing of
        the transaction concerned is emitted then, so its LSN is not confirmed.
        """
        try:
            return self._block(data)
        except SentstreamError:
            raise
        except (struct.error, IndexError, KeyError, ValueError, TypeError) as error:
            at = f" in the transaction that commits at {self._open.lsn:X}" if self._open else ""
            raise ProtocolError(
                f"a replication message{at} can't be decoded ({type(error).__name__}: {error}).",
                "Nothing from there on was counted or confirmed. Run `sentstream doctor`, and report what it says.",
            ) from error

    def _block(self, data: bytes) -> list[Transaction]:  # noqa: C901 - one loop, unrolled: the hot path
        out: list[Transaction] = []
        pos, size = 0, len(data)
        begin, commit = pgoutput.BEGIN.unpack_from, pgoutput.COMMIT.unpack_from
        single, quiet, epoch_2000 = self._single, self._quiet, pgoutput.EPOCH_2000
        transaction = _transaction
        current = self._open
        pairs: dict[tuple[Tail, Tail], int] = current.pairs if current else {}
        with_old, with_new, between, tail_at, id_size = self._layout
        length_at = tail_at + 13  # low byte of the status's length, behind the campaign's nine bytes
        update = b"U" + with_old
        while pos < size:
            tag = data[pos]
            key: tuple[Tail, Tail]
            if tag == _B and data[pos + 21 : pos + 34] == update:  # the mailer's every transaction: one row, one move
                middle = pos + 22 + length_at + data[pos + 21 + length_at]
                tail = middle + 8 + id_size
                if data[middle : middle + 8] == between and tail + 14 < size:
                    end = tail + 14 + data[tail + 13]
                    known = single.get((data[pos + 21 + tail_at : middle], data[tail:end]))
                    if known is not None and end + 26 <= size and data[end] == _C and current is None:
                        lsn, time, xid = begin(data, pos + 1)
                        _, committed, after, _ = commit(data, end + 1)
                        if committed == lsn:
                            time += epoch_2000
                            if known:
                                out.append(transaction((lsn, after, time, xid, known)))
                            self.end, self.time = after, time
                            pos = end + 26
                            continue
            if tag == _U and current is not None:
                head = data[pos + 1 : pos + 13]
                if head == with_old:
                    middle = pos + length_at + 1 + data[pos + length_at]
                    if data[middle : middle + 8] == between:
                        tail = middle + 8 + id_size
                        end = tail + 14 + data[tail + 13]
                        key = (data[pos + tail_at : middle], data[tail:end])
                        pairs[key] = pairs.get(key, 0) + 1
                        pos = end
                        continue
                elif head == with_new:  # no column of the identity changed, so nothing moved
                    end = pos + length_at + 1 + data[pos + length_at]
                    if data[pos + tail_at : end] in quiet:
                        pos = end
                        continue
            elif tag in (_I, _D) and current is not None:
                head = data[pos + 1 : pos + 13]
                if head == (with_new if tag == _I else with_old):
                    end = pos + length_at + 1 + data[pos + length_at]
                    key = (None, data[pos + tail_at : end]) if tag == _I else (data[pos + tail_at : end], None)
                    pairs[key] = pairs.get(key, 0) + 1
                    pos = end
                    continue
            if tag == _B:
                if current is not None:
                    raise ProtocolError("a Begin message inside a transaction.")
                lsn, time, xid = begin(data, pos + 1)
                pairs = {}
                self._open = current = _Open(lsn, time + epoch_2000, xid, pairs)
                pos += 21
            elif tag == _C:
                if current is None:
                    raise ProtocolError("a Commit message outside a transaction.")
                _, lsn, end, _ = commit(data, pos + 1)
                if lsn != current.lsn:
                    raise ProtocolError(f"Commit at {lsn:X} closes a transaction that began as {current.lsn:X}.")
                entries: tuple[Entry, ...] | None = None
                if len(pairs) == 1 and current.plain:
                    for key, n in pairs.items():
                        if n == 1:
                            entries = single.get(key)
                if entries is None:
                    entries = self._close(current)
                if entries:
                    out.append(transaction((lsn, end, current.time, current.xid, entries)))
                self.end, self.time = end, current.time
                self._open = current = None
                pos += 26
            else:
                pos = self._rare(tag, data, pos, current)
                if tag == _R:
                    with_old, with_new, between, tail_at, id_size = self._layout
                    length_at = tail_at + 13
                    update = b"U" + with_old
        if pos != size:
            raise ProtocolError(f"the last message of a block runs {pos - size} bytes over its end.")
        return out

    # ---- messages off the hot path ------------------------------------------------------------------------------

    def _rare(self, tag: int, data: bytes, pos: int, current: _Open | None) -> int:
        if tag in (_I, _U, _D):
            if current is None:
                raise ProtocolError("a row change outside a transaction.")
            return self._row(tag, data, pos + 1, current)
        if tag == _R:
            relation, pos = pgoutput.read_relation(data, pos + 1)
            self._learn(relation)
            return pos
        if tag == _T:
            if current is None:
                raise ProtocolError("a Truncate message outside a transaction.")
            return self._truncate(data, pos + 1, current)
        if tag == _Y:
            return pgoutput.skip_type(data, pos + 1)
        if tag == _O:
            return pgoutput.skip_origin(data, pos + 1)
        if tag == _M:
            return pgoutput.skip_message(data, pos + 1)
        raise ProtocolError(
            f"unknown replication message {chr(tag)!r} ({tag:#x}).",
            "This reader speaks pgoutput's protocol version 1; is the slot's plugin pgoutput?",
        )

    def _row(self, tag: int, data: bytes, pos: int, current: _Open) -> int:
        (oid,) = pgoutput.U32.unpack_from(data, pos)
        relation, role = self._relations[oid]
        pos += 4
        old: list[tuple[int, bytes]] | None = None
        new: list[tuple[int, bytes]] | None = None
        kind = data[pos]
        if kind in (_K, _OLD):
            old, pos = pgoutput.read_tuple(data, pos + 1)
            kind = data[pos] if tag == _U else 0
        if tag != _D:
            if kind != _N:
                raise ProtocolError(f"a row change of {relation.name} without a new tuple.")
            new, pos = pgoutput.read_tuple(data, pos + 1)
        elif old is None:
            raise ProtocolError(f"a DELETE of {relation.name} without an old tuple.")
        if role == "queue":
            if tag == _U and old is None:
                if relation.identity == "f":
                    raise ProtocolError("an UPDATE under replica identity FULL came without the old row.")
                _, status = queue_side(relation, new or [])  # no column of the identity changed, so nothing moved
                self._remember_quiet(data[pos - 14 - len(STATUSES[status]) : pos])
                return pos
            self._queue_row(relation, old, new, current)
        elif role == "campaigns":
            self._campaign_row(relation, old, new, tag, current)
        elif role == "unknown":
            current.unknown = f"it changed {relation.schema}.{relation.name}"
        elif role == "recounts" and tag == _I:
            self._flush_pairs(current)
            current.ordered.append(read_recount(pgoutput.record(relation, new or [])))
        return pos

    def _remember_quiet(self, tail: bytes) -> None:
        if self._layout is _NO_LAYOUT or tail[:5] != _INT4_COLUMN:
            return
        if len(self._quiet) > _REMEMBERED:
            self._quiet.clear()
        self._quiet.add(tail)

    def _queue_row(
        self,
        relation: Relation,
        old: list[tuple[int, bytes]] | None,
        new: list[tuple[int, bytes]] | None,
        current: _Open,
    ) -> None:
        key: tuple[Tail, Tail] = (
            queue_side(relation, old) if old is not None else None,
            queue_side(relation, new) if new is not None else None,
        )
        current.pairs[key] = current.pairs.get(key, 0) + 1

    def _campaign_row(
        self,
        relation: Relation,
        old: list[tuple[int, bytes]] | None,
        new: list[tuple[int, bytes]] | None,
        tag: int,
        current: _Open,
    ) -> None:
        if new is None:
            campaign = pgoutput.record(relation, old or [], _KEY)["id"]
            self._drop_campaign(campaign, current)
            return
        row = pgoutput.record(relation, new, _OF_CAMPAIGNS)
        campaign = row["id"]
        before_id = pgoutput.record(relation, old, _KEY)["id"] if old is not None else campaign
        if campaign in current.dead and (tag == _I or before_id != campaign):  # it came again, or took over the number
            self._flush_pairs(current)  # the cascade's deletes are those of the campaign that went
            current.dead.discard(campaign)
            if campaign not in current.emptied_campaigns:  # it had none, or a deferred foreign key let them stay
                current.unknown = f"rows of campaign {campaign} may have outlived it"
        name = row["name"]
        if name is UNCHANGED:
            before = current.changed.get(campaign)
            name = before.name if before else None
        changed = CampaignChanged(campaign, name, str(row["status"]), row["to_send"] or 0, row["sent"] or 0)
        current.changed[campaign] = changed
        if before_id != campaign:  # the old number is gone; its rows follow by ON UPDATE CASCADE
            current.changed.pop(before_id, None)

    def _drop_campaign(self, campaign: int, current: _Open) -> None:
        """The campaign goes, and with it all its moves of this transaction: those before, and the cascade behind."""
        self._flush_pairs(current)
        kept = [e for e in current.ordered if not (isinstance(e, Move) and e.campaign == campaign)]
        if len(kept) < len(current.ordered):
            current.emptied_campaigns.add(campaign)
        current.ordered = kept
        current.changed.pop(campaign, None)
        current.deleted[campaign] = None
        current.dead.add(campaign)

    def _truncate(self, data: bytes, pos: int, current: _Open) -> int:
        (count,) = pgoutput.U32.unpack_from(data, pos)
        roles = set()
        for number in range(count):
            (oid,) = pgoutput.U32.unpack_from(data, pos + 5 + 4 * number)
            relation, role = self._relations[oid]
            roles.add(role)
            if role == "unknown":
                current.unknown = f"it changed {relation.schema}.{relation.name}"
        if "campaigns" in roles:
            current.pairs.clear()
            current.ordered[:] = [e for e in current.ordered if isinstance(e, RecountRow)]
            current.changed.clear()
            current.deleted.clear()
            current.dead.clear()
            current.emptied = True
        elif "queue" in roles:
            self._flush_pairs(current)
            current.ordered.append(Truncate("queue"))
        return pos + 5 + 4 * int(count)

    # ---- a transaction's end ------------------------------------------------------------------------------------

    def _close(self, current: _Open) -> tuple[Entry, ...]:
        alone = len(current.pairs) == 1 and not current.ordered
        key, n = next(iter(current.pairs.items())) if alone else ((None, None), 0)
        self._flush_pairs(current)
        entries: list[Entry] = [Unreadable(current.unknown)] if current.unknown is not None else []
        if current.emptied:
            entries.append(Truncate("campaigns"))
        entries += [CampaignDeleted(campaign) for campaign in current.deleted]
        entries += current.changed.values()
        entries += current.ordered
        closed = tuple(entries)
        if alone and n == 1 and len(closed) <= 2 and all(type(entry) is Move for entry in closed):
            if len(self._single) > _REMEMBERED:
                self._single.clear()
            self._single[key] = closed
        return closed

    def _flush_pairs(self, current: _Open) -> None:
        """The pairs counted so far become moves, equal ones merged in order of first appearance."""
        pairs = current.pairs
        if not pairs:
            return
        merged: dict[tuple[int, int, int], int] = {}
        for key, n in pairs.items():
            steps = self._steps.get(key)
            for step in self._decode(key) if steps is None else steps:
                if step[0] not in current.dead:
                    merged[step] = merged.get(step, 0) + n
                else:
                    current.emptied_campaigns.add(step[0])
        pairs.clear()
        for step, n in merged.items():
            if n != 1:
                current.ordered.append(Move(*step, n))
                continue
            move = self._moves.get(step)
            if move is None:
                move = self._moves[step] = Move(*step, 1)
            current.ordered.append(move)

    def _decode(self, key: tuple[Tail, Tail]) -> Steps:
        old, new = (self._tail(tail) if isinstance(tail, bytes) else tail for tail in key)
        steps: Steps
        if old == new:
            steps = ()
        elif old is None:
            assert new is not None
            steps = ((new[0], NEW, new[1]),)
        elif new is None:
            steps = ((old[0], old[1], REMOVED),)
        elif old[0] == new[0]:
            steps = ((old[0], old[1], new[1]),)
        else:
            steps = ((old[0], old[1], MOVED), (new[0], NEW, new[1]))
        if len(self._steps) > _REMEMBERED:
            self._steps.clear()
            self._moves.clear()
        self._steps[key] = steps
        return steps

    # ---- relations ----------------------------------------------------------------------------------------------

    def _learn(self, relation: Relation) -> None:
        role = self._tables.role(relation)
        self._relations[relation.oid] = (relation, role)
        if role == "queue":
            check_queue(relation)
            self._learn_tails(relation)
        elif role == "campaigns":
            check_columns(relation, ("id", "name", "status", "to_send", "sent"))
        elif role == "recounts":
            check_columns(relation, ("run_id", "snapshot", "counts"))

    def _learn_tails(self, relation: Relation) -> None:
        """Prepare the slices of the hot path, where the tuples have the layout for it."""
        self._steps.clear()
        self._single.clear()
        self._quiet.clear()
        self._layout = _NO_LAYOUT
        names = [column.name for column in relation.columns]
        types = {column.name: column.type_oid for column in relation.columns}
        sizes = {20: 8, 23: 4}
        if relation.identity != "i" or names != ["id", "campaign_id", "status"]:
            return
        if types["id"] not in sizes or types["campaign_id"] != 23 or types["status"] not in (1043, 25):
            return
        size = sizes[types["id"]]
        oid = pgoutput.U32.pack(relation.oid)
        head = _COLUMNS_3 + b"b" + pgoutput.U32.pack(size)
        self._layout = _Layout(oid + b"K" + head, oid + b"N" + head, b"N" + head, 13 + size, size)

    def _tail(self, tail: bytes) -> Side:
        """Decode a tail: campaign (int4, binary) and status (text); every byte is checked, once."""
        size = pgoutput.U32.unpack_from(tail, 10)[0]
        if tail[:5] != _INT4_COLUMN or tail[9] not in b"bt" or size != len(tail) - 14:
            raise ProtocolError(f"the columns campaign_id and status of the queue arrived as {tail.hex()}.")
        return pgoutput.I32.unpack_from(tail, 5)[0], status_number(tail[14:].decode())
