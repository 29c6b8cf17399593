"""Workers, sagas, a saboteur, and a supervisor who puts back what the saboteur breaks."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sagas import SagaStatus
from sagas.checkpoints import FINISHED, StepStatus
from sagas.errors import NotAllowed, StoreUnavailable
from tests.conftest import Rig
from tests.faults.long.judge import Blow, Verdict, judge
from tests.proxy import Proxy
from tests.rig import Faults, Worker
from tests.servers import Postgres, RabbitMQ, Redis, wait_for

FULL = ("one", "left", "right", "free", "four", "pivot", "last")
LINE = ("one", "two", "three")
COMPENSATED = {"full": ("one", "left", "right", "four"), "line": LINE}

#: What docs/operations.md advises, so that a broker that falls silent is noticed; in small.
BROKERS: dict[str, dict[str, Any]] = {
    "redis": {"broker_transport_options": {"socket_timeout": 3, "health_check_interval": 2}},
    "rabbitmq": {"broker_transport_options": {"confirm_publish": True, "read_timeout": 3}, "broker_heartbeat": 6},
}

#: How often a stuck step is tried again by hand.
REPAIRS = 5


HURTS_BROKER: dict[str, Callable[[Proxy], None]] = {
    "broker hangs": Proxy.hang,
    "broker cut": Proxy.cut,
    "broker refuses": Proxy.refuse,
}
HURTS_DATABASE: dict[str, Callable[[Proxy], None]] = {
    "database hangs": Proxy.hang,
    "database drops packets": Proxy.drop,
    "database slow": lambda way: way.delay(0.2),
}


@dataclass(frozen=True)
class Settings:
    sagas: int = 1000
    broker: str = "redis"
    database: str = "postgres"
    pool: str = "prefork"
    seconds: float = 300.0  #: for which sagas are started and things are broken
    seed: int = 1
    workers: int = 3
    concurrency: int = 3
    calm: float = 180.0  #: at most, until all sagas must be at their end
    pause: tuple[float, float] = (0.5, 2.5)  #: between two blows
    plan: tuple[tuple[float, str], ...] = ()  #: seconds after the start, and what to break, instead of at random
    at_once: int = 1  #: sagas that one call starts
    options: Mapping[str, Any] = field(default_factory=dict)  #: of the app

    def __str__(self) -> str:
        return (
            f"--sagas {self.sagas} --broker {self.broker} --database {self.database} --pool {self.pool} "
            f"--seconds {self.seconds:g} --seed {self.seed}"
        )


@dataclass
class Outcome:
    settings: Settings
    verdict: Verdict
    blows: Counter[str]
    restarts: int  #: workers that the supervisor had to start again
    repairs: int
    start_errors: int  #: start() raised, and was repeated with the same key
    calm: float  #: seconds from the last blow until all sagas were at their end
    total: float

    @property
    def ok(self) -> bool:
        return not self.verdict.violations


class Storm:
    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        self.random = random.Random(settings.seed)
        self.blows: list[Blow] = []
        self.ids: dict[tuple[str, str], list[str]] = defaultdict(list)
        self.restarts = self.repairs = self.start_errors = 0
        self.errors: list[BaseException] = []
        self._over = threading.Event()
        self._closing = threading.Event()

    def run(self) -> Outcome:
        begun = time.monotonic()
        with ExitStack() as stack:
            self.broker: Redis | RabbitMQ = Redis() if self.settings.broker == "redis" else RabbitMQ()
            stack.enter_context(self.broker)
            # Workers and callers reach their servers by way of proxies, which can hurt the connections.
            self.way_to_broker = stack.enter_context(Proxy(self.broker.port))
            self.postgres: Postgres | None = None
            if self.settings.database == "postgres":
                self.postgres = stack.enter_context(Postgres(fsync=True, stepped=True, megabytes=512))
                self.way_to_database = stack.enter_context(Proxy(self.postgres.port))
                database = self.way_to_database.url(self.postgres.database())
            else:
                database = f"sqlite:///{self.folder / 'sagas.db'}"
            self.rig = Rig(self.way_to_broker.url(self.broker.url), database, self.folder)
            self.rig.configure(timeout=1.5, **BROKERS[self.settings.broker], **self.settings.options)
            self.rig.settings["clock_trust"] = 1
            stack.callback(self.rig.close)
            self.rig.sagas  # noqa: B018 - made once, before threads ask for it
            self.workers: list[Worker] = [self._worker() for _ in range(self.settings.workers)]
            stack.callback(self._stop_workers)
            for worker in self.workers:
                worker.start()
            supervisor = self._thread(self._supervise)
            try:
                saboteur = self._thread(self._sabotage)
                self._start_sagas()
                self._over.set()
                saboteur.join()
                calm = self._wait()
            finally:
                self._over.set()
                self._closing.set()
                supervisor.join()
            if self.errors:
                raise self.errors[0]
            verdict = judge(self.rig.sagas, self.folder, self.ids, self.blows)
            return Outcome(
                self.settings,
                verdict,
                Counter(blow.kind for blow in self.blows),
                self.restarts,
                self.repairs,
                self.start_errors,
                calm,
                time.monotonic() - begun,
            )

    def _thread(self, target: Callable[[], object]) -> threading.Thread:
        def run() -> None:
            try:
                target()
            except BaseException as error:
                self.errors.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    # -- sagas ----------------------------------------------------------------------------------------------------

    def _faults(self, name: str, dice: random.Random) -> dict[str, str]:
        steps = FULL if name == "full" else LINE
        faults: dict[str, str] = {}
        kills = 1.0 if self.settings.pool == "prefork" else 0.2  # in a pool of threads it takes the whole worker
        if dice.random() < 0.45:
            kinds = {"terminal": 3.0, "error:2": 2.0, "second": 2.0, "kill_before:1": kills, "kill_after:1": kills}
            kind = dice.choices(list(kinds), list(kinds.values()))[0]
            # Nothing brings a saga past a "last" that is always refused.
            faults[dice.choice([step for step in steps if (step, kind) != ("last", "terminal")])] = kind
            if kind == "terminal" and dice.random() < 0.3:
                undo = dice.choice(["error:2", "second", "kill_after:1" if kills == 1 else "error:1"])
                faults[f"{dice.choice(COMPENSATED[name])}.compensate"] = undo
        return faults

    def _start_sagas(self) -> None:
        dice = random.Random(self.settings.seed + 1)
        begun = time.monotonic()
        for first in range(0, self.settings.sagas, self.settings.at_once):
            due = begun + first * self.settings.seconds / self.settings.sagas
            time.sleep(max(0.0, due - time.monotonic()))
            started = defaultdict(list)
            for i in range(first, first + self.settings.at_once):
                name = dice.choice(["full", "line"])
                started[name].append((Faults(self._faults(name, dice)), f"key-{i}"))
            for name, given in started.items():
                in_threads = dice.random() < 0.5
                self._start(name, given, in_threads=in_threads)
                if dice.random() < 0.1:
                    self._start(name, given, in_threads=in_threads)

    def _start(self, name: str, given: Sequence[tuple[Faults, str]], *, in_threads: bool = False) -> None:
        for _, key in given:
            self.ids[name, key]  # from now on it must be found
        give_up, saga = time.monotonic() + 60, self.rig.saga(name)
        while True:
            try:
                if in_threads or len(given) == 1:
                    with ThreadPoolExecutor(len(given)) as pool:
                        handles = list(pool.map(lambda each: saga.start(each[0], key=each[1]), given))
                else:
                    handles = [result.handle for result in saga.start_many(given) if result.handle is not None]
            except StoreUnavailable:
                self.start_errors += 1
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.2)
            else:
                for (_, key), handle in zip(given, handles, strict=True):
                    self.ids[name, key].append(handle.id)
                return

    # -- workers --------------------------------------------------------------------------------------------------

    def _worker(self) -> Worker:
        return Worker(self.rig.settings, pool=self.settings.pool, concurrency=self.settings.concurrency)

    def _supervise(self) -> None:
        """Start again what is gone. Runs until the end: its workers die with this thread."""
        while not self._closing.wait(0.2):
            for i, worker in enumerate(self.workers):
                if not worker.running and not self._closing.is_set():
                    worker.kill()  # what it may have left
                    self.workers[i] = fresh = self._worker()
                    self.restarts += 1
                    with contextlib.suppress(TimeoutError, RuntimeError):  # it is looked at again
                        fresh.start()
        self._stop_workers()

    def _stop_workers(self) -> None:
        for worker in self.workers:
            worker.kill()

    # -- what breaks ----------------------------------------------------------------------------------------------

    def kinds(self) -> list[str]:
        kinds = ["worker killed", "worker stopped", "broker killed", *HURTS_BROKER]
        if self.settings.pool == "prefork":
            kinds += ["child killed"] * 2
        if self.settings.broker == "redis":
            kinds += ["flushed"]
        if self.postgres is not None:
            kinds += ["database killed", "connections cut", *HURTS_DATABASE, "disk full", "clock stepped"]
        return kinds

    def _sabotage(self) -> None:
        if self.settings.plan:
            begun = time.monotonic()
            for at, kind in self.settings.plan:
                time.sleep(max(0.0, begun + at - time.monotonic()))
                self._strike(kind)
            return
        bag: list[str] = []  # every kind once, in random order, and then again
        while not self._over.wait(self.random.uniform(*self.settings.pause)):
            bag = bag or self.random.sample(self.kinds(), len(self.kinds()))
            self._strike(bag.pop())

    def _strike(self, kind: str) -> None:
        worker = self.random.choice(self.workers)
        at, pids = time.time(), frozenset[int]()
        if kind in ("worker killed", "worker stopped", "child killed"):
            if not worker.running:
                return
            assert worker.process is not None
            children = [child.pid for child in worker.children()]
            pids = frozenset([worker.process.pid, *children])
            if kind == "child killed":
                if not children:
                    return
                pids = frozenset([self.random.choice(children)])
        self.blows.append(Blow(kind, at, pids))
        match kind:
            case "worker killed":
                worker.kill()
            case "child killed":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(next(iter(pids)), signal.SIGKILL)
            case "worker stopped":
                with contextlib.suppress(ProcessLookupError):
                    worker.signal(signal.SIGSTOP)
                    time.sleep(self.random.uniform(2.5, 4.5))  # the lease is 2 s, the timeout of a step 3 s
                    worker.signal(signal.SIGCONT)
            case "broker killed":
                self.broker.kill()
                time.sleep(self.random.uniform(0, 2))
                self.broker.start()
            case _ if kind in HURTS_BROKER:
                self._hurt(self.way_to_broker, HURTS_BROKER[kind])
            case _ if kind in HURTS_DATABASE:
                self._hurt(self.way_to_database, HURTS_DATABASE[kind])
            case "disk full":
                assert self.postgres is not None
                assert self.postgres.disk is not None
                self.postgres.disk.fill()
                time.sleep(self.random.uniform(1, 3))
                self.postgres.disk.empty()
                wait_for(self.postgres.supervised, 60, "the database answers")
            case "clock stepped":
                assert self.postgres is not None
                assert self.postgres.clock is not None
                self.postgres.clock.step(self.random.choice([-3600, 3600]))
                time.sleep(self.random.uniform(2, 4))
                self.postgres.clock.step(0)
            case "database killed":
                assert self.postgres is not None
                self.postgres.kill()
                time.sleep(self.random.uniform(0, 2))
                self.postgres.start()
            case "flushed":
                assert isinstance(self.broker, Redis)
                self.broker.flush()
            case "connections cut":
                assert self.postgres is not None
                with self.postgres.connect() as connection:
                    connection.execute(
                        "select pg_terminate_backend(pid) from pg_stat_activity "
                        "where backend_type = 'client backend' and pid <> pg_backend_pid()"
                    )

    def _hurt(self, way: Proxy, how: Callable[[Proxy], None]) -> None:
        how(way)
        time.sleep(self.random.uniform(1, 4))
        way.heal()

    # -- calm -----------------------------------------------------------------------------------------------------

    def _wait(self) -> float:
        begun = time.monotonic()
        repaired: Counter[tuple[str, str]] = Counter()
        sagas = self.rig.sagas
        open_ = {ids[0] for ids in self.ids.values()}
        while open_ and time.monotonic() - begun < self.settings.calm and not self.errors:
            for saga_id in list(open_):
                record = sagas.load(saga_id)
                if record.status in FINISHED:
                    open_.discard(saga_id)
                for step in record.steps.values() if record.status is SagaStatus.STUCK else ():
                    if step.status is StepStatus.STUCK and repaired[saga_id, step.name] < REPAIRS:
                        repaired[saga_id, step.name] += 1
                        self.repairs += 1
                        with contextlib.suppress(NotAllowed):
                            sagas.retry(saga_id, step.name, reason="the storm is over")
            time.sleep(0.2)
        took = time.monotonic() - begun
        time.sleep(4)  # for the late reports of what was stopped: a lease, and a step that is undone for it
        return took


def storm(settings: Settings) -> Outcome:
    """Run one storm in a folder of its own, which is kept, and named, if something is found."""
    holder = tempfile.mkdtemp(prefix="sagas-storm-")
    outcome: Outcome | None = None
    before = os.environ.get("RIG_FOLDER")
    os.environ["RIG_FOLDER"] = holder
    try:
        outcome = Storm(settings, Path(holder)).run()
        return outcome
    finally:
        if before is None:
            os.environ.pop("RIG_FOLDER", None)
        else:
            os.environ["RIG_FOLDER"] = before
        if outcome is not None and outcome.ok:
            shutil.rmtree(holder, ignore_errors=True)
        else:
            print(f"the ledger and the logs are kept in {holder}", file=sys.stderr)


def percentile(values: Sequence[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def report(outcome: Outcome, stories: int = 3) -> str:
    verdict = outcome.verdict
    lines = [
        f"{outcome.settings}",
        f"  sagas {verdict.sagas}: " + ", ".join(f"{status} {n}" for status, n in sorted(verdict.statuses.items())),
        "  blows: " + ", ".join(f"{kind} {n}" for kind, n in sorted(outcome.blows.items())),
        f"  workers started again {outcome.restarts}, start() repeated {outcome.start_errors}",
        f"  lost {verdict.count('lost')}, left standing {verdict.count('left standing')}",
        f"  stuck and repaired {outcome.repairs}, violations {len(verdict.violations)}",
        f"  executions repeated {verdict.repeated}, effects doubled {verdict.doubled}",
    ]
    for kind, took in sorted(verdict.recovery.items()):
        lines.append(
            f"  recovery after {kind}: p50 {percentile(took, 0.5):.2f} s, p99 {percentile(took, 0.99):.2f} s, "
            f"longest {max(took):.2f} s ({len(took)} sagas)"
        )
    lines.append(f"  all at their end {outcome.calm:.1f} s after the storm; {outcome.total:.0f} s in all")
    for violation in verdict.violations[:stories]:
        lines += [f"VIOLATION {violation.kind}: {violation.saga}", *(f"    {line}" for line in violation.story)]
    return "\n".join(lines)
