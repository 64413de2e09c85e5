"""The simulator's truth is what the tables say: at every checkpoint, after whatever act, with several connections."""

from __future__ import annotations

import random
from collections.abc import Callable

import psycopg
import pytest
from psycopg import Connection, Cursor
from psycopg.rows import TupleRow

from stream.core.errors import ConfigurationError
from stream.demo.mailer.workspace import StrayChangeError
from stream.demo.private_postgres import PrivateServer
from tests.fix_postgres import Database
from tests.mailer_load import ACTS, MIXES, Load, Simulator, parse_mix
from tests.mailer_load.sender import PERFORM

pytestmark = pytest.mark.slow  # what other tests are made of

Conn = Connection[TupleRow]

EVERYTHING = {**MIXES["all"], "move": 10, "overwrite": 5}


def grouped(conn: Conn) -> dict[int, dict[str, int]]:
    table: dict[int, dict[str, int]] = {}
    for campaign, status, n in conn.execute("SELECT campaign_id, status, count(*) FROM email_queue GROUP BY 1, 2"):
        table.setdefault(campaign, {})[status] = n
    return table


def live(simulator: Simulator | Load) -> dict[int, dict[str, int]]:
    truth = simulator.truth() if isinstance(simulator, Simulator) else simulator.snapshot().truth
    names = ("queued", "sending", "sent", "failed", "cancelled")
    return {c: {k: n for k, n in zip(names, five, strict=True) if n} for c, five in truth.live().items()}


def scalar(conn: Conn, query: str) -> object:
    row = conn.execute(query).fetchone()
    assert row is not None
    return row[0]


def test_every_act_has_a_performer() -> None:
    assert PERFORM.keys() == ACTS.keys()


@pytest.mark.versions
@pytest.mark.parametrize("seed", range(2))
def test_the_truth_is_what_the_table_says_at_every_checkpoint(mailer_url: str, conn: Conn, seed: int) -> None:
    with Simulator(mailer_url, seed, mix=EVERYTHING, size=80) as simulator:
        for _ in range(40):
            simulator.run(40)
            assert live(simulator) == grouped(conn)
            assert not simulator.differences()


def test_each_act_at_least_once_and_the_truth_after_it(mailer_url: str, conn: Conn) -> None:
    rng = random.Random(5)
    with Simulator(mailer_url, 5, mix={**MIXES["all"], "clear": 0, "crash": 0}, size=60) as simulator:
        left = set(ACTS)
        for _ in range(3000):
            simulator.step()
            name = rng.choice(sorted(left))
            if simulator.act(name):
                left.discard(name)
                assert live(simulator) == grouped(conn), name
            if not left:
                break
        assert not left


def test_the_same_seed_does_the_same(make_database: Callable[..., Database]) -> None:
    assert run_on(make_database(mailer=True).url) == run_on(make_database(mailer=True).url)


def run_on(url: str) -> tuple[object, object]:
    with Simulator(url, 11, mix=EVERYTHING, size=50) as simulator, psycopg.connect(url) as conn:
        simulator.run(600)
        rows = conn.execute("SELECT id, campaign_id, subscriber_id, status FROM email_queue ORDER BY id").fetchall()
        campaigns = conn.execute("SELECT id, uuid, name, status, to_send, sent FROM campaigns ORDER BY id").fetchall()
        assert rows
        return (rows, campaigns), simulator.truth()


def started(url: str, size: int = 20) -> tuple[Simulator, int]:
    simulator = Simulator(url, 1)
    return simulator, simulator.create(size)


def send(simulator: Simulator, n: int) -> None:
    for _ in range(n):
        if not simulator.desk.on_their_way:
            assert simulator.act("pick")
        assert simulator.act("sent")


def test_queueing_inserts_all_in_one_transaction_and_updates_all_in_the_next(mailer_url: str, conn: Conn) -> None:
    simulator, campaign = started(mailer_url, 200)
    assert simulator.truth().live() == {campaign: (200, 0, 0, 0, 0)}
    assert scalar(conn, "SELECT count(DISTINCT created_at) FROM email_queue") == 1
    assert scalar(conn, "SELECT count(*) FROM email_queue WHERE assigned_smtp_server_uuid IS NOT NULL") == 200
    assert scalar(conn, "SELECT count(*) FROM email_queue WHERE updated_at > created_at") == 200
    assert scalar(conn, "SELECT count(*) - count(DISTINCT subscriber_id) FROM email_queue") == 5
    assert scalar(conn, "SELECT concat(status, to_send, use_queue) FROM campaigns") == "running200t"


def test_a_mail_goes_out_whatever_its_row_was_before(mailer_url: str, conn: Conn) -> None:
    simulator, campaign = started(mailer_url)
    assert simulator.act("pick", n=1)
    on_their_way = len(simulator.desk.on_their_way)
    assert simulator.act("pause")
    assert simulator.truth().live() == {campaign: (0, 0, 0, 0, 20)}
    assert simulator.act("sent")
    assert simulator.truth().live() == {campaign: (0, 0, 1, 0, 19)}
    assert simulator.act("resume")
    assert simulator.truth().live() == {campaign: (19, 0, 1, 0, 0)}
    for _ in range(on_their_way - 1):
        assert simulator.act("sent")
    assert simulator.truth().live() == {campaign: (20 - on_their_way, 0, on_their_way, 0, 0)}
    assert grouped(conn) == live(simulator)


def test_late_mails_hit_no_row_after_the_queue_was_cleared(mailer_url: str, conn: Conn) -> None:
    simulator, campaign = started(mailer_url)
    send(simulator, 7)
    sent = simulator.truth().campaigns[campaign].sent()
    assert simulator.act("pick")
    assert simulator.act("clear")
    assert simulator.act("sent")
    truth = simulator.truth().campaigns[campaign]
    assert truth.counts == (0, 0, 0, 0, 0)
    assert (truth.removed, truth.sent("keep"), truth.sent("follow")) == (sent, sent, 0)
    assert grouped(conn) == {}
    before = scalar(conn, "SELECT last_value FROM email_queue_id_seq")
    simulator.create(3)
    assert scalar(conn, "SELECT min(id) FROM email_queue") == int(str(before)) + 1


def test_rows_of_deleted_subscribers_are_removed(mailer_url: str, conn: Conn) -> None:
    simulator, campaign = started(mailer_url, 100)
    send(simulator, 60)
    sent = simulator.truth().campaigns[campaign].counts[2]
    assert simulator.act("delete_subscribers", n=30)
    truth = simulator.truth().campaigns[campaign]
    assert truth.removed > 0
    assert truth.removed + truth.counts[2] == sent
    assert grouped(conn) == live(simulator)


def test_a_deleted_campaign_is_out_of_the_truth(mailer_url: str, conn: Conn) -> None:
    simulator, campaign = started(mailer_url)
    other = simulator.create(5)
    simulator.desk.room = 1
    assert simulator.act("delete_campaign", campaign=campaign) or simulator.act("delete_campaign")
    assert simulator.truth().campaigns.keys() < {campaign, other}
    assert grouped(conn) == live(simulator)


def test_a_moved_row_is_not_removed(mailer_url: str, conn: Conn) -> None:
    simulator, campaign = started(mailer_url, 3)
    send(simulator, 3)
    other = simulator.create(1)
    for _ in range(4):
        assert simulator.act("move")
    assert sum(truth.removed for truth in simulator.truth().campaigns.values()) == 0
    assert sum(simulator.truth().sent().values()) == 3
    assert {campaign, other} == simulator.truth().campaigns.keys()
    assert grouped(conn) == live(simulator)


def test_a_crash_leaves_rows_sending_for_good(mailer_url: str) -> None:
    simulator, campaign = started(mailer_url)
    assert simulator.act("pick")
    sending = simulator.truth().campaigns[campaign].counts[1]
    assert simulator.act("crash")
    assert not simulator.act("failed")
    assert simulator.truth().campaigns[campaign].counts[1] == sending > 0


def test_the_window_pauses_what_runs_and_resumes_what_was_paused_by_hand_too(mailer_url: str, conn: Conn) -> None:
    simulator, campaign = started(mailer_url)
    by_hand = simulator.create(4)
    assert simulator.act("pause", campaign=by_hand)
    conn.execute("""UPDATE settings SET value = '"00:00"' WHERE key = 'app.send_time_start'""")
    conn.execute("""UPDATE settings SET value = '"17:00"' WHERE key = 'app.send_time_end'""")
    conn.execute("""UPDATE settings SET value = '"UTC"' WHERE key = 'app.timezone'""")
    assert simulator.tick("2026-06-10T17:00:59+00:00") == ""
    assert simulator.tick("2026-06-10T17:01:30+00:00") == "auto_pause"
    assert {c: t.status for c, t in simulator.truth().campaigns.items()} == {campaign: "paused", by_hand: "paused"}
    assert conn.execute("SELECT id, auto_paused FROM campaigns ORDER BY id").fetchall() == [
        (campaign, True),
        (by_hand, False),
    ]
    assert simulator.truth().campaigns[campaign].counts[0] == 20
    assert simulator.tick("2026-06-11T00:00:30+00:00") == "auto_resume"
    assert simulator.tick("2026-06-11T00:01:30+00:00") == ""
    assert {t.status for t in simulator.truth().campaigns.values()} == {"running"}
    assert scalar(conn, "SELECT count(*) FROM campaigns WHERE status = 'running' AND NOT auto_paused") == 2


def test_a_campaign_outside_the_queue_keeps_its_own_counter(mailer_url: str, conn: Conn) -> None:
    with Simulator(mailer_url, 3, mix={"create": 1, "direct": 3}, campaigns=20) as simulator:
        simulator.run(200)
        truth = simulator.truth()
        assert dict(conn.execute("SELECT id, sent FROM campaigns").fetchall()) == truth.sent()
        assert sum(truth.sent().values()) > 0


def test_it_takes_over_what_stands_in_the_tables(mailer_url: str, conn: Conn) -> None:
    with Simulator(mailer_url, 1, size=60) as before:
        before.run(500)
    with Simulator(mailer_url, 2, size=60) as after:
        assert after.truth().live() == before.truth().live()
        after.run(500)
        assert live(after) == grouped(conn)


def test_another_schema(mailer_url: str, conn: Conn) -> None:
    conn.execute('CREATE SCHEMA "Mail er"')
    for table in ("campaigns", "subscribers", "email_queue", "settings", "azure_message_tracking"):
        conn.execute(f'ALTER TABLE {table} SET SCHEMA "Mail er"')
    conn.execute('ALTER TYPE campaign_status SET SCHEMA "Mail er"')
    with Simulator(mailer_url, 1, schema="Mail er", size=30, tracking=True) as simulator:
        simulator.run(300)
        assert not simulator.differences()
        assert simulator.tick("2026-06-10T17:00:59+00:00") == ""


def test_tracking_notes_nearly_every_mail_that_was_sent(mailer_url: str, conn: Conn) -> None:
    with Simulator(mailer_url, 1, tracking=True) as simulator:
        campaign = simulator.create(50)
        for _ in range(50):
            simulator.act("pick")
            while simulator.desk.on_their_way:
                simulator.act("sent")
        assert simulator.truth().campaigns[campaign].counts[2] == 50
    assert scalar(conn, "SELECT count(DISTINCT azure_message_id) >= 49 FROM azure_message_tracking")


def test_a_change_by_somebody_else_is_an_error_and_not_a_wrong_truth(mailer_url: str, conn: Conn) -> None:
    simulator, _ = started(mailer_url)
    conn.execute("DELETE FROM email_queue")
    with pytest.raises(StrayChangeError, match="another program"):
        simulator.act("pick")


def test_removed_can_be_forgotten_where_nobody_watched_it(mailer_url: str) -> None:
    simulator, campaign = started(mailer_url)
    send(simulator, 5)
    simulator.act("clear")
    simulator.forget_removed()
    assert simulator.truth().campaigns[campaign].removed == 0


@pytest.mark.parametrize("group", [1, 8])
def test_with_several_connections_the_truth_is_exact(mailer_url: str, conn: Conn, group: int) -> None:
    mix = {**EVERYTHING, "clear": 2, "auto_pause": 2, "auto_resume": 6}
    with Load(mailer_url, mix=mix, connections=3, group=group, size=100, seed=group) as load:
        for _ in range(5):
            load.run(0.4)
            assert live(load) == grouped(conn)
        assert load.changes > 500


def test_a_snapshot_while_sending_is_of_one_moment(mailer_url: str, conn: Conn) -> None:
    """The counts of the snapshot never run backwards, and the LSN is that of their moment."""
    with Load(mailer_url, mix={"pick": 1, "sent": 5}, connections=2, size=2000, campaigns=2) as load:
        load.start()
        lsns, sent = [], []
        for _ in range(20):
            snapshot = load.snapshot()
            lsns.append(snapshot.lsn)
            sent.append(sum(snapshot.truth.sent().values()))
        load.stop()
        assert sent == sorted(sent)
        assert scalar(conn, f"SELECT bool_and(a <= b) FROM (SELECT x::pg_lsn b, lag(x::pg_lsn, 1, '0/0') OVER () a "
                            f"FROM unnest(ARRAY{lsns}) x) s")  # fmt: skip


def test_the_rate_is_kept(mailer_url: str) -> None:
    with Load(mailer_url, rate=200, mix=MIXES["mail"], connections=2, size=500) as load:
        before = load.changes
        load.run(3)
        assert 400 <= load.changes - before <= 660


def test_what_a_sender_dies_of_is_raised(mailer_url: str, conn: Conn) -> None:
    load = Load(mailer_url, mix=MIXES["mail"], size=50)
    load.prepare()
    conn.execute("DELETE FROM email_queue")
    with pytest.raises(StrayChangeError):
        load.run(10)


@pytest.mark.parametrize("how", ["terminate", "kill"])
def test_a_lost_server_is_found_again_and_the_truth_is_still_true(
    private_pg: PrivateServer, private_mailer_db: Database, how: str
) -> None:
    url, mix = private_mailer_db.url, {**EVERYTHING, "delete_subscribers": 60}
    with Load(url, mix=mix, connections=2, size=100) as load:
        for _ in range(3):
            load.start()
            load.wait(0.3)
            if how == "kill":
                private_pg.kill()
                private_pg.start()
            else:
                with psycopg.connect(url, autocommit=True) as admin:
                    admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                                  "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'")  # fmt: skip
            load.wait(0.3)
            load.stop()
            with psycopg.connect(url, autocommit=True) as conn:
                assert live(load) == grouped(conn)
        assert load.losses


@pytest.mark.parametrize(
    ("text", "mix"),
    [
        ("mail", dict(MIXES["mail"])),
        ("pick=2, sent=1.5", {"pick": 2.0, "sent": 1.5}),
        ("mail,failed=0", {"pick": 20, "sent": 90, "limited": 6}),
    ],
)
def test_a_mix_by_name_or_weights(text: str, mix: dict[str, float]) -> None:
    assert parse_mix(text) == mix


@pytest.mark.parametrize("text", ["", "everything", "pick=many", "fly=1", "pick=0", "pick=-1"])
def test_a_mix_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--mix"):
        parse_mix(text)


def test_a_transaction_whose_fate_was_unknown_is_found_out_from_the_table(mailer_url: str, conn: Conn) -> None:
    """The connection goes between the statement and the answer to the commit: with and without the commit done."""
    simulator, campaign = started(mailer_url, 40)
    send(simulator, 20)
    sent = simulator.truth().campaigns[campaign].counts[2]
    session = simulator.desk.session

    def lose(*, committed: bool) -> None:
        def work(cursor: Cursor[TupleRow]) -> Callable[[], None]:
            cursor.execute("DELETE FROM email_queue WHERE id = (SELECT min(id) FROM email_queue WHERE status = 'sent')")
            if committed:
                cursor.execute("COMMIT")
            cursor.connection.close()
            raise psycopg.OperationalError("the answer never came")

        assert not session.commit(work)

    lose(committed=False)
    assert simulator.truth().campaigns[campaign].removed == 0
    lose(committed=True)
    truth = simulator.truth().campaigns[campaign]
    assert (truth.removed, truth.counts[2]) == (1, sent - 1)
    assert simulator.losses == 2
    assert not simulator.differences()
