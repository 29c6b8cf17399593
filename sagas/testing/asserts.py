"""Assertions about how a saga ended. If they fail, they show its steps and history."""

from __future__ import annotations

from sagas.checkpoints import SagaStatus
from sagas.handle import SagaHandle

__all__ = ["assert_compensated", "assert_completed"]


def assert_completed(handle: SagaHandle) -> None:
    """Check that a saga is COMPLETED now. The message of the `AssertionError` has its steps and history.

    >>> from sagas import Saga, Step
    >>> from sagas.testing import Inline
    >>> greet = Saga("greet", Step("hello", lambda: "hi", compensation=None))
    >>> assert_completed(Inline().start(greet))
    """
    _assert_status(handle, SagaStatus.COMPLETED)


def assert_compensated(handle: SagaHandle) -> None:
    """Check that a saga is COMPENSATED now. The message of the `AssertionError` has its steps and history.

    >>> from sagas import Saga, Step
    >>> from sagas.testing import Inline
    >>> greet = Saga("greet", Step("hello", lambda: "hi", compensation=None))
    >>> inline = Inline()
    >>> inline.fail_at("hello", times=None)
    >>> assert_compensated(inline.start(greet))
    """
    _assert_status(handle, SagaStatus.COMPENSATED)


def _assert_status(handle: SagaHandle, wanted: SagaStatus) -> None:
    __tracebackhide__ = True  # for pytest: the failing line is in the test
    if handle.status is not wanted:
        raise AssertionError(_report(handle, wanted))


def _report(handle: SagaHandle, wanted: SagaStatus) -> str:
    record = handle.record
    lines = [f"saga {record.name!r} ({record.id}) is {record.status}, not {wanted}"]
    if record.error:
        lines.append(f"error: {record.error}")
    lines.append("steps:")
    lines += [
        f"  {state.name}: {state.status}" + (f" ({state.error})" if state.error else "")
        for state in record.steps.values()
    ]
    lines.append("history:")
    for entry in handle.history:
        where = f" {entry.step}" if entry.step else ""
        lines.append(f"  {entry.at:%H:%M:%S} {entry.what}{where}" + (f": {entry.detail}" if entry.detail else ""))
    return "\n".join(lines)
