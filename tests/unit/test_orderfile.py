"""Files of orders: those that can be read, and what is said of those that cannot."""

from __future__ import annotations

import codecs
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tasks.orderfile import OrderFileError, read

ORDER: dict[str, Any] = {
    "order_id": "o-1", "customer": "Ann", "sku": "tea", "address": "1 Main Street", "quantity": 2, "amount": "12.50",
}  # fmt: skip
HEADER = "order_id,customer,sku,quantity,amount,address\n"
ROW = "o-1,Ann,tea,2,12.50,1 Main Street\n"


def refused(file: Path, content: bytes | str) -> list[str]:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(OrderFileError) as error:
        read(file)
    lines = str(error.value).splitlines()
    assert all(line.startswith(str(file)) for line in lines), lines
    return [line.removeprefix(str(file)) for line in lines]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("o.json", json.dumps([ORDER])),
        ("o.json", json.dumps([ORDER], indent=3).replace("\n", "\r\n")),
        ("o.json", codecs.BOM_UTF8 + json.dumps([ORDER]).encode()),
        ("o.txt", f"\n\n  {json.dumps([ORDER])}\n\n"),
        ("o.csv", HEADER + ROW),
        ("O.CSV", codecs.BOM_UTF8 + (HEADER + ROW).encode()),
        ("o.csv", (HEADER + ROW).replace("\n", "\r\n")),
        ("o.csv", HEADER.replace(",", " , ") + ROW),
    ],
)
def test_what_can_be_read(tmp_path: Path, name: str, content: bytes | str) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    [order] = read(tmp_path / name)
    assert (order.input.order_id, order.input.quantity, order.input.amount) == ("o-1", 2, Decimal("12.50"))


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("o.csv", (HEADER + ROW).replace(",", ";"), ", line 1: the cells are separated by ';'. Separate them by commas"),
        ("o.csv", (HEADER + ROW).replace(",", "\t"), ", line 1: the cells are separated by '\\t'. Separate them by commas"),
        ("o.txt", HEADER + ROW, ", line 1: this looks like CSV. Name the file o.csv"),
        ("o.txt", (HEADER + ROW).replace(",", ";"), ", line 1: this looks like CSV. Name the file o.csv"),
        ("o.csv", json.dumps([ORDER]), ", line 1: this looks like JSON. Name the file o.json"),
        ("o.json", "", ", line 1: the file is empty"),
        ("o.csv", " \n\n", ", line 1: the file is empty"),
        ("o.csv", HEADER, ", line 1: the file contains no orders"),
        ("o.json", "[]", ", line 1: the file contains no orders"),
        ("o.json", "\n{}", ", line 2: expected a list, [...]"),
        ("o.json", "hello", ", line 1: expected a list, [...]"),
        ("o.json", "[\n{}\n{}]", ", line 3: not JSON: a comma or a ] is missing"),
        ("o.json", f"[{json.dumps(ORDER)}]]", ", line 1: there is something after the list"),
        ("o.json", f"[\n{json.dumps(ORDER)},\n]", ", line 3, column 1: not JSON: Expecting value"),
        ("o.json", '[\n{"a": }]', ", line 2, column 7: not JSON: Expecting value"),
        ("o.json", f"[{json.dumps(ORDER)},\n" + "[" * 100_000, ", line 2: the order that begins here is nested too deep"),
        ("o.json", '[\n"' + "x" * 10 + '",\n5]', ", line 2, an order must be an object, not 'xxxxxxxxxx'"),
        ("o.json", "[" + "9" * 5_000 + "]", ", line 1: the order that begins here contains a number that is too long"),
        ("o.json", (HEADER + ROW).encode("utf-16"), ", line 1: the file is UTF-16. Save it as UTF-8"),
        ("o.csv", (HEADER + ROW).encode("utf-16-le"), ", line 1: the file contains a NUL, so it is not text. Save it as UTF-8"),
        ("o.csv", (HEADER + ROW.replace("Ann", "Zoë")).encode("latin-1"), ", line 2: the file is not UTF-8"),
        ("o.csv", HEADER + 'o-1,"Ann,tea\n', ", line 2: not CSV: "),
        ("o.csv", HEADER + ROW.strip() + ",more\n", ", line 2: the line has more cells than the first line has names"),
        ("o.csv", HEADER.replace("sku", "item") + ROW * 100, ", line 1: unknown column 'item'. The columns are: order_id, "),
        ("o.csv", HEADER.replace(",sku", ",customer") + ROW, ", line 1: the column 'customer' occurs twice"),
        ("o.csv", "order_id,customer\no-1,Ann\n", ", line 1: the column 'sku' is missing. The line names order_id, customer"),
        ("o.csv", HEADER + "o-1,Ann,tea,two,12.50,Main\n", ", line 2, quantity: 'two' is invalid; it must be a whole"),
    ],
)  # fmt: skip
def test_one_line_says_what_is_wrong(tmp_path: Path, name: str, content: bytes | str, line: str) -> None:
    first = refused(tmp_path / name, content)[0]
    assert first.startswith(line), first
    assert len(first) < 300


def test_values_of_any_depth_and_length_are_told_in_a_few_words(tmp_path: Path) -> None:
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    for value in (deep, {"a": deep}, "x" * 100_000, "a\0b", "\ud800", 10**1000, float("nan"), True, None):
        for name in ORDER:
            told = refused(tmp_path / "o.json", json.dumps([{**ORDER, name: value}]))
            assert [f", line 1, {name}: " in line for line in told] == [True] * len(told), told
            assert max(map(len, told)) < 300
        refused(tmp_path / "o.json", json.dumps([{**ORDER, "fault": value or 1}]))
        refused(tmp_path / "o.json", json.dumps([{**ORDER, "expect": value or "x"}]))


def test_of_many_mistakes_some_are_told(tmp_path: Path) -> None:
    told = refused(tmp_path / "o.csv", HEADER + ROW.replace(",2,", ",0,") * 500)
    assert len(told) == 21
    assert told[-1] == ": and 480 more errors"
    assert told[0].startswith(", line 2, quantity: ")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(OrderFileError, match="cannot be read: "):
            read(path)
