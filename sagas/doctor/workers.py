"""Check the workers that answer: the queues they consume, the sagas they can run, and their settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sagas.app import Sagas
from sagas.commands import command, worker_command
from sagas.control import COMMAND
from sagas.doctor.findings import Finding, ok, problem, warning
from sagas.doctor.setup import needed_queues
from sagas.task_names import FAIL, JOIN

__all__ = ["Worker", "ask", "check", "examine", "own"]

_WITHOUT_LIMITS = ("thread", "threads", "solo")


@dataclass(frozen=True, slots=True)
class Worker:
    """What a worker reports about itself."""

    name: str
    queues: frozenset[str]
    tasks: frozenset[str]
    about: Mapping[str, Any] | None  #: the reply of `sagas.control`; None if the worker does not know the command
    is_late: bool = False  #: it answered a ping, but not every query in time: the fields above may be empty


def examine(sagas: Sagas, timeout: float) -> Iterator[Finding]:
    """Query the workers and check their replies. `timeout`: seconds that they have to answer."""
    yield from check(sagas, ask(sagas, timeout))


def ask(sagas: Sagas, timeout: float) -> list[Worker]:
    """Query all workers. Those that do not answer a ping within `timeout` seconds are left out."""
    control = sagas.app.control
    names = sorted(control.inspect(timeout=timeout).ping() or {})
    if not names:
        return []
    # The names are known now, so the other queries need not wait for further replies.
    inspect = control.inspect(destination=names, timeout=timeout, limit=len(names))
    queues, tasks = inspect.active_queues() or {}, inspect.registered() or {}
    replies = control.broadcast(COMMAND, destination=names, reply=True, timeout=timeout, limit=len(names)) or ()
    # A worker that does not know the command replies with an error, one with another app's sagas with nothing.
    about = {name: answer for each in replies for name, answer in each.items()}
    return [
        Worker(
            name,
            frozenset(queue["name"] for queue in queues.get(name) or ()),
            frozenset(task.split(" ")[0] for task in tasks.get(name) or ()),
            about[name] if "definitions" in about.get(name, ()) else None,
            is_late=not (name in queues and name in tasks and name in about),
        )
        for name in names
    ]


def own(sagas: Sagas, workers: list[Worker]) -> list[Worker]:
    """Return the workers that belong to these sagas. Other apps may have workers on the same broker."""
    queues = set(needed_queues(sagas))
    names = {name for name, _ in sagas.orchestrator.sagas}
    events = set() if sagas.events is None else {subscription.queue for subscription in sagas.events.subscriptions}

    def is_ours(worker: Worker) -> bool:
        about = worker.about or {}
        return bool(
            queues & worker.queues
            or (sagas.app.main and about.get("app") == sagas.app.main)
            or names & {definition.rpartition(" ")[0] for definition in about.get("definitions", ())}
            or events & set(about.get("event_queues", ()))
        )

    return [worker for worker in workers if is_ours(worker)]


def check(sagas: Sagas, workers: list[Worker]) -> Iterator[Finding]:
    """Check what workers report about themselves."""
    late = [worker.name for worker in workers if worker.is_late]
    if late:
        yield warning(
            "late-workers",
            f"workers that answered too late to be checked, or to say what they consume: {', '.join(late)}",
            "run this again with a longer --timeout",
        )
    answered = [worker for worker in workers if not worker.is_late]
    workers = own(sagas, answered)
    if others := [worker.name for worker in answered if worker not in workers]:
        yield ok("other-workers", f"workers of other apps, with their own queues: {', '.join(others)}")
    if not workers:
        if late:
            return
        yield problem(
            "no-workers",
            "no worker answers: nothing runs, and nothing is recovered",
            f"start {worker_command()}. A busy worker with the solo pool does not answer either",
        )
        return
    yield ok("workers", f"{len(workers)} workers answer: {', '.join(worker.name for worker in workers)}")
    yield from _code(sagas, workers)
    yield from _set_up(sagas, workers)
    if not late:  # what nobody else consumes, they may consume
        yield from _queues(sagas, workers)
        yield from _event_queues(sagas, workers)


def _queues(sagas: Sagas, workers: list[Worker]) -> Iterator[Finding]:
    for queue, tasks in sorted(needed_queues(sagas).items()):
        if any(queue in worker.queues for worker in workers):
            continue
        named = ", ".join(sorted(tasks)[:5]) + (" and more" if len(tasks) > 5 else "")
        start = f"start a worker with -Q {queue}, or route these tasks to a queue that a worker consumes"
        if tasks <= {FAIL, JOIN}:
            yield warning(
                "queue-of-helpers",
                f"no worker consumes {queue!r}, which receives {named}: sagas start compensating, and leave parallel "
                "stages, only through recovery, after redispatch_after",
                start,
            )
        else:
            yield problem(
                "queue", f"no worker consumes {queue!r}, which receives {named}: those steps wait forever", start
            )


def _code(sagas: Sagas, workers: list[Worker]) -> Iterator[Finding]:
    """Find workers that run other code than this."""
    ours = {f"{name} {version}": saga.outline for (name, version), saga in sagas.orchestrator.sagas.items()}
    needed = needed_queues(sagas)
    for worker in workers:
        if worker.about is None:
            takes = {task for queue in worker.queues & needed.keys() for task in needed[queue]}
            if missing := sorted(takes - worker.tasks):
                queues = ", ".join(sorted(worker.queues & needed.keys()))
                yield problem(
                    "worker-without-sagas",
                    f"worker {worker.name} consumes {queues} and lacks {missing[0]}: it discards such a message, whose "
                    "step then waits for recovery",
                    f"load the app with all sagas in that worker, or give it queues other than {queues}",
                )
            continue
        theirs: Mapping[str, str] = worker.about["definitions"]
        lacks = sorted(set(ours) - set(theirs))
        others = sorted(name for name in set(ours) & set(theirs) if ours[name] != theirs[name])
        if lacks or others:
            says = [f"lacks {', '.join(lacks)}"] if lacks else []
            says += [f"has other steps for {', '.join(others)}"] if others else []
            yield problem(
                "worker-definitions",
                f"worker {worker.name} {' and '.join(says)}: it does not run those sagas once they are at a step that "
                "differs, and its recovery logs an error for each",
                "deploy the same code to all workers of one database; changed steps need a new version",
            )


def _set_up(sagas: Sagas, workers: list[Worker]) -> Iterator[Finding]:
    timing = sagas.orchestrator.timing
    for worker in workers:
        about = worker.about
        if about is None:
            continue
        limits = {f"task_{name}": about[name] for name in ("time_limit", "soft_time_limit") if about[name]}
        if limits and about["pool"] in _WITHOUT_LIMITS:
            given = ", ".join(f"{name}={value:g}" for name, value in limits.items())
            yield warning(
                "ignored-limits",
                f"worker {worker.name} has {given}, which its pool ({about['pool']}) ignores",
                "use Step(timeout=): it works on every pool",
            )
        ours = (timing.lease, timing.redispatch_after)
        if ours != (theirs := (about["lease"], about["redispatch_after"])):
            yield warning(
                "timing-differs",
                f"worker {worker.name} has lease={theirs[0]:g} and redispatch_after={theirs[1]:g}, but this app has "
                f"{ours[0]:g} and {ours[1]:g}: how soon a saga is recovered depends on which process saved it last",
                "give all processes of one database the same values",
            )


def _event_queues(sagas: Sagas, workers: list[Worker]) -> Iterator[Finding]:
    if sagas.events is None:
        return
    read = {queue for worker in workers if worker.about for queue in worker.about["event_queues"]}
    missing = sorted({subscription.queue for subscription in sagas.events.subscriptions} - read)
    if missing:
        yield warning(
            "event-queues",
            f"no worker reads the event queues {', '.join(missing)}; the doctor cannot see whether a process of "
            "`sagas events consume` does",
            f"start a worker without -Q or with these queues, or {command('events', 'consume')}",
        )
