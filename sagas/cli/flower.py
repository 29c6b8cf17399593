"""`celery -A yourapp sagas flower`: Flower, with a tab for sagas."""

from __future__ import annotations

import click

from sagas.cli.command import Refusal

__all__ = ["flower"]


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def flower(context: click.Context, options: tuple[str, ...]) -> None:
    """Run Flower with a tab for sagas. Takes all options of `celery flower`.

    An existing flowerconfig.py is read as always. To show sagas in Flower started by `celery flower`, put there:

        from sagas.contrib.flower import enable

        enable()
    """
    try:
        from flower.command import flower as flowers  # noqa: PLC0415 - an extra, and slow to import

        from sagas.contrib.flower import enable  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise Refusal(f"{error}; pip install celery-sagas[flower]") from error
    enable()
    assert context.parent is not None
    # As a command of celery's, beside `sagas` and not below it: there Flower looks for options that were misplaced.
    with flowers.make_context("flower", list(options), parent=context.parent.parent) as inner:
        flowers.invoke(inner)
