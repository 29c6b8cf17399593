"""`flask sagas ...`: the commands of `celery -A yourapp sagas ...`, for the app that Flask has loaded."""

from __future__ import annotations

import click
from celery import Celery
from celery.bin.base import CLIContext
from flask import Flask

from sagas.cli.command import Group
from sagas.cli.sagas import sagas

__all__ = ["group_for"]


def group_for(app: Flask, celery: Celery) -> click.Group:
    """Return a group with all commands, including those added later. They run in an app context."""

    @click.pass_context
    def enter(context: click.Context) -> None:
        context.with_resource(app.app_context())
        context.obj = CLIContext(app=celery, no_color=False, workdir=None)

    return Group("sagas", commands=sagas.commands, callback=enter, help=sagas.help)
