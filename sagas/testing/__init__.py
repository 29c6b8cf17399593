"""Test sagas: run one in the calling thread, make it fail where you like, rehearse its compensations.

This needs no broker, no worker and no Celery app. It uses the engine's own rules, with a clock that does not wait. See
`docs/testing.md`.
"""

from sagas.testing.asserts import assert_compensated, assert_completed
from sagas.testing.inline import Inline
from sagas.testing.rehearsal import Judgement, Rehearsal, Row, rehearse

__all__ = ["Inline", "Judgement", "Rehearsal", "Row", "assert_compensated", "assert_completed", "rehearse"]
