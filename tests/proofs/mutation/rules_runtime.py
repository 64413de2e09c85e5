"""Rules of what runs: store, readers, workers. The tests that notice need PostgreSQL, some of them Kafka."""

from __future__ import annotations

from tests.proofs.mutation.changes import drop, sql, swap
from tests.proofs.mutation.mutant import Mutant

RUNTIME = (
    Mutant(
        "the lock comes first",
        "_lock_first",
        sql("SET LOCAL random_page_cost = 1;", "SET LOCAL random_page_cost = 1; SELECT 1;"),
        "tests/postgres/test_recount.py::test_the_lock_comes_before_the_snapshot",
    ),
    Mutant(
        "every recount also looks at publication and identity",
        "recount.request",
        drop("_check_conformance(conn, publication, mailer_schema)"),
        "tests/postgres/test_recount.py::test_a_database_that_is_no_longer_as_setup_made_it_is_not_counted",
    ),
    Mutant(
        "the watermark moves by compare-and-swap",
        "flush_statements.CAS",
        sql("AND lsn = %s::pg_lsn AND seq = %s::bigint", "AND (true OR lsn = %s::pg_lsn AND seq = %s::bigint)"),
        "tests/postgres/test_faults.py::test_a_stopped_run_is_replaced_and_its_late_writes_are_refused",
    ),
    Mutant(
        "a counter is written only from the floor on",
        "flush_statements.DUE",
        sql("WHERE p.floor_lsn IS NULL OR p.floor_lsn <= %(lsn)s", "WHERE true OR p.floor_lsn <= %(lsn)s"),
        "tests/postgres/test_recount_raising.py::test_a_stream_that_catches_up_never_shows_an_older_number",
    ),
    Mutant(
        "a locked campaign is skipped and stays due",
        "flush_statements.DUE",
        sql("FOR NO KEY UPDATE OF c SKIP LOCKED", "FOR NO KEY UPDATE OF c"),
        "tests/postgres/test_limits.py::test_a_locked_campaign_holds_up_no_other",
    ),
    Mutant(
        "publication and identity are looked at while counting",
        "_Watch.run",
        drop("conform(self._connection, self._options)"),
        "tests/postgres/test_limits.py::test_it_stops_loudly_instead_of_counting_wrongly",
    ),
    Mutant(
        "only what is flushed is confirmed",
        "Session._flush",
        swap("self._reader.confirm(flush.position.lsn)", "self._reader.confirm(flush.position.lsn + (1 << 40))"),
        "tests/postgres/test_faults.py::test_kill_9_at_random_under_load",
    ),
    Mutant(
        "FULL and a column list never meet",
        "_identity_and_publication",
        swap("target == 'full' and has_list", "False"),
        "tests/postgres/test_setup.py -k never_meet",
    ),
    Mutant(
        "an end is confirmed when every partition has it",
        "Publisher.durable",
        swap("min(...)", "max(lane.durable for lane in self._lanes)"),
        "tests/kafka/test_topics.py::test_an_end_is_durable_when_every_partition_has_everything_before_it",
    ),
)
