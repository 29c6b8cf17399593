"""What cannot be written is spelled out, and nothing else changes."""

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagas import text
from sagas.text import clean, describe, is_clean

ANY = st.text(st.characters(exclude_categories=()))


class Unreadable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


@given(ANY)
def test_clean_text_can_be_written_everywhere(given_text: str) -> None:
    cleaned = clean(given_text)
    assert is_clean(cleaned)
    assert "\x00" not in cleaned
    cleaned.encode()  # raises for a surrogate


@given(st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])))
def test_clean_leaves_what_can_be_written(given_text: str) -> None:
    assert clean(given_text) == given_text


@given(ANY, st.integers(0, 20))
def test_clean_keeps_to_its_limit(given_text: str, limit: int) -> None:
    assert len(clean(given_text, limit)) <= limit


@pytest.mark.parametrize(
    ("error", "said"),
    [(ValueError("no tea"), "no tea"), (Unreadable(), "(RuntimeError while reading the text of Unreadable)")],
)
def test_describe_says_something_of_every_exception(error: Exception, said: str) -> None:
    assert describe(error) == said


def test_examples() -> None:
    assert doctest.testmod(text).failed == 0
