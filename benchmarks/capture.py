"""A capture of the stream: the server's messages in a file, and their way through the core without a server.

    python -m benchmarks.capture record --database-url URL --slot SLOT FILE     peeks: the slot stays where it is
    python -m benchmarks.capture replay FILE                                    CPU seconds of each stage
    python -m benchmarks.capture make --transactions 200000 FILE                a mailer's day, made here

So that a slow side can be named: what a replay does not show, the server or the transfer costs.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from struct import pack, unpack_from
from typing import Any

from connectors.postgres.connect import connect
from stream.core.align import Alignment, Snapshot
from stream.core.batch import Batch, Batcher
from stream.core.entries import Counted, Recount, Transaction
from stream.core.fold import Fold
from stream.core.partition import Loaded, Partition
from stream.core.position import Position

#: bytes of a block, about what one look at the socket brings
BLOCK = 1 << 20
CAMPAIGNS = 50
_PEEK = """
SELECT data FROM pg_logical_slot_peek_binary_changes(%s::name, NULL, %s::int,
    'proto_version', '1', 'publication_names', %s::text, 'binary', 'true')"""


@dataclass(frozen=True, slots=True)
class Stages:
    """CPU seconds of each stage, and what went through."""

    fold: float
    align: float
    batch: float
    apply: float
    transactions: int
    bytes: int

    @property
    def whole(self) -> float:
        return self.fold + self.align + self.batch + self.apply


def replay(blocks: Iterable[bytes]) -> Stages:
    """Blocks of whole messages through fold, alignment, batches and a partition that is based."""
    clock = time.process_time
    fold, alignment, batcher = Fold(), Alignment(Snapshot(1, 1, frozenset())), Batcher(1, Position(0))
    partition = based_partition()
    spent = [0.0] * 4
    transactions = size = 0
    for block in blocks:
        at = [clock()]
        folded: list[Transaction] = fold.block(block)
        at.append(clock())
        aligned = alignment.follow(folded)
        at.append(clock())
        batches: list[Batch] = [*batcher.add(aligned), *batcher.cut(idle=False)]
        at.append(clock())
        for batch in batches:
            partition.apply(batch)
        partition.take(0.0)
        at.append(clock())
        spent = [total + later - earlier for total, earlier, later in zip(spent, at, at[1:], strict=False)]
        transactions += len(folded)
        size += len(block)
    return Stages(spent[0], spent[1], spent[2], spent[3], transactions, size)


def based_partition() -> Partition:
    """A partition behind its baseline, in which every campaign has rows to move."""
    partition = Partition()
    partition.load(Loaded(1, Position(0), False, 0, (), {}))
    counted = {n: Counted((1_000_000, 0, 0, 0, 0), 0) for n in range(1, CAMPAIGNS + 1)}
    entry = Recount(1, "start", 0, 0, counted)
    partition.apply(Batch(0, 1, Position(0), Position(1), 1, ((0, 0, entry),)))
    partition.take(0.0)
    return partition


def made(transactions: int) -> Iterator[bytes]:
    """A mailer's day: each row queued -> sending -> sent in transactions of its own, as pgoutput sends it."""
    relation = b"R" + pack(">I", 16_400) + b"public\0email_queue\0i" + pack(">H", 3)
    for name, oid in (("id", 20), ("campaign_id", 23), ("status", 1043)):
        relation += b"\1" + name.encode() + b"\0" + pack(">Ii", oid, -1)
    block, lsn = bytearray(relation), 1 << 24
    for number in range(transactions):
        row, to_sent = divmod(number, 2)
        statuses = (b"sending", b"sent") if to_sent else (b"queued", b"sending")
        lsn += 200
        moment = 700_000_000_000_000 + number * 1000
        block += pack(">cQqI", b"B", lsn, moment, 1000 + number)
        block += b"U" + pack(">I", 16_400) + b"K" + _tuple(row, statuses[0]) + b"N" + _tuple(row, statuses[1])
        block += pack(">cBQQq", b"C", 0, lsn, lsn + 40, moment)
        if len(block) >= BLOCK:
            yield bytes(block)
            block.clear()
    if block:
        yield bytes(block)


def _tuple(row: int, status: bytes) -> bytes:
    campaign = 1 + row % CAMPAIGNS
    return pack(">HcIqcIicI", 3, b"b", 8, row, b"b", 4, campaign, b"b", len(status)) + status


def recorded(database_url: str, slot: str, publication: str, most: int) -> Iterator[bytes]:
    """What the slot would bring next, in blocks; the slot is not moved."""
    block = bytearray()
    with connect(database_url, "capture") as connection, connection.cursor(binary=True) as cursor:
        for (data,) in cursor.execute(_PEEK, (slot, most, publication)):
            block += data
            if len(block) >= BLOCK:
                yield bytes(block)
                block.clear()
    if block:
        yield bytes(block)


def save(path: Path, blocks: Iterable[bytes]) -> int:
    """Write blocks, each behind its length, compressed; how many bytes they had."""
    size = 0
    with gzip.open(path, "wb", compresslevel=3) as file:
        for block in blocks:
            file.write(pack(">I", len(block)) + block)
            size += len(block)
    return size


def load(path: Path) -> Iterator[bytes]:
    """The blocks of a capture."""
    with gzip.open(path, "rb") as file:
        while head := file.read(4):
            yield file.read(unpack_from(">I", head)[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    record = commands.add_parser("record")
    record.add_argument("--database-url", required=True)
    record.add_argument("--slot", default="sentstream")
    record.add_argument("--publication", default="sentstream")
    record.add_argument("--most", type=int, default=1_000_000, help="messages (default: %(default)s)")
    make = commands.add_parser("make")
    make.add_argument("--transactions", type=int, default=200_000)
    for command in (record, make, commands.add_parser("replay")):
        command.add_argument("file", type=Path)
    given = parser.parse_args()
    if given.command == "replay":
        print(json.dumps(as_json(replay(list(load(given.file))))))
        return 0
    blocks = (
        made(given.transactions)
        if given.command == "make"
        else recorded(given.database_url, given.slot, given.publication, given.most)
    )
    print(f"{save(given.file, blocks)} bytes of messages in {given.file}")
    return 0


def as_json(stages: Stages) -> dict[str, Any]:
    names = ("fold", "align", "batch", "apply", "whole")
    return {name: round(getattr(stages, name), 3) for name in names} | {
        "transactions": stages.transactions,
        "bytes": stages.bytes,
    }


if __name__ == "__main__":
    sys.exit(main())
