"""What a step reports while it runs: the rules, the limits, and who gets to see it."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from sagas import (
    DefinitionError,
    Direction,
    Each,
    PayloadTooLarge,
    Pivot,
    Retry,
    Saga,
    SagaRecord,
    SagaStatus,
    Step,
    StepCancelled,
    StepContext,
    StepProgress,
    StepStatus,
    transitions,
)
from sagas.checkpoints import HistoryKind
from sagas.heartbeats import LONGEST_DETAILS, Heartbeats, Report
from sagas.leases import ClaimStatus, Leases
from sagas.testing import Inline
from sagas.transitions import Case, Failure, Outcome, Timing, Verdict
from tests.servers import wait_for
from tests.unit.simulation import START


def work(step: StepContext) -> None: ...


def undo(step: StepContext) -> None: ...


def saga(**options: Any) -> Saga:
    retry = Retry(max_attempts=2, delay=1, jitter=0)
    options = {"timeout": 300, "heartbeat_timeout": 60, "retry": retry, **options}
    return Saga("import", Step("load", work, compensation=undo, **options))


def claimed(of: Saga) -> Case:
    record = SagaRecord(
        id="s", name=of.name, version=1, key="k", outline=of.outline, correlation_id="s", input="null",
        created_at=START, updated_at=START, stage_ready_at=START, next_check_at=START,
    )  # fmt: skip
    case = Case.of(of, record, START, Timing(lease=30, redispatch_after=30))
    return case.on(transitions.claim(case, "load", 1, "me").record)


def later(case: Case, seconds: float) -> Case:
    return replace(case, now=case.now + timedelta(seconds=seconds))


def renewed(case: Case, report: Report | None = None) -> Case:
    return case.on(transitions.renew(case, "load", "me", report).record)


# -- the rules ----------------------------------------------------------------------------------------------------


def test_silence_is_a_failed_attempt() -> None:
    case = claimed(saga())
    for _ in range(5):  # its worker lives
        case = renewed(later(case, 10))
    assert case.record.step("load").lease_until == START + timedelta(seconds=60)
    assert case.record.next_check_at == START + timedelta(seconds=60)
    change = transitions.examine(later(case, 10))
    assert [(entry.what, entry.detail) for entry in change.history] == [
        (HistoryKind.STEP_FAILED, "no heartbeat within 60 s")
    ]
    step = change.record.step("load")
    assert (step.status, step.failures, step.lost) == (StepStatus.PENDING, 1, 0)


def test_a_worker_that_dies_sooner_than_its_function_may_be_silent_is_lost() -> None:
    change = transitions.examine(later(claimed(saga()), 31))
    assert [entry.what for entry in change.history] == [HistoryKind.LOST]
    assert (change.record.step("load").failures, change.record.step("load").lost) == (0, 1)


def test_each_report_begins_the_time_anew_and_none_outlives_the_attempt() -> None:
    case = claimed(saga(timeout=100))
    for at in range(10, 100, 10):
        case = renewed(later(case, 10), Report(details=str(at), count=1))
        step = case.record.step("load")
        assert (step.heartbeat_at, step.heartbeat_details) == (case.now, str(at))
        assert step.lease_until == min(case.now + timedelta(seconds=30), START + timedelta(seconds=100))
    change = transitions.examine(later(case, 10))
    assert [entry.detail for entry in change.history] == ["no answer within 100 s"]


def test_after_too_much_silence_the_step_is_in_doubt_and_compensated() -> None:
    case = claimed(saga(retry=Retry(max_attempts=1)))
    change = transitions.examine(later(renewed(later(case, 59)), 2))
    assert change.record.status is SagaStatus.COMPENSATING
    assert change.record.step("load").status is StepStatus.IN_DOUBT
    assert change.record.error == "step 'load' is in doubt: no heartbeat within 60 s"


def test_behind_the_pivot_silence_is_tried_again() -> None:
    of = Saga("import", Pivot("load", work, heartbeat_timeout=60))
    change = transitions.examine(later(renewed(later(claimed(of), 50)), 11))
    assert change.record.step("load").status is StepStatus.PENDING


def test_a_compensation_need_not_report() -> None:
    case = claimed(saga())
    declined = transitions.fail(case, "load", "me", Direction.FORWARD, Failure(Outcome.IN_DOUBT, "broken"))
    back = case.on(declined.record)
    back = later(back.on(transitions.claim(back, "load", 2, "you").record), 20)
    change = transitions.renew(back, "load", "you")
    assert change.record.step("load").lease_until == back.now + timedelta(seconds=30)
    assert back.silent_until(change.record.step("load")) is None


def test_an_action_that_the_saga_no_longer_wants_must_not_be_silent_for_ever() -> None:
    case = later(renewed(later(claimed(saga()), 20)), 10)
    case = case.on(transitions.cancel(case, "changed my mind").record)
    case = renewed(later(case, 20))
    change = transitions.examine(later(case, 11))
    assert change.record.step("load").status is StepStatus.IN_DOUBT
    assert change.verdict is Verdict.DISPATCH


def test_the_next_attempt_and_the_compensation_know_what_was_reported() -> None:
    case = renewed(later(claimed(saga()), 5), Report(details="7", done=7, total=9, count=1))
    broken = transitions.fail(case, "load", "me", Direction.FORWARD, Failure(Outcome.FAILED, "broken"))
    case = later(case.on(broken.record), 5)
    again = transitions.claim(case, "load", 1, "you").record.step("load")
    assert (again.heartbeat_details, again.progress, again.heartbeat_at) == ("7", StepProgress(7, 9), case.now)
    case = case.on(transitions.cancel(case, "changed my mind").record)
    undone = transitions.claim(case, "load", 2, "you").record.step("load")
    assert undone.heartbeat_details == "7"
    assert undone.progress is None, "the compensation has not come anywhere yet"


def test_a_report_of_a_claim_that_was_taken_over_is_not_kept() -> None:
    case = later(claimed(saga()), 31)
    taken = case.on(transitions.claim(case, "load", 1, "you").record)
    change = transitions.renew(taken, "load", "me", Report(details="7", count=1))
    assert change.record is taken.record
    assert transitions.reported(taken, "load", "me", Report(details="7", count=1)) is taken


def test_a_clock_set_back_does_not_lengthen_the_silence() -> None:
    case = renewed(later(claimed(saga()), 40))
    hour = timedelta(hours=1)
    back = transitions.rewound(case.record, case.now - hour)
    assert back.step("load").heartbeat_at == START - hour


# -- definitions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"heartbeat_timeout": 0.5}, "at least 1 s"),
        ({"heartbeat_timeout": 300}, "less than timeout=300 s"),
        ({"heartbeat_timeout": "60"}, "it must be a number of seconds or a timedelta"),
        ({"heartbeat_timeout": float("nan")}, "finite"),
    ],
)
def test_a_timeout_that_cannot_work_is_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(DefinitionError, match=why):
        saga(**options)


def test_who_has_nothing_to_report_with_is_refused() -> None:
    with pytest.raises(DefinitionError, match=r"step 'load': heartbeat_timeout= .* annotated StepContext"):
        Saga("import", Step("load", lambda: None, compensation=None, heartbeat_timeout=60))
    with pytest.raises(DefinitionError, match="annotated StepContext"):
        Saga("import", Each("load", lambda item: item, compensation=None, over=lambda: [1], heartbeat_timeout=60))


# -- what a function may report -------------------------------------------------------------------------------------


def test_details_are_json_and_not_too_long() -> None:
    heartbeats = Heartbeats(about="saga 'import' (1), step 'load'")
    with pytest.raises(PayloadTooLarge, match=r"saga 'import' \(1\), step 'load': the details .* 65,538 bytes"):
        heartbeats.report("x" * LONGEST_DETAILS)
    with pytest.raises(TypeError):
        heartbeats.report(object())
    assert heartbeats.latest is None
    heartbeats.report({"row": 7})
    heartbeats.report(None)
    heartbeats.progress(1, None)
    assert heartbeats.latest == Report(details='{"row":7}', done=1, total=None, count=3)


@pytest.mark.parametrize(
    ("done", "total"), [(-1, None), (1, -1), (1.5, None), (True, None), ("1", None), (2**63, None)]
)
def test_progress_is_counted(done: Any, total: Any) -> None:
    with pytest.raises(ValueError, match="must be a whole number, 0 or more"):
        Heartbeats().progress(done, total)


def test_a_step_that_is_cancelled_hears_it_at_its_next_report() -> None:
    heartbeats = Heartbeats(about="step 'load'")
    heartbeats.cancel("the saga compensates")
    with pytest.raises(StepCancelled, match="step 'load': the saga compensates"):
        heartbeats.report(1)
    with pytest.raises(StepCancelled):
        heartbeats.progress(1, 2)


# -- who stores it --------------------------------------------------------------------------------------------------


class Store:
    """Notes what is renewed."""

    def __init__(self, status: ClaimStatus = ClaimStatus.WANTED) -> None:
        self.status = status
        self.reports: list[Report | None] = []

    def renew(self, saga_id: str, step: str, owner: str, report: Report | None) -> ClaimStatus:
        self.reports.append(report)
        return self.status


def test_what_is_reported_often_is_stored_now_and_then() -> None:
    store, heartbeats = Store(), Heartbeats(timeout=1)  # stored every 250 ms
    began = time.monotonic()
    with Leases(60, store.renew).held("s", "load", "me", heartbeats):
        number = 0
        while len(store.reports) < 3:
            assert time.monotonic() - began < 20
            heartbeats.report(number := number + 1)
            time.sleep(0.001)
        assert time.monotonic() - began >= 3 * 0.25
    assert all(report is not None for report in store.reports), "no lease was due"


def test_who_reports_nothing_is_renewed_like_any_other() -> None:
    store, heartbeats = Store(), Heartbeats(timeout=1)
    with Leases(1.5, store.renew).held("s", "load", "me", heartbeats):
        wait_for(lambda: len(store.reports) >= 2, 10, "the lease is renewed")
    assert set(store.reports) == {None}


def test_a_claim_that_is_due_sooner_wakes_the_thread() -> None:
    store, soon = Store(), Heartbeats(timeout=1)
    leases = Leases(600, store.renew)
    with leases.held("s", "slow", "other"):
        wait_for(lambda: leases._wakes_at is not None, 10, "the thread sleeps for minutes")
        with leases.held("s", "load", "me", soon):
            soon.report(1)
            wait_for(lambda: bool(store.reports), 10, "the report is stored")


@pytest.mark.parametrize("status", [ClaimStatus.UNWANTED, ClaimStatus.LOST])
def test_a_claim_that_does_not_stand_cancels_its_step(status: ClaimStatus) -> None:
    store, heartbeats = Store(status), Heartbeats(timeout=1)
    with Leases(1, store.renew).held("s", "load", "me", heartbeats):

        def is_cancelled() -> bool:
            try:
                heartbeats.report(1)
            except StepCancelled:
                return True
            return False

        wait_for(is_cancelled, 10, "it is told")


def test_what_could_not_be_stored_is_stored_later() -> None:
    heartbeats, stored = Heartbeats(timeout=1), threading.Event()
    tries = 0

    def renew(saga_id: str, step: str, owner: str, report: Report | None) -> ClaimStatus:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise OSError("the database is away")
        assert report is not None
        assert report.details == "1"
        stored.set()
        return ClaimStatus.WANTED

    with Leases(60, renew).held("s", "load", "me", heartbeats):
        heartbeats.report(1)
        assert stored.wait(10)


# -- all of it, inline ----------------------------------------------------------------------------------------------


class Import:
    """Loads rows, and breaks at one of them."""

    def __init__(self, breaks_at: int | None = None, *, for_good: bool = False) -> None:
        self.breaks_at = breaks_at
        self.for_good = for_good
        self.loaded: list[tuple[int, int]] = []
        self.unloaded: list[Any] = []

    def load(self, step: StepContext) -> int:
        for row in range(step.heartbeat_details or 0, 5):
            if row == self.breaks_at and (step.attempt == 1 or self.for_good):
                raise RuntimeError("broken")
            self.loaded.append((step.attempt, row))
            step.heartbeat(row + 1)
            step.progress(row + 1, 5)
        return len(self.loaded)

    def unload(self, step: StepContext) -> None:
        self.unloaded.append(step.heartbeat_details)

    def saga(self) -> Saga:
        return saga_of(self)


def saga_of(rows: Import) -> Saga:
    retry = Retry(max_attempts=2, delay=1, jitter=0)
    return Saga("import", Step("load", rows.load, compensation=rows.unload, retry=retry, heartbeat_timeout=60))


def test_an_attempt_that_failed_is_resumed() -> None:
    rows = Import(breaks_at=3)
    handle = Inline().start(rows.saga())
    assert handle.status is SagaStatus.COMPLETED
    assert rows.loaded == [(1, 0), (1, 1), (1, 2), (2, 3), (2, 4)]
    assert handle.progress == {"load": StepProgress(5, 5)}


def test_a_compensation_knows_how_far_it_came() -> None:
    rows = Import(breaks_at=3, for_good=True)
    handle = Inline().start(rows.saga())
    assert handle.status is SagaStatus.COMPENSATED
    assert rows.unloaded == [3]


def test_items_report_too() -> None:
    seen: list[Any] = []

    def load(item: int, step: StepContext) -> int:
        seen.append((item, step.heartbeat_details))
        step.heartbeat(item)
        if step.attempt == 1:
            raise RuntimeError("broken")
        return item

    retry = Retry(max_attempts=2, delay=1, jitter=0)
    each = Each("load", load, compensation=None, over=lambda: [7, 8], retry=retry, heartbeat_timeout=60)
    assert Inline().start(Saga("import", each)).status is SagaStatus.COMPLETED
    assert sorted(seen, key=str) == [(7, 7), (7, None), (8, 8), (8, None)]


def test_a_context_made_by_hand_takes_reports() -> None:
    context = StepContext(
        saga="s", saga_id="1", key="k", step="load", attempt=1, correlation_id="1", started_at=START,
        _now=lambda: START, _open_session=lambda: pytest.fail("no session"), _emit=lambda message, key: None,
    )  # fmt: skip
    context.heartbeat(3)
    context.progress(3, 9)
    assert context.heartbeat_details is None
