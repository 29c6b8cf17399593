"""The rules: what each thing that can happen does to a saga's record.

Every rule is pure. It takes a `Case` (the definition, the record as stored, and the time), and returns a `Change`: the
record that should be stored instead, and what the messenger is to do. Nothing here knows of Celery or SQL, so all of
it can be driven through any order of events in a test.
"""

from sagas.transitions.case import SKIPPED, Begun, Case, Change, Failure, Outcome, Skipped, Timing, Verdict, Waiting
from sagas.transitions.children import Child, Children, await_child, begin, due_children, undo
from sagas.transitions.items import Counts, await_items, begin_items, due_items, items_ended
from sagas.transitions.messages import (
    claim,
    decided,
    fail,
    join,
    renew,
    report,
    reported,
    skip,
    succeed,
    wait,
)
from sagas.transitions.operators import Repair, cancel, repair, resume
from sagas.transitions.time import examine, not_sent, redispatch, rewound
from sagas.transitions.waits import Signal, complete, fail_deferred, signal

__all__ = [
    "SKIPPED",
    "Begun",
    "Case",
    "Change",
    "Child",
    "Children",
    "Counts",
    "Failure",
    "Outcome",
    "Repair",
    "Signal",
    "Skipped",
    "Timing",
    "Verdict",
    "Waiting",
    "await_child",
    "await_items",
    "begin",
    "begin_items",
    "cancel",
    "claim",
    "complete",
    "decided",
    "due_children",
    "due_items",
    "examine",
    "fail",
    "fail_deferred",
    "items_ended",
    "join",
    "not_sent",
    "redispatch",
    "renew",
    "repair",
    "report",
    "reported",
    "resume",
    "rewound",
    "signal",
    "skip",
    "succeed",
    "undo",
    "wait",
]
