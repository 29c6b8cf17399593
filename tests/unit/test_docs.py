"""Every fence of Python in the README and in docs/ runs; every command there exists."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any, TypedDict

import click
import pytest
import yaml
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from docs.generate_sequence import drawing
from docs.griffe_plain import markdown
from sagas import Pivot, Saga, Step, TerminalError
from sagas.cli.sagas import sagas as cli
from sagas.testing import Inline, assert_compensated, rehearse
from tests.pages import ELSEWHERE, PAGES, fences, run
from tests.rig import ROOT

#: What a page takes for granted, because the text around its code says so.
BEFORE = {
    "docs/operations.md": """
from unittest.mock import create_autospec
from sagas import Sagas, SqlStore
from sagas.stores import Queries
sagas, saga_id = create_autospec(Sagas, instance=True), "an-id"
sagas.store = create_autospec(SqlStore, instance=True)
sagas.store.queries = create_autospec(Queries, instance=True)
sagas.store.queries.dead_letters.return_value = []
""",
}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to run in, whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page not in ELSEWHERE and fences(page, "python")], ids=name_of
)
def test_the_code_of_a_page_runs(page: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"__name__": "docs"}
    exec(BEFORE.get(name_of(page), ""), names)
    run(page, folder, names)
    files = sorted(folder.glob("*.py"))
    modules = [vars(importlib.import_module(file.stem)) for file in files]
    for test in [value for module in (names, *modules) for name, value in module.items() if name.startswith("test_")]:
        test(**{name: Inline() for name in signature(test).parameters if name == "inline_sagas"})
    after = AFTER.get(name_of(page))
    if after:
        after(names, capsys.readouterr().out)
    for module in (names, *modules):
        for value in module.values():
            if hasattr(value, "engine") and hasattr(value.engine, "dispose"):
                value.engine.dispose()


@pytest.mark.parametrize(("page", "test"), ELSEWHERE.items(), ids=lambda value: Path(value).stem)
def test_the_code_of_a_page_runs_elsewhere(page: Path, test: str) -> None:
    assert page in PAGES
    assert page.name in (ROOT / test).read_text(), f"{test} does not speak of {page.name}"


# -- what a page says comes of it -------------------------------------------------------------------------------------


def brokers(names: dict[str, Any], _: str) -> None:
    assert {"memory", "rabbitmq", "redis", "kafka"} <= names.keys()


def choreography(names: dict[str, Any], printed: str) -> None:
    assert printed == ""  # orders are placed elsewhere; nothing else is wrong with it
    assert names["guards"].max_hops == 16
    assert names["problems"](names["graph"]([names["payments"]]))[0].kind == "unhandled"


def in_process_bus(names: dict[str, Any], printed: str) -> None:
    with Session(create_engine("sqlite://")) as session:
        assert names["place"](session) == "tea is reserved"


def events(names: dict[str, Any], _: str) -> None:
    assert names["events"].outbox_unsent() == 1
    names["events"].relay.send()
    assert names["events"].broker.depth("inventory.reserve_stock") == 1


def idempotency(names: dict[str, Any], _: str) -> None:
    """An API that takes keys: one charge for each, whatever crashes, and all of it given back."""
    charges: dict[str, int] = {}

    def call(method: str, path: str, key: str, body: dict[str, Any] | None = None) -> Any:
        if path.endswith("/refund"):
            return charges.pop(path.split("/")[2], None)
        if method == "GET":
            return [{"id": key}] if key in charges else []
        assert body is not None
        charges[key] = body["amount"]
        return {"id": key}

    names["call"] = call
    step = Step("charge", names["charge"], compensation=names["refund"])
    saga = Saga("buy", step, Pivot("ship", lambda: "shipped"), input=Amount)
    rehearsal = rehearse(saga, {"amount": 4}, state=lambda: dict(charges))
    assert rehearsal.ok, rehearsal.table()
    names["hotel"].dispose()


def stuck(names: dict[str, Any], printed: str) -> None:
    said = [fence.source for fence in fences(ROOT / "docs/how-to/stuck.md", "text")]
    assert printed == "".join(said)


def pivot(_: dict[str, Any], printed: str) -> None:
    assert printed == fences(ROOT / "docs/how-to/pivot.md", "text")[0].source


def migration(names: dict[str, Any], _: str) -> None:
    """Both ways of before do afterwards what they did."""
    placed = Inline().start(names["place_order"], {"order_id": "o-1"})
    assert placed.result["capture_payment"] == "captured authorization of o-1 and 4"
    inline = Inline()
    inline.fail_at("confirmation", TerminalError("no address"))
    assert_compensated(inline.start(names["order_saga"], {"order_id": "o-1", "amount": 99}))
    assert names["charged"] == {}
    app = names["app"]
    app.conf.update(task_always_eager=True, task_eager_propagates=True, result_backend="cache+memory://")
    names["place"]("o-1")


def index(names: dict[str, Any], printed: str) -> None:
    handle = Inline().start(names["place_order"], {"sku": "tea", "amount": 2000})
    assert_compensated(handle)


class Amount(TypedDict):
    amount: int


AFTER = {
    "docs/how-to/idempotency.md": idempotency,
    "docs/how-to/pivot.md": pivot,
    "docs/index.md": index,
    "docs/migration.md": migration,
    "docs/how-to/stuck.md": stuck,
    "docs/brokers.md": brokers,
    "docs/choreography.md": choreography,
    "docs/in-process-bus.md": in_process_bus,
    "docs/events.md": events,
}


# -- commands ---------------------------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, int, str]]:
    for page in PAGES:
        for fence in fences(page):
            if fence.language not in ("", "console"):
                continue
            for number, line in enumerate(fence.source.splitlines(), fence.line + 1):
                command = line.removeprefix("$ ").partition(" #")[0].strip()
                if re.match(r"(celery|make|python -m|pip install) ", command) and (
                    line.startswith("$ ") or fence.language == ""
                ):
                    yield name_of(page), number, command


@pytest.mark.parametrize(("page", "line", "command"), list(commands()))
def test_a_command_exists(page: str, line: int, command: str) -> None:
    words = re.sub(r" *(&|>>?|\||2>).*", "", command).replace("'", '"').split()
    if words[0] == "celery" and "sagas" in words:
        exists(cli, words[words.index("sagas") + 1 :])
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[0] == "pip":
        for extra in re.findall(r"celery-sagas\[([^]]*)\]", command):
            assert set(extra.split(",")) <= set(extras())
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]), command


def exists(command: click.Command, words: list[str]) -> None:
    """Parse the words as click would, without running anything."""
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, *words = words
        assert name in command.commands, f"no command {name!r}; there is: {', '.join(command.commands)}"
        command = command.commands[name]
    if command.context_settings.get("ignore_unknown_options"):
        return  # it passes them on
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    used = {word.partition("=")[0] for word in words if re.match("--?[a-z]", word)}
    assert used <= known | {"--help"}, f"{command.name} has no {', '.join(sorted(used - known))}"


def extras() -> dict[str, Any]:
    import tomllib  # noqa: PLC0415

    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if fences(page, "yaml")], ids=name_of)
def test_yaml_can_be_read(page: Path) -> None:
    for fence in fences(page, "yaml"):
        assert list(yaml.safe_load_all(fence.source)), fence.line


# -- the reference ----------------------------------------------------------------------------------------------------


def test_docstrings_become_markdown() -> None:
    text = """Adds.

`one`: a number,
    more or less. `two`, `three`: others.
`four`: the last.
Raises nothing.

::

    tree

>>> 1
1
"""
    assert markdown(text).split("\n\n") == [
        "Adds.",
        "- `one`: a number, more or less.\n- `two`, `three`: others.\n- `four`: the last.",
        "Raises nothing.",
        "    tree",
        "```pycon\n>>> 1\n1\n```",
    ]


def test_the_sequence_is_drawn() -> None:
    assert (ROOT / "docs" / "compensation.svg").read_text() == drawing()
