"""Rules of what runs: store, readers, workers. The tests that notice need PostgreSQL, some of them Kafka."""

from __future__ import annotations

from tests.proofs.mutation.changes import body, drop, keyword, never, sql, swap
from tests.proofs.mutation.mutant import Mutant

_FLUSH = "tests/postgres/test_flush.py"
_ASSIGNMENT = "tests/kafka/test_assignment.py"
_WAL = "tests/postgres/test_wal_reader.py"
_TOPICS_ACKS = "tests/kafka/test_topics.py::test_a_record_is_acknowledged_by_all_in_sync_replicas_once_and_in_order"
_REFUSED = f"{_FLUSH}::test_a_flush_from_another_place_than_the_watermark_is_refused_whole"

# Faults that were tried and are none:
# - DUE without ORDER BY: counters are locked with SKIP LOCKED, so a flush that holds some never waits for another. The
#   order in which partitions are taken matters, and has its mutant.
# - Partitions kept from a revocation to the assignment that follows it (`Worker._on_revoked` without `revoke`): the
#   assignment gives up all that it does not name, and until then the watermark fences.

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
        _REFUSED,
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
        "deferred checks of a counter run inside its savepoint",
        "counters._PRELUDE",
        sql("SET CONSTRAINTS ALL IMMEDIATE;", ""),
        "tests/postgres/test_limits.py::test_a_counter_that_the_mailer_refuses_holds_up_no_other",
    ),
    Mutant(
        "what a counter shows is read back after the write",
        "CounterWriter.write",
        drop("refused |= self._changed_since(connection, wanted, refused)"),
        "tests/postgres/test_limits.py::test_a_counter_that_the_mailer_refuses_holds_up_no_other",
    ),
    Mutant(
        "a partition of another history is not loaded",
        "Store.load",
        drop("_check_history(cursor, watermark)"),
        "tests/postgres/test_store.py::test_a_partition_of_another_history_is_not_loaded",
    ),
    Mutant(
        "publication and identity are looked at while counting",
        "ServerWatch.run",
        drop("conform(self._connection, self._options)"),
        "tests/postgres/test_limits.py -k table_taken_out_of_the_publication",
    ),
    Mutant(
        "the session confirms after the write",
        "Session._flush",
        swap(
            "(result,) = write(..., ..., ..., ...)",
            "if True:\n"
            "    self._reader.confirm(flush.position.lsn)\n"
            "    (result,) = write(self._store, connection, [flush])",
        ),
        "tests/postgres/test_confirming.py",
    ),
    Mutant(
        "only what is confirmed is told to the server, not what was received",
        "WalReader._tell",
        swap(
            "source.feedback(self._received, self._confirmed, ask=ask)",
            "source.feedback(self._received, self._received, ask=ask)",
        ),
        "tests/postgres/test_confirming.py",
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
    Mutant(
        "the swap compares the epoch",
        "flush_statements.CAS",
        sql("AND epoch = %s::bigint", "AND (true OR epoch = %s::bigint)"),
        _REFUSED,
    ),
    Mutant(
        "the swap compares the sequence number",
        "flush_statements.CAS",
        sql("AND seq = %s::bigint", "AND (true OR seq = %s::bigint)"),
        _REFUSED,
    ),
    Mutant(
        "a session that was fenced off loads again",
        "Session._flush",
        swap("if result is None: ...", "if result is None: return"),
        "tests/contract/test_fencing.py -k embedded",
    ),
    Mutant(
        "a worker's partition that was fenced off is loaded again",
        "Flusher.flush",
        drop("self._loader.again(fenced)"),
        "tests/contract/test_fencing.py -k kafka",
    ),
    Mutant(
        "our lock on a campaign holds up no insert into the queue",
        "flush_statements.DUE",
        sql("FOR NO KEY UPDATE OF c SKIP LOCKED", "FOR UPDATE OF c SKIP LOCKED"),
        f"{_FLUSH}::test_a_flush_holds_up_no_queueing",
    ),
    Mutant(
        "an epoch begins by compare",
        "Store.begin_epoch",
        never("... != ..."),
        f"{_FLUSH}::test_an_epoch_does_not_begin_where_another_reader_moved_the_watermarks",
    ),
    Mutant(
        "a flush is on disk when it has committed",
        "FlushWriter",
        sql("SET LOCAL synchronous_commit = on", "SET LOCAL synchronous_commit = off"),
        f"{_FLUSH}::test_a_flush_is_on_disk_whatever_the_databases_default_says",
    ),
    Mutant(
        "a flush is tried again after a deadlock",
        "AGAIN",
        swap("pg.DeadlockDetected", "pg.SerializationFailure"),
        f"{_FLUSH}::test_after_a_deadlock_the_same_flush_is_tried_again",
    ),
    Mutant(
        "a flush is tried again after a lock timeout",
        "AGAIN",
        swap("pg.LockNotAvailable", "pg.SerializationFailure"),
        f"{_FLUSH}::test_after_a_lock_timeout_the_same_flush_is_tried_again",
    ),
    Mutant(
        "several flushes take their partitions in order",
        "pipeline.flush._once",
        swap("sorted(...,key=...)", "flushes"),
        f"{_FLUSH}::test_several_flushes_take_their_partitions_in_order",
    ),
    Mutant(
        "a record counts when all in-sync replicas have it",
        "Publisher.__init__",
        keyword("KafkaProducer", "acks", "1"),
        _TOPICS_ACKS,
    ),
    Mutant(
        "a record is sent once and in order",
        "Publisher.__init__",
        keyword("KafkaProducer", "enable_idempotence", "False"),
        _TOPICS_ACKS,
    ),
    Mutant(
        "an end counts when all records before it are acknowledged",
        "Publisher.poll",
        body(
            """
            for number, lane in enumerate(self._lanes):
                for it in [it for it in lane.waiting if it[0].is_done]:
                    lane.waiting.remove(it)
                    self.in_flight -= it[2]
                    lane.durable = it[1]
            """
        ),
        "tests/kafka/test_topics.py::test_an_end_counts_when_all_records_before_it_are_acknowledged",
    ),
    Mutant(
        "what another worker takes is given up",
        "Assignment.revoke",
        drop("self._held.pop(number).revoked = True"),
        "tests/kafka/test_worker.py::test_what_another_worker_takes_is_given_up",
    ),
    Mutant(
        "a record is acknowledged when it is written",
        "Worker._applied",
        swap("state.records += 1", "if True:\n    state.records += 1\n    record.token.ack()"),
        "tests/kafka/test_worker.py::test_nothing_is_acknowledged_that_is_not_written",
    ),
    Mutant(
        "after catching up the slot moves to what is confirmed, not to what was received",
        "Catchup.feedback",
        body("self._confirmed = max(self._confirmed, received)"),
        f"{_WAL}::test_after_catching_up_the_slot_stands_where_was_confirmed_and_not_where_was_read",
    ),
    Mutant(
        "the index is made beside the mailer's writes",
        "plan._index",
        sql("CREATE UNIQUE INDEX CONCURRENTLY", "CREATE UNIQUE INDEX"),
        "tests/postgres/test_setup_beside_writers.py",
    ),
    Mutant(
        "a server that says nothing is left",
        "WalReader.read",
        never("now - self._heard_at > SILENCE and not self.catching_up"),
        f"{_WAL}::test_a_server_that_says_nothing_is_left",
    ),
    Mutant(
        "transactions are remembered for as long as a recount may last",
        "wal_options",
        swap("settings.recount_timeout + settings.recount_lock_timeout", "0.0"),
        f"{_WAL}::test_a_recount_that_takes_its_time_can_still_be_compared",
    ),
    Mutant(
        "a closing window is counted twice between two repetitions",
        "Reconciler",
        swap("now + HALFWAY if closing is not None and not up else None", "None"),
        "tests/postgres/test_reconciler.py::test_the_pause_with_the_stream_stopped",
    ),
    Mutant(
        "records that were skipped on their way are read again before a gap is believed",
        "AssignedPartition._apply",
        never("skipped and ... and ..."),
        _ASSIGNMENT,
    ),
    Mutant(
        "a record seen before is let go only when it is written",
        "AssignedPartition.take",
        swap("durable is not None and record.offset < durable", "True"),
        _ASSIGNMENT,
    ),
    Mutant(
        "a partition with a record that can't be read is counted anew",
        "AssignedPartition._apply",
        drop("partition.unbase(GAP)"),
        _ASSIGNMENT,
    ),
    Mutant(
        "where PostgreSQL has less than was read the rest is read again",
        "AssignedPartition.load",
        never("self.next_offset is not None and record.offset > self.next_offset"),
        _ASSIGNMENT,
    ),
)
