"""The services that the processes of event tests run, and those processes.

Handlers write a row in the database, and a line into a file outside of it: what a test holds against each other. What
a handler does wrong is asked for in its message; what a process does wrong, in the rig's settings.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import redis
from celery import Celery
from sqlalchemy import Column, Connection, Integer, MetaData, String, Table, insert, select
from sqlalchemy.orm import Session

from sagas import Retry, Sagas, SqlStore, TerminalError
from sagas.events import Events, HandlerContext, Service, event
from sagas.events.brokers import Broker, Delivery, Outgoing, Reader
from sagas.events.brokers.rabbitmq import RabbitBroker
from sagas.events.brokers.redis_streams import RedisBroker
from sagas.events.process import run
from tests import forks
from tests.rig import ROOT
from tests.servers import die_with_parent, wait_for

QUICK = Retry(max_attempts=3, delay=0.05, jitter=0)

metadata = MetaData()
effects = Table(
    "effect",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("queue", String(100), nullable=False),
    Column("key", String(100)),
    Column("number", Integer, nullable=False),
)


@event("orders.order.placed")
class OrderPlaced:
    number: int
    fault: str = ""


@event("inventory.stock.reserved")
class StockReserved:
    number: int


def services(batch_size: int = 1) -> list[Service]:
    orders, inventory = Service("orders", publishes=[OrderPlaced]), Service("inventory")
    billing, shipping = Service("billing"), Service("shipping")

    @inventory.on(OrderPlaced, emits=[StockReserved], retry=QUICK, batch_size=batch_size)
    def reserve_stock(event: OrderPlaced, context: HandlerContext) -> None:
        act(context, event.number, event.fault)
        context.emit(StockReserved(number=event.number))

    @billing.on(StockReserved, retry=QUICK, batch_size=batch_size)
    def charge(event: StockReserved, context: HandlerContext) -> None:
        act(context, event.number)

    @shipping.on(OrderPlaced, retry=QUICK, ordered=True, batch_size=batch_size)
    def pack(event: OrderPlaced, context: HandlerContext) -> None:
        act(context, event.number)

    return [orders, inventory, billing, shipping]


def act(context: HandlerContext, number: int, fault: str = "") -> None:
    """Do as the fault says, and write down what is done."""
    folder = Path(os.environ["RIG_FOLDER"])
    with (folder / "ledger").open("a") as ledger:
        line = {"queue": context.subscription, "number": number, "pid": os.getpid(), "attempt": context.attempt}
        ledger.write(json.dumps(line) + "\n")
    row = {"queue": context.subscription, "key": context.envelope.key, "number": number}
    context.session.execute(insert(effects), row)
    match fault:
        case "kill":
            die()
        case "kill once" if once(folder / f"killed-{number}"):
            die()
        case "fail":
            raise RuntimeError("broken")
        case "exit":
            sys.exit("gave up")
        case "refuse" if not (folder / "mended").exists():
            raise TerminalError("refused")
        case "slow":
            wait_for((folder / "go").exists, 30, pause=0.02)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def once(flag: Path) -> bool:
    try:
        flag.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class Deadly:
    """A broker whose process dies, once, at the most awkward moment."""

    def __init__(self, broker: Broker, moment: str, folder: Path) -> None:
        self._broker = broker
        self._moment = moment
        self._flag = folder / f"died-{moment}"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)

    def publish(self, messages: Sequence[Outgoing]) -> Collection[str]:
        if self._moment == "before publishing" and once(self._flag):
            die()
        unheard = self._broker.publish(messages)
        if self._moment == "after publishing" and once(self._flag):
            die()
        return unheard

    def reader(self, queue: str) -> Reader:
        reader = self._broker.reader(queue)
        if self._moment == "before ack":
            ack = reader.ack

            def deadly(*deliveries: Delivery) -> None:
                if once(self._flag):
                    die()
                ack(*deliveries)

            reader.ack = deadly  # type: ignore[method-assign]
        return reader


def broker_of(url: str, prefetch: int) -> Broker:
    return RabbitBroker(url, lease=1, prefetch=prefetch) if url.startswith("amqp") else RedisBroker(url, lease=1)


def make_app(settings: Mapping[str, Any]) -> Celery:
    app = Celery("events", broker=settings["celery"], set_as_current=False)
    app.conf.update(
        worker_hijack_root_logger=False, broker_connection_retry_on_startup=True, worker_lost_wait=0.3,
        task_default_queue=settings["name"], **settings.get("conf", {}),
    )  # fmt: skip
    store = SqlStore(settings["database"])
    batch_size = settings.get("batch_size", 1)
    # What a process that dies was sent in advance is not handled in batches any more.
    broker = broker_of(settings["broker"], prefetch=100 if batch_size == 1 else 2 * batch_size)
    if moment := settings.get("die"):
        broker = Deadly(broker, moment, Path(settings["folder"]))
    events = Events(
        services(batch_size), engine=store.engine, broker=broker,
        exchange=f"events.{settings['name']}", relay_interval=0.05,
    )  # fmt: skip
    Sagas(app, store, events=events)

    @app.task(name="ping", shared=False)  # type: ignore[untyped-decorator]
    def ping() -> None:
        with (Path(os.environ["RIG_FOLDER"]) / "pings").open("a") as pings:
            pings.write("ping\n")

    return app


class Consuming:
    """A process that consumes and relays. Forked from a server that has imported everything, so that it begins at once."""

    count = 0

    def __init__(self, settings: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        Consuming.count += 1
        self.log = Path(settings["folder"]) / f"consuming-{Consuming.count}.log"
        self.log.touch()
        self._process = _FORKS.Process(target=_consume, args=(dict(settings), dict(options), str(self.log)))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def ready(self) -> Self:
        wait_for(lambda: "events: consuming" in self.output(), 30, "it consumes")
        return self

    def terminate(self) -> None:
        self._process.terminate()

    def wait(self, timeout: float = 30) -> int | None:
        """Wait for its end, and return how it ended."""
        self._process.join(timeout)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()
        self.wait()


_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.event_rig"])


def _consume(settings: dict[str, Any], options: dict[str, Any], log: str) -> None:
    die_with_parent()
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.register(signal.SIGUSR1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    os.environ["RIG_FOLDER"] = settings["folder"]
    if bug := settings.get("bug"):
        bug()
    run(make_app(settings).sagas.events, **options)


class EventWorker:
    """A real Celery worker on the rig's app."""

    count = 0

    def __init__(self, settings: Mapping[str, Any], options: Sequence[str]) -> None:
        EventWorker.count += 1
        name = f"worker-{EventWorker.count}"
        folder = Path(settings["folder"])
        self.log = folder / f"{name}.log"
        command = [
            sys.executable, "-m", "celery", "-A", "tests.event_worker", "worker", "-n", f"{name}@rig", "-l", "INFO",
            "--without-gossip", "--without-mingle", "--without-heartbeat", *options,
        ]  # fmt: skip
        environment = {
            **os.environ, "RIG": json.dumps(dict(settings), default=str), "RIG_FOLDER": str(folder),
            "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        with self.log.open("ab") as log:
            self.process = forks.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        wait_for(lambda: not self.running or " ready." in self.output(), 60, f"{name} is ready")
        assert self.running, self.output()[-3000:]

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def terminate(self) -> None:
        self.process.terminate()

    def wait(self, timeout: float = 30) -> int:
        return self.process.wait(timeout)

    def kill(self) -> None:
        if self.running:
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(30)


class EventRig:
    """Services on a broker and a database, processes that run them, and what came of it."""

    def __init__(self, broker: str, celery: str, database: str, folder: Path, batch_size: int = 1) -> None:
        self.settings: dict[str, Any] = {
            "broker": broker, "celery": celery, "database": database, "folder": str(folder), "name": folder.name,
            "batch_size": batch_size,
        }  # fmt: skip
        self.folder = folder
        self.processes: list[Consuming | EventWorker] = []
        store = SqlStore(database)
        store.upgrade()
        with store.engine.begin() as connection:
            metadata.create_all(connection)
        store.engine.dispose()
        self.app = make_app(self.settings)
        self.events: Events = self.app.sagas.events
        for url in {broker, celery}:
            self._clear(url)
        self.events.apply_topology()

    def _clear(self, url: str) -> None:
        """Take away what other tests have left in queues of the same names."""
        if url.startswith("redis"):
            with redis.Redis.from_url(url) as client:
                client.flushall()
        elif url.startswith("amqp"):
            with self.app.connection_for_write(url) as connection, connection.channel() as channel:
                for subscription in self.events.subscriptions:
                    channel.queue_delete(subscription.queue)

    def consume(
        self, *queues: str, die: str | None = None, bug: Callable[[], object] | None = None, **options: Any
    ) -> Consuming:
        """Start a process. `die`: at which moment; see `Deadly`. `bug`: a function that plants a bug in it."""
        process = Consuming({**self.settings, "die": die, "bug": bug}, {"queues": queues or None, **options})
        self.processes.append(process)
        return process

    def worker(self, *options: str) -> EventWorker:
        worker = EventWorker(self.settings, options)
        self.processes.append(worker)
        return worker

    def publish(self, *numbers: int, key: str | None = None, fault: str = "") -> None:
        """Publish each in a transaction of its own."""
        for number in numbers:
            with Session(self.events.engine) as session, session.begin():
                self.events.publish(OrderPlaced(number=number, fault=fault), session, key=key)

    def done(self, queue: str) -> list[tuple[str | None, int]]:
        """What was done for a queue, in order: keys and numbers."""

        def read(connection: Connection) -> list[tuple[str | None, int]]:
            query = select(effects.c.key, effects.c.number).where(effects.c.queue == queue).order_by(effects.c.id)
            return [(key, number) for key, number in connection.execute(query)]

        with self.events.engine.connect() as connection:
            return read(connection)

    def ledger(self) -> list[dict[str, Any]]:
        file = self.folder / "ledger"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def assert_each_once(self, published: Mapping[str, Sequence[int]], *queues: str, timeout: float = 60) -> None:
        """All was handled, nothing twice; and where the queue is ordered, each key in its order."""
        wanted = sorted(number for numbers in published.values() for number in numbers)
        ordered = {subscription.queue for subscription in self.events.subscriptions if subscription.ordered}
        for queue in queues:
            self.wait_for_done(queue, len(wanted), timeout)
            done = self.done(queue)
            assert sorted(number for _, number in done) == wanted, f"{queue}: lost or doubled"
            if queue in ordered:
                by_key: dict[str | None, list[int]] = defaultdict(list)
                for key, number in done:
                    by_key[key].append(number)
                assert dict(by_key) == {key: list(numbers) for key, numbers in published.items()}, queue

    def publish_while_readers_are_killed(
        self, published: Mapping[str, Sequence[int]], queue: str, *, every: int, seed: int
    ) -> None:
        """Publish from a thread for each key, and kill one of three readers each time that a queue has done so many."""
        running = [self.consume() for _ in range(3)]
        publishing = [threading.Thread(target=self.publish, args=n, kwargs={"key": k}) for k, n in published.items()]
        chance = random.Random(seed)
        for thread in publishing:
            thread.start()
        for kill in range(1, 5):
            self.wait_for_done(queue, kill * every)
            victim = chance.randrange(3)
            running[victim].kill()
            running[victim] = self.consume()
        for thread in publishing:
            thread.join()

    def wait_for_done(self, queue: str, count: int, timeout: float = 30) -> None:
        wait_for(lambda: len(self.done(queue)) >= count, timeout, f"{queue} has done {count}")

    def settled(self, timeout: float = 20) -> None:
        """Wait until nothing is on its way."""
        queues = [subscription.queue for subscription in self.events.subscriptions]
        wait_for(
            lambda: self.events.outbox_unsent() == 0 and not any(map(self.events.broker.depth, queues)),
            timeout, "nothing is on its way",
        )  # fmt: skip

    def logs(self) -> str:
        return "\n".join(f"== {process.log}\n{process.output()[-3000:]}" for process in self.processes)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        self.app.close()
        self.events.broker.close()
        self.events.engine.dispose()
