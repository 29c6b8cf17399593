"""The rules: what each thing that can happen does to a saga's record.

Every rule is pure. It takes a `Case` (the definition, the record as stored, and the time), and returns a `Change`: the
record that should be stored instead, and what the messenger is to do. Nothing here knows of Celery or SQL, so all of
it can be driven through any order of events in a test.
"""

from sagas.transitions.case import Case, Change, Failure, Outcome, Timing, Verdict
from sagas.transitions.messages import claim, fail, join, renew, report, succeed
from sagas.transitions.operators import Repair, cancel, repair, resume
from sagas.transitions.time import examine, not_sent, redispatch, rewound

__all__ = [
    "Case",
    "Change",
    "Failure",
    "Outcome",
    "Repair",
    "Timing",
    "Verdict",
    "cancel",
    "claim",
    "examine",
    "fail",
    "join",
    "not_sent",
    "redispatch",
    "renew",
    "repair",
    "report",
    "resume",
    "rewound",
    "succeed",
]
