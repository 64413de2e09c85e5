"""The book against a model that keeps a list of rows; and the choice of acts, which is pure."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.core.status import CANCELLED, FAILED, QUEUED, SENDING, SENT
from stream.demo.mailer.ledger import Book, Page
from tests.mailer_load.action_mix import ACTS, MIXES, View, choose, choose_mails

pytestmark = pytest.mark.slow  # what other tests are made of

statuses = st.sampled_from((QUEUED, SENDING, SENT, FAILED, CANCELLED))
row_ids = st.integers(1, 40)
operations = st.one_of(
    st.tuples(st.just("enter"), st.integers(1, 8), statuses),
    st.tuples(st.just("turn"), row_ids, statuses),
    st.tuples(st.just("guarded"), row_ids, statuses),
    st.tuples(st.just("turn_all"), st.sets(statuses), statuses),
    st.tuples(st.just("drop"), st.lists(row_ids, max_size=5), st.none()),
    st.tuples(st.just("drop_status"), st.none(), statuses),
    st.tuples(st.just("drop_all"), st.none(), st.none()),
    st.tuples(st.just("next"), st.integers(1, 5), st.none()),
)


@given(st.lists(operations, max_size=40))
def test_a_page_is_a_list_of_rows_with_a_status(history: list[tuple[str, object, object]]) -> None:
    page, model, removed, last = Page(1, "a"), dict[int, int](), 0, 0
    for name, what, status in history:
        if name == "enter":
            ids = range(last + 1, last + 1 + int(str(what)))
            last = ids[-1]
            assert page.enter(ids, int(str(status))) == len(ids)
            model.update(dict.fromkeys(ids, status))  # type: ignore[arg-type]
        elif name in ("turn", "guarded"):
            fits = what in model and (name == "turn" or model[what] == QUEUED)
            assert page.turn(what, status, QUEUED if name == "guarded" else None) == fits  # type: ignore[arg-type]
            if fits:
                model[what] = status  # type: ignore[index, assignment]
        elif name == "turn_all":
            hit = [row for row, has in model.items() if has in what]  # type: ignore[operator]
            assert page.turn_all(what, status) == len(hit)  # type: ignore[arg-type]
            model.update(dict.fromkeys(hit, status))  # type: ignore[arg-type]
        elif name == "next":
            found = page.next_queued(int(str(what)))
            assert len(found) == len(set(found)) <= int(str(what))
            assert all(model[row] == QUEUED for row in found)
            assert bool(found) == (QUEUED in model.values())
        else:
            gone = (
                [row for row in dict.fromkeys(what) if row in model]  # type: ignore[call-overload]
                if name == "drop"
                else [row for row, has in model.items() if name == "drop_all" or has == status]
            )
            removed += sum(model.pop(row) == SENT for row in gone)
            if name == "drop":
                assert page.drop(what) == len(gone)  # type: ignore[arg-type]
            elif name == "drop_status":
                assert page.drop_status(status) == len(gone)  # type: ignore[arg-type]
            else:
                page.drop_all()
        counts = Counter(model.values())
        assert page.rows == model
        assert page.counts == [counts[status] for status in range(5)]
        assert page.removed == removed
    truth = page.truth()
    assert truth.sent("follow") == truth.counts[SENT]
    assert truth.sent("keep") == truth.counts[SENT] + removed
    assert truth.ever_queued == (last > 0)


def test_a_moved_row_takes_its_status_along_and_is_not_removed() -> None:
    book = Book({1: Page(1, "a"), 2: Page(2, "b")})
    book.pages[1].enter([7, 8], SENT)
    assert book.move(7, 1, 2) == 1
    assert book.move(9, 1, 2) == 0
    assert book.truth(0, {}).live() == {1: (0, 0, 1, 0, 0), 2: (0, 0, 1, 0, 0)}
    assert book.pages[1].removed == 0


def test_a_campaign_that_never_had_a_row_keeps_what_the_mailer_wrote() -> None:
    page = Page(1, "a", counter=318)
    assert page.truth().sent("keep") == page.truth().sent("follow") == 318
    page.enter([1], QUEUED)
    assert page.truth().sent("keep") == 0


def view(*pages: Page, on_their_way: list[tuple[int, int]] | None = None) -> View:
    return View(pages, on_their_way or [], [], subscribers=100, room=6, size=50)


def running(n: int) -> Page:
    page = Page(1, "a", status="running")
    page.enter(range(1, n + 1))
    return page


@given(st.integers(0, 2**32))
def test_the_same_seed_chooses_the_same(seed: int) -> None:
    one = [choose(MIXES["all"], view(running(20), on_their_way=[(1, 3)]), rng) for rng in [Random(seed)] * 20]
    two = [choose(MIXES["all"], view(running(20), on_their_way=[(1, 3)]), rng) for rng in [Random(seed)] * 20]
    assert one == two


def test_choosing_changes_nothing() -> None:
    page = running(20)
    for seed in range(200):
        choose(MIXES["all"], view(page), Random(seed))
    assert page.truth() == running(20).truth()
    assert list(page.line) == list(range(1, 21))


def test_what_is_not_possible_is_not_chosen() -> None:
    assert choose({"pick": 1, "sent": 1, "resume": 5}, view(Page(1, "a")), Random(1)) is None
    act = choose({"pick": 1, "sent": 1, "resume": 5}, view(running(3)), Random(1))
    assert act is not None
    assert act.name == "pick"


def test_rows_that_share_a_transaction_are_different_ones() -> None:
    for seed in range(50):
        busy = view(running(30), on_their_way=[(1, row) for row in range(30)])
        acts = choose_mails(MIXES["mail"], busy, Random(seed), 12)
        mails = [mail for act in acts for mail in act.mails]
        assert len(mails) == len(set(mails)) <= 12


def test_every_act_of_the_mixes_is_one() -> None:
    for mix in MIXES.values():
        assert mix.keys() <= ACTS.keys()
