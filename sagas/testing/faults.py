"""What goes wrong on purpose in a run: errors and crashes, and what is noted of the functions that were called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sagas.binding import BoundStep
from sagas.children import Child, descendants
from sagas.definition import Saga
from sagas.each import Each
from sagas.endings import ProcessEnd, meant
from sagas.errors import NotAllowed, StepSignal
from sagas.text import describe

__all__ = ["Call", "Crashed", "Fault", "Faults"]


class Crashed(ProcessEnd):
    """A crash of the worker. No `except Exception` catches it, and open transactions are rolled back, as in reality."""


@dataclass(frozen=True, slots=True)
class Call:
    """A function that a saga is about to call."""

    saga_id: str
    saga: str  #: its name
    step: str
    item: int | None  #: of the `Each` that the saga is in, if it is in one
    undo: bool = False  #: whether it is the compensation


@dataclass(slots=True, eq=False)
class Fault:
    """What happens in the next attempts of a step."""

    step: str
    saga: str | None = None  #: the name of the saga that has the step; None where any has
    item: int | None = None  #: None for each
    undo: bool = False
    times: int | None = 1  #: None for all attempts
    after_effect: bool = False  #: call the function first, and lose what it returned
    error: BaseException | None = None
    #: Called with the saga's id before the function is called, in place of an error.
    before: Callable[[str], object] | None = None
    #: Called with the saga's id when the function has returned, before that is stored; in place of an error.
    after: Callable[[str], object] | None = None

    def hits(self, call: Call) -> bool:
        here = (self.step, self.undo) == (call.step, call.undo) and self.saga in (None, call.saga)
        return here and self.item in (None, call.item)

    def check(self, saga: Saga) -> None:
        """Refuse a fault that could never happen: a test that relies on it would prove nothing."""
        all_ = [step for each in (saga, *descendants(saga)) for step in each.steps.values()]
        named = [step for step in all_ if step.name == self.step]
        if not named:
            names = dict.fromkeys(step.name for step in all_)
            raise NotAllowed(f"saga {saga.name!r} has no step {self.step!r} to fail at. It has {', '.join(names)}")
        if not any(_calls_something(step) for step in named):
            raise NotAllowed(f"saga {saga.name!r}: {self.step!r} calls no function that could fail")
        if self.item is not None and not any(isinstance(step.step, Each) for step in all_):
            raise NotAllowed(f"saga {saga.name!r} has no Each, so it has no item {self.item} to fail at")
        if not self.undo:
            return
        undoable = [step for step in named if step.compensation is not None]
        if not undoable:
            raise NotAllowed(f"saga {saga.name!r}: step {self.step!r} has no compensation that could fail")
        if all(isinstance(step.step, Child) for step in undoable):
            raise NotAllowed(
                f"saga {saga.name!r}: {self.step!r} is a child saga, which compensates by its own steps: fail at one "
                "of those"
            )


def _calls_something(step: BoundStep) -> bool:
    """Tell whether a node calls a function in which a fault can happen. Those of an `Each` are in its items."""
    return not step.step.is_open_at_once and not isinstance(step.step, Each)


class Faults:
    """The faults that are still to happen, and what the functions of a run did."""

    def __init__(self) -> None:
        self.pending: list[Fault] = []
        #: What conditions answer in place of their functions, by node.
        self.decisions: dict[str, bool] = {}
        #: The nodes whose lists of items are empty, whatever their functions return.
        self.empty: set[str] = set()
        #: What functions raised that is neither `TerminalError` nor `RetryableError`.
        self.raised: list[str] = []
        #: How many faults have happened.
        self.happened = 0
        #: How often the result of a call was lost on purpose.
        self.lost: Counter[Call] = Counter()

    def heal(self) -> None:
        """Remove all faults that have not happened."""
        self.pending.clear()
        self.decisions.clear()
        self.empty.clear()

    def check(self, saga: Saga) -> None:
        for fault in self.pending:
            fault.check(saga)

    @property
    def tell_items_apart(self) -> bool:
        """Whether a fault is for one item of several."""
        return any(fault.item is not None for fault in self.pending)

    def take(self, call: Call) -> Fault | None:
        """Return the next fault that happens at a call."""
        fault = next((fault for fault in self.pending if fault.hits(call)), None)
        self.happened += fault is not None
        if fault is not None and fault.times is not None:
            fault.times -= 1
            if not fault.times:
                self.pending.remove(fault)
        return fault

    def play(self, call: Call, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Call a function, or let the next fault happen."""
        fault = self.take(call)
        if fault is None:
            return self._noting(call, function, arguments)
        if fault.error is not None and not fault.after_effect:
            raise fault.error
        if fault.before is not None:
            fault.before(call.saga_id)
        returned = self._noting(call, function, arguments)
        if fault.error is not None:
            self.lost[call] += 1
            raise fault.error
        if fault.after is not None:
            fault.after(call.saga_id)
        return returned

    def _noting(self, call: Call, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        try:
            return function(**arguments)
        except Exception as error:
            if not isinstance(meant(error), StepSignal):
                what = "compensation" if call.undo else "action"
                self.raised.append(f"the {what} of {call.step!r} raised {type(error).__name__}: {describe(error)}")
            raise

    def decide(self, step: str, condition: Callable[..., Any], /, **arguments: Any) -> Any:
        """Ask a condition, unless its answer is given."""
        return self.decisions[step] if step in self.decisions else condition(**arguments)

    def list_items(self, step: str, over: Callable[..., Any], /, **arguments: Any) -> Any:
        """Return the items of an `Each`."""
        return [] if step in self.empty else over(**arguments)
