"""Each alert of a fault of PostgreSQL or of the counting process, seen firing and resolving.

A real Prometheus scrapes a real `serve` (what is true) and a real `run`, while the fault is made and its runbook's step
taken. The rules are ours, but for their waits and some thresholds, which would take an hour. Those of Kafka:
test_alerts_kafka.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from stream.demo.child_process import free_port
from stream.demo.private_postgres import PrivateServer
from tests.fix_postgres import Database, create_database
from tests.ops.fix_prometheus import Prometheus, prometheus, quick_rules
from tests.ops.prometheus import ROOT
from tests.ops.test_alerts import DASHBOARD, queries
from tests.postgres.preparing import fill, prepare
from tests.postgres.running import count
from tests.waiting import eventually

pytestmark = [pytest.mark.alerts, pytest.mark.slow, pytest.mark.timeout(900)]

THRESHOLDS = {
    "SentstreamCountsStale": "6",
    "SentstreamVerificationOld": "25",
    "SentstreamRecountOpen": "6",
    "SentstreamSlotHoldsWal": "48e6",
}


@dataclass
class Scene:
    """The mailer's database, `serve`, `run`, and who watches them."""

    server: PrivateServer
    db: Database
    folder: Path
    ports: tuple[int, int]
    prometheus: Prometheus
    run: subprocess.Popen[bytes] | None = None

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "stream.cli", *words]

    def environment(self, **more: str) -> dict[str, str]:
        given = {
            "DATABASE_URL": self.db.url,
            "SLOT_NAME": self.db.slot,
            "HTTP_LISTEN": "off",
            "LAG_WINDOW": "6s",
            "LAG_ALLOWED": "3s",
            "RECONNECT_MAX": "1s",
            "RECOUNT_INTERVAL": "10s",
            **more,
        }
        return {"PATH": os.environ["PATH"]} | {f"SENTSTREAM_{name}": value for name, value in given.items()}

    def start(self, *words: str, **more: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{words[0]}.log").open("ab") as log:
            environment = self.environment(**more)
            return subprocess.Popen(self.command(*words), cwd=ROOT, env=environment, stdout=log, stderr=log)

    def counts(self) -> None:
        """`run` is up, and all is well."""
        if self.run is None:
            self.run = self.start("run", "--no-view", METRICS_LISTEN=f"127.0.0.1:{self.ports[1]}")
        eventually(self.is_well, 60, every=0.3)

    def is_well(self) -> bool:
        self.mail()
        ok = self.prometheus.query('sentstream_lag_verdict{part="all", verdict="OK"} == 1')
        up = self.prometheus.query("count(up == 1) == 2")
        return bool(ok and up) and not (self.prometheus.firing() - {"SentstreamRestarts"})

    def started(self) -> set[str]:
        """When the processes that were scraped last had started."""
        return {it["value"][1] for it in self.prometheus.query("process_start_time_seconds")}

    def met_since(self, before: set[str]) -> bool:
        """Whether a scrape has met another start since then."""
        return bool(self.started() - before)

    def dies(self) -> None:
        assert self.run is not None
        self.run.kill()
        self.run.wait()
        self.run = None

    def mail(self) -> None:
        """A row changes, so that there is something to count."""
        self.db.execute(
            "UPDATE email_queue SET status = CASE status WHEN 'sent' THEN 'queued' ELSE 'sent' END"
            " WHERE id = (SELECT min(id) FROM email_queue)"
        )

    def fires(self, *names: str, timeout: float = 60) -> None:
        def all_fire() -> bool:
            if self.server.running:
                self.mail()
            return set(names) <= self.prometheus.firing()

        eventually(all_fire, timeout, every=0.3)

    def recount(self) -> Any:
        found = subprocess.run(
            self.command("recount", "--json"),
            cwd=ROOT,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert found.returncode in (0, 1), found.stderr
        return json.loads(found.stdout)

    def an_hour_later(self) -> None:
        """The runs so far were long ago."""
        self.db.execute("UPDATE sentstream.recounts SET started_at = started_at - interval '2 hours'")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("alerts")
    settings = {"max_slot_wal_keep_size": "256MB", "max_wal_size": "64MB", "min_wal_size": "32MB"}
    with PrivateServer(settings=settings) as server:
        db = create_database(server, mailer=True)
        fill(db)  # the first gets mail all the time, the second none
        fill(db)
        prepare(db)
        ports = (free_port(), free_port())
        jobs = {"sentstream": f"127.0.0.1:{ports[0]}", "sentstream-roles": f"127.0.0.1:{ports[1]}"}
        with prometheus(folder, jobs, rules=quick_rules(**THRESHOLDS)) as watching:
            made = Scene(server, db, folder, ports, watching)
            serve = made.start("serve", HTTP_LISTEN=f"127.0.0.1:{ports[0]}")
            try:
                made.counts()
                yield made
            finally:
                for child in filter(None, (serve, made.run)):
                    child.send_signal(signal.SIGCONT)
                    child.kill()
                    child.wait()


@pytest.fixture(autouse=True)
def well(scene: Scene) -> None:
    """Every test begins with nothing firing."""
    scene.counts()


def test_every_query_of_the_dashboard_is_answered(scene: Scene) -> None:
    assert DASHBOARD.exists()
    # what needs Kafka, or `run` with HTTP in it, has nothing to show here
    elsewhere = re.compile("kafka|worker|in_flight|http_process")
    asked = [query.replace("$job", "sentstream") for query in queries() if not elsewhere.search(query)]
    assert len(asked) > 20

    def unanswered() -> list[str]:
        scene.mail()
        return [query for query in asked if not scene.prometheus.query(query)]

    def all_answered() -> bool:
        assert not unanswered()
        return True

    eventually(all_answered, 60, every=1)


def test_a_process_that_is_stopped(scene: Scene) -> None:
    assert scene.run is not None
    scene.run.send_signal(signal.SIGSTOP)
    scene.fires("SentstreamDown", "SentstreamCountsStale", "SentstreamStalled")
    scene.run.send_signal(signal.SIGCONT)
    scene.counts()


def test_a_process_that_is_gone(scene: Scene) -> None:
    scene.dies()
    scene.fires("SentstreamDown", "SentstreamCountsStale", "SentstreamSlotUnread", "SentstreamVerificationOld")
    scene.counts()


def test_a_slot_that_is_dropped(scene: Scene) -> None:
    scene.dies()
    scene.db.execute(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s AND active",
        scene.db.slot,
    )
    eventually(lambda: not scene.db.execute("SELECT 1 FROM pg_replication_slots WHERE active"), 20)
    scene.db.execute("SELECT pg_drop_replication_slot(%s)", scene.db.slot)
    scene.fires("SentstreamSlotGone")
    scene.counts()


def test_a_slot_that_nears_its_limit(scene: Scene) -> None:
    scene.dies()

    def held() -> bool:
        scene.db.execute("SELECT pg_switch_wal()")
        scene.mail()
        return {"SentstreamSlotNearLimit", "SentstreamSlotHoldsWal"} <= scene.prometheus.firing()

    def step() -> bool:
        # slowly towards the end, or the slot is lost before anybody has looked
        (left,) = scene.db.execute(
            "SELECT safe_wal_size FROM pg_replication_slots WHERE slot_name = %s", scene.db.slot
        )[0]
        if left is not None and left < 60e6:
            return {"SentstreamSlotNearLimit", "SentstreamSlotHoldsWal"} <= scene.prometheus.firing()
        return held()

    eventually(step, 60, every=0.2)
    scene.counts()
    assert not scene.db.execute("SELECT 1 FROM pg_replication_slots WHERE wal_status = 'lost'")


def test_partitions_without_a_baseline_and_a_run_nobody_answers(scene: Scene) -> None:
    scene.dies()
    with scene.db.connect() as session:
        run = count(session)
    scene.db.execute("UPDATE sentstream.watermarks SET based = false")
    scene.fires("SentstreamNotBased", "SentstreamRecountOpen")
    scene.counts()
    assert scene.db.execute("SELECT status FROM sentstream.recounts WHERE run_id = %s", run.run_id) == [("sealed",)]


def test_a_counter_that_is_overwritten(scene: Scene) -> None:
    scene.db.execute("UPDATE campaigns SET sent = 777 WHERE id = (SELECT min(id) FROM campaigns)")
    eventually(lambda: not scene.db.execute("SELECT 1 FROM campaigns WHERE sent = 777"), 20)
    scene.recount()
    scene.fires("SentstreamCounterOverwritten")
    assert "SentstreamDrift" not in scene.prometheus.firing()
    scene.an_hour_later()
    scene.counts()


def test_a_store_that_is_tampered_with(scene: Scene) -> None:
    scene.db.execute(
        "UPDATE sentstream.progress SET queue_failed = queue_failed + 5"
        " WHERE campaign_id = (SELECT max(campaign_id) FROM sentstream.progress)"
    )
    scene.recount()
    scene.fires("SentstreamDrift")
    scene.an_hour_later()
    scene.counts()


def test_a_server_that_is_down(scene: Scene) -> None:
    scene.server.kill()
    scene.fires("SentstreamDatabaseUnreachable", "SentstreamCountsStale")
    scene.server.start()
    scene.counts()


def test_a_process_that_keeps_starting(scene: Scene) -> None:
    """Last: it fires for half an hour. Each start is waited for until a scrape has met it, or it would not count."""
    scene.counts()
    for _ in range(4):
        before = scene.started()
        scene.dies()
        scene.counts()
        eventually(partial(scene.met_since, before), 60, every=0.3)
    scene.fires("SentstreamRestarts")
