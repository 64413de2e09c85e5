"""The partition of a campaign is the one that any Kafka client's default partitioner gives its id as text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from kafka.partitioner.default import murmur2 as of_kafka_python

from stream.core.partitioner import murmur2, partition_of


@given(st.binary(max_size=40))
def test_the_hash_is_kafkas(data: bytes) -> None:
    assert murmur2(data) == of_kafka_python(data)


def test_vectors_of_kafkas_own_tests() -> None:
    # org.apache.kafka.common.utils.UtilsTest.testMurmur2, as signed 32-bit numbers
    vectors = {
        b"21": -973932308,
        b"foobar": -790332482,
        b"a-little-bit-long-string": -985981536,
        b"a-little-bit-longer-string": -1486304829,
        b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    }
    for data, expected in vectors.items():
        assert murmur2(data) == expected & 0xFFFFFFFF


@given(st.integers(1, 2**31 - 1), st.integers(1, 1000))
def test_a_campaign_has_one_partition(campaign: int, partitions: int) -> None:
    expected = (of_kafka_python(str(campaign).encode()) & 0x7FFFFFFF) % partitions
    assert partition_of(campaign, partitions) == expected


def test_embedded_there_is_one_partition() -> None:
    assert {partition_of(campaign, 1) for campaign in range(1, 100)} == {0}


def test_campaigns_spread_over_the_partitions() -> None:
    counts = [0] * 12
    for campaign in range(1, 10_001):
        counts[partition_of(campaign, 12)] += 1
    assert min(counts) > 700
