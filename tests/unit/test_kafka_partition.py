"""How often a message of Kafka was given out, through any number of readers that die."""

from __future__ import annotations

from collections import Counter

from confluent_kafka import OFFSET_INVALID, TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from sagas.events.brokers.kafka.partition import Partition

#: What one reader does: how many it reads at a time, which of those it acknowledges, and how often it goes on.
LIFE = st.lists(st.tuples(st.integers(1, 5), st.sets(st.integers(0, 30))), max_size=4)


@given(st.lists(LIFE, max_size=6))
def test_deliveries_are_counted_over_the_lives_of_readers(lives: list[list[tuple[int, set[int]]]]) -> None:
    committed = TopicPartition("t", 0, 0, "")
    count: Counter[int] = Counter()
    acknowledged: set[int] = set()
    for lifecycle_events in lives:
        partition = Partition.of(committed)
        for size, acks in lifecycle_events:
            begin = partition.position
            assert begin is not None
            for offset in range(begin, begin + size):
                partition.read(offset)
                count[offset] += 1
                assert partition.deliveries(offset) == count[offset]
                partition.give(offset)
            for offset in sorted(acks, reverse=True):
                partition.unacknowledged.pop(offset, None)
                if offset in count:
                    acknowledged.add(offset)
            to_commit = partition.to_commit()
            assert to_commit is not None
            read = set(range(begin + size))
            assert to_commit[0] <= min(read - acknowledged, default=begin + size)
            committed = TopicPartition("t", 0, *to_commit)


def test_what_was_never_committed_and_what_others_committed() -> None:
    assert Partition.of(TopicPartition("t", 0, OFFSET_INVALID)).to_commit() is None
    foreign = Partition.of(TopicPartition("t", 0, 7, "not ours"))
    foreign.read(7)
    assert foreign.deliveries(7) == 1
    assert foreign.to_commit() == (7, "")


def test_what_is_passed_over_is_not_counted() -> None:
    partition = Partition.of(TopicPartition("t", 0, 0, ""))
    partition.read(0)
    partition.read(1)
    del partition.unacknowledged[0]
    partition.give(1)
    assert partition.to_commit() == (1, "[[2,1]]")
