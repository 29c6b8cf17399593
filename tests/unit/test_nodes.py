"""Sagas that choose, sleep, wait for signals and for external completion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict
from zoneinfo import ZoneInfo

import pytest

from sagas import (
    COMPENSATE,
    Completion,
    DefinitionError,
    InvalidInput,
    InvalidToken,
    NotAllowed,
    Parallel,
    Pivot,
    Retry,
    Saga,
    SagaHandle,
    SagaStatus,
    SignalRefused,
    Sleep,
    Step,
    StepContext,
    StepStatus,
    TerminalError,
    Wait,
)
from sagas.outline import Outline
from sagas.testing import Inline

DAY = timedelta(days=1)
QUICK = Retry(max_attempts=3, delay=0.01)


@dataclass
class Order:
    amount: int


@dataclass
class Approval:
    ok: bool
    by: str = ""


class World:
    """Notes what was done, in order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.tokens: list[str] = []
        self.fail: dict[str, list[BaseException]] = {}

    def _act(self, name: str) -> str:
        self.log.append(name)
        if self.fail.get(name):
            raise self.fail[name].pop(0)
        return name.upper()

    def step(self, name: str, **options: Any) -> Step:
        def action() -> str:
            return self._act(name)

        return Step(name, action, compensation=self.undo(name), retry=QUICK, **options)

    def undo(self, name: str) -> Callable[..., None]:
        def compensation(result: Any) -> None:
            self.log.append(f"undo {name}: {result}")

        return compensation

    def deferred(self, name: str = "pay", **options: Any) -> Step:
        def ask(step: StepContext) -> None:
            self.tokens.append(step.token)
            self._act(name)

        given: dict[str, Any] = {"deadline": DAY, "result": int, "retry": QUICK, **options}
        return Step(name, ask, compensation=self.undo(name), deferred=True, **given)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def inline() -> Inline:
    return Inline()


def statuses(handle: SagaHandle) -> dict[str, str]:
    return {name: step.status.value for name, step in handle.record.steps.items()}


class Named(TypedDict):
    condition: int
    over: int


# -- when -------------------------------------------------------------------------------------------------------------


def test_a_condition_is_asked_once_and_its_answer_kept(world: World, inline: Inline) -> None:
    def is_large(amount: int) -> bool:
        world.log.append("asked")
        return amount > 100

    def last(check: str | None) -> None:
        world.log.append(f"last: {check}")

    saga = Saga(
        "order", world.step("first"), world.step("check", when=is_large), Pivot("last", last, retry=QUICK), input=Order
    )
    world.fail = {"check": [ValueError("busy"), ValueError("busy")]}
    assert inline.start(saga, Order(1_000)).result["check"] == "CHECK"
    assert world.log == ["first", "asked", "check", "check", "check", "last: CHECK"]
    world.log.clear()
    handle = inline.start(saga, Order(1))
    assert handle.result["check"] is None
    assert statuses(handle)["check"] == StepStatus.SKIPPED
    assert world.log == ["first", "asked", "last: None"]


def test_what_was_not_run_is_not_undone(world: World, inline: Inline) -> None:
    saga = Saga("order", world.step("first"), world.step("no", when=lambda: False), world.step("bad"))
    world.fail = {"bad": [TerminalError("no")]}
    assert inline.start(saga).status is SagaStatus.COMPENSATED
    assert world.log == ["first", "bad", "undo bad: None", "undo first: FIRST"]


@pytest.mark.parametrize("error", [TerminalError("no"), ValueError("no")])
def test_a_condition_that_fails_fails_its_node_without_effect(world: World, inline: Inline, error: Exception) -> None:
    def broken() -> bool:
        raise error

    saga = Saga("order", world.step("first"), world.step("second", when=broken))
    handle = inline.start(saga)
    assert handle.status is SagaStatus.COMPENSATED
    assert "step 'second' failed" in str(handle.error)
    assert world.log == ["first", "undo first: FIRST"]


def test_parameters_of_a_condition_may_have_any_name(world: World, inline: Inline) -> None:
    def is_first(step: StepContext, condition: int, over: int) -> bool:
        return step.attempt == condition == over

    saga = Saga("order", world.step("first", when=is_first), input=Named)
    assert inline.start(saga, {"condition": 1, "over": 1}).result["first"] == "FIRST"


def test_a_stage_of_conditions(world: World, inline: Inline) -> None:
    saga = Saga(
        "order",
        Parallel(world.step("a", when=lambda: False), world.step("b", when=lambda: True), world.step("c")),
        world.step("d"),
    )
    handle = inline.start(saga)
    assert sorted(world.log) == ["b", "c", "d"]
    assert statuses(handle) == {"a": "SKIPPED", "b": "DONE", "c": "DONE", "d": "DONE"}


# -- Sleep ------------------------------------------------------------------------------------------------------------


def test_a_sleep_takes_its_time(world: World, inline: Inline) -> None:
    saga = Saga("order", world.step("first"), Sleep("rest", 14 * DAY), world.step("last"))
    before = inline.now
    handle = inline.start(saga)
    assert handle.status is SagaStatus.COMPLETED
    assert timedelta(0) <= inline.now - before - 14 * DAY < timedelta(minutes=1)
    assert "rest" not in handle.result


@pytest.mark.parametrize("first", [True, False])
def test_a_sleep_until_a_moment(world: World, inline: Inline, first: bool) -> None:
    vienna = ZoneInfo("Europe/Vienna")
    at = (inline.now + 100 * DAY).astimezone(vienna).replace(hour=8, minute=0, second=0, microsecond=0)

    def eight_o_clock() -> datetime:
        return at

    nodes = [Sleep("morning", until=eight_o_clock), world.step("last")]
    handle = inline.start(Saga("order", *(nodes if first else [world.step("first"), *nodes])))
    assert handle.status is SagaStatus.COMPLETED
    assert timedelta(0) <= inline.now - at.astimezone(UTC) < timedelta(minutes=1)
    assert handle.record.steps["morning"].due_at is None


def test_a_local_time_without_a_zone_is_refused(world: World, inline: Inline) -> None:
    saga = Saga("order", world.step("first"), Sleep("morning", until=lambda: datetime(2027, 1, 1, 8)))  # noqa: DTZ001
    handle = inline.start(saga)
    assert handle.status is SagaStatus.COMPENSATED
    assert "datetime with a time zone" in str(handle.error)


def test_a_start_later(world: World, inline: Inline) -> None:
    at = inline.now + 3 * DAY
    saga = Saga("order", world.step("first"), timeout=60)
    handle = inline.start(saga, at=at)
    assert handle.status is SagaStatus.COMPLETED
    started = handle.record.steps["first"].started_at
    assert started is not None
    assert at <= started < at + timedelta(minutes=1)


# -- Wait -------------------------------------------------------------------------------------------------------------


def approval(world: World, **options: Any) -> Saga:
    given: dict[str, Any] = {"timeout": 3 * DAY, "on_timeout": COMPENSATE, **options}
    return Saga("order", world.step("first"), Wait("approval", Approval, **given), _last(world))


def _last(world: World) -> Step:
    def last(approval: Approval) -> None:
        world.log.append(f"last: {approval.ok}")

    return Step("last", last, compensation=None)


def test_a_signal_wakes_the_saga(world: World, inline: Inline) -> None:
    handle = inline.start(approval(world))
    assert handle.status == "RUNNING"
    assert statuses(handle) == {"first": "DONE", "approval": "WAITING"}
    assert handle.record.steps["approval"].owner is None
    handle.signal("approval", {"ok": True, "by": "ann"})
    assert handle.status is SagaStatus.COMPLETED
    assert handle.result["approval"] == Approval(ok=True, by="ann")


def test_a_signal_that_comes_early_is_kept(world: World, inline: Inline) -> None:
    """It comes while the step before the wait is at work."""
    early: list[SagaHandle] = []

    def first(step: StepContext) -> None:
        SagaHandle(step.saga_id, inline).signal("approval", Approval(ok=True), id="a")  # before this step has returned
        early.append(SagaHandle(step.saga_id, inline))

    saga = Saga("order", Step("first", first, compensation=None), *approval_nodes(world))
    handle = inline.start(saga)
    assert early
    assert handle.status is SagaStatus.COMPLETED
    assert world.log == ["last: True"]


def approval_nodes(world: World) -> list[Any]:
    return [Wait("approval", Approval, timeout=DAY, on_timeout=COMPENSATE), _last(world)]


def test_the_same_signal_twice_counts_once_and_another_is_refused(world: World, inline: Inline) -> None:
    saga = Saga("order", Wait("approval", Approval, timeout=DAY), Wait("more", bool, timeout=DAY))
    handle = inline.start(saga)
    handle.signal("approval", Approval(ok=True), id="1", sender="ann")
    handle.signal("approval", Approval(ok=False), id="1", sender="ann")
    assert handle.record.steps["approval"].result == '{"ok":true,"by":""}'
    with pytest.raises(SignalRefused, match=r"has a signal 'approval' already: '1' of ann, which came at 20"):
        handle.signal("approval", Approval(ok=False), id="2", sender="bob")


@pytest.mark.parametrize(
    ("name", "payload", "said"),
    [
        ("approval", {"no": 1}, "unknown field 'no'"),
        ("approval", {"ok": "perhaps"}, "ok"),
        ("approval", None, "Approval"),
        ("nothing", None, "has no wait 'nothing'; it has approval"),
        ("first", None, "has no wait 'first'; it has approval"),
    ],
)
def test_a_signal_of_another_type_is_refused_at_its_sender(
    world: World, inline: Inline, name: str, payload: Any, said: str
) -> None:
    handle = inline.start(approval(world))
    with pytest.raises(InvalidInput, match=said):
        handle.signal(name, payload)
    assert statuses(handle)["approval"] == "WAITING"


def test_a_timeout_compensates_or_goes_on_with_a_value(world: World, inline: Inline) -> None:
    handle = inline.start(approval(world))
    inline.advance(handle, 2 * DAY)
    assert handle.status == "RUNNING"
    inline.advance(handle, DAY)
    assert handle.status is SagaStatus.COMPENSATED
    assert world.log == ["first", "undo first: FIRST"]
    with pytest.raises(SignalRefused, match="it is COMPENSATED, since step 'approval' failed: no signal within"):
        handle.signal("approval", Approval(ok=True))

    world.log.clear()
    inline = Inline()
    handle = inline.start(approval(world, on_timeout=Approval(ok=False)))
    inline.advance(handle, 3 * DAY)
    assert handle.status is SagaStatus.COMPLETED
    assert world.log == ["first", "last: False"]
    with pytest.raises(SignalRefused, match="no longer wants the signal 'approval': its wait has ended without it"):
        handle.signal("approval", Approval(ok=True))
    assert world.log == ["first", "last: False"]


def test_a_wait_that_begins_with_a_question(world: World, inline: Inline) -> None:
    def send_mail(step: StepContext) -> None:
        world.tokens.append(step.token)
        world.log.append("mail")

    saga = approval(world, begin=send_mail, compensation=lambda: world.log.append("withdraw"))
    handle = inline.start(saga)
    assert world.log == ["first", "mail"]
    assert inline.complete(world.tokens[0], Approval(ok=True)) is Completion.ACCEPTED
    assert handle.status is SagaStatus.COMPLETED

    world.log.clear()
    handle = inline.start(saga)
    inline.advance(handle, 3 * DAY)
    assert handle.status is SagaStatus.COMPENSATED
    assert world.log == ["first", "mail", "withdraw", "undo first: FIRST"]


@pytest.mark.parametrize("reached", [False, True])
def test_a_wait_that_never_asked_is_not_compensated(world: World, inline: Inline, reached: bool) -> None:
    """Its signal came before `begin` was called: in an earlier stage, or beside a step of its own."""

    def first(step: StepContext) -> None:
        SagaHandle(step.saga_id, inline).signal("asked", True, id="a")

    options: Any = {"begin": lambda: world.log.append("mail"), "compensation": lambda: world.log.append("withdraw")}
    nodes: Any = Step("first", first, compensation=None), Wait("asked", bool, timeout=DAY, **options)
    stages = (Parallel(*nodes),) if reached else nodes
    world.fail = {"last": [TerminalError("no")]}
    handle = inline.start(Saga("order", *stages, world.step("last")))
    assert handle.status is SagaStatus.COMPENSATED
    assert world.log == ["last", "undo last: None"]
    assert statuses(handle)["asked"] == "COMPENSATED"
    assert handle.record.updated_at - handle.record.created_at < timedelta(seconds=10), "it waited for recovery"


def test_two_waits_at_once(world: World, inline: Inline) -> None:
    def both(a: int, b: int) -> int:
        return a + b

    saga = Saga(
        "order",
        Parallel(Wait("a", int, timeout=DAY), Wait("b", int, timeout=DAY), world.step("c")),
        Step("both", both, compensation=None),
    )
    handle = inline.start(saga)
    handle.signal("b", 2)
    assert handle.status == "RUNNING"
    handle.signal("a", 1)
    assert handle.result["both"] == 3


def test_a_step_beside_a_wait_fails(world: World, inline: Inline) -> None:
    world.fail = {"c": [TerminalError("no")]}
    saga = Saga("order", world.step("first"), Parallel(Wait("a", int, timeout=DAY), world.step("c")))
    handle = inline.start(saga)
    assert handle.status is SagaStatus.COMPENSATED
    assert statuses(handle)["a"] == "COMPENSATED"
    assert world.log[-1] == "undo first: FIRST"


def test_a_wait_beside_a_step_times_out(world: World, inline: Inline) -> None:
    saga = Saga("order", world.step("first"), Parallel(Wait("a", int, timeout=DAY), world.step("c")))
    handle = inline.start(saga)
    inline.advance(handle, DAY)
    assert handle.status is SagaStatus.COMPENSATED
    assert world.log == ["first", "c", "undo c: C", "undo first: FIRST"]


# -- deferred ---------------------------------------------------------------------------------------------------------


def test_a_deferred_step_ends_when_it_is_completed(world: World, inline: Inline) -> None:
    handle = inline.start(Saga("order", world.step("first"), world.deferred(), world.step("last")))
    assert statuses(handle) == {"first": "DONE", "pay": "WAITING"}
    [token] = world.tokens
    assert token not in str(handle.record)
    assert inline.complete(token, 7) is Completion.ACCEPTED
    assert handle.result == {"first": "FIRST", "pay": 7, "last": "LAST"}
    assert inline.complete(token, 8) is Completion.ENDED
    assert handle.result["pay"] == 7


def test_a_token_of_an_attempt_before_stays_good(world: World, inline: Inline) -> None:
    world.fail = {"pay": [ValueError("the answer was lost")]}
    handle = inline.start(Saga("order", world.deferred()))
    first, second = world.tokens
    assert first != second
    assert inline.complete(first, 7) is Completion.ACCEPTED
    assert handle.result["pay"] == 7
    assert inline.complete(second, 7) is Completion.ENDED


def test_a_completion_that_comes_before_the_action_has_returned(world: World, inline: Inline) -> None:
    def ask(step: StepContext) -> None:
        assert inline.complete(step.token, 7) is Completion.ACCEPTED

    saga = Saga(
        "order",
        Step("pay", ask, compensation=world.undo("pay"), deferred=True, deadline=DAY, result=int),
        world.step("last"),
    )
    handle = inline.start(saga)
    assert handle.result == {"pay": 7, "last": "LAST"}
    assert world.log == ["last"]


def test_a_deferred_step_that_nobody_completes_is_given_up_and_a_late_completion_compensated(
    world: World, inline: Inline
) -> None:
    handle = inline.start(Saga("order", world.step("first"), world.deferred()))
    inline.advance(handle, DAY)
    assert handle.status is SagaStatus.COMPENSATED
    assert world.log == ["first", "pay", "undo pay: None", "undo first: FIRST"]
    assert inline.complete(world.tokens[0], 7) is Completion.LATE
    assert world.log[-1] == "undo pay: 7"
    assert handle.status is SagaStatus.COMPENSATED


def test_a_deferred_step_that_fails_had_no_effect(world: World, inline: Inline) -> None:
    handle = inline.start(Saga("order", world.step("first"), world.deferred()))
    assert inline.fail_deferred(world.tokens[0], "card declined") is Completion.ACCEPTED
    assert handle.status is SagaStatus.COMPENSATED
    assert "step 'pay' failed: card declined" in str(handle.error)
    assert inline.fail_deferred(world.tokens[0], "card declined") is Completion.ENDED


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "{id}.pay.wrong", "{id}.first.{secret}", "{id}.none.x"])
def test_a_token_that_nobody_gave_out(world: World, inline: Inline, token: str) -> None:
    handle = inline.start(Saga("order", world.step("first"), world.deferred()))
    secret = world.tokens[0].rpartition(".")[2]
    with pytest.raises(InvalidToken):
        inline.complete(token.format(id=handle.id, secret=secret), 7)
    assert statuses(handle)["pay"] == "WAITING"


def test_a_result_of_another_type_is_refused_at_its_sender(world: World, inline: Inline) -> None:
    handle = inline.start(Saga("order", world.deferred()))
    with pytest.raises(InvalidInput):
        inline.complete(world.tokens[0], "seven")
    assert statuses(handle)["pay"] == "WAITING"


def test_an_ordinary_step_has_no_token(inline: Inline) -> None:
    def act(step: StepContext) -> str:
        return step.token

    handle = inline.start(Saga("order", Step("act", act, compensation=None, retry=Retry(max_attempts=1))))
    assert "has a token" in str(handle.error)


# -- what is refused at definition ------------------------------------------------------------------------------------


def nothing() -> None: ...


def asks(maybe: str) -> None: ...


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Saga("s", Pivot("p", nothing, when=lambda: True)), "a pivot is never conditional"),
        (lambda: Saga("s", Pivot("p", nothing, deferred=True, deadline=1)), "a pivot cannot be deferred"),
        (lambda: Step("s", nothing, compensation=None, deferred=True), "needs a deadline"),
        (lambda: Step("s", nothing, compensation=None, deadline=1), "a deadline is for deferred=True"),
        (lambda: Step("s", nothing, compensation=None, result=int), "result= is for deferred=True"),
        (lambda: Sleep("s"), "give either a duration or until="),
        (lambda: Sleep("s", 1, until=nothing), "give either a duration or until="),
        (lambda: Wait("w", int, timeout=1, compensation=nothing), "it begins nothing"),
        (lambda: Saga("s", Wait("w", object(), timeout=1)), "cannot be kept"),
        (lambda: Saga("s", Wait("w", int, timeout=1, on_timeout="x")), "on_timeout='x' cannot be kept"),
        (lambda: Saga("s", Wait("w", int, timeout=1, begin=nothing)), "say what undoes it"),
        (lambda: Saga("s", Pivot("p", nothing), Wait("w", int, timeout=1)), "give on_timeout= a value"),
        (
            lambda: Saga(
                "s",
                Step("maybe", lambda: "x", compensation=None, when=lambda: True),
                Step("asks", asks, compensation=None),
            ),
            "the result of 'maybe' may be absent",
        ),
    ],
)
def test_what_cannot_work_is_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(DefinitionError, match=said):
        make()


def test_a_cancelled_saga_does_not_wait(world: World) -> None:
    inline = Inline()
    handle = inline.start(approval(world))
    record = inline.orchestrator.cancel(handle.id, "no").record
    inline.finish(handle.id)
    assert record.status in (SagaStatus.COMPENSATING, SagaStatus.COMPENSATED)
    assert handle.status is SagaStatus.COMPENSATED
    assert world.log == ["first", "undo first: FIRST"]
    with pytest.raises(NotAllowed):
        handle.signal("approval", Approval(ok=True))


def test_the_outline_of_nodes(world: World) -> None:
    saga = Saga(
        "order",
        world.step("first", when=lambda: True),
        Wait("approval", bool, timeout=1),
        Sleep("rest", 1, when=lambda: False),
        world.deferred(),
    )
    outline = Outline.parse(saga.outline)
    assert str(outline) == saga.outline
    said = outline.describe()
    assert said == "first (conditional) > approval (wait) > rest (timer, conditional) > pay (deferred)"


def test_a_saga_that_only_waits_comes_to_an_end(inline: Inline) -> None:
    saga = Saga("only", Wait("first", bool, timeout=DAY), Sleep("rest", DAY), Wait("last", int, timeout=DAY))
    handle = inline.start(saga)
    assert handle.record.status == "PENDING"
    handle.signal("first", payload=True)
    assert (handle.status, handle.record.step("last").status) == (SagaStatus.RUNNING, StepStatus.WAITING)
    handle.signal("last", 7)
    assert handle.record.status == "COMPLETED"
    inline.advance(slept := inline.start(Saga("sleeps", Sleep("rest", DAY)), key="s"), DAY)
    assert slept.status is SagaStatus.COMPLETED


def test_the_history_keeps_who_answered(world: World, inline: Inline) -> None:
    saga = Saga(
        "asks", Step("one", lambda: None, compensation=None), Wait("a", bool, timeout=DAY), Wait("b", bool, timeout=DAY)
    )
    handle = inline.start(saga)
    handle.signal("b", payload=True, id="f-2", sender="bob")  # early
    handle.signal("b", payload=True, id="f-2", sender="bob")
    handle.signal("a", payload=True, id="f-1", sender="ann")
    assert handle.status is SagaStatus.COMPLETED
    said = [(each.what, each.step, each.detail, each.actor) for each in handle.history]
    assert said == [("signal", "b", "signal 'f-2'", "bob"), ("signal", "a", "signal 'f-1'", "ann")]
    silent = inline.start(saga, key="silent")
    silent.signal("a", payload=True)
    assert not silent.history, "a signal without a sender is nobody's decision"


@pytest.mark.parametrize("approvers", ["", ("finance", " "), [7], "a\0b"])
def test_groups_that_are_no_names(approvers: Any) -> None:
    with pytest.raises(DefinitionError, match="approvers has .*, which is no name of a group"):
        Wait("approval", bool, timeout=DAY, approvers=approvers)
    assert Wait("approval", bool, timeout=DAY, approvers=["a", "b", "a"]).approvers == {"a", "b"}
