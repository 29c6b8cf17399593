"""What all operator commands share: error messages, the layout of help texts, and the spelling of commands."""

from __future__ import annotations

import importlib
import inspect
import signal
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import click
from celery.bin.base import CeleryCommand

from sagas.commands import app_option, typed_as
from sagas.errors import SagaError
from sagas.stores.engines import lacks_tables

__all__ = ["INTERRUPTED", "Command", "Group", "LazyCommands", "Refusal", "agree"]

#: The exit code after Ctrl-C.
INTERRUPTED = 128 + signal.SIGINT

#: How examples in this package write the group; help texts show it as the user typed it.
_WRITTEN = "celery -A yourapp sagas"


class Refusal(click.ClickException):
    """The command could not be tried at all. Exit code 1 is for commands that ran and found something wrong."""

    exit_code = 2


class LazyCommands(MutableMapping[str, click.Command]):
    """Commands by name, each imported when it is asked for: `list` does not wait for what the others need."""

    def __init__(self, places: Mapping[str, str]) -> None:
        """`places`: where each command is, as "module:attribute"."""
        self._commands: dict[str, click.Command | str] = dict(places)

    def __getitem__(self, name: str) -> click.Command:
        found = self._commands[name]
        if isinstance(found, str):
            module, _, attribute = found.partition(":")
            found = self._commands[name] = getattr(importlib.import_module(module), attribute)
        return found

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._commands[name] = command

    def __delitem__(self, name: str) -> None:
        del self._commands[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._commands)

    def __len__(self) -> int:
        return len(self._commands)


class Group(click.Group):
    """The commands, whichever program runs them: they refer to each other as users type them there.

    The library's own errors are shown without a traceback, with exit code 2.
    """

    def invoke(self, ctx: click.Context) -> Any:
        typed_as(_as_typed(ctx))
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from None
        except Exception as error:
            if lacks_tables(error):
                raise Refusal(
                    "the tables do not exist, or belong to an older version. Upgrade them with: "
                    f"{ctx.obj.app.sagas.store.how_to_upgrade} (the database says: {_first_line(error)})"
                ) from error
            if not isinstance(error, SagaError):
                raise
            raise Refusal(str(error)) from error


class Command(CeleryCommand):  # type: ignore[misc]
    """A command whose epilog contains examples, one per line."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options by group, as Celery does. Arguments are described in the text, not in empty rows."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            if isinstance(option, click.Option) and (row := option.get_help_record(ctx)) is not None:
                groups.setdefault(getattr(option, "help_group", None) or "Options", []).append(row)
        for name, rows in groups.items():
            with formatter.section(name):
                formatter.write_dl(rows)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.epilog:
            with formatter.section("Examples"):
                for line in inspect.cleandoc(self.epilog.replace(_WRITTEN, _as_typed(ctx))).splitlines():
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")


def _as_typed(context: click.Context) -> str:
    """Return the group as it was typed: `celery -A config sagas`, `flask sagas`, `manage.py sagas`."""
    while context.parent is not None and context.info_name != "sagas":
        context = context.parent
    root = context.find_root()
    group = context.command_path.removeprefix(root.info_name or "").split()
    return " ".join([root.info_name or "sagas", *app_option(sys.argv[1:]), *group])


def agree(question: str) -> None:
    """Ask for confirmation. Raises `Refusal` for a no, and `UsageError` without a terminal."""
    if not sys.stdin.isatty():
        raise click.UsageError(f"there is no terminal for the question: {question} Add --yes")
    if not click.confirm(question, err=True):
        raise Refusal("nothing was done")


def _first_line(error: BaseException) -> str:
    return str(error.__cause__ or error).strip().splitlines()[0]
