"""What counts as compatible, rule by rule and at random."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from sagas.errors import SchemaRefused
from sagas.events.schema_registry.compatibility import Difference, Mode, Rule, check, compare
from tests.unit import schemas


def obj(required: str = "", /, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required.split()}


INT, NUM, STR, NULL = {"type": "integer"}, {"type": "number"}, {"type": "string"}, {"type": "null"}
ANY: dict[str, Any] = {}


def enum(*values: Any) -> dict[str, Any]:
    return {"enum": list(values)}


def any_of(*branches: Any) -> dict[str, Any]:
    return {"anyOf": list(branches)}


def tagged(**branches: Any) -> dict[str, Any]:
    return any_of(*(obj(f"kind {b[0]}", kind={"const": tag}, **b[1]) for tag, b in branches.items()))


# Writer, reader, and where and why not: empty where it fits.
CASES: list[tuple[Any, Any, str]] = [
    # annotations
    ({**INT, "description": "a"}, {**INT, "title": "b", "x-mine": 1}, ""),
    # numbers
    (INT, NUM, ""),
    (NUM, INT, "$ type"),
    (INT, STR, "$ type"),
    ({**INT, "minimum": 1}, {**INT, "minimum": 0}, ""),
    ({**INT, "minimum": 0}, {**INT, "minimum": 1}, "$ bounds"),
    (INT, {**INT, "maximum": 9}, "$ bounds"),
    ({**INT, "exclusiveMinimum": 0}, {**INT, "minimum": 1}, ""),
    ({**NUM, "exclusiveMinimum": 0}, {**NUM, "minimum": 1}, "$ bounds"),
    ({**NUM, "minimum": 0}, {**NUM, "exclusiveMinimum": 0}, "$ bounds"),
    ({**NUM, "exclusiveMinimum": 0}, {**NUM, "minimum": 0}, ""),
    ({**INT, "minimum": 2, "exclusiveMinimum": 0}, {**INT, "exclusiveMinimum": 1}, ""),
    ({**INT, "multipleOf": 6}, {**INT, "multipleOf": 3}, ""),
    ({**INT, "multipleOf": 3}, {**INT, "multipleOf": 6}, "$ bounds"),
    (INT, {**NUM, "multipleOf": 0.5}, ""),
    # strings
    ({**STR, "maxLength": 3}, {**STR, "maxLength": 4}, ""),
    (STR, {**STR, "maxLength": 4}, "$ length"),
    (STR, {**STR, "minLength": 1}, "$ length"),
    ({**STR, "pattern": "a"}, STR, ""),
    (STR, {**STR, "pattern": "a"}, "$ pattern"),
    ({**STR, "pattern": "a"}, {**STR, "pattern": "b"}, "$ pattern"),
    ({**STR, "format": "uuid"}, STR, ""),
    (STR, {**STR, "format": "uuid"}, "$ format"),
    ({**STR, "format": "date"}, {**STR, "format": "date-time"}, "$ format"),
    (STR, {**STR, "contentEncoding": "base64"}, "$ format"),
    # values
    (enum("a"), enum("a", "b"), ""),
    (enum("a", "b"), enum("a"), "$ values"),
    (enum("a"), STR, ""),
    (STR, enum("a"), "$ type"),
    ({"const": 1}, enum(1, 2), ""),
    ({"const": 1}, {"const": True}, "$ values"),
    ({"const": 1}, {"const": 1.0}, ""),
    ({"const": {"a": [1]}}, obj("a", a={"type": "array", "items": INT}), ""),
    (enum("ab"), {**STR, "pattern": "^a"}, ""),
    (enum("x"), {**STR, "format": "uuid"}, "$ values"),
    ({"enum": ["a", 1], "type": "string"}, STR, ""),
    (enum(6), {**INT, "multipleOf": 3}, ""),
    (enum(7), {**INT, "multipleOf": 3}, "$ values"),
    (enum(0), {**INT, "multipleOf": 3}, ""),
    ({"type": "boolean"}, enum(True, False), ""),
    ({"type": "boolean"}, INT, "$ type"),
    # unions
    (INT, any_of(INT, NULL), ""),
    (any_of(INT, NULL), INT, "$ type"),
    ({"type": ["integer", "null"]}, any_of(NULL, NUM), ""),
    (any_of(STR, INT), any_of(INT, NULL), "$ type"),
    (ANY, INT, "$ type"),
    (INT, ANY, ""),
    (ANY, True, ""),
    (False, INT, ""),
    (tagged(a=("x", {"x": INT})), tagged(a=("x", {"x": NUM}), b=("", {})), ""),
    (tagged(a=("x", {"x": INT}), b=("", {})), tagged(a=("x", {"x": INT})), "$ branch"),
    (tagged(a=("", {}), b=("", {}), c=("", {})), tagged(a=("", {}), b=("", {})), "$ branch"),
    (tagged(a=("x", {"x": INT}), b=("", {})), tagged(a=("x", {"x": STR}), b=("", {})), "$.x type"),
    # objects
    (obj("a", a=INT), obj("", a=INT), ""),
    (obj("", a=INT), obj("a", a=INT), "$.a required"),
    (obj("a", a=INT), obj("a", a=INT, b=STR), ""),
    (obj("a", a=INT), obj("a b", a=INT, b=STR), "$.b required"),
    (obj("a", a=INT), obj("a b", a=INT, b={**STR, "default": "x"}), ""),
    (obj("a", a=INT), obj("a b", a=INT, b={**STR, "default": 1}), "$.b required"),  # a default that will not do
    (obj("a", a=INT, b=INT), obj("a", a=INT), ""),
    (obj("a", a=INT, b=INT), {**obj("a", a=INT), "additionalProperties": False}, "$.b property"),
    ({**obj("", a=INT), "additionalProperties": True}, obj("", a=INT, b=INT), "$.b type"),
    ({**obj("", a=INT), "additionalProperties": INT}, obj("", a=INT, b=NUM), ""),
    (obj("a", a=obj("b", b=INT)), obj("a", a=obj("b", b=STR)), "$.a.b type"),
    ({"type": "object", "additionalProperties": INT}, {"type": "object", "additionalProperties": STR}, "$.* type"),
    ({"type": "object"}, {"type": "object", "additionalProperties": STR}, "$.* type"),
    (obj("", **{"a b": INT}), obj("", **{"a b": STR}), '$["a b"] type'),
    (
        obj("a b", a=INT, b=INT),
        {**obj("", a=INT, b=INT), "additionalProperties": False, "maxProperties": 1},
        "$ length",
    ),
    ({"type": "object"}, {"type": "object", "minProperties": 1}, "$ length"),
    (obj("a"), obj("a", a=INT), "$.a type"),  # required, but nobody says what it is
    ({"type": "object"}, {"type": "object", "propertyNames": {"pattern": "^a"}}, "$.*~ pattern"),
    (obj("", ab=INT), {"type": "object", "propertyNames": {"pattern": "^a"}}, ""),
    (obj("", ba=INT), {"type": "object", "propertyNames": {"pattern": "^a"}}, "$.ba property"),
    # arrays
    ({"type": "array", "items": INT}, {"type": "array", "items": NUM}, ""),
    ({"type": "array", "items": NUM}, {"type": "array", "items": INT}, "$[*] type"),
    ({"type": "array", "items": INT}, {"type": "array"}, ""),
    ({"type": "array", "maxItems": 2}, {"type": "array", "maxItems": 3}, ""),
    ({"type": "array"}, {"type": "array", "maxItems": 3}, "$ items"),
    ({"type": "array"}, {"type": "array", "uniqueItems": True}, "$ items"),
    ({"type": "array", "maxItems": 1}, {"type": "array", "uniqueItems": True}, ""),
    ({"type": "array", "prefixItems": [INT, STR]}, {"type": "array", "prefixItems": [INT, INT]}, "$[1] type"),
    ({"type": "array", "prefixItems": [INT]}, {"type": "array", "prefixItems": [INT, STR]}, ""),
    (
        {"type": "array", "prefixItems": [INT, INT], "minItems": 2},
        {"type": "array", "prefixItems": [INT], "items": False},
        "$ items",
    ),
    ({"type": "array", "items": INT}, {"type": "array", "prefixItems": [STR]}, "$[0] type"),
    ({"type": "array", "prefixItems": [INT, STR]}, {"type": "array", "prefixItems": [INT]}, ""),
]


@pytest.mark.parametrize(("writer", "reader", "wrong"), CASES)
def test_a_rule(writer: Any, reader: Any, wrong: str) -> None:
    found = compare(writer, reader)
    assert [f"{d.path} {d.rule}" for d in found] == ([wrong] if wrong else []), found


def test_a_difference_reads_well() -> None:
    old = obj("lines", lines={"type": "array", "items": obj("sku", sku=STR)})
    new = obj("lines", lines={"type": "array", "items": obj("sku amount", sku=STR, amount=NUM)})
    [difference] = check(new, [(3, old)], Mode.BACKWARD)
    assert difference == Difference(
        "$.lines[*].amount", Rule.REQUIRED, "the new schema requires it; revision 3 may omit it"
    )
    assert str(difference) == "$.lines[*].amount: the new schema requires it; revision 3 may omit it"


def test_a_type_that_leads_back_to_itself() -> None:
    def tree(value: Any) -> Any:
        node = obj("value children", value=value, children={"type": "array", "items": {"$ref": "#/$defs/Tree"}})
        return {"$ref": "#/$defs/Tree", "$defs": {"Tree": node}}

    assert compare(tree(INT), tree(NUM)) == ()
    [difference] = compare(tree(NUM), tree(INT))
    assert difference.path == "$.value"
    # The same shape, one of them unrolled by one step.
    inner = obj("value children", value=INT, children={"type": "array", "items": {"$ref": "#"}})
    unrolled = obj("value children", value=INT, children={"type": "array", "items": inner})
    assert compare(tree(INT), unrolled) == ()
    assert compare(unrolled, tree(INT)) == ()


def test_what_was_assumed_of_a_branch_that_failed_is_forgotten() -> None:
    """Else the second look at the same pair would find nothing wrong with it."""
    chain = {"anyOf": [obj("next bad", next={"$ref": "#"}, bad=INT), NULL]}
    reader = {"anyOf": [obj("next bad", next={"$ref": "#"}, bad=STR), NULL]}
    assert compare(obj("a b", a=chain["anyOf"][0], b=chain), obj("a b", a=reader["anyOf"][0], b=reader))
    whole = obj("a b", a={"$ref": "#/$defs/c"}, b={"$ref": "#/$defs/c"})
    found = compare({**whole, "$defs": {"c": obj("x", x=INT)}}, {**whole, "$defs": {"c": obj("x", x=STR)}})
    assert {d.path for d in found} == {"$.a.x", "$.b.x"}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (obj("", a={"not": INT}), "#/properties/a: the keyword 'not' is not supported"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "refers only to itself"),
        ({"$ref": "other.json"}, "does not point into this document"),
        ({"$ref": "#/$defs/nope"}, "points to no definition"),
        ({"$ref": "#/$defs/a", "minimum": 1, "$defs": {"a": INT}}, "'minimum' beside '.ref'"),
        ({"allOf": [INT, NUM]}, "'allOf' with several schemas"),
        ({"oneOf": [INT, NUM]}, "may fit several branches"),
        ({"oneOf": [obj("a", a=INT), obj("b", b=INT)]}, "may fit several branches"),
        ({"type": "array", "items": [INT]}, "prefixItems"),
        ({"type": "text"}, "type 'text' is not supported"),
        ({"type": "string", "pattern": "("}, "the pattern"),
        ({"type": "integer", "minimum": "1"}, "'minimum' is not a number"),
        ({"type": "integer", "exclusiveMinimum": True}, "'exclusiveMinimum' is not a number"),
        ({"type": "string", "maxLength": -1}, "'maxLength' is not a count"),
        ({"enum": ["a"], "minLength": 1}, "'minLength' beside 'enum'"),
        ({"patternProperties": {}}, "'patternProperties' is not supported"),
        (obj("", a={"$id": "x"}), "'.id' inside"),
        (7, "7 is not a schema"),
    ],
)
def test_what_it_does_not_understand_is_refused_with_its_place(schema: Any, message: str) -> None:
    with pytest.raises(SchemaRefused, match=f"the new schema, at .*{message}"):
        check(schema, [], Mode.FULL)
    check(schema, [(1, INT)], Mode.NONE)


def test_branches_that_are_told_apart_may_be_one_of() -> None:
    for branches in (
        [INT, STR, NULL],
        [enum("a"), enum("b"), INT],
        [obj("k", k={"const": "a"}), obj("k", k={"const": "b"})],
    ):
        check({"oneOf": branches}, [], Mode.FULL)


def test_modes() -> None:
    wide, narrow = NUM, INT
    assert not check(wide, [(1, narrow)], Mode.BACKWARD)
    assert check(wide, [(1, narrow)], Mode.FORWARD)
    assert check(narrow, [(1, wide)], Mode.BACKWARD)
    assert not check(narrow, [(1, wide)], Mode.FORWARD)
    assert check(wide, [(1, narrow)], Mode.FULL)
    assert not check(STR, [(1, narrow)], Mode.NONE)
    revisions = [(1, STR), (2, INT)]
    for mode in (Mode.BACKWARD, Mode.FORWARD, Mode.FULL):
        assert not check(INT, revisions, mode)
    for mode in (Mode.BACKWARD_TRANSITIVE, Mode.FORWARD_TRANSITIVE, Mode.FULL_TRANSITIVE):
        assert check(INT, revisions, mode)


def test_every_schema_reads_what_it_writes() -> None:
    rnd = random.Random(1)
    for _ in range(500):
        definition = schemas.document_type(rnd)
        assert compare(definition, definition) == ()


def fits(writer: Any, reader: Any) -> bool | None:
    """None: refused as not understood."""
    try:
        return not compare(writer, reader)
    except SchemaRefused as error:
        assert "may fit several branches" in str(error)  # the tag of a branch was changed
        return None


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**64))
def test_what_is_compatible_is_never_rejected(seed: int) -> None:
    """In both directions, with documents that know nothing of the checker."""
    rnd = random.Random(seed)
    old = schemas.document_type(rnd)
    new = schemas.change(rnd, old)
    for writer, reader in ((old, new), (new, old)):
        if not fits(writer, reader):
            continue
        for _ in range(5):
            try:
                found = schemas.document(rnd, writer)
            except schemas.CannotWrite:
                continue
            assert schemas.reads(reader, found), (writer, reader, found)


def test_what_two_small_schemas_have_in_common() -> None:
    """Of two that have nothing to do with each other, every rule gets its turn."""
    rnd = random.Random(13)
    compatible = 0
    for _ in range(6_000):
        kind = rnd.choice([schemas.number, schemas.text, schemas.values, schemas.array, schemas.map_, schemas.record])
        writer, reader = kind(rnd), kind(rnd)
        if not fits(writer, reader):
            continue
        compatible += 1
        for _ in range(4):
            try:
                found = schemas.document(rnd, writer)
            except schemas.CannotWrite:
                continue
            assert schemas.reads(reader, found), (writer, reader, found)
    assert compatible > 600, compatible


def test_most_of_what_is_incompatible_has_a_witness() -> None:
    """The checker may call compatible things incompatible, but seldom."""
    rnd = random.Random(7)
    shown = claimed = compatible = 0
    for _ in range(300):
        old = schemas.document_type(rnd)
        new = schemas.change(rnd, old)
        verdict = fits(old, new)
        if verdict is not False:
            compatible += verdict is True
            continue
        claimed += 1
        for _ in range(60):
            try:
                found = schemas.document(rnd, old)
            except schemas.CannotWrite:
                continue
            if not schemas.reads(new, found):
                shown += 1
                break
    assert compatible > 60, compatible
    assert shown / claimed > 0.8, (shown, claimed)


def test_every_answer_is_for_a_valid_schema() -> None:
    rnd = random.Random(3)
    for _ in range(100):
        Draft202012Validator.check_schema(schemas.change(rnd, schemas.document_type(rnd)))
