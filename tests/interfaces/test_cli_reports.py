"""`recount` and `report` on a real database, with the real stream where a verdict is needed."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from connectors.postgres.store import reports
from tests.fix_postgres import Database
from tests.interfaces.fix_counted import Outcome, Run, run
from tests.postgres.running import (
    add_campaign,
    add_rows,
    at_rest,
    based,
    count,
    prepared,
    request_now,
    running,
    shown,
    truth,
)
from tests.waiting import eventually

__all__ = ["run"]


@pytest.fixture
def db(mailer_db: Database) -> Database:
    prepared(mailer_db)
    add_campaign(mailer_db, 7, sent_rows=30, queued=5)
    add_campaign(mailer_db, 8, sent_rows=4, sent=10)
    add_campaign(mailer_db, 9)
    mailer_db.execute("UPDATE campaigns SET name = 'Spring <b>sale</b>' WHERE id = 7")
    return mailer_db


@pytest.fixture
def live(db: Database) -> Iterator[Database]:
    """With the stream and the reconciler at work."""
    with running(db):
        based(db)
        at_rest(db)
        yield db


@pytest.fixture
def cli(db: Database, run: Run) -> Run:
    def invoke(*words: str) -> Outcome:
        return run("--database-url", db.url, *words)

    return invoke


# ---- recount -----------------------------------------------------------------------------------------------------


def test_recount_prints_the_verdict(live: Database, cli: Run) -> None:
    found = cli("recount")
    assert found.code == 0, found.err
    assert re.search(r"run \d+ \(manual\) by cli \S+@\S+, \d{4}-", found.out)
    assert "verified 2, drift 0, inconclusive 0, not comparable 0, baseline 0" in found.out
    assert re.search(r"place \d+ of the chain, digest [0-9a-f]{64}", found.out)


def test_recount_of_some_campaigns_names_them(live: Database, cli: Run) -> None:
    found = cli("recount", "Spring <b>sale</b>", "9", "--json")
    assert found.code == 0
    assert [(v["campaign_id"], v["verdict"]) for v in found.json["verdicts"]] == [(7, "verified")]
    assert found.json["verdicts"][0]["after"] == {"queued": 5, "sending": 0, "sent": 30, "failed": 0, "cancelled": 0}
    assert found.json["counts"]["verified"] == 2
    assert found.json["status"] == "sealed"
    assert "campaign 9 has no rows in the queue: sentstream does not count it" in found.err
    assert "campaign 7" not in found.err


def test_a_campaign_whose_queue_was_cleared_still_gets_its_verdict(live: Database, cli: Run) -> None:
    live.execute("DELETE FROM email_queue WHERE campaign_id = 8")
    at_rest(live)
    for _ in range(2):  # the first one keeps it, for the counts changed
        found = cli("recount", "8")
        assert found.code == 0
        assert "campaign 8: verified (now " in found.out
        assert "campaign 8" not in found.err


def test_drift_is_exit_code_1(live: Database, cli: Run) -> None:
    live.execute("UPDATE sentstream.progress SET queue_sent = 29 WHERE campaign_id = 7")
    found = cli("recount", "7")
    assert found.code == 1
    assert "campaign 7: drift, lost state, corrected: sent +1 (now queued 5, sent 30)" in found.out
    live.execute("UPDATE sentstream.progress SET queue_sent = 29 WHERE campaign_id = 7")
    assert cli("recount", "8").code == 0, "the names filter what is printed, and what is found"


def test_rebase_sets_removed_to_zero(live: Database, cli: Run) -> None:
    assert shown(live)[8] == 10
    assert cli("recount", "8", "--rebase").code == 0
    at_rest(live)
    assert shown(live) == {7: 30, 8: 4, 9: 0}
    (run_id, who), *_ = live.execute("SELECT run_id, requested_by FROM sentstream.recounts WHERE rebase IS NOT NULL")
    said = " ".join(cli("explain", "8").out.split())
    assert f"Run {run_id} rebased it (`recount --rebase`, asked for by {who}, " in said
    assert [rebase["run_id"] for rebase in cli("explain", "8", "--json").json["rebases"]] == [run_id]
    assert cli("explain", "7", "--json").json["rebases"] == []


def test_with_the_stream_down_it_raises_and_exits_1(db: Database, cli: Run) -> None:
    with running(db):
        based(db)
        at_rest(db)
    add_rows(db, 7, "sent", 3)
    found = cli("recount", "--recount-patience", "100ms")
    assert found.code == 1
    assert "not comparable yet" in found.out
    assert "raised campaigns.sent of 1 campaign" in found.out
    assert shown(db)[7] == 33
    add_rows(db, 7, "sent", 1)
    found = cli("recount", "--recount-patience", "2500ms", "--write-back", "false", "--json")
    assert (found.code, found.json["counts"]["not_comparable"]) == (1, len(truth(db)))
    assert shown(db)[7] == 33, "shadow mode raises nothing"


def test_what_is_missing_is_said_with_the_next_command(mailer_db: Database, run: Run) -> None:
    found = run("recount", "--database-url", mailer_db.url)
    assert (found.code, found.out) == (1, "")
    assert "`sentstream setup`" in found.err
    prepared(mailer_db)
    found = run("recount", "--database-url", mailer_db.url)
    assert (found.code, found.out) == (1, "")
    assert "`sentstream run`" in found.err
    found = run("recount", "no such campaign", "--database-url", mailer_db.url)
    assert found.code == 2
    assert run("report", "list", "--database-url", mailer_db.url).out == "No runs. `sentstream recount` makes one.\n"


# ---- reports -----------------------------------------------------------------------------------------------------


def made(db: Database) -> int:
    """Two runs, a drift in the second: its number."""
    with running(db) as reconciler, db.connect() as conn:
        based(db)
        at_rest(db)
        db.execute("UPDATE sentstream.progress SET queue_sent = 3 WHERE campaign_id = 7")
        run_id = request_now(reconciler, "=cmd()").run_id
        eventually(lambda: reports.read_report(conn, run_id).run.sealed)
    return run_id


def test_reports_are_listed_and_shown(db: Database, cli: Run) -> None:
    drifted = made(db)
    listed = cli("report", "list", "--json").json["runs"]
    assert [r["run_id"] for r in listed] == list(range(drifted, 0, -1))
    assert [r["run_id"] for r in cli("report", "list", "--json", "--drift").json["runs"]] == [drifted]
    assert drifted in [r["run_id"] for r in cli("report", "list", "--json", "--campaign", "7").json["runs"]]
    assert cli("report", "list", "--json", "--campaign", "9").json == {"runs": []}
    assert cli("report", "list", "--campaign", "9").out.startswith("No run names campaign 9: ")
    assert cli("report", "list", "--campaign", "7", "--before", "1").out.startswith("No such run names campaign 7: ")
    assert cli("report", "list", "--before", "1").out == "No such runs.\n"
    unknown = cli("report", "list", "--campaign", "99")
    assert (unknown.code, unknown.out) == (2, "")
    assert "There is no campaign with the id or the exact name '99'" in unknown.err
    db.execute("DELETE FROM campaigns WHERE id = 7")  # reports outlive it
    assert drifted in [r["run_id"] for r in cli("report", "list", "--json", "--campaign", "7").json["runs"]]
    assert (
        cli("report", "list", "--json", "--limit", "1", "--before", str(drifted)).json["runs"][0]["run_id"]
        == drifted - 1
    )
    people = cli("report", "list").out.splitlines()
    assert people[0].split()[:3] == ["run", "time", "trigger"]
    assert people[1].split()[0] == str(drifted)
    first = cli("report", "show", "1").out
    assert "campaign 8: baseline, rows vanished unwatched, removed is an estimate" in first
    assert "not covered: removed" in first
    one = cli("report", "show", str(drifted), "--json").json
    assert (one["verdicts"][0]["cause"], one["verdicts"][0]["delta"]) == ("lost_state", {"sent": 27})
    assert {"run_id", "trigger", "requested_by", "status", "started_at", "finished_at", "lsn", "snapshot", "counts",
            "verdicts", "observations", "previous_digest", "digest"} <= set(one)  # fmt: skip


def test_a_digest_can_be_computed_with_other_tools(db: Database, cli: Run) -> None:
    drifted = made(db)
    given = {**os.environ, "SENTSTREAM_DATABASE_URL": db.url}
    words = [sys.executable, "-m", "stream.cli", "report", "show", str(drifted), "--canonical"]
    said = subprocess.run(words, env=given, capture_output=True, check=True).stdout
    digest = cli("report", "show", str(drifted), "--json").json["digest"]
    assert hashlib.sha256(said).hexdigest() == digest
    assert json.dumps(json.loads(said), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() == said


def test_an_export_as_json_is_everything(db: Database, cli: Run) -> None:
    drifted = made(db)
    exported = cli("report", "export").json
    assert [r["run_id"] for r in exported["runs"]] == list(range(drifted, 0, -1))
    assert exported["head"] == {"chain_no": drifted, "digest": exported["runs"][0]["digest"]}
    assert [r["run_id"] for r in cli("report", "export", "--limit", "1").json["runs"]] == [drifted]
    only = cli("report", "export", "--campaign", "8").json["runs"]
    assert {v["campaign_id"] for r in only for v in r["verdicts"]} == {8}


def test_an_export_as_csv_is_a_line_a_verdict_and_no_formula(db: Database, cli: Run) -> None:
    drifted = made(db)
    rows = list(csv.DictReader(io.StringIO(cli("report", "export", "--format", "csv").out)))
    drift = next(row for row in rows if row["verdict"] == "drift")
    assert (drift["run_id"], drift["campaign_id"], drift["cause"]) == (str(drifted), "7", "lost_state")
    assert (drift["before_sent"], drift["after_sent"], drift["delta_sent"]) == ("3", "30", "27")
    assert drift["requested_by"] == "'=cmd()"
    assert {row["run_id"] for row in rows} == {str(n) for n in range(1, drifted + 1)}


def test_an_export_as_html_stands_alone(db: Database, cli: Run, tmp_path: Path) -> None:
    made(db)
    found = cli("report", "export", "--format", "html", "--output", str(tmp_path / "reports.html"))
    assert (found.code, found.out) == (0, "")
    assert "written to" in found.err
    page = (tmp_path / "reports.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|<script|src=|@import|url\(", page), "no address outside, no script"
    assert "Spring &lt;b&gt;sale&lt;/b&gt;" in page
    assert '<svg viewBox="0 0 920 220" role="img" aria-label="Campaigns that drifted, over time: 1 in' in page
    assert "lost state" in page
    assert "rows vanished unwatched" in page


def test_an_export_that_can_not_be_written_is_said_so(db: Database, cli: Run) -> None:
    with db.connect() as conn:
        count(conn)
    found = cli("report", "export", "--output", "/nowhere/reports.json")
    assert (found.code, found.out) == (2, "")
    assert "/nowhere/reports.json can't be written" in found.err


def test_verify_walks_the_chain_and_names_the_first_break(db: Database, cli: Run) -> None:
    drifted = made(db)
    found = cli("report", "verify")
    assert found.code == 0
    assert found.out.startswith(f"The chain holds: {drifted} runs.")
    checked = cli("report", "verify", "--json").json
    assert (checked["ok"], checked["runs"], checked["broken"]) == (True, drifted, None)
    anchored = cli("report", "verify", "--json", "--anchor", checked["head"].upper())
    assert (anchored.code, anchored.json["anchored"]) == (0, True)
    assert cli("report", "verify", "--anchor", "a" * 64).code == 1
    assert cli("report", "verify", "--anchor", "xyz").code == 2
    db.execute("UPDATE sentstream.verdicts SET cause = 'unknown' WHERE run_id = %s", drifted)
    found = cli("report", "verify")
    assert found.code == 1
    assert found.out.startswith(
        f"BROKEN at place {drifted}: Run {drifted} was edited: its verdicts are not those sealed."
    )
    broken = cli("report", "verify", "--json").json["broken"]
    assert (broken["run_id"], broken["kind"]) == (drifted, "edited")


def test_an_unknown_run_is_one_line(db: Database, cli: Run) -> None:
    found = cli("report", "show", "99")
    assert (found.code, found.out) == (2, "")
    assert found.err == "sentstream: There is no run 99. `sentstream report list` shows those there are.\n"


def test_a_run_that_is_open_has_no_digest_yet(db: Database, cli: Run) -> None:
    with db.connect() as conn:
        run_id = count(conn).run_id
    assert cli("report", "show", str(run_id), "--canonical").code == 2
    shown_ = cli("report", "show", str(run_id))
    assert "not comparable yet" in shown_.out
    assert cli("report", "export", "--format", "html").code == 0


@pytest.mark.parametrize("number", ["9" * 5000, str(2**63), "0"])
def test_a_number_out_of_range_is_a_usage_error(db: Database, run: Run, number: str) -> None:
    options = ["report list --before", "report list --limit", "report export --limit", "report list --campaign"]
    for command in ["report show", *options, "explain", "recount", "progress"]:
        found = run(*command.split(), number, "--database-url", db.url)
        assert found.code == 2, (command, found.err)
        assert "fault" not in found.err
