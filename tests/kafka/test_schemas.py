"""What we publish keeps to the schemas, and the AsyncAPI file to what we make."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from hypothesis import given, settings
from jsonschema import Draft202012Validator, ValidationError

from connectors.kafka.codec import encode, encode_progress, encode_verdict, encode_watermark
from connectors.kafka.schemas import TOPICS, schema
from connectors.kafka.topics import plan
from stream.config.settings import Settings
from stream.core.batch import Batch
from stream.core.position import Position
from stream.core.progress import FIELDS, measure, position_text, to_json
from stream.core.verdict import Verdict
from tests.kafka.batches import batches
from tests.kafka.test_codec import POISON

ASYNCAPI = yaml.safe_load(Path("docs/asyncapi.yaml").read_text("utf-8"))
VALIDATORS = {topic: Draft202012Validator(schema(topic)) for topic in TOPICS}


def keeps(topic: str, record: bytes) -> Any:
    value = orjson.loads(record)
    VALIDATORS[topic].validate(value)
    return value


@pytest.mark.parametrize("topic", TOPICS)
def test_the_schemas_are_schemas(topic: str) -> None:
    Draft202012Validator.check_schema(schema(topic))


@given(batches())
@settings(max_examples=50)
def test_every_batch_keeps_to_its_schema(batch: Batch) -> None:
    keeps("changes", encode(batch))


@pytest.mark.parametrize("name", ["a negative count", "another version", "four live counts", "an entry too short"])
def test_the_schema_refuses_poison(name: str) -> None:
    with pytest.raises(ValidationError):
        keeps("changes", POISON[name])


def test_progress_keeps_to_its_schema_and_has_the_names_of_the_contract() -> None:
    now = datetime(2026, 11, 24, 9, 0, 0, 250_000, timezone.utc)
    progress = measure(
        campaign_id=7, name="spring", status="running", to_send=10, counts=(4, 1, 5, 0, 0), removed=1, sent=6,
        rate=2.5, now=now, as_of=now, based=True, verified_at=now, epoch=3, position=Position(0x16B3748),
    )  # fmt: skip
    value = keeps("progress", encode_progress(to_json(progress)))
    assert set(value) == {"v", *FIELDS}
    assert set(schema("progress")["$defs"]["campaign"]["required"]) == {"v", *FIELDS}
    keeps("progress", encode_watermark(3, 4, position_text(4, Position(9, 1)), 9, 1_795_513_728_081_000, True))
    keeps("progress", encode_watermark(3, 4, position_text(4, Position(9, 1)), 9, 0, False))


def test_verdicts_keep_to_their_schema() -> None:
    drift = Verdict(1, 7, "drift", "missed_change", {"queued": 1, "sent": 2}, {"queued": 0, "sent": 3}, True)
    assert keeps("verdicts", encode_verdict(drift, 3))["delta"] == {"queued": -1, "sent": 1}
    keeps("verdicts", encode_verdict(Verdict(1, 7, "verified"), 3))


def test_the_asyncapi_file_describes_the_topics_that_setup_makes() -> None:
    assert ASYNCAPI["asyncapi"].startswith("3.")
    channels = {channel["address"]: channel for channel in ASYNCAPI["channels"].values()}
    topics = {topic.name: topic for topic in plan(Settings(kafka_bootstrap_servers=("localhost:9092",)))}
    assert set(channels) == set(topics)
    for name, topic in topics.items():
        binding = channels[name]["bindings"]["kafka"]
        assert binding["partitions"] == topic.partitions
        for key, value in binding["topicConfiguration"].items():
            said = ",".join(value) if isinstance(value, list) else str(value)
            assert topic.configs[key] == said


def test_every_reference_of_the_asyncapi_file_leads_somewhere() -> None:
    def references(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                yield node["$ref"]
            for inner in node.values():
                yield from references(inner)
        elif isinstance(node, list):
            for inner in node:
                yield from references(inner)

    found = list(references(ASYNCAPI))
    assert len(found) > 10
    for reference in found:
        path, _, inner = reference.partition("#/")
        if path:
            Draft202012Validator.check_schema(orjson.loads((Path("docs") / path).read_bytes()))
            continue
        place: Any = ASYNCAPI
        for step in inner.split("/"):
            place = place[step]
        assert place
