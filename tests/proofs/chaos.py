"""Faults at random under a load of every act of the mailer, for as long as wanted; then everything must be right.

The simulated mailer keeps a truth of its own. Beside it `sentstream run` is killed with -9, stopped for a while,
doubled, cut off from the server in the middle of messages, and the server itself is killed. At the end the counters,
the five counts and the history must be what the mailer knows to be true, and no recount may ever have found a drift.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from random import Random

from connectors.mailer.tables import schema_sql
from connectors.postgres.connect import connect
from connectors.postgres.setup import Wanted, set_up
from stream.demo.private_postgres import PrivateServer
from tests.fix_postgres import Database
from tests.fix_proxy import Proxy
from tests.mailer_load import Load
from tests.postgres.processes import Process
from tests.postgres.running import kept
from tests.waiting import eventually

_FAULTS = ("kill", "kill", "stop", "second", "cut", "cut_in_a_message", "server")


class Chaos:
    """A server, a proxy before it, a load, and one or two sentstreams."""

    def __init__(self, folder: Path, server: PrivateServer, seed: int) -> None:
        self.random = Random(seed)
        self.folder = folder
        self.server = server
        self.db = Database(server, "chaos")
        self.proxy = Proxy("127.0.0.1", server.port)
        self.processes: list[Process] = []
        self.done: Counter[str] = Counter()

    def start(self) -> None:
        settings = {
            "database_url": self.proxy.url(self.db.url),
            "slot_name": "chaos",
            "http_listen": "off",
            "reconnect_max": "0.5s",
            "recount_interval": "3s",
            "catchup_threshold": self.random.choice(["0", "64kB", "64MB"]),
        }
        number = sum(self.done.values())
        self.processes.append(Process(self.folder / f"{number}.log", "run", **settings))

    def end(self) -> None:
        for process in self.processes:
            process.kill()

    def fault(self) -> None:
        name = self.random.choice(_FAULTS)
        self.done[name] += 1
        if name == "kill":
            self.processes.pop(0).kill()
        elif name == "stop":
            process = self.processes[0]
            process.send(signal.SIGSTOP)
            time.sleep(self.random.uniform(0.5, 4))
            process.send(signal.SIGCONT)
        elif name == "second" and len(self.processes) < 3:
            self.start()
        elif name == "cut":
            self.proxy.cut()
        elif name == "cut_in_a_message":
            self.proxy.cut_after(self.random.randrange(1, 4000), answers=self.random.random() < 0.7)
        elif name == "server":
            self.server.kill()
            self.server.start()
        self.processes = [process for process in self.processes if process.alive]
        if not self.processes:
            self.start()

    def wrong(self, load: Load) -> str:
        """What is not yet as the mailer knows it; empty: all is right."""
        truth = load.snapshot().truth
        counters = dict(self.db.execute("SELECT id, sent FROM campaigns"))
        expected = truth.sent("keep")
        different = {c: (counters.get(c), n) for c, n in expected.items() if counters.get(c) != n}
        if different:
            return f"campaigns.sent (shown, true): {different}"
        if kept(self.db) != truth.live():
            return "the five counts differ"
        sums = self.db.execute(
            "SELECT p.campaign_id FROM sentstream.progress p LEFT JOIN sentstream.history h USING (campaign_id)"
            " GROUP BY p.campaign_id, p.sent HAVING p.sent <> coalesce(sum(h.sent), 0)"
        )
        return f"the history of {sums} does not add up" if sums else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=500)
    given = parser.parse_args()
    seed = given.seed or int(time.time())
    print(f"chaos: seed {seed}", file=sys.stderr)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(PrivateServer(settings={"fsync": "on", "wal_sender_timeout": "3s"}))
        with connect(server.url(), "chaos") as admin:
            admin.execute("CREATE DATABASE chaos")
        with connect(server.url("chaos"), "chaos") as session:
            session.execute(schema_sql().encode())
            set_up(session, Wanted(slot="chaos"))
        chaos = Chaos(folder, server, seed)
        load = stack.enter_context(Load(chaos.db.url, rate=given.rate, seed=seed, connections=2, size=400))
        stack.callback(chaos.end)
        chaos.start()
        eventually(lambda: chaos.db.value("SELECT coalesce(bool_and(based), false) FROM sentstream.watermarks"), 60)
        end = time.monotonic() + 60 * given.minutes
        load.start()
        while time.monotonic() < end:
            time.sleep(chaos.random.uniform(0.5, 5))
            chaos.fault()
        load.stop()
        still = ["?"]

        def right() -> bool:
            still[0] = chaos.wrong(load)
            return not still[0]

        held = True
        try:
            eventually(right, 90, every=0.5)
        except AssertionError:
            held = False
        drifts = chaos.db.execute(
            "SELECT run_id, campaign_id, cause, before, after FROM sentstream.verdicts WHERE verdict = 'drift'"
        )
        runs = chaos.db.value("SELECT count(*) FROM sentstream.recounts WHERE status = 'sealed'")
        said = "".join(path.read_text() for path in sorted(folder.glob("*.log")))
    if not held or drifts:
        print(said[-20_000:], file=sys.stderr)
        print(f"wrong: {still[0]}; drifts: {drifts[:5]}", file=sys.stderr)
    faults = ", ".join(f"{n} {name}" for name, n in sorted(chaos.done.items()))
    verdict = "all right" if held and not drifts else "NOT RIGHT"
    print(f"chaos: {given.minutes:g} min, seed {seed}, {load.changes} changes, {runs} recounts;", end=" ")
    print(f"{faults}: {verdict}")
    return 0 if held and not drifts else 1


if __name__ == "__main__":
    sys.exit(main())
