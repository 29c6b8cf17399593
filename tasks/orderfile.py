"""Orders from a file, JSON or CSV. A file with a mistake in it is refused as a whole, with every mistake named."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, TypeVar

from sagas import SagaStatus
from tasks import ledger
from tasks.faults import KINDS, Fault
from tasks.orders import PlaceOrder

__all__ = ["OrderFileError", "Order", "read"]

_TEXTS = ("order_id", "customer", "sku", "address")
_FAULT = ("at", "kind", "times", "seconds")
_FIELDS = (*_TEXTS, "quantity", "amount", "expect", "fault")
_POINTS = tuple(
    f"{participant}.{function}"
    for participant, functions in {
        "inventory": ("reserve", "release"),
        "payments": ("authorize", "void", "capture"),
        "shipping": ("quote", "create", "cancel"),
        "notifications": ("confirm",),
    }.items()
    for function in functions
)
_EXPECTED = (SagaStatus.COMPLETED, SagaStatus.COMPENSATED)

#: Longer than this a text does not fit its column.
_LONGEST = 200

#: Quantities and amounts stay below this.
_MOST = 1_000_000

_Choice = TypeVar("_Choice", bound=str)


class OrderFileError(ValueError):
    """A file of orders cannot be read. The message has a line for every mistake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """An order, the fault that it asks for, and how it is expected to end (None: either way will do)."""

    input: PlaceOrder
    fault: Fault | None = None
    expect: SagaStatus | None = None


def read(file: Path) -> list[Order]:
    """Read orders. Raises `OrderFileError` with all that is wrong in the file."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise OrderFileError(f"{file}: cannot be read: {error}") from error
    rows = list(_rows_of_csv(file, text) if file.suffix.lower() == ".csv" else _rows_of_json(file, text))
    if not rows:
        raise OrderFileError(f"{file}: there are no orders in it")
    orders: dict[str, Order] = {}
    mistakes: list[str] = []
    for where, row in rows:
        reader = _Row(row)
        order = reader.order()
        if order is not None and order.input.order_id in orders:
            reader.mistakes.append(f"order_id: {order.input.order_id!r} was there before")
        mistakes += [f"{file}, {where}, {mistake}" for mistake in reader.mistakes]
        if order is not None:
            orders.setdefault(order.input.order_id, order)
    if mistakes:
        raise OrderFileError("\n".join(mistakes))
    return list(orders.values())


def _rows_of_json(file: Path, text: str) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(text, parse_float=Decimal)
    except json.JSONDecodeError as error:
        raise OrderFileError(f"{file}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from error
    if not isinstance(rows, list):
        raise OrderFileError(f"{file}: it has to be a list of orders")
    for index, row in enumerate(rows):
        yield f"order {index}", row


def _rows_of_csv(file: Path, text: str) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(text.splitlines(), strict=True)
    try:
        for cells in reader:
            where = f"line {reader.line_num}"
            if None in cells:
                raise OrderFileError(f"{file}, {where}: it has more cells than the first line has names")
            # An empty cell says nothing; a fault is spread over several.
            row = {name: cell for name, cell in cells.items() if cell and not name.startswith("fault_")}
            fault = {name: cells[f"fault_{name}"] for name in _FAULT if cells.get(f"fault_{name}")}
            yield where, {**row, "fault": fault} if fault else row
    except csv.Error as error:
        raise OrderFileError(f"{file}, line {reader.line_num}: not CSV: {error}") from error


class _Row:
    """Reads one order and collects what is wrong with it."""

    def __init__(self, row: Any) -> None:
        self.mistakes: list[str] = []
        self._row: Mapping[str, Any] = row if isinstance(row, dict) else {}
        if not isinstance(row, dict):
            self.mistakes.append(f"it has to be an object, not {json.dumps(row, default=str)}")

    def order(self) -> Order | None:
        """Return the order, or None after a mistake."""
        if self.mistakes:
            return None
        self._refuse_unknown("", self._row, _FIELDS)
        texts = {name: self._text(name) for name in _TEXTS}
        quantity = self._number("quantity", self._row.get("quantity"), least=1)
        amount = self._amount()
        expect = self._choice("expect", self._row.get("expect", ""), ("", *_EXPECTED))
        fault = self._fault()
        if self.mistakes:
            return None
        return Order(
            input=PlaceOrder(**texts, quantity=quantity, amount=amount),
            fault=fault,
            expect=SagaStatus(expect) if expect else None,
        )

    def _text(self, name: str) -> str:
        value = self._row.get(name)
        if not isinstance(value, str) or not value.strip():
            self._mistake(name, value, "it has to be a text")
            return ""
        if len(value) > _LONGEST:
            self._mistake(name, value, f"it may have {_LONGEST} characters")
        return value.strip()

    def _number(self, name: str, value: Any, *, least: int) -> int:
        try:
            # By way of its text, as a CSV has it: so 2.5 and true are no numbers of pieces.
            number = int(str(value))
        except ValueError:
            number = least - 1
        if not least <= number < _MOST:
            self._mistake(name, value, f"it has to be a whole number from {least} to {_MOST - 1}")
        return number

    def _amount(self) -> Decimal:
        value = self._row.get("amount")
        try:
            amount = Decimal(str(value))
            if amount.is_finite() and 0 < amount < _MOST and ledger.cents(amount):
                return amount.quantize(Decimal("0.01"))
        except (InvalidOperation, ValueError):
            pass
        self._mistake("amount", value, f"it has to be more than 0, less than {_MOST}, in whole cents")
        return Decimal(0)

    def _fault(self) -> Fault | None:
        fault = self._row.get("fault")
        if fault is None:
            return None
        if not isinstance(fault, dict):
            self._mistake("fault", fault, "it has to be an object")
            return None
        self._refuse_unknown("fault.", fault, _FAULT)
        at = self._choice("fault.at", fault.get("at"), _POINTS)
        kind = self._choice("fault.kind", fault.get("kind"), KINDS)
        times = self._number("fault.times", fault.get("times", 1), least=1)
        seconds = self._number("fault.seconds", fault.get("seconds", 0), least=0)
        return None if self.mistakes else Fault(at=at, kind=kind, times=times, seconds=seconds)

    def _choice(self, name: str, value: Any, choices: Iterable[_Choice]) -> _Choice:
        choices = tuple(choices)
        if value in choices:
            return choices[choices.index(value)]
        self._mistake(name, value, f"it has to be one of {', '.join(filter(None, choices))}")
        return choices[0]

    def _refuse_unknown(self, prefix: str, row: Mapping[str, Any], known: Iterable[str]) -> None:
        for name in row.keys() - set(known):
            self._mistake(f"{prefix}{name}", row[name], "there is no such field")

    def _mistake(self, name: str, value: Any, why: str) -> None:
        given = "it is missing" if value in (None, "") else f"{str(value)!r} will not do"
        self.mistakes.append(f"{name}: {given}; {why}")
