"""Trees of sagas in a world where everything goes wrong, from a seed: `python -m tests.unit.simulation_children SEED`.

Beside `simulation`, which cuts the rules of one saga into pieces, this runs the engine itself on a store in memory. Around
every write a worker may die, and others may do anything in between: that is where parents and children meet.
"""

from __future__ import annotations

import functools
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from unittest.mock import patch

import pytest

from sagas import (
    COMPENSATE,
    Child,
    Direction,
    Each,
    NotAllowed,
    Parallel,
    Pivot,
    Retry,
    Saga,
    SagaRecord,
    SagaStatus,
    SignalRefused,
    Step,
    StepContext,
    StepRecord,
    StepStatus,
    TerminalError,
    Wait,
    signals,
    transitions,
)
from sagas.checkpoints import AT_REST, FINISHED
from sagas.children import descendants
from sagas.creation import Limits, new_record
from sagas.endings import ProcessEnd
from sagas.engine import Next
from sagas.leases import Unrenewed
from sagas.orchestrator import Orchestrator
from sagas.plan import Plan, plan
from sagas.testing.memory import MemoryStore
from sagas.transitions import Case, Change, Repair, Timing, Verdict

START = datetime(2026, 1, 1, tzinfo=UTC)

#: So deep may be what others do in between what others do in between.
_DEEPEST = 3


class Violation(AssertionError):
    """Something happened that must never happen."""


class Died(ProcessEnd):
    """A worker is gone."""


#: Where the steps of all sagas find the world that they are in.
WORLD: list[World] = []


def _step(name: str, *, kind: type[Step] = Step) -> Step:
    def do(step: StepContext) -> str:
        return WORLD[-1].act(step)

    def undo(step: StepContext) -> None:
        WORLD[-1].undo(step)

    retry = Retry(max_attempts=3, delay=1, jitter=0)
    if kind is Pivot:
        return Pivot(name, do, retry=retry)
    return Step(name, do, compensation=undo, retry=retry, compensation_retry=retry)


def _tree() -> Saga:
    inner = Saga("inner", _step("i"), Wait("w", int, timeout=100, on_timeout=COMPENSATE), _step("j"))
    middle = Saga("middle", _step("m"), Child("inner", inner), _step("n"))
    return Saga("tree", _step("a"), Child("middle", middle), _step("z"))


def _wide() -> Saga:
    left, right = Saga("left", _step("l"), _step("k")), Saga("right", _step("r"))
    return Saga("wide", _step("a"), Parallel(Child("left", left), _step("s"), Child("right", right)), _step("z"))


def _past_pivot() -> Saga:
    ship = Saga("ship", _step("pack"), _step("drive", kind=Pivot))
    hotel = Saga("hotel", _step("room"))
    return Saga("order", Child("hotel", hotel), _step("pay", kind=Pivot), Child("ship", ship))


def _line() -> Saga:
    one, two = Saga("one", _step("x"), _step("y")), Saga("two", _step("v"))
    return Saga("line", Child("one", one), Child("two", two), _step("z"))


SAGAS = [_tree(), _wide(), _past_pivot(), _line()]


class _Store(MemoryStore):
    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def now(self) -> datetime:
        return self.world.now

    def save(self, before: SagaRecord, after: SagaRecord, *rest: Any, **more: Any) -> SagaRecord | None:
        self.world.between()
        saved = super().save(before, after, *rest, **more)
        if saved is not None:
            self.world.judge_save(before, saved)
            self.world.between()
        return saved

    @property
    def records(self) -> list[SagaRecord]:
        return list(self._records.values())


@dataclass(frozen=True)
class Message:
    left: Plan
    stage: int
    name: str
    again: bool = False  # redelivered


class World:
    def __init__(self, seed: int, sagas: Sequence[Saga]) -> None:
        self.dice = random.Random(seed)
        self.now = START
        self.calm = False
        self.depth = 0
        self.story: list[str] = []
        self.broker: list[Message] = []
        self.effects: dict[tuple[str, str], bool] = {}  # saga, step -> whether its effect stands
        self.retried: set[tuple[str | None, str | None]] = set()  # steps whose child may have a successor
        self.store = _Store(self)
        self.engine = Orchestrator(
            cast("Any", self.store), timing=Timing(lease=10, redispatch_after=10), max_payload=10_000, leases=Unrenewed
        )
        self.engine.send = self.send
        self.saga = self.dice.choice(sagas)
        for each in (self.saga, *descendants(self.saga)):
            self.engine.register(each)
        limits = Limits(max_payload=10_000, redispatch_after=10)
        root = new_record(cast("Any", self.store), limits, self.saga, None, key="k", correlation_id=None)
        self.root = self.store.insert(root).id
        self.send(plan(self.saga, root))

    def tell(self, line: str) -> None:
        self.story.append(f"{(self.now - START).total_seconds():7.1f} s  {line}")

    def wrong(self, what: str) -> Violation:
        return Violation(what + "\n" + "\n".join(self.story[-60:]))

    def called(self, record: SagaRecord) -> str:
        return f"{record.name} {record.id[-4:]}"

    # -- what must always hold ----------------------------------------------------------------------------------

    def judge_save(self, before: SagaRecord, after: SagaRecord) -> None:
        if before.status is not after.status:
            self.tell(f"{self.called(after)} is {after.status}: {after.error or ''}")
        records = {each.id: each for each in self.store.records}
        for step in after.steps.values():
            was = before.step(step.name).status
            child = records.get(step.child_id or "")
            ended = step.status is StepStatus.COMPENSATED and was is not step.status
            if ended and child is not None and child.status is not SagaStatus.COMPENSATED:
                raise self.wrong(f"{step.name} is COMPENSATED, and its child {self.called(child)} is {child.status}")
        if after.status is SagaStatus.COMPENSATING and before.status is SagaStatus.COMPLETED:
            parent = records.get(after.parent_id or "")
            if parent is None or parent.direction is after.direction.FORWARD:
                raise self.wrong(f"{self.called(after)} was COMPLETED, and compensates though its parent does not")
        self.judge_links(records)

    def judge_links(self, records: dict[str, SagaRecord]) -> None:
        counts = Counter(
            (each.parent_id, each.parent_step, each.parent_item) for each in records.values() if each.parent_id
        )
        for place, count in counts.items():
            if count > 1 and place[:2] not in self.retried:
                raise self.wrong(f"{count} children for the step {place[1]}")
        for parent in records.values():
            for step in parent.steps.values():
                if step.kind == "each":
                    self.judge_items(parent, step)
                child = records.get(step.child_id or "")
                if step.status is not StepStatus.WAITING or child is None or child.status not in AT_REST:
                    continue
                told = step.due_at is not None and (step.due_at <= self.now or step.error is not None)
                due = max(step.due_at or self.now, self.now)
                looked_for = parent.status in AT_REST or (
                    parent.next_check_at is not None and parent.next_check_at <= due
                )
                if not (told and looked_for):
                    raise self.wrong(f"{self.called(child)} is {child.status}, and {self.called(parent)} was not told")

    def judge_items(self, parent: SagaRecord, step: StepRecord) -> None:
        node = self.engine.definition(parent).steps[step.node].step
        assert isinstance(node, Each)
        items = [
            each
            for each in self.store.records
            if (each.parent_id, each.parent_step) == (parent.id, step.name) and each.parent_item is not None
        ]
        begun = [each for each in items if each.next_check_at is not None and each.status not in FINISHED]
        if parent.direction is Direction.FORWARD and len(begun) > node.max_concurrency:
            raise self.wrong(f"{len(begun)} items of {step.name} are at it")
        if step.status is StepStatus.COMPENSATED and any(each.status is not SagaStatus.COMPENSATED for each in items):
            raise self.wrong(f"{step.name} is COMPENSATED, and its items are {[each.status.value for each in items]}")
        failed = sum(each.status is SagaStatus.COMPENSATED for each in items)
        done = step.status is StepStatus.DONE
        if done and parent.direction is Direction.FORWARD and failed > node.allowed(len(items)):
            raise self.wrong(f"{step.name} is DONE, and {failed} of its items failed")
        if done and any(each.status not in FINISHED and each.direction is Direction.FORWARD for each in items):
            raise self.wrong(f"{step.name} is DONE, and its items are {[each.status.value for each in items]}")

    # -- what steps do ------------------------------------------------------------------------------------------

    def act(self, step: StepContext) -> str:
        chance = 1.0 if self.calm else self.dice.random()
        if chance < 0.04:
            raise TerminalError("refused")
        if chance > 0.08:
            self.effects[step.saga_id, step.step] = True
            self.tell(f"do {step.saga} {step.step}")
        if chance < 0.12:
            raise RuntimeError("broken")
        self.between()
        return step.step

    def undo(self, step: StepContext) -> None:
        chance = 1.0 if self.calm else self.dice.random()
        if chance > 0.08:
            self.effects[step.saga_id, step.step] = False
            self.tell(f"undo {step.saga} {step.step}")
        if chance < 0.15:
            raise RuntimeError("broken")
        self.between()

    # -- the broker and the workers -----------------------------------------------------------------------------

    def send(self, left: Plan) -> None:
        if left and (self.calm or self.dice.random() > 0.08):
            self.put(left, 0)

    def put(self, left: Plan, stage: int) -> None:
        if stage < len(left.stages):
            self.broker += [Message(left, stage, name) for name in left.stages[stage].steps]

    def between(self) -> None:
        """Die here, or let others do something."""
        if self.calm or not self.depth:
            return
        if self.dice.random() < 0.02:
            raise Died
        if self.depth < _DEEPEST and self.dice.random() < 0.25:
            self.anything()

    def guarded(self, what: str, do: Callable[[], Any], lost: Callable[[], Any] = lambda: None) -> Any:
        self.depth += 1
        try:
            return do()
        except Died:
            self.tell(f"a process dies at {what}")
            lost()
        finally:
            self.depth -= 1

    def deliver(self, *, keep: bool = False) -> None:
        if not self.broker:
            return
        position = self.dice.randrange(len(self.broker))
        message = self.broker[position] if keep else self.broker.pop(position)
        again = [replace(message, again=True)] if self.dice.random() < 0.7 else []
        self.guarded(message.name, lambda: self.work(message), lambda: self.broker.extend(again))

    def work(self, message: Message) -> None:
        left, engine = message.left, self.engine
        stage = left.stages[message.stage]
        next_ = engine.perform(left.saga_id, message.name, left.epoch)
        joined = next_.verdict is Verdict.CLOSED
        if joined:
            next_ = engine.join(left.saga_id, message.name, left.epoch)
        if next_.verdict is Verdict.FAILED:
            next_ = engine.report(left.saga_id, message.name, left.epoch)
        if next_.verdict is Verdict.DISPATCH and next_.plan:
            self.send(next_.plan)
        on = next_.verdict is Verdict.CONTINUE or (next_.verdict is Verdict.SETTLED and message.again)
        if on and (joined or not stage.joined):
            self.put(left, message.stage + 1)

    def recover(self) -> None:
        due = [each for each in self.store.records if each.next_check_at is not None and each.next_check_at <= self.now]
        for each in due:
            self.guarded("recovery", functools.partial(self.look, each.id))

    def look(self, saga_id: str) -> None:
        next_: Next = self.engine.examine(saga_id)
        if next_.verdict is Verdict.OVERDUE and next_.plan:
            record = next_.record
            step = record.step(next_.plan.stages[0].steps[0])
            next_ = self.engine.redispatch(record.id, step.name, record.sent_at(step))
        if next_.verdict is Verdict.DISPATCH and next_.plan:
            self.send(next_.plan)

    # -- the schedule -------------------------------------------------------------------------------------------

    def anything(self) -> None:
        dice = self.dice
        match dice.choices(
            ["deliver", "double", "drop", "clock", "jump", "recover", "cancel", "signal"], [40, 3, 2, 8, 2, 12, 0.6, 4]
        )[0]:
            case "deliver":
                self.deliver()
            case "double":
                self.deliver(keep=True)
            case "drop" if self.broker:
                self.broker.pop(dice.randrange(len(self.broker)))
            case "clock":
                self.now += timedelta(seconds=dice.choice([0.1, 1, 3]))
            case "jump":
                self.now += timedelta(seconds=dice.choice([11, 45]))
            case "recover":
                self.recover()
            case "cancel":
                self.cancel(dice.choice(self.store.records))
            case "signal":
                self.signal()

    def cancel(self, record: SagaRecord) -> None:
        def do() -> None:
            try:
                next_ = self.engine.cancel(record.id, "changed my mind")
            except NotAllowed:
                return
            if next_.plan:
                self.send(next_.plan)

        self.guarded("cancel", do)

    def signal(self) -> None:
        def do(saga_id: str) -> None:
            try:
                next_ = signals.send(self.engine, saga_id, "w", 1, id="x")
            except SignalRefused:
                return
            if next_.plan:
                self.send(next_.plan)

        for record in self.store.records:
            if record.name == "inner":
                self.guarded("signal", functools.partial(do, record.id))

    def heal(self) -> None:
        """From here on nothing goes wrong; a person mends what is stuck. All of it has to come to its end."""
        self.calm = True
        self.tell("-- calm --")
        if self.dice.random() < 0.3:
            self.cancel(self.store.load(self.root))
        delivered = 0
        for _ in range(500):
            self.signal()
            while self.broker:
                self.deliver()
                delivered += 1
                if delivered > 1000:
                    raise self.wrong("messages are sent without end")
            if stuck := [each for each in self.store.records if each.status is SagaStatus.STUCK]:
                self.mend(stuck[0])
                continue
            times = [each.next_check_at for each in self.store.records if each.next_check_at is not None]
            if not times:
                break
            self.now = max(self.now, min(times))
            self.recover()
        self.judge(self.store.records)

    def mend(self, record: SagaRecord) -> None:
        step = next(step for step in record.steps.values() if step.status is StepStatus.STUCK)
        if step.kind in ("child", "each"):
            self.retried.add((record.id, step.name))
        next_ = self.engine.repair(record.id, step.name, Repair.RETRY, reason="mended")
        if next_.plan:
            self.send(next_.plan)

    def judge(self, records: Sequence[SagaRecord]) -> None:
        root = self.store.load(self.root)
        if unfinished := [self.called(each) for each in records if each.status not in FINISHED]:
            raise self.wrong(f"{unfinished} stand still, and nobody will look")
        for record in records:
            standing = {step for (saga_id, step), stands in self.effects.items() if stands and saga_id == record.id}
            if record.status is SagaStatus.COMPENSATED and standing - {"pay", "drive"}:
                raise self.wrong(f"{self.called(record)} is COMPENSATED, and {standing} still stand")
            if record.status is SagaStatus.COMPLETED and (root.status is SagaStatus.COMPENSATED):
                raise self.wrong(f"{self.called(record)} is COMPLETED, and its root is COMPENSATED")
            if record.status is SagaStatus.COMPLETED:
                self.judge_completed(record, {each.id: each for each in records})

    def judge_completed(self, record: SagaRecord, records: dict[str, SagaRecord]) -> None:
        for step in record.steps.values():
            if step.kind == "child":
                child = records.get(step.child_id or "")
                if child is None or child.status is not SagaStatus.COMPLETED:
                    raise self.wrong(f"{self.called(record)} is COMPLETED, and its child {step.name} is not")
            elif step.kind == "step" and not self.effects.get((record.id, step.name)):
                raise self.wrong(f"{self.called(record)} is COMPLETED, and {step.name} does not stand")


def simulate(seed: int, length: int = 120, sagas: Sequence[Saga] = SAGAS) -> World:
    """Play one schedule. Raises `Violation` with its story."""
    world = World(seed, sagas)
    WORLD.append(world)
    try:
        with patch("sagas.orchestrator.time.sleep"):
            for _ in range(length):
                world.anything()
            world.heal()
    except AssertionError as error:
        if not isinstance(error, Violation):
            error = world.wrong(str(error))
        raise Violation(f"seed {seed}, saga {world.saga.name!r}: {error}") from error
    finally:
        WORLD.pop()
    return world


def completed_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child, or an item, that is COMPLETED is not undone."""
    original = transitions.undo

    def only_unfinished(case: Case, why: str) -> Change:
        if case.record.status is SagaStatus.COMPLETED:
            return case.refuse("it is COMPLETED")
        return original(case, why)

    monkeypatch.setattr(transitions, "undo", only_unfinished)


if __name__ == "__main__":
    print("\n".join(simulate(int(sys.argv[1])).story))
