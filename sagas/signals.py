"""What comes to a saga from outside while it waits: signals, and completions of deferred steps."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sagas import tokens, transitions
from sagas.checkpoints import StepRecord
from sagas.engine import Next
from sagas.errors import InvalidInput, InvalidToken, PayloadTooLarge, SagaNotFound, SignalRefused
from sagas.nodes import Wait
from sagas.orchestrator import Orchestrator
from sagas.text import clean, is_clean
from sagas.transitions import Case, Change, Signal, Verdict
from sagas.values import NO_TYPE, convert, dump

if TYPE_CHECKING:
    from sagas.stores.sessions import AnySession

__all__ = ["Completion", "complete", "fail", "send"]

#: Characters of the id and of the sender of a signal.
_LONGEST = 200


class Completion(enum.StrEnum):
    """What became of a completion, or of a failure, that came from outside."""

    ACCEPTED = "accepted"  #: the step ends by it: now, or when its action has returned
    ENDED = "ended"  #: the step had ended or been completed before, and this has no effect
    LATE = "late"  #: the saga had given the step up; what the step did is compensated


def send(
    orchestrator: Orchestrator,
    saga_id: str,
    name: str,
    payload: Any,
    *,
    id: str,  # noqa: A002
    sender: str | None = None,
    session: AnySession | None = None,
) -> Next:
    """Give the wait `name` of a saga its signal. A second signal with the same id has no effect.

    Raises `SignalRefused` where the saga no longer wants it or has another one, `InvalidInput` for a saga without such
    a wait and for a payload of another type, `PayloadTooLarge`, `SagaNotFound`.
    """
    for what, text in (("id", id), ("sender", sender)):
        if text is not None and not (0 < len(text) <= _LONGEST and is_clean(text)):
            raise InvalidInput(f"saga {saga_id}, signal {name!r}: {what}={text!r} must be 1 to {_LONGEST} characters")

    def decide(case: Case) -> Change:
        node = case.saga.steps.get(name)
        if node is None or not isinstance(node.step, Wait):
            waits = [each.name for each in case.saga.steps.values() if isinstance(each.step, Wait)]
            raise InvalidInput(f"{case.about} has no wait {name!r}; it has {', '.join(waits) or 'none'}")
        text = _encode(orchestrator, payload, node.action.returns, f"{case.about}, signal {name!r}")
        step = case.record.step(name)
        change = transitions.signal(
            case, name, Signal(id=id, payload=text, by=_by(step, id, sender, case.now), sender=sender)
        )
        if change.verdict is Verdict.SETTLED:
            _refuse_another(case, step, id)
        return change

    return orchestrator.change(saga_id, decide, session=session)


def _refuse_another(case: Case, step: StepRecord, id_: str) -> None:
    """Refuse a signal to a wait that has ended, unless it is the signal that ended it."""
    first = _sender_of(step)
    if first is None:
        raise SignalRefused(f"{case.about} no longer wants the signal {step.name!r}: its wait has ended without it")
    if first["id"] != id_:
        raise SignalRefused(
            f"{case.about} has a signal {step.name!r} already: {first['id']!r}"
            + (f" of {first['sender']}" if first["sender"] else "")
            + f", which came at {first['at']}"
        )


def complete(
    orchestrator: Orchestrator,
    token: str,
    result: Any = None,
    *,
    session: AnySession | None = None,
) -> tuple[Completion, Next]:
    """Complete the step that a token names: at once, or when its action has returned.

    Raises `InvalidToken`, `InvalidInput` and `PayloadTooLarge`.
    """
    saga_id, name, digest = tokens.parse(token)

    def decide(case: Case) -> Change:
        step = _held_by(case, name, digest)
        text = _encode(orchestrator, result, case.node(step).action.returns, f"{case.about}, step {name!r}")
        return transitions.complete(case, name, text)

    return _outside(orchestrator, saga_id, decide, session)


def fail(
    orchestrator: Orchestrator,
    token: str,
    error: str,
    *,
    session: AnySession | None = None,
) -> tuple[Completion, Next]:
    """Have the step fail that a token names: it had no effect. Raises `InvalidToken`."""
    saga_id, name, digest = tokens.parse(token)

    def decide(case: Case) -> Change:
        _held_by(case, name, digest)
        return transitions.fail_deferred(case, name, clean(str(error), 10_000))

    return _outside(orchestrator, saga_id, decide, session)


def _outside(orchestrator: Orchestrator, saga_id: str, decide: Any, session: Any) -> tuple[Completion, Next]:
    was_forward = True

    def noting(case: Case) -> Change:
        nonlocal was_forward
        was_forward = case.forward
        change: Change = decide(case)
        return change

    try:
        next_ = orchestrator.change(saga_id, noting, session=session)
    except SagaNotFound as error:
        raise InvalidToken("the saga of this token is gone") from error
    if next_.verdict is Verdict.SETTLED:
        return Completion.ENDED, next_
    if was_forward:
        return Completion.ACCEPTED, next_
    return (Completion.LATE if next_.verdict is Verdict.DISPATCH else Completion.ENDED), next_


def _held_by(case: Case, name: str, digest: str) -> StepRecord:
    step = case.record.step(name)
    if name not in case.record.steps or not tokens.holds(step.input, digest):
        raise InvalidToken(f"{case.about}, step {name!r} has not given out this token")
    return step


def _encode(orchestrator: Orchestrator, value: Any, declared: Any, where: str) -> str:
    try:
        given = convert(value, declared) if isinstance(value, Mapping) and declared is not NO_TYPE else value
        text = dump(given, declared)
    except TypeError as error:
        raise InvalidInput(f"{where}: {error}") from error
    if (size := len(text.encode())) > orchestrator.max_payload:
        raise PayloadTooLarge(f"{where}: {size:,} bytes are more than max_payload={orchestrator.max_payload:,}")
    return text


def _by(step: StepRecord, id_: str, sender: str | None, now: datetime) -> str:
    """Return what a step keeps: its tokens, and who sent the signal."""
    about = json.loads(step.input) if step.input else {}
    return json.dumps({**about, "id": id_, "sender": sender, "at": now.isoformat(timespec="seconds")})


def _sender_of(step: StepRecord) -> dict[str, Any] | None:
    about: dict[str, Any] = json.loads(step.input) if step.input else {}
    return about if "id" in about else None
