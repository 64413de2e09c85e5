"""Rules of the pure core, each taken out where it stands. No server is needed to notice."""

from __future__ import annotations

from tests.proofs.mutation.changes import always, body, drop, never, swap
from tests.proofs.mutation.mutant import Mutant

_SIMULATE = "-m tests.proofs.simulate --seeds 4000"
_FOLD = "tests/core/test_fold.py"
_PARTITION = "tests/core/test_partition.py"

CORE = (
    Mutant(
        "TRUNCATE is a barrier",
        "Fold._truncate",
        drop("self._flush_pairs(current)"),
        _FOLD,
    ),
    Mutant(
        "the moves of a deleted campaign are dropped",
        "Fold._flush_pairs",
        always("step[0] not in current.dead"),
        _FOLD,
    ),
    Mutant(
        "a counter that the log shows otherwise is due, whoever wrote it",
        "Partition._campaign_changed",
        swap("entry.sent != campaign.sent", "False"),
        _PARTITION,
    ),
    Mutant(
        "an identity that can't be counted from is refused",
        "check_queue",
        never("relation.identity in 'dn'"),
        _FOLD,
    ),
    Mutant(
        "a batch that begins beyond the position is a gap",
        "Partition.apply",
        never("batch.begin > self.position"),
        _PARTITION,
    ),
    Mutant(
        "a repetition is ignored",
        "Partition.apply",
        never("batch.end <= self.position"),
        _PARTITION,
    ),
    Mutant(
        "entries below the position are skipped",
        "Partition.apply",
        never("batch.begin < self.position"),
        _PARTITION,
    ),
    Mutant(
        "while not based, moves are dropped",
        "Partition._apply_entries",
        never("not self.based"),
        _PARTITION,
    ),
    Mutant(
        "an older epoch is ignored",
        "Partition.apply",
        never("batch.epoch < self.epoch"),
        _PARTITION,
    ),
    Mutant(
        "every entry is in exactly one batch",
        "Batcher._close",
        swap("part.begin, part.entries = end, []", "part.begin = end"),
        "tests/core/test_batch_tiles.py",
    ),
    Mutant(
        "a recount's counts are completed by what its snapshot could not see",
        "Alignment.align",
        never("not snapshot.sees(other)"),
        _SIMULATE,
    ),
    Mutant(
        "conclusive only if it sees what may have committed before the slot was taken",
        "Alignment._reason",
        never("unseen is not None"),
        _SIMULATE,
    ),
    Mutant(
        "conclusive only above what was forgotten for want of memory",
        "Alignment._reason",
        never("snapshot.xmin <= self._evicted"),
        _SIMULATE,
    ),
    Mutant(
        "conclusive only if it sees all that was forgotten",
        "Alignment._reason",
        never("not snapshot.sees_all_of(self._h)"),
        _SIMULATE,
    ),
    Mutant(
        "a table of ours under another name is never passed over",
        "Tables.role",
        swap("names >= _QUEUE or names >= _CAMPAIGNS", "False"),
        _FOLD,
    ),
    Mutant(
        "what is not known of a transaction is a gap",
        "Batcher._leave_gap",
        swap("at.seq + 1", "at.seq"),
        "tests/core/test_batch.py",
    ),
    Mutant(
        "what a counter has counted already is known after a load",
        "Partition.load",
        swap("row.unmatched", "0"),
        _PARTITION,
    ),
    Mutant(
        "a recount row that can't be read is inconclusive",
        "Alignment.align",
        never("row.fault is not None"),
        "tests/core/test_recount_row.py",
    ),
    Mutant(
        "a position beyond the server's WAL begins an epoch",
        "other_history",
        never("furthest > server.wal_end"),
        "tests/core/test_epoch.py",
    ),
    Mutant(
        "another number of partitions begins an epoch",
        "reason_for_new_epoch",
        never("... != list(range(partitions))"),
        "tests/core/test_epoch.py",
    ),
    Mutant(
        "an empty batch is flushed on the tick only",
        "FlushPace.due",
        swap("TICK", "self.interval"),
        "tests/core/test_pace.py",
    ),
    Mutant(
        "a recount is due as long as any watermark is not based",
        "_levels",
        never("not facts.based"),
        "tests/core/test_schedule.py",
    ),
    Mutant(
        "a campaign first met in the stream keeps what it shows",
        "Partition._meet",
        swap(
            "removed = max(0, campaign.mailer.sent) if campaign.mailer is not None and self._keep else 0", "removed = 0"
        ),
        _PARTITION,
    ),
    Mutant(
        "a newer epoch asks for a load",
        "Partition.apply",
        never("batch.epoch > self.epoch"),
        _PARTITION,
    ),
    Mutant(
        "a row that changes its campaign is no removal",
        "Fold._decode",
        swap("MOVED", "REMOVED"),
        _FOLD,
    ),
    Mutant(
        "the recount before a pause runs before the window closes",
        "window.recounts",
        swap("closing - LEAD", "closing + LEAD"),
        "tests/core/test_window.py::test_the_recount_runs_shortly_before_the_minute_after_the_end",
    ),
    Mutant(
        "a counter of before is no longer fresh",
        "progress.stale",
        body("return not based"),
        "tests/core/test_progress.py",
    ),
    Mutant(
        "each run of a chain carries the digest of the one before",
        "digest._break",
        always("link.previous == last"),
        "tests/core/test_digest.py",
    ),
    Mutant(
        "a position that went back is told",
        "lag.judge",
        never("_went_back(seen)"),
        "tests/core/test_lag.py",
    ),
)
