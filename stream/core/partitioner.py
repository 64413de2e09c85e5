"""Which partition a campaign belongs to: the one that Kafka's default partitioner gives its id as text.

So a record keyed by the campaign id, written by any Kafka client of anybody, meets our state on the same partition.
The hash is murmur2 as Kafka has it (``org.apache.kafka.common.utils.Utils.murmur2``), the sign bit cut off.
"""

from __future__ import annotations

from functools import lru_cache

_M = 0x5BD1E995
_SEED = 0x9747B28C
_32 = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """The 32-bit murmur2 hash of ``data``, unsigned."""
    length = len(data)
    h = _SEED ^ length
    whole = length & ~3
    for at in range(0, whole, 4):
        k = int.from_bytes(data[at : at + 4], "little") * _M & _32
        k = (k ^ k >> 24) * _M & _32
        h = (h * _M & _32) ^ k
    if whole != length:
        h = (h ^ int.from_bytes(data[whole:], "little")) * _M & _32
    h = (h ^ h >> 13) * _M & _32
    return h ^ h >> 15


@lru_cache(maxsize=1 << 17)
def partition_of(campaign: int, partitions: int) -> int:
    """The partition, 0 to ``partitions - 1``, of a campaign; embedded there is one, which is 0."""
    if partitions == 1:
        return 0
    return (murmur2(b"%d" % campaign) & 0x7FFFFFFF) % partitions
