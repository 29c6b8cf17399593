"""What `Sagas(redact=[...])` names is told nowhere: the whole of the database, of the logs and of what operators see.

The store encrypts, so that not a byte of the database may hold it either.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypedDict, cast

import click
import pytest
from celery import Celery
from click.testing import CliRunner
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sagas import Pivot, Retry, Saga, SagaHandle, Sagas, SagaStatus, SqlStore, Step, StepContext
from sagas.cli.sagas import sagas as group
from sagas.contrib.flower import api, listing, one
from sagas.contrib.opentelemetry import Tracing
from sagas.errors import InvalidInput
from sagas.events import Events, Service, event
from sagas.events.brokers.memory import MemoryBroker
from sagas.operations import Operations
from sagas.operator_actions import Action
from sagas.redaction import MASK, Redaction
from sagas.stores import Filter
from sagas.stores.encryption import AesGcm

CARD, PIN, LIMIT = "4111-2222 'ü\" 3333", "98765432", 120.98765432
QUICK = Retry(max_attempts=2, delay=0, jitter=0)


@event("shop.reserved")
class Reserved:
    number: str


class Placed(TypedDict):
    number: str
    card: str
    fault: str


class Account(TypedDict):
    number: str
    account: dict[str, Any]


class Broken(Exception):
    pass


def reserve(number: str, step: StepContext) -> Account:
    step.emit(Reserved(number=number))
    return {"number": number, "account": {"pin": PIN, "limits": [LIMIT]}}


def release(card: str) -> None:
    raise RuntimeError(f"no release for {card}")


def charge(card: str, fault: str, reserve: Account) -> None:
    account = reserve["account"]
    try:
        raise Broken(card)
    except Broken as error:
        if fault == "pivot":
            told = {"card": card}
            raise ValueError(f"{told!r} {json.dumps(told)} {card} {account['pin']} {account['limits'][0]} 7") from error
        raise RuntimeError("nothing to hide") from ExceptionGroup("all", [error, KeyError(account["pin"])])


def definitions() -> tuple[Saga, Saga]:
    """Return one that is stuck at its pivot, and one that is stuck on its way back."""
    first = Step("reserve", reserve, compensation=release, compensation_retry=QUICK)
    return (
        Saga("at_pivot", first, Pivot("charge", charge, retry=QUICK), input=Placed, publish_lifecycle=True),
        Saga(
            "backward",
            first,
            Step("charge", charge, compensation=None, retry=QUICK),
            input=Placed,
            publish_lifecycle=True,
        ),
    )


def start(operations: Operations) -> list[SagaHandle]:
    return [
        operations.sagas.start_by_name(
            name, {"number": "7", "card": CARD, "fault": key}, key=key, correlation_id="story"
        )
        for name, key in (("at_pivot", "pivot"), ("backward", "group"))
    ]


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    yield exporter
    exporter.shutdown()


@pytest.fixture
def operations(tmp_path: Path, spans: InMemorySpanExporter) -> Iterator[Operations]:
    store = SqlStore(f"sqlite:///{tmp_path / 'sagas.db'}", codec=AesGcm({"1": bytes(32)}, current="1"))
    store.upgrade()
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.update(task_always_eager=True)
    events = Events([Service("shop", publishes=[Reserved])], engine=store.engine, broker=MemoryBroker())
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    redact = ["card", "account"]
    yield Operations(Sagas(app, store, definitions(), events=events, redact=redact, observers=[Tracing(provider)]))
    app.close()
    store.engine.dispose()


def assert_hidden(where: str, text: str) -> None:
    for secret in (CARD, PIN, str(LIMIT)):
        for form in (secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], json.dumps(json.dumps(secret))[3:-3]):
            assert form not in text, f"{where}: {text[max(0, text.find(form) - 200) :][:500]}"


def test_it_is_told_nowhere(
    operations: Operations, spans: InMemorySpanExporter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    handles = start(operations)
    assert [handle.status for handle in handles] == [SagaStatus.STUCK, SagaStatus.STUCK]
    error = handles[0].record.step("charge").error or ""
    assert error.endswith(f"{MASK} {MASK} {MASK} 7")
    assert operations.shown(cast("str", operations.queries.payloads(handles[0].id).input))["card"] == MASK

    assert_hidden("logs", caplog.text)
    assert "attempt failed" in caplog.text
    assert "Broken: •••" in caplog.text  # the traceback is there
    assert_hidden("spans", " ".join(span.to_json() for span in spans.get_finished_spans()))
    database = b"".join(file.read_bytes() for file in tmp_path.glob("sagas.db*"))
    assert_hidden("the database", database.decode(errors="replace"))
    assert b"sagas.saga.got_stuck" in database

    command_line = click.Group("celery", commands={"sagas": group})
    obj = SimpleNamespace(app=operations.sagas.app, no_color=False)
    for words in (
        "list", "list --json", "list --counts", *(f"{what} pivot" for what in ("show", "show --json", "history")),
        "show group --json", "history group --json", "events trace story", "events trace story --json", "graph pivot",
        "list --error 4111-2222 --json", "events outbox --json", "audit --json", "check-deploy", "db audit",
        "retry pivot --reason again --actor ann", "skip group --reason enough --actor ann", "audit", "show pivot",
        f"purge --older-than 0.001s --reason old --actor ann --yes --archive {tmp_path / 'archive.jsonl'}",
    ):  # fmt: skip
        done = CliRunner().invoke(command_line, ["sagas", *words.split()], obj=obj)
        assert done.exit_code in (0, 1), (words, done.output)
        assert_hidden(words, done.output)
    archived = (tmp_path / "archive.jsonl").read_text()
    assert "backward" in archived
    assert_hidden("archive", archived)

    found, handler = one.look(operations, handles[0].id), SimpleNamespace(operations=operations)
    assert_hidden("flower", json.dumps(api._whole(cast("Any", handler), found)) + repr(found.results) + found.input)
    rows = listing.look(operations, listing.Asked(view="all")).rows
    assert_hidden("flower's list", repr(rows))
    assert operations.queries.select(Filter(error="4111-2222")) == []


def test_a_result_that_an_operator_gives_is_not_quoted(operations: Operations) -> None:
    with pytest.raises(InvalidInput) as refused:
        operations.act(Action.MARK_DONE, start(operations)[0].id, actor="ann", reason="by hand", result={"card": CARD})
    assert_hidden("the refusal", str(refused.value))


def test_short_values_and_other_names_stay() -> None:
    redaction = Redaction(
        frozenset({"cvc", "card"}), ['{"cvc": "123", "number": 1234, "card": {"n": 55555, "ok": true}}']
    )
    assert redaction.text("123 1234 55555 true") == "123 1234 ••• true"
    assert not Redaction(frozenset(), ['{"card": "4111"}'])
    assert not Redaction(frozenset({"card"}), ["not JSON", '"text"'])
