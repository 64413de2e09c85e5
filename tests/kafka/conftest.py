"""Fixtures of the Kafka tests: `shape`, ready to be started; `made`, settings whose topics are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from connectors.kafka.topics import ensure
from stream.config.settings import Settings
from tests.fix_kafka import Kafka
from tests.fix_postgres import Database
from tests.kafka.shape import Shape


@pytest.fixture
def settings(kafka: Kafka, topic_prefix: str) -> Settings:
    return Settings(
        kafka_bootstrap_servers=tuple(kafka.bootstrap.split(",")),
        kafka_topic_prefix=topic_prefix.rstrip("."),
        kafka_partitions=3,
    )


@pytest.fixture
def made(settings: Settings) -> Settings:
    assert ensure(settings) == []
    return settings


@pytest.fixture
def make_shape(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Shape]]:
    """``make_shape(db, partitions=4, **settings)``: topics made, database set up; ended after the test. ``bootstrap``:
    of a broker of the test's own."""
    made: list[tuple[Shape, bool]] = []

    def make(db: Database, bootstrap: str = "", **values: Any) -> Shape:
        shared: Kafka | None = None if bootstrap else request.getfixturevalue("kafka")
        shape = Shape(db, shared.bootstrap if shared else bootstrap, tmp_path, **values)
        made.append((shape, shared is not None))
        return shape.prepare()

    yield make
    for shape, shared in made:
        shape.close(topics=shared)


@pytest.fixture
def shape(make_shape: Callable[..., Shape], mailer_db: Database) -> Shape:
    return make_shape(mailer_db)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """A test that fails shows what the roles said."""
    report = yield
    shape = getattr(item, "funcargs", {}).get("shape")
    if report.when == "call" and report.failed and shape is not None:
        for role in shape.roles:
            report.sections.append((f"log of {role.log.name}", role.said[-6000:]))
    return report
