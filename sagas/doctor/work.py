"""Check the pending work: sagas that do not progress, dead letters, the outbox, and the queues of events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta

from sagas.app import Sagas
from sagas.check import check
from sagas.commands import command
from sagas.doctor.findings import Finding, ok, problem, warning
from sagas.errors import BrokerUnavailable, ConfigurationError
from sagas.events import Events
from sagas.stores import OperatorStore
from sagas.stores.inspection import Backlog, backlog

__all__ = ["check_backlog", "check_outbox", "check_unheard", "examine", "examine_queues"]

#: An unfinished saga that is older deserves attention.
_OLD = timedelta(days=1)

#: Seconds that messages may wait in the outbox: for a warning, and for a problem.
_WAITS, _STANDS = 30.0, 300.0


def examine(sagas: Sagas, store: OperatorStore) -> Iterator[Finding]:
    """Check the pending work in the database."""
    yield from check_backlog(backlog(store), store.now())
    for flight in check(sagas, values=0):
        if not flight.ok:
            yield problem(
                "stranded",
                f"{flight.stranded} sagas {flight.name} {flight.version} in flight, for example {flight.example}, "
                f"cannot continue: {flight.problems[0]}",
                f"{command('check-deploy')} shows more",
            )
    if sagas.events is not None:
        yield from check_outbox(sagas.events.outbox_unsent(), sagas.events.outbox_age())
        yield from check_unheard(sagas.events.outbox_unheard())


def check_backlog(found: Backlog, now: datetime) -> Iterator[Finding]:
    """Check for sagas that do not progress, and for dead letters."""

    def ago(moment: datetime | None) -> str:
        return "" if moment is None else f", the oldest for {str(now - moment).partition('.')[0]}"

    yield ok("in-flight", f"{found.unfinished.count} sagas are unfinished")
    oldest = found.unfinished.oldest
    if oldest is not None and now - oldest > _OLD:
        yield warning(
            "old-saga",
            f"saga {found.unfinished.example} was started {str(now - oldest).partition('.')[0]} ago and is unfinished",
            "look at it; with Saga(timeout=), a saga that takes too long starts compensating",
        )
    if found.stuck.count:
        yield problem(
            "stuck",
            f"{found.stuck.count} sagas are STUCK{ago(found.stuck.oldest)}: for example {found.stuck.example}",
            "retry or skip the stuck step, or mark it done; docs/operations.md says when to do which",
        )
    if found.behind_stuck.count:
        yield warning(
            "child-stuck",
            f"{found.behind_stuck.count} sagas wait for a child saga that is STUCK{ago(found.behind_stuck.oldest)}: "
            f"for example {found.behind_stuck.example}",
            f"{command('show', str(found.behind_stuck.example))} says which child and why; repair the child",
        )
    if found.standing.count:
        yield problem(
            "not-progressing",
            f"the next step of {found.standing.count} sagas has not started for a long time"
            f"{ago(found.standing.oldest)}: for example {found.standing.example}",
            "check that a worker consumes that step's queue; the queue may also be too long",
        )
    if found.not_sent.count:
        yield problem(
            "not-sent",
            f"no broker accepts the messages of {found.not_sent.count} steps{ago(found.not_sent.oldest)}: for example "
            f"of saga {found.not_sent.example}",
            "see the error of that step; often its queue is not declared",
        )
    if found.letters.count > found.stuck.count:  # each stuck saga has at least one, and is reported above
        yield problem(
            "dead-letters",
            f"{found.letters.count} dead letters of sagas are open{ago(found.letters.oldest)}: for example of saga "
            f"{found.letters.example}",
            "for each, a person must decide about the step",
        )
    if found.event_letters.count:
        yield warning(
            "event-dead-letters",
            f"{found.event_letters.count} messages could not be handled{ago(found.event_letters.oldest)}",
            f"{command('events', 'dlq', 'list')}, then replay or discard",
        )


def check_outbox(unsent: int, age: float) -> Iterator[Finding]:
    """Check how many messages wait to be sent, and for how many seconds the oldest has waited."""
    if age > _WAITS:
        level = problem if age > _STANDS else warning
        yield level(
            "outbox",
            f"{unsent} messages wait in the outbox, the oldest for {age:.0f} s: no relay is running, or its broker is "
            "unavailable",
            f"workers run a relay; or start one: {command('events', 'relay')}",
        )


def check_unheard(unheard: Mapping[str, int]) -> Iterator[Finding]:
    """Check for messages that were sent to nobody."""
    if unheard:
        types = ", ".join(f"{name} ({count})" for name, count in sorted(unheard.items()))
        yield warning(
            "events-unheard",
            f"{sum(unheard.values())} messages reached nobody, because no queue is bound to their type: {types}",
            f"apply the topology of their subscribers, then: {command('events', 'outbox', 'resend', '--type', '...')}; "
            "if nobody will subscribe, let outbox purge delete them",
        )


def examine_queues(events: Events) -> Iterator[Finding]:
    """Look for the queues of events at their broker, without creating them."""
    missing = []
    for subscription in events.subscriptions:
        try:
            events.broker.depth(subscription.queue)
        except (BrokerUnavailable, ConfigurationError) as error:
            missing.append(f"{subscription.queue} ({error})")
    if missing:
        yield problem(
            "event-queue-missing",
            f"the broker of events has no queue, or does not answer, for: {'; '.join(missing)}. A subscriber does not "
            "receive events sent before its queue exists",
            command("events", "topology", "apply"),
        )
        return
    try:
        mismatches = events.queue_mismatches()
    except (BrokerUnavailable, ConfigurationError) as error:
        mismatches = {"": str(error)}
    for wrong in mismatches.values():
        yield problem("event-queue-differs", wrong, "see docs/brokers.md; until then, nobody reads that queue")
