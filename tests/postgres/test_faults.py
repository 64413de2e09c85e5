"""Whatever is killed and when: counts are right afterwards, nothing is lost and nothing is counted twice."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import psycopg
import pytest

from connectors.postgres.connect import connect
from stream.core.errors import PreconditionError
from stream.embedded import run
from stream.service.failpoints import PLACES
from tests.fix_postgres import Database
from tests.fix_proxy import Proxy
from tests.postgres.processes import sentstream
from tests.postgres.running import add_campaign, at_rest, based, count, prepared, running, settings_for, streaming
from tests.waiting import eventually


@contextmanager
def mailing(db: Database, seed: int = 1, campaigns: int = 4) -> Iterator[None]:
    """Changes of every kind, one transaction after the other, until the block ends; a restarted server is no end."""
    stop = threading.Event()

    def work() -> None:
        random = Random(seed)
        while not stop.is_set():
            try:
                with connect(db.url, "mailer") as session:
                    while not stop.is_set():
                        _change(session, random, campaigns)
            except (psycopg.Error, Exception):
                stop.wait(0.05)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(20)


def _change(session: psycopg.Connection[tuple[object, ...]], random: Random, campaigns: int) -> None:
    campaign, act = random.randint(1, campaigns), random.random()
    if act < 0.25:
        statement = (
            "INSERT INTO email_queue (campaign_id, subscriber_id) SELECT %(c)s, 1 FROM generate_series(1, %(n)s::int)"
        )
    elif act < 0.85:
        old, new = random.choice(
            [("queued", "sending"), ("sending", "sent"), ("sending", "failed"), ("sent", "queued")]
        )
        statement = (
            f"UPDATE email_queue SET status = '{new}' WHERE id IN (SELECT id FROM email_queue"
            f" WHERE campaign_id = %(c)s AND status = '{old}' ORDER BY id LIMIT %(n)s::int)"
        )
    elif act < 0.97:
        statement = (
            "DELETE FROM email_queue WHERE id IN (SELECT id FROM email_queue WHERE campaign_id = %(c)s"
            " ORDER BY id LIMIT %(n)s::int)"
        )
    else:
        statement = "UPDATE campaigns SET to_send = to_send + %(n)s::int WHERE id = %(c)s"
    session.execute(statement.encode(), {"c": campaign, "n": random.randint(1, 5)})


def right(db: Database, removed_is_exact: bool = True) -> None:
    """At rest: counters, history, and a recount without drift."""
    at_rest(db)
    eventually(lambda: conclusive(db), 60)
    assert db.execute("SELECT campaign_id, cause, before, after FROM sentstream.verdicts WHERE verdict = 'drift'") == []
    # a gap that a new baseline has healed was a loss all the same
    healed = "SELECT campaign_id, cause FROM sentstream.verdicts WHERE cause IN ('gap', 'rows_vanished_unwatched')"
    assert db.execute(healed) == []
    wrong = db.execute(
        "SELECT p.campaign_id, p.sent, coalesce(sum(h.sent), 0) FROM sentstream.progress p"
        " LEFT JOIN sentstream.history h USING (campaign_id) GROUP BY 1, 2 HAVING p.sent <> coalesce(sum(h.sent), 0)"
    )
    assert wrong == []
    if removed_is_exact:
        audit = dict(db.execute("SELECT campaign_id, count(*)::int FROM gone GROUP BY 1"))
        assert dict(db.execute("SELECT campaign_id, removed::int FROM sentstream.progress WHERE removed > 0")) == audit


def conclusive(db: Database) -> bool:
    """Count once more; whether that could be compared (not while a transaction older than the reader is open)."""
    with db.connect() as session:
        run = count(session)
    answers = "SELECT conclusive FROM sentstream.answers WHERE run_id = %s"
    return all(row[0] for row in eventually(lambda: db.execute(answers, run.run_id), 30))


def watched(db: Database) -> Database:
    """Set up, with campaigns, and an audit of our own: every row that was sent when it was deleted."""
    prepared(db)
    for number in range(1, 5):
        add_campaign(db, number, queued=20, sending=5, sent_rows=10)
    db.execute(
        "CREATE TABLE gone (campaign_id int);"
        "CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        "  IF OLD.status = 'sent' THEN INSERT INTO gone VALUES (OLD.campaign_id); END IF; RETURN OLD; END $$;"
        "CREATE TRIGGER audit AFTER DELETE ON email_queue FOR EACH ROW EXECUTE FUNCTION audit()"
    )
    return db


#: of the steps that follow one another without another effect between them one is enough for every day
_ALSO = ("before_apply", "after_swap", "after_confirm", "before_fold", "after_fold", "before_flush")


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(place, marks=pytest.mark.slow) if place in _ALSO else place
        for place in PLACES
        if not place.endswith("_send")
    ],
)
def test_kill_9_at_every_step(mailer_db: Database, tmp_path: Path, place: str) -> None:
    db = watched(mailer_db)
    with sentstream(db, tmp_path / "1.log"):
        based(db)
    with mailing(db):
        for nth in (1, 6):
            with sentstream(db, tmp_path / "2.log", failpoints=f"{place}=kill:{nth}") as process:
                assert process.wait(30) == -signal.SIGKILL
    with sentstream(db, tmp_path / "3.log") as process:
        right(db)
        process.send(signal.SIGTERM)
        assert process.wait() == 0


def test_kill_9_at_random_under_load(mailer_db: Database, tmp_path: Path) -> None:
    db = watched(mailer_db)
    random = Random(7)
    with sentstream(db, tmp_path / "0.log"):
        based(db)
    with mailing(db):
        for number in range(5):
            with sentstream(db, tmp_path / f"{number}.log") as process:
                process.says("reading from")
                threading.Event().wait(random.uniform(0.0, 0.7))  # a random moment is what is tested
                process.kill()
    with sentstream(db, tmp_path / "last.log"):
        right(db)


def test_kill_9_of_the_server(private_mailer_db: Database, tmp_path: Path) -> None:
    db = watched(private_mailer_db)
    server = db.server
    with sentstream(db, tmp_path / "run.log"):
        based(db)
        with mailing(db):
            for _ in range(3):
                eventually(lambda: db.value("SELECT sum(sent) FROM campaigns") > 0, 20)
                server.kill()  # type: ignore[attr-defined]
                server.start()  # type: ignore[attr-defined]
                eventually(lambda: _reads(db), 20)
        right(db)


def _reads(db: Database) -> bool:
    return bool(db.value("SELECT active FROM pg_replication_slots WHERE slot_name = %s", db.slot))


CUTS: dict[str, Callable[[Proxy], None]] = {
    "cut": lambda proxy: proxy.cut(),
    "cut_in_the_middle_of_a_message": lambda proxy: proxy.cut_after(777),
    "cut_in_the_middle_of_a_question": lambda proxy: proxy.cut_after(55, answers=False),
    "cut_at_the_answer_to_commit": lambda proxy: proxy.cut_at(b"COMMIT\x00"),
}


@pytest.mark.parametrize("name", CUTS)
def test_a_cut_connection(mailer_db: Database, tmp_path: Path, proxy: Callable[..., Proxy], name: str) -> None:
    db = watched(mailer_db)
    between = proxy(db.url)
    with sentstream(db, tmp_path / "run.log", database_url=between.url(db.url)) as process:
        based(db)
        with mailing(db):
            for lives in range(2, 5):
                CUTS[name](between)
                eventually(lambda lives=lives: process.said.count("reading from") >= lives, 20)  # type: ignore[misc]
        right(db)


def test_a_stalled_connection_goes_on(mailer_db: Database, tmp_path: Path, proxy: Callable[..., Proxy]) -> None:
    db = watched(mailer_db)
    between = proxy(db.url)
    with sentstream(db, tmp_path / "run.log", database_url=between.url(db.url)):
        based(db)
        with mailing(db):
            between.stall()
            before = db.value("SELECT max(flushed_at) FROM sentstream.watermarks")
            threading.Event().wait(3)  # the stall is what is tested
            between.resume()
            eventually(lambda: db.value("SELECT max(flushed_at) FROM sentstream.watermarks") > before, 20)
        right(db)


def test_two_runs_one_works_the_other_takes_over(mailer_db: Database, tmp_path: Path) -> None:
    db = watched(mailer_db)
    with sentstream(db, tmp_path / "one.log") as one:
        based(db)
        with sentstream(db, tmp_path / "two.log") as two, mailing(db):
            two.says("waiting for the slot")
            assert "PID" in two.said
            one.kill()
            two.says("reading from", 20)
            eventually(lambda: _reads(db))
        with sentstream(db, tmp_path / "three.log"):
            right(db)


def test_a_stopped_run_is_replaced_and_its_late_writes_are_refused(private_mailer_db: Database, tmp_path: Path) -> None:
    db = watched(private_mailer_db)
    db.execute("ALTER SYSTEM SET wal_sender_timeout = '2s'")
    db.execute("SELECT pg_reload_conf()")
    with sentstream(db, tmp_path / "one.log", failpoints="before_flush=stop:12") as one:
        based(db)
        with mailing(db):
            eventually(lambda: _stopped(one.pid), 20)
            with sentstream(db, tmp_path / "two.log") as two:
                two.says("reading from", 30)
                before = db.value("SELECT lsn FROM sentstream.watermarks")
                eventually(lambda: db.value("SELECT lsn > %s FROM sentstream.watermarks", before), 10)
                one.send(signal.SIGCONT)
                one.says("connecting again", 20)  # by the fence, or by its lost reader, whichever it meets first
                eventually(lambda: db.value("SELECT lsn > %s FROM sentstream.watermarks", before), 10)
        right(db)


def _stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


def test_a_start_is_followed_by_news_at_once(mailer_db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """`run --once` and a fresh page need not wait for the first tick, which here never comes."""
    db = watched(mailer_db)
    with running(db):
        based(db)
    now = db.value("SELECT clock_timestamp()")
    monkeypatch.setattr("stream.pipeline.server_watch.TICK", 3600.0)
    monkeypatch.setattr("stream.pipeline.wal_reader.TICK", 3600.0)
    with streaming(db):
        eventually(lambda: db.value("SELECT as_of FROM sentstream.watermarks") > now)


def test_run_once_does_not_wait_for_ever_beside_another(mailer_db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    db = watched(mailer_db)
    monkeypatch.setattr("stream.embedded.run.ONCE_PATIENCE", 0.5)
    with running(db):
        based(db)
        with pytest.raises(PreconditionError, match=rf"the slot {db.slot}: it is active for PID \d+ \(sentstream"):
            run.run(settings_for(db), once=True)


def test_run_once_counts_once_after_a_backlog_that_was_read_by_sql(mailer_db: Database) -> None:
    """The session that reads by SQL gives way to one that reads live, which alone can conclude a recount."""
    db = watched(mailer_db)
    with running(db):
        based(db)
    with db.connect() as mailer:
        for _ in range(50):
            mailer.execute("UPDATE email_queue SET status = 'queued'")
            mailer.execute("UPDATE email_queue SET status = 'sent'")
    already = db.value("SELECT max(run_id) FROM sentstream.recounts")
    assert run.run(settings_for(db, catchup_threshold=32768), once=True) == 0
    assert db.value("SELECT max(run_id) FROM sentstream.recounts") == already + 1


def test_run_once_on_a_backlog(mailer_db: Database, tmp_path: Path) -> None:
    db = watched(mailer_db)
    with sentstream(db, tmp_path / "1.log", "run", "--once") as process:
        assert process.wait(60) == 0, process.said
    with mailing(db):
        eventually(lambda: db.value("SELECT count(*) FROM email_queue") > 400, 30)
    with sentstream(db, tmp_path / "2.log", "run", "--once") as process:
        assert process.wait(60) == 0, process.said
    at_rest(db)
    assert db.value("SELECT status FROM sentstream.recounts ORDER BY run_id DESC LIMIT 1") == "sealed"


def test_sigterm_ends_it_while_the_server_hangs(
    mailer_db: Database, tmp_path: Path, proxy: Callable[[str], Proxy]
) -> None:
    db = watched(mailer_db)
    between = proxy(db.url)
    with sentstream(db, tmp_path / "run.log", database_url=between.url(db.url)) as process:
        based(db)
        between.stall()
        db.execute("UPDATE email_queue SET status = 'sent'")
        process.send(signal.SIGTERM)
        assert process.wait(20) == 0, process.said


def test_sigterm_at_the_first_connect_to_a_silent_server_is_an_orderly_end(
    mailer_db: Database, tmp_path: Path, proxy: Callable[[str], Proxy]
) -> None:
    db = watched(mailer_db)
    between = proxy(db.url)
    between.stall()
    with sentstream(db, tmp_path / "run.log", database_url=between.url(db.url)) as process:
        eventually(lambda: between.accepted)
        process.send(signal.SIGTERM)
        assert process.wait(20) == 0, process.said


def test_a_rotated_database_url_is_read_again_at_each_connect(
    mailer_db: Database, tmp_path: Path, proxy: Callable[[str], Proxy]
) -> None:
    db = watched(mailer_db)
    old, secret = proxy(db.url), tmp_path / "url"
    secret.write_text(old.url(db.url))
    with sentstream(db, tmp_path / "run.log", database_url="", database_url_file=str(secret)) as process:
        based(db)
        secret.write_text(db.url)
        old.refuse()
        old.cut()
        db.execute("UPDATE email_queue SET status = 'sent'")
        at_rest(db)
        process.send(signal.SIGTERM)
        assert process.wait(20) == 0, process.said
