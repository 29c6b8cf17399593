"""Place orders in a running shop: `python -m tasks.place ORDERS_FILE`.

It stocks the articles, places the orders and waits until each is complete or undone. As for `celery -A config worker`,
BROKER_URL and SAGAS_DATABASE_URL set the broker and the database.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from celery.app.utils import find_app
from rich.console import Console
from rich.markup import escape
from sqlalchemy import inspect
from sqlalchemy.orm import Session

from sagas import KeyConflict, Sagas, SqlStore
from sagas.doctor import broker
from sagas.errors import SagaError
from sagas.stores.inspection import tables as revisions
from tasks import ledger, orderfile, tables
from tasks.books import complaints
from tasks.orderfile import Order, OrderFileError
from tasks.placing import Batch, prepare
from tasks.screen import MOST_SHOWN, Screen, screen, summary

__all__ = ["main"]

#: Seconds that the broker has to answer.
_ANSWER = 5.0

#: Seconds without progress after which a hint is shown.
_HINT = 15.0


class PlaceError(Exception):
    """The orders cannot be placed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Place orders. Returns 0 if every order ended as it should, 1 if not, 2 if they could not be placed."""
    parser = argparse.ArgumentParser(prog="python -m tasks.place", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("orders", type=Path, help="a JSON or CSV file")
    parser.add_argument(
        "--faults",
        action="store_true",
        help="trigger the faults that the orders ask for; one of them kills a worker, which you must start again",
    )
    parser.add_argument(
        "--timeout", type=float, default=120, help="seconds without any progress after which to give up (default: 120)"
    )
    options = parser.parse_args(arguments)
    console = Console(highlight=False)
    try:
        orders = orderfile.read(options.orders)
        return _run(console, _open_shop(), orders if options.faults else _without_faults(console, orders), options)
    except (OrderFileError, PlaceError, KeyConflict) as error:
        print(error, file=sys.stderr)  # noqa: T201 - unwrapped: file names and reasons must stay intact
        return 2
    except SagaError as error:
        print(f"the shop's database or broker failed: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        console.print("\ninterrupted; placed orders continue: celery -A config sagas list")
        return 130


def _open_shop() -> SqlStore:
    """Return the shop's store, if the shop can take orders."""
    # As `celery -A config` does. `config` imports `tasks`, so it is not imported above.
    sagas: Sagas = find_app("config").sagas
    store = sagas.store
    assert isinstance(store, SqlStore)
    current, needed = revisions(store)
    if current != needed or not inspect(store.engine).has_table(tables.Stock.__tablename__):
        raise PlaceError(
            f"the tables in {store!r} do not exist, or are older than this code. Run: python -m config.migrate"
        )
    for finding in broker.examine(sagas.app, _ANSWER):
        if finding.code == broker.UNREACHABLE:
            raise PlaceError(f"{finding.says.partition('. ')[0]}. Start it, or set BROKER_URL")
    return store


def _without_faults(console: Console, orders: Sequence[Order]) -> list[Order]:
    """Return the orders without their faults, and without the outcome that those faults lead to."""
    if left_out := sum(order.fault is not None for order in orders):
        console.print(f"{left_out:,} orders ask for a fault, which needs --faults")
    return [order if order.fault is None else replace(order, fault=None, expect=None) for order in orders]


def _run(console: Console, store: SqlStore, orders: Sequence[Order], options: argparse.Namespace) -> int:
    prepare(store, orders)
    console.print(f"placing {len(orders):,} orders; the articles are in stock")
    batch = Batch(store, orders, options.timeout)
    with screen(console, store, batch) as shown:
        hints = _Hints(batch, shown)
        if not batch.until_over(hints.look):
            shown.say(f"[bold red]gave up: no progress for {options.timeout:g} s[/]")
    with Session(store.engine) as session:
        net = ledger.net(session, [it.saga.key for it in batch.placed])
    wrong = [line for it in batch.placed for line in complaints(it, net.get(it.saga.key, {}))]
    for line in wrong[:MOST_SHOWN]:
        console.print(f"[bold red]WRONG[/] {escape(line)}", soft_wrap=True)
    if len(wrong) > MOST_SHOWN:
        console.print(f"and {len(wrong) - MOST_SHOWN:,} more that are [bold red]WRONG[/]")
    if (missing := batch.total - len(batch.placed)) > 0:
        console.print(f"[bold red]{missing:,} orders were not placed[/]")
    console.print(f"[bold]{summary(batch.placed)}[/]")
    if wrong or missing:
        return 1
    console.print("[bold green]OK[/] every order is complete or was undone; the ledger has the right balances")
    return 0


class _Hints:
    """Shows the orders and, after a while without progress, a hint."""

    def __init__(self, batch: Batch, shown: Screen) -> None:
        self._batch = batch
        self._shown = shown
        self._hinted = False

    def look(self) -> None:
        self._shown.update()
        if self._batch.idle > _HINT and not self._hinted:
            self._hinted = True
            self._shown.say("no progress: are the workers running? celery -A config sagas doctor says what is wrong")


if __name__ == "__main__":
    sys.exit(main())
