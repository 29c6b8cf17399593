"""What commands read and print, without a database."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta

import click
import pytest
from rich.console import Console
from rich.text import Text

from sagas import commands
from sagas.checkpoints import SagaStatus
from sagas.cli import cells, tables, terminal
from sagas.cli.options import DURATION, Where
from sagas.stores import EVERYTHING, Filter

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("90s", timedelta(seconds=90)),
        ("0.5s", timedelta(milliseconds=500)),
        ("10m", timedelta(minutes=10)),
        ("2h", timedelta(hours=2)),
        ("3d", timedelta(days=3)),
        (" 1w ", timedelta(weeks=1)),
    ],
)
def test_durations(text: str, duration: timedelta) -> None:
    assert DURATION.convert(text, None, None) == duration


@pytest.mark.parametrize("text", ["", "10", "h", "-1h", "1y", "1h30m", "1e3s", "999999999d", "٣h2"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(click.BadParameter, match="not a duration|hundred years"):
        DURATION.convert(text, None, None)


def test_filters_become_a_filter() -> None:
    assert not Where()
    assert Where().at(NOW) == EVERYTHING
    hour = timedelta(hours=1)
    where = Where(
        status=(SagaStatus.STUCK,), saga="a", version=2, key="k", correlation_id="c", step="s", error="e",
        older_than=hour, newer_than=2 * hour, idle_for=3 * hour, attention=True,
    )  # fmt: skip
    assert where
    assert where.at(NOW) == Filter(
        statuses=frozenset({SagaStatus.STUCK}), name="a", version=2, key="k", correlation_id="c", step="s", error="e",
        created_before=NOW - hour, created_after=NOW - 2 * hour, updated_before=NOW - 3 * hour, attention=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-5, "0s"), (0, "0s"), (119, "119s"), (120, "2m"), (7_199, "119m"), (7_200, "2h"), (200_000, "2d")],
)
def test_ages(seconds: int, said: str) -> None:
    assert cells.ago(timedelta(seconds=seconds)) == said


def test_nothing_that_is_shown_does_anything_to_the_terminal() -> None:
    shown = cells.readable("a\x1b[31m\r\x00\x9b\ud800\tb\nc")
    assert shown == "a\\x1b[31m\\x0d\\x00\\x9b\\xd800\tb\nc"
    assert cells.readable(["a", "b"]) == "a,b"
    assert cells.readable(None) == ""


def test_a_line_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    tables.lines([{"id": "x", "error": "one\ntwo\tthree", "at": NOW}])
    assert capsys.readouterr().out == "id\terror\tat\nx\tone two three\t2026-01-02T03:04:05+00:00\n"


def test_what_looks_like_markup_is_shown_as_it_is() -> None:
    screen = Console(file=io.StringIO(), width=80)
    screen.print(terminal.table([{"id": "[bold]1[/nope]", "status": "STUCK"}]))
    assert "[bold]1[/nope]" in screen.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_an_id_is_never_cut(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    saga_id = "01a20f2c-a4a9-7463-a7cb-1d8fe4e94716"
    row = {
        "id": saga_id, "saga": "place_order", "key": "k" * 50, "status": "STUCK", "step": ["pay"], "created_at": NOW,
        "error": "long " * 50,
    }  # fmt: skip
    screen = Console(file=io.StringIO(), width=width)
    monkeypatch.setattr(terminal, "console", lambda: screen)
    screen.print(terminal.sagas([row, row], NOW))
    lines = screen.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert sum(saga_id in line for line in lines) == 2
    assert all(len(line) <= width for line in lines)


def test_columns_are_under_their_names() -> None:
    screen = Console(file=io.StringIO(), width=80)
    screen.print(
        terminal.blocks(("a", "bee"), [((Text("long one"), Text("x")), (Text("below"),)), ((Text(), Text("y")), ())])
    )
    assert [line.rstrip() for line in screen.file.getvalue().splitlines()] == [  # type: ignore[attr-defined]
        "a         bee", "long one  x", "  below", "          y",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("typed", "option"),
    [
        (["-A", "shop", "sagas"], ["-A", "shop"]),
        (["-b", "redis://:secret@x", "--app=my shop", "sagas"], ["-A", "'my shop'"]),
        (["-Ashop", "sagas", "-A", "no"], ["-A", "shop"]),
        (["sagas", "show", "-A"], []),
    ],
)
def test_commands_are_spelled_with_the_app_that_was_named(typed: list[str], option: list[str]) -> None:
    assert commands.app_option(typed) == option
