"""Check the app's settings and the definitions of its sagas. This contacts no server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from celery.exceptions import QueueNotFound

from sagas.app import Sagas
from sagas.checkpoints import Direction
from sagas.doctor.findings import Finding, ok, problem, warning
from sagas.errors import ConfigurationError
from sagas.task_names import FAIL, JOIN, task_name

__all__ = ["examine", "longest_step", "needed_queues"]


def examine(sagas: Sagas) -> Iterator[Finding]:
    """Check the settings and the definitions."""
    yield from _definitions(sagas)
    yield from _refusals(sagas)
    yield from _settings(sagas.app.conf)
    yield from _timeouts(sagas)


def _definitions(sagas: Sagas) -> Iterator[Finding]:
    known = sagas.orchestrator.sagas
    if not known and sagas.events is None:
        yield problem(
            "no-definitions",
            "no sagas are registered with this app, so it cannot run any",
            "register every saga that this database stores: Sagas(app, store, [place_order, ...])",
        )
    elif known:
        yield ok("definitions", "sagas: " + ", ".join(f"{name} {version}" for name, version in sorted(known)))


def _refusals(sagas: Sagas) -> Iterator[Finding]:
    """Find what `start()` and workers refuse."""
    try:
        sagas.check()
    except ConfigurationError as error:
        yield problem("refused", str(error), "fix this first: no saga can be started, and no worker starts")


def _settings(conf: Any) -> Iterator[Finding]:
    if conf.task_always_eager:
        yield problem(
            "eager",
            "task_always_eager is on: each saga runs inside start(), and an interrupted saga is not recovered",
            "turn it off; it is only for tests",
        )
    if conf.worker_prefetch_multiplier != 1:
        yield warning(
            "prefetch",
            f"worker_prefetch_multiplier is {conf.worker_prefetch_multiplier}: prefetched messages wait behind a long "
            "step while other workers are idle, and for recovery when their worker is killed",
            "set worker_prefetch_multiplier = 1",
        )


def _timeouts(sagas: Sagas) -> Iterator[Finding]:
    lease, limit = sagas.orchestrator.timing.lease, sagas.app.conf.task_time_limit
    for (name, version), saga in sorted(sagas.orchestrator.sagas.items()):
        steps = saga.steps.values()
        short = [
            f"{step.name} ({step.step.timeout:g} s)"
            for step in steps
            if step.step.timeout <= lease and step.retry.max_attempts == 1
        ]
        if short:
            yield warning(
                "lease",
                f"saga {name} {version}: {', '.join(short)} has one attempt and a timeout no longer than "
                f"lease={lease:g} s, so a killed worker uses up that attempt",
                "set a timeout above the lease, a shorter Sagas(lease=), or more attempts",
            )
        cut = [f"{step.name} ({step.step.timeout:g} s)" for step in steps if limit and limit <= step.step.timeout]
        if cut:
            yield warning(
                "time-limit",
                f"saga {name} {version}: task_time_limit={limit:g} s kills the worker process before the timeout of "
                f"{', '.join(cut)} expires; a step that is killed too often is given up as in doubt",
                "set task_time_limit above the longest timeout, or remove it: Step(timeout=) works on every pool",
            )


def longest_step(sagas: Sagas) -> float:
    """Return the longest timeout of all steps, in seconds; 0 if there are no steps."""
    return max((s.step.timeout for saga in sagas.orchestrator.sagas.values() for s in saga.steps.values()), default=0.0)


def _steps(saga: Any) -> Iterator[tuple[str, Any]]:
    for step in saga.steps.values():
        yield task_name(saga, step.name, Direction.FORWARD), step
        if step.compensation is not None:
            yield task_name(saga, step.name, Direction.BACKWARD), step


def needed_queues(sagas: Sagas) -> dict[str, set[str]]:
    """Return the queues that the sagas' tasks are sent to, each with its tasks, as `canvas` sends them."""
    needed: dict[str, set[str]] = {}
    for saga in sagas.orchestrator.sagas.values():
        for task, step in _steps(saga):
            helpers = [FAIL, *([JOIN] if len(saga.stages[step.stage]) > 1 else [])]
            for sent in (task, *helpers):
                with suppress(QueueNotFound):  # `start()` refuses it
                    needed.setdefault(sagas.canvas.queue_of(sent, step.queue), set()).add(sent)
    return needed
