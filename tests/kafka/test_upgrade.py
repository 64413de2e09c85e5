"""A rolling upgrade of the roles as docs/operations/upgrading.md has it, under load, and back again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from stream.config.sources import to_environment
from stream.core.fold import FOLD_VERSION
from tests.kafka.shape import Role, Shape, load
from tests.kafka.test_shape import proved, running
from tests.next_release import command, next_release
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_roles_are_upgraded_one_by_one_under_load_and_back(shape: Shape, tmp_path: Path) -> None:
    home = next_release(tmp_path)
    running(shape, workers=2)
    reconciler = shape.start("reconcile")
    reader, first, second, _ = shape.roles
    with load(shape.db, 8) as done:
        going_on(shape, done)
        before = fold_versions(shape)
        command(home, to_environment(shape.settings), "setup")
        going_on(shape, done)  # the old release, on the schema of the next one
        assert "of_the_next_release" in columns(shape)
        for role in (first, second, reader, reconciler):
            changed(role, home)
            going_on(shape, done)
        eventually(lambda: fold_versions(shape) == {FOLD_VERSION + 1} and shape.based(), 60)
    # the epoch's baseline takes rows that went from sent to failed meanwhile for removed ones: an estimate
    proved(shape, removed=True)
    assert before == {FOLD_VERSION}
    with load(shape.db, 8) as done:
        for role in (reader, first, second, reconciler):
            changed(role, None)
            going_on(shape, done)
        eventually(lambda: fold_versions(shape) == {FOLD_VERSION} and shape.based(), 60)
    proved(shape, removed=True)
    assert shape.db.value("SELECT count(*) FROM sentstream.verdicts WHERE verdict = 'drift'") == 0
    assert "Traceback" not in "".join(role.said for role in shape.roles)


def changed(role: Role, home: Path | None) -> None:
    """Stop a role in order, and start it with the code of the other release."""
    assert role.stop() == 0
    role.home = home
    role.again()


def going_on(shape: Shape, done: Callable[[], int]) -> None:
    """The mailer works, and every partition is flushed after that."""
    seen = done()
    eventually(lambda: done() > seen + 200, 30)
    now = shape.db.value("SELECT clock_timestamp()")
    eventually(lambda: shape.db.value("SELECT min(flushed_at) > %s FROM sentstream.watermarks", now), 60)


def fold_versions(shape: Shape) -> set[int]:
    return {row[0] for row in shape.db.execute("SELECT fold_version FROM sentstream.watermarks")}


def columns(shape: Shape) -> set[str]:
    return {
        row[0]
        for row in shape.db.execute(
            "SELECT column_name FROM information_schema.columns"
            " WHERE table_schema = 'sentstream' AND table_name = 'progress'"
        )
    }
