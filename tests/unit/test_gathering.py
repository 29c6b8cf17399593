"""Group commit, without a database: who is served with whom, and what each is told."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from sagas import StoreUnavailable
from sagas.gathering import Gathering, closed
from tests.servers import wait_for


class Database:
    """Answers ten times each number, once it is let. Odd ones it can be told to stumble over."""

    def __init__(self) -> None:
        self.batches: list[Sequence[int]] = []
        self.free = threading.Event()
        self.error: Callable[[Sequence[int]], BaseException | None] = lambda _: None
        self.gathering: Gathering[int, int] = Gathering(self.serve, most=100)

    def serve(self, numbers: Sequence[int]) -> Sequence[int]:
        self.batches.append(numbers)
        assert self.free.wait(30)
        if (error := self.error(numbers)) is not None:
            raise error
        return [10 * number for number in numbers]

    def waiting(self) -> int:
        return len(self.gathering._callers)


@pytest.fixture
def database() -> Database:
    return Database()


@contextmanager
def asked(database: Database, count: int) -> Iterator[list[Future[int]]]:
    """Number 0 is being served, and the others have gathered behind it."""
    with ThreadPoolExecutor(count) as pool:
        calls = [pool.submit(database.gathering.ask, 0)]
        wait_for(lambda: database.batches == [[0]], 30, "the first is being served")
        calls += [pool.submit(database.gathering.ask, number) for number in range(1, count)]
        wait_for(lambda: database.waiting() == count - 1, 30, "the others have gathered")
        try:
            yield calls
        finally:
            database.free.set()


def test_one_alone_waits_for_nobody(database: Database) -> None:
    database.free.set()
    assert [database.gathering.ask(number) for number in (1, 2)] == [10, 20]
    assert database.batches == [[1], [2]]


def test_those_who_come_meanwhile_share_the_next_call_and_each_gets_its_own_answer(database: Database) -> None:
    with asked(database, 20) as calls:
        database.free.set()
        assert [call.result(30) for call in calls] == [10 * number for number in range(20)]
    assert [len(batch) for batch in database.batches] == [1, 19]


def test_no_call_is_larger_than_it_may_be(database: Database) -> None:
    database.gathering._most = 4
    with asked(database, 10) as calls:
        database.free.set()
        assert [call.result(30) for call in calls] == [10 * number for number in range(10)]
    assert [len(batch) for batch in database.batches] == [1, 4, 4, 1]


def test_a_database_that_is_gone_is_gone_for_all(database: Database) -> None:
    with asked(database, 5) as calls:
        database.error = lambda numbers: StoreUnavailable("gone") if len(numbers) > 1 else None
        database.free.set()
        assert calls[0].result(30) == 0
        for call in calls[1:]:
            with pytest.raises(StoreUnavailable):
                call.result(30)
    database.error = lambda _: None
    assert database.gathering.ask(1) == 10, "the next one is served"


def test_the_time_limit_of_one_caller_is_nothing_to_the_others(database: Database) -> None:
    with asked(database, 5) as calls:
        first = {}

        def limit(numbers: Sequence[int]) -> BaseException | None:
            if len(numbers) == 4:
                first["number"] = numbers[0]
                return TimeoutError("a soft time limit")
            return None

        database.error = limit
        database.free.set()
        ends = [call.exception(30) for call in calls]
        assert [number for number, end in enumerate(ends) if end is not None] == [first["number"]]
        assert [call.result() for call, end in zip(calls, ends, strict=True) if end is None] == [
            10 * number for number in range(5) if number != first["number"]
        ]


def test_a_caller_that_is_interrupted_leaves_and_holds_nobody_up(database: Database) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with asked(database, 2) as calls:
            main = threading.get_ident()

            def ring() -> None:
                wait_for(lambda: database.waiting() == 2, 30, "the main thread waits, too")
                signal.pthread_kill(main, signal.SIGUSR1)

            ringing = threading.Thread(target=ring)
            ringing.start()
            with pytest.raises(Interrupted):
                database.gathering.ask(7)
            ringing.join()
            database.free.set()
            assert [call.result(30) for call in calls] == [0, 10]
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert [7] not in database.batches
    assert database.gathering.ask(3) == 30


def test_whoever_leaves_passes_its_turn_on(database: Database) -> None:
    """The turn comes at the very moment of the interrupt."""
    gathering, interrupts = database.gathering, iter([True])

    class Turn:
        def __init__(self) -> None:
            self.lock = closed()
            self.release = self.lock.release

        def acquire(self, timeout: float) -> bool:
            came = self.lock.acquire(timeout=timeout)
            if threading.current_thread().name == "interrupted" and next(interrupts, False):
                raise TimeoutError("a soft time limit")
            return came

    ends: list[object] = []

    def ask(number: int) -> None:
        try:
            ends.append(gathering.ask(number))
        except TimeoutError:
            ends.append("interrupted")

    with pytest.MonkeyPatch.context() as patch, asked(database, 1):
        patch.setattr("sagas.gathering.closed", Turn)
        threads = []
        for number, name in ((1, "interrupted"), (2, "next")):
            threads.append(threading.Thread(target=ask, args=(number,), name=name))
            threads[-1].start()
            wait_for(lambda n=number: database.waiting() == n, 30, "it waits")  # type: ignore[misc]
        database.free.set()
        for thread in threads:
            thread.join(30)
    assert sorted(map(str, ends)) == ["20", "interrupted"]


def test_whoever_has_waited_long_enough_leaves(database: Database) -> None:
    with asked(database, 2) as calls:
        assert database.gathering.ask_within(0.1, 7) is None
        assert database.waiting() == 1
        database.free.set()
        assert [call.result(30) for call in calls] == [0, 10]
    assert database.batches == [[0], [1]]
    assert database.gathering.ask_within(0.1, 3) == 30


def test_whoever_leaves_while_its_item_is_served_is_missed_by_nobody(database: Database) -> None:
    slow = threading.Event()

    def serve(numbers: Sequence[int]) -> Sequence[int]:
        database.batches.append(numbers)
        assert (database.free if numbers == [0] else slow).wait(30)
        return numbers

    database.gathering._serve = serve
    with asked(database, 2) as calls, ThreadPoolExecutor(1) as pool:
        impatient = pool.submit(database.gathering.ask_within, 2, 7)
        wait_for(lambda: database.waiting() == 2, 30, "it has gathered, too")
        database.free.set()
        assert impatient.result(30) is None
        assert database.batches == [[0], [1, 7]]
        slow.set()
        assert [call.result(30) for call in calls] == [0, 1]
    assert database.gathering.ask(3) == 3


def test_a_forked_child_waits_for_nobody_of_its_parent(database: Database) -> None:
    with asked(database, 2):
        database.free.set()  # in the child nobody would
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            os._exit(0 if database.gathering.ask(4) == 40 else 1)
        assert os.waitpid(child, 0)[1] == 0
