"""What is at the edge of JSON and of text, through real databases."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypedDict
from zoneinfo import ZoneInfo

import pytest

from sagas import InvalidInput, Retry, Saga, SagaStatus, SqlStore, Step
from sagas.testing import Inline
from sagas.values import DEEPEST


class Given(TypedDict):
    text: str
    at: datetime
    price: Decimal
    nested: Any


def act(text: str, at: datetime, price: Decimal, nested: Any) -> list[Any]:
    return [text, 2**70, -0.0, nested]


async def tell(act: list[Any], at: datetime) -> datetime:
    assert act[0] == "a\x00\\u0000 \U0001f600"
    return at


SAGA = Saga("edges", Step("act", act, compensation=None), Step("tell", tell, compensation=None), input=Given)


@pytest.fixture(params=["postgres", "mariadb"])
def inline(request: pytest.FixtureRequest) -> Any:
    store = SqlStore(request.getfixturevalue(request.param).database())
    store.upgrade()
    yield Inline(store)
    store.engine.dispose()


def levels(deep: int) -> Any:
    value: Any = "]"
    for _ in range(deep):
        value = [value]
    return value


def test_what_is_unusual_comes_back_from_the_database(inline: Inline) -> None:
    at = datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1)
    given = {"text": "a\x00\\u0000 \U0001f600", "at": at, "price": Decimal("1.10"), "nested": levels(DEEPEST - 2)}
    result = inline.start(SAGA, given).result
    assert result["act"][:2] == [given["text"], 2**70]
    assert str(result["act"][2]) == "-0.0"
    assert result["act"][3] == given["nested"]
    assert result["tell"].timestamp() == at.timestamp()


@pytest.mark.parametrize("wrong", [{"text": "\ud800"}, {"nested": levels(DEEPEST)}, {"price": Decimal("sNaN")}])
def test_what_cannot_be_written_is_refused_at_the_door(inline: Inline, wrong: dict[str, Any]) -> None:
    given = {"text": "", "at": datetime(2026, 1, 2, tzinfo=UTC), "price": Decimal(1), "nested": None} | wrong
    with pytest.raises(InvalidInput):
        inline.start(SAGA, given)


@pytest.mark.parametrize("returned", ["\ud800", levels(DEEPEST + 1), {"price": Decimal(1)}])
def test_what_cannot_be_written_of_a_result_is_undone(inline: Inline, returned: Any) -> None:
    undone = []
    step = Step("a", lambda: returned, compensation=lambda: undone.append(1), retry=Retry(max_attempts=1))
    handle = inline.start(Saga("loses", step))
    assert handle.status is SagaStatus.COMPENSATED
    assert "cannot be kept" in str(handle.error)
    assert undone == [1]
