"""Folding by example: what each thing that the mailer, or anybody, can do comes to."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest

from stream.core.entries import (
    CampaignChanged,
    CampaignDeleted,
    Counted,
    Entry,
    Move,
    RecountRow,
    Transaction,
    Truncate,
    Unreadable,
)
from stream.core.errors import PreconditionError, ProtocolError, SentstreamError, UncountableError
from stream.core.fold import Fold
from stream.core.relations import Tables
from stream.core.status import CANCELLED, FAILED, MOVED, NEW, QUEUED, REMOVED, SENDING, SENT, STATUSES
from tests.core import wal
from tests.core.wal import (
    CAMPAIGNS,
    INT2,
    INT4,
    INT8,
    QUEUE,
    QUEUE_FULL,
    TEXT,
    UNCHANGED,
    Table,
    campaign,
    relations,
    row,
    transaction,
)

SHAPES = {
    "index": QUEUE,
    "index, ids int4": replace(QUEUE, columns=(("id", INT4), *QUEUE.columns[1:])),
    "index, campaigns int8": replace(QUEUE, columns=(QUEUE.columns[0], ("campaign_id", INT8), QUEUE.columns[2])),
    "index, status text": replace(QUEUE, columns=(*QUEUE.columns[:2], ("status", TEXT))),
    "index, another order": replace(QUEUE, columns=(QUEUE.columns[1], QUEUE.columns[2], QUEUE.columns[0])),
    "index, more columns": replace(QUEUE, columns=(*QUEUE.columns, ("priority", INT4))),
    "index, text format": replace(QUEUE, binary=False),
    "full": QUEUE_FULL,
    "full, three columns": replace(QUEUE, identity="f"),
    "full, text format": replace(QUEUE_FULL, binary=False),
}


@pytest.fixture(params=list(SHAPES.values()), ids=list(SHAPES))
def queue(request: pytest.FixtureRequest) -> Table:
    table = request.param
    assert isinstance(table, Table)
    return table


def folded(*messages: bytes, queue: Table = QUEUE) -> list[Entry]:
    """The entries of one transaction of these messages."""
    fold = Fold()
    fold.block(relations(queue, CAMPAIGNS, wal.WATERMARKS, wal.RECOUNTS))
    return [entry for found in fold.block(transaction(1000, *messages)) for entry in found.entries]


# ---- rows


def test_an_insert_has_no_old_side_and_a_delete_no_new_side(queue: Table) -> None:
    assert folded(queue.insert(row(7, "queued")), queue=queue) == [Move(7, NEW, QUEUED, 1)]
    assert folded(queue.delete(row(7, "sent")), queue=queue) == [Move(7, SENT, REMOVED, 1)]


def test_ids_of_campaigns_may_be_of_any_width() -> None:
    for oid, number in ((INT2, 7), (INT4, 7), (INT8, 3_000_000_000)):
        table = replace(QUEUE, columns=(QUEUE.columns[0], ("campaign_id", oid), QUEUE.columns[2]))
        change = table.update(row(number, "queued"), row(number, "sent"))
        assert folded(change, queue=table) == [Move(number, QUEUED, SENT, 1)]


def test_every_status_change_moves_one_unit(queue: Table) -> None:
    for old, new in permutations(STATUSES, 2):
        entries = folded(queue.update(row(7, old), row(7, new)), queue=queue)
        assert entries == [Move(7, STATUSES.index(old), STATUSES.index(new), 1)]


def test_equal_sides_move_nothing(queue: Table) -> None:
    same = [queue.update(row(7, status), row(7, status)) for status in STATUSES]
    assert folded(*same, queue=queue) == []
    assert folded(queue.update(row(7, "sent", 1), row(7, "sent", 2)), queue=queue) == []  # the id is no side


def test_a_row_that_changes_its_campaign_leaves_the_old_one_as_moved_which_is_no_removal(queue: Table) -> None:
    entries = folded(queue.update(row(7, "sent"), row(8, "failed")), queue=queue)
    assert entries == [Move(7, SENT, MOVED, 1), Move(8, NEW, FAILED, 1)]


def test_equal_moves_of_one_campaign_are_merged_in_order_of_first_appearance(queue: Table) -> None:
    def update(number: int, old: str, new: str, of: int = 7) -> bytes:
        return queue.update(row(of, old, number), row(of, new, number))

    messages = [
        update(1, "queued", "sending"),
        update(1, "sending", "sent"),
        update(2, "queued", "sending"),
        update(3, "queued", "sending", of=8),
        update(2, "sending", "sent"),
        update(4, "queued", "sending"),
    ]
    assert folded(*messages, queue=queue) == [
        Move(7, QUEUED, SENDING, 3),
        Move(7, SENDING, SENT, 2),
        Move(8, QUEUED, SENDING, 1),
    ]


def test_the_mailer_writes_what_no_event_would_tell(queue: Table) -> None:
    """sent -> sent, cancelled -> sent, sent -> failed and sent -> queued: never count "sent events"."""
    messages = [
        queue.update(row(7, "sent", 1), row(7, "sent", 1)),
        queue.update(row(7, "cancelled", 2), row(7, "sent", 2)),
        queue.update(row(7, "sent", 3), row(7, "failed", 3)),
        queue.update(row(7, "sent", 4), row(7, "queued", 4)),
    ]
    assert folded(*messages, queue=queue) == [
        Move(7, CANCELLED, SENT, 1),
        Move(7, SENT, FAILED, 1),
        Move(7, SENT, QUEUED, 1),
    ]


def test_ids_and_campaigns_of_all_sizes() -> None:
    for of in (1, 255, 256, 65_536, 2**31 - 1, -1, -(2**31)):
        entries = folded(QUEUE.update(row(of, "queued", number=2**62), row(of, "sending", number=2**62)))
        assert entries == [Move(of, QUEUED, SENDING, 1)]


# ---- TRUNCATE


def test_truncate_is_a_barrier(queue: Table) -> None:
    """INSERT, TRUNCATE, INSERT in one transaction is one row, not none and not two."""
    insert = queue.insert(row(7, "queued"))
    entries = folded(insert, wal.truncate(queue), insert, queue=queue)
    assert entries == [Move(7, NEW, QUEUED, 1), Truncate("queue"), Move(7, NEW, QUEUED, 1)]


def test_nothing_merges_across_a_truncate_of_other_rows(queue: Table) -> None:
    insert = queue.insert(row(7, "queued"))
    entries = folded(insert, insert, wal.truncate(queue, wal.WATERMARKS), insert, insert, queue=queue)
    assert entries == [Move(7, NEW, QUEUED, 2), Truncate("queue"), Move(7, NEW, QUEUED, 2)]


def test_truncate_of_campaigns_takes_all_that_was_before() -> None:
    entries = folded(
        CAMPAIGNS.insert(campaign(7)),
        QUEUE.insert(row(7, "queued")),
        CAMPAIGNS.delete({"id": 3}),
        wal.truncate(CAMPAIGNS, QUEUE, options=1),
        CAMPAIGNS.insert(campaign(7)),
        QUEUE.insert(row(7, "sent")),
    )
    assert entries == [Truncate("campaigns"), CampaignChanged(7, "A", "running", 0, 0), Move(7, NEW, SENT, 1)]


def test_a_single_move_behind_a_truncate_of_campaigns_keeps_the_truncate() -> None:
    """The short way for transactions of one move must not be taken here, even when the move is known."""
    fold = Fold()
    fold.block(relations())
    insert = QUEUE.insert(row(7, "queued"))
    fold.block(transaction(1000, insert))
    (found,) = fold.block(transaction(2000, wal.truncate(CAMPAIGNS, QUEUE), insert))
    assert found.entries == (Truncate("campaigns"), Move(7, NEW, QUEUED, 1))


def test_truncate_of_other_tables_is_nothing() -> None:
    assert folded(wal.truncate(wal.WATERMARKS)) == []


# ---- campaigns


def test_a_deleted_campaign_drops_its_moves_of_the_transaction_before_and_behind() -> None:
    entries = folded(
        QUEUE.update(row(7, "queued", 1), row(7, "sent", 1)),
        QUEUE.update(row(8, "queued", 2), row(8, "sent", 2)),
        CAMPAIGNS.delete({"id": 7}),
        QUEUE.delete(row(7, "sent", 1)),
        QUEUE.delete(row(8, "sent", 2)),
    )
    assert entries == [CampaignDeleted(7), Move(8, QUEUED, SENT, 1), Move(8, SENT, REMOVED, 1)]


def test_a_deleted_campaign_keeps_nothing_that_was_learned_of_it_before() -> None:
    entries = folded(CAMPAIGNS.update(None, campaign(7, "cancelled")), CAMPAIGNS.delete({"id": 7}))
    assert entries == [CampaignDeleted(7)]


def test_a_campaign_created_again_in_the_same_transaction_is_a_new_one() -> None:
    entries = folded(
        QUEUE.update(row(7, "queued", 1), row(7, "sent", 1)),
        CAMPAIGNS.delete({"id": 7}),
        QUEUE.delete(row(7, "sent", 1)),
        CAMPAIGNS.insert(campaign(7, "draft")),
        QUEUE.insert(row(7, "queued", 2)),
    )
    assert entries == [CampaignDeleted(7), CampaignChanged(7, "A", "draft", 0, 0), Move(7, NEW, QUEUED, 1)]


def test_a_row_moved_away_before_its_campaign_goes_stays_where_it_went() -> None:
    entries = folded(
        QUEUE.update(row(7, "sent", 1), row(8, "sent", 1)),
        CAMPAIGNS.delete({"id": 7}),
        QUEUE.delete(row(7, "sent", 2)),
    )
    assert entries == [CampaignDeleted(7), Move(8, NEW, SENT, 1)]


def test_a_row_moved_to_a_campaign_that_then_goes_has_left_the_other() -> None:
    entries = folded(
        QUEUE.update(row(7, "sent", 1), row(8, "sent", 1)), CAMPAIGNS.delete({"id": 8}), QUEUE.delete(row(8, "sent", 1))
    )
    assert entries == [CampaignDeleted(8), Move(7, SENT, MOVED, 1)]


def test_a_campaign_change_stands_once_as_it_was_in_the_end() -> None:
    entries = folded(
        CAMPAIGNS.update(None, campaign(7, "paused", 10, 3)),
        QUEUE.update(row(7, "queued"), row(7, "cancelled")),
        CAMPAIGNS.update(None, campaign(7, "cancelled", 10, 4, name=UNCHANGED)),
    )
    assert entries == [CampaignChanged(7, "A", "cancelled", 10, 4), Move(7, QUEUED, CANCELLED, 1)]


def test_a_name_that_the_log_does_not_carry_is_none() -> None:
    entries = folded(CAMPAIGNS.update(None, campaign(7, name=UNCHANGED)))
    assert entries == [CampaignChanged(7, None, "running", 0, 0)]


RENAMED = replace(QUEUE, name="email_queue_old")


def test_a_published_table_under_another_name_is_never_passed_over() -> None:
    """The queue is renamed, changed and renamed back in one transaction, first thing in a session."""
    for change in (QUEUE.insert(row(7, "queued")), QUEUE.delete(row(7, "sent")), wal.truncate(QUEUE)):
        fold = Fold()
        fold.block(relations(CAMPAIGNS))
        (found,) = fold.block(transaction(1000, RENAMED.relation(), change))
        assert found.entries == (Unreadable("it changed public.email_queue_old"),)
        (found,) = fold.block(transaction(2000, QUEUE.relation(), QUEUE.insert(row(7, "queued"))))
        assert found.entries == (Move(7, NEW, QUEUED, 1),)


def test_a_campaign_that_takes_over_the_number_of_a_deleted_one_keeps_its_rows() -> None:
    entries = folded(
        CAMPAIGNS.delete({"id": 4}),
        QUEUE.delete(row(4, "sent", 1)),
        CAMPAIGNS.update(campaign(5, sent=9), campaign(4, sent=9)),
        QUEUE.update(row(5, "sent", 2), row(4, "sent", 2)),
    )
    assert entries == [
        CampaignDeleted(4),
        CampaignChanged(4, "A", "running", 0, 9),
        Move(5, SENT, MOVED, 1),
        Move(4, NEW, SENT, 1),
    ]


def test_rows_that_outlive_their_campaign_in_one_transaction_are_counted_anew() -> None:
    """A deferred foreign key allows it: the log shows the campaign go and come again, and nothing of its rows."""
    again = (CAMPAIGNS.delete({"id": 4}), CAMPAIGNS.insert(campaign(4)))
    assert folded(*again) == [
        Unreadable("rows of campaign 4 may have outlived it"),
        CampaignDeleted(4),
        CampaignChanged(4, "A", "running", 0, 0),
    ]
    cascade = QUEUE.delete(row(4, "sent", 1))
    for messages in ((again[0], cascade, again[1]), (cascade, *again)):
        assert folded(*messages) == [CampaignDeleted(4), CampaignChanged(4, "A", "running", 0, 0)]


def test_a_name_with_bytes_that_are_no_utf_8_is_shown_damaged_and_stops_nothing() -> None:
    update = CAMPAIGNS.update(None, campaign(7, name="Sale#", sent=5)).replace(b"Sale#", b"Sale\x81")
    assert folded(update) == [CampaignChanged(7, "Sale\ufffd", "running", 0, 5)]


def test_what_our_own_flush_writes_comes_like_any_change() -> None:
    """A trigger may have written other campaigns in the same transaction, so a row is looked at and no transaction."""
    mark = wal.WATERMARKS.update(None, {"partition": 0, "epoch": 1})
    entries = folded(CAMPAIGNS.update(None, campaign(7, sent=5)), mark, CAMPAIGNS.update(None, campaign(8, sent=1)))
    assert entries == [CampaignChanged(7, "A", "running", 0, 5), CampaignChanged(8, "A", "running", 0, 1)]


def test_a_logical_message_makes_nothing_ours() -> None:
    """Any role may emit them."""
    counter = CAMPAIGNS.update(None, campaign(7, sent=5))
    assert folded(wal.message("sentstream", b"ours"), counter) == [CampaignChanged(7, "A", "running", 0, 5)]


def test_campaigns_in_another_order_of_columns() -> None:
    turned = replace(CAMPAIGNS, columns=tuple(reversed(CAMPAIGNS.columns)))
    fold = Fold()
    (found,) = fold.block(relations(turned) + transaction(1, turned.insert(campaign(7, "paused", 10, 3, "K"))))
    assert found.entries == (CampaignChanged(7, "K", "paused", 10, 3),)


# ---- recounts


def test_a_recount_stands_where_it_stands() -> None:
    entries = folded(
        QUEUE.insert(row(7, "queued")),
        wal.recount(5, "10:12:11", {7: (1, 2, 3, 4, 5, 6)}, rebase=[7], trigger="manual"),
        QUEUE.insert(row(7, "queued")),
    )
    assert entries == [
        Move(7, NEW, QUEUED, 1),
        RecountRow(5, "manual", "test", wal.EPOCH_2000, 1, "10:12:11", {7: Counted((1, 2, 3, 4, 5), 6)}, (7,), 1),
        Move(7, NEW, QUEUED, 1),
    ]


def test_rebase_may_be_all_some_or_none() -> None:
    for given, expected in (("all", "all"), ([3, 4], (3, 4)), ([], None), (None, None)):
        (entry,) = folded(wal.recount(rebase=given))
        assert isinstance(entry, RecountRow)
        assert entry.rebase == expected


def test_later_changes_of_a_recount_are_not_another_one() -> None:
    values = {"run_id": 1, "snapshot": "1:1:", "counts": {}}
    assert folded(wal.RECOUNTS.update(None, values), wal.RECOUNTS.delete({"run_id": 1})) == []


# ---- transactions and blocks


def test_a_transaction_says_where_it_stands_and_when() -> None:
    fold = Fold()
    data = relations() + transaction(5000, QUEUE.insert(row(7, "queued")), end=5100, time=1_795_513_728_081_000, xid=99)
    (found,) = fold.block(data)
    assert (found.lsn, found.end, found.time, found.xid) == (5000, 5100, 1_795_513_728_081_000, 99)
    assert (fold.end, fold.time, fold.open) == (5100, 1_795_513_728_081_000, False)


def test_a_transaction_that_moves_nothing_moves_the_end_alone() -> None:
    fold = Fold()
    assert fold.block(transaction(5000, end=5100)) == []
    assert fold.end == 5100


def test_a_half_read_transaction_is_open() -> None:
    fold = Fold()
    data = transaction(5000, QUEUE.insert(row(7, "queued")))
    assert fold.block(relations() + data[:-26]) == []
    assert fold.open
    assert len(fold.block(data[-26:])) == 1
    assert not fold.open


def test_tables_of_others_are_read_over() -> None:
    users = wal.Table(4, "subscribers", (("id", INT4), ("status", TEXT)), ("id",))
    assert folded(users.relation(), users.insert({"id": 1, "status": "odd"}), wal.truncate(users)) == []


def test_the_mailers_schema_may_have_another_name() -> None:
    queue = replace(QUEUE, schema="mail")
    fold = Fold(Tables(mailer_schema="mail"))
    (found,) = fold.block(relations(queue) + transaction(1, queue.insert(row(7, "queued"))))
    assert found.entries == (Move(7, NEW, QUEUED, 1),)


def test_a_table_may_change_in_mid_stream() -> None:
    """A column added, identity switched to FULL, the table rewritten under another oid: a Relation message says so."""
    fold = Fold()
    fold.block(relations())
    for queue in (*SHAPES.values(), replace(QUEUE, oid=99), QUEUE):
        data = queue.relation() + transaction(1000, queue.update(row(7, "queued"), row(7, "sent")))
        (found,) = fold.block(data)
        assert found.entries == (Move(7, QUEUED, SENT, 1),)


def test_moves_are_shared_between_transactions() -> None:
    fold = Fold()
    one = transaction(1000, QUEUE.update(row(7, "queued"), row(7, "sent")))
    first, second = fold.block(relations() + one + one)
    assert first.entries is second.entries


def test_a_transaction_of_one_move_met_before_is_as_the_first_one() -> None:
    """The mailer's every transaction, folded in one step: where it stands, when, and that it is whole."""
    move, nothing = QUEUE.update(row(7, "queued"), row(7, "sent")), QUEUE.update(row(7, "sent"), row(7, "sent"))
    fold = Fold()
    fold.block(relations() + transaction(1000, move) + transaction(2000, nothing))
    data = transaction(5000, move, end=5100, time=1_795_513_728_081_000, xid=99)
    (found,) = fold.block(data + transaction(6000, nothing, end=6100, time=1_795_513_728_082_000))
    assert found == Transaction(5000, 5100, 1_795_513_728_081_000, 99, (Move(7, QUEUED, SENT, 1),))
    assert type(found) is Transaction
    assert (fold.end, fold.time, fold.open) == (6100, 1_795_513_728_082_000, False)
    for cut in range(1, len(wal.commit(1, 2))):
        with pytest.raises(ProtocolError):
            met(move).block(data[:-cut])
    with pytest.raises(ProtocolError, match="began as"):
        met(move).block(wal.begin(1) + move + wal.commit(2, 3))
    with pytest.raises(ProtocolError, match="inside"):
        met(move).block(wal.begin(1) + data)


def met(*messages: bytes) -> Fold:
    """A fold that has met these messages, each as a transaction of its own."""
    fold = Fold()
    fold.block(relations() + b"".join(transaction(1000, message) for message in messages))
    return fold


def test_a_million_rows_in_one_transaction_are_a_few_entries_while_they_are_read() -> None:
    fold = Fold()
    fold.block(relations())
    block = QUEUE.update(row(7, "queued"), row(7, "sent")) * 10_000
    fold.block(wal.begin(1000))
    for _ in range(10):
        fold.block(block)
    (found,) = fold.block(wal.commit(1000, 1040))
    assert found.entries == (Move(7, QUEUED, SENT, 100_000),)


# ---- what can't be counted


def refused(
    *messages: bytes, queue: Table = QUEUE, error: type[SentstreamError] = ProtocolError, match: str | None = None
) -> None:
    """The block raises, and nothing of the transaction is emitted."""
    fold = Fold()
    fold.block(relations(queue, CAMPAIGNS, wal.RECOUNTS))
    before = fold.end
    with pytest.raises(error, match=match):
        fold.block(transaction(1000, *messages))
    assert fold.end == before


def test_a_status_outside_the_five_is_uncountable(queue: Table) -> None:
    for messages in (
        [queue.insert(row(7, "bounced"))],
        [queue.update(row(7, "queued"), row(7, "bounced"))],
        [queue.delete(row(7, ""))],
        [queue.insert(row(7, "Sent"))],
    ):
        refused(*messages, queue=queue, error=UncountableError, match="none of queued, sending")


def test_a_row_without_campaign_or_status_is_refused(queue: Table) -> None:
    """An identity index can't hold such a row at all, so there the message itself is wrong."""
    for values in ({"campaign_id": None, "status": "queued"}, {"campaign_id": 7, "status": None}):
        refused(queue.insert({"id": 1, **values}), queue=queue, error=SentstreamError)


def test_under_full_a_row_without_campaign_or_status_is_uncountable() -> None:
    for values in ({"campaign_id": None, "status": "queued"}, {"campaign_id": 7, "status": None}):
        refused(QUEUE_FULL.insert({"id": 1, **values}), queue=QUEUE_FULL, error=UncountableError)


@pytest.mark.parametrize("identity", ["d", "n"])
def test_identity_default_or_nothing_is_refused_with_the_fix(identity: str) -> None:
    with pytest.raises(PreconditionError, match="setup"):
        Fold().block(replace(QUEUE, identity=identity).relation())  # type: ignore[arg-type]


def test_an_identity_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ProtocolError, match="identity"):
        Fold().block(replace(QUEUE, identity="x").relation())  # type: ignore[arg-type]


def test_an_identity_index_without_campaign_or_status_is_refused() -> None:
    with pytest.raises(PreconditionError, match="identity index"):
        Fold().block(replace(QUEUE, keys=("id", "status")).relation())


def test_a_column_that_is_no_longer_published_is_refused() -> None:
    for table in (QUEUE, CAMPAIGNS, wal.RECOUNTS):
        with pytest.raises(PreconditionError, match="no longer carries"):
            Fold().block(replace(table, columns=table.columns[:1]).relation())


def test_an_update_under_full_without_its_old_row_is_refused() -> None:
    refused(replace(QUEUE_FULL, identity="i").update(None, row(7, "sent")), queue=QUEUE_FULL, match="FULL")


def test_messages_out_of_place_are_refused() -> None:
    insert = QUEUE.insert(row(7, "queued"))
    for data, match in (
        (insert, "outside"),
        (CAMPAIGNS.insert(campaign(7)), "outside"),
        (wal.truncate(QUEUE), "outside"),
        (wal.commit(1, 2), "outside"),
        (wal.begin(1) + wal.begin(2), "inside"),
        (wal.begin(1) + wal.commit(2, 3), "began as"),
        (b"Z", "unknown replication message"),
        (b"S" + bytes(8), "version 1"),
    ):
        fold = Fold()
        fold.block(relations())
        with pytest.raises(ProtocolError, match=match):
            fold.block(data)


def test_a_change_of_a_table_that_was_never_described_is_refused() -> None:
    with pytest.raises(ProtocolError, match="at 3E8"):
        Fold().block(transaction(1000, QUEUE.insert(row(7, "queued"))))


def test_a_cut_message_is_refused_wherever_it_is_cut(queue: Table) -> None:
    """Never a wrong count: what is not whole is not counted, and its transaction is not emitted."""
    moves = [
        queue.insert(row(7, "queued")),
        queue.update(row(7, "queued"), row(7, "sent")),
        queue.update(row(7, "sent"), row(7, "sent")),
        queue.delete(row(7, "sent")),
        wal.truncate(queue),
        CAMPAIGNS.insert(campaign(8)),
        wal.recount(1, "1:2:", {7: (0, 0, 0, 0, 0, 1)}),
        wal.message(),
        wal.origin(),
        wal.type_(),
    ]
    for message in moves:
        for cut in range(1, len(message)):
            fold = Fold()
            fold.block(relations(queue, CAMPAIGNS, wal.RECOUNTS) + transaction(1, *moves))
            with pytest.raises(ProtocolError):
                fold.block(wal.begin(1000) + message[:cut])


def test_a_length_that_lies_is_refused_even_where_it_leads_to_another_message() -> None:
    """An update that moves nothing is read over quickly, yet not blindly: its length could hide the next one."""
    nothing, move = QUEUE.update(None, row(7, "queued")), QUEUE.update(row(7, "queued"), row(7, "sent"))
    at = len(nothing) - len("queued") - 1
    for lie in range(256):
        if lie == len("queued"):
            continue
        data = nothing[:at] + bytes([lie]) + nothing[at + 1 :]
        fold = Fold()
        fold.block(relations() + transaction(1000, nothing, move))
        with pytest.raises(SentstreamError):
            fold.block(transaction(2000, data, *[move] * 8))
