"""`progress`, `status` and `explain` on a real database with rows as a flush writes them."""

from __future__ import annotations

import json
import signal
import time
from datetime import datetime, timezone

import psycopg
import pytest

from connectors.postgres.queries.old_transaction import OldTransaction
from connectors.postgres.queries.progress import find_campaigns, read_progress
from stream.cli import words
from stream.core.errors import ConfigurationError, PreconditionError
from stream.core.progress import FIELDS
from tests.fix_postgres import Database
from tests.interfaces.fix_counted import Run, counted_db, prepared_db, process, run
from tests.waiting import eventually

__all__ = ["counted_db", "prepared_db", "run"]


def test_progress_is_what_the_flush_wrote(counted_db: Database, run: Run) -> None:
    found = run("progress", "--json", "--database-url", counted_db.url)
    assert (found.code, found.err) == (0, "")
    by_id = {campaign["campaign_id"]: campaign for campaign in found.json["campaigns"]}
    assert list(by_id) == [7, 8, 9, 10, 11]
    assert all(tuple(campaign) == FIELDS for campaign in by_id.values())
    spring = by_id[7]
    now = datetime.fromisoformat(found.json["now"].replace("Z", "+00:00"))
    assert spring.items() >= {
        "name": "Spring sale", "status": "running", "sent": 40, "queue_queued": 54, "queue_sending": 1,
        "queue_sent": 40, "queue_failed": 5, "queue_cancelled": 0, "queue_total": 100, "removed": 0, "to_send": 100,
        "percent": 40.0, "stale": False, "source": "queue",
    }.items()  # fmt: skip
    assert 12 <= spring["rate_per_minute"] <= 42
    assert datetime.fromisoformat(spring["eta"].replace("Z", "+00:00")) > now.replace(microsecond=0)
    assert abs((now - datetime.fromisoformat(spring["as_of"].replace("Z", "+00:00"))).total_seconds()) < 5
    assert spring["position"].startswith("0000000000000005.")
    assert (by_id[8]["sent"], by_id[8]["queue_sent"], by_id[8]["removed"]) == (20, 0, 20)
    assert by_id[9]["verified_at"] is None
    assert by_id[10].items() >= {"sent": 5, "percent": 10.0, "source": "mailer", "queue_total": 0, "eta": None}.items()
    assert by_id[11]["percent"] is None


def test_campaigns_are_chosen_by_id_or_exact_name(counted_db: Database, run: Run) -> None:
    def ids(*words: str) -> list[int]:
        found = run("progress", *words, "--json", "--database-url", counted_db.url)
        return [campaign["campaign_id"] for campaign in found.json["campaigns"]]

    assert ids("7") == [7]
    assert ids("Spring sale", "10") == [7, 10]
    assert ids("Twice") == [8, 9]
    for missing in ("Spring", "70", "spring sale", "%", ""):
        found = run("progress", missing, "--database-url", counted_db.url)
        assert found.code == 2
        assert f"There is no campaign with the id or the exact name {missing!r}" in found.err


def test_a_number_means_the_id_first_then_the_name(counted_db: Database) -> None:
    counted_db.execute("INSERT INTO campaigns (id, name, subject, body) VALUES (20, '7', '', ''), (21, '99', '', '')")
    with counted_db.connect() as session:
        assert find_campaigns(session, "public", ["7", "99"]) == (7, 21)
        with pytest.raises(ConfigurationError, match="'12'"):
            find_campaigns(session, "public", ["12"])


def test_without_a_terminal_progress_is_plain_lines(counted_db: Database, run: Run) -> None:
    lines = run("progress", "--database-url", counted_db.url).out.splitlines()
    assert len(lines) == 5
    assert lines[0].startswith(
        'campaign_id=7 name="Spring sale" status=running sent=40 to_send=100 percent=40.0 queued=54 sending=1 failed=5'
    )
    assert "\x1b" not in "".join(lines)


def test_watch_says_only_what_changes_and_ends_well(counted_db: Database) -> None:
    child = process("progress", "--watch", "--every", "50ms", "--json", database=counted_db)
    try:
        assert child.stdout is not None
        first = [json.loads(child.stdout.readline()) for _ in range(5)]
        assert [campaign["campaign_id"] for campaign in first] == [7, 8, 9, 10, 11]
        counted_db.execute("UPDATE sentstream.progress SET sent = 9, queue_sent = 9 WHERE campaign_id = 9")
        while (line := json.loads(child.stdout.readline()))["campaign_id"] == 7:
            pass  # its rate falls as the minute goes on
        assert (line["campaign_id"], line["sent"]) == (9, 9)
    finally:
        child.send_signal(signal.SIGINT)
    _out, err = child.communicate(timeout=20)
    assert (child.returncode, err) == (0, "")


def test_watch_survives_the_loss_of_its_connection(counted_db: Database) -> None:
    child = process("progress", "--watch", "--every", "50ms", database=counted_db)
    try:
        assert child.stdout is not None
        for _ in range(5):
            assert child.stdout.readline()
        killed = counted_db.value(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'sentstream view'"
        )
        assert killed == 1
        counted_db.execute("UPDATE sentstream.progress SET sent = 9 WHERE campaign_id = 9")
        while not (line := child.stdout.readline()).startswith("campaign_id=9 "):
            assert line
        assert "sent=9" in line
    finally:
        child.send_signal(signal.SIGTERM)
    child.communicate(timeout=20)
    assert child.returncode == 0


def test_old_numbers_are_stale_and_promise_no_eta(counted_db: Database, run: Run) -> None:
    counted_db.execute("UPDATE sentstream.watermarks SET as_of = clock_timestamp() - interval '6 s'")
    spring, *_, plain, _empty = run("progress", "--json", "--database-url", counted_db.url).json["campaigns"]
    assert (spring["stale"], spring["eta"], plain["stale"]) == (True, None, True), "who is outside is known by then"
    counted_db.execute("UPDATE sentstream.watermarks SET as_of = clock_timestamp(), based = false")
    assert run("progress", "7", "--json", "--database-url", counted_db.url).json["campaigns"][0]["stale"]
    assert "STALE" in run("progress", "7", "--database-url", counted_db.url).out


def test_the_rate_weighs_the_minute_before(counted_db: Database) -> None:
    with counted_db.connect() as session:
        read = read_progress(session, "public", [7])
    seconds = read.now.astimezone(timezone.utc).second
    assert read.campaigns[0].rate_per_minute == pytest.approx(12 + 30 * (60 - seconds) / 60, abs=1.1)


def test_the_cost_of_progress_does_not_depend_on_the_queue(counted_db: Database) -> None:
    with counted_db.connect() as session:
        read_progress(session, "public")
        session.execute("SELECT pg_stat_force_next_flush()") if counted_db.version >= 15 else None
        plan = session.execute("SELECT relname FROM pg_locks JOIN pg_class ON relation = pg_class.oid").fetchall()
        session.execute("BEGIN")
        read_progress(session, "public")
        touched = {
            name
            for (name,) in session.execute(
                "SELECT relname FROM pg_locks JOIN pg_class ON relation = pg_class.oid WHERE pid = pg_backend_pid()"
            ).fetchall()
        }
        session.execute("ROLLBACK")
    assert "email_queue" not in touched, plan
    assert "campaigns" in touched


def test_what_is_missing_is_said_with_the_next_command(mailer_db: Database, run: Run) -> None:
    found = run("progress", "--database-url", mailer_db.url)
    assert found.code == 1
    assert "Run `sentstream setup`." in found.err
    assert run("status", "--database-url", mailer_db.url).code == 1
    found = run("progress", "--mailer-schema", "elsewhere", "--database-url", mailer_db.url)
    assert (found.code, found.err.count("\n")) == (1, 1)


def test_a_role_without_rights_is_told_who_can_grant_them(counted_db: Database) -> None:
    role = counted_db.role()
    with counted_db.connect(user=role) as session, pytest.raises(PreconditionError, match="--part owner --role"):
        read_progress(session, "public")


def test_status_tells_all_there_is(counted_db: Database, run: Run) -> None:
    words = ["status", "--database-url", counted_db.url, "--slot-name", counted_db.slot]
    found = run(*words, "--json")
    status = found.json
    assert (found.code, status["alive"], status["healthy"], status["campaigns"]) == (0, True, True, 3)
    assert status["slot"].items() >= {"name": counted_db.slot, "plugin": "pgoutput", "active": False}.items()
    assert status["watermarks"][0].items() >= {"partition": 0, "epoch": 5, "based": True, "seq": 2}.items()
    assert status["last_run"].items() >= {"run_id": 17, "verified": 2, "drift": 1, "trigger": "interval"}.items()
    with counted_db.connect():  # a session of `sentstream test`
        roles = eventually(lambda: run(*words, "--json").json["roles"])
        text = run(*words).out
    assert "test" in {role["role"] for role in roles}
    for expected in (
        "counts       live",
        "partition 0",
        "no process reads it",
        "run 17: verified 2, drift 1",
        "test (process",
    ):
        assert expected in text


def test_status_exits_with_1_where_the_counts_are_not_live(counted_db: Database, run: Run) -> None:
    def status(*words: str) -> tuple[int, str]:
        found = run("status", "--database-url", counted_db.url, "--slot-name", "gone", *words)
        return found.code, found.out

    assert "gone does not exist: run `sentstream setup`" in status()[1]
    temporary = ("--slot-kind", "temporary")
    assert "gone is temporary: `sentstream run` (Kafka mode: `read`) makes it when it starts" in status(*temporary)[1]
    lag = run("lag", "--database-url", counted_db.url, "--slot-name", "gone", *temporary).out
    assert "temporary" in lag
    assert "setup" not in lag
    counted_db.execute(
        "UPDATE sentstream.watermarks SET as_of = clock_timestamp() - interval '1 h', flushed_at = clock_timestamp()"
    )
    code, text = status()
    assert (code, "it flushes, and is catching up" in text) == (1, True)
    counted_db.execute("UPDATE sentstream.watermarks SET flushed_at = clock_timestamp() - interval '1 h'")
    assert "is it running?" in status()[1]
    counted_db.execute("UPDATE sentstream.watermarks SET based = false")
    assert "no baseline yet" in status()[1]
    counted_db.execute("DELETE FROM sentstream.watermarks")
    assert "not started" in status()[1]


@pytest.mark.parametrize(
    ("campaign", "sentences"),
    [
        ("7", [
            "sent is 40: so many rows of the queue have the status sent.", "Of 100 to send that is 40.0 %.",
            "The number is live", "campaigns.sent shows the same.", "counted just now, says the same",
            "A recount found it equal to the queue 2 min ago",
            "42 mails seen going out, minute by minute; -2 taken over at a baseline. Together 40.",
        ]),
        ("8", ["0 rows of the queue with the status sent, and 20 that had been sent when they were deleted"]),
        ("9", [
            "campaigns.sent shows 9 instead: another program wrote it after sentstream (which wrote 8)",
            "No recount has verified",
            "run 17", "drift: DIFFERENT from the queue (trigger interval, by reconciler)",
            "cause: missed_change, a change of the queue had not reached the count", "sent -1, cancelled +1; corrected",
        ]),
        ("Plain", ["campaigns.sent is 5. The campaign has no rows in the queue", "the mailer's own"]),
        ("11", ["the mailer's own"]),
    ],
)  # fmt: skip
def test_explain_says_why(counted_db: Database, run: Run, campaign: str, sentences: list[str]) -> None:
    found = run("explain", campaign, "--database-url", counted_db.url)
    text = " ".join(found.out.split())
    assert found.code == 0, found.err
    for sentence in sentences:
        assert sentence in text


def test_explain_knows_shadow_mode_floors_locks_and_follow(counted_db: Database, run: Run) -> None:
    def text(*words: str) -> str:
        return " ".join(run("explain", *words, "--database-url", counted_db.url).out.split())

    counted_db.execute("UPDATE campaigns SET sent = 3 WHERE id = 7")
    assert "WRITE_BACK=false" in text("7", "--write-back", "false")
    assert "another program wrote it" in text("7")
    counted_db.execute("UPDATE sentstream.progress SET written = 3 WHERE campaign_id = 7")
    assert "a locked row is tried again" in text("7")
    counted_db.execute("UPDATE sentstream.progress SET floor_lsn = 'FFFF/0' WHERE campaign_id = 7")
    assert "the stream does not lower it until it reaches FFFF/0" in text("7")
    assert "they do not count (REMOVED=follow)" in text("8", "--removed", "follow")
    counted_db.execute("UPDATE sentstream.watermarks SET based = false")
    assert "has no baseline at the moment" in text("7")


def test_explain_needs_one_campaign(counted_db: Database, run: Run) -> None:
    found = run("explain", "Twice", "--database-url", counted_db.url)
    assert found.code == 2
    assert "2 campaigns are named 'Twice': 8, 9. Give the id" in found.err


def test_explain_for_programs(counted_db: Database, run: Run) -> None:
    found = run("explain", "9", "--json", "--database-url", counted_db.url).json
    assert tuple(found["progress"]) == FIELDS
    assert (found["counter"], found["written"]) == (9, 8)
    assert found["live"] == {"queued": 0, "sending": 0, "sent": 8, "failed": 0, "cancelled": 2}
    assert found["findings"][0].items() >= {"run_id": 17, "cause": "missed_change", "corrected": True}.items()
    assert isinstance(found["reasons"], list)
    assert run("explain", "7", "--json", "--database-url", counted_db.url).json["history"] == {
        "baseline": -2,
        "flow": 42,
    }


def test_a_name_with_escapes_reaches_no_terminal(counted_db: Database, run: Run) -> None:
    counted_db.execute("UPDATE campaigns SET name = E'a\\x1b[2Jb\\u202ec' WHERE id = 7")
    for command in (["progress", "7"], ["explain", "7"]):
        out = run(*command, "--database-url", counted_db.url).out
        assert "\x1b" not in out
        assert "\u202e" not in out


def test_ten_thousand_campaigns_are_read_in_a_moment(counted_db: Database) -> None:
    counted_db.execute(
        """
        INSERT INTO campaigns (id, name, subject, body) SELECT n, 'c' || n, '', '' FROM generate_series(100, 10099) n;
        INSERT INTO sentstream.progress (campaign_id, partition, sent, queue_sent)
            SELECT n, 0, n, n FROM generate_series(100, 10099) n;
        ANALYZE campaigns, sentstream.progress
        """
    )
    with counted_db.connect() as session:
        began = time.monotonic()
        assert len(read_progress(session, "public").campaigns) == 10_005
        assert time.monotonic() - began < 3


def test_a_one_shot_command_that_is_interrupted_exits_with_130(counted_db: Database) -> None:
    with counted_db.connect(autocommit=False) as blocker:
        blocker.execute("LOCK TABLE email_queue IN ACCESS EXCLUSIVE MODE")
        child = process("explain", "7", database=counted_db)
        waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'email_queue'::regclass AND NOT granted"
        eventually(lambda: counted_db.value(waiting) == 1, 30)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=30)
        assert (child.returncode, out) == (130, "")
        assert "Traceback" not in err
        eventually(lambda: counted_db.value(waiting) == 0)


def flushing(db: Database, name: str) -> psycopg.Connection[tuple[object, ...]]:
    """A session as what flushes has it."""
    return psycopg.connect(db.url, application_name=f"sentstream {name}", autocommit=True)


def test_shadow_mode_is_known_from_what_runs(counted_db: Database, run: Run) -> None:
    def text(*words: str) -> str:
        found = run(*words, "--database-url", counted_db.url)
        return " ".join((found.out + found.err).split())

    counted_db.execute("UPDATE campaigns SET sent = 3 WHERE id = 7; UPDATE sentstream.progress SET written = NULL")
    with flushing(counted_db, "flush (shadow)"):
        assert "sentstream runs in shadow mode and does not write it" in text("explain", "7")
        assert "shadow mode: campaigns.sent is not written" in text("status")
        assert "Shadow mode: campaigns.sent is not written" in text("progress")
        assert run("progress", "--json", "--database-url", counted_db.url).json["shadow"] is True
        assert run("status", "--json", "--database-url", counted_db.url).json["shadow"] is True
    with flushing(counted_db, "work"):
        assert "the next flush writes it" in text("explain", "7", "--write-back", "false"), (
            "our own setting is another's"
        )
    assert "shadow" not in text("status") + text("progress")


def test_before_the_baseline_campaigns_are_not_counted_yet(counted_db: Database, run: Run) -> None:
    counted_db.execute("UPDATE sentstream.watermarks SET based = false")
    said = " ".join(run("explain", "10", "--database-url", counted_db.url).out.split())
    assert "has not counted yet" in said
    assert "no rows in the queue" not in said
    counted_db.execute("TRUNCATE sentstream.watermarks CASCADE")
    assert "has not counted yet" in run("explain", "11", "--database-url", counted_db.url).out


def test_a_first_count_is_said_as_that(counted_db: Database, run: Run) -> None:
    counted_db.execute(
        "UPDATE sentstream.progress SET verified_at = NULL, verified_lsn = NULL WHERE campaign_id = 8;"
        "INSERT INTO sentstream.verdicts (run_id, campaign_id, verdict, corrected) VALUES (17, 8, 'baseline', true)"
    )
    said = " ".join(run("explain", "8", "--database-url", counted_db.url).out.split())
    assert "No recount has verified it yet. Run 17 counted it" in said


def test_status_and_explain_name_the_transaction_that_keeps_recounts_inconclusive(
    counted_db: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.postgres.queries.old_transaction.SHORT", 0.0)

    def text(*words: str) -> str:
        return " ".join(run(*words, "--database-url", counted_db.url).out.split())

    with psycopg.connect(counted_db.url, application_name="a long job") as held:
        held.execute("CREATE TABLE held (i int)")
        assert "blocked by" not in text("status"), "there is a baseline, and the last run was conclusive"
        counted_db.execute("UPDATE sentstream.watermarks SET based = false")
        expected = f"rocess {held.info.backend_pid} (a long job, role {held.info.user}, database {counted_db.name})"
        assert expected in text("status")
        assert expected in text("explain", "7")
        assert expected in text("explain", "10")
        found = run("status", "--json", "--database-url", counted_db.url).json["old_transaction"]
        assert (found["pid"], found["application"]) == (held.info.backend_pid, "a long job")
        held.rollback()
    assert "blocked by" not in text("status")


def test_a_prepared_transaction_is_named_with_the_statements_that_end_it() -> None:
    text = words.transaction_text(OldTransaction(None, "p\x1b[1m", "me", "other", "", 7200.0))
    assert text.startswith(
        "prepared transaction 'p\N{REPLACEMENT CHARACTER}[1m' of me in database other was left behind for"
    )
    assert "ROLLBACK PREPARED" in text
