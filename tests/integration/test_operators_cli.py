"""The operators' commands on a database where nobody reads the broker, so that sagas stay where they are put."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from celery import Celery
from click.testing import CliRunner, Result

from sagas import Pivot, Retry, Saga, Sagas, SagaStatus, SqlStore, Step, StepStatus
from sagas.cli import actions
from sagas.cli.sagas import sagas as group
from sagas.errors import StoreUnavailable
from sagas.operations import Operations
from sagas.operator_actions import Action
from sagas.stores import schema
from sagas.testing import Inline
from tests.integration.test_operations import at_pivot, plain, stuck, two_undos, waiting

Run = Callable[..., Result]
COLUMNS = "id saga version key correlation_id status step created_at updated_at error".split()


@pytest.fixture
def operations(store: SqlStore) -> Iterator[Operations]:
    app = Celery("desk", broker="memory://", set_as_current=False)
    yield Operations(Sagas(app, store, [plain(), at_pivot(), two_undos()], redact=["card"]))
    app.close()
    store.engine.dispose()


@pytest.fixture
def run(operations: Operations) -> Run:
    celery = click.Group("celery", commands={"sagas": group})
    obj = SimpleNamespace(app=operations.sagas.app, no_color=False)
    return lambda *words, **options: CliRunner().invoke(celery, ("sagas", *words), obj=obj, **options)


def cells(result: Result) -> list[list[str]]:
    assert result.exit_code == 0, result.stderr
    return [line.split("\t") for line in result.stdout.splitlines()]


# -- finding --------------------------------------------------------------------------------------------------------


def test_lists_for_programs(operations: Operations, run: Run) -> None:
    first, second = stuck(operations, at_pivot), waiting(operations)
    names, newest, oldest = cells(run("list"))
    assert names == COLUMNS
    assert (newest[0], oldest[0]) == (second, first)
    told = dict(zip(COLUMNS, oldest, strict=True))
    assert (told["status"], told["step"], told["key"]) == ("STUCK", "b", first)
    assert told["created_at"].endswith("+00:00")
    assert "the bank is away" in told["error"]
    rows = json.loads(run("list", "--json").stdout)
    assert [list(row) for row in rows] == [COLUMNS, COLUMNS]
    assert rows[0]["step"] == ["a"]  # it has not begun: the step that comes next
    page = run("list", "--limit", "1")
    assert f"--before {second}" in page.stderr
    assert cells(run("list", "--before", second))[1][0] == first


def test_filters_choose(operations: Operations, run: Run) -> None:
    undos, pivot = stuck(operations, two_undos), stuck(operations, at_pivot)
    ended = Inline(operations.store).start(plain(), key="key-1").id
    at = operations.store.now() - timedelta(hours=3)
    record = replace(
        operations.store.load(waiting(operations)), id="0-old", key="old", version=7, correlation_id="story", created_at=at,
        updated_at=at + timedelta(hours=1), steps={},
    )  # fmt: skip
    old = operations.store.insert(record).id
    new = {undos, pivot, ended}
    for words, expected in (
        (("--status", "stuck"), {undos, pivot}),
        (("--status", "stuck", "--status", "COMPLETED"), new),
        (("--saga", "at_pivot"), {pivot}),
        (("--version", "7"), {old}),
        (("--key", "key-1"), {ended}),
        (("--correlation-id", "story"), {old}),
        (("--step", "b"), {undos, pivot}),
        (("--error", "BANK is"), {undos, pivot}),
        (("--older-than", "2h"), {old}),
        (("--older-than", "200m"), set()),
        (("--newer-than", "2h", "--status", "completed"), {ended}),
        (("--idle-for", "100m"), {old}),
        (("--idle-for", "150m"), set()),
        (("--attention",), {undos, pivot}),
        (("--attention", "--saga", "two_undos"), {undos}),
    ):
        assert {row["id"] for row in json.loads(run("list", *words, "--json").stdout)} == expected, words
    nothing = run("list", "--saga", "nope")
    assert (nothing.exit_code, nothing.stdout) == (0, "")
    assert "no saga matches; this app has at_pivot, plain, two_undos" in nothing.stderr


def test_counts(operations: Operations, run: Run) -> None:
    stuck(operations, at_pivot), stuck(operations, at_pivot), waiting(operations)
    assert cells(run("list", "--counts")) == [
        ["saga", "status", "count"],
        ["at_pivot", "STUCK", "2"],
        ["plain", "PENDING", "1"],
    ]
    counted = run("list", "--counts", "--status", "stuck", "--json")
    assert json.loads(counted.stdout) == [{"saga": "at_pivot", "status": "STUCK", "count": 2}]


@pytest.mark.parametrize(
    "words", [("--older-than", "5"), ("--error", " "), ("--status", "broken"), ("--counts", "--before", "x")]
)
def test_what_cannot_be_asked(run: Run, words: tuple[str, ...]) -> None:
    assert run("list", *words).exit_code == 2


# -- reading --------------------------------------------------------------------------------------------------------


def test_show(operations: Operations, run: Run) -> None:
    saga = stuck(operations, at_pivot)
    told = json.loads(run("show", saga, "--json").stdout)
    assert list(told)[: len(COLUMNS)] == COLUMNS
    assert [(step["step"], step["status"], step["failures"]) for step in told["steps"]] == [
        ("a", "DONE", 0),
        ("b", "STUCK", 1),
    ]
    assert [letter["step"] for letter in told["dead_letters"]] == ["b"]
    assert {(each["action"], each["step"]) for each in told["allowed_actions"]} == {
        ("retry", "b"), ("skip", "b"), ("mark-done", "b"), ("compensate", None),
    }  # fmt: skip
    lines = run("show", saga).stdout.splitlines()
    assert f"id\t{saga}" in lines
    assert "action\tstep\tcommand" in lines
    assert lines.index("action\tstep\tcommand") < next(
        n for n, line in enumerate(lines) if line.startswith("step\tstatus\t")
    )


def test_the_commands_that_are_shown_can_be_typed(operations: Operations, run: Run) -> None:
    kinds: tuple[Callable[[], str], ...] = (
        lambda: stuck(operations, at_pivot),
        lambda: stuck(operations, two_undos),
        lambda: waiting(operations),
    )
    for make in kinds:
        for number in range(len(json.loads(run("show", make(), "--json").stdout)["allowed_actions"])):
            command = json.loads(run("show", make(), "--json").stdout)["allowed_actions"][number]["command"]
            program, name, *words = shlex.split(command.replace("JSON", "null"))
            assert (program, name) == ("celery", "sagas")
            done = run(*words)
            assert done.exit_code == 0, (command, done.stdout, done.stderr)


def test_show_hides_what_is_masked(operations: Operations, run: Run) -> None:
    saga = Inline(operations.store).start(Saga("hid", Step("a", lambda: {"card": "4111"}, compensation=None))).id
    with operations.store.engine.begin() as connection:
        connection.execute(schema.sagas.update().values(input='{"card": "4111", "sku": "tea"}'))
    for form in ((), ("--json",)):
        shown = run("show", saga, *form)
        assert "4111" not in shown.stdout
        assert "tea" in shown.stdout
    assert "no saga of this name" in shown.stdout  # its definition is not in this app; it can be read all the same


@pytest.mark.parametrize("given", ["[" * 500 + "]" * 500, "[" * 100_000, '{"half'], ids=["deep", "deeper", "half"])
def test_show_and_what_cannot_be_shown(operations: Operations, run: Run, given: str) -> None:
    saga = waiting(operations)
    with operations.store.engine.begin() as connection:
        connection.execute(schema.sagas.update().values(input=given))
    said = "cannot be shown: it is not JSON" if "half" in given or len(given) > 1000 else "nested more than 100 levels"
    for words in (("show", saga), ("show", saga, "--json")):
        assert said in run(*words).stdout
    for line in ("list", f"history {saga}", f"graph {saga}", "audit", "list --json"):
        assert run(*line.split()).exit_code == 0, line


def test_history(operations: Operations, run: Run) -> None:
    saga = stuck(operations, at_pivot)
    run("skip", saga, "--reason", "written off", "--actor", "ann")
    names, *rows = cells(run("history", saga))
    assert names == ["at", "what", "step", "actor", "epoch", "detail"]
    assert [row[1] for row in rows] == ["step failed", "stuck", "operator: skip"]
    assert (rows[-1][3], rows[-1][5]) == ("ann", "written off")
    assert json.loads(run("history", saga, "--json").stdout)[-1]["actor"] == "ann"
    nothing = run("history", waiting(operations))
    assert nothing.stdout == ""
    assert "its history has no entries" in nothing.stderr


@pytest.mark.parametrize("command", ["show", "history", "watch"])
def test_an_id_teaches(operations: Operations, run: Run, command: str) -> None:
    first, second = stuck(operations, at_pivot), stuck(operations, at_pivot)
    unknown = run(command, "nope")
    assert (unknown.exit_code, unknown.stderr) == (
        2,
        "Error: there is no saga whose id begins with, or whose key is, 'nope'\n",
    )
    several = run(command, first[:3])
    assert several.exit_code == 2
    assert first in several.stderr
    assert second in several.stderr


def test_tables_that_are_not_there(operations: Operations, run: Run) -> None:
    schema.metadata.drop_all(operations.store.engine)
    refused = run("list")
    assert refused.exit_code == 2
    assert "Upgrade them with: celery sagas db upgrade" in refused.stderr


# -- watching -------------------------------------------------------------------------------------------------------


def test_the_exit_code_says_how_it_ended(operations: Operations, run: Run) -> None:
    undone = waiting(operations)
    run("cancel", undone, "--reason", "x")
    for saga, code in (
        (Inline(operations.store).start(plain()).id, 0),
        (undone, 1),
        (stuck(operations, at_pivot), 3),
        (waiting(operations), 4),
    ):
        watched = run("watch", saga, "--timeout", "0s")
        assert watched.exit_code == code
        names, *changes = [line.split("\t") for line in watched.stdout.splitlines()]
        assert names == ["at", "step", "status", "failures", "lost", "progress", "error"]
        assert changes[-1][1:3] == ["", operations.store.load(saga).status]
        objects = [json.loads(line) for line in run("watch", saga, "--timeout", "0s", "--json").stdout.splitlines()]
        assert [each["status"] for each in objects] == [change[2] for change in changes]


def test_progress_is_shown(operations: Operations, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    store, saga = operations.store, stuck(operations, at_pivot)
    summary, done = operations.queries.summary, iter((1000, 2000, 3000))

    def next_look(saga_id: str) -> Any:
        if (now := next(done, None)) is None:
            raise KeyboardInterrupt
        record = store.load(saga)
        [step] = [step for step in record.steps.values() if step.status is StepStatus.STUCK]
        step = replace(step, heartbeat_at=store.now(), progress_done=now, progress_total=3000)
        assert store.save(record, replace(record.with_step(step), status=SagaStatus.RUNNING)) is not None
        return summary(saga_id)

    monkeypatch.setattr(operations.queries, "summary", next_look)
    told = run("watch", saga, "--interval", "0s")
    assert told.exit_code == 130
    _, *changes = [line.split("\t") for line in told.stdout.splitlines()]
    assert [change[5] for change in changes if change[5]] == [
        "1,000 of 3,000 (33 %)", "2,000 of 3,000 (66 %)", "3,000 of 3,000 (100 %)",
    ]  # fmt: skip
    monkeypatch.undo()
    shown = json.loads(run("show", saga, "--json").stdout)["steps"]
    assert {"done": 3000, "total": 3000} in [step["progress"] for step in shown]


def test_a_list_is_told_by_its_changes(operations: Operations, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = stuck(operations, at_pivot), stuck(operations, at_pivot)
    select, asked = operations.queries.select, iter(range(100))

    def now_and_then(*given: Any, **options: Any) -> Any:
        match next(asked):
            case 1:
                operations.act(Action.SKIP, first, actor="ann", reason="x")
            case 3:
                raise StoreUnavailable("the database did not answer")
            case 4:
                raise KeyboardInterrupt
        return select(*given, **options)

    monkeypatch.setattr(operations.queries, "select", now_and_then)
    watched = run("watch", "--status", "stuck", "--interval", "0s")
    assert (watched.exit_code, watched.stderr) == (130, "the database did not answer; still trying\n")
    names, *rows = [line.split("\t") for line in watched.stdout.splitlines()]
    assert names == COLUMNS
    # Both at first, and then the one that changed, though it is no longer stuck.
    assert [(row[0], row[5]) for row in rows] == [(first, "STUCK"), (second, "STUCK"), (first, "COMPLETED")]


# -- acting ---------------------------------------------------------------------------------------------------------


def test_each_action(operations: Operations, run: Run) -> None:
    for action, saga, ends in (
        ("retry", stuck(operations, at_pivot), "RUNNING"),
        ("skip", stuck(operations, at_pivot), "COMPLETED"),
        ("mark-done", stuck(operations, at_pivot), "COMPLETED"),
        ("compensate", stuck(operations, at_pivot), "COMPENSATING"),
        ("cancel", waiting(operations), "COMPENSATED"),
        ("resume", waiting(operations), "PENDING"),
    ):
        done = run(action, saga, "--reason", "so it is", "--actor", "ann")
        assert cells(done) == [
            ["id", "saga", "key", "outcome", "status", "error"], [saga, operations.store.load(saga).name, saga, "done", ends, ""],
        ]  # fmt: skip
        assert done.stderr == "1 done\n"
        assert [entry.actor for entry in operations.queries.history(saga)][-1] == "ann"


def test_refusals(operations: Operations, run: Run) -> None:
    saga, other = stuck(operations, at_pivot), waiting(operations)
    done = run("retry", saga, other, saga, "--reason", "x", "--json")
    assert (done.exit_code, done.stderr) == (1, "1 done, 1 refused\n")
    outcomes = {each["id"]: each for each in json.loads(done.stdout)}
    assert outcomes[saga]["outcome"] == "done"
    assert "none of its steps is stuck" in outcomes[other]["error"]
    for words, said in (
        (("retry", other, "nope", "--reason", "x"), "whose key is, 'nope'"),
        (("retry", "--reason", "x", "--yes"), "pass IDs"),
        (("cancel", other, "--step", "a", "--reason", "x"), "not both"),
        (("retry", saga, "--saga", "plain", "--reason", "x"), "not both"),
        (("cancel", "--saga", "plain", "--reason", "x"), "there is no terminal for the question"),
        (("cancel", "--saga", "nope", "--reason", "x", "--yes"), "no saga matches"),
        (("cancel", other, "--reason", " "), "it is empty"),
        (("cancel", other), "Missing option '--reason'"),
        (("cancel", other, "--reason", "x", "--actor", "a" * 201), "at most 200"),
        (("mark-done", saga, "--reason", "x", "--result", "r-7"), "is not JSON"),
        (("mark-done", saga, "--reason", "x", "--result", '{"a": NaN}'), "is not JSON"),
        (("mark-done", saga, "--reason", "x", "--result", "[1, -Infinity]"), "is not JSON"),
        (("mark-done", saga, "--reason", "x", "--result", "1e999"), "is not JSON"),
        (("mark-done", saga, "--reason", "x", "--result", "[" * 500 + "]" * 500), "more than 100 levels deep"),
        (("mark-done", saga, "--reason", "x", "--result", '"\udcff"'), "not UTF-8"),
        (("mark-done", saga, "--reason", "x" * 2_001), "the limit is 2,000"),
    ):
        refused = run(*words)
        assert (refused.exit_code, said in refused.stderr) == (2, True), (words, refused.stderr)
    assert operations.store.load(other).status is SagaStatus.PENDING


def test_a_system_that_does_not_know_its_user(
    operations: Operations, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody() -> str:
        raise OSError("no such user")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert "Pass it with --actor" in run("cancel", waiting(operations), "--reason", "x").stderr
    assert run("cancel", waiting(operations), "--reason", "x", "--actor", "ann").exit_code == 0


def test_in_bulk(operations: Operations, run: Run) -> None:
    first, second, third = (stuck(operations, at_pivot) for _ in range(3))
    other = waiting(operations)
    dry = run("skip", "--saga", "at_pivot", "--reason", "x", "--dry-run")
    assert [row[0] for row in cells(dry)[1:]] == [first, second, third]
    assert dry.stderr == "would skip 3\n"
    assert operations.store.load(first).status is SagaStatus.STUCK
    some = run("skip", "--error", "bank", "--limit", "2", "--reason", "written off", "--yes")
    assert "3 sagas match; only the oldest 2" in some.stderr
    assert [row[0] for row in cells(some)[1:]] == [first, second]
    assert [operations.store.load(saga).status for saga in (second, third, other)] == ["COMPLETED", "STUCK", "PENDING"]
    # Without --status those that could only refuse are left out; with it they are asked.
    assert run("skip", "--older-than", "0s", "--status", "pending", "--reason", "x", "--yes").exit_code == 1
    assert run("cancel", "--older-than", "0s", "--reason", "x", "--yes").exit_code == 0
    assert [operations.store.load(saga).status for saga in (third, other)] == ["STUCK", "COMPENSATED"]


def test_a_step_in_bulk_is_the_only_one_that_is_meant(operations: Operations, run: Run) -> None:
    saga = stuck(operations, two_undos)
    assert run("skip", "--step", "a", "--reason", "x", "--yes").exit_code == 0
    assert [operations.store.load(saga).step(name).status for name in "ab"] == ["SKIPPED", "STUCK"]


def test_more_than_a_page(operations: Operations, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "_PAGE", 2)
    sagas = [waiting(operations) for _ in range(5)]
    done = run("cancel", "--saga", "plain", "--reason", "x", "--yes")
    assert [row[0] for row in cells(done)[1:]] == sagas
    assert done.stderr == "5 done\n"


def test_what_was_chosen_is_what_is_done(operations: Operations, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look and the deed somebody else repairs one, and another gets stuck that nobody has seen."""
    unseen = waiting(operations)
    first, second = stuck(operations, at_pivot), stuck(operations, at_pivot)
    found = actions._found

    def then_another(*given: Any) -> list[str]:
        ids = found(*given)
        operations.act(Action.RETRY, first, actor="bob", reason="quicker")
        record = operations.store.load(unseen)
        operations.store.save(record, replace(record, status=SagaStatus.STUCK))
        return ids

    monkeypatch.setattr(actions, "_found", then_another)
    done = run("skip", "--status", "stuck", "--reason", "x", "--yes", "--json")
    assert done.exit_code == 1
    assert [(each["id"], each["outcome"]) for each in json.loads(done.stdout)] == [(first, "refused"), (second, "done")]
    assert "no longer matches" in done.stdout


def test_a_database_that_goes_away_in_between(
    operations: Operations, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, _ = (waiting(operations) for _ in range(3))
    cancel = operations.sagas.cancel

    def until_second(saga_id: str, *given: Any, **options: Any) -> Any:
        if saga_id == second:
            raise StoreUnavailable("the database did not answer: gone")
        return cancel(saga_id, *given, **options)

    monkeypatch.setattr(operations.sagas, "cancel", until_second)
    done = run("cancel", "--saga", "plain", "--reason", "x", "--yes", "--json")
    assert done.exit_code == 2
    assert [each["id"] for each in json.loads(done.stdout)] == [first]
    assert "gone. 1 done, 2 not tried" in done.stderr


def test_a_result_by_hand(operations: Operations, run: Run) -> None:
    saga = stuck(operations, at_pivot)  # its action declares that it returns nothing
    wrong = run("mark-done", saga, "--reason", "x", "--result", '"r-7"')
    assert wrong.exit_code == 1
    assert "result of step 'b'" in wrong.stdout
    assert run("mark-done", saga, "--reason", "x", "--result", "null").exit_code == 0
    back = run("mark-done", stuck(operations, two_undos), "--step", "a", "--reason", "x", "--result", "1")
    assert "it goes backward" in back.stdout


def test_a_result_is_read_as_the_type_that_the_action_declares(operations: Operations, run: Run) -> None:
    def pay() -> Decimal:
        raise ValueError("the bank is away")

    paid = Saga("paid", Pivot("pay", pay, retry=Retry(max_attempts=1)))
    operations.sagas.register(paid)
    saga = Inline(operations.store).start(paid).id
    assert "Invalid decimal" in run("mark-done", saga, "--reason", "x", "--result", '"much"').stdout
    assert run("mark-done", saga, "--reason", "x", "--result", '"4.50"').exit_code == 0
    assert operations.sagas.handle(saga).result["pay"] == Decimal("4.50")


def test_what_has_turned_back_is_not_turned_back_again(operations: Operations, run: Run) -> None:
    for action in ("cancel", "compensate"):
        refused = run(action, stuck(operations, two_undos), "--reason", "x")
        assert refused.exit_code == 1
        assert "has already started compensating: it is STUCK; retry, skip or mark its stuck step" in refused.stdout


# -- who did what, and starting -------------------------------------------------------------------------------------


def test_audit(operations: Operations, run: Run) -> None:
    assert "no entry matches" in run("audit").stderr
    first, second = stuck(operations, at_pivot), waiting(operations)
    run("skip", first, "--reason", "written off", "--actor", "ann")
    run("cancel", second, "--reason", "no", "--actor", "bob")
    names, newest, oldest = cells(run("audit"))
    assert names == ["number", "at", "actor", "what", "id", "saga", "key", "step", "reason", "parent"]
    assert newest[2:6] == ["bob", "compensation started", second, "plain"]
    assert oldest[2:] == ["ann", "operator: skip", first, "at_pivot", first, "b", "written off", ""]
    for words, actor in (
        (("--actor", "ann"), ["ann"]),
        (("--saga", "plain"), ["bob"]),
        (("--since", "1h"), ["bob", "ann"]),
        (("--since", "0s"), []),
        (("--limit", "1"), ["bob"]),
        (("--before", newest[0]), ["ann"]),
    ):
        assert [each["actor"] for each in json.loads(run("audit", *words, "--json").stdout)] == actor, words


def test_start(operations: Operations, run: Run, tmp_path: Path) -> None:
    for _ in range(2):
        started = run("start", "plain", "--key", "k-1", "--json")
        [told] = json.loads(started.stdout)
        assert (told["saga"], told["key"], told["status"]) == ("plain", "k-1", "PENDING")
    assert operations.queries.count() == 1
    (tmp_path / "list.json").write_text("[]")
    for words, said in (
        (("start", "nope"), "there is: at_pivot, plain, two_undos"),
        (("start", "plain", "--input", str(tmp_path / "list.json")), "must contain a JSON object"),
        (("start", "plain", "--input", "-"), "it takes none"),
    ):
        refused = run(*words, input='{"x": 1}')
        assert (refused.exit_code, said in refused.stderr) == (2, True), refused.stderr
    assert operations.queries.count() == 1


@pytest.mark.parametrize("command", ["list", "show", "history", "watch", "audit", "start", *Action])
def test_help_has_examples(run: Run, command: str) -> None:
    shown = run(command, "--help").stdout
    assert f"Examples:\n  celery sagas {command}" in shown
    assert shown.splitlines()[2].endswith(tuple(".,:abcdefghijklmnopqrstuvwxyz"))
