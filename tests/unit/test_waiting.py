"""Who waits in an event loop: looked at together, let go at once, and told what went wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import pytest

from sagas import Saga, SagaNotFound, SagaStatus, Step, StoreUnavailable, WaitTimeout
from sagas.testing import Inline
from sagas.waiting import Waiters

DONE = SagaStatus.COMPLETED


class Store:
    """Has every saga, RUNNING until it ends."""

    def __init__(self) -> None:
        self.asked: list[set[str]] = []
        self.ended: dict[str, SagaStatus] = {}
        self.missing: set[str] = set()
        self.error: Exception | None = None

    def statuses(self, saga_ids: Collection[str]) -> Mapping[str, SagaStatus]:
        self.asked.append(set(saga_ids))
        if self.error is not None:
            raise self.error
        return {each: self.ended.get(each, SagaStatus.RUNNING) for each in saga_ids if each not in self.missing}

    async def to_thread(self, function: Callable[[], Any]) -> Any:
        await asyncio.sleep(0.001)
        return function()


def tasks() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "sagas-waiting"]


def test_all_are_asked_for_together() -> None:
    store = Store()

    async def main() -> None:
        waiters = Waiters(store)
        ids = [str(n) for n in range(500)]
        waiting = [asyncio.create_task(waiters.end(each, 30)) for each in ids]
        await asyncio.sleep(1)
        assert len(tasks()) == 1
        assert max(map(len, store.asked)) == 500
        asked = len(store.asked)
        assert asked < 20
        await asyncio.sleep(1)
        assert len(store.asked) - asked <= 5, "the pauses have grown"
        store.ended = dict.fromkeys(ids, DONE)
        assert await asyncio.gather(*waiting) == [DONE] * 500
        await asyncio.sleep(0.05)
        assert tasks() == []

    asyncio.run(main())


def test_those_who_come_one_by_one_do_not_have_the_others_asked_for_each_time() -> None:
    store = Store()

    async def main() -> None:
        waiters = Waiters(store)
        waiting = []
        for n in range(200):
            waiting.append(asyncio.create_task(waiters.end(str(n), 30)))
            await asyncio.sleep(0.005)
        assert sum(map(len, store.asked)) < 200 * 15
        store.ended = {str(n): DONE for n in range(200)}
        await asyncio.gather(*waiting)

    asyncio.run(main())
    assert len(store.asked) < 200


@pytest.mark.parametrize("timeout", [0, 0.2])
def test_a_timeout(timeout: float) -> None:
    store = Store()

    async def main() -> None:
        waiters = Waiters(store)
        with pytest.raises(WaitTimeout, match=rf"saga a is not at its end after {timeout:g} s: it is RUNNING"):
            await waiters.end("a", timeout)
        store.ended["b"] = DONE
        assert await waiters.end("b", timeout) is DONE  # it looks once, however short that is

    asyncio.run(main())
    assert store.asked


def test_a_waiter_that_is_cancelled_leaves_the_others() -> None:
    store = Store()

    async def main() -> None:
        waiters = Waiters(store)
        gone, stays = (asyncio.create_task(waiters.end(each, None)) for each in "ab")
        await asyncio.sleep(0.05)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        store.asked.clear()
        async with asyncio.timeout(20):
            while len(store.asked) < 4:  # noqa: ASYNC110 - the store tells nobody
                await asyncio.sleep(0.01)
        assert set().union(*store.asked[1:]) == {"b"}, "the first may have been on its way when the waiter left"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await waiters.end("c", None)
        store.ended["b"] = DONE
        assert await stays is DONE

    asyncio.run(main())


def test_a_database_that_is_away_is_outwaited_by_those_with_a_timeout() -> None:
    store = Store()
    store.error = StoreUnavailable("the database did not answer: away")

    async def main() -> None:
        waiters = Waiters(store)
        patient = asyncio.create_task(waiters.end("a", 30))
        with pytest.raises(StoreUnavailable):
            await waiters.end("b", None)
        with pytest.raises(WaitTimeout, match="away"):
            await waiters.end("c", 0.05)
        store.error, store.ended["a"] = None, DONE
        assert await patient is DONE
        store.error = ZeroDivisionError()
        with pytest.raises(ZeroDivisionError):
            await waiters.end("d", 30)

    asyncio.run(main())


def test_a_saga_that_is_not_there() -> None:
    store = Store()
    store.missing = {"a"}

    async def main() -> None:
        waiters = Waiters(store)
        other = asyncio.create_task(waiters.end("b", 30))
        with pytest.raises(SagaNotFound, match="'a'"):
            await waiters.end("a", 30)
        store.ended["b"] = DONE
        assert await other is DONE

    asyncio.run(main())


def test_each_loop_has_its_own_and_leaves_nothing() -> None:
    store = Store()
    waiters = Waiters(store)

    async def abandon() -> None:
        task = asyncio.create_task(waiters.end("a", None))
        await asyncio.sleep(0.02)
        assert not task.done()  # the loop closes, and cancels it

    async def cancelled() -> None:
        task = asyncio.create_task(waiters.end("a", None))
        await asyncio.sleep(0.02)
        for each in asyncio.all_tasks() - {asyncio.current_task()}:
            each.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        store.ended["a"] = DONE
        assert await waiters.end("a", 30) is DONE

    for _ in range(3):
        asyncio.run(abandon())
    asyncio.run(cancelled())
    assert len(waiters._pollers) == 1


def test_a_loop_goes_on_while_the_database_is_slow() -> None:
    class Slow(Store):
        async def to_thread(self, function: Callable[[], Any]) -> Any:
            await asyncio.to_thread(time.sleep, 0.2)
            return function()

    async def main() -> None:
        longest, last, store = 0.0, time.monotonic(), Slow()
        waiting = asyncio.create_task(Waiters(store).end("a", 30))
        for n in range(60):
            await asyncio.sleep(0.005)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
            if n == 40:
                store.ended["a"] = DONE
        assert longest < 0.15
        await waiting

    asyncio.run(main())


def test_handles_of_inline_runs() -> None:
    handle = Inline().start(Saga("greet", Step("hello", lambda: "hi", compensation=None)))

    async def main() -> None:
        assert await handle.await_end(timeout=5) is DONE
        assert await handle.astatus() is DONE
        assert (await handle.aresult())["hello"] == "hi"
        assert (await handle.arecord()).id == handle.id

    asyncio.run(main())
