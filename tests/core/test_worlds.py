"""The short form of `make simulate`: some hundred worlds of each kind, and the fuzzers for a moment."""

from __future__ import annotations

from random import Random

import pytest

from stream.core.errors import SentstreamError
from stream.core.fold import Fold
from tests.proofs.fuzz import damaged, stream_of
from tests.proofs.simulate import play


@pytest.mark.parametrize(("kind", "count"), [("plain", 400), ("damaged", 400), ("protocol", 40)])
def test_worlds(kind: str, count: int) -> None:
    figures, found = play(kind, 0, count)
    assert found == []
    assert figures["worlds"] == count
    assert figures["recounts"] > count
    if kind == "plain":
        assert figures["drifts"] == 0
        assert figures["unseen"] > 0
    if kind == "damaged":
        assert figures["injected"] > 0


def test_damaged_streams_are_refused_or_taken_and_nothing_else() -> None:
    random, refused = Random(1), 0
    for _ in range(500):
        try:
            Fold().block(damaged(random, stream_of(random)))
        except SentstreamError:
            refused += 1
    assert 0 < refused < 500
