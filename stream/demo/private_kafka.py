"""A private Apache Kafka that ends with the process that started it: for ``make run KAFKA=1`` and the tests.

Each node is one process, broker and controller in one (KRaft). `kafka_jars` brings the programs.

    with PrivateKafka() as kafka:
        KafkaProducer(bootstrap_servers=kafka.bootstrap)

    with PrivateKafka(nodes=3) as kafka:
        kafka.nodes[1].kill()
"""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import SIGCONT, SIGINT, SIGKILL, SIGSTOP, SIGTERM, signal
from typing import Any, Final

from stream.core.errors import SentstreamError, UnreachableError
from stream.demo import child_process
from stream.demo.kafka_jars import CACHE, fetch, java_command

#: seconds for one node to listen and join, and to stop in order
_START_TIMEOUT: Final = 90
_STOP_TIMEOUT: Final = 30

_JVM: Final = (
    "-Xmx256m",
    "-XX:+UseSerialGC",
    "-XX:-UsePerfData",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
)
#: compiles little: starts in half the time and runs slower, right for tests
QUICK_START: Final = ("-XX:TieredStopAtLevel=1",)


class Node:
    """One broker process of a `PrivateKafka`. Its data outlives the process."""

    def __init__(
        self, number: int, directory: Path, ports: Sequence[int], jvm: Sequence[str], scratch: Path | None
    ) -> None:
        self.number = number
        self.directory = directory
        self.port, self.broker_port, self.controller_port = ports
        self._jvm = jvm
        self._scratch = scratch
        self._child: child_process.Child | None = None

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.exit_code is None

    @property
    def pid(self) -> int:
        """Raises UnreachableError when it isn't running."""
        if self._child is None:
            raise UnreachableError(f"Node {self.number} of the private Kafka is not running.", "Call start().")
        return self._child.pid

    def start(self) -> None:
        """Starts the process and returns at once; `PrivateKafka.wait` waits until it serves."""
        if self.running:
            return
        self._child = child_process.start(
            java_command(*self._jvm, "kafka.Kafka", str(self._properties)),
            log=self.log,
            directory=self.directory,
            environment=child_process.environment_of(self.directory),
            orphaned=SIGKILL if self._scratch else SIGTERM,
            remove_when_orphaned=self._scratch,
        )

    def stop(self) -> None:
        """Orderly: the node hands leadership over first."""
        self._end(SIGTERM)

    def kill(self) -> None:
        """As a crash does (SIGKILL). `start` brings it back with its data."""
        self._end(SIGKILL)

    def pause(self) -> None:
        """Stops the process without ending it (SIGSTOP): its connections stay open and silent."""
        if self._child is not None:
            self._child.signal(SIGSTOP)

    def resume(self) -> None:
        """Ends `pause`."""
        if self._child is not None:
            self._child.signal(SIGCONT)

    def prepare(self, settings: Mapping[str, str], cluster_id: str) -> subprocess.Popen[bytes] | None:
        """Writes the settings, and begins to format the data directory unless that has been done."""
        self.directory.mkdir(parents=True, exist_ok=True)
        own = {
            "node.id": str(self.number),
            "log.dirs": str(self._data),
            "listeners": f"CLIENT://127.0.0.1:{self.port},BROKER://127.0.0.1:{self.broker_port}"
            f",CONTROLLER://127.0.0.1:{self.controller_port}",
            "advertised.listeners": f"CLIENT://127.0.0.1:{self.port},BROKER://127.0.0.1:{self.broker_port}",
        }
        lines = [f"{name}={value}\n" for name, value in {**own, **settings}.items()]
        self._properties.write_text("".join(lines))
        self._properties.chmod(0o600)
        if (self._data / "meta.properties").exists():
            return None
        words = ["kafka.tools.StorageTool", "format", f"--cluster-id={cluster_id}", "-c", str(self._properties)]
        with self._format_log.open("wb") as log:
            return subprocess.Popen(
                java_command("-Xmx128m", *QUICK_START, *words),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=child_process.environment_of(self.directory),
            )

    def check(self) -> None:
        """Raises UnreachableError where the process was started and has ended by itself."""
        if self._child is not None and self._child.exit_code is not None:
            raise UnreachableError(f"Node {self.number} of the private Kafka ended.", f"Its log ends: {self.log_end()}")

    def log_end(self) -> str:
        """The last lines of what it said: of the process, or of the formatting before it."""
        for file in (self.log, self._format_log):
            if file.exists():
                return file.read_text(errors="replace")[-1500:].strip()
        return "(no log)"

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    @property
    def _format_log(self) -> Path:
        return self.directory / "format.log"

    @property
    def _properties(self) -> Path:
        return self.directory / "server.properties"

    def _end(self, how: Any) -> None:
        if self._child is not None:
            self._child.end(how, _STOP_TIMEOUT)
            self._child = None


class PrivateKafka:
    """A cluster of ``nodes`` on 127.0.0.1.

    ``directory``: where data and logs live, kept across runs; None: a scratch directory, deleted by `stop`.
    ``users``: names and passwords; clients must then log in (SASL PLAIN without TLS). ``settings``: more of
    server.properties, for every node. ``jvm``: more words for Java, such as `QUICK_START`.
    """

    def __init__(
        self,
        nodes: int = 1,
        *,
        directory: Path | None = None,
        users: Mapping[str, str] | None = None,
        settings: Mapping[str, str] | None = None,
        jvm: Sequence[str] = (),
    ) -> None:
        self._scratch = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix="sentstream-kafka-"))
        self._users = dict(users or {})
        self._more = dict(settings or {})
        self._count = nodes
        self._jvm = (*_JVM, *jvm)
        self.nodes: tuple[Node, ...] = ()

    def __enter__(self) -> PrivateKafka:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def bootstrap(self) -> str:
        """``host:port`` of every node, for ``KAFKA_BOOTSTRAP_SERVERS``."""
        return ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def client(self) -> dict[str, Any]:
        """Keyword arguments for kafka-python's clients: address, and the first user where there are users."""
        arguments: dict[str, Any] = {"bootstrap_servers": self.bootstrap.split(",")}
        for name, password in list(self._users.items())[:1]:
            arguments |= {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN"}
            arguments |= {"sasl_plain_username": name, "sasl_plain_password": password}
        return arguments

    def start(self) -> None:
        """Fetches Kafka if need be, makes and starts all nodes that don't run, returns when the cluster serves."""
        if not self.nodes:
            self._make_nodes()
        for node in self.nodes:
            node.start()
        self.wait()

    def wait(self, timeout: float = _START_TIMEOUT) -> None:
        """Returns when every node that runs is a member of the cluster and takes requests."""
        deadline = time.monotonic() + timeout
        absent: list[int] = []
        while time.monotonic() < deadline:
            for node in self.nodes:
                node.check()
            absent = [node.number for node in self.nodes if node.running and not self._serves(node)]
            if not absent:
                return
            time.sleep(0.1)
        ends = "; ".join(f"node {node.number}: {node.log_end()[-500:]}" for node in self.nodes)
        raise UnreachableError(
            f"Of the private Kafka the nodes {absent} did not serve after {timeout:g} seconds.", f"Logs end: {ends}"
        )

    def kill(self) -> None:
        """Every node at once, as when the machine goes. `start` brings them back with their data."""
        for node in self.nodes:
            node.kill()

    def stop(self) -> None:
        """Orderly; the nodes of a scratch directory are killed, and the directory is deleted."""
        for node in self.nodes:
            if self._scratch:
                node.kill()
            else:
                node.stop()
        if self._scratch:
            child_process.remove(self.directory)

    def _make_nodes(self) -> None:
        fetch()
        self.nodes = tuple(
            Node(
                number,
                self.directory / f"node-{number}",
                [child_process.free_port() for _ in range(3)],
                self._jvm,
                self.directory if self._scratch else None,
            )
            for number in range(1, self._count + 1)
        )
        cluster_id = self._cluster_id()
        settings = self._settings()
        formatting = [(node, node.prepare(settings, cluster_id)) for node in self.nodes]
        for node, process in formatting:
            if process is not None and process.wait():
                raise UnreachableError(
                    f"The storage of node {node.number} of the private Kafka could not be made in {node.directory}.",
                    f"The log ends: {node.log_end()}",
                )

    def _cluster_id(self) -> str:
        """Kept beside the data: a node that is formatted later must join the same cluster."""
        self.directory.mkdir(parents=True, exist_ok=True)
        file = self.directory / "cluster-id"
        if not file.exists():
            file.write_text(base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("="))
        return file.read_text()

    def _settings(self) -> dict[str, str]:
        copies = str(min(self._count, 3))
        at_least = str(max(min(self._count, 3) - 1, 1))
        settings = {
            "process.roles": "broker,controller",
            "controller.quorum.voters": ",".join(f"{n.number}@127.0.0.1:{n.controller_port}" for n in self.nodes),
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "BROKER",
            "listener.security.protocol.map": "CLIENT:PLAINTEXT,BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "num.partitions": "1",
            "default.replication.factor": copies,
            "min.insync.replicas": at_least,
            "auto.create.topics.enable": "false",
            "num.network.threads": "2",
            "num.io.threads": "4",
            "log.cleaner.dedupe.buffer.size": "4194304",
            "offsets.topic.num.partitions": "4",
            "offsets.topic.replication.factor": copies,
            "transaction.state.log.num.partitions": "1",
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": at_least,
            "share.coordinator.state.topic.num.partitions": "1",
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": at_least,
            "group.initial.rebalance.delay.ms": "0",
            # a broker that was killed may register again only when its last session is over
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            "controlled.shutdown.enable": "true",
        }
        if self._users:
            logins = " ".join(f'user_{name}="{password}"' for name, password in self._users.items())
            module = "org.apache.kafka.common.security.plain.PlainLoginModule"
            settings |= {
                "listener.security.protocol.map": "CLIENT:SASL_PLAINTEXT,BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT",
                "listener.name.client.sasl.enabled.mechanisms": "PLAIN",
                "listener.name.client.plain.sasl.jaas.config": f"{module} required {logins};",
            }
        return {**settings, **self._more}

    def _serves(self, node: Node) -> bool:
        """Whether ``node`` itself answers, and is a member. Other nodes may still report what it was before it died."""
        from kafka import KafkaAdminClient  # noqa: PLC0415 - slow to import, needed only here
        from kafka.errors import KafkaError  # noqa: PLC0415

        try:  # the client would retry, ever more slowly, and log each time
            socket.create_connection(("127.0.0.1", node.port), timeout=1).close()
        except OSError:
            return False
        only = {**self.client(), "bootstrap_servers": [f"127.0.0.1:{node.port}"]}
        try:
            admin = KafkaAdminClient(**only, request_timeout_ms=3000, bootstrap_timeout_ms=1000)
        except KafkaError:
            return False
        try:
            brokers = admin.describe_cluster()["brokers"]
        except KafkaError:
            return False
        finally:
            admin.close()
        return any(broker["broker_id"] == node.number and not broker.get("is_fenced") for broker in brokers)


def _around(command: Sequence[str]) -> int:
    """Runs ``command`` with a private Kafka in SENTSTREAM_KAFKA_BOOTSTRAP_SERVERS, its data kept in the user's cache.
    Ctrl-C reaches the command from the terminal, SIGTERM through this process; the broker stops after the command."""
    with PrivateKafka(directory=CACHE.expanduser() / "broker") as kafka:
        environment = {**os.environ, "SENTSTREAM_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap}
        process = subprocess.Popen(command, env=environment)
        signal(SIGINT, lambda *_: None)
        signal(SIGTERM, lambda *_: process.terminate())
        return process.wait()


if __name__ == "__main__":
    # alone: fetch Kafka; with a command: run it with a private Kafka
    try:
        if sys.argv[1:]:
            sys.exit(_around(sys.argv[1:]))
        print(fetch())
    except KeyboardInterrupt:
        sys.exit(130)
    except SentstreamError as error:
        print(f"sentstream: {error}", file=sys.stderr)
        sys.exit(error.code)
