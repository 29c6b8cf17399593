"""The displays of orders in progress: a table, a progress bar, lines for a log, or occasional numbers."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from sagas import SagaStatus, SqlStore, StepStatus
from sagas.checkpoints import AT_REST
from tasks.orders import place_order
from tasks.placing import Batch, Placed, counted

__all__ = ["FEW", "MOST_SHOWN", "Screen", "coloured", "screen", "summary"]

#: With more orders than this, there is no line for each step.
FEW = 200

#: How many orders are described one by one.
MOST_SHOWN = 20

#: How many numbers a log gets, if there are more orders.
_NUMBERS = 20

#: Lines of a terminal that are not used for orders.
_MARGIN = 6

_STYLES = {
    StepStatus.DONE: "green",
    StepStatus.RUNNING: "cyan",
    StepStatus.FAILED: "bold red",
    StepStatus.IN_DOUBT: "red",
    StepStatus.STUCK: "bold white on red",
    StepStatus.COMPENSATING: "magenta",
    StepStatus.COMPENSATED: "yellow",
    SagaStatus.RUNNING: "cyan",
    SagaStatus.COMPLETED: "bold green",
    SagaStatus.COMPENSATING: "magenta",
    SagaStatus.COMPENSATED: "bold yellow",
}

#: Statuses that get a line if there is no table. The history shows failures.
_SHOWN = (StepStatus.DONE, StepStatus.COMPENSATED)


class Screen(Protocol):
    """A display of orders."""

    def say(self, line: str) -> None:
        """Print a line next to the orders."""

    def update(self) -> None:
        """Show the current state of the orders."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def screen(console: Console, store: SqlStore, batch: Batch) -> Screen:
    """Return the display for this console and number of orders."""
    if console.is_terminal:
        return _Table(console, batch) if batch.total + _MARGIN <= console.height else _Bar(console, batch)
    return _Lines(console, store, batch) if batch.total <= FEW else _Numbers(console, batch)


def coloured(state: SagaStatus | StepStatus) -> str:
    """Return a status in lower case and in its color; nothing for a step that has not started."""
    if state is StepStatus.PENDING:
        return ""
    return f"[{_STYLES.get(state, 'dim')}]{state.lower().replace('_', ' ')}[/]"


def summary(placed: Iterable[Placed]) -> str:
    """Return how many orders have each status: `12 completed, 1 compensated, 3 under way`."""
    counts = counted(placed)
    under_way = sum(count for status, count in counts.items() if status not in AT_REST)
    ended = [(counts[status], status.lower()) for status in sorted(AT_REST, key=list(SagaStatus).index)]
    return ", ".join(f"{count:,} {word}" for count, word in [*ended, (under_way, "under way")] if count) or "no orders"


class _Table:
    """A live table, for a terminal that is large enough."""

    def __init__(self, console: Console, batch: Batch) -> None:
        self._batch = batch
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=5)

    def say(self, line: str) -> None:
        self._live.console.print(line)

    def update(self) -> None:
        """Do nothing: the table refreshes itself."""

    def _render(self) -> Table:
        # Without borders and in lower case, to fit into 80 columns.
        columns = [name.replace("_", " ") for name in place_order.steps]
        table = Table(Column("order", no_wrap=True), Column("status", min_width=12), *columns, box=None, pad_edge=False)
        for it in self._batch.placed:
            steps = [coloured(it.saga.step(name).status) for name in place_order.steps]
            table.add_row(it.saga.key, coloured(it.saga.status), *steps)
        return table

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()


class _Bar:
    """A progress bar with numbers, for a terminal that is too small for a table."""

    def __init__(self, console: Console, batch: Batch) -> None:
        self._batch = batch
        columns = BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[counts]}")
        self._bar = Progress(*columns, console=console)
        self._task = self._bar.add_task("orders", total=batch.total, counts="")

    def say(self, line: str) -> None:
        self._bar.console.print(line)

    def update(self) -> None:
        self._bar.update(self._task, completed=self._batch.over, counts=summary(self._batch.placed))

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


@dataclass
class _Lines:
    """A line for every event, for a pipe or a log."""

    console: Console
    store: SqlStore
    batch: Batch
    _seen: set[tuple[object, ...]] = field(default_factory=set)
    _looked: dict[str, int] = field(default_factory=dict)

    def say(self, line: str) -> None:
        self.console.print(line, soft_wrap=True)

    def update(self) -> None:
        changed = [it for it in self.batch.placed if self._looked.get(it.saga.id) != it.saga.revision]
        self._looked |= {it.saga.id: it.saga.revision for it in changed}
        for *_, line in sorted(event for it in changed for event in self._news(it)):
            self.say(escape(line))

    def _news(self, it: Placed) -> Iterator[tuple[datetime, int, str]]:
        """Yield new lines with their time, and their order among lines with the same time."""
        key = it.saga.key
        for step in it.saga.steps.values():
            if (
                step.status in _SHOWN
                and step.finished_at
                and self._is_new(key, step.name, step.status, step.finished_at)
            ):
                yield step.finished_at, 1, f"{key}  {step.name}  {step.status}"
        for entry in self.store.queries.history(it.saga.id):
            if self._is_new(key, entry):
                yield entry.at, 0, f"{key}  {entry.step or 'saga'}  {entry.what.upper()}: {entry.detail}"
        if it.is_over and self._is_new(key, it.saga.status):
            yield it.saga.updated_at, 2, f"{key}  {it.saga.status}"

    def _is_new(self, *fact: object) -> bool:
        is_new = fact not in self._seen
        self._seen.add(fact)
        return is_new

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the lines as they are."""


@dataclass
class _Numbers:
    """Occasional numbers, for a pipe or a log."""

    console: Console
    batch: Batch
    _shown: int = -1

    def say(self, line: str) -> None:
        self.console.print(line, soft_wrap=True)

    def update(self) -> None:
        part = self.batch.over * _NUMBERS // self.batch.total
        if part != self._shown:
            self._shown = part
            self.say(f"{self.batch.over:,} of {self.batch.total:,} orders have ended: {summary(self.batch.placed)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the lines as they are."""
