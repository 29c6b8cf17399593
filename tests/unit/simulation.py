"""A world in which everything goes wrong, played from a seed: `python -m tests.unit.simulation SEED` tells the story.

The rules are the real ones (`transitions`, `plan`). Around them everything is simulated: a broker that drops, doubles,
reorders and delays; workers that die between any two effects; a store that answers too late; a clock that jumps.
What the workers do here is what `orchestrator` and `canvas` do, cut into pieces so that anything can come between.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from sagas import (
    Direction,
    NotAllowed,
    Parallel,
    Pivot,
    Retry,
    Saga,
    SagaRecord,
    SagaStatus,
    SignalRefused,
    Sleep,
    Step,
    StepContext,
    StepStatus,
    Wait,
    transitions,
)
from sagas.checkpoints import FINISHED, HistoryKind
from sagas.heartbeats import Report
from sagas.opening import is_undecided
from sagas.plan import Stage, plan
from sagas.transitions import SKIPPED, Change, Failure, Outcome, Repair, Signal, Timing, Verdict, Waiting

START = datetime(2026, 1, 1, tzinfo=UTC)
TIMING = Timing(lease=10, redispatch_after=10)


class Violation(AssertionError):
    """Something happened that must never happen."""


def nothing() -> None: ...


def reports(step: StepContext) -> None: ...


def _step(name: str, *, undo: bool = True, **options: Any) -> Step:
    retry = Retry(max_attempts=2, delay=1, jitter=0)
    action = reports if "heartbeat_timeout" in options else nothing
    return Step(name, action, compensation=nothing if undo else None, retry=retry, compensation_retry=retry, timeout=40, max_deliveries=3, **options)  # fmt: skip


def _perhaps() -> bool: ...  # type: ignore[empty-body]


SAGAS = [
    Saga("line", _step("a"), _step("b"), _step("c")),
    Saga("wide", _step("a"), Parallel(_step("l"), _step("r"), _step("n", undo=False)), _step("z")),
    Saga("poll", _step("a"), _step("ask", poll_timeout=30), _step("b")),
    Saga("reports", _step("a"), Parallel(_step("l", heartbeat_timeout=6), _step("r", heartbeat_timeout=25)), _step("b")),
    Saga("pivot", _step("a"), Parallel(_step("l"), _step("r")), Pivot("p", nothing, timeout=40), Step("z", nothing, timeout=40)),
    Saga(
        "waits", _step("a"), _step("m", when=_perhaps), Wait("w", int, timeout=60, begin=nothing, compensation=nothing),
        _step("d", deferred=True, deadline=50), Sleep("t", 20), _step("z"),
    ),
    Saga(
        "waits_wide", _step("a"),
        Parallel(Wait("w", int, timeout=60), _step("l", when=_perhaps), _step("d", deferred=True, deadline=50)), _step("z"),
    ),
]  # fmt: skip


@dataclass(frozen=True)
class Message:
    kind: str  # step, join, fail
    name: str
    epoch: int
    chord: bool = False
    rest: tuple[Stage, ...] = ()
    again: bool = False  # redelivered


@dataclass
class Actor:
    """A worker at work on one message."""

    number: int
    message: Message
    play: Iterator[None]
    acting: tuple[str, Direction, datetime] | None = None
    late: bool = False  # it slept until everything else was over, and may still fail


WorldT = TypeVar("WorldT", bound="World")


class World:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.dice = random.Random(seed)
        self.saga = self.choose()
        self.now = START
        self.record = SagaRecord(
            id="s", name=self.saga.name, version=1, key="k", outline=self.saga.outline, correlation_id="s", input="null",
            created_at=START, updated_at=START, stage_ready_at=START, next_check_at=START + timedelta(seconds=10),
        )  # fmt: skip
        self.broker: list[Message] = []
        self.actors: list[Actor] = []
        self.effects: dict[str, bool] = {}  # step -> whether its effect stands
        self.landed: dict[str, int] = {}
        self.late: set[str] = set()  # landed after the saga had turned back: whoever undid them is void, and goes on
        self.began: dict[str, datetime] = {}  # when a step was claimed for the first time
        self.claimed: set[str] = set()  # steps whose actions were claimed
        self.story: list[str] = []
        self.asked: list[str] = []  # deferred steps that have asked: somebody may complete them, more than once
        self.committed: set[str] = set()  # deferred steps whose actions have returned, and kept what they wrote
        self.completed: dict[str, str] = {}  # the result that was accepted
        self.signalled: str | None = None  # the signal that was accepted
        self.decided: set[str] = set()  # conditions whose yes was stored
        self.heard: dict[str, datetime] = {}  # when a step that reports was claimed, or last reported
        self.details: dict[str, str | None] = {}  # what it last reported
        self.reporting: tuple[str, str, Report] | None = None  # what the change under way reports
        self.returning: str | None = None  # the step whose action has returned, and whose writes the change commits
        self.calm = False  # from when on nothing goes wrong any more
        self._count = 0

    def choose(self) -> Saga:
        """Return the definition of the saga that is played."""
        return self.dice.choice(SAGAS)

    @property
    def about(self) -> str:
        return f"saga {self.saga.name!r}"

    def tell(self, line: str) -> None:
        self.story.append(f"{(self.now - START).total_seconds():7.1f} s  {line}")

    def wrong(self, what: str) -> Violation:
        return Violation(what + "\n" + "\n".join(self.story[-40:]))

    # -- the store ----------------------------------------------------------------------------------------------

    def save(self, before: SagaRecord, after: SagaRecord) -> SagaRecord | None:
        if self.record.revision != before.revision:
            return None
        return self.keep(after)

    def keep(self, after: SagaRecord) -> SagaRecord:
        was = self.record
        if was.status is SagaStatus.COMPLETED and after.status is not was.status:
            raise self.wrong(f"COMPLETED became {after.status}")
        if was.direction is Direction.BACKWARD and after.direction is Direction.FORWARD:
            raise self.wrong("it had turned back, and goes forward again")
        for name, step in after.steps.items():
            before = was.step(name)
            if step.status is before.status:
                continue
            if step.status is StepStatus.RUNNING:
                self.claimed.add(name)
            if step.status is StepStatus.COMPENSATING and name not in self.claimed:
                raise self.wrong(f"{name} is undone, and had not begun")
            if step.kind == "timer" and step.status is StepStatus.DONE and before.due_at and before.due_at > self.now:
                raise self.wrong(f"{name} woke at {self.now}, before {before.due_at}")
            if name == self.returning:
                self.committed.add(name)
            deferred = step.kind == "step" and self.saga.steps[name].step.waits
            if deferred and step.status is StepStatus.DONE and name not in self.committed:
                raise self.wrong(f"{name} is done, and what its action wrote is not committed")
            if name == "w" and step.status is StepStatus.FAILED and self.signalled is not None:
                raise self.wrong(f"the signal {self.signalled} was accepted, and its wait timed out")
        if self.reporting is not None and after.step(self.reporting[0]).owner == self.reporting[1]:
            name, _, report = self.reporting
            self.heard[name], self.details[name] = self.now, report.details
        for name, step in after.steps.items():
            limit = self.saga.steps[name].step.heartbeat_timeout
            if limit is None or step.status is not StepStatus.RUNNING or step.lease_until is None:
                continue
            if step.owner != was.step(name).owner:  # it is claimed
                self.heard[name] = self.now
            if step.lease_until > self.heard[name] + timedelta(seconds=limit):
                raise self.wrong(f"{name} may be silent until {step.lease_until}, last heard at {self.heard[name]}")
        if was.status is not after.status:
            self.tell(f"the saga is {after.status}: {after.error or ''}")
        self.record = replace(after, revision=was.revision + 1)
        return self.record

    def change(self, decide: Any) -> Iterator[Change | None]:
        """Load, decide, compare and set, with everything that can come between; the answer may get lost."""
        while True:
            before = self.record
            yield None
            opened = self.case(before).record
            self.reporting = self.returning = None
            change: Change = decide(opened)
            if change.record is opened:
                yield change
                return
            saved = self.save(before, change.record)
            self.reporting = self.returning = None
            if saved is None:
                continue
            if not self.calm and self.dice.random() < 0.03:
                self.tell("a save succeeded, and its answer was lost")
                continue
            yield replace(change, record=saved)
            return

    def case(self, record: SagaRecord) -> transitions.Case:
        return transitions.Case.of(self.saga, record, self.now, TIMING)

    # -- the workers --------------------------------------------------------------------------------------------

    def work(self, actor: Actor) -> Iterator[None]:
        message, owner = actor.message, f"w{actor.number}"
        match message.kind:
            case "join":
                yield from self._joined(message)
            case "fail":

                def report(record: SagaRecord) -> Change:
                    # It may be forged: the worker that it tells of may be at work.
                    change = transitions.report(self.case(record), message.name, message.epoch)
                    held = record.step(message.name)
                    alive = held.lease_until is not None and held.lease_until > self.now
                    if alive and change.record.step(message.name).owner != held.owner:
                        raise self.wrong(f"a report ended the living claim of {held.owner} at {message.name}")
                    return change

                change = yield from self._ask(report)
                if change.verdict is Verdict.DISPATCH:
                    self.dispatch()
            case _:
                yield from self._perform(actor, message, owner)

    def _ask(self, decide: Any) -> Any:
        for answer in self.change(decide):
            if answer is not None:
                return answer
            yield

    def _joined(self, message: Message) -> Iterator[None]:
        change = yield from self._ask(lambda r: transitions.join(self.case(r), message.name, message.epoch))
        if change.verdict is Verdict.CONTINUE:
            self.send(message.rest, message.epoch)
        elif change.verdict is Verdict.FAILED:
            self.broker.append(Message("fail", message.name, message.epoch))

    def _perform(self, actor: Actor, message: Message, owner: str) -> Iterator[None]:
        name = message.name

        def check(record: SagaRecord) -> Change:
            change = transitions.claim(self.case(record), name, message.epoch, owner)
            if change.verdict is Verdict.ACT and record.epoch != message.epoch:
                raise self.wrong(f"a message of epoch {message.epoch} was granted {name} in epoch {record.epoch}")
            return change

        change = yield from self._ask(check)
        if change.verdict is Verdict.ACT:
            self.began.setdefault(name, change.record.step(name).started_at or self.now)
            if change.record.step(name).heartbeat_details != self.details.get(name):
                raise self.wrong(f"{name} begins without what was reported last: {self.details.get(name)}")
            yield
            direction = change.record.direction
            self._begin(actor, name, change.record)
            yield
            outcome: Any = None
            if direction is Direction.FORWARD and self.case(change.record).is_undecided(change.record.step(name)):
                if name in self.decided and self.record.step(name).owner == owner:
                    raise self.wrong(f"the condition of {name} is asked again, though its answer was kept")
                if self.dice.random() < 0.5:
                    outcome = SKIPPED
                else:
                    kept = yield from self._ask(lambda r: transitions.decided(self.case(r), name, owner))
                    if kept.verdict is not Verdict.ACT:
                        return
                    self.decided.add(name)
                    yield
            if direction is Direction.FORWARD and self.saga.steps[name].step.heartbeat_timeout is not None:
                yield from self._report(actor, name, owner)
            if outcome is not SKIPPED:
                outcome = self._act(name, direction, late=actor.late)
            if isinstance(outcome, str) and self.saga.steps[name].step.waits:
                outcome = Waiting(self.now + timedelta(seconds=50))
            actor.acting = None
            yield

            def report(record: SagaRecord) -> Change:
                if isinstance(outcome, Failure):
                    return transitions.fail(self.case(record), name, owner, direction, outcome)
                if isinstance(outcome, Waiting):
                    self.returning = name if record.step(name).owner == owner else None
                    return transitions.wait(self.case(record), name, owner, outcome.until)
                if outcome is SKIPPED:
                    return transitions.skip(self.case(record), name, owner)
                done = transitions.succeed(self.case(record), name, owner, direction, outcome)
                new = done.record.step(name).status
                if new is StepStatus.DONE and record.step(name).status is not new and record.step(name).owner != owner:
                    raise self.wrong(
                        f"the success of {owner} at {name} counted, though {record.step(name).owner} holds it"
                    )
                return done

            change = yield from self._ask(report)
            if isinstance(outcome, Failure) and outcome.outcome is Outcome.NOT_YET:
                self._judge_poll(name, owner, change)
            if any(entry.what == HistoryKind.LATE_OUTCOME for entry in change.history):
                self.late.add(name)
        yield
        match change.verdict:
            case Verdict.CONTINUE if not message.chord:
                self.send(message.rest, message.epoch)
            case Verdict.SETTLED if message.again and not message.chord:
                self.send(message.rest, message.epoch)
            case Verdict.CLOSED if message.chord:
                self.broker.append(Message("join", name, message.epoch, rest=message.rest))
            case Verdict.FAILED:
                self.broker.append(Message("fail", name, message.epoch))
            case Verdict.DISPATCH:
                self.dispatch()

    def _report(self, actor: Actor, name: str, owner: str) -> Iterator[None]:
        """Report now and then, or fall silent; the lease is renewed all the same."""
        for number in range(self.dice.randrange(6)):
            yield
            report = Report(details=f"{owner}:{number}") if self.dice.random() < 0.6 else None

            def renew(record: SagaRecord, report: Report | None = report) -> Change:
                self.reporting = None if report is None else (name, owner, report)
                return transitions.renew(self.case(record), name, owner, report)

            change = yield from self._ask(renew)
            if change.verdict is not Verdict.ACT:
                return  # it was given up, and its function may go on
            lease = change.record.step(name).lease_until
            assert lease is not None
            assert actor.acting is not None
            actor.acting = (*actor.acting[:2], lease)

    def _judge_poll(self, name: str, owner: str, change: Change) -> None:
        """Who polls is neither given up before its time is over, nor asked again after it."""
        step, limit = change.record.step(name), self.saga.steps[name].step.poll_timeout
        kinds = {entry.what for entry in change.history}
        was_forward = change.record.direction is Direction.FORWARD or HistoryKind.COMPENSATION_STARTED in kinds
        if not was_forward or change.verdict is Verdict.GO_AWAY or limit is None:
            return
        over = self.now >= self.began[name] + timedelta(seconds=limit)
        if HistoryKind.STEP_FAILED in kinds and not over:
            raise self.wrong(f"{owner} was told that {name} is not yet there, and gave it up before its time")
        if step.status is StepStatus.PENDING and over:
            raise self.wrong(f"{name} polls on, though its time is over")
        if change.verdict is Verdict.RETRY and change.history:
            raise self.wrong(f"that {name} is not yet there went into the history")

    def _begin(self, actor: Actor, name: str, record: SagaRecord) -> None:
        lease = record.step(name).lease_until
        assert lease is not None
        mine = (name, record.direction)
        for other in self.actors:
            # A worker that slept through its own lease may begin late: what it does then is fenced, not prevented.
            if other is actor or other.acting is None or lease <= self.now or name in self.late:
                continue
            if other.acting[:2] == mine and other.acting[2] > self.now:
                raise self.wrong(f"two act on {name} while the lease of the first lives")
        actor.acting = name, record.direction, lease
        stage = self.saga.steps[name].stage
        for other_name, step in self.saga.steps.items():
            state = self.record.step(other_name)
            ahead = step.stage < stage if record.direction is Direction.FORWARD else step.stage > stage
            if not ahead or self.record.epoch != record.epoch:
                continue
            if record.direction is Direction.FORWARD and state.status not in (StepStatus.DONE, StepStatus.SKIPPED):
                raise self.wrong(f"{name} acts, and {other_name} before it is {state.status}")
            undone = (
                state.status in (StepStatus.COMPENSATED, StepStatus.SKIPPED, StepStatus.PENDING)
                or step.compensation is None
                or is_undecided(self.saga, state)  # its action has not been called
            )
            late = self.landed.get(other_name, 0) > 1 or state.status is StepStatus.IN_DOUBT
            if record.direction is Direction.BACKWARD and not (undone or late or not state.started_seq):
                raise self.wrong(f"{name} is undone, and {other_name} after it is {state.status}")

    def _act(self, name: str, direction: Direction, *, late: bool) -> str | Failure | None:
        chance = 1.0 if self.calm else self.dice.random()
        if late:
            chance = self.dice.choice([0.05, 0.14, 1.0])  # refused; landed, and failed; all well
        if direction is Direction.BACKWARD:
            if chance > 0.1:
                self.effects[name] = False
            self.tell(f"undo {name}")
            return None if chance > 0.15 else Failure(Outcome.FAILED, "broken")
        if chance < 0.06:
            return Failure(Outcome.TERMINAL, "refused")
        if self.saga.steps[name].step.poll_timeout is not None and self.dice.random() < 0.7:
            self.tell(f"{name} is not yet there")
            return Failure(Outcome.NOT_YET, "not yet", self.dice.choice([1.0, 5.0, 20.0]))
        if chance > 0.1:
            self.effects[name] = True
            self.landed[name] = self.landed.get(name, 0) + 1
            self.tell(f"do {name}")
            if self.saga.steps[name].step.waits:
                self.asked.append(name)
        return "1" if chance > 0.16 else Failure(Outcome.FAILED, "broken")

    # -- the broker ---------------------------------------------------------------------------------------------

    def dispatch(self) -> None:
        left = plan(self.saga, self.record)
        self.send(left.stages, left.epoch)

    def send(self, stages: tuple[Stage, ...], epoch: int) -> None:
        if stages:
            first = stages[0]
            self.broker += [Message("step", name, epoch, first.joined, stages[1:]) for name in first.steps]

    def recover(self) -> None:
        if self.record.next_check_at is not None and self.record.next_check_at <= self.now:
            before = self.case(self.record).record
            change = transitions.examine(self.case(before))
            if change.record is not before and self.save(before, change.record) is None:
                return
            if change.verdict is Verdict.OVERDUE:
                change = self.redispatch()
            if change.verdict is Verdict.DISPATCH and (self.calm or self.dice.random() > 0.1):
                self.tell(f"recovery dispatches epoch {self.record.epoch}")
                self.dispatch()

    def redispatch(self) -> Change:
        """Send its messages once more, now and then while they still wait in a queue, and always when they are lost."""
        if self.broker and self.dice.random() < 0.5:
            return Change(self.record, Verdict.GO_AWAY)
        before = self.case(self.record).record
        step = plan(self.saga, before).stages[0].steps[0]
        sent_at = before.sent_at(before.step(step))
        change = transitions.redispatch(self.case(before), step, sent_at)
        if change.record is not before:
            assert self.save(before, change.record)
        return change

    # -- the schedule -------------------------------------------------------------------------------------------

    def deliver(self, position: int, *, keep: bool = False) -> None:
        message = self.broker[position] if keep else self.broker.pop(position)
        self._count += 1
        actor = Actor(self._count, message, iter(()))
        actor.play = self.work(actor)
        self.actors.append(actor)

    def advance(self, actor: Actor) -> None:
        try:
            next(actor.play)
        except StopIteration:
            self.actors.remove(actor)

    def crash(self, actor: Actor) -> None:
        self.actors.remove(actor)
        again = self.dice.random() < 0.7
        self.tell(
            f"w{actor.number} dies at {actor.message.kind} {actor.message.name}; {'redelivered' if again else 'lost'}"
        )
        if again:
            self.broker.append(replace(actor.message, again=True))

    def anything(self) -> None:
        """Let one thing happen."""
        dice = self.dice
        match dice.choices(
            [
                "advance",
                "deliver",
                "double",
                "drop",
                "crash",
                "clock",
                "jump",
                "recover",
                "cancel",
                "report",
                "outside",
            ],
            [40, 20, 2, 2, 3, 8, 1.5, 8, 0.3, 0.5, 4],
        )[0]:
            case "advance" if self.actors:
                self.advance(dice.choice(self.actors))
            case "deliver" if self.broker and len(self.actors) < 4:
                self.deliver(dice.randrange(len(self.broker)))
            case "double" if self.broker:
                self.deliver(dice.randrange(len(self.broker)), keep=True)
            case "drop" if self.broker:
                self.broker.pop(dice.randrange(len(self.broker)))
            case "crash" if self.actors:
                self.crash(dice.choice(self.actors))
            case "clock":
                self.now += timedelta(seconds=dice.choice([0.1, 1, 3]))
            case "jump":
                self.now += timedelta(seconds=dice.choice([11, 45]))
            case "recover":
                self.recover()
            case "report":
                self.broker.append(Message("fail", dice.choice(list(self.saga.steps)), self.record.epoch))
            case "cancel":
                self.cancel()
            case "outside":
                dice.choice([self.signal, self.complete, self.fail_deferred])()

    def signal(self) -> None:
        """Somebody answers: early, late, or twice."""
        if "w" not in self.saga.steps:
            return
        id_ = self.dice.choice("xy")
        sent = Signal(id=id_, payload="1", by=f'{{"id": "{id_}"}}')
        try:
            change = self._outside(lambda case: transitions.signal(case, "w", sent))
        except SignalRefused:
            return
        if change.verdict is not Verdict.SETTLED:
            if self.signalled is not None:
                raise self.wrong(f"the signal {id_} is accepted after {self.signalled}")
            self.signalled = id_
            self.tell(f"the signal {id_} is accepted")

    def complete(self) -> None:
        """An external system says that it is done: early, late, or twice."""
        if not self.asked:
            return
        name, result = self.dice.choice(self.asked), str(self.dice.randrange(100))
        self.effects[name] = True
        self.landed[name] = self.landed.get(name, 0) + 1
        forward = self.record.direction is Direction.FORWARD
        change = self._outside(lambda case: transitions.complete(case, name, result))
        self.tell(f"{name} is completed from outside: {change.verdict}")
        if any(entry.what == "late outcome" for entry in change.history):
            self.late.add(name)
        if forward and change.verdict is not Verdict.SETTLED:
            if name in self.completed:
                raise self.wrong(f"{name} was completed twice")
            self.completed[name] = result

    def fail_deferred(self) -> None:
        if self.asked:
            name = self.dice.choice(self.asked)
            self._outside(lambda case: transitions.fail_deferred(case, name, "declined"))

    def _outside(self, decide: Any) -> Change:
        case = self.case(self.record)
        change: Change = decide(case)
        if change.record is not case.record:
            assert self.save(case.record, change.record)
            if change.verdict is Verdict.DISPATCH and self.dice.random() > 0.1:
                self.dispatch()
        return change

    def cancel(self) -> None:
        case = self.case(self.record)
        try:
            change = transitions.cancel(case, "changed my mind")
        except NotAllowed:
            return
        if change.record is not case.record and self.save(case.record, change.record):
            self.dispatch()

    def repair(self) -> None:
        """A person has what is stuck tried again."""
        stuck = [s.name for s in self.record.steps.values() if s.status is StepStatus.STUCK]
        change = transitions.repair(self.case(self.record), stuck[0], Repair.RETRY, "mended")
        self.keep(change.record)
        self.dispatch()

    def heal(self) -> None:
        """From here on nothing goes wrong; a person mends what is stuck. It has to come to its end."""
        self.calm = True
        self.tell("-- calm --")
        asleep = [actor for actor in self.actors if self.dice.random() < 0.5]  # they wake up when all is over
        if asleep and self.dice.random() < 0.5:
            self.cancel()
        self._settle(asleep)
        for actor in asleep:
            actor.late = True
        self._settle([])
        self.judge()

    def _settle(self, asleep: list[Actor]) -> None:
        for _ in range(3000):
            while awake := [actor for actor in self.actors if actor not in asleep]:
                self.advance(awake[0])
            if self.broker:
                self.deliver(0)
            elif self.record.status is SagaStatus.STUCK:
                self.repair()
            elif self.record.next_check_at is not None:
                self.now = max(self.now, self.record.next_check_at)
                self.recover()
            else:
                return

    def judge(self) -> None:
        if self.record.status not in FINISHED:
            raise self.wrong(f"it stands still, {self.record.status}, and nobody will look")
        standing = {name for name, stands in self.effects.items() if stands}
        undoable = {name for name, step in self.saga.steps.items() if step.compensation is not None}
        if self.record.status is SagaStatus.COMPENSATED and standing & undoable:
            raise self.wrong(f"it is COMPENSATED, and {standing & undoable} still stand")
        if self.record.status is SagaStatus.COMPLETED and any(
            self.record.step(name).result != result for name, result in self.completed.items()
        ):
            raise self.wrong(f"it is COMPLETED, without what it was told from outside: {self.completed}")
        acted = {
            name for name, step in self.record.steps.items() if step.status is StepStatus.DONE and step.kind == "step"
        }
        # A wait may end without having asked.
        waits = {name for name, step in self.record.steps.items() if step.kind == "wait"}
        if self.record.status is SagaStatus.COMPLETED and standing - waits != acted:
            raise self.wrong(f"it is COMPLETED, and of its effects {acted} only {standing} stand")
        if self.record.status is SagaStatus.COMPLETED and set(self.record.steps) != set(self.saga.steps):
            raise self.wrong(f"it is COMPLETED, and has opened only {set(self.record.steps)}")


def simulate(seed: int) -> World:
    """Play one schedule. Raises `Violation` with its story."""
    return play(World(seed))


def play(world: WorldT, length: int = 150) -> WorldT:
    """Play the schedule of a world. Raises `Violation` with its story."""
    world.dispatch()
    try:
        for _ in range(length):
            world.anything()
        world.heal()
    except AssertionError as error:
        raise Violation(f"seed {world.seed}, {world.about}: {error}") from error
    return world


if __name__ == "__main__":
    print("\n".join(simulate(int(sys.argv[1])).story))
