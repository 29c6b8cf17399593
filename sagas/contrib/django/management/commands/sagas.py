"""`manage.py sagas ...`: the commands of `celery -A yourapp sagas ...` as a Django command."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from celery.bin.base import CLIContext
from django.core.management.base import BaseCommand, CommandError, handle_default_options

from sagas.cli.sagas import sagas as command
from sagas.contrib.django.project import PROJECT
from sagas.errors import ConfigurationError

__all__ = ["Command"]


class Command(BaseCommand):
    """Passes its arguments to the library's command line."""

    help = "Manage sagas and events: the same commands as `celery -A yourapp sagas`."
    requires_system_checks = ()

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument("args", nargs=argparse.REMAINDER)

    def run_from_argv(self, argv: Sequence[str]) -> None:
        """Parse only Django's own arguments: `--help` and the like belong to the subcommands."""
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        parser.add_argument("--settings")
        parser.add_argument("--pythonpath")
        options, arguments = parser.parse_known_args(argv[2:])
        handle_default_options(options)
        # The program name as Django shows it, with the settings, so that copied commands find the same database.
        program = Path(argv[0]).name
        words = ["python -m django" if program == "__main__.py" else program, "sagas"]
        words += [f"--settings={shlex.quote(options.settings)}"] if options.settings else []
        command.main(arguments, prog_name=" ".join(words), obj=_context())

    def handle(self, *arguments: str, **_: Any) -> None:
        """Run the command for `call_command("sagas", ...)`. Raises `CommandError`."""
        try:
            command.main(list(arguments), prog_name="manage.py sagas", obj=_context(), standalone_mode=False)
        except click.exceptions.Exit as end:
            if end.exit_code:
                raise CommandError(f"ended with exit code {end.exit_code}", returncode=end.exit_code) from end
        except click.ClickException as error:
            raise CommandError(error.format_message(), returncode=error.exit_code) from error


def _context() -> CLIContext:
    try:
        app = PROJECT.get().app
    except ConfigurationError as error:
        raise CommandError(str(error)) from error
    return CLIContext(app=app, no_color=not sys.stdout.isatty(), workdir=None)
