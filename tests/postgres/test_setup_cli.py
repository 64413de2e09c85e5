"""The commands setup, teardown and doctor as people and programs meet them: output, JSON, exit codes."""

from __future__ import annotations

import io
import json
import subprocess
from typing import Any

import pytest

from connectors.kafka.cluster import Cluster
from connectors.kafka.topics import Difference
from stream.cli import main
from stream.config.settings import Settings
from stream.demo.child_process import free_port
from stream.demo.installations import find_installations
from tests.fix_postgres import Database
from tests.postgres.preparing import differences, fill, own_tables, prepare, take_off


class Terminal:
    """Runs commands on one database and keeps what they printed."""

    def __init__(self, db: Database, capsys: pytest.CaptureFixture[str]) -> None:
        self.db = db
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, *words: str, url: str = "") -> int:
        code = main([*words, "--database-url", url or self.db.url, "--slot-name", self.db.slot])
        self.out, self.err = self._capsys.readouterr()
        return code

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def sentstream(mailer_db: Database, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    return Terminal(mailer_db, capsys)


def test_check_says_what_is_missing_and_what_comes_next(sentstream: Terminal) -> None:
    assert sentstream("setup", "--check") == 1
    assert "missing  Publication sentstream" in sentstream.out
    assert "`sentstream setup`" in sentstream.out
    assert sentstream("setup", "--check", "--part", "owner") == 1
    assert "`sentstream setup --part owner`" in sentstream.out
    assert sentstream("setup") == 0
    assert "- Publication sentstream" in sentstream.err
    assert "sentstream run" in sentstream.out
    assert sentstream("setup", "--check") == 0
    assert "in place" in sentstream.out


@pytest.fixture
def nobody(sentstream: Terminal, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """PostgreSQL is set up; the options that name a broker where none listens."""
    patience(monkeypatch)
    assert sentstream("setup") == 0
    return "--kafka-bootstrap-servers", f"127.0.0.1:{free_port()}"


def test_check_says_no_more_than_it_knows_where_kafka_does_not_answer(
    sentstream: Terminal, nobody: tuple[str, str]
) -> None:
    assert sentstream("setup", "--check", *nobody) == 3
    assert sentstream.out == "What setup makes in PostgreSQL is in place.\n"
    (line,) = sentstream.err.splitlines()
    assert line.startswith("sentstream: Kafka's topics could not be looked at: Kafka at 127.0.0.1:")
    assert "KAFKA_BOOTSTRAP_SERVERS" in line
    assert sentstream("setup", "--check", "--json", *nobody) == 3
    assert sentstream.json["missing"] == []
    assert len(sentstream.err.splitlines()) == 1


def test_topics_that_are_missing_and_made_are_told(sentstream: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """With PostgreSQL in place already: a check fails, and what was made is not called in place."""
    there: set[str] = set()

    def ensure(settings: Settings, *, create_missing: bool | None = None) -> list[Difference]:
        names = [f"{settings.kafka_topic_prefix}.{name}" for name in ("changes", "progress", "verdicts")]
        if create_missing is not False:
            there.update(names)
        return [
            Difference(name, "missing", f"The topic {name} does not exist.", "kafka-topics.sh ...")
            for name in names
            if name not in there
        ]

    monkeypatch.setattr("stream.cli.topics.ensure", ensure)
    assert sentstream("setup") == 0
    broker = ("--kafka-bootstrap-servers", "127.0.0.1:1")
    assert sentstream("setup", "--check", *broker) == 1
    assert "missing  The topic sentstream.changes does not exist. `sentstream setup` makes it" in sentstream.out
    assert sentstream("setup", "--check", "--json", *broker) == 1
    assert sentstream.json["topics"][0]["topic"] == "sentstream.changes"
    assert sentstream("setup", "--check", "--part", "owner", *broker) == 0
    assert sentstream("setup", *broker) == 0
    assert "in place" not in sentstream.out
    assert sentstream.err.count("- Topic sentstream.") == 3
    assert sentstream("setup", *broker) == 0
    assert "in place already" in sentstream.out
    assert sentstream("setup", "--check", *broker) == 0


def test_doctor_says_that_kafka_does_not_answer_and_its_client_says_nothing(
    sentstream: Terminal, nobody: tuple[str, str]
) -> None:
    assert sentstream("doctor", "--quiet", *nobody) == 1
    assert "kafka_reachable" in sentstream.out
    assert sentstream.err == ""
    assert sentstream("doctor", "--quiet", "-v", *nobody) == 1
    assert "kafka" in sentstream.err


def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that gives a broker up after a second instead of ten."""
    admin = Cluster.admin
    monkeypatch.setattr(Cluster, "admin", lambda cluster: admin(cluster, timeout=1.0))


def test_setup_for_programs(sentstream: Terminal) -> None:
    assert sentstream("setup", "--check", "--json") == 1
    plan = sentstream.json
    assert [step["code"] for step in plan["missing"]][-1] == "slot"
    assert {"code", "purpose", "part", "sql"} == set(plan["missing"][0])
    assert plan["obstacles"] == []
    assert sentstream("setup", "--json") == 0
    assert len(sentstream.json["done"]) == len(plan["missing"])
    assert sentstream("setup", "--json") == 0
    assert sentstream.json["done"] == []


def test_an_obstacle_is_told_with_its_fix_and_exit_code_1(sentstream: Terminal) -> None:
    sentstream.db.execute("ALTER TABLE email_queue SET UNLOGGED")
    assert sentstream("setup") == 1
    assert "ALTER TABLE public.email_queue SET LOGGED;" in sentstream.err
    assert "Traceback" not in sentstream.err
    assert sentstream("setup", "--check") == 1
    assert "in the way" in sentstream.err
    assert sentstream("setup", "--dry-run") == 1


@pytest.mark.system
def test_the_dry_run_of_each_part_goes_through_psql(sentstream: Terminal) -> None:
    """As `sentstream setup --dry-run | psql`."""
    psql = next(found.bindir / "psql" for found in find_installations() if (found.bindir / "psql").exists())
    for part in ("owner", "replication"):
        assert sentstream("setup", "--dry-run", "--part", part) == 0
        words = [str(psql), "-X", "-q", "-d", sentstream.db.url]
        done = subprocess.run(words, input=sentstream.out, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
    assert differences(sentstream.db) == set()
    assert sentstream("setup", "--dry-run") == 0
    assert "nothing to do" in sentstream.out
    assert sentstream("teardown", "--dry-run") == 0
    done = subprocess.run(words, input=sentstream.out, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert take_off(sentstream.db).steps == ()


@pytest.mark.parametrize(
    "words",
    [
        ("--check", "--dry-run"),
        ("--part", "replication", "--role", "somebody"),
        ("--part", "replication", "--release-columns"),
        ("--part", "both"),
        ("--replica-identity", "default"),
    ],
)
def test_what_does_not_go_together_is_a_usage_error(sentstream: Terminal, words: tuple[str, ...]) -> None:
    assert sentstream("setup", *words) == 2


def test_a_server_that_is_not_there(sentstream: Terminal) -> None:
    for command in (("setup",), ("doctor",), ("teardown", "--yes")):
        assert sentstream(*command, url="postgresql://u:secret@127.0.0.1:1/x") == 3
        assert "secret" not in sentstream.err


def test_teardown_asks_first(sentstream: Terminal) -> None:
    prepare(sentstream.db)
    assert sentstream("teardown") == 2
    assert "--yes" in sentstream.err
    assert differences(sentstream.db) == set()
    assert sentstream("teardown", "--yes") == 0
    assert "- Drop slot" in sentstream.err
    assert sentstream("teardown") == 0, "nothing to ask when nothing is left"
    assert "Nothing of sentstream is left" in sentstream.out


def test_teardown_and_setup_leave_the_mailers_counters(sentstream: Terminal) -> None:
    fill(sentstream.db)
    sentstream.db.execute("UPDATE campaigns SET sent = 20323")
    assert sentstream("setup") == 0
    assert sentstream("teardown", "--yes") == 0
    assert sentstream("setup") == 0
    assert sentstream.db.value("SELECT sent FROM campaigns") == 20323


def test_teardown_by_the_wrong_role(sentstream: Terminal) -> None:
    db = sentstream.db
    owner = db.role("LOGIN")
    own_tables(db, owner)
    prepare(db, user=owner, part="owner")
    prepare(db, part="replication")
    assert sentstream("teardown", "--yes", url=db.url_of(owner)) == 1
    assert "as a role with REPLICATION" in sentstream.err


def test_two_roles_set_up_and_take_off_their_parts(sentstream: Terminal) -> None:
    """Each is told what the other has to do."""
    db = sentstream.db
    owner, runner = db.role("LOGIN"), db.role("LOGIN REPLICATION")
    own_tables(db, owner)
    assert sentstream("setup", "--part", "owner", "--role", runner, url=db.url_of(owner)) == 0
    assert "Next: `sentstream setup --part replication` as a role with REPLICATION." in sentstream.out
    assert sentstream("setup", "--part", "replication", url=db.url_of(runner)) == 0
    assert "Next: run `sentstream doctor`" in sentstream.out
    assert sentstream("teardown", "--yes", "--part", "owner", url=db.url_of(owner)) == 1
    assert "--part replication` as a role with REPLICATION" in sentstream.err
    assert differences(db) == set()
    assert sentstream("teardown", "--yes", "--part", "replication", url=db.url_of(runner)) == 0
    assert "Next: `sentstream teardown --part owner`" in sentstream.out
    assert sentstream("teardown", "--yes", "--part", "replication", url=db.url_of(runner)) == 0
    assert "No slot is left here" in sentstream.out
    assert sentstream("teardown", "--yes", "--part", "owner", url=db.url_of(owner)) == 0
    assert take_off(db).steps == ()


def test_release_columns_says_how_to_get_back(sentstream: Terminal) -> None:
    assert sentstream("setup") == 0
    assert sentstream("setup", "--release-columns") == 0
    assert "put them back" in sentstream.out
    assert sentstream("setup", "--check") == 1
    assert sentstream("setup") == 0


def test_doctor_for_people(sentstream: Terminal) -> None:
    assert sentstream("doctor") == 1
    lines = sentstream.out.splitlines()
    assert lines[0].startswith("ok ")
    assert "critical  slot_missing" in sentstream.out
    assert "fix: `sentstream setup --part replication`" in sentstream.out
    assert lines[-1].endswith("critical")
    prepare(sentstream.db)
    assert sentstream("doctor") == 0
    assert sentstream("doctor", "--quiet") == 0
    assert "ok  " not in sentstream.out


def test_doctor_for_programs(sentstream: Terminal) -> None:
    prepare(sentstream.db)
    assert sentstream("doctor", "--json") == 0
    assert {frozenset(finding) for finding in sentstream.json} == {frozenset({"code", "severity", "finding", "fix"})}
    assert {finding["severity"] for finding in sentstream.json} <= {"ok", "warning"}
    sentstream.db.execute("DROP PUBLICATION sentstream")
    assert sentstream("doctor", "--json") == 1


def test_a_section_of_another_server_is_asked_too(sentstream: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    from stream.cli import doctor
    from stream.core.finding import critical

    prepare(sentstream.db)
    extra = doctor.Section("More", lambda _: True, lambda _: [critical("more", "No.", "Do.")])
    unused = doctor.Section("Unused", lambda _: False, lambda _: [critical("unused", "No.", "Do.")])
    monkeypatch.setattr(doctor, "SECTIONS", [*doctor.SECTIONS, extra, unused])
    assert sentstream("doctor", "--json") == 1
    assert [finding["code"] for finding in sentstream.json if finding["severity"] == "critical"] == ["more"]
