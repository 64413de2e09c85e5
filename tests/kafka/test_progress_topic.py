"""Who reads `sentstream.progress`: kcat and the Python consumer of docs/topics.md, as printed there, and `serve`."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import orjson
import pytest
from kafka import KafkaProducer

from connectors.kafka.cluster import Cluster
from connectors.kafka.codec import Decoder
from stream.demo.child_process import free_port
from stream.kafka.assignment import AssignedPartition
from stream.kafka.options import WorkerOptions
from stream.kafka.worker import Worker
from tests.kafka.shape import Shape
from tests.postgres.running import add_campaign
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(240)

DOCUMENT = (Path(__file__).parents[2] / "docs" / "topics.md").read_text("utf-8")


@pytest.fixture
def counted(shape: Shape) -> Shape:
    """Campaigns 1 to 8 with as many rows sent as their number; roles stopped, and everything published."""
    for number in range(1, 9):
        add_campaign(shape.db, number, sent_rows=number)
    reader, worker = shape.start("read"), shape.start("work")
    shape.until_based()
    shape.until_right()
    assert (reader.stop(), worker.stop()) == (0, 0)
    return shape


def printed(language: str, holds: str, shape: Shape) -> str:
    """The block of docs/topics.md that holds these words, for this broker and these topics."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    block: str
    (block,) = [block for block in blocks if holds in block]
    servers = ",".join(shape.settings.kafka_bootstrap_servers)
    return block.replace("BROKER", servers).replace("sentstream.progress", shape.names.progress)


@pytest.mark.system
def test_kcat_as_documented_shows_the_newest_progress_of_a_campaign(counted: Shape) -> None:
    assert shutil.which("kcat"), "kcat is not installed: .ci/run installs it (Debian's package kcat)"
    command = printed("", "kcat", counted)
    shown = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=60).stdout
    key, value = shown.split(" ", 1)
    assert key == "7"
    found = json.loads(value)
    assert (found["campaign_id"], found["sent"], found["queue_sent"]) == (7, 7, 7)


@pytest.mark.slow
def test_the_python_consumer_as_documented_ends_with_every_campaign(counted: Shape, tmp_path: Path) -> None:
    script = printed("python", "KafkaConsumer", counted)
    endless = 'auto_offset_reset="earliest"'
    assert endless in script
    file = tmp_path / "consumer.py"
    file.write_text(
        script.replace(endless, f"{endless}, consumer_timeout_ms=5000")
        + "\nprint(json.dumps({int(key): campaign['sent'] for key, campaign in campaigns.items()}))\n"
    )
    shown = subprocess.run([sys.executable, file], capture_output=True, text=True, check=True, timeout=60).stdout
    assert json.loads(shown) == {str(number): number for number in range(1, 9)}


@pytest.mark.slow
def test_a_tombstone_that_a_worker_owed_when_it_died_is_sent_by_the_next(counted: Shape) -> None:
    """Two phantoms: a campaign that went while the worker died between commit and publishing, and one that nobody
    knows of. Those that live keep their rows, one that came again among them."""
    phantom = 4711
    producer = KafkaProducer(**counted.cluster.kafka_python())
    for key, campaign in ((b"%d" % phantom, phantom), (b"a note of somebody", phantom)):
        place = counted.partition_of(campaign)
        producer.send(counted.names.progress, key=key, value=b"{}", partition=place).get(20)
    producer.close()

    def newest() -> dict[bytes, bytes | None]:
        return {record.key: record.value for record in counted.records(counted.names.progress)}

    counted.start("read")
    counted.db.execute("DELETE FROM campaigns WHERE id IN (7, 8)")
    while counted.db.value("SELECT count(*) FROM sentstream.progress WHERE campaign_id IN (7, 8)"):
        doomed = counted.start("work", name="w0", failpoints="after_commit=kill")
        eventually(lambda: doomed.process.poll() == -9, 60)  # noqa: B023 - asked at once
    add_campaign(counted.db, 7, sent_rows=2)
    worker = counted.start("work", name="w0")
    workers = [role for role in counted.roles if role.name == "work"]

    def right() -> bool:
        rows = newest()
        gone = {key for key, value in rows.items() if value is None}
        assert gone == {b"8", b"4711"}
        shown = {number: orjson.loads(rows[b"%d" % number] or b"")["sent"] for number in range(1, 8)}
        assert shown == {**{number: number for number in range(1, 7)}, 7: 2}
        return True

    eventually(right, 40, every=0.3)
    assert any("4711" in it.said for it in workers)  # a doomed one may have come to it
    assert worker.stop() == 0


def test_a_topic_that_cannot_be_read_is_said_once_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def read_twice() -> BaseException | None:
        worker = Worker(WorkerOptions(lambda: "postgresql://127.0.0.1:1/none", Cluster((f"127.0.0.1:{free_port()}",))))
        for _ in range(2):
            await worker._loader._read_topic(AssignedPartition(0, "any", Decoder()))
        return worker.failure

    assert asyncio.run(read_twice()) is None
    said = [record.getMessage() for record in caplog.records if record.name == "sentstream.worker"]
    assert len(said) == 1
    assert "does not answer" in said[0]


def test_serve_shows_what_the_topic_brings_before_the_database_has_it(counted: Shape) -> None:
    port = free_port()
    serve = counted.start("serve", http_listen=f"127.0.0.1:{port}")
    url = f"http://127.0.0.1:{port}"

    def sent() -> int:
        try:
            answer = httpx.get(f"{url}/api/campaigns/7", timeout=5)
        except httpx.TransportError:
            return -1
        return int(answer.json()["sent"]) if answer.status_code == 200 else -1

    eventually(lambda: sent() == 7, 40, every=0.1)
    newest = [it for it in counted.records(counted.names.progress) if it.key == b"7"][-1]
    value = orjson.loads(newest.value)
    epoch, lsn, seq = value["position"].split(".")
    later = f"{epoch}.{int(lsn, 16) + (1 << 24):0{len(lsn)}X}.{seq}"  # beyond what the database has
    producer = KafkaProducer(**counted.cluster.kafka_python())

    def told() -> bool:
        # again and again: the topic is read from its end, and `serve` may have just begun to
        record = orjson.dumps({**value, "sent": 4711, "position": later})
        producer.send(newest.topic, key=b"7", value=record, partition=newest.partition).get(20)
        return sent() == 4711

    try:
        eventually(told, 30, every=0.2)
    finally:
        producer.close()
    assert counted.db.value("SELECT sent FROM sentstream.progress WHERE campaign_id = 7") == 7
    assert serve.stop() == 0
    assert "can't be read and is skipped" not in serve.said
