"""What is asked of every schema registry."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws
from moto.glue.models import glue_backends

from sagas import SqlStore
from sagas.errors import ConfigurationError, EventError, SchemaRefused, StoreUnavailable
from sagas.events.schema_registry import JSON, Mode, Schema, SchemaRegistry
from sagas.events.schema_registry.avro import AVRO
from sagas.events.schema_registry.confluent import ConfluentSchemaRegistry
from sagas.events.schema_registry.glue import GlueSchemaRegistry
from sagas.events.schema_registry.sql import SqlSchemaRegistry
from tests import forks
from tests.databases import database_url, migrated_store
from tests.rig import ROOT
from tests.schema_server import Refused, SchemaServer

PLACED = "orders.order.placed.v1"
FORMATS = (JSON, AVRO)


def obj(required: str = "", /, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required.split()}


FIRST = obj("order_id", order_id={"type": "string"})
ADDED = obj("order_id", order_id={"type": "string"}, note={"type": "string"})
BROKEN = obj("order_id", order_id={"type": "integer"})


class Glue:
    """moto's Glue, with what it lacks: ListSchemas, told from what it keeps, two a page; and calls one at a time."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)

        def alone(**arguments: Any) -> Any:
            with self._lock:
                return call(**arguments)

        return alone

    def list_schemas(self, **asked: Any) -> Any:
        registry = glue_backends["123456789012"]["eu-west-1"].registries[asked["RegistryId"]["RegistryName"]]
        start, names = int(asked.get("NextToken", 0)), list(registry.schemas)
        page = {"Schemas": [{"SchemaName": name} for name in names[start : start + 2]]}
        return page if start + 2 >= len(names) else {**page, "NextToken": str(start + 2)}


@pytest.fixture
def glue(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    with mock_aws():
        client = boto3.client("glue")
        client.create_registry(RegistryName="shop")
        yield Glue(client)


@pytest.fixture
def server() -> Iterator[SchemaServer]:
    with SchemaServer() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres", "mariadb", "confluent", "glue"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SchemaRegistry]:
    if request.param == "confluent":
        yield ConfluentSchemaRegistry(request.getfixturevalue("server").url, formats=FORMATS)
        return
    if request.param == "glue":
        yield GlueSchemaRegistry("shop", client=request.getfixturevalue("glue"), formats=FORMATS)
        return
    with migrated_store(request, request.param, tmp_path) as store:
        yield SqlSchemaRegistry(store.engine, formats=FORMATS)


def test_an_empty_one(registry: SchemaRegistry) -> None:
    assert list(registry.subjects()) == []
    assert list(registry.revisions(PLACED)) == []
    assert registry.latest(PLACED) is None


def test_revisions_count_up(registry: SchemaRegistry) -> None:
    assert registry.register(PLACED, FIRST, "orders") == 1
    assert registry.register(PLACED, ADDED, "orders") == 2
    first, second = registry.revisions(PLACED)
    assert (first.subject, first.revision, first.format, first.owner) == (PLACED, 1, "json", "orders")
    assert first.definition == FIRST
    assert second.definition == ADDED
    assert first.fingerprint != second.fingerprint
    assert registry.latest(PLACED) == second


def test_the_same_definition_is_the_same_revision(registry: SchemaRegistry) -> None:
    registry.register(PLACED, FIRST, "orders")
    registry.register(PLACED, ADDED, "orders")
    assert registry.register(PLACED, FIRST, "orders") == 1
    assert registry.register(PLACED, dict(reversed(ADDED.items())), "orders") == 2
    assert len(registry.revisions(PLACED)) == 2


def test_what_would_break_is_refused_with_its_place(registry: SchemaRegistry) -> None:
    registry.register(PLACED, FIRST, "orders")
    with pytest.raises(SchemaRefused) as refused:
        registry.register(PLACED, BROKEN, "orders")
    assert "$.order_id: revision 1 may write a string here; the new schema accepts an integer" in str(refused.value)
    assert "$.order_id: the new schema may write an integer here; revision 1 accepts a string" in str(refused.value)
    assert "raise the version" in str(refused.value)
    assert len(registry.revisions(PLACED)) == 1


def test_a_new_version_is_another_subject(registry: SchemaRegistry) -> None:
    registry.register(PLACED, FIRST, "orders")
    assert registry.register("orders.order.placed.v2", BROKEN, "orders") == 1
    assert registry.register("payments.payment.captured.v1", FIRST, "payments") == 1
    assert list(registry.subjects()) == [
        "orders.order.placed.v1",
        "orders.order.placed.v2",
        "payments.payment.captured.v1",
    ]
    assert [each.definition for each in registry.revisions(PLACED)] == [FIRST]


def test_only_the_owner_registers(registry: SchemaRegistry) -> None:
    with pytest.raises(SchemaRefused, match="belongs to 'orders', not to 'payments'"):
        registry.register(PLACED, FIRST, "payments")
    assert list(registry.subjects()) == []


def test_what_is_not_understood_is_refused(registry: SchemaRegistry) -> None:
    with pytest.raises(SchemaRefused, match="at #/properties/a: the keyword 'not'"):
        registry.register(PLACED, obj("", a={"not": {}}), "orders")
    assert list(registry.subjects()) == []


def test_modes(registry: SchemaRegistry) -> None:
    registry.mode = Mode.BACKWARD
    wider = obj("", order_id={"type": ["string", "null"]})
    registry.register(PLACED, FIRST, "orders")
    assert registry.register(PLACED, wider, "orders") == 2  # FORWARD would not
    registry.mode = Mode.FORWARD
    with pytest.raises(SchemaRefused):
        registry.register(PLACED, obj("", order_id={"type": ["string", "null", "integer"]}), "orders")
    registry.mode = Mode.NONE
    assert registry.register(PLACED, obj("", a={"not": {}}), "orders") == 3


def test_all_texts_come_back(registry: SchemaRegistry) -> None:
    definition = {
        **FIRST,
        "description": 'ü💶 "quoted" \\ \n',
        "properties": {"ü": {"enum": ["'", "💶", 1.5, None]}},
        "required": [],
    }
    registry.register(PLACED, definition, "orders")
    [found] = registry.revisions(PLACED)
    assert found.definition == definition


def test_avro_beside_json(registry: SchemaRegistry) -> None:
    def record(*fields: Any) -> Any:
        return {"type": "record", "name": "placed", "fields": list(fields)}

    subject = f"{PLACED}.avro"
    one, two = {"name": "a", "type": "int"}, {"name": "b", "type": "string", "default": ""}
    registry.register(PLACED, FIRST, "orders")
    assert registry.register(subject, record(one), "orders", format="avro") == 1
    assert registry.register(subject, record(one, two), "orders", format="avro") == 2
    assert registry.register(subject, record({"name": "a", "type": {"type": "int"}}), "orders", format="avro") == 1
    with pytest.raises(SchemaRefused, match=r"\$\.a: "):
        registry.register(subject, record({"name": "a", "type": "string"}), "orders", format="avro")
    with pytest.raises(SchemaRefused, match="A subject has one format"):
        registry.register(PLACED, record(one), "orders", format="avro")
    with pytest.raises(ConfigurationError, match="has no format 'xml', only json, avro"):
        registry.register("orders.order.sent.v1", FIRST, "orders", format="xml")
    assert [each.format for each in registry.revisions(subject)] == ["avro", "avro"]


def test_of_many_that_register_at_once_each_gets_a_revision(registry: SchemaRegistry) -> None:
    """None is lost, none has two numbers, and every one was judged against those before it."""
    definitions = [obj("order_id", order_id={"type": "string"}, **{f"p{n}": {"type": "string"}}) for n in range(4)]
    given: dict[int, int] = {}
    failed: list[BaseException] = []
    barrier = threading.Barrier(8)

    def race(number: int) -> None:
        barrier.wait()
        try:
            given[number] = registry.register(PLACED, definitions[number % 4], "orders")
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=race, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    found = registry.revisions(PLACED)
    assert [each.revision for each in found] == [1, 2, 3, 4]
    assert len({each.fingerprint for each in found}) == 4
    for number, revision in given.items():
        assert found[revision - 1].definition == definitions[number % 4]


def test_of_two_that_do_not_agree_one_is_refused(registry: SchemaRegistry) -> None:
    registry.register(PLACED, FIRST, "orders")
    kinds = ["string", "integer", "boolean", "array"]
    outcomes: list[str] = []
    barrier = threading.Barrier(4)

    def race(kind: str) -> None:
        barrier.wait()
        try:
            registry.register(PLACED, obj("order_id", order_id={"type": "string"}, note={"type": kind}), "orders")
            outcomes.append("taken")
        except EventError as error:  # Glue finds some out only afterwards
            assert isinstance(error, SchemaRefused) or isinstance(registry, GlueSchemaRegistry)
            outcomes.append("refused")

    threads = [threading.Thread(target=race, args=(kind,)) for kind in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused", "refused", "refused", "taken"]
    assert len(registry.revisions(PLACED)) == 2 or isinstance(registry, GlueSchemaRegistry)


# -- SQL ----------------------------------------------------------------------------------------------------------


REGISTERS = """
import json, sys
from sagas import SqlStore
from sagas.events.schema_registry.sql import SqlSchemaRegistry
registry = SqlSchemaRegistry(SqlStore(sys.argv[1]).engine)
print("ready", flush=True)
for line in sys.stdin:
    print(registry.register("orders.order.placed.v1", json.loads(line), "orders"), flush=True)
"""


@pytest.mark.parametrize("database", ["sqlite", "postgres", "mariadb"])
def test_two_processes_register_at_once(request: pytest.FixtureRequest, tmp_path: Path, database: str) -> None:
    url = database_url(request, database, tmp_path)
    store = SqlStore(url)
    store.upgrade()
    command = [sys.executable, "-c", REGISTERS, url]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    with forks.Popen(command, **pipes) as one, forks.Popen(command, **pipes) as two:
        definitions = [obj("a", a={"type": "string"}, **{f"p{n}": {"type": "string"}}) for n in range(12)]
        for process in (one, two):
            assert process.stdout.readline() == "ready\n"  # type: ignore[union-attr]
        answers = []
        for process in (one, two):  # both have all to do; they meet on the way
            process.stdin.write("".join(json.dumps(each) + "\n" for each in definitions))  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
        for process in (one, two):
            answers.append(process.communicate()[0].split())
    found = SqlSchemaRegistry(store.engine).revisions(PLACED)
    store.engine.dispose()
    assert [each.revision for each in found] == list(range(1, 13))
    assert len({each.fingerprint for each in found}) == 12
    assert answers[0] == answers[1] == [str(each) for each in range(1, 13)]


def test_a_database_that_is_away() -> None:
    store = SqlStore("postgresql+psycopg://x@127.0.0.1:1/x")
    with pytest.raises(StoreUnavailable, match="the database did not answer"):
        SqlSchemaRegistry(store.engine).subjects()
    store.engine.dispose()


# -- Confluent ----------------------------------------------------------------------------------------------------


def test_the_level_of_a_subject_is_set_once(server: SchemaServer) -> None:
    registry = ConfluentSchemaRegistry(server.url, formats=FORMATS)
    registry.register(PLACED, FIRST, "orders")
    registry.register(f"{PLACED}.avro", "string", "orders", format="avro")
    assert server.levels == {PLACED: "NONE", f"{PLACED}.avro": "FULL_TRANSITIVE"}
    server.levels[PLACED] = "BACKWARD"  # an operator's: then the server has a say too
    with pytest.raises(
        SchemaRefused, match="rejected the request: POST .* 409 Schema being registered is incompatible"
    ):
        registry.register(PLACED, ADDED, "orders")
    assert server.levels[PLACED] == "BACKWARD"


def test_somebody_is_quicker(server: SchemaServer) -> None:
    class Late(ConfluentSchemaRegistry):
        """Somebody else registers after this one has looked, and before it asks for a number."""

        def _write(self, schema: Schema, before: Sequence[Schema]) -> int | None:
            other = obj("order_id", order_id={"type": "string"}, note={"type": "integer"})
            ConfluentSchemaRegistry(server.url).register(PLACED, other, "orders")
            return super()._write(schema, before)

    ConfluentSchemaRegistry(server.url).register(PLACED, FIRST, "orders")
    with pytest.raises(SchemaRefused, match=r"\$\.note: revision 2 may write an integer"):
        Late(server.url).register(PLACED, ADDED, "orders")
    assert len(ConfluentSchemaRegistry(server.url).revisions(PLACED)) == 2


def test_somebody_is_quicker_still(server: SchemaServer) -> None:
    """They register after this one has asked for its number: the server takes that number only once."""
    ConfluentSchemaRegistry(server.url).register(PLACED, FIRST, "orders")
    other = obj("order_id", order_id={"type": "string"}, note={"type": "integer"})
    server.before_post = lambda: server._register(PLACED, {"schema": json.dumps(other), "schemaType": "JSON"})
    with pytest.raises(SchemaRefused, match=r"\$\.note: revision 2 may write an integer"):
        ConfluentSchemaRegistry(server.url).register(PLACED, ADDED, "orders")
    assert len(ConfluentSchemaRegistry(server.url).revisions(PLACED)) == 2


def test_numbers_that_were_deleted_are_not_given_again(server: SchemaServer) -> None:
    registry = ConfluentSchemaRegistry(server.url)
    registry.register(PLACED, FIRST, "orders")
    registry.register(PLACED, ADDED, "orders")
    server.versions[PLACED][1].deleted = True
    assert registry.register(PLACED, obj("order_id", order_id={"type": "string"}, other={}), "orders") == 3
    assert [each.revision for each in registry.revisions(PLACED)] == [1, 3]


@pytest.mark.parametrize("failure", [500, 503, 429, None])
def test_what_goes_away_by_itself_is_tried_again(server: SchemaServer, failure: int | None) -> None:
    server.failures = [failure, failure]
    registry = ConfluentSchemaRegistry(server.url)
    assert registry.subjects() == []
    assert server.requests == ["GET /subjects"] * 3


def test_so_is_a_registration(server: SchemaServer) -> None:
    def fail() -> None:
        raise Refused(503, 50301, "no luck")

    server.before_post = fail
    assert ConfluentSchemaRegistry(server.url).register(PLACED, FIRST, "orders") == 1
    assert server.requests.count(f"POST /subjects/{PLACED}/versions") == 2


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (503, r"GET http://\S+/subjects: answered 503: 50301 no luck"),
        (None, r"the schema registry did not answer: GET http://\S+/subjects"),
    ],
)
def test_what_does_not_go_away_is_an_error(server: SchemaServer, failure: int | None, message: str) -> None:
    server.failures = [failure] * 9
    with pytest.raises(EventError, match=message):
        ConfluentSchemaRegistry(server.url, retries=1).subjects()
    assert len(server.requests) == 2


def test_what_is_no_schema_registry(server: SchemaServer) -> None:
    server.failures = [b"<html>hello</html>"]
    with pytest.raises(EventError, match="Check that this is a schema registry"):
        ConfluentSchemaRegistry(server.url).subjects()
    with pytest.raises(EventError, match="answered 404"):
        ConfluentSchemaRegistry(server.url + "/elsewhere").subjects()
    with pytest.raises(EventError, match="did not answer"):
        ConfluentSchemaRegistry("http://127.0.0.1:1", retries=0).subjects()


def test_a_registry_that_hangs(server: SchemaServer) -> None:
    with server.lock, pytest.raises(EventError, match="did not answer"):
        ConfluentSchemaRegistry(server.url, timeout=0.2, retries=0).subjects()


def test_a_registry_with_a_password() -> None:
    with SchemaServer(auth="shop:secret") as server:
        assert ConfluentSchemaRegistry(server.url, auth=("shop", "secret")).register(PLACED, FIRST, "orders") == 1
        with pytest.raises(EventError, match="answered 401"):
            ConfluentSchemaRegistry(server.url).subjects()


def test_a_registry_that_takes_no_number_is_found_out() -> None:
    """Some that are like Confluent's pass over the number: then two that do not agree can both get in."""
    with SchemaServer(honours_version=False) as server:
        registry = ConfluentSchemaRegistry(server.url)
        registry.register(PLACED, FIRST, "orders")
        other = obj("order_id", order_id={"type": "string"}, note={"type": "integer"})
        server.before_post = lambda: server._register(PLACED, {"schema": json.dumps(other), "schemaType": "JSON"})
        with pytest.raises(EventError, match=r"revision 3 was registered at the same time .* \$.note"):
            registry.register(PLACED, ADDED, "orders")


# -- Glue ---------------------------------------------------------------------------------------------------------


def test_a_registry_that_is_not_there(glue: Any) -> None:
    with pytest.raises(EventError, match="orders.order.placed.v1: Glue rejected the request: EntityNotFoundException"):
        GlueSchemaRegistry("nope", client=glue).register(PLACED, FIRST, "orders")


def test_glue_is_away() -> None:
    client = boto3.client(
        "glue", region_name="eu-west-1", endpoint_url="http://127.0.0.1:1", aws_access_key_id="x",
        aws_secret_access_key="x", config=boto3.session.Config(retries={"max_attempts": 0}),
    )  # fmt: skip
    with pytest.raises(EventError, match="Glue did not answer"):
        GlueSchemaRegistry("shop", client=client).latest(PLACED)


class Deciding:
    """A Glue that thinks for a while, as the real one does and moto's does not."""

    def __init__(self, client: Any, verdicts: list[str]) -> None:
        self._client, self._verdicts = client, verdicts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def register_schema_version(self, **arguments: Any) -> Any:
        return {**self._client.register_schema_version(**arguments), "Status": "PENDING"}

    def get_schema_version(self, **arguments: Any) -> Any:
        found = self._client.get_schema_version(**arguments)
        if found["VersionNumber"] == 2 and self._verdicts:
            found["Status"] = self._verdicts.pop(0)
        return found


def test_glue_thinks_for_a_while(glue: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sagas.events.schema_registry.glue._PAUSE", 0.01)
    registry = GlueSchemaRegistry("shop", client=Deciding(glue, ["PENDING", "AVAILABLE"]))
    registry.register(PLACED, FIRST, "orders")
    assert registry.register(PLACED, ADDED, "orders") == 2


def test_glue_says_no(glue: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sagas.events.schema_registry.glue._PAUSE", 0.01)
    registry = GlueSchemaRegistry("shop", client=Deciding(glue, ["FAILURE"] * 3))
    registry.register(PLACED, FIRST, "orders")
    with pytest.raises(SchemaRefused, match="Glue rejected version 2"):
        registry.register(PLACED, ADDED, "orders")
    assert [each.revision for each in registry.revisions(PLACED)] == [1]


def test_two_that_meet_in_glue_are_found_out(glue: Any) -> None:
    class Late(GlueSchemaRegistry):
        """Somebody else is quicker, after this one has looked."""

        def _write(self, schema: Schema, before: Sequence[Schema]) -> int | None:
            other = obj("order_id", order_id={"type": "string"}, note={"type": "integer"})
            GlueSchemaRegistry("shop", client=glue).register(PLACED, other, "orders")
            return super()._write(schema, before)

    GlueSchemaRegistry("shop", client=glue).register(PLACED, FIRST, "orders")
    with pytest.raises(EventError, match=r"revision 3 was registered at the same time .* \$.note"):
        Late("shop", client=glue).register(PLACED, ADDED, "orders")
