"""Batches for tests, as Hypothesis draws them."""

from __future__ import annotations

from hypothesis import strategies as st

from stream.core.batch import Batch
from stream.core.entries import CampaignChanged, CampaignDeleted, Counted, Entry, Move, Recount, Truncate
from stream.core.position import Position
from stream.core.status import MOVED, NEW, REMOVED

EPOCH = 1_795_513_728_081

campaigns = st.integers(-(2**63), 2**63 - 1)
names = st.text(max_size=20).filter(lambda text: all(c != "\0" and not 0xD800 <= ord(c) <= 0xDFFF for c in text))
times = st.integers(1, 4_000_000_000_000_000)
small = st.integers(0, 2**40)

moves = st.builds(
    Move,
    campaigns,
    st.sampled_from([0, 1, 2, 3, 4, NEW]),
    st.sampled_from([0, 1, 2, 3, 4, REMOVED, MOVED]),
    st.integers(1, 2**40),
).filter(lambda move: move.source != move.target)
counted = st.builds(Counted, st.tuples(small, small, small, small, small), st.integers(-(2**31), 2**31))
recounts = st.builds(
    Recount,
    st.integers(1, 2**40),
    st.sampled_from(["start", "interval", "manual"]),
    times,
    st.integers(1, 2**60),
    st.dictionaries(campaigns, counted, max_size=5),
    st.one_of(st.none(), st.just("all"), st.lists(campaigns, max_size=3).map(tuple)),
    st.one_of(st.none(), names),
)
entries: st.SearchStrategy[Entry] = st.one_of(
    moves,
    st.builds(Truncate, st.sampled_from(["queue", "campaigns"])),
    st.builds(CampaignChanged, campaigns, st.one_of(st.none(), names), names, small, small),
    st.builds(CampaignDeleted, campaigns),
    recounts,
)


@st.composite
def batches(draw: st.DrawFn, partition: int = 3) -> Batch:
    """A batch of that partition with up to twenty entries in order."""
    found = draw(st.lists(st.tuples(st.integers(1, 2**60), st.integers(0, 2**31)), max_size=20, unique=True))
    places = sorted(found)
    placed = tuple((lsn, seq, draw(entries)) for lsn, seq in places)
    begin = Position(*places[0]) if places else Position(draw(st.integers(0, 2**60)))
    last = Position(*places[-1]) if places else begin
    end = Position(last.lsn + draw(st.integers(1, 1000)))
    return Batch(partition, EPOCH, begin, end, draw(st.one_of(st.just(0), times)), placed, draw(st.integers(0, 10**8)))


def move_batch(begin: int, end: int, *moved: Move, epoch: int = EPOCH, partition: int = 3) -> Batch:
    """A batch in [begin, end) with these moves, one a transaction."""
    placed = tuple((begin + number, 0, move) for number, move in enumerate(moved))
    return Batch(partition, epoch, Position(begin), Position(end), 1_795_513_728_081_000, placed, 29_925_228)


def recount_batch(begin: int, end: int, expected: dict[int, Counted], *, run: int = 1, epoch: int = EPOCH) -> Batch:
    """A batch with one recount."""
    recount = Recount(run, "manual", 1_795_513_728_081_000, begin, expected)
    return Batch(3, epoch, Position(begin), Position(end), 1_795_513_728_081_000, ((begin, 0, recount),), 29_925_228)
