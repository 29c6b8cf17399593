"""docs/schemas.md: its table says what the checker says."""

import re
from typing import Any

import msgspec
import pytest

from sagas.events import event, type_of
from sagas.events.schema_registry import JSON, schema_of
from tests.rig import ROOT

PAGE = (ROOT / "docs" / "schemas.md").read_text()


class Card(msgspec.Struct, tag=True, frozen=True):
    number: str


class Cash(msgspec.Struct, tag=True, frozen=True):
    given: int


def between(name: str) -> str:
    return PAGE.partition(f"<!-- {name}:begin -->\n")[2].partition(f"\n<!-- {name}:end -->")[0]


def rules() -> list[list[str]]:
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in between("rules").splitlines()[2:]]
    return [[cell.strip().strip("`").replace(r"\|", "|") for cell in row] for row in rows]


def declared(fields: str) -> Any:
    names: dict[str, Any] = {"__name__": __name__, "Card": Card, "Cash": Cash, "event": event}
    source = "\n".join(f"    {line.strip()}" for line in fields.split(";"))
    exec(
        "from datetime import datetime\nfrom typing import Annotated, Literal\nfrom msgspec import Meta\n"
        f"@event('orders.order.placed')\nclass Message:\n{source}\n",
        names,
    )
    return schema_of(type_of(names["Message"]))


@pytest.mark.parametrize("row", rules(), ids=lambda row: row[0])
def test_the_table(row: list[str]) -> None:
    _, before, after, backward, forward = row
    old, new = declared(before), declared(after)
    assert [not JSON.compare(old, new), not JSON.compare(new, old)] == [backward == "yes", forward == "yes"]


def test_the_table_is_there() -> None:
    assert len(rules()) > 15
