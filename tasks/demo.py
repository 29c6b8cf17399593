"""A demo of the shop without any server: `python -m tasks.demo [ORDERS_FILE]`.

It runs a real Celery worker with SQLite and a folder of messages. Some orders ask for a fault: a parcel is declined, a
carrier never answers, the worker is killed. At the end every order is complete or left no trace, and the ledger proves
it.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Self

from celery.app.utils import find_app
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy.orm import Session

from sagas import KeyConflict, Sagas, SqlStore
from tasks import ledger, orderfile, tables
from tasks.books import complaints, expected, undone
from tasks.ledger import Net
from tasks.orderfile import Order, OrderFileError
from tasks.placing import Batch, Placed, prepare
from tasks.screen import FEW, MOST_SHOWN, Screen, coloured, screen, summary

__all__ = ["main"]

ROOT = Path(__file__).parent.parent
ORDERS = Path(__file__).parent / "data" / "orders.json"
QUEUES = "inventory,payments,shipping,notifications,shop"

#: Short, so that nobody has to wait: a real shop would give its workers more time.
TIMING = {"SAGAS_LEASE": "3", "SAGAS_REDISPATCH_AFTER": "3", "SAGAS_RECOVERY_INTERVAL": "0.3"}

#: How many workers may die before the demo assumes an error of its own.
MOST_WORKERS = 6


class DemoError(Exception):
    """The demo cannot continue."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo. Returns 0 if every order ended as expected, 1 if not, 2 if it could not start."""
    parser = argparse.ArgumentParser(prog="python -m tasks.demo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "orders", nargs="?", type=Path, default=ORDERS, help="a JSON or CSV file (default: %(default)s)"
    )
    parser.add_argument("--folder", type=Path, help="where to keep the database, messages and log (default: nowhere)")
    parser.add_argument(
        "--timeout", type=float, default=120, help="seconds without any progress after which to give up (default: 120)"
    )
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _exit)
    console = Console(highlight=False)
    try:
        orders = orderfile.read(options.orders)
        with _folder(options.folder) as folder:
            return _run(console, folder, orders, options.timeout)
    except (OrderFileError, KeyConflict) as error:
        print(error, file=sys.stderr)  # noqa: T201 - unwrapped: file names and reasons must stay intact
        return 2
    except DemoError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        console.print("\ninterrupted; the worker has been stopped")
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
    store = _open_shop(folder)
    prepare(store, orders)
    with_fault = sum(order.fault is not None for order in orders)
    console.print(f"{len(orders):,} orders, {with_fault:,} of them with a fault")
    # The first process sets up the broker's folder; two must not do so at the same time.
    batch = Batch(store, orders, timeout)
    batch.fill()
    with _Workers(folder / "worker.log") as workers, screen(console, store, batch) as shown:
        shown.say(f"worker 1 started (pid {workers.pid})")
        if not batch.until_over(lambda: _look(workers, shown)):
            shown.say(f"[bold red]gave up: no progress for {timeout:g} s[/]")
    placed = batch.placed
    console.print()
    faulty = [it for it in placed if it.order.fault is not None]
    for it in faulty[:MOST_SHOWN]:
        _print_history(console, store, it)
    if len(faulty) > MOST_SHOWN:
        console.print(f"and {len(faulty) - MOST_SHOWN:,} more orders with a fault")
    with Session(store.engine) as session:
        wrong = _audit(console, placed, ledger.net(session))
    console.print(
        f"[bold]{summary(placed)}; {workers.started} workers started, {workers.started - 1} of them died[/]",
        soft_wrap=True,
    )
    for line in wrong[:MOST_SHOWN]:
        console.print(f"[bold red]WRONG[/] {escape(line)}", soft_wrap=True)
    if len(wrong) > MOST_SHOWN:
        console.print(f"and {len(wrong) - MOST_SHOWN:,} more that are [bold red]WRONG[/]")
    if not wrong:
        console.print("[bold green]OK[/] every order is complete or was undone; the ledger has the right balances")
    return 1 if wrong else 0


def _look(workers: "_Workers", shown: Screen) -> None:
    """Show the progress of the orders, and replace a worker that died."""
    shown.update()
    if (code := workers.died()) is not None:
        how = "was killed with SIGKILL" if code == -signal.SIGKILL else f"ended with {code}"
        number = workers.started
        workers.replace()
        shown.say(f"[bold red]worker {number} {how}[/]; worker {number + 1} started (pid {workers.pid})")


# -- before ---------------------------------------------------------------------------------------------------------


def _open_shop(folder: Path) -> SqlStore:
    """Set up the environment, for this process and the worker, and the tables."""
    os.environ.update(
        BROKER_URL="filesystem://",
        BROKER_FOLDER=str(folder / "broker"),
        SAGAS_DATABASE_URL=f"sqlite:///{folder / 'shop.db'}",
        **TIMING,
    )
    # As `celery -A config` does. `config` imports `tasks` and reads the environment, so it is not imported above.
    sagas: Sagas = find_app("config").sagas
    store = sagas.store
    assert isinstance(store, SqlStore)
    store.upgrade()
    tables.create_all(store.engine)
    return store


# -- meanwhile ------------------------------------------------------------------------------------------------------


class _Workers:
    """Runs one real worker at a time, and the next one when it dies."""

    def __init__(self, log: Path) -> None:
        self.started = 0
        self._log = log
        self._process = self._start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def died(self) -> int | None:
        """Return the worker's exit code, or None while it runs."""
        return self._process.poll()

    def replace(self) -> None:
        self._end()
        if self.started == MOST_WORKERS:
            raise DemoError(f"{MOST_WORKERS} workers have died. The end of the log:\n{self._log.read_text()[-3000:]}")
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self.started += 1
        options = ["-P", "prefork", "-c", "4", "-Q", QUEUES, "-n", f"shop-{self.started}@%h", "-l", "INFO"]
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        command = [sys.executable, "-m", "celery", "-A", "config", "worker", *options, *quiet]
        with self._log.open("ab") as log:
            # In its own process group: the demo handles Ctrl-C, and can end the worker's child processes too.
            return subprocess.Popen(  # noqa: S603 - our own command
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _end(self) -> None:
        # SIGKILL: a step that hangs would delay a normal exit, and the database knows everything that matters.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()


# -- after ----------------------------------------------------------------------------------------------------------


def _print_history(console: Console, store: SqlStore, it: Placed) -> None:
    """Print the history of an order with a fault."""
    fault, saga = it.order.fault, it.saga
    assert fault is not None
    console.print(f"[bold]{saga.key}[/]: {fault.kind} at {fault.at} -> {coloured(saga.status)}", soft_wrap=True)
    events = [
        (entry.at, f"{entry.step or 'saga'} {entry.what}: {entry.detail}") for entry in store.queries.history(saga.id)
    ]
    if steps := undone(saga):
        events.append((saga.updated_at, f"undone in this order: {', '.join(steps)}"))
    events.append((saga.updated_at, str(saga.status)))
    for at, what in events:
        console.print(f"  {(at - saga.created_at).total_seconds():6.2f} s  {escape(what)}", soft_wrap=True)


def _audit(console: Console, placed: Sequence[Placed], net: Mapping[str, Mapping[str, Net]]) -> list[str]:
    """Print the ledger's balances for every order, if they are few. Returns what is wrong."""
    table = Table("order", "status", "money", "stock", "parcels", "messages", "ledger", title="The ledger, netted")
    wrong: list[str] = []
    for it in placed:
        left = net.get(it.saga.key, {})
        figures = [_sum(left, "payments").amount / 100, *(_sum(left, who).quantity for who in _COUNTED)]
        table.add_row(
            it.saga.key,
            coloured(it.saga.status),
            f"{figures[0]:.2f}",
            *(f"{figure:+d}" if figure else "0" for figure in figures[1:]),
            "[green]ok[/]" if left == expected(it) else "[bold red]WRONG[/]",
        )
        wrong += complaints(it, left)
    if len(placed) <= FEW:
        console.print(table)
    return wrong


_COUNTED = ("inventory", "shipping", "notifications")


def _sum(left: Mapping[str, Net], participant: str) -> Net:
    mine = [net for account, net in left.items() if account.startswith(f"{participant}/")]
    return Net(sum(net.amount for net in mine), sum(net.quantity for net in mine))


if __name__ == "__main__":
    sys.exit(main())
