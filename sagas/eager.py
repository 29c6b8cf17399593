"""`task_always_eager`: sagas that run within `start()`, for tests of an app."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from celery import Celery

from sagas.checkpoints import SagaStatus
from sagas.endings import meant
from sagas.engine import Next
from sagas.errors import ConfigurationError, StepSignal
from sagas.mailbox import HEADER, Mailbox
from sagas.orchestrator import Orchestrator
from sagas.plan import Plan
from sagas.runner import Runner
from sagas.task_names import task_id, task_name

__all__ = ["Eager"]


class Eager:
    """Runs a saga to its end within `dispatch`, for `task_always_eager`: each step as the task that it is."""

    def __init__(self, app: Celery, engine: Orchestrator) -> None:
        self._app = app
        self._runner = Runner(
            engine.store,
            timing=engine.timing,
            deliver=self._deliver,
            max_payload=engine.max_payload,
            events=engine.events,
            observers=engine.observers,
            redact=engine.redact,
        )
        self._runner.orchestrator.sagas = engine.sagas
        self._flaws: dict[str, BaseException] = {}  # by task: what those raised that failed, and did not mean to say

    def run(self, plan: Plan) -> None:
        record = self._runner.finish(plan.saga_id, plan)
        if record.status is not SagaStatus.COMPLETED and self._flaws and self._app.conf.task_eager_propagates:
            raise next(iter(self._flaws.values()))

    def run_many(self, plans: Iterable[Plan]) -> None:
        """Run all of them, whatever becomes of each, and raise the first failure then: nobody else would run them."""
        failures: list[Exception] = []
        for plan in plans:
            try:
                self.run(plan)
            except Exception as failure:  # noqa: BLE001 - a step may raise anything
                failures.append(failure)
            self._flaws.clear()
        if failures:
            raise failures[0]

    def _deliver(self, plan: Plan, step: str) -> Next | None:
        mailbox = Mailbox(None, None, runner=self._runner)
        name, id_ = task_name(plan.saga, step, plan.direction), task_id(plan.saga_id, step, plan.direction, plan.epoch)
        kwargs = {"saga_id": plan.saga_id, "step": step, "epoch": plan.epoch}
        ended = self._app.tasks[name].apply(kwargs=kwargs, task_id=id_, headers={HEADER: mailbox}, throw=False)
        if mailbox.next is None:  # the task's base class or a signal kept it from running, or the database
            raise mailbox.error or _not_run(name, ended.result)
        raised = mailbox.next.error
        if raised is None:
            self._flaws.pop(name, None)
        elif not isinstance(meant(raised), StepSignal):
            self._flaws[name] = raised
        return mailbox.next


def _not_run(task: str, result: Any) -> BaseException:
    if isinstance(result, BaseException):
        return result
    return ConfigurationError(f"task {task} was not run: the __call__ of its base class returned {result!r} instead")
