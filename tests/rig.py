"""The app that test workers run, and the workers themselves.

Its sagas do nothing but write what they did into a file outside of the database, so that a test can hold what really
happened against what the database says. What a step does wrong is asked for in the saga's input.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Self

import psutil
from celery import Celery, Task
from kombu.transport import TRANSPORT_ALIASES
from sqlalchemy import text

from sagas import (
    Child,
    Each,
    Parallel,
    Pivot,
    Retry,
    RetryableError,
    Saga,
    Sagas,
    Schedule,
    Sleep,
    SqlStore,
    Step,
    StepCancelled,
    StepContext,
    TerminalError,
    Wait,
)
from sagas.checkpoints import HistoryKind
from tests import forks
from tests.servers import Clock, wait_for

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parent.parent
#: What the history says when a step was given to somebody else, or tried again.
TAKEOVERS = (
    HistoryKind.LOST,
    HistoryKind.STEP_FAILED,
    HistoryKind.COMPENSATION_FAILED,
    HistoryKind.LATE_OUTCOME,
    HistoryKind.OPERATOR_RETRY,
)
#: What a step may raise that is no `Exception`.
NO_EXCEPTIONS: Mapping[str, type[BaseException]] = {
    kind.__name__: kind
    for kind in (
        asyncio.CancelledError, GeneratorExit, SystemExit, KeyboardInterrupt, type("MyOwn", (BaseException,), {}),
    )
}  # fmt: skip
QUICK = Retry(max_attempts=3, delay=0.05, jitter=0)


@dataclass
class Faults:
    """What goes wrong: step (or step.compensate) -> kind, or kind:times (attempts that it happens in)."""

    faults: dict[str, str] = field(default_factory=dict)
    note: str = ""


@dataclass
class Receipt:
    step: str
    attempt: int


def act(what: str, faults: Mapping[str, str], step: StepContext, known: Receipt | None = None) -> None:
    """Do as the faults say; write a line when the effect lands."""
    kind, _, times = faults.get(what, "").partition(":")
    if kind and times and step.attempt > float(times):
        kind = ""
    _write("begin", what, step)
    match kind:
        case "terminal":
            raise TerminalError("refused")
        case "error":
            raise RuntimeError("broken")
        case kind if kind in NO_EXCEPTIONS:
            raise NO_EXCEPTIONS[kind]("broken")
        case "kill_before":
            _die()
        case "kill_worker":
            os.kill(os.getppid(), signal.SIGKILL)
            _die()
        case "hang":
            time.sleep(60)
        case "slow":
            _until_told(step)
        case "slow_error":
            _until_told(step)
            raise RuntimeError("broken after a while")
        case "second":
            time.sleep(1)
        case "away" if not (Path(os.environ["RIG_FOLDER"]) / f"go-{step.saga_id}").exists():
            raise RuntimeError("the bank is away")
    _write("undo" if what.endswith(".compensate") else "do", what, step, known)
    match kind:
        case "kill_after":
            _die()
        case "error_after":
            raise RuntimeError("broken after its effect")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def _write(event: str, what: str, step: StepContext, known: Receipt | None = None) -> None:
    line = {
        "saga": step.saga_id, "event": event, "what": what, "step": step.step, "attempt": step.attempt, "key": step.idempotency_key,
        "pid": os.getpid(), "at": time.time(), "known": None if known is None else known.step,
        "in_main": threading.current_thread() is threading.main_thread(),
    }  # fmt: skip
    logger.info("%s %s", event, what)
    with (Path(os.environ["RIG_FOLDER"]) / "ledger").open("a") as ledger:
        ledger.write(json.dumps(line) + "\n")


def _step(name: str, *, undo: bool = True, kind: type[Step] = Step, **options: Any) -> Step:
    def action(faults: dict[str, str], step: StepContext) -> Receipt:
        act(name, faults, step)
        if faults.get(name) == "unencodable":
            return object()  # type: ignore[return-value]
        return Receipt(name, step.attempt)

    def compensation(faults: dict[str, str], step: StepContext, result: Receipt | None) -> None:
        act(f"{name}.compensate", faults, step, result)

    options = {"retry": QUICK, "timeout": 3, **options}
    if kind is Step:
        options |= {"compensation": compensation if undo else None, "compensation_retry": QUICK}
    return kind(name, action, **options)


def _asking(poll_timeout: float) -> Step:
    """A step that asks again until as many seconds are over as its fault says."""

    def ask(faults: dict[str, str], step: StepContext) -> None:
        if step.now - step.started_at < timedelta(seconds=float(faults.get("ask", "0"))):
            raise RetryableError("not yet", after=0.3)
        act("ask", {}, step)

    def compensation(faults: dict[str, str], step: StepContext) -> None:
        act("ask.compensate", faults, step)

    return Step("ask", ask, compensation=compensation, retry=QUICK, timeout=3, poll_timeout=poll_timeout)


def _async_step(name: str) -> Step:
    async def action(faults: dict[str, str], step: StepContext) -> Receipt:
        await asyncio.sleep(0.01)
        act(name, faults, step)
        return Receipt(name, step.attempt)

    async def compensation(faults: dict[str, str], step: StepContext, result: Receipt | None) -> None:
        await asyncio.sleep(0.01)
        act(f"{name}.compensate", faults, step, result)

    @functools.wraps(compensation)
    def hidden(**given: Any) -> Any:  # nothing tells that it is async before it is called
        return compensation(**given)

    return Step(name, action, compensation=hidden, retry=QUICK, compensation_retry=QUICK, timeout=3)


def _after(name: str) -> Step:
    def action(faults: dict[str, str], step: StepContext) -> Receipt:
        act(name, faults, step)
        return Receipt(name, step.attempt)

    return Step(name, action, retry=QUICK, timeout=3)


def sagas() -> list[Saga]:
    line = Saga("line", _step("one"), _step("two"), _step("three"), input=Faults)
    calm = Saga("calm", *(_step(name, timeout=60) for name in ("one", "two", "three")), input=Faults)
    full = Saga(
        "full",
        _step("one"),
        Parallel(_step("left"), _step("right"), _step("free", undo=False)),
        _step("four"),
        _step("pivot", kind=Pivot),
        _after("last"),
        input=Faults,
    )
    waits = Saga("waits", _step("one"), _step("two", start_timeout=1.0), input=Faults, timeout=20)
    long = Saga("long", _step("one"), _step("two", timeout=20), input=Faults)
    short = Saga("short", _step("one"), _step("two", timeout=20), input=Faults, timeout=1.5)
    nobody = Saga("nobody", _step("one"), _step("two", queue="nobody", start_timeout=1.0), input=Faults)
    later = Saga("later", _step("one", queue="nobody"), input=Faults)
    served = Saga("served", _step("one"), _step("two", queue="nobody"), input=Faults)
    once = Saga("once", _step("one", max_deliveries=1), _step("two", timeout=20, max_deliveries=1), input=Faults)
    awaits = Saga(
        "awaits",
        _async_step("one"),
        Parallel(_async_step("left"), _async_step("right")),
        _async_step("two"),
        input=Faults,
    )
    polls = Saga("polls", _step("one"), _asking(poll_timeout=4), _step("three"), input=Faults)
    return [line, calm, full, waits, long, short, nobody, once, later, served, awaits, polls]


#: Rows of an import.
ROWS = 20


def imports() -> Saga:
    """A long step that reports each row. `load`: "silent" for one that stops reporting until it may go on."""

    def load(faults: dict[str, str], step: StepContext) -> int:
        for row in _rows(faults, step):
            time.sleep(0.2)
            _report(row, step)
        act("load", {}, step)
        return ROWS

    return _importing("imports", load)


def imports_async() -> Saga:
    """The same, in an event loop."""

    async def load(faults: dict[str, str], step: StepContext) -> int:
        for row in _rows(faults, step):
            await asyncio.sleep(0.2)
            _report(row, step)
        act("load", {}, step)
        return ROWS

    return _importing("imports_async", load)


def _importing(name: str, load: Callable[..., Any]) -> Saga:
    def unload(faults: dict[str, str], step: StepContext, result: int | None) -> None:
        _write("unload", str(step.heartbeat_details), step)
        act("load.compensate", {}, step)

    options: dict[str, Any] = {"retry": QUICK, "compensation_retry": QUICK, "timeout": 60, "heartbeat_timeout": 3}
    return Saga(name, _step("one"), Step("load", load, compensation=unload, **options), input=Faults)


def _rows(faults: dict[str, str], step: StepContext) -> Iterator[int]:
    for row in range(step.heartbeat_details or 0, ROWS):
        _write("row", str(row), step)
        if faults.get("load") == "silent" and step.attempt == 1 and row == ROWS // 2:
            _until_told(step)
        yield row


def _report(row: int, step: StepContext) -> None:
    try:
        step.progress(row + 1, ROWS)
        step.heartbeat(row + 1)
    except StepCancelled:
        _write("cancelled", str(row), step)
        raise


def _until_told(step: StepContext) -> None:
    wait_for((Path(os.environ["RIG_FOLDER"]) / f"go-{step.saga_id}").exists, 30, pause=0.02)


#: As long as brokers take it.
LONG_QUEUE = "ä" * 127 + "q"


def waits_for_all() -> Saga:
    """A saga with every kind of node that waits; its steps do as the faults say."""

    def is_wanted(faults: dict[str, str], step: StepContext) -> bool:
        if faults.get("is_wanted") == "kill" and step.attempt == 1:
            _die()
        return "unwanted" not in faults

    def ask(faults: dict[str, str], step: StepContext) -> None:
        with (Path(os.environ["RIG_FOLDER"]) / f"tokens-{step.saga_id}").open("a") as tokens:
            tokens.write(f"{step.token}\n")
        act("pay", faults, step)

    def withdraw(faults: dict[str, str], step: StepContext, result: int | None) -> None:
        act("pay.compensate", faults, step)

    def last(faults: dict[str, str], step: StepContext, approval: bool, pay: int) -> str:
        act("last", faults, step)
        return f"{approval} {pay}"

    return Saga(
        "waits_for_all",
        _step("one"),
        _step("two", when=is_wanted),
        Wait("approval", bool, timeout=60),
        Step(
            "pay", ask, compensation=withdraw, deferred=True, deadline=60, result=int, retry=QUICK, timeout=3,
            compensation_retry=QUICK,
        ),
        Sleep("rest", 0.5),
        Step("last", last, compensation=None, retry=QUICK, timeout=3),
        input=Faults,
    )  # fmt: skip


def asks_within() -> Saga:
    """A deferred step that writes through `step.session` before it gives out its token."""

    def of(ask: Callable[..., Any], withdraw: Callable[..., Any]) -> Step:
        return Step(
            "ask", ask, compensation=withdraw, deferred=True, deadline=60, result=int, retry=QUICK, timeout=20,
            compensation_retry=QUICK,
        )  # fmt: skip

    return _asking_within("asks_within", of)


def waits_within() -> Saga:
    """A wait that does the same."""
    return _asking_within(
        "waits_within", lambda ask, withdraw: Wait("ask", int, timeout=60, begin=ask, compensation=withdraw)
    )


def _asking_within(name: str, node_of: Callable[[Callable[..., Any], Callable[..., Any]], Step | Wait]) -> Saga:
    def ask(faults: dict[str, str], step: StepContext) -> None:
        step.session.execute(text("INSERT INTO effect VALUES (:key)"), {"key": step.idempotency_key})
        with (Path(os.environ["RIG_FOLDER"]) / f"tokens-{step.saga_id}").open("a") as tokens:
            tokens.write(f"{step.token}\n")
        act("ask", faults, step)

    def withdraw(faults: dict[str, str], step: StepContext, result: int | None) -> None:
        step.session.execute(text("DELETE FROM effect WHERE n = :key"), {"key": step.idempotency_key})
        _write("withdraw", str(result), step)
        act("ask.compensate", faults, step)

    def last(faults: dict[str, str], step: StepContext, ask: int) -> int:
        act("last", faults, step)
        return ask

    return Saga(
        name,
        node_of(ask, withdraw),
        Step("last", last, compensation=None, retry=QUICK, timeout=3),
        input=Faults,
    )


def with_children() -> Saga:
    """A saga of sagas, two of them side by side and one of them nested; their steps do as the faults say."""

    def make(faults: dict[str, str], step: StepContext) -> Mapping[str, Any]:
        if faults.get("make") == "kill" and step.attempt == 1:
            _die()
        return {"faults": faults}

    inner = Saga("inner", _step("inner_one"), _step("inner_two"), input=Faults)
    middle = Saga("middle", _step("middle_one"), Child("inner", inner), _step("middle_two"), input=Faults)
    left = Saga("left", _step("left_one"), _step("left_two"), input=Faults)
    right = Saga("right", _step("right_one"), input=Faults)
    return Saga(
        "with_children",
        _step("one"),
        Parallel(Child("left", left, input=make), Child("right", right)),
        Child("middle", middle),
        _step("last"),
        input=Faults,
    )


def fans_out() -> Saga:
    """A saga with twelve items, of which four are in progress at a time. The faults of the first are those of `item0`."""
    return _fan_out("fans_out")


def fans_out_leniently() -> Saga:
    """The same, with two items that may fail."""
    return _fan_out("fans_out_leniently", allow_failures=2)


def _fan_out(name: str, **options: Any) -> Saga:
    def do(item: int, faults: dict[str, str], step: StepContext) -> int:
        act(f"item{item}", faults, step)
        return item * 2

    def undo(item: int, faults: dict[str, str], step: StepContext, result: int | None) -> None:
        act(f"item{item}.compensate", faults, step)

    def last(faults: dict[str, str], step: StepContext, each: list[int | None]) -> int:
        act("last", faults, step)
        return sum(filter(None, each))

    options |= {"retry": QUICK, "compensation_retry": QUICK, "timeout": 3, "max_concurrency": 4}
    return Saga(
        name,
        _step("one"),
        Each("each", do, compensation=undo, over=lambda: list(range(12)), **options),
        Step("last", last, compensation=None, retry=QUICK, timeout=3),
        input=Faults,
    )


@dataclass
class Decision:
    """What people answer in the tests of pages."""

    approved: bool
    amount: Decimal
    comment: str = ""


def asks_people() -> Saga:
    """A saga that asks two groups of people, one after the other."""

    def last(faults: dict[str, str], step: StepContext, approval: Decision, second: bool) -> str:
        act("last", faults, step)
        return f"{approval.amount} {approval.comment} {second}"

    return Saga(
        "asks_people",
        Wait("approval", Decision, timeout=600, approvers=("finance", "board")),
        Wait("second", bool, timeout=600, approvers="board"),
        Step("last", last, compensation=None, retry=QUICK, timeout=3),
        input=Faults,
    )


def changing() -> Saga:
    """A saga that waits; the next ones are what becomes of its definition."""
    return Saga("changing", _step("one"), Wait("answer", bool, timeout=600), _step("two"), input=Faults)


def changed_ahead() -> Saga:
    return Saga("changing", _step("one"), Wait("answer", bool, timeout=600), _step("new"), _step("two"), input=Faults)


def changed_behind() -> Saga:
    return Saga("changing", _step("new"), _step("one"), Wait("answer", bool, timeout=600), _step("two"), input=Faults)


def reordered() -> Saga:
    return Saga("changing", _step("two"), Wait("answer", bool, timeout=600), _step("one"), input=Faults)


def long_names() -> Saga:
    names = ("ä" * 50, "b" * 100, "ü" * 50)
    first, left, right = (_step(name, queue=LONG_QUEUE) for name in names)
    return Saga("l" * 100, first, Parallel(left, right), _step("pivot", kind=Pivot, queue=LONG_QUEUE), input=Faults)


def make_app(
    broker: str,
    database: str,
    folder: Path,
    *,
    lease: float = 2.0,
    redispatch_after: float = 2.0,
    timeout: float = 10.0,
    broken: tuple[str, str] | None = None,
    run_next_inline: bool = True,
    batch_size: int = 50,
    by_sqlalchemy: bool = False,
    task_cls: str | None = None,
    more: Sequence[str] = (),
    schedules: Mapping[str, Mapping[str, Any]] | None = None,
    **conf: Any,
) -> Celery:
    app = Celery("rig", broker=broker, set_as_current=False, task_cls=task_cls)
    app.conf.update(worker_hijack_root_logger=False, broker_connection_retry_on_startup=True, **conf)
    if broker.startswith("filesystem"):
        # kombu's own lets a reader find half a message.
        TRANSPORT_ALIASES["filesystem"] = "config.folder_broker:Transport"
        queue = folder / "queue"
        queue.mkdir(exist_ok=True)
        app.conf.broker_transport_options = {
            "data_folder_in": str(queue), "data_folder_out": str(queue),
            "control_folder": str(folder / "control"), "polling_interval": 0.02,
        }  # fmt: skip
    store = SqlStore(database, timeout=timeout)
    if by_sqlalchemy:  # a commit for each, and no prepared statements
        store._fast = store._together = None
    known = [*sagas(), *(globals()[name]() for name in more)]
    Sagas(
        app,
        store,
        known,
        lease=lease,
        redispatch_after=redispatch_after,
        recovery_interval=0.2,
        run_next_inline=run_next_inline,
        batch_size=batch_size,
        schedules=[_schedule(name, known, **options) for name, options in (schedules or {}).items()],
    )
    if broken:
        _break(app, *broken)
    return app


def _schedule(name: str, known: Sequence[Saga], *, saga: str, **options: Any) -> Schedule:
    [of_name] = [each for each in known if each.name == saga]
    return Schedule(name, of_name, input=Faults(), **options)


def _break(app: Celery, task: str, how: str) -> None:
    """Make every message of one task useless, whoever sends it."""
    canvas = app.sagas.canvas
    signature = canvas._signature

    def useless(name: str, *args: Any, **options: Any) -> Any:
        made = signature(name, *args, **options)
        if name == task:
            match how:
                case "arguments":
                    made["kwargs"] = {"nonsense": 1}
                    made.type.typing = False  # so that it is sent, and refused where it arrives
                case "unregistered":
                    made["task"] = "no.such.task"
                case "expired":
                    made["options"]["expires"] = -1
                case "revoked":
                    app.control.revoke(made["options"]["task_id"])
        return made

    canvas._signature = useless


class Helpful(Task):  # type: ignore[misc]
    """A base class that an app has for tasks of its own."""

    autoretry_for = (Exception,)
    max_retries = 5
    acks_late = False
    ignore_result = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


def app_of(settings: Mapping[str, Any]) -> Celery:
    return make_app(settings["broker"], settings["database"], Path(settings["folder"]), **settings.get("options", {}))


class Worker:
    """A real Celery worker process on the rig's app."""

    count = 0

    def __init__(
        self,
        settings: Mapping[str, Any],
        *options: str,
        pool: str = "prefork",
        concurrency: int = 2,
        clock: Clock | None = None,
        module: str = "tests.worker",
    ) -> None:
        Worker.count += 1
        self.name = f"w{Worker.count}@rig"
        self.folder = Path(settings["folder"])
        self.log = self.folder / f"worker-{Worker.count}.log"
        self.command = [
            sys.executable, "-m", "celery", "-A", module, "worker", "-n", self.name, "-P", pool,
            "-c", str(concurrency), "-l", "INFO", "--without-gossip", "--without-mingle", "--without-heartbeat", *options,
        ]  # fmt: skip
        self.environment = {
            **os.environ,
            "RIG": json.dumps(dict(settings), default=str),
            "RIG_FOLDER": str(self.folder),
            "PYTHONPATH": str(ROOT),
            **(clock.environment() if clock else {}),
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        with self.log.open("ab") as log:
            self.process = forks.Popen(
                self.command, cwd=ROOT, env=self.environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        wait_for(lambda: self._alive() and " ready." in self.output(), 30, f"{self.name} is ready")
        return self

    def _alive(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.name} ended with {self.process.returncode}\n{self.output()[-3000:]}")
        return True

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def children(self) -> list[psutil.Process]:
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def signal(self, number: int) -> None:
        if self.running:
            assert self.process is not None
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """End the worker and all its children at once."""
        self.signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait(30)

    def stop(self) -> None:
        if self.running:
            assert self.process is not None
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                pass
        self.kill()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclass
class Effect:
    """One line of the ledger."""

    saga: str
    event: str
    step: str
    attempt: int
    key: str
    pid: int
    at: float
    known: str | None
    in_main: bool = True  #: whether the function ran in the main thread of its process
    what: str = ""  #: what a step says beside, such as the row that it is at


class Ledger:
    """What really happened."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "ledger"

    def of(self, saga_id: str, *events: str) -> list[Effect]:
        written = self.file.read_text() if self.file.exists() else ""
        lines = written[: written.rfind("\n") + 1].splitlines()  # a worker may be writing the last one
        effects = [Effect(**json.loads(line)) for line in lines]
        return [e for e in effects if e.saga == saga_id and e.event in (events or ("do", "undo"))]

    def count(self, event: str) -> int:
        """How often something happened to all sagas together."""
        return self.file.read_text().count(f'"event": "{event}"') if self.file.exists() else 0

    def story(self, saga_id: str) -> list[str]:
        """What was done and undone, in order: `["one", "two", "-two", "-one"]`."""
        return [("-" if e.event == "undo" else "") + e.step for e in self.of(saga_id)]

    def assert_nets_to_zero(self, saga_id: str) -> None:
        """Every effect that landed was undone after it landed, and nothing landed after its last undo."""
        last: dict[str, Effect] = {}
        for effect in self.of(saga_id):
            last[effect.step] = effect
        left = {step for step, effect in last.items() if effect.event == "do"} - {"free"}
        assert not left, f"{left} landed and was not undone: {self.story(saga_id)}"
