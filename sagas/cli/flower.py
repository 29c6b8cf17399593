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

    A flowerconfig.py is read as usual. To show sagas in a Flower that `celery flower` starts, put this into it:

        from sagas.contrib.flower import enable

        enable()
    """
    try:
        from flower.command import flower as flowers  # noqa: PLC0415 - an extra, and slow to import

        from sagas.contrib.flower import enable  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise Refusal(f"{error}. Install it: pip install celery-sagas[flower]") from error
    enable()
    assert context.parent is not None
    # As a Celery command beside `sagas` rather than below it: below, Flower would look for misplaced options.
    with flowers.make_context("flower", list(options), parent=context.parent.parent) as inner:
        flowers.invoke(inner)
