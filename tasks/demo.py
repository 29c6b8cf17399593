"""The shop at work, with no server: `python -m tasks.demo [ORDERS_FILE]`.

A real Celery worker, SQLite and a folder of messages. Some of the orders ask for a fault: a parcel is declined, a
carrier never answers, the worker is killed. At the end every order has gone through or left no trace, and the ledger
proves it.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Self

from celery.app.utils import find_app
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Column, Table
from sqlalchemy.orm import Session

from sagas import KeyReused, SagaHandle, SagaRecord, Sagas, SagaStatus, SqlStore, StepStatus
from sagas.checkpoints import TERMINAL
from tasks import faults, inventory, ledger, orderfile, tables
from tasks.ledger import Net
from tasks.orderfile import Order, OrderFileError
from tasks.orders import place_order

__all__ = ["main"]

ROOT = Path(__file__).parent.parent
ORDERS = Path(__file__).parent / "data" / "orders.json"
QUEUES = "inventory,payments,shipping,notifications,shop"

#: Short, so that nobody has to wait: a shop would be more patient with its workers.
TIMING = {"SAGAS_LEASE": "3", "SAGAS_STALL_AFTER": "3", "SAGAS_SWEEP_INTERVAL": "0.3"}

#: Pieces on the shelf, of everything that is ordered.
STOCK = 100

#: Workers that may die before the demo takes it for a mistake of its own.
MOST_WORKERS = 6

#: Seconds between two looks at the orders.
PAUSE = 0.2

STYLES = {
    StepStatus.DONE: "green",
    StepStatus.RUNNING: "cyan",
    StepStatus.FAILED: "bold red",
    StepStatus.IN_DOUBT: "red",
    StepStatus.STUCK: "bold white on red",
    StepStatus.UNDOING: "magenta",
    StepStatus.UNDONE: "yellow",
    SagaStatus.RUNNING: "cyan",
    SagaStatus.COMPLETED: "bold green",
    SagaStatus.COMPENSATING: "magenta",
    SagaStatus.COMPENSATED: "bold yellow",
}

#: What is worth a line when nobody looks at a table. Failures are told by the history.
TOLD = (StepStatus.DONE, StepStatus.UNDONE)


class DemoError(Exception):
    """The demo cannot go on."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo. Returns 0 when every order ended as expected, 1 when not, 2 when it could not begin."""
    parser = argparse.ArgumentParser(prog="python -m tasks.demo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "orders", nargs="?", type=Path, default=ORDERS, help="a JSON or CSV file (default: %(default)s)"
    )
    parser.add_argument("--folder", type=Path, help="where to keep the database, messages and log (default: nowhere)")
    parser.add_argument("--timeout", type=float, default=120, help="seconds after which to give up (default: 120)")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _exit)
    console = Console(highlight=False)
    try:
        orders = orderfile.read(options.orders)
        with _folder(options.folder) as folder:
            return _run(console, folder, orders, options.timeout)
    except (OrderFileError, KeyReused) as error:
        print(error, file=sys.stderr)  # noqa: T201 - as it is: file names and reasons are not to be wrapped
        return 2
    except DemoError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        console.print("\ninterrupted; the worker has been ended")
        return 130


def _exit(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is None:
        with tempfile.TemporaryDirectory(prefix="sagas-demo-", ignore_cleanup_errors=True) as temporary:
            yield Path(temporary)
    else:
        given.mkdir(parents=True, exist_ok=True)
        yield given.resolve()


def _run(console: Console, folder: Path, orders: Sequence[Order], timeout: float) -> int:
    store = _open_shop(folder, orders)
    console.print(f"{len(orders)} orders, {sum(order.fault is not None for order in orders)} of them with a fault")
    # The broker's folder is set up by whoever comes first, and it is no place for two to do so at once.
    placed = _place(orders)
    with _Workers(folder / "worker.log") as workers:
        screen = _Table(console, placed) if console.is_terminal else _Lines(console, store, placed)
        with screen:
            screen.say(f"worker 1 started (pid {workers.pid})")
            _watch(placed, workers, screen, timeout)
    console.print()
    for it in placed:
        if it.order.fault is not None:
            _tell(console, store, it)
    with Session(store.engine) as session:
        wrong = _audit(console, placed, ledger.net(session))
    count = {status: sum(it.record.status is status for it in placed) for status in SagaStatus}
    console.print(
        f"[bold]{count[SagaStatus.COMPLETED]} completed, {count[SagaStatus.COMPENSATED]} compensated, "
        f"{len(placed) - count[SagaStatus.COMPLETED] - count[SagaStatus.COMPENSATED]} unfinished; "
        f"{workers.started} workers started, {workers.started - 1} of them died[/]"
    )
    for line in wrong:
        console.print(f"[bold red]WRONG[/] {escape(line)}")
    if not wrong:
        console.print("[bold green]OK[/] every order went through or was undone; the ledger nets to what it should")
    return 1 if wrong else 0


# -- before ---------------------------------------------------------------------------------------------------------


def _open_shop(folder: Path, orders: Sequence[Order]) -> SqlStore:
    """Set up the environment, for this process and the worker, the tables, the stock and the faults."""
    os.environ.update(
        BROKER_URL="filesystem://",
        BROKER_FOLDER=str(folder / "broker"),
        SAGAS_DATABASE_URL=f"sqlite:///{folder / 'shop.db'}",
        **TIMING,
    )
    # As `celery -A config` does it. `config` is made of `tasks` and reads the environment, so it is not imported above.
    sagas: Sagas = find_app("config").sagas
    store = sagas.store
    assert isinstance(store, SqlStore)
    store.upgrade()
    tables.create_all(store.engine)
    with Session(store.engine) as session, session.begin():
        for sku in sorted({order.input.sku for order in orders}):
            inventory.stock_up(session, sku, STOCK)
        for order in orders:
            if order.fault is not None:
                faults.plan(session, order.input.order_id, order.fault)
    return store


@dataclass(slots=True)
class _Placed:
    """An order that was placed, and what was last seen of it."""

    order: Order
    handle: SagaHandle
    record: SagaRecord

    @property
    def is_over(self) -> bool:
        return self.record.status in TERMINAL or self.record.status is SagaStatus.STUCK


def _place(orders: Sequence[Order]) -> list[_Placed]:
    handles = [(order, place_order.start(order.input, key=order.input.order_id)) for order in orders]
    return [_Placed(order, handle, handle.record) for order, handle in handles]


# -- meanwhile ------------------------------------------------------------------------------------------------------


class _Workers:
    """One real worker at a time, and the next one when it dies."""

    def __init__(self, log: Path) -> None:
        self.started = 0
        self._log = log
        self._process = self._start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def died(self) -> int | None:
        """Return how the worker ended, or None while it lives."""
        return self._process.poll()

    def replace(self) -> None:
        self._end()
        if self.started == MOST_WORKERS:
            raise DemoError(f"{MOST_WORKERS} workers have died. The last words:\n{self._log.read_text()[-3000:]}")
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self.started += 1
        options = ["-P", "prefork", "-c", "4", "-Q", QUEUES, "-n", f"shop-{self.started}@%h", "-l", "INFO"]
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        command = [sys.executable, "-m", "celery", "-A", "config", "worker", *options, *quiet]
        with self._log.open("ab") as log:
            # In a group of its own: Ctrl-C is ours to handle, and its children can be ended with it.
            return subprocess.Popen(  # noqa: S603 - our own command
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _end(self) -> None:
        # Not asked nicely: a step that hangs would keep it, and nothing is lost that the database does not know.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()


class _Table:
    """The orders as a table that changes, for a terminal."""

    def __init__(self, console: Console, placed: Sequence[_Placed]) -> None:
        self._placed = placed
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=5)

    def say(self, line: str) -> None:
        self._live.console.print(line)

    def update(self) -> None:
        """Do nothing: the table looks by itself."""

    def _render(self) -> Table:
        # Without lines and in small letters, so that it fits into 80 columns.
        columns = [name.replace("_", " ") for name in place_order.steps]
        table = Table(Column("order", no_wrap=True), Column("status", min_width=12), *columns, box=None, pad_edge=False)
        for it in self._placed:
            states: list[SagaStatus | StepStatus] = [
                it.record.status,
                *(it.record.step(name).status for name in place_order.steps),
            ]
            table.add_row(it.record.key, *(_colour(state) for state in states))
        return table

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()


def _colour(state: SagaStatus | StepStatus) -> str:
    if state is StepStatus.PENDING:
        return ""
    style = STYLES.get(state, "dim")
    return f"[{style}]{state.lower().replace('_', ' ')}[/]"


@dataclass
class _Lines:
    """A line for everything that happens, for a pipe or a log."""

    console: Console
    store: SqlStore
    placed: Sequence[_Placed]
    _seen: set[tuple[object, ...]] = field(default_factory=set)

    def say(self, line: str) -> None:
        self.console.print(line, soft_wrap=True)

    def update(self) -> None:
        news = [event for it in self.placed for event in self._news(it)]
        for *_, line in sorted(news):
            self.say(escape(line))

    def _news(self, it: _Placed) -> Iterator[tuple[datetime, int, str]]:
        """Tell what was not told before, with its time, and its place among what happened at that time."""
        key = it.record.key
        for step in it.record.steps.values():
            if step.status in TOLD and step.finished_at and self._is_new(key, step.name, step.status, step.finished_at):
                yield step.finished_at, 1, f"{key}  {step.name}  {step.status}"
        for entry in self.store.history(it.record.id):
            if self._is_new(key, entry):
                yield entry.at, 0, f"{key}  {entry.step or 'saga'}  {entry.what.upper()}: {entry.detail}"
        if it.is_over and self._is_new(key, it.record.status):
            yield it.record.updated_at, 2, f"{key}  {it.record.status}"

    def _is_new(self, *fact: object) -> bool:
        is_new = fact not in self._seen
        self._seen.add(fact)
        return is_new

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the lines as they are."""


def _watch(placed: Sequence[_Placed], workers: _Workers, screen: _Table | _Lines, timeout: float) -> None:
    """Look on until every order is over; put a new worker in the place of one that died."""
    give_up = time.monotonic() + timeout
    while time.monotonic() < give_up:
        for it in placed:
            if not it.is_over:
                it.record = it.handle.record
        screen.update()
        if all(it.is_over for it in placed):
            return
        if (code := workers.died()) is not None:
            how = "was killed with SIGKILL" if code == -signal.SIGKILL else f"ended with {code}"
            number = workers.started
            workers.replace()
            screen.say(f"[bold red]worker {number} {how}[/]; worker {number + 1} started (pid {workers.pid})")
        time.sleep(PAUSE)
    screen.say(f"[bold red]gave up after {timeout:g} s[/]")


# -- after ----------------------------------------------------------------------------------------------------------


def _tell(console: Console, store: SqlStore, it: _Placed) -> None:
    """Tell what became of an order with a fault."""
    fault, record = it.order.fault, it.record
    assert fault is not None
    console.print(f"[bold]{record.key}[/]: {fault.kind} at {fault.at} -> {_colour(record.status)}", soft_wrap=True)
    events = [(entry.at, f"{entry.step or 'saga'} {entry.what}: {entry.detail}") for entry in store.history(record.id)]
    if undone := _undone(record):
        events.append((record.updated_at, f"undone in this order: {', '.join(undone)}"))
    events.append((record.updated_at, str(record.status)))
    for at, what in events:
        console.print(f"  {(at - record.created_at).total_seconds():6.2f} s  {escape(what)}", soft_wrap=True)


def _undone(record: SagaRecord) -> list[str]:
    """Return the steps whose compensation ran, in the order in which that was done."""
    steps = [
        (step.finished_at, step.name)
        for step in record.steps.values()
        if step.status is StepStatus.UNDONE and step.finished_at and place_order.steps[step.name].compensation
    ]
    return [name for _, name in sorted(steps)]


def _audit(console: Console, placed: Sequence[_Placed], net: Mapping[str, Mapping[str, Net]]) -> list[str]:
    """Print what the ledger says of every order. Returns what is not as it should be."""
    table = Table("order", "status", "money", "stock", "parcels", "messages", "ledger", title="The ledger, netted")
    wrong: list[str] = []
    for it in placed:
        left = net.get(it.record.key, {})
        expected = _expected(it)
        figures = [_sum(left, "payments").amount / 100, *(_sum(left, who).quantity for who in _COUNTED)]
        table.add_row(
            it.record.key,
            _colour(it.record.status),
            f"{figures[0]:.2f}",
            *(f"{figure:+d}" if figure else "0" for figure in figures[1:]),
            "[green]ok[/]" if left == expected else "[bold red]WRONG[/]",
        )
        wrong += _complaints(it, left, expected)
    console.print(table)
    return wrong


_COUNTED = ("inventory", "shipping", "notifications")


def _sum(left: Mapping[str, Net], participant: str) -> Net:
    mine = [net for account, net in left.items() if account.startswith(f"{participant}/")]
    return Net(sum(net.amount for net in mine), sum(net.quantity for net in mine))


def _expected(it: _Placed) -> Mapping[str, Net]:
    """Return what the ledger should have left: all of an order or nothing of it."""
    if it.record.status is not SagaStatus.COMPLETED:
        return {}
    order = it.order.input
    return {
        "payments/till": Net(ledger.cents(order.amount), 0),
        f"inventory/{order.sku}": Net(0, -order.quantity),
        "shipping/parcels": Net(0, 1),
        "notifications/messages": Net(0, 1),
    }


def _complaints(it: _Placed, left: Mapping[str, Net], expected: Mapping[str, Net]) -> Iterator[str]:
    key, status = it.record.key, it.record.status
    if status not in TERMINAL:
        yield f"{key} is still {status}: {it.record.error}"
    elif it.order.expect not in (None, status):
        yield f"{key} is {status}, and should be {it.order.expect}: {it.record.error}"
    elif left != expected:
        yield f"{key} is {status}, and the ledger has {dict(left)} for it instead of {dict(expected)}"
    stages = [place_order.steps[name].stage for name in _undone(it.record)]
    if stages != sorted(stages, reverse=True):
        yield f"{key} was not undone in reverse order: {', '.join(_undone(it.record))}"


if __name__ == "__main__":
    sys.exit(main())
