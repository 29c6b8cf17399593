"""Avro definitions of message types, stored beside those in JSON Schema. Needs the extra `avro`.

fastavro parses and validates definitions. It does not check compatibility, so the rules are here: those of Avro's
schema resolution, with two restrictions. The meaning of a logical type must not change. And bytes are never read as
text, which Avro would allow, because not all bytes are text.

>>> from sagas.events import event, type_of
>>> @event("orders.order.placed")
... class OrderPlaced:
...     order_id: str
...     note: str | None = None
>>> AVRO.derive(type_of(OrderPlaced))["fields"]
[{'name': 'order_id', 'type': 'string'}, {'name': 'note', 'type': ['null', 'string'], 'default': None}]
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import msgspec
from fastavro.schema import SchemaParseException, UnknownType, parse_schema
from msgspec import inspect

from sagas.errors import SchemaRefused
from sagas.events.messages import MessageType
from sagas.events.schema_registry.compatibility import Difference, Rule
from sagas.values import is_pydantic

__all__ = ["AVRO", "AvroFormat"]

#: The types that a reader accepts of a writer's type, besides the same one.
_WIDER: Mapping[str, frozenset[str]] = {
    "int": frozenset({"long", "float", "double"}),
    "long": frozenset({"float", "double"}),
    "float": frozenset({"double"}),
    "string": frozenset({"bytes"}),
    "bytes": frozenset({"string"}),  # rejected later
}
_NAMED = ("record", "error", "enum", "fixed")
_LOGICAL = ("logicalType", "precision", "scale")


class AvroFormat:
    """Avro, as a format for a registry: `SqlSchemaRegistry(engine, formats=[JSON, AVRO])`.

    `decimal`: the precision and scale for every `Decimal`; by default a `Decimal` is text.
    """

    name = "avro"

    def __init__(self, *, decimal: tuple[int, int] | None = None) -> None:
        self.decimal = decimal

    def subject(self, declared: MessageType) -> str:
        return f"{declared.topic}.avro"

    def derive(self, declared: MessageType) -> Any:
        namespace, _, name = declared.name.rpartition(".")
        try:
            definition = _Derivation(self.decimal).record(declared.cls, f"{namespace}.{name}")
            _parse(definition, f"{declared.kind} {declared.name!r}")
        except (TypeError, ValueError) as error:
            raise SchemaRefused(f"{declared.kind} {declared.name!r} cannot be described in Avro: {error}") from error
        return definition

    def normal(self, definition: Any) -> Any:
        return _parse(definition, "the definition")[0]

    def compare(
        self, writer: Any, reader: Any, writer_name: str = "the writer", reader_name: str = "the reader"
    ) -> tuple[Difference, ...]:
        wrote, written = _parse(writer, writer_name)
        read, readable = _parse(reader, reader_name)
        found = _Comparison(written, readable, writer_name, reader_name).differences(wrote, read)
        return tuple(dict.fromkeys(found))


#: Avro, with decimals as text.
AVRO = AvroFormat()


def _parse(definition: Any, name: str) -> tuple[Any, dict[str, Any]]:
    """Return a definition with full names, and the types it names."""
    named: dict[str, Any] = {}
    try:
        parsed = parse_schema(copy.deepcopy(definition), named_schemas=named)
    except (SchemaParseException, UnknownType, KeyError, TypeError, ValueError) as error:
        raise SchemaRefused(f"{name} is not an Avro schema: {type(error).__name__}: {error}") from error
    return _plain(parsed), {each: _plain(schema) for each, schema in named.items()}


def _plain(schema: Any) -> Any:
    """Remove fastavro's own annotations, and simplify {"type": "int"} to "int"."""
    if isinstance(schema, list):
        return [_plain(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    # Defaults, documentation and the user's own properties are not schemas, whatever they look like.
    nested = ("type", "items", "values", "fields")
    made = {
        word: _plain(value) if word in nested else value for word, value in schema.items() if not word.startswith("__")
    }
    return made["type"] if set(made) == {"type"} else made


# -- comparing -----------------------------------------------------------------------------------------------------


class _Comparison:
    """Walks two definitions side by side. A pair of names that occurs again on the way is assumed to be compatible."""

    def __init__(self, written: Mapping[str, Any], read: Mapping[str, Any], writer_name: str, reader_name: str) -> None:
        self.written, self.read = written, read
        self.writer_name, self.reader_name = writer_name, reader_name
        self._assumed: set[tuple[str, str]] = set()

    def differences(self, wrote: Any, reads: Any) -> list[Difference]:
        wrote, reads = self._found(wrote, self.written), self._found(reads, self.read)
        if isinstance(wrote, list):
            return [each for branch in wrote for each in self.differences(branch, reads)]
        if isinstance(reads, list):
            # As in Avro: the first matching branch counts, whatever follows.
            reads = next((branch for branch in reads if self._matches(wrote, branch)), reads)
            reads = self._found(reads, self.read)
        if isinstance(reads, list) or not self._is_of_kind(wrote, reads):
            return [self._mismatch(wrote, reads)]
        if (_type(wrote), _type(reads)) == ("bytes", "string"):
            return [self._mismatch(wrote, reads)]
        return self._logical(wrote, reads) + self._inside(wrote, reads)

    def _found(self, schema: Any, named: Mapping[str, Any]) -> Any:
        return named.get(schema, schema) if isinstance(schema, str) else schema

    def _matches(self, wrote: Any, reads: Any) -> bool:
        wrote, reads = self._found(wrote, self.written), self._found(reads, self.read)
        if isinstance(wrote, list) or isinstance(reads, list):
            return True  # compared later
        if not self._is_of_kind(wrote, reads):
            return False
        if _type(wrote) == "array":
            return self._matches(wrote["items"], reads["items"])
        return _type(wrote) != "map" or self._matches(wrote["values"], reads["values"])

    def _is_of_kind(self, wrote: Any, reads: Any) -> bool:
        ours, theirs = _type(wrote), _type(reads)
        if ours != theirs:
            return theirs in _WIDER.get(ours, ())
        if ours == "fixed" and wrote["size"] != reads["size"]:
            return False
        return ours not in _NAMED or _is_named_alike(wrote, reads)

    def _mismatch(self, wrote: Any, reads: Any) -> Difference:
        ours, theirs = _described(wrote), _described(reads)
        if ours == theirs:  # only the names differ
            ours, theirs = f"{ours} {_name(wrote)}", f"{theirs} {_name(reads)}"
            return self._difference(Rule.NAME, ours, theirs)
        return self._difference(Rule.TYPE, ours, theirs)

    def _difference(self, rule: Rule, ours: str, theirs: str) -> Difference:
        return Difference("$", rule, f"{self.writer_name} writes {ours} here; {self.reader_name} accepts {theirs}")

    def _logical(self, wrote: Any, reads: Any) -> list[Difference]:
        ours, theirs = _meaning(wrote), _meaning(reads)
        return [] if ours == theirs else [self._difference(Rule.FORMAT, ours, theirs)]

    def _inside(self, wrote: Any, reads: Any) -> list[Difference]:
        match _type(wrote):
            case "array":
                return [each.under("[*]") for each in self.differences(wrote["items"], reads["items"])]
            case "map":
                return [each.under(".*") for each in self.differences(wrote["values"], reads["values"])]
            case "enum":
                gone = [symbol for symbol in wrote["symbols"] if symbol not in reads["symbols"]]
                if gone and "default" not in reads:
                    return [self._difference(Rule.VALUES, ", ".join(gone), ", ".join(reads["symbols"]))]
            case "record" | "error":
                return self._record(wrote, reads)
        return []

    def _record(self, wrote: Any, reads: Any) -> list[Difference]:
        pair = wrote["name"], reads["name"]
        if pair in self._assumed:
            return []
        self._assumed.add(pair)
        found = []
        fields = {field["name"]: field for field in wrote["fields"]}
        for field in reads["fields"]:
            step = f".{field['name']}"
            names = [name for name in (field["name"], *field.get("aliases", ())) if name in fields]
            if names:
                ours = fields[names[0]]["type"]
                found += [each.under(step) for each in self.differences(ours, field["type"])]
            elif "default" not in field:
                reason = f"{self.reader_name} has it without a default; {self.writer_name} does not write it"
                found.append(Difference("$" + step, Rule.REQUIRED, reason))
        return found


def _type(schema: Any) -> str:
    return str(schema["type"] if isinstance(schema, dict) else schema)


def _name(schema: Any) -> str:
    return str(schema["name"]) if isinstance(schema, dict) and "name" in schema else _type(schema)


def _is_named_alike(wrote: Any, reads: Any) -> bool:
    own = wrote["name"].rpartition(".")[2]
    return own == reads["name"].rpartition(".")[2] or not {wrote["name"], own}.isdisjoint(reads.get("aliases", ()))


def _described(schema: Any) -> str:
    if isinstance(schema, list):
        return " or ".join(map(_described, schema))
    return f"{_type(schema)} of {schema['size']}" if _type(schema) == "fixed" else _type(schema)


def _meaning(schema: Any) -> str:
    parts = [str(schema[word]) for word in _LOGICAL if word in schema] if isinstance(schema, dict) else []
    return " ".join(parts) or "a value without a logical type"


# -- deriving ------------------------------------------------------------------------------------------------------

_PLAIN: Mapping[type, Any] = {
    inspect.NoneType: "null",
    inspect.BoolType: "boolean",
    inspect.IntType: "long",
    inspect.FloatType: "double",
    inspect.StrType: "string",
    inspect.BytesType: "bytes",
    inspect.ByteArrayType: "bytes",
    inspect.MemoryViewType: "bytes",
    inspect.TimeType: {"type": "long", "logicalType": "time-micros"},
    inspect.DateType: {"type": "int", "logicalType": "date"},
    inspect.UUIDType: {"type": "string", "logicalType": "uuid"},
    inspect.TimeDeltaType: "string",  # ISO 8601: Avro's own duration counts months
}
#: Means that there is no default that Avro could express.
_NONE: Any = object()


class _Derivation:
    """Describes types. A named type is described once, and then referenced by name."""

    def __init__(self, decimal: tuple[int, int] | None) -> None:
        self.decimal = decimal
        self._namespace = ""
        self._named: dict[str, Any] = {}

    def record(self, cls: Any, full_name: str = "") -> Any:
        type_ = cls if is_pydantic(cls) else inspect.type_info(cls)
        if full_name:  # the message's name, so that the class may have any name
            self._namespace = full_name
            namespace, _, name = full_name.rpartition(".")
            self._named[full_name] = cls
            return {"type": "record", "name": name, "namespace": namespace, "fields": self._fields(type_)}
        return self.of(type_)

    def of(self, type_: Any) -> Any:
        while isinstance(type_, inspect.Metadata):
            type_ = type_.type
        if type(type_) in _PLAIN:
            return copy.copy(_PLAIN[type(type_)])
        if isinstance(type_, inspect.CustomType) and is_pydantic(type_.cls):
            return self._name(type_.cls, lambda: {"type": "record", "fields": self._fields(type_.cls)})
        if hasattr(type_, "fields"):
            return self._name(type_.cls, lambda: {"type": "record", "fields": self._fields(type_)})
        return self._made_of_others(type_) or self._of_values(type_)

    def _made_of_others(self, type_: Any) -> Any:
        match type_:
            case inspect.UnionType():
                return [self.of(each) for each in type_.types]
            case inspect.CollectionType():
                return {"type": "array", "items": self.of(type_.item_type)}
            case inspect.DictType() | inspect.FrozenDictType():
                return {"type": "map", "values": self.of(type_.value_type)}
        return None

    def _of_values(self, type_: Any) -> Any:
        match type_:
            case inspect.DateTimeType():
                kind = "local-timestamp-micros" if type_.tz is False else "timestamp-micros"
                return {"type": "long", "logicalType": kind}
            case inspect.DecimalType():
                return self._decimal()
            case inspect.LiteralType():
                return _kind_of(type_.values)
            case inspect.EnumType():
                values = [member.value for member in type_.cls]
                if not all(map(_is_symbol, values)):
                    return _kind_of(values)
                return self._name(type_.cls, lambda: {"type": "enum", "symbols": values})
        raise TypeError(f"Avro has no type for {type(type_).__name__.removesuffix('Type')}; use a more specific type")

    def _decimal(self) -> Any:
        if self.decimal is None:
            return "string"
        precision, scale = self.decimal
        return {"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale}

    def _name(self, cls: Any, describe: Any) -> Any:
        name = re.sub(r"\W", "_", getattr(cls, "__name__", str(cls)))
        full_name = f"{self._namespace}.{name}"
        root = next((known for known, each in self._named.items() if each is cls), None)
        if root is not None:
            return root
        if full_name in self._named:
            raise TypeError(f"there are two types named {name!r}")
        self._named[full_name] = cls
        return {"name": name, "namespace": self._namespace, **describe()}

    def _fields(self, type_: Any) -> list[dict[str, Any]]:
        if is_pydantic(type_):
            by_alias = type_.model_config.get("serialize_by_alias", False)
            return [
                self._field(
                    (field.serialization_alias if by_alias else None) or name,
                    inspect.type_info(field.annotation),
                    required=field.is_required(),
                    default=field.default if field.default_factory is None else _NONE,
                    factory=field.default_factory,
                )
                for name, field in type_.model_fields.items()
            ]
        return [
            self._field(
                field.encode_name,
                field.type,
                required=field.required,
                default=_NONE if field.default is msgspec.NODEFAULT else field.default,
                factory=None if field.default_factory is msgspec.NODEFAULT else field.default_factory,
            )
            for field in type_.fields
        ]

    def _field(self, name: str, type_: Any, *, required: bool, default: Any, factory: Any) -> dict[str, Any]:
        described = self.of(type_)
        if required:
            return {"name": name, "type": described}
        if factory in (list, dict, set, frozenset, tuple):
            default = msgspec.to_builtins(factory())
        branches = described if isinstance(described, list) else [described]
        if default is None or default is msgspec.UNSET or (default is _NONE and factory is None):
            # JSON may omit it; Avro must write a value.
            others = [branch for branch in branches if branch != "null"]
            return {"name": name, "type": ["null", *others], "default": None}
        if default is not _NONE:
            value = msgspec.to_builtins(default, enc_hook=str)
            for branch in branches:  # a default belongs to the first branch
                if _may_be(value, branch):
                    others = [other for other in branches if other is not branch]
                    type_now = [branch, *others] if isinstance(described, list) else described
                    return {"name": name, "type": type_now, "default": value}
        return {"name": name, "type": described}


def _is_symbol(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value) is not None


def _kind_of(values: Any) -> Any:
    kinds = dict.fromkeys({str: "string", int: "long", type(None): "null"}[type(value)] for value in values)
    return list(kinds) if len(kinds) > 1 else next(iter(kinds))


def _may_be(value: Any, branch: Any) -> bool:
    """Return whether a value can be a default of this type: only simple values are sure to be."""
    if isinstance(branch, dict) and "symbols" in branch:
        return value in branch["symbols"]
    if isinstance(branch, dict) and branch["type"] in ("array", "map"):
        return value in ([], {}) and isinstance(value, list) is (branch["type"] == "array")
    kinds: dict[str, Any] = {"boolean": bool, "long": int, "double": float | int, "string": str}
    if not isinstance(branch, str) or branch not in kinds:
        return False
    return isinstance(value, kinds[branch]) and (branch == "boolean") is isinstance(value, bool)
