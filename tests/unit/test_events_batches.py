"""Which messages a consumer puts into a batch, and what it does when one is rolled back: a database file, a broker in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import select
from sqlalchemy.orm import Session

from sagas import Retry, RetryableError, SqlStore, TerminalError
from sagas.contrib.opentelemetry import Tracing
from sagas.errors import DefinitionError
from sagas.events import Events, HandlerContext, Service, event
from sagas.events.brokers.memory import MemoryBroker
from sagas.events.inbox import Batch, Call, End, Outcome
from sagas.events.runners import InProcess, InThread
from sagas.observers import Handling, Observer
from sagas.stores import schema
from tests.servers import wait_for

QUICK = Retry(max_attempts=3, delay=0.01, jitter=0)
QUEUE = "stock.count"
SIZE = 5


@event("orders.order.placed")
class OrderPlaced:
    number: int


@event("stock.item.counted")
class ItemCounted:
    number: int


class Seen(Observer):
    """What observers hear."""

    def __init__(self) -> None:
        self.handled: list[tuple[str, str | None, float]] = []
        self.ends: list[str] = []

    @contextmanager
    def during(self, work: Any) -> Iterator[None]:
        yield
        if isinstance(work, Handling):
            self.handled.append((work.event_id, work.outcome, work.seconds))

    def delivered(self, queue: str, end: str) -> None:
        self.ends.append(end)


class Rig:
    def __init__(self, folder: Path, guards: Any = None, **options: Any) -> None:
        self.behave: dict[int, Callable[[HandlerContext], object]] = {}
        self.seen: list[int] = []
        self.works: list[list[int]] = []  #: the numbers of what was handled together
        self.observer = Seen()
        orders, stock = Service("orders", publishes=[OrderPlaced]), Service("stock", publishes=[ItemCounted])

        @stock.on(OrderPlaced, emits=[ItemCounted], retry=QUICK, batch_size=SIZE, **options)
        def count(event: OrderPlaced, context: HandlerContext) -> None:
            self.seen.append(event.number)
            if event.number in self.behave:
                self.behave[event.number](context)

        self.store = SqlStore(f"sqlite:///{folder / 'shop.db'}")
        self.store.upgrade()
        self.broker = MemoryBroker()
        self.events = Events([orders, stock], engine=self.store.engine, broker=self.broker, guards=guards)
        self.events.observers.add(self.observer)
        self.events.apply_topology()

    def deliver(self, *numbers: int, key: str | None = None) -> list[str]:
        """Send messages, one after the other: the relay keeps the order only within a key."""
        sent = []
        for number in numbers:
            with Session(self.store.engine) as session, session.begin():
                sent.append(self.events.publish(OrderPlaced(number=number), session, key=key).event_id)
            self.events.relay.send()
        return sent

    def handle(self, work: Call | Batch) -> Outcome | Sequence[Outcome]:
        calls = [work] if isinstance(work, Call) else work.calls
        self.works.append([int(call.body.partition(b'"number":')[2].partition(b"}")[0]) for call in calls])
        return self.events.handle(work)

    @contextmanager
    def consuming(self, *, threads: int = 4) -> Iterator[None]:
        with ThreadPoolExecutor(threads or 1) as executor:
            runner = InProcess(self.handle, executor) if threads else InThread(self.handle)
            consumers = self.events.consumers(runner, [QUEUE])
            consumers.start()
            try:
                yield
            finally:
                consumers.stop(5)
                assert consumers.join(10)

    def is_empty(self) -> bool:
        return self.broker.depth(QUEUE) == 0


@pytest.fixture(autouse=True)
def no_idling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sagas.events.consumer._IDLE", 0.05)


@pytest.fixture
def make_rig(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(**options: Any) -> Rig:
        made.append(Rig(tmp_path, **options))
        return made[-1]

    yield make
    for rig in made:
        rig.store.engine.dispose()


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    return make_rig()


def fail(_: HandlerContext) -> None:
    raise RuntimeError("broken")


def refuse(_: HandlerContext) -> None:
    raise TerminalError("refused")


@pytest.mark.parametrize("size", [0, -1, True, 2.5, "5"])
def test_a_batch_size_is_a_whole_number(size: Any) -> None:
    with pytest.raises(DefinitionError, match="batch_size"):
        Service("stock").on(OrderPlaced, name="count", batch_size=size)(lambda event: None)


@pytest.mark.parametrize("threads", [4, 0])
def test_what_waits_is_handled_together(rig: Rig, threads: int) -> None:
    rig.deliver(*range(12))
    with rig.consuming(threads=threads):
        wait_for(rig.is_empty, 10)
    assert sorted(rig.seen) == list(range(12))
    assert sorted(map(len, rig.works)) == [2, SIZE, SIZE]
    assert rig.observer.ends == ["handled"] * 12


def test_one_that_comes_alone_does_not_wait_for_others(rig: Rig) -> None:
    with rig.consuming():
        for number in range(3):
            rig.deliver(number)
            wait_for(rig.is_empty, 10)
    assert rig.works == [[0], [1], [2]]


def test_only_the_bad_one_fails(rig: Rig) -> None:
    rig.behave = {1: fail, 3: refuse}
    rig.deliver(*range(5))
    with rig.consuming():
        wait_for(lambda: len(rig.events.dead_letters()) == 2 and rig.is_empty(), 10)
    assert rig.works[0] == [0, 1, 2, 3, 4]
    assert sorted(rig.works[1:]) == [[0], [1], [1], [1], [2], [3], [4]]
    letters = {letter.body.partition(b'"number":')[2][:1]: letter for letter in rig.events.dead_letters()}
    assert {number: (letter.attempts, letter.error) for number, letter in letters.items()} == {
        b"1": (3, "RuntimeError: broken"),
        b"3": (0, "TerminalError: refused"),
    }
    assert sorted(rig.observer.ends) == ["dead_lettered"] * 2 + ["failed"] * 3 + ["handled"] * 3 + ["rejected"]


def test_the_messages_of_a_key_stay_in_order(rig: Rig) -> None:
    rig.behave = {2: lambda context: fail(context) if context.attempt == 1 else None, 107: refuse}
    rig.deliver(*range(12), key="a")
    rig.deliver(*range(100, 112), key="b")
    with rig.consuming():
        wait_for(rig.is_empty, 10)
    for first, bad in ((0, None), (100, 107)):
        done = [n for n in rig.seen if first <= n < first + 50]
        last = {number: position for position, number in enumerate(done)}  # what is handled last is what is kept
        assert [n for n in sorted(last, key=last.__getitem__) if n != bad] == [
            n for n in range(first, first + 12) if n != bad
        ]
    assert max(map(len, rig.works)) == SIZE


def test_nothing_is_acknowledged_before_all_of_it_is_committed(rig: Rig) -> None:
    began, go = threading.Event(), threading.Event()

    def wait(_: HandlerContext) -> None:
        began.set()
        go.wait(10)

    rig.behave = {4: wait}  # the last of the batch: the handlers of the others have returned
    rig.deliver(*range(5))
    with rig.consuming():
        assert began.wait(10)
        assert rig.seen == [0, 1, 2, 3, 4]
        assert rig.broker.depth(QUEUE) == 5
        assert rig.observer.ends == []
        go.set()
        wait_for(rig.is_empty, 10)


def test_each_batch_is_told_its_own_outcome(rig: Rig) -> None:
    """Of two that run at once, the second ends first, and the first is rolled back."""
    handle = rig.events.handle

    def hold(work: Call | Batch) -> Outcome | Sequence[Outcome]:
        if isinstance(work, Batch) and b'"number":0' in work.calls[0].body:
            wait_for(lambda: len(rig.observer.ends) >= 5, 10)
        return handle(work)

    rig.events.handle = hold  # type: ignore[method-assign, assignment]
    rig.behave = {0: refuse}
    rig.deliver(*range(10))
    with rig.consuming():
        wait_for(rig.is_empty, 10)
    assert sorted(rig.works) == [[0], [0, 1, 2, 3, 4], [1], [2], [3], [4], [5, 6, 7, 8, 9]]
    [letter] = rig.events.dead_letters()
    assert b'"number":0' in letter.body
    with rig.store.engine.connect() as connection:
        handled = set(connection.execute(select(schema.inbox.c.event_id)).scalars())
    assert len(handled) == 9
    assert letter.event_id not in handled


def test_what_was_delivered_before_is_handled_alone(rig: Rig) -> None:
    rig.deliver(*range(4))
    reader = rig.broker.reader(QUEUE)
    assert len(reader.receive(3, 1)) == 3
    reader.close()
    with rig.consuming():
        wait_for(rig.is_empty, 10)
    assert sorted(rig.works) == [[0], [1], [2], [3]]


def test_a_replay_is_handled_alone(rig: Rig) -> None:
    rig.behave = {1: refuse}
    rig.deliver(1)
    with rig.consuming():
        wait_for(lambda: len(rig.events.dead_letters()) == 1, 10)
    rig.behave.clear()
    rig.works.clear()
    rig.events.replay(rig.events.dead_letters(), reason="mended", dry_run=False)
    rig.deliver(2, 3)
    with rig.consuming():
        wait_for(rig.is_empty, 10)
    assert sorted(rig.works) == [[1], [2, 3]]
    assert rig.events.dead_letters() == []


def test_a_batch_whose_process_dies_is_taken_one_by_one(rig: Rig) -> None:
    """As the pool of a worker reports it: the future fails."""
    real = rig.events.handle

    def die_once(work: Call | Batch) -> Outcome | Sequence[Outcome]:
        if isinstance(work, Batch):
            raise RuntimeError("worker exited prematurely")
        return real(work)

    rig.events.handle = die_once  # type: ignore[method-assign, assignment]
    rig.deliver(*range(5))
    with rig.consuming():
        wait_for(rig.is_empty, 10)
    assert rig.works[0] == [0, 1, 2, 3, 4]
    assert sorted(rig.works[1:]) == [[0], [1], [2], [3], [4]]
    assert sorted(rig.observer.ends) == ["handled"] * 5 + ["lost"] * 5
    assert rig.events.dead_letters() == []


def test_a_database_away_pauses_the_queue_once_and_leaves_the_batch(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    real, pauses = rig.events.handle, []
    monkeypatch.setattr("sagas.events.consumer.Consumer._rest", lambda _, why: pauses.append(why))

    def away_once(work: Call | Batch) -> Outcome | Sequence[Outcome]:
        if isinstance(work, Batch) and not pauses:
            return [Outcome(End.DEFERRED, "away")] * len(work.calls)
        return real(work)

    rig.events.handle = away_once  # type: ignore[method-assign, assignment]
    rig.deliver(*range(5))
    with rig.consuming():
        wait_for(rig.is_empty, 10)
    assert rig.works == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    assert pauses == ["away"]


def test_the_limit_of_handlers_holds_for_batches(rig: Rig) -> None:
    running, most = [0], [0]
    lock = threading.Lock()

    def count(_: HandlerContext) -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        with lock:
            running[0] -= 1

    rig.behave = dict.fromkeys(range(100), count)
    rig.events._concurrency = 1
    rig.deliver(*range(40))
    with rig.consuming():
        wait_for(rig.is_empty, 10)
    assert most == [1]
    assert {len(work) for work in rig.works} == {SIZE}


def test_a_breaker_that_tries_again_tries_one_message(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(breaker=2, breaker_pause=0.2)
    down = threading.Event()
    down.set()

    def maybe(_: HandlerContext) -> None:
        if down.is_set():
            raise RetryableError("down", after=0.01)

    def not_soon(_: HandlerContext) -> None:
        raise RetryableError("down", after=60)

    rig.behave = {**dict.fromkeys(range(20), maybe), 0: not_soon, 1: not_soon}
    breaker = rig.events.breakers.of(rig.events.subscriptions[0])
    rig.deliver(0, 1)
    with rig.consuming():
        wait_for(lambda: breaker.openings == 1, 10)
        rig.works.clear()
        with Session(rig.store.engine) as session, session.begin():
            for number in range(2, 12):
                rig.events.publish(OrderPlaced(number=number), session, key="k")
        rig.events.relay.send()  # all at once, because they have one key
        wait_for(lambda: breaker.openings >= 2, 10)
        assert {len(work) for work in rig.works} <= {1}
        down.clear()
        wait_for(lambda: rig.broker.depth(QUEUE) == 2, 10)
    assert rig.events.dead_letters() == []


class Guard:
    """Holds one order once, and dead-letters another."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def admit(self, envelope: Any, subscription: Any) -> Any:
        number = envelope.open(subscription.handlers[envelope.topic].handles[0]).number
        self.asked.append(number)
        if number == 1 and self.asked.count(1) == 1:
            return SimpleNamespace(decision="throttle", seconds=0.2)
        if number == 3:
            return SimpleNamespace(decision="dead_letter", reason="a storm")
        return SimpleNamespace(decision="admit")


@pytest.mark.parametrize("ordered", [False, True])
def test_guards_are_asked_once_for_each_and_hold_back_the_rest_of_a_key(
    make_rig: Callable[..., Rig], ordered: bool
) -> None:
    guard = Guard()
    rig = make_rig(guards=guard, ordered=ordered)
    rig.deliver(*range(5), key="k")
    with rig.consuming():
        wait_for(rig.is_empty, 10)
    if ordered:  # what came before the dead letter is handled, and what came after it is parked
        assert rig.seen == [0, 1, 2]
        assert [letter.behind is None for letter in rig.events.dead_letters()] == [True, False]
    else:
        assert rig.seen == [0, 1, 2, 4]
    assert guard.asked == [0, 1, 1, 2, 3, 4]


def test_observers_see_one_handling_for_each(rig: Rig) -> None:
    sent = rig.deliver(*range(4))
    with rig.consuming():
        wait_for(rig.is_empty, 10)
    assert [(event_id, outcome) for event_id, outcome, _ in rig.observer.handled] == [
        (each, "handled") for each in sent
    ]
    assert all(0 < seconds < 5 for *_, seconds in rig.observer.handled)
    rig.behave = {11: refuse}
    rig.observer.handled.clear()
    sent = rig.deliver(10, 11)
    with rig.consuming():
        wait_for(rig.is_empty, 10)
    seen = [(event_id, outcome) for event_id, outcome, _ in rig.observer.handled]
    assert seen[:2] == [(each, "rolled_back") for each in sent]
    assert sorted(seen[2:]) == sorted([(sent[0], "handled")])


def test_each_message_of_a_batch_belongs_to_its_own_trace(rig: Rig) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    rig.events.observers.add(Tracing(provider))
    tracer = provider.get_tracer("test")
    rig.behave = {n: lambda context, n=n: context.emit(ItemCounted(number=n)) for n in range(3)}  # type: ignore[misc]
    for number in range(3):
        with tracer.start_as_current_span(f"publish {number}"):
            rig.deliver(number)
    with rig.consuming():
        wait_for(rig.is_empty, 10)
    assert rig.works == [[0, 1, 2]]
    spans = exporter.get_finished_spans()
    published = [span for span in spans if span.name.startswith("publish")]
    handled = [span for span in spans if span.name == f"handle {QUEUE}"]
    assert [span.parent and span.parent.span_id for span in handled] == [
        span.context and span.context.span_id for span in published
    ]
