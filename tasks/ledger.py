"""What makes a participant safe to call twice, late, and in any order; and the ledger that proves it.

A participant finds its earlier work only by the step's idempotency key. Its action calls `begin`, its compensation
calls `undo`. Whichever comes first, and however often they come, the effect happens at most once, and not at all once
it has been undone:

======================  ==============================  =======================================
the key is ...          the action                      the compensation
======================  ==============================  =======================================
unknown                 acts and stores its answer      leaves a tombstone: undone before done
done                    returns the stored answer       undoes, once
undone                  is refused: `TerminalError`     does nothing
======================  ==============================  =======================================

The engine alone would guarantee all of this as long as everything is written through `step.session`. A real participant
is a service with its own database and only has the key; the shop is written as if it were one.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from sqlalchemy import ColumnElement, Update, func, select, true
from sqlalchemy.orm import Session

from sagas import StepContext, TerminalError
from tasks.tables import Entry, Operation

__all__ = ["Net", "begin", "cents", "changed", "enter", "net", "number", "post", "reverse", "undo"]

#: How many references one query asks for.
_PAGE = 500


def begin(step: StepContext, reference: str) -> Operation:
    """Begin an action. Its `answer` is None if there is none yet, and the action has to run.

    If two begin at once, the database refuses the second, whose next attempt finds the first one's answer.
    """
    operation = _find(step)
    if operation is None:
        operation = Operation(key=step.idempotency_key, reference=reference)
        step.session.add(operation)
        step.session.flush()
    elif operation.undone:
        raise TerminalError(f"{step.step} of {reference} came after it had been undone, and stays undone")
    return operation


def undo(step: StepContext, reference: str) -> bool:
    """Begin a compensation. Returns whether there is anything to undo."""
    operation = _find(step)
    if operation is None:
        step.session.add(Operation(key=step.idempotency_key, reference=reference, undone=True))
        return False
    if operation.undone:
        return False
    operation.undone = True
    return True


def _find(step: StepContext) -> Operation | None:
    # Locked, so that an action and its own compensation cannot both find the old state.
    return step.session.get(Operation, step.idempotency_key, with_for_update=True)


def changed(step: StepContext, statement: Update) -> bool:
    """Execute an update, in the transaction of the step. Returns whether it found anything to change."""
    return step.session.connection().execute(statement).rowcount > 0


def number(step: StepContext, prefix: str) -> str:
    """Return a number for people to quote. The same step always gets the same number."""
    return f"{prefix}-{hashlib.sha256(step.idempotency_key.encode()).hexdigest()[:8]}"


def post(
    step: StepContext, reference: str, entry: str, account: str, *, amount: Decimal = Decimal(0), quantity: int = 0
) -> None:
    """Add a line to the ledger. The account is `participant/name`."""
    enter(step.session, reference, entry, account, key=step.idempotency_key, amount=amount, quantity=quantity)


def enter(
    session: Session,
    reference: str,
    entry: str,
    account: str,
    *,
    key: str,
    amount: Decimal = Decimal(0),
    quantity: int = 0,
) -> None:
    """Add a line to the ledger for something that no step does, such as a customer's payment."""
    session.add(
        Entry(
            participant=account.partition("/")[0],
            entry=entry,
            reference=reference,
            key=key,
            account=account,
            amount=cents(amount),
            quantity=quantity,
        )
    )


def reverse(step: StepContext, entry: str) -> None:
    """Add the opposite of every line that the action of this step has added."""
    for line in step.session.scalars(select(Entry).where(Entry.key == step.idempotency_key)).all():
        step.session.add(
            Entry(
                participant=line.participant,
                entry=entry,
                reference=line.reference,
                key=line.key,
                account=line.account,
                amount=-line.amount,
                quantity=-line.quantity,
            )
        )


def cents(amount: Decimal) -> int:
    """Convert an amount to cents. Raises `ValueError` for fractions of a cent."""
    value = amount * 100
    if value != value.to_integral_value():
        raise ValueError(f"{amount} is not a whole number of cents")
    return int(value)


@dataclass(frozen=True, slots=True)
class Net:
    """What is left in one account of one order after everything was done and undone."""

    amount: int
    quantity: int


def net(session: Session, references: Sequence[str] | None = None) -> Mapping[str, Mapping[str, Net]]:
    """Return, per reference, the accounts whose balance is not zero. For a compensated saga there are none.

    `references`: only these; by default all.
    """
    if references is not None:
        pages = (references[start : start + _PAGE] for start in range(0, len(references), _PAGE))
        return {
            reference: left for page in pages for reference, left in _net(session, Entry.reference.in_(page)).items()
        }
    return _net(session, true())


def _net(session: Session, which: ColumnElement[bool]) -> Mapping[str, Mapping[str, Net]]:
    amount, quantity = func.sum(Entry.amount), func.sum(Entry.quantity)
    query = (
        select(Entry.reference, Entry.account, amount, quantity)
        .where(which)
        .group_by(Entry.reference, Entry.account)
        .having((amount != 0) | (quantity != 0))
    )
    left: defaultdict[str, dict[str, Net]] = defaultdict(dict)
    for reference, account, cents_left, quantity_left in session.execute(query):
        left[reference][account] = Net(int(cents_left), int(quantity_left))
    return left
