"""How Celery carries a plan: a chain of the steps' tasks, a chord for a parallel stage, link_error on each of them.

::

    chain(place_order.reserve_stock,
          chord([place_order.authorize_card, place_order.quote_shipping], sagas.join),
          place_order.capture_payment, ...)

A message is only a wake-up: it says which saga, step and epoch, and whoever receives it asks the database whether
there is anything to do. Lost or doubled messages therefore cost time, and nothing else.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from celery import Celery, Task
from celery.canvas import Signature
from celery.exceptions import Ignore, QueueNotFound, Retry
from kombu.messaging import Producer

from sagas.batches import SIDE_BY_SIDE, Batches, Turns, plans_of
from sagas.batches import run as run_batch
from sagas.binding import BoundStep
from sagas.checkpoints import Direction, node_of
from sagas.chords import CLOSED, Chord, Joins
from sagas.definition import Saga
from sagas.eager import Eager
from sagas.endings import ends_process
from sagas.engine import Next
from sagas.errors import (
    ConfigurationError,
    DefinitionMissing,
    DuplicateName,
    PayloadUnreadable,
    SagaNotFound,
    StepFailed,
    StoreRefused,
    StoreUnavailable,
)
from sagas.inline_steps import InlineSteps, is_timed
from sagas.mailbox import Mailbox, mailbox_of
from sagas.orchestrator import Orchestrator
from sagas.plan import Plan, Stage
from sagas.sharing import SharedMessages
from sagas.task_names import BATCH, FAIL, JOIN, task_id, task_name
from sagas.threads import THREADS, is_in_loop
from sagas.transitions import Verdict

__all__ = ["Canvas"]

logger = logging.getLogger(__name__)


#: Seconds until a message that found no database tries again. Well below any broker's visibility timeout.
_STORE_PAUSE = 5

#: Seconds for which a worker runs one step after another of a saga before it lets the broker choose again.
_LONGEST_FOLLOW_ON = 5.0

#: How often workers pass a message on that they do not have the code for, and the seconds before the first time. That
#: doubles each time.
_MOST_PASSES, _FIRST_PASS = 8, 0.1

#: What the tasks of sagas rely on, whatever their base class, the configuration or `task_annotations` say: messages may
#: come twice, and are never tried again by Celery, for attempts are counted in SQL.
_FIXED: Mapping[str, Any] = {
    "acks_late": True,
    "reject_on_worker_lost": True,
    "retry_on_worker_lost": False,
    "acks_on_failure_or_timeout": True,
    "acks_on_failure": True,
    "acks_on_timeout": True,
    "ignore_result": True,
    "store_errors_even_if_ignored": False,
    "store_eager_result": False,
    "serializer": "json",
    "max_retries": None,
    "autoretry_for": (),
    "expires": None,
    "throws": (StepFailed, DefinitionMissing),
}

#: What the helpers must not be held up by, or ended by, either.
_UNLIMITED: Mapping[str, Any] = {"rate_limit": None, "time_limit": None, "soft_time_limit": None}


class Canvas:
    """Renders plans into Celery's primitives, and owns the tasks that they are made of."""

    def __init__(self, app: Celery, orchestrator: Orchestrator, batches: Batches) -> None:
        self.app = app
        self.orchestrator = orchestrator
        self.batches = batches
        self._took: dict[str, float] = {}  # seconds of the last function of each task that ran in a batch
        orchestrator.send = self.dispatch_or_leave
        orchestrator.send_many = self.dispatch_many
        orchestrator.follow_up = self._follow_up
        self._joins = Joins(app)
        self.shared = SharedMessages(app, batches, lambda plan, producer: self.dispatch(plan, producer=producer))
        self._owners: dict[str, str] = {}  # task name -> saga name
        self.inline = InlineSteps(app, self.queue_of)
        self._routable: set[Saga] = set()
        self._task(JOIN, self._join, **_UNLIMITED)
        self._task(FAIL, self._fail, **_UNLIMITED)

        def batch(task: Task, **message: Any) -> str:
            return self._batch(task, message)

        self._helper(BATCH, batch, _UNLIMITED)

    def register(self, saga: Saga) -> None:
        """Give each step of a saga its Celery task. Versions of one saga share the tasks of steps of one name."""
        for step in saga.steps.values():
            for direction in Direction:
                if direction is Direction.BACKWARD and step.compensation is None:
                    continue
                name = task_name(saga, step.name, direction)
                owner = self._owners.setdefault(name, saga.name)
                if owner != saga.name or (name in self.app.tasks and not hasattr(self.app.tasks[name], "sagas_task")):
                    raise DuplicateName(f"saga {saga.name!r}, step {step.name!r}: there is another task named {name!r}")
                if name not in self.app.tasks:
                    self._task(name, self._perform)

    def check_queues(self, sagas: Iterable[Saga]) -> None:
        """Refuse sagas with a step whose message Celery would not send, because nobody declared its queue."""
        for saga in sagas:
            if saga in self._routable:
                continue
            for step in saga.steps.values():
                names = [task_name(saga, step.name, Direction.FORWARD), FAIL]
                names += [JOIN] * (len(saga.stages[step.stage]) > 1)
                names += [task_name(saga, step.name, Direction.BACKWARD)] * (step.compensation is not None)
                for name in names:
                    self._check_queue(saga, step, name)
            self._routable.add(saga)

    def _check_queue(self, saga: Saga, step: BoundStep, name: str) -> None:
        try:
            self.queue_of(name, step.queue)
        except QueueNotFound as error:
            why = "Step(queue=...) names it" if step.queue is not None else f"task_routes send {name} there"
            raise ConfigurationError(
                f"saga {saga.name!r}, step {step.name!r}: {error.args[0]}; {why}. Declare the queue in task_queues, "
                "name one that is there, or leave task_create_missing_queues on"
            ) from error

    def queue_of(self, name: str, queue: str | None = None) -> str:
        """Return the queue that Celery sends a task to. Raises its `QueueNotFound`."""
        named = queue or getattr(self.app.tasks[name], "queue", None)
        routed = self.app.amqp.router.route({"queue": named} if named else {}, name)["queue"]
        return str(getattr(routed, "name", routed))

    # -- sending ------------------------------------------------------------------------------------------------

    def dispatch(self, plan: Plan | None, *, probe: datetime | None = None, producer: Producer | None = None) -> None:
        """Send a plan on its way. Raises kombu's `OperationalError` when the broker does not answer.

        `probe`: when this is sent. Whoever receives it notes that all messages of its task from before have come.
        `producer`: what sends it, if not one of Celery's pool.
        """
        if not plan:
            return
        if self.app.conf.task_always_eager:
            Eager(self.app, self.orchestrator).run(plan)
        else:
            first, *rest = self.render(plan)
            if probe is not None:
                task = first.kwargs["header"][0] if isinstance(first, Chord) else first
                task.kwargs["probe"] = probe.isoformat()
            _send(first, rest, producer=producer)

    def dispatch_many(self, plans: Iterable[Plan], *, size: int | None = None) -> None:
        """Send plans on their way by one connection, or leave to recovery those that the broker does not take.

        `size`: sagas in one message at most, if other than `Batches.size`.
        """
        if self.app.conf.task_always_eager:
            Eager(self.app, self.orchestrator).run_many(plans)
            return
        try:
            self.shared.send_many(filter(None, plans), size or self.batches.size)
        except BaseException as error:
            if ends_process(error):
                raise
            logger.warning("recovery will dispatch the sagas that were not sent: %r", error)

    def dispatch_or_leave(self, plan: Plan | None) -> None:
        """Send a plan on its way, or leave that to recovery: what counts is stored.

        Threads that do so at the same moment share a message, if their sagas go on with the same step.
        """
        if not plan:
            return
        try:
            self.shared.send_with_others(plan)
        except BaseException as error:
            if self.app.conf.task_always_eager or ends_process(error):
                raise  # in eager mode there is no recovery, and the caller is who wants to know
            logger.warning("saga %s (%s): recovery will dispatch it: %r", plan.saga.name, plan.saga_id, error)

    def _follow_up(self, do: Callable[[], None]) -> None:
        """Bring other sagas on after a change, off the event loop if one runs here: that asks the database, too."""
        if self.app.conf.task_always_eager or not is_in_loop():
            do()
        else:
            THREADS.submit(do)

    def render(self, plan: Plan) -> list[Signature]:
        """Return the links of the chain that Celery is to run: a task for each step, a chord for a parallel stage."""
        return [self._stage(plan, stage) for stage in plan.stages]

    def _stage(self, plan: Plan, stage: Stage) -> Signature:
        first = stage.steps[0]
        if not stage.joined:
            return self._step(plan, first)
        # The rest of a parallel stage is a chord even when one step of it is left: others may still be at work.
        join = self._signature(JOIN, plan, first, link_error=[self._errback(plan, first)])
        return Chord.of([self._step(plan, step) for step in stage.steps], join, self.app)

    def _step(self, plan: Plan, step: str) -> Signature:
        name = task_name(plan.saga, node_of(step), plan.direction)
        return self._signature(name, plan, step, link_error=[self._errback(plan, step)])

    def _errback(self, plan: Plan, step: str) -> Signature:
        return self._signature(FAIL, plan, step)

    def _signature(self, task: str, plan: Plan, step: str, **options: Any) -> Signature:
        queue = plan.saga.steps[node_of(step)].queue
        if queue is not None:  # the helpers follow their step: its queue is the one that surely has a worker
            options["queue"] = queue
        kwargs = {"saga_id": plan.saga_id, "step": step, "epoch": plan.epoch}
        helper = task if task in (JOIN, FAIL) else None
        id_ = task_id(plan.saga_id, step, plan.direction, plan.dispatch, helper)
        return self.app.tasks[task].signature(kwargs=kwargs, immutable=True, task_id=id_, **options)

    # -- receiving ----------------------------------------------------------------------------------------------

    def _task(self, name: str, body: Callable[[Task, str, str, int], str], **more: Any) -> None:
        def run(task: Task, *, saga_id: str, step: str, epoch: int, probe: str | None = None) -> str:
            if probe is not None:
                self.orchestrator.arrived(name, datetime.fromisoformat(probe))
            return body(task, saga_id, step, epoch)

        self._helper(name, run, more)

    def _helper(self, name: str, run: Callable[..., str], more: Mapping[str, Any]) -> None:
        # bind=True also makes Celery send an errback as a message of its own instead of calling it inline.
        fixed = {**_FIXED, **more}
        task = self.app.task(run, name=name, bind=True, shared=False, **fixed)
        for option, value in fixed.items():
            if getattr(task, option) != value:  # annotations come last in Celery; here they do not
                if option not in _UNLIMITED:
                    logger.warning(
                        "task %s: %s=%r of task_annotations is left out: sagas need %r",
                        name, option, getattr(task, option), value,
                    )  # fmt: skip
                setattr(task, option, value)
        task.sagas_task = True
        task.backend = self._joins

    def _perform(self, task: Task, saga_id: str, step: str, epoch: int) -> str:
        perform = self.orchestrator.perform
        mailbox = mailbox_of(task)
        if mailbox is not None and mailbox.runner is not None:
            return self._perform_eagerly(mailbox, saga_id, step, epoch)
        if mailbox is not None:
            options: dict[str, Any] = {
                "claim": mailbox.claim,
                "following": mailbox.following,
                "turn": mailbox.turn,
            }
            mailbox.next = self._ask(task, lambda: perform(saga_id, step, epoch, **options))
            return self._answer(mailbox.next, saga_id, step)
        rest, until = ([] if is_timed(task) else task.request.chain or []), time.monotonic() + _LONGEST_FOLLOW_ON
        following = self.inline.following(rest, until)
        next_ = self._ask(task, lambda: perform(saga_id, step, epoch, following=following))
        if next_.claim is not None:
            return self._follow_on(task, next_, rest, until)
        # It was here before, and its worker may have died between the checkpoint and sending what comes next. Of two
        # messages for one step, on the other hand, the second must not send that once more.
        again = _came_before(task.request)
        if task.request.chord and again and next_.verdict in (Verdict.CONTINUE, Verdict.SETTLED, Verdict.GO_AWAY):
            joined = self._ask(task, lambda: self.orchestrator.join(saga_id, step, epoch))
            if joined.verdict is not Verdict.GO_AWAY:
                return CLOSED
        if next_.verdict is Verdict.SETTLED and not again:
            raise Ignore(next_.note)
        return self._answer(next_, saga_id, step)

    def _perform_eagerly(self, mailbox: Mailbox, saga_id: str, step: str, epoch: int) -> str:
        assert mailbox.runner is not None
        try:
            mailbox.next = mailbox.runner.orchestrator.perform(saga_id, step, epoch)
        except BaseException as error:
            mailbox.error = error
            raise
        dispatches = mailbox.next.verdict is Verdict.DISPATCH  # that is for who carries it
        return str(Verdict.DISPATCH.value) if dispatches else self._answer(mailbox.next, saga_id, step)

    def _follow_on(self, task: Task, next_: Next, rest: list[Any], until: float) -> str:
        """Run the step that is claimed already, and those after it, and leave what is left to the chain of the task."""
        last = self.inline.run(task.request, rest, next_.claim, lambda: self.inline.following(rest, until))
        if last is None or last.verdict is not Verdict.CONTINUE:
            task.request.chain = None  # it failed, or waits: its own task has seen to what comes of that
            return str(Verdict.PARTED.value)
        return str(Verdict.CONTINUE.value)

    # -- a batch ------------------------------------------------------------------------------------------------

    def _batch(self, task: Task, message: Mapping[str, Any]) -> str:
        """Carry the sagas of a batch, and send those on their way that this worker does not carry to their ends."""
        saga = self.orchestrator.sagas.get((message["saga"], message["version"]))
        if saga is None:
            error = "saga {saga!r} version {version}: a batch came, and the running code has none".format(**message)
            logger.error(error)
            raise self._passed_on(task, DefinitionMissing(error))
        plans, turns = plans_of(saga, message), Turns(self.batches.concurrency, self._took)
        in_threads = message["side_by_side"] or threading.current_thread() is not threading.main_thread()
        side_by_side = SIDE_BY_SIDE if in_threads and self.orchestrator.store.shares_commits else 1
        request, first = task.request, self.shared.first_task(plans[0]).name
        again = _came_before(request)
        sent_on = run_batch(
            plans,
            lambda plan, alone: self._carry(request, plan, turns, again=again, alone=alone),
            turns,
            first,
            partial(self.dispatch_many, size=1),
            threads=max(side_by_side, self.batches.concurrency),
        )
        return f"{len(plans)} sagas, {sent_on} of them sent on"

    def _carry(self, request: Any, plan: Plan, turns: Turns, *, again: bool, alone: bool) -> None:
        """Run the steps of one saga of a batch for as long as they are quick, and send what is left of its chain."""
        rest = self.render(plan)[::-1]

        def following() -> str | None:
            stays = not rest or turns.is_quick(rest[-1]["task"], alone=alone)
            return self.inline.following(rest, turns.until) if stays else None

        last = self.inline.run(request, rest, None, following, lambda task: partial(turns.of, task))
        if last is None or not (last.verdict is Verdict.CONTINUE or (again and last.verdict is Verdict.SETTLED)):
            return  # it failed, waits, or is another worker's
        if rest:
            _send(rest[-1], rest[:-1][::-1])

    def _join(self, task: Task, saga_id: str, step: str, epoch: int) -> str:
        return self._answer(self._ask(task, lambda: self.orchestrator.join(saga_id, step, epoch)), saga_id, step)

    def _fail(self, task: Task, saga_id: str, step: str, epoch: int) -> str:
        next_ = self._ask(task, lambda: self.orchestrator.report(saga_id, step, epoch))
        if next_.verdict is Verdict.DISPATCH:
            self.dispatch_or_leave(next_.plan)
        return str(next_.verdict.value)

    def _ask(self, task: Task, question: Any) -> Next:
        try:
            answer: Next = question()
        except (StoreUnavailable, StoreRefused) as error:
            if mailbox_of(task) is not None:
                # It was followed on with: there is no message that could be put off, and its claim is dead by now.
                logger.warning("%s: recovery will take it up: %s", task.request.id, error)
                raise Ignore from error
            raise task.retry(exc=error, countdown=_STORE_PAUSE) from error
        except (DefinitionMissing, PayloadUnreadable) as error:
            # Not a failure of the saga: a worker with the right code, or the right key, can bring it on.
            logger.error("%s", error)  # noqa: TRY400 - the message is the whole story
            raise self._passed_on(task, error) from error
        except SagaNotFound as error:
            logger.warning("a message for a saga that is gone: %s", error)
            raise Ignore from error
        return answer

    @staticmethod
    def _passed_on(task: Task, error: Exception) -> Exception:
        """Give a message back to its queue, for a worker with other code, or leave it to recovery after some tries.

        During a deployment, workers with the old and with the new code read the same queues.
        """
        told: Exception = Ignore(str(error))
        if mailbox_of(task) is None and (passes := task.request.retries) < _MOST_PASSES:
            told = task.retry(exc=error, countdown=_FIRST_PASS * 2**passes, throw=False)
        return told

    def _answer(self, next_: Next, saga_id: str, step: str) -> str:
        """Turn a verdict into what Celery understands: a return lets the chain go on, `Ignore` ends it in silence."""
        match next_.verdict:
            case Verdict.CONTINUE | Verdict.SETTLED | Verdict.CLOSED | Verdict.PARTED:
                return str(next_.verdict.value)
            case Verdict.FAILED:
                state = next_.record.step(step)
                raise StepFailed(f"saga {next_.record.name!r} ({saga_id}), step {step!r} {state.status}: {next_.note}")
            case Verdict.RETRY:
                due_at = next_.record.step(step).due_at
                # Only shown, never sent: the wait is kept in SQL, where no broker can lose or double it.
                raise Retry(f"saga {saga_id}, step {step!r}: {next_.note}", when=due_at)
            case Verdict.DISPATCH:
                self.dispatch_or_leave(next_.plan)
            case _:
                logger.debug("saga %s, step %s: nothing to do: %s", saga_id, step, next_.note)
        raise Ignore(next_.note)


def _send(first: Signature, rest: Sequence[Signature], **options: Any) -> None:
    """Send the links of a chain.

    As `celery.chain` is sent, but without the copies that it makes of everything first: the rest travels in the first
    message, and each worker sends the next.
    """
    if not isinstance(first, Chord):  # what Flower shows of its arguments; Celery's own way to write them is slow
        options |= {"argsrepr": "()", "kwargsrepr": repr(first.kwargs)}
    first.apply_async(chain=rest[::-1], **options)


def _came_before(request: Any) -> bool:
    """Tell whether the message of a request has been delivered before."""
    return bool(request.delivery_info.get("redelivered") or request.retries)
