"""`celery -A yourapp sagas retry`, `skip`, `mark-done`, `compensate`, `cancel` and `resume`: act on sagas."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import click

from sagas.cli.cells import readable
from sagas.cli.command import INTERRUPTED, Command, Refusal, agree
from sagas.cli.listing import show_sagas
from sagas.cli.options import Where, filters, signed
from sagas.cli.rows import row
from sagas.cli.tables import AS_JSON, document, line, terminal
from sagas.errors import SagaError
from sagas.operations import ActionResult, Operations
from sagas.operator_actions import Action
from sagas.stores import Filter
from sagas.values import parse

__all__ = ["cancel", "compensate", "mark_done", "resume", "retry", "skip"]

#: How many ids one query asks for.
_PAGE = 100
#: How many sagas are shown before the confirmation.
_SHOWN = 10
#: The most characters shown of an invalid result.
_LONGEST_SHOWN = 100
_RULES = """
Select sagas by ID... (ids, prefixes of ids, or keys) or by options; with options, you are asked for confirmation.
Without --status, options select only {statuses}. If one saga refuses, the others continue.{more}

The exit code is 0 if all succeeded, 1 if some refused, 2 if the action could not be tried.
"""
_WHICH_STEP = " With IDs, --step names the stuck step, if there are several."
_EXAMPLES = """
    celery -A yourapp sagas {action} order-123{step} --reason "{why}"
    celery -A yourapp sagas {action} --saga place_order --error "timed out" --reason "{why}" --dry-run
    celery -A yourapp sagas {action} --saga place_order --older-than 1h --limit 500 --reason "{why}" --yes
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What to do, apart from the sagas to do it to."""

    action: Action
    reason: str
    actor: str
    step: str | None = None
    result: Any = None


def _command(action: Action) -> click.Command:
    info = action.info

    @click.command(
        action.value,
        cls=Command,
        help=info.explanation
        + "\n"
        + _RULES.format(statuses=", ".join(sorted(info.statuses)), more=_WHICH_STEP if info.needs_stuck_step else ""),
        epilog=_EXAMPLES.format(
            action=action, step=" --step capture_payment" if info.needs_stuck_step else "", why="the bank is back"
        ),
        short_help=info.summary,
    )
    @click.argument("sagas", metavar="[ID]...", nargs=-1)
    @signed
    @filters
    @click.option(
        "--limit", type=click.IntRange(min=1, max=10_000), default=100, show_default=True, help="The most sagas."
    )
    @click.option("--dry-run", is_flag=True, help="Only show which.")
    @click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
    @AS_JSON
    @click.pass_obj
    def command(
        obj: Any,
        /,
        sagas: Sequence[str],
        where: Where,
        reason: str,
        actor: str,
        limit: int,
        dry_run: bool,
        yes: bool,
        as_json: bool,
        result: str | None = None,
    ) -> None:
        """Do it to the sagas with these ids, or to those that the options choose."""
        request = _Request(
            action=action,
            reason=reason,
            actor=actor,
            step=where.step if info.needs_stuck_step else None,
            result=_json(result),
        )
        _check(request, sagas, where)
        operations = Operations(obj.app.sagas)
        if sagas:
            # All of them are looked up before anything is done to one.
            ids = list(dict.fromkeys(operations.queries.resolve(saga).id for saga in sagas))
            chosen = Filter()
        else:
            chosen = where.at(operations.store.now())
            chosen = replace(chosen, statuses=chosen.statuses or info.statuses)
            ids = _found(operations, chosen, limit)
        if dry_run:
            _show_which(operations, ids, as_json=as_json, most=len(ids))
            click.echo(f"would {action} {len(ids)}", err=True)
            return
        if not sagas and not yes:
            _agree(operations, action, ids)
        _carry_out(operations, request, ids, chosen, as_json=as_json, bulk=not sagas)

    if info.takes_result:
        about = "The step's result as JSON, if a later step needs it."
        command = click.option("--result", metavar="JSON", help=about)(command)
    return command


def _json(text: str | None) -> Any:
    try:
        return None if text is None else parse(text)
    except ValueError as error:
        raise click.UsageError(
            f"--result {readable(text)[:_LONGEST_SHOWN]!r} is not JSON: {error}. A string needs quotes: '\"receipt-7\"'"
        ) from error


def _check(request: _Request, sagas: Sequence[str], where: Where) -> None:
    if sagas and (replace(where, step=None) if request.action.info.needs_stuck_step else where):
        raise click.UsageError("pass IDs or options that select sagas, not both")
    if not sagas and not where:
        raise click.UsageError("pass IDs, or options that select sagas, such as --saga or --error")


def _found(operations: Operations, chosen: Filter, limit: int) -> list[str]:
    """Return the ids of the matching sagas, oldest first."""
    ids: list[str] = []
    while len(ids) < limit:
        wanted = min(_PAGE, limit - len(ids))
        page = operations.queries.select(chosen, after=ids[-1] if ids else "", limit=wanted)
        ids += [record.id for record in page]
        if len(page) < wanted:
            break
    if not ids:
        raise Refusal("no saga matches: nothing was done")
    if len(ids) == limit and (there := operations.queries.count(chosen)) > limit:
        click.echo(f"{there} sagas match; only the oldest {limit} are selected (--limit)", err=True)
    return ids


def _show_which(operations: Operations, ids: Sequence[str], *, as_json: bool, most: int) -> None:
    shown = list(ids[:most])
    rows = []
    for start in range(0, len(shown), _PAGE):
        page = Filter(ids=tuple(shown[start : start + _PAGE]))
        rows += [
            row(operations, each) for each in operations.queries.select(page, after="", limit=_PAGE, with_steps=True)
        ]
    show_sagas(operations, rows, as_json=as_json)
    if len(ids) > most:
        click.echo(f"and {len(ids) - most} more", err=True)


def _agree(operations: Operations, action: Action, ids: Sequence[str]) -> None:
    if sys.stdin.isatty():
        _show_which(operations, ids, as_json=False, most=_SHOWN)
    agree(f"{action} {'this saga' if len(ids) == 1 else f'these {len(ids)} sagas'}?")


def _outcomes(
    operations: Operations, request: _Request, ids: Sequence[str], chosen: Filter
) -> Iterator[tuple[str, ActionResult | None]]:
    """Act on each saga; None for one that no longer matches because another process changed it."""
    for start in range(0, len(ids), _PAGE):
        page = tuple(ids[start : start + _PAGE])
        waiting = iter(page)
        for outcome in operations.act_on_all(
            request.action,
            replace(chosen, ids=page),
            actor=request.actor,
            reason=request.reason,
            limit=len(page),
            step=request.step,
            result=request.result,
        ):
            for saga_id in waiting:
                if saga_id == outcome.record.id:
                    break
                yield saga_id, None
            yield outcome.record.id, outcome
        for saga_id in waiting:
            yield saga_id, None


def _carry_out(
    operations: Operations, request: _Request, ids: list[str], chosen: Filter, *, as_json: bool, bulk: bool
) -> None:
    rows: list[dict[str, Any]] = []
    tty = None if as_json else terminal()
    progress = tty.bar(request.action.value, len(ids)) if tty is not None and bulk else None
    say = _sayer(tty, progress, as_json=as_json, bulk=bulk)
    ids.sort()  # the order in which they are processed: the oldest first
    try:
        with progress or nullcontext():
            for saga_id, outcome in _outcomes(operations, request, ids, chosen):
                rows.append(_row(saga_id, outcome, request.action))
                say(rows[-1])
    except SagaError as error:
        raise Refusal(
            f"{error}. {_sum(rows)}, {len(ids) - len(rows)} not tried: repeat the command for these"
        ) from error
    except KeyboardInterrupt:
        click.echo(f"interrupted. {_sum(rows)}, {len(ids) - len(rows)} not tried", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    finally:
        if as_json:
            document(rows)
    click.echo(_sum(rows), err=True)
    if any(each["outcome"] == "refused" for each in rows):
        raise click.exceptions.Exit(1)


def _row(saga_id: str, outcome: ActionResult | None, action: Action) -> dict[str, Any]:
    if outcome is None:
        error = f"it no longer matches the options, so {action} was not tried"
        return {"id": saga_id, "saga": None, "key": None, "outcome": "refused", "status": None, "error": error}
    record = outcome.record
    return {
        "id": saga_id,
        "saga": record.name,
        "key": record.key,
        "outcome": "done" if outcome.error is None else "refused",
        "status": record.status.value,
        "error": outcome.error,
    }


def _sayer(tty: Any, progress: Any, *, as_json: bool, bulk: bool) -> Callable[[dict[str, Any]], None]:
    """Return the function that prints one outcome. On a terminal, bulk actions print only refusals."""
    if as_json:
        return lambda _: None
    if tty is None:
        named = False

        def in_lines(each: dict[str, Any]) -> None:
            nonlocal named
            if not named:
                click.echo("\t".join(each))
                named = True
            line(each)

        return in_lines

    say = tty.console().print if progress is None else progress.console.print

    def to_a_person(each: dict[str, Any]) -> None:
        if progress is not None:
            progress.advance(progress.task_ids[0])
        if not bulk or each["outcome"] == "refused":
            say(tty.outcome(each))

    return to_a_person


def _sum(rows: Sequence[dict[str, Any]]) -> str:
    refused = sum(each["outcome"] == "refused" for each in rows)
    return f"{len(rows) - refused} done" + (f", {refused} refused" if refused else "")


retry = _command(Action.RETRY)
skip = _command(Action.SKIP)
mark_done = _command(Action.MARK_DONE)
compensate = _command(Action.COMPENSATE)
cancel = _command(Action.CANCEL)
resume = _command(Action.RESUME)
