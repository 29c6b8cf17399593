"""The rules, one by one, with a clock that only the test moves."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sagas import (
    Direction,
    NotAllowed,
    Parallel,
    Pivot,
    Retry,
    Saga,
    SagaRecord,
    SagaStatus,
    Step,
    StepStatus,
    Wait,
    transitions,
)
from sagas.checkpoints import FINISHED, SAGA_MOVES, STEP_MOVES
from sagas.plan import plan
from sagas.transitions import Case, Change, Failure, Outcome, Repair, Signal, Timing, Verdict

from sagas.transitions import cancel, claim, examine, fail, join, not_sent, redispatch, repair, report, rewound, signal, succeed  # isort: skip  # fmt: skip

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TIMING = Timing(lease=30, redispatch_after=30)


def nothing() -> None: ...


def step(name: str, *, undo: bool = True, **options: Any) -> Step:
    options.setdefault("retry", Retry(max_attempts=2, delay=1, jitter=0))
    return Step(
        name,
        nothing,
        compensation=nothing if undo else None,
        compensation_retry=Retry(max_attempts=2, jitter=0),
        **options,
    )


LINE = Saga("line", step("a"), step("b", timeout=100), step("c"))
FULL = Saga("full", step("a"), Parallel(step("l"), step("r")), Pivot("p", nothing, retry=Retry(max_attempts=2)), Step("z", nothing, retry=Retry(max_attempts=1)))  # fmt: skip


def fresh(saga: Saga) -> SagaRecord:
    return SagaRecord(
        id="s1", name=saga.name, version=1, key="k", outline=saga.outline, correlation_id="s1", input="null",
        created_at=NOW, updated_at=NOW, stage_ready_at=NOW, next_check_at=NOW,
    )  # fmt: skip


#: Of steps that do not poll.
OUTCOMES = [outcome for outcome in Outcome if outcome is not Outcome.NOT_YET]


class Game:
    """A saga driven by hand."""

    def __init__(self, saga: Saga) -> None:
        self.saga, self.record, self.now = saga, fresh(saga), NOW
        self.owners: dict[str, tuple[str, Direction]] = {}
        self.epochs: dict[str, int] = {}  # of the messages that brought claims
        self.last: Change | None = None

    @property
    def case(self) -> Case:
        return Case.of(self.saga, self.record, self.now, TIMING)

    def take(self, change: Change) -> Verdict:
        self.record, self.last = change.record, change
        return change.verdict

    def claim(self, name: str, epoch: int | None = None) -> Verdict:
        owner = f"o{random.random()}"
        verdict = self.take(claim(self.case, name, epoch or self.record.epoch, owner))
        if verdict is Verdict.ACT:
            self.owners[name] = owner, self.record.direction
            self.epochs[name] = self.record.epoch
        return verdict

    def succeed(self, name: str, owner: tuple[str, Direction] | None = None) -> Verdict:
        who, direction = owner or self.owners[name]
        result = "1" if direction is Direction.FORWARD else None
        return self.take(succeed(self.case, name, who, direction, result))

    def fail(self, name: str, outcome: Outcome = Outcome.FAILED, owner: tuple[str, Direction] | None = None) -> Verdict:
        who, direction = owner or self.owners[name]
        failure = Failure(outcome, "broken")
        return self.take(fail(self.case, name, who, direction, failure))

    def do(self, *names: str) -> Verdict:
        for name in names:
            assert self.claim(name) is Verdict.ACT, self.last
            verdict = self.succeed(name)
        return verdict

    def signal(self, name: str) -> Verdict:
        return self.take(signal(self.case, name, Signal(id="s", payload="true", by='{"id": "s"}')))

    def recover(self) -> Verdict:
        return self.take(examine(self.case))

    def redispatch(self) -> Verdict:
        name = plan(self.saga, self.record).stages[0].steps[0]
        case = self.case
        return self.take(redispatch(case, name, case.record.sent_at(case.record.step(name))))

    def report(self, name: str) -> Verdict:
        return self.take(report(self.case, name, self.epochs.get(name, self.record.epoch)))

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def ended(self) -> SagaStatus:
        """The saga's status, read afresh."""
        return self.record.status

    def status(self, name: str) -> StepStatus:
        return self.record.step(name).status


def left(saga: Saga, record: SagaRecord) -> tuple[tuple[str, ...], ...]:
    """The steps of the stages that are left."""
    return tuple(stage.steps for stage in plan(saga, record).stages)


def test_forward_to_the_end() -> None:
    game = Game(FULL)
    assert left(FULL, game.record) == (("a",), ("l", "r"), ("p",), ("z",))
    assert game.do("a") is Verdict.CONTINUE
    assert game.claim("l") is game.claim("r") is Verdict.ACT
    assert game.succeed("r") is Verdict.PARTED
    assert game.succeed("l") is Verdict.CLOSED
    assert join(game.case, "l", 1).verdict is Verdict.CONTINUE
    assert game.do("p", "z") is Verdict.CONTINUE
    assert game.ended() is SagaStatus.COMPLETED
    assert game.record.next_check_at is None
    assert not plan(FULL, game.record)


def test_a_step_waits_for_its_turn() -> None:
    game = Game(LINE)
    assert game.claim("b") is Verdict.GO_AWAY
    game.do("a")
    assert game.claim("a") is Verdict.SETTLED


def test_two_deliveries_act_once_while_the_lease_lives() -> None:
    game = Game(LINE)
    assert game.claim("a") is Verdict.ACT
    first = game.owners["a"]
    assert game.claim("a") is Verdict.GO_AWAY
    game.wait(31)
    assert game.claim("a") is Verdict.ACT  # the first one's lease has died
    assert game.record.step("a").lost == 1
    assert game.succeed("a", first) is Verdict.GO_AWAY
    assert game.status("a") is StepStatus.RUNNING
    assert game.succeed("a") is Verdict.CONTINUE


def test_an_old_epoch_writes_nothing() -> None:
    game = Game(LINE)
    game.do("a")
    game.take(cancel(game.case, "no"))
    before = game.record
    assert before.epoch == 2
    assert game.claim("a", epoch=1) is Verdict.GO_AWAY
    assert game.record is before
    assert join(game.case, "a", 1).verdict is Verdict.GO_AWAY
    assert report(game.case, "a", 1).record is game.case.record


def test_a_message_that_still_waits_stays_good_however_often_recovery_sends_it_again() -> None:
    game = Game(LINE)
    game.do("a")
    epoch = game.record.epoch
    for _ in range(8):
        assert game.record.next_check_at is not None
        game.now = game.record.next_check_at
        assert game.recover() is Verdict.OVERDUE
        assert game.redispatch() is Verdict.DISPATCH
        assert plan(LINE, game.record).epoch == epoch
    assert game.claim("b", epoch) is Verdict.ACT
    assert game.claim("b", epoch) is Verdict.GO_AWAY
    game.succeed("b")
    assert game.claim("b", epoch) is Verdict.SETTLED
    assert game.record.idle_checks == 0


def test_terminal_turns_back_and_undoes_in_reverse() -> None:
    game = Game(LINE)
    game.do("a", "b")
    game.claim("c")
    assert game.fail("c", Outcome.TERMINAL) is Verdict.FAILED
    assert game.report("c") is Verdict.DISPATCH
    assert game.ended() is SagaStatus.COMPENSATING
    assert left(LINE, game.record) == (("c",), ("b",), ("a",))
    assert game.claim("a") is Verdict.GO_AWAY
    game.do("c", "b", "a")
    assert game.ended() is SagaStatus.COMPENSATED


def test_a_report_never_ends_a_living_claim() -> None:
    """Who sends it may lie, or be mistaken. The lease decides."""
    game = Game(LINE)
    game.claim("a")
    before = game.record
    assert game.report("a") is Verdict.GO_AWAY
    assert game.record is before
    game.wait(TIMING.lease - 1)
    assert game.report("a") is Verdict.GO_AWAY
    assert game.record is before
    assert game.succeed("a") is Verdict.CONTINUE


def test_a_report_of_a_dead_claim_is_believed_at_once() -> None:
    game = Game(LINE)
    game.claim("a")
    game.wait(TIMING.lease + 1)
    assert game.report("a") is Verdict.DISPATCH
    assert (game.record.step("a").lost, game.record.step("a").failures) == (1, 0)


def test_a_report_leaves_a_living_undo_and_a_living_sibling_alone() -> None:
    game = Game(FULL)
    game.do("a")
    game.claim("l")
    game.claim("r")
    before = game.record
    for name in ("l", "r"):
        assert game.report(name) is Verdict.GO_AWAY
    assert game.record is before
    game.fail("l", Outcome.TERMINAL)
    game.succeed("r")
    game.recover()
    game.claim("r")
    before = game.record
    assert before.step("r").status is StepStatus.COMPENSATING
    assert game.report("r") is Verdict.GO_AWAY
    assert game.record is before


def test_a_retry_is_due_later() -> None:
    game = Game(LINE)
    game.claim("a")
    assert game.fail("a") is Verdict.RETRY
    assert game.record.next_check_at == NOW + timedelta(seconds=1)
    assert game.claim("a") is Verdict.GO_AWAY
    game.wait(1)
    assert game.recover() is Verdict.DISPATCH
    assert game.claim("a") is Verdict.ACT
    assert game.record.step("a").attempt == 2
    assert game.fail("a") is Verdict.FAILED
    assert game.status("a") is StepStatus.IN_DOUBT


def test_what_was_between_two_attempts_is_in_doubt_when_turning_back() -> None:
    game = Game(LINE)
    game.claim("a")
    game.fail("a")
    assert game.take(cancel(game.case, "no")) is Verdict.DISPATCH
    assert game.status("a") is StepStatus.IN_DOUBT


def test_a_late_success_is_undone() -> None:
    game = Game(LINE)
    game.claim("a")
    owner = game.owners["a"]
    game.take(cancel(game.case, "no"))
    assert not plan(LINE, game.record)  # its action is still at work: nothing to dispatch yet
    assert game.claim("a") is Verdict.GO_AWAY
    assert game.succeed("a", owner) is Verdict.DISPATCH
    assert game.status("a") is StepStatus.IN_DOUBT
    assert game.record.step("a").result == "1"
    game.do("a")
    assert game.ended() is SagaStatus.COMPENSATED


def test_a_success_after_the_compensation_reopens_the_saga() -> None:
    game = Game(LINE)
    game.claim("a")
    owner = game.owners["a"]
    game.take(cancel(game.case, "no"))
    game.wait(31)  # its worker is believed dead
    assert game.recover() is Verdict.DISPATCH
    game.do("a")
    assert game.ended() is SagaStatus.COMPENSATED
    assert game.succeed("a", owner) is Verdict.DISPATCH
    assert game.ended() is SagaStatus.COMPENSATING
    game.do("a")
    assert game.ended() is SagaStatus.COMPENSATED


def test_a_success_while_it_is_being_undone_voids_that_claim() -> None:
    game = Game(LINE)
    game.claim("a")
    action = game.owners["a"]
    game.take(cancel(game.case, "no"))
    game.wait(31)
    game.recover()
    game.claim("a")
    undo = game.owners["a"]
    game.succeed("a", action)
    assert game.succeed("a", undo) is Verdict.GO_AWAY  # it may have looked before the action landed
    assert game.ended() is SagaStatus.COMPENSATING
    game.do("a")
    assert game.ended() is SagaStatus.COMPENSATED


def test_a_failed_branch_waits_for_its_siblings() -> None:
    game = Game(FULL)
    game.do("a")
    game.claim("l")
    game.claim("r")
    assert game.fail("l", Outcome.TERMINAL) is Verdict.PARTED
    assert game.recover() is Verdict.GO_AWAY
    assert game.succeed("r") is Verdict.DISPATCH
    assert game.record.status is SagaStatus.COMPENSATING
    assert left(FULL, game.record) == (("l", "r"), ("a",))


def test_a_sibling_is_not_begun_only_to_be_undone() -> None:
    game = Game(FULL)
    game.do("a")
    game.claim("l")
    assert game.fail("l", Outcome.TERMINAL) is Verdict.DISPATCH
    assert game.claim("r", epoch=1) is Verdict.GO_AWAY
    assert left(FULL, game.record) == (("l",), ("a",))


def test_the_write_that_records_a_failure_starts_the_compensation() -> None:
    game = Game(LINE)
    game.do("a")
    game.claim("b")
    assert game.fail("b", Outcome.TERMINAL) is Verdict.FAILED
    assert (game.record.status, game.record.epoch) == (SagaStatus.COMPENSATING, 2)
    assert game.report("b") is Verdict.DISPATCH  # link_error
    game.claim("b")
    assert report(game.case, "b", 1).verdict is Verdict.GO_AWAY  # a doubled one


def test_a_lost_sibling_is_launched_in_the_same_epoch() -> None:
    game = Game(FULL)
    game.do("a")
    game.claim("l")
    game.now = game.record.next_check_at or game.now
    game.take(Change(replace(game.record, steps={**game.record.steps, "l": replace(game.record.steps["l"], lease_until=game.now + timedelta(9))}), Verdict.ACT))  # fmt: skip
    epoch = game.record.epoch
    assert game.recover() is Verdict.OVERDUE
    assert game.redispatch() is Verdict.DISPATCH
    assert game.record.epoch == epoch
    assert left(FULL, game.record)[0] == ("r",)


def test_a_pivot_in_doubt_is_stuck() -> None:
    game = Game(FULL)
    game.do("a", "l", "r")
    for verdict in (Verdict.RETRY, Verdict.FAILED):
        game.claim("p")
        assert game.fail("p") is verdict
        game.wait(100)
        if verdict is Verdict.RETRY:
            with pytest.raises(NotAllowed):
                cancel(game.case, "no")
            game.recover()
    assert game.ended() is SagaStatus.STUCK
    assert game.last is not None
    assert [letter.step for letter in game.last.dead_letters] == ["p"]
    game.take(repair(game.case, "p", Repair.DONE, "seen at the bank", actor="ann"))
    assert game.ended() is SagaStatus.RUNNING
    game.do("z")
    assert game.ended() is SagaStatus.COMPLETED


def test_a_refused_pivot_turns_back() -> None:
    game = Game(FULL)
    game.do("a", "l", "r")
    game.claim("p")
    game.fail("p", Outcome.TERMINAL)
    assert game.report("p") is Verdict.DISPATCH
    assert left(FULL, game.record) == (("l", "r"), ("a",))


def test_a_claim_whose_answer_was_lost_is_still_ours() -> None:
    record = claim(Case.of(LINE, fresh(LINE), NOW, TIMING), "a", 1, "me").record
    again = claim(Case.of(LINE, record, NOW, TIMING), "a", 1, "me")
    assert again.verdict is Verdict.ACT
    assert again.record is record


def test_a_success_whose_answer_was_lost_goes_on() -> None:
    game = Game(LINE)
    game.do("a")
    assert game.succeed("a") is Verdict.CONTINUE
    assert game.status("a") is StepStatus.DONE


@pytest.mark.parametrize("again", [True, False], ids=["sent again", "held back"])
def test_waiting_doubles_and_is_bounded(again: bool) -> None:
    game = Game(LINE)
    gaps: list[float] = []
    for _ in range(8):
        game.wait(30 if not gaps else gaps[-1])
        assert game.recover() is Verdict.OVERDUE
        if again:
            assert game.redispatch() is Verdict.DISPATCH
        assert game.record.next_check_at is not None
        gaps.append((game.record.next_check_at - game.now).total_seconds())
    assert gaps == [60, 120, 240, 480, 960, 960, 960, 960]


def test_a_look_before_its_time_changes_nothing() -> None:
    game = Game(LINE)
    game.wait(29)
    before = game.case.record
    assert game.recover() is Verdict.GO_AWAY
    assert game.record == replace(before, next_check_at=NOW + timedelta(seconds=30))
    game.do("a")
    game.wait(10)
    assert game.recover() is Verdict.GO_AWAY  # the saga is old, and its next step has just become ready
    assert game.record.next_check_at == game.now + timedelta(seconds=20)


def test_what_the_mark_of_recovery_says_is_not_believed() -> None:
    game = Game(LINE)
    game.wait(30)
    game.record = replace(game.record, next_check_at=game.now + timedelta(seconds=10))  # as `due` leaves it
    assert game.recover() is Verdict.OVERDUE
    assert game.record.next_check_at == game.now + timedelta(seconds=60)


def test_what_has_moved_on_is_not_sent_again() -> None:
    game = Game(LINE)
    game.wait(30)
    assert game.recover() is Verdict.OVERDUE
    sent = game.case.record.sent_at(game.record.step("a"))
    game.do("a")
    for name in ("a", "b"):
        assert redispatch(game.case, name, sent).verdict is Verdict.GO_AWAY


@pytest.mark.parametrize("answers", [True, False], ids=["undeclared queue", "broker away"])
def test_a_message_that_no_broker_takes_is_shown_and_tried_again(answers: bool) -> None:
    game = Game(LINE)
    game.wait(30)
    game.recover()
    game.redispatch()
    game.take(not_sent(game.case, "no queue 'typo'", broker_answers=answers))
    assert game.record.error == game.record.step("a").error == "not sent: no queue 'typo'"
    assert game.last is not None
    assert [entry.what for entry in game.last.history] == (["not sent"] if answers else [])
    waits = 60 if answers else 30
    assert game.record.next_check_at == game.now + timedelta(seconds=waits)
    game.wait(waits)
    assert game.recover() is Verdict.OVERDUE
    game.do("a")
    assert game.last.record.error is None
    assert game.last.record.step("a").error is None


def test_a_retry_that_no_broker_took_has_no_message() -> None:
    game = Game(LINE)
    game.claim("a")
    game.fail("a")
    game.wait(1)
    assert game.recover() is Verdict.DISPATCH
    game.take(not_sent(game.case, "away", broker_answers=False))
    game.wait(30)
    assert game.recover() is Verdict.DISPATCH  # nothing has to be found out


LATE = [Outcome.FAILED, Outcome.IN_DOUBT]


@pytest.mark.parametrize("outcome", LATE)
def test_only_terminal_says_that_a_late_attempt_had_no_effect(outcome: Outcome) -> None:
    game = Game(Saga("s", step("a", timeout=40, retry=Retry(max_attempts=1)), step("b")))
    game.claim("a")
    late = game.owners["a"]
    game.wait(40)
    game.recover()
    assert game.ended() is SagaStatus.COMPENSATING
    game.do("a")
    assert game.ended() is SagaStatus.COMPENSATED
    assert game.fail("a", Outcome.TERMINAL, late) is Verdict.GO_AWAY
    assert game.fail("a", outcome, late) is Verdict.DISPATCH
    assert game.ended() is SagaStatus.COMPENSATING
    assert game.status("a") is StepStatus.IN_DOUBT
    assert game.record.step("a").result is None
    game.do("a")
    assert game.ended() is SagaStatus.COMPENSATED


def test_a_late_end_keeps_the_result_that_is_known() -> None:
    game = Game(LINE)
    game.claim("a")
    late = game.owners["a"]
    game.wait(31)
    game.recover()
    game.do("a")
    game.take(cancel(game.case, "no"))
    game.do("a")
    assert game.fail("a", Outcome.FAILED, late) is Verdict.DISPATCH
    assert game.record.step("a").result == "1"


def test_a_late_end_of_a_compensation_changes_nothing() -> None:
    game = Game(LINE)
    game.do("a")
    game.take(cancel(game.case, "no"))
    game.claim("a")
    late = game.owners["a"]
    game.wait(31)
    game.recover()
    game.do("a")
    before = game.record
    assert game.fail("a", Outcome.FAILED, late) is Verdict.GO_AWAY
    assert game.record is before


def test_a_late_end_of_a_stuck_pivot_is_told_to_the_person_who_decides() -> None:
    game = Game(Saga("p", step("a"), Pivot("p", nothing, timeout=40, retry=Retry(max_attempts=1))))
    game.do("a")
    game.claim("p")
    late = game.owners["p"]
    game.wait(40)
    game.recover()
    assert game.ended() is SagaStatus.STUCK
    game.fail("p", Outcome.FAILED, late)
    assert game.last is not None
    assert [entry.what for entry in game.last.history] == ["late outcome"]


ASKS = Saga("asks", step("a"), Wait("w", bool, timeout=60, begin=nothing, compensation=nothing), step("b"))


@pytest.mark.parametrize("is_open", [False, True])
def test_a_wait_whose_signal_came_before_it_began_is_not_undone(is_open: bool) -> None:
    game = Game(ASKS)
    if is_open:
        game.do("a")
        assert game.signal("w") is Verdict.DISPATCH
    else:
        assert game.signal("w") is Verdict.GO_AWAY
        assert game.do("a") is Verdict.DISPATCH, "the message that is on its way to the wait would lead no further"
    assert left(ASKS, game.record) == (("b",),)
    game.claim("b")
    game.fail("b", Outcome.TERMINAL)
    assert left(ASKS, game.record) == (("b",), ("a",))
    assert game.status("w") is StepStatus.COMPENSATED
    game.do("b", "a")
    assert game.ended() is SagaStatus.COMPENSATED


@pytest.mark.parametrize("between_attempts", [False, True])
def test_a_wait_whose_signal_came_after_it_began_ends_with_its_function(between_attempts: bool) -> None:
    """Its function is at work, or has failed and is called again. It may have asked, so it is undone."""
    game = Game(ASKS)
    game.do("a")
    game.claim("w")
    if between_attempts:
        game.fail("w")
    at_work = game.status("w")
    assert game.signal("w") is Verdict.GO_AWAY
    assert game.signal("w") is Verdict.SETTLED
    assert game.status("w") is at_work
    if between_attempts:
        game.wait(10)
        assert game.claim("w") is Verdict.ACT
    assert game.take(transitions.wait(game.case, "w", game.owners["w"][0], NOW)) is Verdict.DISPATCH
    assert (game.status("w"), game.record.step("w").result) == (StepStatus.DONE, "true")
    game.claim("b")
    game.fail("b", Outcome.TERMINAL)
    assert left(ASKS, game.record) == (("b",), ("w",), ("a",))


DEFERS = Saga("defers", step("a"), step("d", deferred=True, deadline=60), step("b"))


@pytest.mark.parametrize("saga", [DEFERS, ASKS])
@pytest.mark.parametrize("lost", [False, True])
def test_a_completion_is_kept_until_the_action_has_returned(saga: Saga, lost: bool) -> None:
    """It may have written what nobody sees until then. `lost`: the first worker dies before that."""
    game, name = Game(saga), "w" if saga is ASKS else "d"
    game.do("a")
    game.claim(name)
    if lost:
        game.wait(31)
        game.recover()
        assert game.status(name) is StepStatus.PENDING
    at_work = game.status(name)
    assert game.take(transitions.complete(game.case, name, "1")) is Verdict.GO_AWAY
    assert game.take(transitions.complete(game.case, name, "2")) is Verdict.SETTLED
    assert game.take(transitions.fail_deferred(game.case, name, "no")) is Verdict.SETTLED
    if saga is ASKS:
        assert game.signal(name) is Verdict.SETTLED, "it has been answered otherwise"
    assert game.status(name) is at_work
    if lost:
        assert game.claim(name) is Verdict.ACT
    until = game.now + timedelta(seconds=60)
    assert game.take(transitions.wait(game.case, name, game.owners[name][0], until)) is Verdict.DISPATCH
    assert (game.status(name), game.record.step(name).result) == (StepStatus.DONE, "1")
    assert left(saga, game.record) == (("b",),)


def test_a_step_that_is_given_up_after_its_completion_is_compensated_with_the_result() -> None:
    game = Game(DEFERS)
    game.do("a")
    game.claim("d")
    game.take(transitions.complete(game.case, "d", "1"))
    game.fail("d", Outcome.TERMINAL)
    assert left(DEFERS, game.record) == (("d",), ("a",))
    assert game.record.step("d").result == "1"


@pytest.mark.parametrize("outcome", [None, *LATE])
def test_a_pivot_that_ends_late_in_a_saga_that_is_undone_takes_a_person(outcome: Outcome | None) -> None:
    """`outcome`: None where it succeeds."""
    game = Game(Saga("p", step("a"), Pivot("p", nothing)))
    game.do("a")
    game.claim("p")
    late = game.owners["p"]
    game.wait(31)
    game.recover()
    game.claim("p")
    game.fail("p", Outcome.TERMINAL)
    game.report("p")
    game.do("a")
    assert game.ended() is SagaStatus.COMPENSATED
    if outcome is None:
        game.succeed("p", late)
    else:
        game.fail("p", outcome, late)
    assert game.last is not None
    assert [letter.step for letter in game.last.dead_letters] == ["p"]


@pytest.mark.parametrize("saga", [LINE, FULL])
@pytest.mark.parametrize("seed", range(300))
def test_any_order_of_events_ends_well(saga: Saga, seed: int) -> None:
    """Whatever happens, every move is legal, nothing stands still unseen, and nothing is left behind."""
    dice, game = random.Random(seed), Game(saga)
    old: list[tuple[str, tuple[str, Direction]]] = []
    for _ in range(60):
        name = dice.choice(list(saga.steps))
        match dice.randrange(9):
            case 0 | 1 | 2 if game.claim(name, dice.choice([None, None, 1])) is Verdict.ACT:
                old.append((name, game.owners[name]))
            case 3 | 4 if old:
                late, owner = dice.choice(old)
                game.succeed(late, owner)
            case 5 if old:
                late, owner = dice.choice(old)
                game.fail(late, dice.choice(OUTCOMES), owner)
            case 6:
                game.wait(dice.choice([0.1, 2, 31, 400]))
                game.recover()
            case 7:
                game.report(name)
            case 8 if dice.random() < 0.1:
                try:
                    game.take(cancel(game.case, "no"))
                except NotAllowed:
                    pass
        _check(saga, game.record)
    for _ in range(200):  # then only the sweep and willing workers are left
        if game.record.status in FINISHED:
            break
        if game.record.status is SagaStatus.STUCK:
            [name, *_] = [s.name for s in game.record.steps.values() if s.status is StepStatus.STUCK]
            game.take(repair(game.case, name, dice.choice([Repair.RETRY, Repair.SKIP, Repair.DONE]), "so be it"))
        for name in {name for stage in plan(saga, game.record).stages for name in stage.steps}:
            if game.claim(name) is Verdict.ACT:
                game.succeed(name)
        if game.record.next_check_at is not None:
            game.now = max(game.now, game.record.next_check_at)
            game.recover()
        _check(saga, game.record)
    assert game.record.status in FINISHED


def _check(saga: Saga, record: SagaRecord) -> None:
    statuses = {state.status for state in record.steps.values()}
    if record.status is SagaStatus.COMPENSATED:
        assert not statuses & {StepStatus.RUNNING, StepStatus.DONE, StepStatus.IN_DOUBT, StepStatus.COMPENSATING}
    if record.status is SagaStatus.COMPLETED:
        assert {record.step(name).status for name in saga.steps} <= {StepStatus.DONE, StepStatus.SKIPPED}
    assert (record.next_check_at is None) == (record.status in FINISHED or record.status is SagaStatus.STUCK)
    assert (StepStatus.STUCK in statuses) or record.status is not SagaStatus.STUCK
    if (pivot := saga.pivot) and record.step(pivot.name).status is StepStatus.DONE:
        assert record.direction is Direction.FORWARD


def test_the_tables_are_of_all_states() -> None:
    assert set(SAGA_MOVES) == set(SagaStatus)
    assert set(STEP_MOVES) == set(StepStatus)


def test_a_stuck_pivot_that_never_happened_can_turn_back() -> None:
    game = Game(Saga("p", step("a"), Pivot("p", nothing, retry=Retry(max_attempts=1))))
    game.do("a")
    game.claim("p")
    game.fail("p")
    game.take(repair(game.case, "p", Repair.FAILED, "not at the bank"))
    assert game.ended() is SagaStatus.COMPENSATING
    game.do("a")
    assert game.ended() is SagaStatus.COMPENSATED
    with pytest.raises(NotAllowed):
        repair(game.case, "p", Repair.FAILED, "again")


def test_a_step_that_lost_its_worker_is_not_one_that_never_began() -> None:
    game = Game(Saga("s", step("a", start_timeout=5)))
    game.claim("a")
    game.wait(31)
    assert game.recover() is Verdict.DISPATCH
    assert game.status("a") is StepStatus.PENDING
    assert game.claim("a") is Verdict.ACT


def test_a_step_that_nobody_takes_is_given_up_once() -> None:
    game = Game(Saga("s", Pivot("p", nothing), Step("z", nothing, start_timeout=5)))
    game.do("p")
    game.wait(6)
    game.recover()
    assert game.ended() is SagaStatus.STUCK
    assert game.last is not None
    assert [entry.what for entry in game.last.history] == ["not started", "stuck"]


# -- the database's clock is set back -------------------------------------------------------------------------------


def test_what_was_written_in_the_future_begins_to_wait_now() -> None:
    game = Game(Saga("timed", step("a", timeout=100), step("b"), timeout=500))
    game.record = replace(game.record, deadline=NOW + timedelta(seconds=500))
    game.claim("a")
    back = NOW - timedelta(hours=3)
    record = rewound(game.record, back)
    state = record.step("a")
    assert (state.lease_until, state.deadline) == (back + timedelta(seconds=30), back + timedelta(seconds=100))
    assert (record.updated_at, record.deadline) == (back, back + timedelta(seconds=500))
    assert record.next_check_at is not None
    assert record.next_check_at <= back + timedelta(seconds=30)
    assert rewound(record, back) is record


def test_a_dead_claim_of_the_future_is_taken_over_in_time() -> None:
    game = Game(LINE)
    game.claim("a")
    game.now = NOW - timedelta(hours=3)
    game.record = rewound(game.record, game.now)
    assert claim(game.case, "a", 1, "other").verdict is Verdict.GO_AWAY
    game.now += timedelta(seconds=31)
    assert claim(game.case, "a", 1, "other").verdict is Verdict.ACT


def test_processes_that_differ_a_little_rewind_nothing() -> None:
    game = Game(LINE)
    game.claim("a")
    assert rewound(game.record, NOW - timedelta(seconds=10)) is game.record
