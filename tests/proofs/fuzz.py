"""Corrupt and random input to every decoder: only errors of ours, and never a count from a message that lies.

Streams of the test builder are cut, flipped, spliced and repeated; records of the changes topic likewise. Whatever
comes must end in transactions, or in one of our own errors, within a bounded time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from random import Random

from connectors.kafka.codec import Decoder, encode
from stream.core.batch import Batch
from stream.core.entries import CampaignDeleted, Move, Truncate
from stream.core.errors import SentstreamError
from stream.core.fold import Fold
from stream.core.position import Position
from stream.core.status import STATUSES
from tests.core import wal

_LONG = 2.0  # seconds for one input: a decoder that loops


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    random = Random(given.seed or int(time.time()))
    tally: Counter[str] = Counter()
    wrong: list[str] = []
    end = time.monotonic() + 60 * given.minutes
    while time.monotonic() < end and len(wrong) < 5:
        began = time.monotonic()
        kind = random.choice(("fold", "record"))
        data = stream_of(random) if kind == "fold" else record_of(random)
        data = damaged(random, data)
        try:
            if kind == "fold":
                Fold().block(data)
            else:
                Decoder().decode(data, "changes", 0, 0)
            tally[f"{kind} taken"] += 1
        except SentstreamError:
            tally[f"{kind} refused"] += 1
        except Exception as error:  # what is looked for
            wrong.append(f"{kind}: {type(error).__name__}: {error}: {data[:200].hex()}")
        if time.monotonic() - began > _LONG:
            wrong.append(f"{kind}: took too long: {data[:200].hex()}")
    print("\n".join(wrong), file=sys.stderr)
    told = ", ".join(f"{n} {name}" for name, n in sorted(tally.items()))
    print(f"fuzz: {sum(tally.values())} inputs ({told}): {'all held' if not wrong else f'{len(wrong)} NOT HELD'}")
    return 1 if wrong else 0


def stream_of(random: Random) -> bytes:
    """A block of good messages: relations, then transactions of every kind."""
    blocks = [wal.relations()]
    for number in range(random.randint(1, 6)):
        messages = [_message(random) for _ in range(random.randint(1, 5))]
        blocks.append(wal.transaction(1000 * (number + 1), *messages, xid=700 + number))
    return b"".join(blocks)


def _message(random: Random) -> bytes:
    number, campaign = random.randint(1, 9), random.randint(1, 3)
    old, new = (wal.row(campaign, random.choice(STATUSES), number) for _ in range(2))
    return random.choice(
        (
            lambda: wal.QUEUE.insert(new),
            lambda: wal.QUEUE.update(old, new),
            lambda: wal.QUEUE.update(None, new),
            lambda: wal.QUEUE.delete(old),
            lambda: wal.truncate(wal.QUEUE),
            lambda: wal.CAMPAIGNS.insert(wal.campaign(campaign)),
            lambda: wal.CAMPAIGNS.update(None, wal.campaign(campaign, sent=number)),
            lambda: wal.recount(number, "700:700:", {campaign: (1, 2, 3, 4, 5, 6)}),
            wal.type_,
            wal.message,
        )
    )()


def record_of(random: Random) -> bytes:
    """A good record of the changes topic."""
    entries = tuple(
        (lsn, 0, random.choice((Move(lsn, 0, 1, 2), Truncate("queue"), CampaignDeleted(lsn)))) for lsn in range(1, 6)
    )
    return encode(Batch(0, random.getrandbits(40), Position(1), Position(9), 60_000_000, entries, 1))


def damaged(random: Random, data: bytes) -> bytes:
    """``data`` with a few bytes flipped, cut out, doubled or put in; or as it is."""
    for _ in range(random.choice((0, 1, 1, 2, 5))):
        at = random.randrange(len(data) + 1)
        to = min(len(data), at + random.choice((1, 1, 4, 30)))
        what = random.choice(("flip", "cut", "double", "noise", "end"))
        middle = {
            "flip": bytes(byte ^ 1 << random.randrange(8) for byte in data[at:to]),
            "cut": b"",
            "double": data[at:to] * 2,
            "noise": random.randbytes(to - at),
            "end": b"",
        }[what]
        data = data[:at] + middle + (b"" if what == "end" else data[to:])
    return data


if __name__ == "__main__":
    sys.exit(main())
