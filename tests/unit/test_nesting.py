"""JSON of any depth: what is kept, and what is cut where it is shown."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagas.events.trace import Entry, walk
from sagas.nesting import DEEPEST, cut, is_too_deep
from sagas.operations import pretty
from sagas.redaction import shown
from sagas.values import parse

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=20,
)


@given(JSON, st.integers(0, 98), st.integers(101, 3_000), st.booleans())
def test_only_what_is_too_deep_is_cut(value: object, shallow: int, deep: int, half: bool) -> None:
    text = json.dumps(value)
    assert cut(text) == text
    around = "[" * shallow + text + "]" * shallow
    assert is_too_deep(around) == (_depth(value) + shallow > DEEPEST)
    buried = "[" * deep + text + ("" if half else "]" * deep)
    assert is_too_deep(buried)
    if half:
        cut(buried)
        return
    row = json.loads(cut(f'{{"a": {text}, "b": {buried}, "c": [{buried}, {text}], "d": "[[{{"}}'))
    assert (row["a"], row["c"][1], row["d"]) == (value, value, "[[{")
    assert "… cut: nested more than 100 levels deep" in json.dumps(row["b"], ensure_ascii=False)


def _depth(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)


@pytest.mark.parametrize(
    "text", ["[" * 100_000 + "]" * 100_000, '{"a":' * 500 + "1" + "}" * 500, "[" * 500, '{"x', "", "~a"]
)
def test_whatever_is_stored_is_shown(text: str) -> None:
    assert pretty(shown(text, frozenset({"b"})))


def test_a_page_shows_so_much() -> None:
    assert pretty("x" * 30_000).endswith("… cut: 10,002 characters more")
    assert len(pretty(list(range(200_000)))) < 21_000


@pytest.mark.parametrize(
    "text",
    ["NaN", '{"a": NaN}', "[Infinity]", "-Infinity", "1e999", "[1e-999999, -1e400]", '"\ud800"', '"\\ud800"', b"\xff", "", "[" * 101 + "]" * 101],
)  # fmt: skip
def test_what_is_no_json_that_can_be_kept(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse(text)


def test_what_is() -> None:
    assert parse('{"a": [1, 2.5, null, true, "\\u0000 ü"]}') == {"a": [1, 2.5, None, True, "\0 ü"]}
    assert parse(b"[" * 100 + b"]" * 100)


def test_a_chain_of_messages_of_any_length_is_told() -> None:
    first = last = Entry("message", None, "shop", "placed", "0")
    for number in range(5_000):
        last.children = [Entry("message", None, "shop", "placed", str(number))]
        last = last.children[0]
    assert sum(1 for _ in walk([first])) == 5_001
    text = json.dumps(first.as_json(), indent=2)
    assert "nested too deep: 4952 entries are omitted" in text
    assert not is_too_deep(f"[{text}]")
