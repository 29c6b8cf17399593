"""The steps that a worker runs without a message of their own: it goes on along the chain of the step before them.

A step is claimed in the write that ends the one before it. It runs as the task that it is, through Celery's own tracer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

from celery import Celery, Task

from sagas.engine import Next
from sagas.execution import Claim, Turn
from sagas.mailbox import HEADER, Mailbox

__all__ = ["InlineSteps", "is_timed"]

logger = logging.getLogger(__name__)

#: How a task's end is called in Celery's events, by its state.
_TOLD = {"FAILURE": "failed", "RETRY": "retried"}


class InlineSteps:
    """Runs the steps of chains in this process, if it is a worker that serves their queues."""

    def __init__(self, app: Celery, queue_of: Callable[[str], str]) -> None:
        self._app = app
        self._queue_of = queue_of
        self._queues: frozenset[str] = frozenset()  # that this process, being a worker, serves
        self._sends_events = False
        self._routes: dict[str, str] = {}

    def prepare(self, *, queues: Iterable[str], sends_events: bool) -> None:
        """Say what a worker serves, before its pool is started."""
        self._queues = frozenset(queues)
        self._sends_events = sends_events

    def following(self, rest: list[Any], until: float) -> str | None:
        """Return the next step of the chain, if this worker serves its queue and is not at it for too long."""
        if not rest or time.monotonic() > until:
            return None
        signature = rest[-1]
        task = self._app.tasks.get(signature["task"])
        if signature["subtask_type"] or task is None or task.rate_limit or is_timed(task):
            return None
        queue = signature["options"].get("queue") or self._routed_to(task.name)
        step: str | None = signature["kwargs"].get("step")
        return step if queue in self._queues else None

    def _routed_to(self, name: str) -> str:
        if name not in self._routes:
            self._routes[name] = self._queue_of(name)
        return self._routes[name]

    def run(
        self,
        request: Any,
        rest: list[Any],
        claim: Claim | None,
        following: Callable[[], str | None],
        turn_of: Callable[[str], Turn] = lambda _task: nullcontext,
    ) -> Next | None:
        """Run the steps of a chain, each as the task that it is, for as long as each has claimed the next one.

        `request`: of the task that runs them. `rest`: the chain, last step first; what has not run stays in it.
        `claim`: on the first step, if there is one. `following`: says which step is to be claimed with the end of
        another. Returns what came of the last one that ran, or None if its task was cut off.
        """
        while True:
            signature = rest.pop()
            mailbox = Mailbox(claim, following(), turn=turn_of(signature["task"]))
            self._run_one(request, signature, mailbox)
            if mailbox.next is None or mailbox.next.claim is None:
                return mailbox.next
            claim = mailbox.next.claim

    def _run_one(self, outer: Any, signature: Any, mailbox: Mailbox) -> None:
        """Run a task through Celery's own tracer: signals, logs, errbacks, and events if somebody watches.

        `outer`: the request of the task that runs it.
        """
        options = signature["options"]
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
            HEADER: mailbox,
        }
        about = {key: request[key] for key in ("root_id", "parent_id", "retries")}
        kwargs = repr(signature["kwargs"])
        self._tell(request, "received", name=request["task"], args="()", kwargs=kwargs, eta=None, expires=None, **about)
        self._tell(request, "started")
        trace = self._app.tasks[signature["task"]].__trace__
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
            with self._app.events.default_dispatcher(hostname=request["hostname"]) as events:
                events.send(f"task-{kind}", uuid=request["id"], **fields)
        except Exception as error:  # noqa: BLE001 - nothing that is only shown may fail a step
            logger.warning("event task-%s of %s was not sent: %r", kind, request["id"], error)


def is_timed(task: Task) -> bool:
    """Tell whether Celery limits the time of a task: that is of one message, so it is for one step alone."""
    return bool(task.time_limit or task.soft_time_limit)
