"""Rules of what is asked and shown: HTTP, lag, metrics, doctor."""

from __future__ import annotations

from tests.proofs.mutation.changes import body, drop, never, swap
from tests.proofs.mutation.mutant import Mutant

_LAG = "tests/kafka/test_group_lag.py::test_where_nothing_was_ever_committed_the_lag_is_not_known"
_COUNTERS = "tests/ops/test_counting_metrics.py"

INTERFACES = (
    Mutant(
        "now is what the database's clock says",
        "LiveState.set_clock",
        swap("database_now - datetime.now(...)", "datetime.now(timezone.utc) - database_now"),
        "tests/interfaces/test_live_state.py",
    ),
    Mutant(
        "of several readings of a clock the one with the shortest delay holds",
        "LiveState.now",
        swap("max(...,default=...)", "min(self._offsets, default=timedelta(0))"),
        "tests/interfaces/test_live_state.py",
    ),
    Mutant(
        "a token is the whole token",
        "same_token",
        body("return bool(given) and token.startswith(given)"),
        "tests/interfaces/test_security.py::test_no_call_works_without_the_token",
    ),
    Mutant(
        "where nothing is committed the lag is not known",
        "PartitionLag.lag",
        swap(
            "None if self.current_offset is None else ...", "max(0, self.log_end_offset - (self.current_offset or 0))"
        ),
        _LAG,
    ),
    Mutant(
        "where nothing is committed its age is not known",
        "LagReader._age",
        swap("return None", "return 0.0"),
        _LAG,
    ),
    Mutant(
        "a slot that holds half of what it may is told",
        "doctor.slot.slot_disk",
        never("limit > 0 and held > limit << 19"),
        "tests/postgres/test_doctor_server.py::test_a_slot_that_holds_half_of_what_it_may_is_told",
    ),
    Mutant(
        "retries of flushes are counted",
        "FlushMetrics.retried",
        body("return"),
        _COUNTERS,
    ),
    Mutant(
        "runs are counted",
        "RecountMetrics.observe",
        drop("self._runs.labels(report.run.trigger).inc()"),
        _COUNTERS,
    ),
    Mutant(
        "sealed runs reach the counters",
        "Reconciler._report",
        drop("self.metrics.observe(report)"),
        "tests/ops/test_metrics.py::test_run_shows_what_is_true_and_what_the_process_does",
    ),
    Mutant(
        "secrets are masked in the log",
        "_Masking.masked",
        body("return text"),
        "tests/interfaces/test_config_logs.py",
    ),
    Mutant(
        "a host that is not ours is refused",
        "AccessRules.knows_host",
        body("return True"),
        "tests/interfaces/test_security.py::test_a_host_that_is_not_ours_is_refused",
    ),
    Mutant(
        "a cookie of another is refused",
        "AccessRules.accepts_cookie",
        swap("hmac.compare_digest(...,...)", "True"),
        "tests/interfaces/test_security.py::test_a_cookie_can_not_be_made_or_kept_beyond_its_time",
    ),
)
