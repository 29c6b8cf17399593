"""Schemas, changes to them, and documents that are written by them, at random. Knows nothing of the checker."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

from jsonschema import Draft202012Validator

Schema = Any

NAMES = ("a", "b", "c", "d")


def schema(rnd: random.Random, depth: int = 3) -> Schema:
    leaves: list[Callable[[random.Random], Schema]] = [
        _integer, _integer, _number, _text, _text, _enum,
        lambda _: {"type": "null"}, lambda _: {"type": "boolean"}, lambda _: {}, lambda r: {"const": _value(r)},
    ]  # fmt: skip
    if depth == 0:
        return rnd.choice(leaves)(rnd)
    deep = [_object, _object, _object, _array, _tuple, _map, _union, _tagged, _types]
    if rnd.random() < 0.35:
        return rnd.choice(leaves)(rnd)
    return rnd.choice(deep)(rnd, depth - 1)


def document_type(rnd: random.Random) -> Schema:
    """A whole document: an object, with definitions that may lead back to themselves."""
    root = _object(rnd, 3)
    definitions = {name: schema(rnd, 2) for name in ("N", "T") if rnd.random() < 0.6}
    if "N" in definitions:
        tree = {
            "type": "object",
            "properties": {"value": schema(rnd, 1), "next": {"anyOf": [{"$ref": "#/$defs/N"}, {"type": "null"}]}},
            "required": rnd.choice([[], ["value"], ["next"], ["value", "next"]]),
        }
        definitions["N"] = rnd.choice([definitions["N"], tree])
        root["properties"]["n"] = {"$ref": "#/$defs/N", "description": "a chain"}
    if "T" in definitions:
        root["properties"]["t"] = {"type": "array", "items": {"$ref": "#/$defs/T"}}
    return {**root, "$defs": definitions} if definitions else root


def _maybe(rnd: random.Random, word: str, *values: Any) -> dict[str, Any]:
    return {word: rnd.choice(values)} if rnd.random() < 0.3 else {}


def _integer(rnd: random.Random) -> Schema:
    return {
        "type": "integer",
        **_maybe(rnd, "minimum", 0, 1, 2),
        **_maybe(rnd, "exclusiveMinimum", 0, 1),
        **_maybe(rnd, "maximum", 5, 6),
        **(_maybe(rnd, "multipleOf", 2, 3) if rnd.random() < 0.3 else {}),
    }


def _number(rnd: random.Random) -> Schema:
    return {"type": "number", **_maybe(rnd, "minimum", 0, 0.5), **_maybe(rnd, "exclusiveMaximum", 5, 6.5)}


def _text(rnd: random.Random) -> Schema:
    return {
        "type": "string",
        **_maybe(rnd, "minLength", 0, 1),
        **_maybe(rnd, "maxLength", 2, 3),
        **_maybe(rnd, "pattern", "^[xy]*$", "^x*$"),
    }


def _value(rnd: random.Random) -> Any:
    return rnd.choice([None, True, False, 0, 1, 2, 1.5, "x", "y", "xy", [], [1], {}, {"a": 1}])


def _enum(rnd: random.Random) -> Schema:
    return {"enum": rnd.sample(["x", "y", "z", 1, 2, None, True], rnd.randint(1, 3))}


def _object(rnd: random.Random, depth: int) -> Schema:
    names = rnd.sample(NAMES, rnd.randint(0, 3))
    made = {
        "type": "object",
        "properties": {name: schema(rnd, depth) for name in names},
        "required": [name for name in names if rnd.random() < 0.5],
    }
    if rnd.random() < 0.3:
        others: list[Any] = [False, False, True, {"type": "integer"}]
        made["additionalProperties"] = rnd.choice(others)
    return made


def _map(rnd: random.Random, depth: int) -> Schema:
    return {
        "type": "object",
        "additionalProperties": schema(rnd, depth),
        **_maybe(rnd, "minProperties", 1),
        **_maybe(rnd, "maxProperties", 1, 2),
        **_maybe(rnd, "propertyNames", {"pattern": "^[ab]$"}, {"enum": ["a", "b"]}),
    }


def _array(rnd: random.Random, depth: int) -> Schema:
    return {
        "type": "array",
        "items": schema(rnd, depth),
        **_maybe(rnd, "minItems", 1),
        **_maybe(rnd, "maxItems", 2, 3),
        **_maybe(rnd, "uniqueItems", True),
    }


def _tuple(rnd: random.Random, depth: int) -> Schema:
    prefix = [schema(rnd, depth) for _ in range(rnd.randint(1, 2))]
    others: list[Any] = [False, True, {"type": "integer"}]
    return {
        "type": "array",
        "prefixItems": prefix,
        **_maybe(rnd, "minItems", len(prefix)),
        **_maybe(rnd, "items", *others),
    }


def _union(rnd: random.Random, depth: int) -> Schema:
    return {"anyOf": [schema(rnd, depth) for _ in range(rnd.randint(1, 3))]}


def _types(rnd: random.Random, _depth: int) -> Schema:
    return {"type": rnd.sample(["null", "boolean", "integer", "string"], 2)}


def _tagged(rnd: random.Random, depth: int) -> Schema:
    branches = []
    for tag in rnd.sample(["one", "two", "three"], 2):
        branch = _object(rnd, depth)
        branch["properties"]["kind"] = {"const": tag}
        branch["required"] = [*branch["required"], "kind"]
        branches.append(branch)
    return {rnd.choice(["oneOf", "anyOf"]): branches, "discriminator": {"propertyName": "kind"}}


# -- small ones of one kind ----------------------------------------------------------------------------------------


def number(rnd: random.Random) -> Schema:
    return rnd.choice([_integer, _number, _enum])(rnd)


def text(rnd: random.Random) -> Schema:
    return rnd.choice([_text, _text, _enum])(rnd)


def values(rnd: random.Random) -> Schema:
    kinds: list[Callable[[random.Random], Schema]] = [_enum, lambda r: _types(r, 0), lambda r: {"const": _value(r)}]
    return rnd.choice(kinds)(rnd)


def array(rnd: random.Random) -> Schema:
    kinds: list[Callable[[random.Random], Schema]] = [
        lambda r: {"type": "array", "items": number(r)},
        lambda r: _array(r, 0),
        lambda r: _tuple(r, 0),
    ]
    return {**rnd.choice(kinds)(rnd), **_maybe(rnd, "uniqueItems", True), **_maybe(rnd, "maxItems", 1, 2)}


def map_(rnd: random.Random) -> Schema:
    made = {**_map(rnd, 0), "additionalProperties": number(rnd)}
    if rnd.random() < 0.5:
        made["properties"] = {name: number(rnd) for name in rnd.sample(NAMES, 1)}
    return made


def record(rnd: random.Random) -> Schema:
    names = rnd.sample(NAMES, 2)
    return {
        "type": "object",
        "properties": {name: rnd.choice([{}, {"type": "integer"}, number(rnd)]) for name in names},
        "required": [name for name in names if rnd.random() < 0.5],
        **_maybe(rnd, "additionalProperties", False),
        **_maybe(rnd, "maxProperties", 1, 2),
        **_maybe(rnd, "minProperties", 1),
    }


# -- changes ------------------------------------------------------------------------------------------------------


def change(rnd: random.Random, before: Schema) -> Schema:
    """A copy with one to three things changed somewhere in it."""
    after = copy.deepcopy(before)
    for _ in range(rnd.randint(1, 3)):
        _change(rnd, rnd.choice(_places(after)))
    return after


def _places(raw: Schema) -> list[dict[str, Any]]:
    if not isinstance(raw, dict):
        return []
    found = [raw]
    for word in ("properties", "$defs"):
        for each in raw.get(word, {}).values():
            found += _places(each)
    for word in ("anyOf", "oneOf", "prefixItems"):
        for each in raw.get(word, []):
            found += _places(each)
    for word in ("items", "additionalProperties"):
        found += _places(raw.get(word))
    return found


def _change(rnd: random.Random, raw: dict[str, Any]) -> None:
    kind = raw.get("type")
    if "properties" in raw:
        names = list(raw["properties"])
        what = rnd.randrange(5)
        if what == 0:
            raw["properties"][rnd.choice(NAMES)] = schema(rnd, 1)
        elif what == 1:
            name = rnd.choice(NAMES)
            raw["properties"].setdefault(name, {"type": "integer", "default": 1})
            raw["required"] = sorted({*raw["required"], name})
        elif what == 2 and names:
            freed = rnd.choice(names)
            raw["required"] = [name for name in raw["required"] if name != freed or name == "kind"]
        elif what == 3 and names:
            gone = rnd.choice(names)
            if gone != "kind":
                del raw["properties"][gone]
                raw["required"] = [name for name in raw["required"] if name != gone]
        else:
            raw.pop("additionalProperties", None)
            if rnd.random() < 0.3:
                raw["additionalProperties"] = False
    elif "anyOf" in raw:
        if rnd.random() < 0.6:
            raw["anyOf"].append(schema(rnd, 1))
        elif len(raw["anyOf"]) > 1:
            raw["anyOf"].pop(rnd.randrange(len(raw["anyOf"])))
    elif "enum" in raw:
        values = raw["enum"]
        if rnd.random() < 0.3 and 1 in values and True not in values:
            values[values.index(1)] = True
        elif rnd.random() < 0.6:
            values.append("new")
        elif len(values) > 1:
            values.pop()
    elif kind == "integer" and rnd.random() < 0.4:
        raw.pop("multipleOf", None)
        raw["type"] = "number"
    elif kind in ("integer", "number"):
        raw[rnd.choice(["minimum", "exclusiveMinimum"])] = rnd.choice([-1, 0, 1, 3])
    elif kind == "string":
        raw.pop("pattern", None)
        raw["maxLength"] = rnd.choice([1, 2, 3, 9])
    elif kind == "array" and rnd.random() < 0.7:
        raw.update(rnd.choice([{"maxItems": 1}, {"maxItems": 9}, {"uniqueItems": True}]))
    elif kind == "object":
        raw.update(rnd.choice([{"maxProperties": 1}, {"minProperties": 1}, {"propertyNames": {"pattern": "^[ab]$"}}]))
    elif "$ref" not in raw and "oneOf" not in raw and "$defs" not in raw and kind != "object":
        raw.clear()
        raw.update(schema(rnd, 1))


# -- documents ----------------------------------------------------------------------------------------------------


class CannotWrite(Exception):
    """The dice found no document that fits."""


def document(rnd: random.Random, definition: Schema) -> Any:
    """A document that a writer of this schema may write: valid, and with no more in it than is named."""
    found = _write(rnd, definition, definition, 5)
    if not Draft202012Validator(_closed(definition)).is_valid(found):
        raise CannotWrite
    return found


def _closed(raw: Any) -> Any:
    """The schema of what is written: with nothing in it that is not named."""
    if isinstance(raw, list):
        return [_closed(each) for each in raw]
    if not isinstance(raw, dict):
        return raw
    made = {word: value if word in ("enum", "const") else _closed(value) for word, value in raw.items()}
    if (
        isinstance(raw.get("properties"), dict)
        and "additionalProperties" not in raw
        and isinstance(raw.get("type"), str)
    ):
        named = dict.fromkeys(raw.get("required", []), True)
        made |= {"additionalProperties": False, "properties": {**named, **made["properties"]}}
    if "prefixItems" in raw and "items" not in raw:
        made["items"] = False
    return made


def _write(rnd: random.Random, raw: Schema, root: Schema, depth: int) -> Any:
    if raw is False or depth < 0:
        raise CannotWrite
    if raw is True or not set(raw) - {"description", "default"}:
        return _value(rnd)
    if "$ref" in raw:
        return _write(rnd, root["$defs"][raw["$ref"].rpartition("/")[2]], root, depth - 1)
    for word in ("anyOf", "oneOf"):
        if word in raw:
            choices = list(raw[word])
            rnd.shuffle(choices)
            for choice in choices:
                try:
                    return _write(rnd, choice, root, depth)
                except CannotWrite:
                    continue
            raise CannotWrite
    if "enum" in raw:
        return rnd.choice(raw["enum"])
    if "const" in raw:
        return raw["const"]
    kind = raw["type"]
    kind = rnd.choice(kind) if isinstance(kind, list) else kind
    if kind == "null":
        return None
    if kind == "boolean":
        return rnd.random() < 0.5
    if kind in ("integer", "number"):
        low = max(raw.get("minimum", -3), raw.get("exclusiveMinimum", -4) + (kind == "integer"))
        values: list[Any] = [value for value in range(-4, 10) if value >= low]
        if kind == "number":
            values += [value + 0.5 for value in values]
        values = [value for value in values if Draft202012Validator(raw).is_valid(value)]
        if not values:
            raise CannotWrite
        return rnd.choice([values[0], values[-1], rnd.choice(values)])
    if kind == "string":
        texts = [t for t in ("", "x", "y", "xy", "xx", "xyx", "q", "qqqq") if Draft202012Validator(raw).is_valid(t)]
        if not texts:
            raise CannotWrite
        return rnd.choice(texts)
    if kind == "array":
        return _write_array(rnd, raw, root, depth)
    return _write_object(rnd, raw, root, depth)


def _write_array(rnd: random.Random, raw: Schema, root: Schema, depth: int) -> Any:
    prefix = raw.get("prefixItems", [])
    others = raw.get("items", not prefix)
    most = min(raw.get("maxItems", 4), 4) if others is not False else min(raw.get("maxItems", 4), len(prefix))
    fewest = raw.get("minItems", 0)
    if fewest > most:
        raise CannotWrite
    wanted = rnd.choice([fewest, most, rnd.randint(fewest, most)])
    made: list[Any] = []
    for index in range(wanted):
        try:
            made.append(_write(rnd, prefix[index] if index < len(prefix) else others, root, depth - 1))
        except CannotWrite:
            break
    return made


def _write_object(rnd: random.Random, raw: Schema, root: Schema, depth: int) -> Any:
    properties = raw.get("properties", {})
    others = raw.get("additionalProperties", "properties" not in raw)
    names = {*raw.get("required", [])} | {name for name in properties if rnd.random() < 0.6}
    if others is not False:
        names |= {name for name in (*NAMES, "other") if name not in properties and rnd.random() < 0.3}
    made = {}
    for name in sorted(names):
        try:
            made[name] = _write(rnd, properties.get(name, others if others is not False else True), root, depth - 1)
        except CannotWrite:
            if name in raw.get("required", []):
                raise
    return made


# -- readers ------------------------------------------------------------------------------------------------------


def reads(definition: Schema, found: Any) -> bool:
    """Whether a reader of this schema takes a document: JSON Schema's own rules, after defaults are filled in."""
    return bool(Draft202012Validator(_lenient(definition)).is_valid(found))


def _lenient(raw: Any) -> Any:
    """What is required and has a default need not be there."""
    if isinstance(raw, list):
        return [_lenient(each) for each in raw]
    if not isinstance(raw, dict):
        return raw
    made = {word: _lenient(value) for word, value in raw.items()}
    if isinstance(raw.get("required"), list):
        defaults = {n for n, p in raw.get("properties", {}).items() if isinstance(p, dict) and "default" in p}
        made["required"] = [name for name in raw["required"] if name not in defaults]
    return made
