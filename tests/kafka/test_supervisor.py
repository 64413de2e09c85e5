"""`run` with Kafka: four roles as children, started again when they die, ended in order; and liveness by progress."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from stream.config.settings import Settings
from stream.config.sources import to_environment
from stream.kafka.supervisor import Role, Supervisor, roles_of
from stream.service import watchdog
from tests.kafka.shape import Shape, load
from tests.postgres.running import add_campaign, shown, truth
from tests.waiting import eventually

SLEEPER = [sys.executable, "-c"]


def settings() -> Settings:
    return Settings(database_url="postgresql://nowhere/x", kafka_bootstrap_servers=("127.0.0.1:1",))


def sleeping(name: str, code: str) -> Role:
    return Role(name, (code,))


def test_the_roles_and_their_order() -> None:
    several = settings().model_copy(update={"kafka_workers": 2, "kafka_instance": "mail"})
    assert [(role.name, role.words) for role in roles_of(several)] == [
        ("read", ("read",)),
        ("work 1", ("work", "--kafka-instance", "mail-1")),
        ("work 2", ("work", "--kafka-instance", "mail-2")),
        ("reconcile", ("reconcile",)),
        ("serve", ("serve",)),
    ]
    assert [role.name for role in roles_of(settings().model_copy(update={"http_listen": "off"}))] == [
        "read",
        "work",
        "reconcile",
    ]


def run(supervisor: Supervisor) -> tuple[threading.Thread, list[int]]:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(supervisor.run()), daemon=True)
    thread.start()
    return thread, codes


def test_what_dies_is_started_again_and_what_is_stopped_ends_in_order(tmp_path: Path) -> None:
    order, ready = tmp_path / "order", tmp_path / "ready"
    code = (
        "import signal, sys, time\n"
        f"def end(*_): open({str(order)!r}, 'a').write(sys.argv[-1] + ' '); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        f"open({str(ready)!r}, 'a').write('ready ')\n"
        "while True: time.sleep(0.05)\n"
    )
    roles = [Role(name, (code, name)) for name in ("read", "work", "reconcile")]
    supervisor = Supervisor(settings(), roles, SLEEPER)
    thread, codes = run(supervisor)
    eventually(lambda: ready.exists() and len(ready.read_text().split()) == 3)
    killed = roles[1].process
    assert killed is not None
    killed.kill()
    eventually(lambda: roles[1].deaths == 1 and roles[1].process is not None and roles[1].process is not killed)
    eventually(lambda: len(ready.read_text().split()) == 4)
    supervisor.stop.set()
    thread.join(20)
    assert codes == [0]
    # the last word of a child's command line is the supervisor's process id
    assert len(order.read_text().split()) == 3


@pytest.mark.parametrize(("code", "expected"), [(1, 1), (2, 2), (3, 3)])
def test_what_trying_again_does_not_cure_ends_all(code: int, expected: int) -> None:
    roles = [Role("read", (f"import sys, time; time.sleep(0.2); sys.exit({code})",)), Role("work", ("input()",))]
    roles[1] = Role("work", ("import time; time.sleep(60)",))
    thread, codes = run(Supervisor(settings(), roles, SLEEPER))
    thread.join(20)
    assert codes == [expected]
    process = roles[1].process
    assert process is not None
    assert process.poll() == -signal.SIGTERM


def test_a_child_gets_no_secret_that_it_has_no_use_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_TOKEN", "NOTIFY_URL_FILE", "KAFKA_SASL_PASSWORD"):
        monkeypatch.setenv(f"SENTSTREAM_{name}", "x")
    found = tmp_path / "found"
    roles = [replace(role, words=(_SHOWS_ITS_ENVIRONMENT, str(found / role.name))) for role in roles_of(settings())]
    found.mkdir()
    thread, _ = run(supervisor := Supervisor(settings(), roles, SLEEPER))
    eventually(lambda: len(list(found.glob("[a-z]*"))) == len(roles))
    supervisor.stop.set()
    thread.join(20)
    given = {path.name: set(path.read_text().split()) for path in found.glob("[a-z]*")}
    assert given["read"] == {"KAFKA_SASL_PASSWORD"}
    assert given["reconcile"] == {"NOTIFY_URL_FILE"}


_SHOWS_ITS_ENVIRONMENT = """
import os, pathlib, sys, time
names = [name[11:] for name in os.environ if name.startswith("SENTSTREAM_") and os.environ[name] == "x"]
path = pathlib.Path(sys.argv[1])
path.with_name("." + path.name).write_text(" ".join(names))
os.replace(path.with_name("." + path.name), path)
time.sleep(60)
"""


def test_roles_that_hang_are_gone_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.kafka.supervisor.PATIENCE", 2.0)
    monkeypatch.setattr("stream.kafka.supervisor.ORDERLY", 0.2)
    hangs = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    roles = [Role(name, (hangs,)) for name in ("read", "work", "reconcile")]
    thread, codes = run(supervisor := Supervisor(settings(), roles, SLEEPER))
    eventually(lambda: all(role.process is not None for role in roles))
    supervisor.stop.set()
    thread.join(15)
    assert codes == [0]
    assert all(role.process is not None and role.process.poll() is not None for role in roles)


def test_children_end_with_the_supervisor(tmp_path: Path) -> None:
    """Even where it is killed: nobody would end them otherwise."""
    child = "import threading, sys; from stream.service.watchdog import end_with; import os\n"
    pid_file = tmp_path / "pid"
    child += "end_with(int(sys.argv[-1]));"
    child += f"open({str(pid_file)!r}, 'w').write(str(os.getpid())); threading.Event().wait()"
    parent = (
        "import subprocess, sys, os, time\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}, str(os.getpid())])\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", parent])
    pid = eventually(lambda: int(pid_file.read_text() or 0) if pid_file.exists() else 0, 20)
    process.kill()
    process.wait()

    def gone() -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"

    eventually(gone, 20)


def test_a_role_that_stands_still_while_there_is_work_is_noticed() -> None:
    moved, said = time.monotonic(), threading.Event()
    words: list[str] = []

    def stall(why: str) -> None:
        words.append(why)
        said.set()

    work: list[str | None] = [None]
    standing = watchdog.Watchdog(lambda: moved, lambda: work[0], lambda: 0.4, stall)
    standing.start()
    assert not said.wait(1.5)  # nothing to do: standing still is right
    work[0] = "there are records"
    assert said.wait(5)
    assert "there are records" in words[0]


def test_a_role_that_moves_is_left_alone() -> None:
    said = threading.Event()
    standing = watchdog.Watchdog(time.monotonic, lambda: "work", lambda: 0.2, lambda _: said.set())
    standing.start()
    assert not said.wait(1)
    standing.stop()


def test_a_restart_keeps_the_arguments_and_counts() -> None:
    code = (
        "import sys; from stream.service.watchdog import restart\n"
        "at = sys.argv.index('--stalls') if '--stalls' in sys.argv else 0\n"
        "stalls = int(sys.argv[at + 1]) if at else 0\n"
        "print(stalls, *sys.argv[1:], flush=True)\n"
        "restart('it stood still', stalls) if stalls < 2 else None\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--a", "b"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines() == ["0 --a b", "1 --a b --stalls 1", "2 --a b --stalls 2"]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_worker_that_stalls_starts_itself_anew(shape: Shape) -> None:
    """Somebody holds a lock that its flush needs: a restart does not cure that, but it is seen, said and counted."""
    add_campaign(shape.db, 1, queued=50)
    shape.start("read")
    worker = shape.start("work", name="w0", stall_restart=5.0)
    shape.until_based()
    with shape.db.connect(autocommit=False) as session, load(shape.db, 1):
        session.execute("SELECT FROM sentstream.watermarks FOR UPDATE")
        eventually(lambda: "restarting (stall 1)" in worker.said, 60)
        session.rollback()
        shape.until_right(60)
    assert worker.process.poll() is None


@pytest.mark.timeout(240)
def test_run_starts_the_whole_shape_and_ends_it(shape: Shape) -> None:
    add_campaign(shape.db, 1, queued=50)
    environment = {**os.environ, **to_environment(shape.settings)}
    log = shape.folder / "run.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "stream.cli", "run", "--no-view"], env=environment, stderr=output, stdout=output
        )
    try:
        eventually(
            lambda: shape.db.execute("SELECT 1 FROM sentstream.watermarks HAVING bool_and(based) AND count(*) = 4"), 60
        )
        shape.db.execute("UPDATE email_queue SET status = 'sent'")
        eventually(lambda: shown(shape.db) == {1: 50}, 20)
        assert truth(shape.db) == {1: (0, 0, 50, 0, 0)}
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()
        said = log.read_text()
        assert "Traceback" not in said, said
        assert said.index("read ended") < said.index("work ended") < said.index("reconcile ended")
    finally:
        process.kill()
        process.wait()
