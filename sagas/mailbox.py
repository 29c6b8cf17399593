"""The mailbox of a step that runs without a message of its own: in the worker of the step before it, or eagerly.

Celery's tracer takes a task's arguments and gives back a state, and can carry nothing else. So who runs a step in this
way puts a `Mailbox` into the request of its task. The task finds its claim in it, and leaves in it what came of the
step. No message can carry one: it never leaves the process.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

from celery import Task

from sagas.engine import Next
from sagas.execution import Claim, Turn
from sagas.runner import Runner

__all__ = ["HEADER", "Mailbox", "mailbox_of"]

#: Where a request has its mailbox.
HEADER = "sagas_mailbox"


@dataclass(slots=True)
class Mailbox:
    """What one step hands to the next that runs in the same worker, and gets back from it."""

    claim: Claim | None
    following: str | None
    next: Next | None = None
    runner: Runner | None = None  #: who runs it instead of a worker
    error: BaseException | None = None  #: what kept that one from running it
    turn: Turn = nullcontext  #: what its function waits for


def mailbox_of(task: Task) -> Mailbox | None:
    """Return what a task that no message brought was mailbox. Of a message anybody may have written the headers."""
    request = task.request
    mailbox = getattr(request, HEADER, None) or (request.headers or {}).get(HEADER)
    return mailbox if isinstance(mailbox, Mailbox) else None
