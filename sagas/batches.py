"""Batches: one message for many sagas that begin with the same step.

A worker runs the sagas of a batch side by side, so that their checkpoints share commits; see `sagas.gathering`. Their
functions still run one at a time, unless `batch_concurrency` says otherwise: code that is not thread-safe stays safe.
A batch is for steps that are quick. Whatever turns out to be slow leaves it, with a message of its own, so that other
workers can take it.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from sagas.checkpoints import Direction
from sagas.definition import Saga
from sagas.endings import ends_process
from sagas.plan import Plan, Stage

__all__ = ["SIDE_BY_SIDE", "Batches", "Turns", "alike_groups", "as_message", "grouped", "likeness", "plans_of", "run"]

logger = logging.getLogger(__name__)

#: Seconds that the function of a step took last time, at most, for the step to stay in a batch.
_QUICK = 0.01

#: Seconds for which a function may be at work before the sagas that have not begun leave its batch.
_LATE = 0.05

#: Sagas of a batch whose checkpoints are on their way at the same time, where the store has them share commits.
SIDE_BY_SIDE = 16

#: Seconds after which a worker begins no more sagas of a batch, and lets the broker choose again.
_LONGEST = 5.0


@dataclass(frozen=True, slots=True)
class Batches:
    """How sagas are batched.

    `size`: sagas in one message at most; 1 for no batches.
    `concurrency`: how many functions of one batch run at a time.
    """

    size: int
    concurrency: int


# -- the message ------------------------------------------------------------------------------------------------------


def likeness(plan: Plan) -> Plan:
    """Return what is the same in plans that differ by nothing but their saga's id."""
    return replace(plan, saga_id="")


def grouped(plans: Iterable[Plan], size: int) -> Iterator[list[Plan]]:
    """Yield plans that differ by nothing but their saga's id together, so many at most, in their order."""
    for _, alike in itertools.groupby(plans, likeness):
        while group := list(itertools.islice(alike, size)):
            yield group


def alike_groups(plans: Iterable[Plan]) -> Iterable[list[Plan]]:
    """Return those plans together that differ by nothing but their saga's id, wherever they come."""
    groups: dict[Plan, list[Plan]] = {}
    for plan in plans:
        groups.setdefault(likeness(plan), []).append(plan)
    return groups.values()


def as_message(plans: Sequence[Plan], *, side_by_side: bool) -> dict[str, Any]:
    """Return the arguments of the message for plans that differ by nothing but their saga's id.

    `side_by_side`: whether they may run in threads beside the thread of their task.
    """
    plan = plans[0]
    return {
        "saga": plan.saga.name,
        "version": plan.saga.version,
        "saga_ids": [each.saga_id for each in plans],
        "epoch": plan.epoch,
        "dispatch": plan.dispatch,
        "stages": [[list(stage.steps), stage.joined] for stage in plan.stages],
        "side_by_side": side_by_side,
    }


def plans_of(saga: Saga, message: Mapping[str, Any]) -> list[Plan]:
    """Return the plans that such a message was made of."""
    stages = tuple(Stage(tuple(steps), joined) for steps, joined in message["stages"])
    forward = Direction.FORWARD
    return [
        Plan(saga, saga_id, message["epoch"], message["dispatch"], forward, stages) for saga_id in message["saga_ids"]
    ]


# -- running one ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Turns:
    """Lets so many functions of a batch run at a time, and keeps how long those of each task took."""

    concurrency: int
    took: dict[str, float]  #: seconds, by task; shared by all batches of a process
    until: float = field(default_factory=lambda: time.monotonic() + _LONGEST)
    _slots: threading.Semaphore = field(init=False)
    _at_work: dict[int, float] = field(default_factory=dict)  #: by thread: since when its function is at work

    def __post_init__(self) -> None:
        self._slots = threading.Semaphore(self.concurrency)

    @contextmanager
    def of(self, task: str) -> Iterator[None]:
        """Wait for the turn of a function of this task, and have it until the block ends."""
        with self._slots:
            began = self._at_work[threading.get_ident()] = time.monotonic()
            try:
                yield
            finally:
                del self._at_work[threading.get_ident()]
                self.took[task] = time.monotonic() - began

    def is_quick(self, task: str, *, alone: bool = False) -> bool:
        """Tell whether a step of this task may stay in the batch.

        Nobody knows of one that has not been run yet. It may if its saga is `alone`, with no other to hold up.
        """
        unknown = 0.0 if alone else _QUICK + 1
        return self.took.get(task, unknown) <= _QUICK and time.monotonic() < self.until

    def holds_up(self, task: str) -> bool:
        """Tell whether sagas that begin with this task should not wait for their turn: it, or one at work, is slow."""
        late = time.monotonic() - _LATE
        return not self.is_quick(task, alone=True) or any(began < late for began in list(self._at_work.values()))


def run(
    plans: Sequence[Plan],
    carry: Callable[[Plan, bool], None],
    turns: Turns,
    task: str,
    send_on: Callable[[Sequence[Plan]], None],
    *,
    threads: int,
) -> int:
    """Carry sagas side by side for as long as they are quick. Returns how many were sent on instead.

    `carry`: brings one saga on, and is told whether it is alone; what it raises is that saga's own, and recovery sees
    to it.
    `task`: that the sagas begin with.
    `send_on`: sends sagas that have not begun, because they would have to wait here. It is called from any thread.
    `threads`: how many at a time. The first is carried alone, and shows what is quick.
    """
    first, *others = plans
    waiting, over = _Waiting(others, send_on), threading.Event()

    def work() -> None:
        while turns.is_quick(task) and (plan := waiting.take()) is not None:
            _carried(carry, plan, alone=False)

    def watch() -> None:
        while not over.wait(_LATE):
            if turns.holds_up(task):
                waiting.leave()
                return

    if turns.holds_up(task):
        waiting.leave()
    with ExitStack() as ends:
        ends.callback(_beside(watch).join)
        ends.callback(over.set)
        _carried(carry, first, alone=True)
        for _ in range(min(threads, len(waiting.plans)) - 1):
            ends.callback(_beside(work).join)
        work()
    waiting.leave()
    return waiting.gone


class _Waiting:
    """The sagas of a batch that have not begun. Safe to use from any thread."""

    def __init__(self, plans: Iterable[Plan], send_on: Callable[[Sequence[Plan]], None]) -> None:
        self.plans = deque(plans)
        self.gone = 0  #: how many have left
        self._send_on = send_on

    def take(self) -> Plan | None:
        """Return the next one, which begins now."""
        try:
            return self.plans.popleft()
        except IndexError:
            return None

    def leave(self) -> None:
        """Send all of them on."""
        left = list(iter(self.take, None))
        if left:
            self.gone += len(left)
            self._send_on(left)


def _beside(do: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=do, name="sagas-batch", daemon=True)
    thread.start()
    return thread


def _carried(carry: Callable[[Plan, bool], None], plan: Plan, *, alone: bool) -> None:
    try:
        carry(plan, alone)
    except BaseException as error:
        if ends_process(error):
            raise
        logger.warning("saga %s (%s): recovery will take it up: %r", plan.saga.name, plan.saga_id, error)
