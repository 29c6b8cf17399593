"""What the contenders that run Celery workers have in common."""

from __future__ import annotations

import json
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import psycopg
import redis
from celery import Celery

from benchmarks.celery_app import DONE, make_chain, make_sagas
from benchmarks.contenders import Base
from benchmarks.processes import Program
from sagas import Saga, SqlStore
from tests.servers import Postgres, RabbitMQ, Redis, wait_for

#: Celery's defaults, but for what workers say to each other when they start.
WORKER = ("worker", "-l", "WARNING", "--without-gossip", "--without-mingle")

#: Seconds after which a benchmark that does not come to its end is given up.
PATIENCE = 240.0


class CeleryBased(Base):
    """Publishes from this process to workers of two children each.

    `pool`, `slots`: of each worker, instead. `pause`: seconds that each step waits. `callers`: threads that start.
    """

    broker_type: ClassVar[type[Redis | RabbitMQ]] = Redis

    def __init__(
        self,
        steps: int = 4,
        payload: int = 0,
        workers: int = 1,
        in_flight: int = 0,
        pool: str = "prefork",
        slots: int = 2,
        pause: float = 0.0,
        callers: int = 1,
    ) -> None:
        self.steps = steps
        self.callers = callers
        self.pause = pause
        self._pool = ("-P", pool, "-c", str(slots))
        self.payload = "x" * payload
        self._number_of_workers = workers
        self._in_flight = in_flight
        self.broker: Redis | RabbitMQ | None = None
        self.workers: list[Program] = []

    def setup(self) -> None:
        self.broker = self.broker_type().start()
        settings = {
            "broker": self.broker.url,
            "steps": self.steps,
            "pause": self.pause,
            **self.prepare(self.broker.url),
        }
        for number in range(self._number_of_workers):
            self.workers.append(
                Program(
                    *("-m", "celery", "-A", "benchmarks.celery_app", *WORKER, *self._pool, "-n", f"w{number}@bench"),
                    env={"BENCH": json.dumps(settings)},
                )
            )

    def teardown(self) -> None:
        for worker in self.workers:
            worker.stop()
        if self.broker is not None:
            self.broker.stop()

    @abstractmethod
    def prepare(self, broker: str) -> Mapping[str, str]:
        """Get ready to publish; return what else the worker must know."""

    @abstractmethod
    def start(self) -> None:
        """Start one saga."""

    def run(self, n: int) -> float:
        if self._in_flight:
            return self._run_with(self._in_flight, n)
        began = time.perf_counter()
        self.start_all(n)
        self.wait(0.01)
        return time.perf_counter() - began

    def start_all(self, n: int) -> None:
        """Start so many."""
        if self.callers == 1:
            for _ in range(n):
                self.start()
            return
        with ThreadPoolExecutor(self.callers) as pool:
            for each in [pool.submit(self.start) for _ in range(n)]:
                each.result()

    def _run_with(self, in_flight: int, n: int) -> float:
        """Keep so many in flight: start the next ones as others are complete."""
        began = time.perf_counter()
        room = in_flight
        for _ in range(n):
            while not room:
                self.check()
                if not (room := max(in_flight - self.left(), 0)):
                    time.sleep(0.002)
            self.start()
            room -= 1
        self.wait(0.002)
        return time.perf_counter() - began

    def run_started(self, n: int) -> float:
        for worker in self.workers:
            worker.pause()
        self.start_all(n)
        began = time.perf_counter()
        for worker in self.workers:
            worker.resume()
        self.wait(0.01)
        return time.perf_counter() - began

    def one(self) -> float:
        began = time.perf_counter()
        self.start()
        self.wait(0.002)
        return time.perf_counter() - began

    @abstractmethod
    def left(self) -> int:
        """Return how many are started and not complete."""

    def idle(self) -> bool:
        return self.left() == 0

    def wait(self, pause: float) -> None:
        def over() -> bool:
            self.check()
            return self.idle()

        wait_for(over, PATIENCE, "all are complete", pause)

    def check(self) -> None:
        for worker in self.workers:
            worker.check()

    def roots(self) -> Mapping[str, Sequence[int]]:
        assert self.broker is not None
        assert self.broker.process is not None
        return {"worker": [worker.pid for worker in self.workers], "broker": [self.broker.process.pid]}


class Chain(CeleryBased):
    """A plain Celery chain."""

    def prepare(self, broker: str) -> Mapping[str, str]:
        self.app, self._make = make_chain(broker, self.steps)
        self._counter = redis.Redis.from_url(broker)
        self._started = 0
        return {}

    def start(self) -> None:
        self._make(self.payload).apply_async()
        self._started += 1

    def left(self) -> int:
        return self._started - int(self._counter.get(DONE) or 0)  # type: ignore[arg-type, unused-ignore]


class Sagas(CeleryBased):
    """This library on PostgreSQL."""

    def __init__(self, database: str | None = None, database_pid: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._given = (database, database_pid)
        self._server: Postgres | None = None

    def prepare(self, broker: str) -> Mapping[str, str]:
        url, self._pid = self._given
        if url is None:
            self._server = Postgres(fsync=True).start()
            assert self._server.process is not None
            url, self._pid = self._server.database(), self._server.process.pid
        SqlStore(url).upgrade()
        self.app: Celery
        self.saga: Saga
        self.app, self.saga = make_sagas(broker, url, self.steps)
        self._watch = psycopg.connect(url.replace("+psycopg", ""), autocommit=True)
        self._before = self._counts()
        return {"database": url}

    def start(self) -> None:
        self.saga.start({"payload": self.payload})

    def left(self) -> int:
        return int(self._ask("select count(*) from sagas_saga where next_check_at is not null"))

    def idle(self) -> bool:
        return not self._ask("select exists (select from sagas_saga where next_check_at is not null)")

    def _ask(self, question: str) -> Any:
        row = self._watch.execute(question).fetchone()  # type: ignore[arg-type, unused-ignore]
        assert row is not None
        return row[0]

    def _counts(self) -> dict[str, float]:
        return {
            # A saga is inserted with revision 1, and every transaction that writes raises it by one.
            "writes": float(self._ask("select coalesce(sum(revision), 0) from sagas_saga where name = 'bench'")),
            "redispatches": float(
                self._ask("select coalesce(sum(dispatches - 1), 0) from sagas_saga where name = 'bench'")
            ),
        }

    def extra(self) -> Mapping[str, float]:
        unfinished = self._ask("select count(*) from sagas_saga where name = 'bench' and status <> 'COMPLETED'")
        assert not unfinished, f"{unfinished} sagas are not COMPLETED"
        return {what: count - self._before[what] for what, count in self._counts().items()}

    def roots(self) -> Mapping[str, Sequence[int]]:
        assert self._pid is not None
        return {**super().roots(), "database": [self._pid]}

    def teardown(self) -> None:
        super().teardown()
        if self._server is not None:
            self._server.stop()
