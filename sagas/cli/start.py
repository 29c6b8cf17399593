"""`celery -A yourapp sagas start`: start a saga by hand."""

from __future__ import annotations

from typing import Any

import click

from sagas.cli.command import Command
from sagas.cli.options import JSON_FILE, TEXT, json_object
from sagas.cli.tables import AS_JSON, show

__all__ = ["start"]


@click.command(
    cls=Command,
    short_help="Start a saga for real.",
    epilog="""
        celery -A yourapp sagas start place_order --input order.json --key order-123
        echo '{"sku": "tea"}' | celery -A yourapp sagas start place_order --input - --key order-123
    """,
)
@click.argument("saga")
@click.option("--input", "file", type=JSON_FILE, help="A JSON file with the input; - for stdin.")
@click.option("--key", type=TEXT, help="The business key, which makes repeating harmless. By default the saga's id.")
@click.option("--correlation-id", type=TEXT, metavar="ID", help="The flow that the saga belongs to.")
@AS_JSON
@click.pass_obj
def start(obj: Any, saga: str, file: Any, key: str | None, correlation_id: str | None, as_json: bool) -> None:
    """Start the newest version of SAGA. This is REAL: workers run its actions.

    The same key with the same input returns the existing saga rather than a second one.
    """
    sagas = obj.app.sagas
    given = None if file is None else json_object(file)
    record = sagas.start_by_name(saga, given, key=key, correlation_id=correlation_id).record
    show([{"id": record.id, "saga": record.name, "key": record.key, "status": record.status.value}], as_json=as_json)
