"""What a rehearsal does to a saga: a scenario for every way in which each of its nodes can fail."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from sagas.binding import BoundStep
from sagas.checkpoints import SagaStatus, step_name
from sagas.children import Child
from sagas.definition import Saga
from sagas.each import Each
from sagas.errors import RetryableError, TerminalError
from sagas.nodes import Sleep, Wait
from sagas.retries import Retry
from sagas.testing.faults import Crashed, Fault

__all__ = ["MOST_ITEMS", "Reply", "Scenario", "ends_of_condition", "last_action", "rehearsed_items", "scenarios"]

Ends = frozenset[SagaStatus]
COMPLETED, COMPENSATED, STUCK = (
    frozenset({status}) for status in (SagaStatus.COMPLETED, SagaStatus.COMPENSATED, SagaStatus.STUCK)
)

#: How often a worker dies at one step: twice, to distinguish an effect that happened twice from one that happened once.
_CRASHES = 2

#: Of an `Each` with more items than this, only the first and the last ones fail.
MOST_ITEMS = 6


class Reply(enum.Enum):
    """How the world answers a node that waits."""

    ONCE = "once"
    EARLY = "early"  #: before the node waits
    TWICE = "twice"
    NEVER = "never"
    LATE = "late"  #: when its time is over, and the saga has ended
    FAILED = "failed"
    CANCEL = "cancel"  #: the saga is cancelled while it waits


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One run: what happens, and how the saga should end then."""

    step: str  #: as the report names it
    failure: str
    ends: Ends
    faults: tuple[Fault, ...] = ()
    empty: str = ""  #: the `Each` that has no items
    reply: Reply = Reply.ONCE
    node: str = ""  #: what the reply is for
    compensate_after: str = ""  #: cancel the saga when the stage of this node is done
    undo_again: tuple[str, int | None] | None = None  #: a step, and its item, to compensate once more at the end
    decisions: Mapping[str, bool] = field(default_factory=dict)  #: what conditions answer
    varies: bool = False  #: later steps are given other values, which they have to cope with


def rehearsed_items(total: int) -> list[int]:
    """Return which of so many items are made to fail one by one.

    >>> rehearsed_items(3), rehearsed_items(50)
    ([0, 1, 2], [0, 1, 2, 47, 48, 49])
    """
    if total <= MOST_ITEMS:
        return list(range(total))
    half = MOST_ITEMS // 2
    return [*range(half), *range(total - half, total)]


def scenarios(saga: Saga, step: BoundStep, items: int, lease: float) -> Iterator[Scenario]:
    """Yield what is rehearsed of a node. `items`: how many an `Each` has with the given input."""
    node, rules = step.step, _Rules(saga, step, lease)
    if isinstance(node, Each):
        yield from _of_each(rules, node, items)
        return
    if not node.is_open_at_once:
        yield from _of_action(rules, _Place(step.name, saga.name), rules.refused, rules.given_up, step)
    if isinstance(node, Wait):
        yield from _of_wait(rules, node)
    elif isinstance(node, Sleep):
        yield from _of_sleep(rules)
    elif isinstance(node, Child):
        yield from _of_child(rules, node)
    elif node.patience is not None:
        yield from _of_deferred(rules)
    if node.poll_timeout is not None:
        never = RetryableError("not ready, in rehearsal", after=node.poll_timeout / 3)
        yield rules.scenario("not ready in time", rules.given_up, faults=(rules.fault(error=never, times=None),))
    if step.compensation is not None and not isinstance(node, Child):
        yield from _of_compensation(rules, _Place(step.name, saga.name), COMPENSATED, step)


def ends_of_condition(step: BoundStep) -> Ends:
    """Return how a saga may end if a condition gives the other answer."""
    return COMPLETED if step.past_pivot else COMPLETED | COMPENSATED


@dataclass(frozen=True, slots=True)
class _Place:
    """Where faults happen, and how the report names that."""

    step: str
    saga: str
    item: int | None = None
    node: str = ""  #: what the report names, if that is another node than the step

    @property
    def name(self) -> str:
        return step_name(self.node or self.step, self.item)

    def fault(self, error: BaseException, *, undo: bool = False, times: int | None = None, late: bool = False) -> Fault:
        return Fault(self.step, self.saga, self.item, undo, times, after_effect=late, error=error)


@dataclass(frozen=True, slots=True)
class _Rules:
    """How a saga should end when one of its nodes fails."""

    saga: Saga
    step: BoundStep
    lease: float

    @property
    def refused(self) -> Ends:
        return STUCK if self.step.past_pivot else COMPENSATED

    @property
    def given_up(self) -> Ends:
        return STUCK if self.step.past_pivot or self.step.step.is_pivot else COMPENSATED

    @property
    def is_last(self) -> bool:
        return self.step.stage + 1 == len(self.saga.stages)

    def fault(self, *, error: BaseException, times: int | None) -> Fault:
        return Fault(self.step.name, self.saga.name, times=times, error=error)

    def scenario(self, failure: str, ends: Ends, *, reply: Reply = Reply.ONCE, **more: object) -> Scenario:
        made = Scenario(step=self.step.name, failure=failure, ends=ends, reply=reply, node=self.step.name)
        return replace(made, **more)  # type: ignore[arg-type]  # of the fields of a scenario

    def survives(self, step: BoundStep, retry: Retry) -> bool:
        # The claim of a dead worker ends with its lease and counts as lost, or with its timeout and counts as failed.
        expires = step.step.timeout > self.lease
        most = step.step.max_deliveries if expires else retry.policy_for(TimeoutError()).max_attempts
        return most > _CRASHES

    def in_time(self, ends: Ends) -> Ends:
        """Return the ends of a run that may use up the timeout of the saga, too."""
        limited = self.saga.timeout is not None and not (self.step.past_pivot or self.step.step.is_pivot)
        return ends | COMPENSATED if limited else ends


def _of_action(
    rules: _Rules, place: _Place, refused: Ends, given_up: Ends, step: BoundStep, *, varies: bool = False
) -> Iterator[Scenario]:
    made = partial(Scenario, step=place.name, varies=varies)
    no, broken = TerminalError("refused, in rehearsal"), RuntimeError("broken, in rehearsal")
    yield made(failure="refused", ends=refused, faults=(place.fault(no),))
    yield made(failure="broken", ends=given_up, faults=(place.fault(broken),))
    for when in ("before", "after"):
        crash = place.fault(Crashed(), times=_CRASHES, late=when == "after")
        ends = COMPLETED if rules.survives(step, step.retry) else given_up
        yield made(failure=f"crash {when} its effect", ends=rules.in_time(ends), faults=(crash,))
    yield made(failure="broken after its effect", ends=given_up, faults=(place.fault(broken, late=True),))
    if step.compensation is not None:
        hangs = Fault(place.step, place.saga, place.item)  # the stage lets the saga overtake it
        yield made(failure="effect after compensation", ends=refused, faults=(hangs, place.fault(no)))


def _of_compensation(rules: _Rules, place: _Place, undone: Ends, step: BoundStep) -> Iterator[Scenario]:
    """Compensate a step that is done or, if no step follows, one that is in doubt."""
    broken = place.fault(RuntimeError("broken, so that the saga compensates"), late=True)
    faults = (broken,) if rules.is_last else ()
    made = partial(Scenario, step=place.name, compensate_after="" if rules.is_last else rules.step.name)
    yield made(failure="compensated twice", ends=undone, faults=faults, undo_again=(place.step, place.item))
    crash = place.fault(Crashed(), undo=True, times=_CRASHES, late=True)
    ends = undone if rules.survives(step, step.compensation_retry) else STUCK
    yield made(failure="crash after compensation", ends=ends, faults=(*faults, crash))


def _of_wait(rules: _Rules, wait: Wait) -> Iterator[Scenario]:
    if wait.begins or rules.step.stage:
        yield rules.scenario("signal early", COMPLETED, reply=Reply.EARLY)
    yield rules.scenario("signal twice", COMPLETED, reply=Reply.TWICE)
    goes_on = rules.step.on_timeout is not None
    ends = (COMPLETED if rules.step.past_pivot else COMPLETED | COMPENSATED) if goes_on else COMPENSATED
    yield rules.scenario("no signal", ends, reply=Reply.NEVER, varies=goes_on)
    yield rules.scenario("signal late", ends, reply=Reply.LATE, varies=goes_on)
    if not rules.step.past_pivot:
        yield rules.scenario("compensated while it waits", COMPENSATED, reply=Reply.CANCEL)


def _of_deferred(rules: _Rules) -> Iterator[Scenario]:
    yield rules.scenario("callback early", COMPLETED, reply=Reply.EARLY)
    yield rules.scenario("callback twice", COMPLETED, reply=Reply.TWICE)
    yield rules.scenario("callback says failed", rules.refused, reply=Reply.FAILED)
    yield rules.scenario("no callback", rules.given_up, reply=Reply.NEVER)
    yield rules.scenario("callback late", rules.given_up, reply=Reply.LATE)
    if not rules.step.past_pivot:
        yield rules.scenario("compensated while it waits", COMPENSATED, reply=Reply.CANCEL)


def _of_sleep(rules: _Rules) -> Iterator[Scenario]:
    if not rules.step.past_pivot:
        yield rules.scenario("compensated while it sleeps", COMPENSATED, reply=Reply.CANCEL)


def _of_child(rules: _Rules, child: Child) -> Iterator[Scenario]:
    """Fail a child saga as a whole. Its own steps are rehearsed with it, not here."""
    if found := last_action(child.saga):
        last, inner = found
        for made in _of_inner(rules, _Place(last.name, inner.name), rules.refused, last):
            yield replace(made, step=child.name)
    if rules.step.compensation is not None and not rules.is_last:
        yield rules.scenario("compensated when completed", COMPENSATED, compensate_after=rules.step.name)


def _of_each(rules: _Rules, each: Each, total: int) -> Iterator[Scenario]:
    """Fail each item by itself, and then the node as a whole."""
    assert rules.step.child is not None
    found = last_action(rules.step.child)
    if found is None:
        return
    last, inner = found
    allowed = each.allowed(total)
    failed = COMPLETED | (frozenset() if rules.step.past_pivot else COMPENSATED) if allowed else rules.refused
    for item in rehearsed_items(total):
        place = _Place(last.name, inner.name, item, each.name)
        if each.saga is None:
            yield from _of_item(rules, place, failed, last, may_fail=bool(allowed))
        else:
            yield from _of_inner(rules, place, failed, last, varies=bool(allowed))
    if allowed and allowed < total:
        no = TerminalError("refused, in rehearsal")
        faults = tuple(Fault(last.name, inner.name, item, times=None, error=no) for item in range(allowed + 1))
        yield rules.scenario("more items fail than allowed", rules.refused, faults=faults)
    ends = ends_of_condition(rules.step)
    yield rules.scenario("no items", ends, empty=each.name, varies=True)
    if not rules.step.past_pivot and not rules.is_last:
        yield rules.scenario("compensated when completed", COMPENSATED, compensate_after=each.name)


def _of_item(rules: _Rules, place: _Place, failed: Ends, step: BoundStep, *, may_fail: bool) -> Iterator[Scenario]:
    given_up = STUCK if rules.step.past_pivot else failed
    for made in _of_action(rules, place, failed, given_up, step, varies=may_fail):
        yield made
        if may_fail and not rules.is_last and not rules.step.past_pivot and made.failure == "broken after its effect":
            # The saga completes without the item, so what that leaves behind shows only when all is undone.
            yield replace(
                made,
                failure="broken, and then all compensated",
                ends=COMPENSATED,
                compensate_after=rules.step.name,
                varies=False,
            )
    if step.compensation is not None:
        undone = COMPENSATED if not rules.is_last else failed
        yield from _of_compensation(rules, place, undone, step)


def _of_inner(
    rules: _Rules, place: _Place, failed: Ends, last: BoundStep, *, varies: bool = False
) -> Iterator[Scenario]:
    """Fail the saga of a child, or of an item, as a whole."""
    no = TerminalError("refused, so that the child saga fails")
    made = partial(Scenario, step=place.name)
    yield made(failure="child fails", ends=failed, faults=(place.fault(no),), varies=varies)
    if rules.survives(last, last.retry):
        crash = place.fault(Crashed(), times=_CRASHES, late=True)
        yield made(failure="crash in the child", ends=rules.in_time(COMPLETED), faults=(crash,))


def last_action(saga: Saga) -> tuple[BoundStep, Saga] | None:
    """Return the last step of a saga, or of its children, that is sure to call a function, and its saga."""
    for step in reversed(list(saga.steps.values())):
        if step.when is not None:
            continue
        if step.child is not None and step.step.kind == "child" and (found := last_action(step.child)):
            return found
        if step.child is None and not step.step.is_open_at_once:
            return step, saga
    return None
