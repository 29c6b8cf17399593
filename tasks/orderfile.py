"""Orders from a JSON or CSV file. A file with errors is refused as a whole, and every error is reported."""

import codecs
import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, TypeVar

from sagas import SagaStatus
from sagas.text import is_clean
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

#: How many errors are reported one by one.
_SHOWN = 20

#: How many characters of a value a message quotes.
_LONGEST_QUOTE = 60

_NEWLINE = "\n"

#: The size of the columns.
_LONGEST = 200

#: The limit on quantities and amounts.
_MOST = 1_000_000

_Choice = TypeVar("_Choice", bound=str)


class OrderFileError(ValueError):
    """A file of orders cannot be read. The message has a line for every error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """An order, its planned fault, and how it is expected to end (None: either way)."""

    input: PlaceOrder
    fault: Fault | None = None
    expect: SagaStatus | None = None


def read(file: Path) -> list[Order]:
    """Read orders. Raises `OrderFileError` with a line for each error in the file."""
    text = _text(file)
    rows = list(_rows_of_csv(file, text) if file.suffix.lower() == ".csv" else _rows_of_json(file, text))
    if not rows:
        raise OrderFileError(f"{file}, line 1: the file contains no orders")
    orders: dict[str, Order] = {}
    mistakes: list[str] = []
    for where, row in rows:
        reader = _Row(row)
        order = reader.order()
        if order is not None and order.input.order_id in orders:
            reader.mistakes.append(f"order_id: {order.input.order_id!r} occurs more than once")
        mistakes += [f"{file}, {where}, {mistake}" for mistake in reader.mistakes]
        if order is not None:
            orders.setdefault(order.input.order_id, order)
    if len(mistakes) > _SHOWN:
        mistakes[_SHOWN:] = [f"{file}: and {len(mistakes) - _SHOWN} more errors"]
    if mistakes:
        raise OrderFileError("\n".join(mistakes))
    return list(orders.values())


def _text(file: Path) -> str:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise OrderFileError(f"{file}: cannot be read: {error.strerror}") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise OrderFileError(f"{file}, line 1: the file is UTF-16. Save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise OrderFileError(f"{file}, line {line}: the file is not UTF-8. Save it as UTF-8") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise OrderFileError(f"{file}, line {line}: the file contains a NUL, so it is not text. Save it as UTF-8")
    if not text.strip():
        raise OrderFileError(f"{file}, line 1: the file is empty")
    return text


def _rows_of_json(file: Path, text: str) -> Iterator[tuple[str, Any]]:
    """Yield the members of a list one by one, each with the line where it begins."""
    at = _skip(text, 0)
    if text[at] != "[":
        first, csv_file = text[at:].partition("\n")[0], file.with_suffix(".csv").name
        what = f"this looks like CSV. Name the file {csv_file}" if _is_header(first) else "expected a list, [...]"
        raise OrderFileError(f"{file}, line {text.count(_NEWLINE, 0, at) + 1}: {what}")
    decoder = json.JSONDecoder(parse_float=Decimal)
    line, counted, at = 1, 0, _skip(text, at + 1)
    ends = text[at : at + 1] == "]"
    while not ends:
        line, counted = line + text.count(_NEWLINE, counted, at), at
        try:
            row, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            where = f"line {error.lineno}, column {error.colno}"
            raise OrderFileError(f"{file}, {where}: not JSON: {error.msg}") from error
        except (RecursionError, ValueError) as error:  # the second: a number with more digits than Python reads
            what = "is nested too deep" if isinstance(error, RecursionError) else "contains a number that is too long"
            raise OrderFileError(f"{file}, line {line}: the order that begins here {what}") from error
        yield f"line {line}", row
        at = _skip(text, at)
        ends = text[at : at + 1] == "]"
        if not ends and text[at : at + 1] != ",":
            missing = text.count(_NEWLINE, 0, at) + 1
            raise OrderFileError(f"{file}, line {missing}: not JSON: a comma or a ] is missing")
        at = at if ends else _skip(text, at + 1)
    if _skip(text, at + 1) < len(text):
        raise OrderFileError(f"{file}, line {text.count(_NEWLINE, 0, at) + 1}: there is something after the list")


def _skip(text: str, at: int) -> int:
    """Return the position of the next character that is not white space."""
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _is_header(line: str) -> bool:
    return sum(name in line for name in _FIELDS) > 1


def _rows_of_csv(file: Path, text: str) -> Iterator[tuple[str, Any]]:
    if text.lstrip().startswith(("[", "{")):
        raise OrderFileError(f"{file}, line 1: this looks like JSON. Name the file {file.with_suffix('.json').name}")
    reader = csv.DictReader(text.splitlines(), strict=True)
    try:
        _check_columns(file, [name.strip() for name in reader.fieldnames or ()])
        for cells in reader:
            where = f"line {reader.line_num}"
            if None in cells:
                raise OrderFileError(f"{file}, {where}: the line has more cells than the first line has names")
            # An empty cell counts as absent; a fault spans several columns.
            named = {name.strip(): cell for name, cell in cells.items()}
            row = {name: cell for name, cell in named.items() if cell and not name.startswith("fault_")}
            fault = {name: named[f"fault_{name}"] for name in _FAULT if named.get(f"fault_{name}")}
            yield where, {**row, "fault": fault} if fault else row
    except csv.Error as error:
        raise OrderFileError(f"{file}, line {reader.reader.line_num}: not CSV: {error}") from error


def _check_columns(file: Path, names: list[str]) -> None:
    """Report errors in the first line once, rather than for every order."""
    where, line = f"{file}, line 1", ",".join(names)
    if (other := next((each for each in ";\t|" if each in line), None)) and _is_header(line):
        raise OrderFileError(f"{where}: the cells are separated by {other!r}. Separate them by commas")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise OrderFileError(f"{where}: the column {twice[0]!r} occurs twice")
    known = [*_TEXTS, "quantity", "amount", "expect", *(f"fault_{name}" for name in _FAULT)]
    if unknown := [name for name in names if name not in known]:
        raise OrderFileError(f"{where}: unknown column {unknown[0][:40]!r}. The columns are: {', '.join(known)}")
    if missing := [name for name in (*_TEXTS, "quantity", "amount") if name not in names]:
        raise OrderFileError(f"{where}: the column {missing[0]!r} is missing. The line names {', '.join(names)}")


class _Row:
    """Reads one order and collects its errors."""

    def __init__(self, row: Any) -> None:
        self.mistakes: list[str] = []
        self._row: Mapping[str, Any] = row if isinstance(row, dict) else {}
        if not isinstance(row, dict):
            self.mistakes.append(f"an order must be an object, not {_quoted(row)}")

    def order(self) -> Order | None:
        """Return the order, or None after an error."""
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
            self._mistake(name, value, "it must be text")
            return ""
        if not is_clean(value):
            self._mistake(name, ascii(value), "it contains a character that no database can store")
        if len(value) > _LONGEST:
            self._mistake(name, value, f"it may have at most {_LONGEST} characters")
        return value.strip()

    def _number(self, name: str, value: Any, *, least: int) -> int:
        try:
            # Through its text, as in a CSV file, so that 2.5 and true are rejected.
            number = int("" if isinstance(value, dict | list) else str(value))
        except ValueError:
            number = least - 1
        if not least <= number < _MOST:
            self._mistake(name, value, f"it must be a whole number from {least} to {_MOST - 1}")
        return number

    def _amount(self) -> Decimal:
        value = self._row.get("amount")
        try:
            amount = Decimal("" if isinstance(value, dict | list) else str(value))
            if amount.is_finite() and 0 < amount < _MOST and ledger.cents(amount):
                return amount.quantize(Decimal("0.01"))
        except (InvalidOperation, ValueError):
            pass
        self._mistake("amount", value, f"it must be more than 0 and less than {_MOST}, in whole cents")
        return Decimal(0)

    def _fault(self) -> Fault | None:
        fault = self._row.get("fault")
        if fault is None:
            return None
        if not isinstance(fault, dict):
            self._mistake("fault", fault, "it must be an object")
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
        self._mistake(name, value, f"it must be one of {', '.join(filter(None, choices))}")
        return choices[0]

    def _refuse_unknown(self, prefix: str, row: Mapping[str, Any], known: Iterable[str]) -> None:
        for name in row.keys() - set(known):
            self._mistake(f"{prefix}{name}", row[name], "there is no such field")

    def _mistake(self, name: str, value: Any, why: str) -> None:
        given = "it is missing" if value is None or value == "" else f"{_quoted(value)} is invalid"
        self.mistakes.append(f"{name[:_LONGEST_QUOTE]}: {given}; {why}")


def _quoted(value: Any) -> str:
    """Return a value in a few words, however long or deep it is."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = str(value)
    return repr(text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}…")
