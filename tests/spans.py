"""Spans of many processes in one file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from sagas.contrib.opentelemetry import Tracing
from sagas.observers import Observers


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


def trace(observers: Observers, folder: Path) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(ToFile(folder / "spans")))
    observers.add(Tracing(provider))


def spans(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "spans").read_text().splitlines()]
