"""The alerts of the Kafka shape, seen firing and resolving: a real Prometheus scrapes real roles on a real broker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka import KafkaProducer

from stream.demo.child_process import free_port
from stream.demo.private_kafka import PrivateKafka
from tests.fix_postgres import Database
from tests.kafka.shape import Role, Shape
from tests.ops.fix_prometheus import Prometheus, prometheus, quick_rules
from tests.ops.test_alerts import queries
from tests.postgres.running import add_campaign
from tests.waiting import eventually

pytestmark = [pytest.mark.alerts, pytest.mark.slow, pytest.mark.timeout(600)]


class Scene:
    """Four roles and who watches them."""

    def __init__(self, shape: Shape, watching: Prometheus, work: Role) -> None:
        self.shape = shape
        self.prometheus = watching
        self.work = work

    def mail(self) -> None:
        self.shape.db.execute("UPDATE email_queue SET status = CASE status WHEN 'sent' THEN 'queued' ELSE 'sent' END")

    def is_well(self) -> bool:
        self.mail()
        ok = self.prometheus.query('sentstream_lag_verdict{part="group", verdict="OK"} == 1')
        up = self.prometheus.query("count(up == 1) == 4")
        return bool(ok and up) and not self.prometheus.firing()

    def fires(self, *names: str, timeout: float = 90) -> None:
        def all_fire() -> bool:
            self.mail()
            return set(names) <= self.prometheus.firing()

        eventually(all_fire, timeout, every=0.5)


@pytest.fixture
def scene(mailer_db: Database, private_kafka: PrivateKafka, tmp_path: Path) -> Iterator[Scene]:
    ports = [free_port() for _ in range(4)]
    shape = Shape(
        mailer_db,
        private_kafka.bootstrap,
        tmp_path,
        partitions=2,
        lag_window=8.0,
        lag_allowed=3.0,
        recount_interval=10.0,
    ).prepare()
    for number in range(1, 6):
        add_campaign(mailer_db, number, queued=3)
    jobs = {"sentstream": f"127.0.0.1:{ports[0]}"}
    jobs |= {
        f"sentstream-{role}": f"127.0.0.1:{port}"
        for role, port in zip(("read", "work", "reconcile"), ports[1:], strict=True)
    }
    rules = quick_rules(SentstreamConsumersBehind="5")
    try:
        shape.start("serve", http_listen=f"127.0.0.1:{ports[0]}")
        shape.start("read", metrics_listen=f"127.0.0.1:{ports[1]}")
        work = shape.start("work", name="one", metrics_listen=f"127.0.0.1:{ports[2]}")
        shape.start("reconcile", metrics_listen=f"127.0.0.1:{ports[3]}")
        with prometheus(tmp_path, jobs, rules=rules) as watching:
            made = Scene(shape, watching, work)
            eventually(made.is_well, 90, every=0.5)
            yield made
    finally:
        shape.close()


def test_workers_that_are_stopped_gone_and_poisoned(scene: Scene) -> None:
    asked = [query.replace("$job", "sentstream") for query in queries() if "kafka" in query or "worker" in query]
    assert len(asked) >= 3
    eventually(lambda: all(scene.prometheus.query(query) for query in asked), 30, every=1)

    scene.work.pause()
    scene.fires("SentstreamConsumersBehind", "SentstreamDown")
    scene.work.go_on()
    eventually(scene.is_well, 90, every=0.5)

    scene.work.kill()
    scene.fires("SentstreamWorkersGone")
    scene.work.again()
    eventually(scene.is_well, 90, every=0.5)

    producer = KafkaProducer(bootstrap_servers=scene.shape.settings.kafka_bootstrap_servers)
    producer.send(scene.shape.names.changes, b"no batch of ours", partition=0).get(20)
    producer.close()
    scene.fires("SentstreamPoison")
