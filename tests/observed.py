"""What a worker process imports whose metrics, spans and logs are looked at: `celery -A tests.observed worker`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from sagas import Sagas, logs
from sagas.contrib.opentelemetry import Tracing
from sagas.contrib.prometheus import export
from tests.rig import app_of


class ToFile(SpanExporter):
    """Writes each span as a line, as soon as it ends: what a killed process had exported stays."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with self._file.open("a") as file:
            for span in spans:
                line = {
                    "name": span.name,
                    "trace": span.context.trace_id,
                    "id": span.context.span_id,
                    "parent": None if span.parent is None else span.parent.span_id,
                    "pid": os.getpid(),
                    "error": span.status.description,
                    **(span.attributes or {}),
                }
                file.write(json.dumps(line) + "\n")
        return SpanExportResult.SUCCESS


def trace(sagas: Sagas, folder: Path) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(ToFile(folder / "spans")))
    sagas.observers.add(Tracing(provider))


if "RIG" in os.environ:
    settings = json.loads(os.environ["RIG"])
    app = app_of(settings)
    app.conf.worker_log_format = "%(levelname)s [%(saga)s %(saga_id)s %(step)s %(attempt)s] %(message)s"
    trace(app.sagas, Path(settings["folder"]))
    export(app.sagas)
    logs.install(app.sagas)
