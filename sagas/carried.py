"""Celery tasks carry the cause of the code that sent them, for handlers whose tasks start sagas."""

from __future__ import annotations

from typing import Any

from celery import signals

from sagas.causes import CURRENT, Cause

__all__ = ["HEADER"]

#: The header of a task's message that contains its cause.
HEADER = "sagas_cause"

_TOKEN = "_sagas_cause_before"  # noqa: S105 - the token of a context variable


@signals.before_task_publish.connect(weak=False)  # type: ignore[untyped-decorator]
def _give(headers: dict[str, Any] | None = None, **_: Any) -> None:
    cause = CURRENT.get()
    if cause is not None and headers is not None:
        headers.setdefault(HEADER, cause.encode())


@signals.task_prerun.connect(weak=False)  # type: ignore[untyped-decorator]
def _take(task: Any = None, **_: Any) -> None:
    text = getattr(task.request, HEADER, None)
    cause = Cause.decode(text) if isinstance(text, str) else None
    if cause is not None:
        setattr(task.request, _TOKEN, CURRENT.set(cause))


@signals.task_postrun.connect(weak=False)  # type: ignore[untyped-decorator]
def _put_back(task: Any = None, **_: Any) -> None:
    token = getattr(task.request, _TOKEN, None)
    if token is not None:
        delattr(task.request, _TOKEN)
        CURRENT.reset(token)
