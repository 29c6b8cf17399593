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
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from celery import Celery, Task
from celery.backends.base import DisabledBackend
from celery.canvas import Signature, maybe_signature
from celery.exceptions import Ignore, Retry

from sagas.checkpoints import Direction
from sagas.definition import BoundStep, Saga
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
from sagas.orchestrator import Claim, Next, Orchestrator
from sagas.plan import Plan
from sagas.transitions import Verdict

__all__ = ["FAIL", "JOIN", "Canvas", "task_id", "task_name"]

logger = logging.getLogger(__name__)

JOIN = "sagas.join"
FAIL = "sagas.fail"

#: Seconds until a message that found no database tries again. Well below any broker's visibility timeout.
_STORE_PAUSE = 5

#: Seconds for which a worker runs one step after another of a saga before it lets the broker choose again.
_LONGEST_FOLLOW_ON = 5.0

#: How a task's end is called in Celery's events, by its state.
_TOLD = {"FAILURE": "failed", "RETRY": "retried"}

#: What a header task returns to say that its stage is closed, so that the join is sent.
_CLOSED = Verdict.CLOSED.value


def task_name(saga: Saga, step: str, direction: Direction) -> str:
    """Return the name of the Celery task that runs a step, or undoes it."""
    return f"{saga.name}.{step}" if direction is Direction.FORWARD else f"{saga.name}.{step}.undo"


def task_id(saga_id: str, step: str, direction: Direction, dispatch: int, helper: str | None = None) -> str:
    """Return the id of the Celery task of a step, or with `helper` of the `JOIN` or `FAIL` that goes with it.

    A message keeps its id when it is delivered again. Each dispatch has ids of its own, so that a task which somebody
    revoked can be sent anew.

    >>> task_id("0198", "pay", Direction.BACKWARD, 2)
    '0198:pay:undo:2'
    """
    if helper is not None:
        return f"{saga_id}:{helper}:{step}:{dispatch}"
    return f"{saga_id}:{step}:{dispatch}" if direction is Direction.FORWARD else f"{saga_id}:{step}:undo:{dispatch}"


class Canvas:
    """Renders plans into Celery's primitives, and owns the tasks that they are made of."""

    def __init__(self, app: Celery, orchestrator: Orchestrator) -> None:
        self.app = app
        self.orchestrator = orchestrator
        self._joins = _Joins(app)
        self._owners: dict[str, str] = {}  # task name -> saga name
        self._queues: frozenset[str] = frozenset()  # that this process, being a worker, serves
        self._sends_events = False
        self._routes: dict[str, str] = {}
        self._task(JOIN, self._join)
        self._task(FAIL, self._fail)

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

    # -- sending ------------------------------------------------------------------------------------------------

    def launch(self, plan: Plan | None, *, probe: datetime | None = None) -> None:
        """Send a plan on its way. Raises kombu's `OperationalError` when the broker does not answer.

        `probe`: when this is sent. Whoever receives it notes that all messages of its task from before have come.
        """
        if plan:
            first, *rest = self.render(plan)
            if probe is not None:
                task = first.kwargs["header"][0] if isinstance(first, _Chord) else first
                task.kwargs["probe"] = probe.isoformat()
            # As `celery.chain` is sent, but without the copies that it makes of everything first: the rest travels in
            # the first message, and each worker sends the next.
            first.apply_async(chain=rest[::-1])

    def launch_or_leave(self, plan: Plan | None) -> None:
        """Send a plan on its way, or leave that to recovery: what counts is stored."""
        try:
            self.launch(plan)
        except Exception as error:  # noqa: BLE001 - whatever a transport raises
            assert plan is not None
            logger.warning("saga %s (%s): recovery will launch it: %r", plan.saga.name, plan.saga_id, error)

    def render(self, plan: Plan) -> list[Signature]:
        """Return the links of the chain that Celery is to run: a task for each step, a chord for a parallel stage."""
        return [self._stage(plan, names) for names in plan.stages]

    def _stage(self, plan: Plan, names: tuple[str, ...]) -> Signature:
        steps = [plan.saga.steps[name] for name in names]
        if len(plan.saga.stages[steps[0].stage]) == 1:
            return self._step(plan, steps[0])
        # The rest of a parallel stage is a chord even when one step of it is left: others may still be at work.
        join = self._signature(JOIN, plan, steps[0], link_error=[self._errback(plan, steps[0])])
        return _Chord.of([self._step(plan, step) for step in steps], join, self.app)

    def _step(self, plan: Plan, step: BoundStep) -> Signature:
        name = task_name(plan.saga, step.name, plan.direction)
        return self._signature(name, plan, step, link_error=[self._errback(plan, step)])

    def _errback(self, plan: Plan, step: BoundStep) -> Signature:
        return self._signature(FAIL, plan, step)

    def _signature(self, task: str, plan: Plan, step: BoundStep, **options: Any) -> Signature:
        if step.queue is not None:  # the helpers follow their step: its queue is the one that surely has a worker
            options["queue"] = step.queue
        kwargs = {"saga_id": plan.saga_id, "step": step.name, "epoch": plan.epoch}
        helper = task if task in (JOIN, FAIL) else None
        id_ = task_id(plan.saga_id, step.name, plan.direction, plan.dispatch, helper)
        return self.app.tasks[task].signature(kwargs=kwargs, immutable=True, task_id=id_, **options)

    # -- receiving ----------------------------------------------------------------------------------------------

    def _task(self, name: str, body: Callable[[Task, str, str, int], str]) -> None:
        def run(task: Task, *, saga_id: str, step: str, epoch: int, probe: str | None = None) -> str:
            if probe is not None:
                self.orchestrator.arrived(name, datetime.fromisoformat(probe))
            return body(task, saga_id, step, epoch)

        # bind=True also makes Celery send an errback as a message of its own instead of calling it inline.
        task = self.app.task(
            run,
            name=name,
            bind=True,
            acks_late=True,
            reject_on_worker_lost=True,
            acks_on_failure_or_timeout=True,
            ignore_result=True,
            store_errors_even_if_ignored=False,
            serializer="json",
            max_retries=None,
            throws=(StepFailed,),
            shared=False,
        )
        task.sagas_task = True
        task.backend = self._joins

    def _perform(self, task: Task, saga_id: str, step: str, epoch: int) -> str:
        perform = self.orchestrator.perform
        handed: _Handed | None = getattr(task.request, "sagas_handed", None)
        if handed is not None:
            options: dict[str, Any] = {"claim": handed.claim, "following": handed.following}
            handed.next = self._ask(task, lambda: perform(saga_id, step, epoch, **options))
            return self._answer(handed.next, saga_id, step)
        rest, until = task.request.chain or [], time.monotonic() + _LONGEST_FOLLOW_ON
        following = self._following(rest, until)
        next_ = self._ask(task, lambda: perform(saga_id, step, epoch, following=following))
        if next_.claim is not None:
            return self._follow_on(task, next_, rest, until)
        # It was here before, and its worker may have died between the checkpoint and sending what comes next. Of two
        # messages for one step, on the other hand, the second must not send that once more.
        again = bool(task.request.delivery_info.get("redelivered") or task.request.retries)
        if task.request.chord and again and next_.verdict in (Verdict.CONTINUE, Verdict.SETTLED, Verdict.GO_AWAY):
            joined = self._ask(task, lambda: self.orchestrator.join(saga_id, step, epoch))
            if joined.verdict is not Verdict.GO_AWAY:
                return _CLOSED
        if next_.verdict is Verdict.SETTLED and not again:
            raise Ignore(next_.note)
        return self._answer(next_, saga_id, step)

    # -- following on: the next step in the same worker ---------------------------------------------------------

    def prepare(self, *, queues: Iterable[str], sends_events: bool) -> None:
        """Tell a worker's canvas, before its pool is started, what the worker serves."""
        self._queues = frozenset(queues)
        self._sends_events = sends_events

    def _following(self, rest: list[Any], until: float) -> str | None:
        """Return the next step of the chain, if this worker serves its queue and is not at it for too long."""
        if not rest or time.monotonic() > until:
            return None
        signature = rest[-1]
        task = self.app.tasks.get(signature["task"])
        if signature["subtask_type"] or task is None or task.rate_limit:
            return None
        queue = signature["options"].get("queue") or self._routed_to(task.name)
        step: str | None = signature["kwargs"].get("step")
        return step if queue in self._queues else None

    def _routed_to(self, name: str) -> str:
        if name not in self._routes:
            queue = self.app.amqp.router.route({}, name)["queue"]
            self._routes[name] = getattr(queue, "name", queue)
        return self._routes[name]

    def _follow_on(self, task: Task, next_: Next, rest: list[Any], until: float) -> str:
        """Run the steps that are claimed already, each as the task that it is, without the broker."""
        while next_.claim is not None:
            signature = rest.pop()
            handed = _Handed(next_.claim, self._following(rest, until))
            self._run_here(task, signature, handed)
            if handed.next is None or handed.next.verdict is not Verdict.CONTINUE:
                task.request.chain = None  # it failed, or waits: its own task has seen to what comes of that
                return str(Verdict.PARTED.value)
            next_ = handed.next
        return str(Verdict.CONTINUE.value)

    def _run_here(self, task: Task, signature: Any, handed: _Handed) -> None:
        """Run a task through Celery's own tracer: signals, logs, errbacks, and events if somebody watches."""
        options, outer = signature["options"], task.request
        request = {
            "id": options["task_id"],
            "task": signature["task"],
            "root_id": outer.root_id,
            "parent_id": outer.id,
            "correlation_id": options["task_id"],
            "errbacks": options["link_error"],
            "hostname": outer.hostname,
            "delivery_info": outer.delivery_info,
            "retries": 0,
            "sagas_handed": handed,
        }
        about = {key: request[key] for key in ("root_id", "parent_id", "retries")}
        kwargs = repr(signature["kwargs"])
        self._tell(request, "received", name=request["task"], args="()", kwargs=kwargs, eta=None, expires=None, **about)
        self._tell(request, "started")
        trace = self.app.tasks[signature["task"]].__trace__
        result, info, runtime, _ = trace(options["task_id"], (), signature["kwargs"], request)
        if info is None:
            self._tell(request, "succeeded", result=repr(result), runtime=runtime)
        elif info.state in _TOLD:
            self._tell(request, _TOLD[info.state], exception=repr(info.retval), traceback=None)

    def _tell(self, request: dict[str, Any], kind: str, **fields: Any) -> None:
        """Tell Flower what a worker's main process tells of the tasks that it receives."""
        if not self._sends_events:
            return
        try:
            with self.app.events.default_dispatcher(hostname=request["hostname"]) as events:
                events.send(f"task-{kind}", uuid=request["id"], **fields)
        except Exception as error:  # noqa: BLE001 - nothing that is only shown may fail a step
            logger.warning("event task-%s of %s was not sent: %r", kind, request["id"], error)

    def _join(self, task: Task, saga_id: str, step: str, epoch: int) -> str:
        return self._answer(self._ask(task, lambda: self.orchestrator.join(saga_id, step, epoch)), saga_id, step)

    def _fail(self, task: Task, saga_id: str, step: str, epoch: int) -> str:
        next_ = self._ask(task, lambda: self.orchestrator.report(saga_id, step, epoch))
        if next_.verdict is Verdict.LAUNCH:
            self.launch_or_leave(next_.plan)
        return str(next_.verdict.value)

    def _ask(self, task: Task, question: Any) -> Next:
        try:
            answer: Next = question()
        except (StoreUnavailable, StoreRefused) as error:
            if getattr(task.request, "sagas_handed", None) is not None:
                # It was followed on with: there is no message that could be put off, and its claim is dead by now.
                logger.warning("%s: recovery will take it up: %s", task.request.id, error)
                raise Ignore from error
            raise task.retry(exc=error, countdown=_STORE_PAUSE) from error
        except (DefinitionMissing, PayloadUnreadable) as error:
            # Not a failure of the saga: a worker with the right code, or the right key, can bring it on.
            logger.error("%s", error)  # noqa: TRY400 - the message is the whole story
            raise Ignore from error
        except SagaNotFound as error:
            logger.warning("a message for a saga that is gone: %s", error)
            raise Ignore from error
        return answer

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
            case Verdict.LAUNCH:
                self.launch_or_leave(next_.plan)
            case _:
                logger.debug("saga %s, step %s: nothing to do: %s", saga_id, step, next_.note)
        raise Ignore(next_.note)


@dataclass(slots=True)
class _Handed:
    """What one step hands to the next that runs in the same worker, and gets back from it."""

    claim: Claim
    following: str | None
    next: Next | None = None


class _Joins(DisabledBackend):  # type: ignore[misc]
    """The "result backend" of saga tasks. It stores nothing; it sends the join of a chord when SQL says it is closed.

    Having a backend of their own also keeps saga tasks independent of the app's: one that is down loses errbacks.
    """

    def on_chord_part_return(self, request: Any, _state: str, result: Any, **_: Any) -> None:
        if result == _CLOSED:
            maybe_signature(request.chord, app=self.app).apply_async()


@Signature.register_type("sagas.chord")
class _Chord(Signature):  # type: ignore[misc]
    """A chord that counts nothing: the checkpoint that closes a stage decides who sends the body.

    Not a subclass of Celery's: that one insists on a result backend, which it would count the header in.
    """

    @classmethod
    def of(cls, header: Sequence[Signature], body: Signature, app: Celery) -> _Chord:
        parts = {"header": list(header), "body": body}
        return cls("sagas.chord", kwargs=parts, immutable=True, subtask_type="sagas.chord", app=app)

    @classmethod
    def from_dict(cls, d: Any, app: Celery | None = None) -> _Chord:
        return cls(d, app=app)

    def apply_async(self, _args: Any = None, _kwargs: Any = None, *, chain: Any = None, **_: Any) -> Any:
        # The rest of the chain goes with the body, and every header task carries the body along.
        body = maybe_signature(self.kwargs["body"], app=self.app)
        if chain:
            body = body.clone(chain=chain)
        sent = [maybe_signature(task, app=self.app).apply_async(chord=body) for task in self.kwargs["header"]]
        return sent[0]


def check_app(app: Celery) -> None:
    """Refuse an app that would accept pickle: a message must not be able to run code."""
    accepted: Mapping[str, Any] | list[str] = app.conf.accept_content or []
    if unsafe := [kind for kind in accepted if kind in ("pickle", "application/x-python-serialize")]:
        raise ConfigurationError(
            f"accept_content has {unsafe[0]!r}; sagas travel as JSON, set accept_content = ['json']"
        )
