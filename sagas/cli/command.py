"""What all commands of operators share: how errors are told, how help reads, and how a command is spelled."""

from __future__ import annotations

import inspect
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from celery.bin.base import CeleryCommand

from sagas.errors import SagaError
from sagas.stores.engines import lacks_tables

__all__ = ["Command", "Refusal", "spelled", "told"]


class Refusal(click.ClickException):
    """It could not even be tried. 1 is for what was tried and is not ok."""

    exit_code = 2


@contextmanager
def told() -> Iterator[None]:
    """Tell what the library refuses in its own words, without a traceback; the exit code is 2."""
    try:
        yield
    except Exception as error:
        if lacks_tables(error):
            raise Refusal(
                f"the tables are not there, or are older than this version; bring them up to date with: "
                f"{spelled('db', 'upgrade')} (the database says: {_first_line(error)})"
            ) from error
        if not isinstance(error, SagaError):
            raise
        raise Refusal(str(error)) from error


class Command(CeleryCommand):  # type: ignore[misc]
    """A command that tells errors as `told` does, and whose epilog holds examples, a line each."""

    def invoke(self, ctx: click.Context) -> Any:
        with told():
            return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options by group, as Celery does. What arguments are is said in the text, not in empty rows."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            if isinstance(option, click.Option) and (row := option.get_help_record(ctx)) is not None:
                groups.setdefault(getattr(option, "help_group", None) or "Options", []).append(row)
        for name, rows in groups.items():
            with formatter.section(name):
                formatter.write_dl(rows)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        if self.epilog:
            with formatter.section("Examples"):
                for line in inspect.cleandoc(self.epilog).splitlines():
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")


def spelled(*words: str) -> str:
    """Return a command of the group as it would be typed here: `celery -A config sagas retry ...`."""
    context = click.get_current_context()
    while context.parent is not None and context.info_name != "sagas":
        context = context.parent
    root = context.find_root()
    group = context.command_path.removeprefix(root.info_name or "").split()
    return " ".join([root.info_name or "sagas", *_app_option(sys.argv[1:]), *group, *map(shlex.quote, words)])


def _app_option(typed: list[str]) -> list[str]:
    """Return the option that named the app, and no other: there may be a password in them."""
    words = iter(typed)
    for word in words:
        if word in ("-A", "--app"):
            return ["-A", shlex.quote(next(words, ""))]
        if word.startswith(("--app=", "-A")):
            return ["-A", shlex.quote(word.removeprefix("--app=").removeprefix("-A"))]
        if word == "sagas":
            break
    return []


def _first_line(error: BaseException) -> str:
    return str(error.__cause__ or error).strip().splitlines()[0]
