"""Takes the rules of the design out, one at a time, in a copy of the source: the tests beside each must then fail.

A rule whose removal no test notices is a rule that nobody holds: the exit status is 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_SIMULATE = "-m tests.proofs.simulate --seeds 4000"


@dataclass(frozen=True, slots=True)
class Mutant:
    """``rule``: in the design's words; ``old`` becomes ``new`` in ``file``; ``tests``: pytest's words, or a module."""

    rule: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS = (
    Mutant(
        "TRUNCATE is a barrier",
        "stream/core/fold.py",
        '            self._flush_pairs(current)\n            current.ordered.append(Truncate("queue"))',
        '            current.ordered.append(Truncate("queue"))',
        "tests/core/test_fold.py",
    ),
    Mutant(
        "the moves of a deleted campaign are dropped",
        "stream/core/fold.py",
        "if step[0] not in current.dead:",
        "if True:",
        "tests/core/test_fold.py",
    ),
    Mutant(
        "our own transactions are told by the watermarks they touch",
        "stream/core/fold.py",
        "            current.ours = True\n",
        "            current.ours = False\n",
        "tests/core/test_fold.py",
    ),
    Mutant(
        "an identity that can't be counted from is refused",
        "stream/core/fold.py",
        'if relation.identity in "dn":',
        'if relation.identity in "":',
        "tests/core/test_fold.py",
    ),
    Mutant(
        "a batch that begins beyond the position is a gap",
        "stream/core/partition.py",
        "if batch.begin > self.position:",
        "if False:",
        "tests/core/test_partition.py",
    ),
    Mutant(
        "a repetition is ignored",
        "stream/core/partition.py",
        "if batch.end <= self.position:",
        "if False:",
        "tests/core/test_partition.py",
    ),
    Mutant(
        "entries below the position are skipped",
        "stream/core/partition.py",
        "if batch.begin < self.position:",
        "if False:",
        "tests/core/test_partition.py",
    ),
    Mutant(
        "while not based, moves are dropped",
        "stream/core/partition.py",
        "                if not self.based:\n                    continue\n",
        "",
        "tests/core/test_partition.py",
    ),
    Mutant(
        "an older epoch is ignored",
        "stream/core/partition.py",
        "if batch.epoch < self.epoch:",
        "if False:",
        "tests/core/test_partition.py",
    ),
    Mutant(
        "every entry is in exactly one batch",
        "stream/core/batch.py",
        "part.begin, part.entries = end, []",
        "part.begin = end",
        "tests/core/test_batch_tiles.py",
    ),
    Mutant(
        "a recount's counts are completed by what its snapshot could not see",
        "stream/core/align.py",
        "if not snapshot.sees(other):",
        "if False:",
        _SIMULATE,
    ),
    Mutant(
        "conclusive only above X, drawn after the slot was taken",
        "stream/core/align.py",
        "if snapshot.xmin <= self._x:",
        "if False:",
        _SIMULATE,
    ),
    Mutant(
        "conclusive only if it sees all that was forgotten",
        "stream/core/align.py",
        "if not snapshot.sees_all_of(self._h):\n            return (",
        "if False:\n            return (",
        _SIMULATE,
    ),
    Mutant(
        "a position beyond the server's WAL begins an epoch",
        "stream/core/epoch.py",
        "if furthest > server.wal_end:",
        "if False:",
        "tests/core/test_epoch.py",
    ),
    Mutant(
        "another number of partitions begins an epoch",
        "stream/core/epoch.py",
        "!= list(range(partitions)):",
        "!= list(range(partitions)) and False:",
        "tests/core/test_epoch.py",
    ),
    Mutant(
        "an empty batch is flushed on the tick only",
        "stream/core/pace.py",
        "return waiting.moved and since >= TICK",
        "return waiting.moved and since >= self.interval",
        "tests/core/test_pace.py",
    ),
    Mutant(
        "a recount is due as long as any watermark is not based",
        "stream/core/schedule.py",
        "    if not facts.based:\n        on_its_way",
        "    if False:\n        on_its_way",
        "tests/core/test_schedule.py",
    ),
    Mutant(
        "a campaign first met in the stream keeps what it shows",
        "stream/core/partition.py",
        "removed = max(0, known.sent) if known is not None and self._keep else 0",
        "removed = 0",
        "tests/core/test_partition.py",
    ),
    Mutant(
        "the lock comes first",
        "connectors/postgres/store/recount.py",
        "SET LOCAL random_page_cost = 1;",
        "SET LOCAL random_page_cost = 1; SELECT 1;",
        "tests/postgres/test_recount.py -k lock_comes_before",
    ),
    Mutant(
        "every recount also looks at publication and identity",
        "connectors/postgres/store/recount.py",
        "        _check_conformance(conn, publication, mailer_schema)\n",
        "",
        "tests/postgres/test_recount.py -k no_longer_as_setup",
    ),
    Mutant(
        "the watermark moves by compare-and-swap",
        "connectors/postgres/store/partitions.py",
        "AND lsn = %s::pg_lsn AND seq = %s::bigint",
        "AND (true OR lsn = %s::pg_lsn AND seq = %s::bigint)",
        "tests/postgres/test_faults.py -k late_writes",
    ),
    Mutant(
        "a counter is written only from the floor on",
        "connectors/postgres/store/partitions.py",
        "    WHERE p.floor_lsn IS NULL OR p.floor_lsn <= %(lsn)s::pg_lsn\n",
        "    WHERE true OR %(lsn)s::pg_lsn IS NULL\n",
        "tests/postgres/test_recount_raising.py",
    ),
    Mutant(
        "a locked campaign is skipped and stays due",
        "connectors/postgres/store/partitions.py",
        "FOR NO KEY UPDATE OF c SKIP LOCKED",
        "FOR NO KEY UPDATE OF c",
        "tests/postgres/test_limits.py -k locked",
    ),
    Mutant(
        "publication and identity are looked at while counting",
        "stream/pipeline/wal_reader.py",
        "                    conform(self._connection, self._options)\n",
        "                    pass\n",
        "tests/postgres/test_limits.py -k loudly",
    ),
    Mutant(
        "only what is flushed is confirmed",
        "stream/embedded/session.py",
        "        self._reader.confirm(flush.position.lsn)\n",
        "        self._reader.confirm(flush.position.lsn + (1 << 40))\n",
        "tests/postgres/test_faults.py -k random_under_load",
    ),
    Mutant(
        "FULL and a column list never meet",
        "connectors/postgres/setup/plan.py",
        'yield from publication + identity if target == "full" and has_list else identity + publication',
        "yield from identity + publication",
        "tests/postgres/test_setup.py -k never_meet",
    ),
    Mutant(
        "an end is confirmed when every partition has it",
        "connectors/kafka/publish.py",
        "return min(lane.durable for lane in self._lanes)",
        "return max(lane.durable for lane in self._lanes)",
        "tests/kafka/test_topics.py -k durable_when_every_partition",
    ),
)


def noticed(mutant: Mutant) -> tuple[Mutant, bool | None, float]:
    """Whether the tests fail without the rule; None: the source no longer has the text that is to be changed."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sentstream-mutant-") as folder:
        for name in ("stream", "connectors", "tests", "pyproject.toml", "benchmarks", "docs"):
            source = ROOT / name
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, Path(folder) / name)
        file = Path(folder) / mutant.file
        text = file.read_text()
        if text.count(mutant.old) != 1:
            return mutant, None, 0.0
        file.write_text(text.replace(mutant.old, mutant.new))
        words = mutant.tests.split()
        if words[0] != "-m":
            words = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *words]
        environment = {**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        result = subprocess.run(
            [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
    return mutant, result.returncode == 1, time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only those that need no server")
    given = parser.parse_args()
    chosen = [m for m in MUTANTS if not (given.quick and m.tests.startswith(("tests/postgres", "tests/kafka")))]
    unseen = 0
    with ThreadPoolExecutor(2) as pool:
        for mutant, seen, seconds in pool.map(noticed, chosen):
            word = {True: "noticed", False: "NOT NOTICED", None: "STALE: the source has changed"}[seen]
            unseen += not seen
            print(f"{word:12} {seconds:5.0f} s  {mutant.rule}  ({mutant.tests})", flush=True)
    print(
        f"mutants: {len(chosen)} rules taken out, {len(chosen) - unseen} noticed: "
        f"{'all held' if not unseen else 'NOT HELD'}"
    )
    return 1 if unseen else 0


if __name__ == "__main__":
    sys.exit(main())
