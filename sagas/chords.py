"""The chord of a parallel stage. SQL counts its header, so it needs no result backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery import Celery
from celery.backends.base import DisabledBackend
from celery.canvas import Signature, maybe_signature

from sagas.transitions import Verdict

__all__ = ["CLOSED", "Chord", "Joins"]

#: What a header task returns to say that its stage is closed, so that the join is sent.
CLOSED = Verdict.CLOSED.value


class Joins(DisabledBackend):  # type: ignore[misc]
    """The "result backend" of saga tasks. It stores nothing; it sends the join of a chord when SQL says it is closed.

    Having a backend of their own also keeps saga tasks independent of the app's: one that is down loses errbacks.
    """

    def on_chord_part_return(self, request: Any, _state: str, result: Any, **_: Any) -> None:
        if result == CLOSED:
            maybe_signature(request.chord, app=self.app).apply_async()


@Signature.register_type("sagas.chord")
class Chord(Signature):  # type: ignore[misc]
    """A chord that counts nothing: the checkpoint that closes a stage decides who sends the body.

    Not a subclass of Celery's: that one insists on a result backend, which it would count the header in.
    """

    @classmethod
    def of(cls, header: Sequence[Signature], body: Signature, app: Celery) -> Chord:
        parts = {"header": list(header), "body": body}
        return cls("sagas.chord", kwargs=parts, immutable=True, subtask_type="sagas.chord", app=app)

    @classmethod
    def from_dict(cls, d: Any, app: Celery | None = None) -> Chord:
        return cls(d, app=app)

    def apply_async(
        self, _args: Any = None, _kwargs: Any = None, *, chain: Any = None, producer: Any = None, **_: Any
    ) -> Any:
        # The rest of the chain goes with the body, and every header task carries the body along.
        body = maybe_signature(self.kwargs["body"], app=self.app)
        if chain:
            body = body.clone(chain=chain)
        header = [maybe_signature(task, app=self.app) for task in self.kwargs["header"]]
        sent = [task.apply_async(chord=body, producer=producer) for task in header]
        return sent[0]
