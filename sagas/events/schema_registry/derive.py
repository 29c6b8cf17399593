"""Derive the JSON Schema of a message type: the format of its messages at the broker."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import inspect

from sagas.errors import SchemaRefused
from sagas.events.messages import MessageType, type_of
from sagas.events.schema_registry.compatibility import CHECKS, VALIDATOR
from sagas.values import is_pydantic

__all__ = ["describe", "schema_of"]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema_of(message: MessageType | type) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a message type or message class.

    Raises `DefinitionError` if the class is not a message, and `SchemaRefused` for a type without a JSON Schema.

    >>> from sagas.events import event
    >>> @event("orders.order.placed")
    ... class OrderPlaced:
    ...     order_id: str
    >>> schema_of(OrderPlaced)["$defs"]["OrderPlaced"]["properties"]
    {'order_id': {'type': 'string'}}
    """
    declared = message if isinstance(message, MessageType) else type_of(message)
    try:
        definition = describe(declared.cls)
    except RecursionError as error:
        raise SchemaRefused(
            f"{declared.kind} {declared.name!r} cannot be described: its types are nested too deep"
        ) from error
    except (TypeError, ValueError, RuntimeError) as error:  # pydantic's own is a RuntimeError
        raise SchemaRefused(f"{declared.kind} {declared.name!r} cannot be described: {error}") from error
    return {"$schema": _DIALECT, **definition}


def describe(cls: type) -> dict[str, Any]:
    """Return the JSON Schema of any class with fields. Raises `TypeError` for a type that cannot be described."""
    return _of_pydantic(cls) if is_pydantic(cls) else _of_plain(cls)


def _of_pydantic(cls: Any, template: str = "#/$defs/{model}") -> dict[str, Any]:
    # pydantic is imported only if the user has a pydantic model.
    from sagas.events.schema_registry.checks import Generator  # noqa: PLC0415

    # With the names that are written: by default pydantic describes aliases but writes field names.
    written: dict[str, Any] = cls.model_json_schema(
        by_alias=cls.model_config.get("serialize_by_alias", False), ref_template=template, schema_generator=Generator
    )
    return written


def _of_plain(cls: type) -> dict[str, Any]:
    models: dict[str, Any] = {}

    def describe_model(type_: type) -> dict[str, Any]:
        if not is_pydantic(type_):
            raise TypeError(f"a {type_.__qualname__} cannot be stored as JSON")
        name = re.sub(r"[^\w.-]", "_", f"{type_.__module__}.{type_.__qualname__}")
        if name not in models:
            model = _of_pydantic(type_, f"#/$defs/{name}.{{model}}")
            models.update({f"{name}.{inner}": each for inner, each in model.pop("$defs", {}).items()})
            models[name] = model
        return {"$ref": f"#/$defs/{name}"}

    parts: list[Any] = list(_parts(inspect.type_info(cls), {}).values())
    references, definitions = msgspec.json.schema_components(
        [part.cls for part in parts], schema_hook=describe_model, ref_template="#/$defs/{name}"
    )
    for part, reference in zip(parts, references, strict=True):
        definition = definitions[reference["$ref"].removeprefix("#/$defs/")]
        _mend_fields(part, definition)
        if hasattr(part.cls, "__post_init__"):
            definition[CHECKS] = [f"{VALIDATOR}{part.cls.__module__}.{part.cls.__post_init__.__qualname__}"]
    return {**references[0], "$defs": definitions | models}


def _parts(type_: inspect.Type, found: dict[Any, Any]) -> dict[Any, Any]:
    """Return the types with fields inside a type, starting with the type itself."""
    if hasattr(type_, "fields"):
        part: Any = type_
        if part.cls not in found:
            found[part.cls] = part
            for each in part.fields:
                _parts(each.type, found)
    else:
        for inner in _inside(type_):
            _parts(inner, found)
    return found


def _inside(type_: inspect.Type) -> tuple[inspect.Type, ...]:
    match type_:
        case inspect.Metadata():
            return (type_.type,)
        case inspect.UnionType():
            return type_.types
        case inspect.CollectionType():
            return (type_.item_type,)
        case inspect.TupleType():
            return type_.item_types
        case inspect.DictType() | inspect.FrozenDictType():
            return (type_.key_type, type_.value_type)
    return ()


# What msgspec leaves out is added, so that a change becomes visible: msgspec describes a datetime without a time zone
# as any text, and does not describe the keys of a mapping.


def _mend_fields(part: Any, schema: dict[str, Any]) -> None:
    if "properties" in schema:
        for each in part.fields:
            _mend(each.type, schema["properties"][each.encode_name])
    else:
        tag = len(schema["prefixItems"]) - len(part.fields)  # a tagged array starts with its tag
        for each, item in zip(part.fields, schema["prefixItems"][tag:], strict=True):
            _mend(each.type, item)


def _mend(type_: inspect.Type, schema: Any) -> None:
    type_ = _bare(type_)
    match type_:
        case inspect.UnionType():
            for member in type_.types:
                for branch in _branches(member, schema):
                    _mend(member, branch)
        case inspect.DateTimeType() | inspect.TimeType():
            _mend_moment(type_, schema)
        case inspect.CollectionType():
            _mend(type_.item_type, schema.get("items"))
        case inspect.TupleType():
            for item, each in zip(type_.item_types, schema.get("prefixItems", ()), strict=True):
                _mend(item, each)
        case inspect.DictType() | inspect.FrozenDictType():
            if names := _names(_bare(type_.key_type)):
                schema["propertyNames"] = names
            _mend(type_.value_type, schema.get("additionalProperties"))


def _bare(type_: inspect.Type) -> inspect.Type:
    while isinstance(type_, inspect.Metadata):
        type_ = type_.type
    return type_


def _branches(member: inspect.Type, schema: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the branches that describe a member of a union, which has at most one text, array and mapping."""
    match _bare(member):
        case inspect.DateTimeType() | inspect.TimeType():
            kind = "string"
        case inspect.CollectionType() | inspect.TupleType():
            kind = "array"
        case inspect.DictType() | inspect.FrozenDictType():
            kind = "object"
        case _:
            return []
    return [branch for branch in schema["anyOf"] if branch.get("type") == kind]


def _mend_moment(type_: inspect.DateTimeType | inspect.TimeType, schema: dict[str, Any]) -> None:
    zoned, local = (
        ("date-time", "date-time-local") if isinstance(type_, inspect.DateTimeType) else ("time", "partial-time")
    )
    if type_.tz is None:
        del schema["type"]
        schema["anyOf"] = [{"type": "string", "format": zoned}, {"type": "string", "format": local}]
    else:
        schema["format"] = zoned if type_.tz else local


def _names(key: inspect.Type) -> dict[str, Any] | None:
    """Return the schema for a mapping's names; None if msgspec has described them, or they can be any text."""
    if isinstance(key, inspect.LiteralType):
        return {"enum": sorted(map(str, key.values))}
    if isinstance(key, inspect.EnumType):
        return {"enum": sorted(str(member.value) for member in key.cls)}
    if isinstance(key, inspect.DateTimeType | inspect.TimeType):
        schema: dict[str, Any] = {"type": "string"}
        _mend_moment(key, schema)
        return schema
    return _NAMES.get(type(key))


_NAMES: dict[type, dict[str, Any]] = {
    inspect.IntType: {"pattern": "^-?[0-9]+$"},
    inspect.FloatType: {"pattern": "^-?[0-9]+([.][0-9]+)?([eE][-+]?[0-9]+)?$"},
    inspect.UUIDType: {"format": "uuid"},
    inspect.DateType: {"format": "date"},
    inspect.TimeDeltaType: {"format": "duration"},
    inspect.DecimalType: {"format": "decimal"},
    inspect.BytesType: {"contentEncoding": "base64"},
}
