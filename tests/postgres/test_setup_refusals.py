"""What setup refuses: each made real, named with its fix, and with nothing changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from connectors.postgres.replication.slot import ensure
from connectors.postgres.setup import look, set_up
from connectors.postgres.setup.preconditions import unmet, wal_level
from stream.core.errors import PreconditionError
from stream.core.finding import Finding
from stream.demo.private_postgres import PrivateServer
from tests.fix_postgres import Database
from tests.postgres.preparing import (
    fill,
    findings,
    identity,
    mailer_works,
    missing,
    obstacle_codes,
    own_tables,
    prepare,
    run_fix,
    wanted,
)

MAKE_FOREIGN_QUEUE = """
DROP TABLE email_queue;
CREATE TABLE email_queue (
    id bigint, campaign_id int NOT NULL, status varchar(20) NOT NULL, PRIMARY KEY (id, campaign_id)
) PARTITION BY LIST (campaign_id);
"""


def refuse(db: Database, code: str, **wishes: Any) -> Finding:
    """Setup refuses for this reason alone, says so, and changes nothing."""
    found = missing(db, **wishes).obstacles
    assert {obstacle.code for obstacle in found} == {code}
    before = identity(db) if db.value("SELECT to_regclass('email_queue') IS NOT NULL") else None
    with db.connect() as conn, pytest.raises(PreconditionError) as caught:
        set_up(conn, wanted(db, **wishes))
    assert found[0].finding in str(caught.value)
    assert found[0].fix
    assert db.value("SELECT count(*) FROM pg_publication WHERE pubname = 'sentstream'") <= 1
    if before is not None:
        assert identity(db) == before
    return found[0]


def cured(db: Database, obstacle: Finding, **wishes: Any) -> None:
    """Its fix, run as SQL, lets setup through."""
    run_fix(db, obstacle.fix)
    prepare(db, **wishes)


def test_a_database_without_the_mailer(pg: Database) -> None:
    assert obstacle_codes(pg) == {"table_missing"}
    assert missing(pg).steps == ()


def test_a_plain_listmonk_without_a_queue(mailer_db: Database) -> None:
    mailer_db.execute("DROP TABLE email_queue")
    (obstacle,) = missing(mailer_db).obstacles
    assert "plain listmonk" in obstacle.finding


def test_a_mailer_in_another_schema_is_pointed_to(mailer_db: Database) -> None:
    for obstacle in missing(mailer_db, mailer_schema="app").obstacles:
        assert "MAILER_SCHEMA=public" in obstacle.fix


def test_a_partitioned_queue(mailer_db: Database) -> None:
    mailer_db.execute(MAKE_FOREIGN_QUEUE)
    assert "can't be counted" in refuse(mailer_db, "table_partitioned").fix


def test_a_queue_with_children(mailer_db: Database) -> None:
    mailer_db.execute("CREATE TABLE old_queue () INHERITS (email_queue)")
    refuse(mailer_db, "table_partitioned")


def test_an_unlogged_queue(mailer_db: Database) -> None:
    mailer_db.execute("ALTER TABLE email_queue SET UNLOGGED")
    cured(mailer_db, refuse(mailer_db, "table_unlogged"))


def test_a_column_that_is_missing(mailer_db: Database) -> None:
    mailer_db.execute("ALTER TABLE campaigns RENAME COLUMN sent TO sent_total")
    assert "no column sent" in refuse(mailer_db, "column_missing").finding


def test_a_column_of_a_wrong_type(mailer_db: Database) -> None:
    mailer_db.execute("ALTER TABLE campaigns ALTER COLUMN to_send DROP DEFAULT, ALTER COLUMN to_send TYPE text")
    found = refuse(mailer_db, "column_type")
    assert "to_send is of type text" in found.finding
    assert "ALTER" not in found.fix, "there is no cast that a program could promise"
    mailer_db.execute("ALTER TABLE campaigns ALTER COLUMN to_send TYPE numeric USING 0")
    cured(mailer_db, refuse(mailer_db, "column_type"))


def test_a_column_of_the_queue_that_may_be_null(mailer_db: Database) -> None:
    mailer_db.execute("ALTER TABLE email_queue ALTER COLUMN status DROP NOT NULL")
    cured(mailer_db, refuse(mailer_db, "column_nullable"))


def test_a_status_outside_the_five(mailer_db: Database) -> None:
    fill(mailer_db)
    mailer_db.execute("ALTER TABLE email_queue DROP CONSTRAINT email_queue_status_check")
    mailer_db.execute("UPDATE email_queue SET status = 'bounced' WHERE status = 'failed'")
    assert "'bounced' (1 rows)" in refuse(mailer_db, "status_unknown").finding
    mailer_db.execute("UPDATE email_queue SET status = 'failed' WHERE status = 'bounced'")
    prepare(mailer_db)


@pytest.mark.parametrize("kind", ["FULL", "NOTHING", "USING INDEX campaigns_uuid_key"])
def test_campaigns_with_another_identity(mailer_db: Database, kind: str) -> None:
    mailer_db.execute(f"ALTER TABLE campaigns REPLICA IDENTITY {kind}")
    cured(mailer_db, refuse(mailer_db, "campaigns_identity"))
    mailer_works(mailer_db)


def test_an_id_beyond_integer_is_no_obstacle(mailer_db: Database) -> None:
    """Nor a finding, where the keys of the mailer are bigint."""
    db = mailer_db
    db.execute("ALTER TABLE campaigns ALTER COLUMN id TYPE bigint")
    db.execute("ALTER TABLE email_queue ALTER COLUMN campaign_id TYPE bigint")
    db.execute("INSERT INTO campaigns (id, name, sent) VALUES (5000000000, 'far', 7)")
    fill(db)
    db.execute("UPDATE email_queue SET campaign_id = 5000000000")
    prepare(db)
    assert set(findings(db)) - {"max_slot_wal_keep_size"} == {"counters_above"}
    assert (5000000000, 7) in db.execute("SELECT id, sent FROM sentstream.campaign_progress")


@pytest.mark.parametrize("key", ["", "PRIMARY KEY (name, id)"])
def test_campaigns_without_its_own_key(mailer_db: Database, key: str) -> None:
    mailer_db.execute("ALTER TABLE campaigns DROP CONSTRAINT campaigns_pkey CASCADE")
    if key:
        mailer_db.execute(f"ALTER TABLE campaigns ADD {key}")
    refuse(mailer_db, "campaigns_key")


def test_a_schema_of_our_name_that_is_not_ours(mailer_db: Database) -> None:
    mailer_db.execute("CREATE SCHEMA sentstream; CREATE TABLE sentstream.diary (day date)")
    cured(mailer_db, refuse(mailer_db, "schema_foreign"))


def test_a_schema_of_a_newer_release(mailer_db: Database) -> None:
    prepare(mailer_db)
    mailer_db.execute("INSERT INTO sentstream.schema_version VALUES (9999, now(), '9.9')")
    assert "newer release" in refuse(mailer_db, "schema_newer").fix


def test_another_mailer_schema_than_before(mailer_db: Database) -> None:
    prepare(mailer_db)
    mailer_db.execute("CREATE SCHEMA app; ALTER TABLE email_queue SET SCHEMA app; ALTER TABLE campaigns SET SCHEMA app")
    assert "mailer_schema_changed" in obstacle_codes(mailer_db, mailer_schema="app")


def test_another_publication_than_before(mailer_db: Database) -> None:
    prepare(mailer_db)
    assert "PUBLICATION=sentstream" in refuse(mailer_db, "publication_changed", publication="other").fix


def test_a_publication_for_all_tables(mailer_db: Database) -> None:
    mailer_db.execute("CREATE PUBLICATION sentstream FOR ALL TABLES")
    obstacle = refuse(mailer_db, "publication_all_tables")
    assert "PUBLICATION" in obstacle.fix
    prepare(mailer_db, publication="sentstream2")


def test_a_publication_that_covers_other_things(mailer_db: Database) -> None:
    mailer_db.execute("CREATE PUBLICATION sentstream FOR TABLE subscribers, TABLES IN SCHEMA public")
    what = refuse(mailer_db, "publication_others").finding
    assert "public.subscribers" in what
    assert "schema public" in what


@pytest.mark.parametrize("clause", ["(id, last_error)", "WHERE (priority > 5)"])
def test_a_publication_of_others_that_would_break_the_mailers_updates(mailer_db: Database, clause: str) -> None:
    """That it would is seen by setting the identity by hand."""
    db = mailer_db
    fill(db)
    db.execute("ALTER TABLE email_queue REPLICA IDENTITY FULL")
    if clause.startswith("("):
        db.execute("ALTER TABLE email_queue REPLICA IDENTITY DEFAULT")
    db.execute(f"CREATE PUBLICATION warehouse FOR TABLE email_queue {clause}")
    mailer_works(db)
    assert "warehouse" in refuse(db, "publication_conflict").finding
    db.execute("CREATE UNIQUE INDEX probe ON email_queue (campaign_id, status, id)")
    db.execute("ALTER TABLE email_queue REPLICA IDENTITY USING INDEX probe")
    with pytest.raises(psycopg.errors.InvalidColumnReference):
        mailer_works(db)
    db.execute("DROP PUBLICATION warehouse")
    prepare(db)
    mailer_works(db)


def test_a_publication_of_others_that_goes_with_our_identity(mailer_db: Database) -> None:
    db = mailer_db
    fill(db)
    db.execute(
        "CREATE PUBLICATION warehouse FOR TABLE email_queue (id, campaign_id, status, sent_at) WHERE (status = 'sent')"
    )
    prepare(db)
    mailer_works(db)
    assert "publication_conflict" in obstacle_codes(db, identity="full")


def test_a_publication_of_others_for_all_tables_is_named_before_our_schema_goes_out_with_it(
    mailer_db: Database,
) -> None:
    mailer_db.execute("CREATE PUBLICATION everything FOR ALL TABLES")
    assert any("everything is FOR ALL TABLES" in note for note in missing(mailer_db).notes)
    prepare(mailer_db)
    assert not any("FOR ALL TABLES" in note for note in missing(mailer_db).notes)


def test_something_else_has_the_name_of_the_index(mailer_db: Database) -> None:
    mailer_db.execute("CREATE INDEX email_queue_sentstream ON email_queue (status)")
    cured(mailer_db, refuse(mailer_db, "index_foreign"))


def test_a_role_that_does_not_exist(mailer_db: Database) -> None:
    assert "CREATE ROLE" in refuse(mailer_db, "role_missing", role="nobody_of_that_name").fix


def test_a_role_that_does_not_own_the_tables_is_told_who_does(mailer_db: Database) -> None:
    owner, other = mailer_db.role(), mailer_db.role("LOGIN REPLICATION")
    own_tables(mailer_db, owner)
    found = {obstacle.code: obstacle for obstacle in missing(mailer_db, user=other).obstacles}
    assert set(found) == {"owner_right", "create_right", "index_right"}
    assert owner in found["owner_right"].fix


def test_an_owner_who_may_not_create_or_replicate(mailer_db: Database) -> None:
    owner = mailer_db.role()
    own_tables(mailer_db, owner)
    mailer_db.execute(
        f"REVOKE CREATE ON DATABASE {mailer_db.name} FROM {owner}; REVOKE CREATE ON SCHEMA public FROM {owner}"
    )
    found = {obstacle.code: obstacle for obstacle in missing(mailer_db, user=owner).obstacles}
    assert set(found) == {"create_right", "index_right", "replication_right"}
    for obstacle in found.values():
        run_fix(mailer_db, obstacle.fix)
    prepare(mailer_db, user=owner)


def test_a_slot_before_its_publication(mailer_db: Database) -> None:
    assert "--part owner" in refuse(mailer_db, "publication_missing", part="replication").fix


def test_a_slot_of_another_database(make_database: Callable[..., Database]) -> None:
    ours, other = make_database(mailer=True), make_database()
    other.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", ours.slot)
    assert other.name in refuse(ours, "slot_foreign").finding


@pytest.mark.system
def test_a_slot_of_another_plugin(mailer_db: Database) -> None:
    mailer_db.execute("SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", mailer_db.slot)
    assert "test_decoding" in refuse(mailer_db, "slot_foreign").finding


def test_a_physical_slot(mailer_db: Database) -> None:
    mailer_db.execute("SELECT pg_create_physical_replication_slot(%s)", mailer_db.slot)
    try:
        assert "physical" in refuse(mailer_db, "slot_foreign").finding
    finally:
        mailer_db.execute("SELECT pg_drop_replication_slot(%s)", mailer_db.slot)


def test_a_slot_that_sends_prepared_transactions(mailer_db: Database) -> None:
    """Setup, doctor and the reader say the same."""
    db = mailer_db
    prepare(db, part="owner")
    db.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput', false, true)", db.slot)
    obstacle = refuse(db, "slot_two_phase")
    assert findings(db)["slot_two_phase"] == obstacle
    with db.connect() as conn, pytest.raises(PreconditionError, match="two_phase"):
        ensure(conn, db.slot)
    cured(db, obstacle)
    assert "slot_two_phase" not in findings(db)


def test_a_server_that_raises_wal_level_by_itself_needs_no_restart(mailer_db: Database) -> None:
    """As it says itself: no server that tests can start has `effective_wal_level` yet."""
    with mailer_db.connect() as conn:
        found = look(conn, wanted(mailer_db))
    assert found.effective_wal_level is None
    for level, effective, right in (
        ("replica", None, False),
        ("replica", "replica", True),
        ("replica", "logical", True),
        ("minimal", "minimal", False),
        ("logical", "logical", True),
    ):
        given = replace(found, wal_level=level, effective_wal_level=effective)
        assert (list(wal_level(given)) == []) == right
        assert any(finding.code == "wal_level" for finding in unmet(given, wanted(mailer_db))) != right


def test_a_server_without_logical_wal(private_mailer_db: Database) -> None:
    """The owner's part goes through; the slot needs the setting and a restart."""
    db = private_mailer_db
    server = db.server
    assert isinstance(server, PrivateServer)
    server.configure({"wal_level": "replica"})
    server.restart()
    prepare(db, part="owner")
    obstacle = refuse(db, "wal_level")
    assert obstacle.fix.startswith("ALTER SYSTEM SET wal_level = 'logical';")
    run_fix(db, obstacle.fix)
    server.restart()
    prepare(db)
