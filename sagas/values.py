"""Converts values to JSON and back, without losing their types.

Stored values are JSON text. A step receives values of the declared types: dataclasses, pydantic models, `Decimal`,
`UUID`, `datetime`, and everything else msgspec supports. Nothing is guessed and nothing is pickled.

Each value is read back when it is written, and compared in depth. Error texts contain no values, because values may be
secret and the stored form may be encrypted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any

import msgspec
import typing_extensions

from sagas.differences import differences, same
from sagas.kinds import ABSENT, is_pydantic, is_struct, type_name
from sagas.nesting import DEEPEST, is_too_deep

__all__ = [
    "ABSENT",
    "DEEPEST",
    "NO_TYPE",
    "Number",
    "check_type",
    "convert",
    "decoder",
    "dump",
    "encode",
    "explain",
    "field_names",
    "field_of",
    "is_pydantic",
    "load",
    "may_be_absent",
    "parse",
    "same",
]

#: Means that no type was declared: only plain JSON is allowed, and plain JSON is returned.
NO_TYPE: Any = object()

#: Where msgspec quotes a value that is not in an enumeration, a literal or a tagged union.
_QUOTED = re.compile(r"\b(Invalid (?:enum )?value) (?:'.*'|\".*\"|-?\d+)", re.DOTALL)

#: How pydantic reads: other writers use aliases; pydantic itself writes field names by default.
_BOTH_NAMES: Any = {"by_alias": True, "by_name": True}


def dump(value: Any, type_: Any = NO_TYPE) -> str:
    """Return `value` as JSON text that `load(text, type_)` converts back to the same value.

    Raises `TypeError`, with the place, if that is not certain.
    """
    if isinstance(value, enum.Enum) and type_ in (str, int):
        value = value.value  # the declared type is returned, which is what readers and type checkers expect
    try:
        if type_ is NO_TYPE or type_ is Any:
            _check_plain(value, "$")
        text = encode(value).decode()
    except (ValueError, OverflowError, RecursionError, msgspec.EncodeError) as error:
        raise TypeError(f"cannot be stored as JSON: {explain(error)}") from error
    if is_too_deep(text):
        raise TypeError(f"cannot be stored as JSON: it is nested more than {DEEPEST} levels deep. Make it flatter")
    try:
        back = load(text, type_)
    except Exception as error:  # a user's type may raise anything when it is constructed again
        raise TypeError(f"{explain(error)} (declared as {type_name(type_)}, got {type_name(type(value))})") from error
    if difference := next(differences(value, back, "$"), None):
        raise TypeError(f"declared as {type_name(type_)}, it would come back changed: {difference}")
    return text


def load(text: str, type_: Any = NO_TYPE) -> Any:
    """Return the value that `dump` wrote."""
    return decoder(None if type_ is NO_TYPE else type_)(text)


def parse(text: str | bytes) -> Any:
    """Return the plain value of JSON that a person or another program wrote.

    Raises `ValueError` if it is not JSON (NaN and Infinity are not), or if it is nested too deep to be stored.
    """
    try:
        text = text.decode() if isinstance(text, bytes) else text
        if is_too_deep(text):
            raise ValueError(f"it is nested more than {DEEPEST} levels deep")
        return msgspec.json.decode(text)
    except UnicodeError:
        raise ValueError("it contains bytes or characters that are not UTF-8") from None


def encode(value: Any) -> bytes:
    """Return `value` as JSON, without checking that it can be read back. Raises msgspec's errors, or `TypeError`."""
    return _ENCODER.encode(value)


# -- fields -------------------------------------------------------------------------------------------------------


def field_names(type_: Any) -> dict[str, bool]:
    """Return the fields of an input type, each with whether it is required."""
    if is_pydantic(type_):
        if getattr(type_, "__pydantic_root_model__", False):
            raise TypeError(f"{type_name(type_)} is a root model: it has no named fields")
        return {name: field.is_required() for name, field in type_.model_fields.items()}
    if dataclasses.is_dataclass(type_):
        return {
            f.name: f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.init
            for f in dataclasses.fields(type_)
        }
    if attributes := getattr(type_, "__attrs_attrs__", None):
        nothing = sys.modules["attr"].NOTHING  # imported, because the class is attrs'
        return {each.name: each.init and each.default is nothing for each in attributes}
    if is_struct(type_):
        return {f.name: f.required for f in msgspec.structs.fields(type_)}
    if typing_extensions.is_typeddict(type_):
        hints = typing_extensions.get_type_hints(type_, include_extras=True)
        return {name: not _is_absent_able(type_, name, hint) for name, hint in hints.items()}
    raise TypeError(f"{type_name(type_)} is not a dataclass, pydantic model, msgspec Struct, TypedDict or attrs class")


def may_be_absent(type_: Any, name: str) -> bool:
    """Return whether values of this type may lack a field, without a default."""
    return typing_extensions.is_typeddict(type_) and not field_names(type_)[name]


def field_of(value: Any, name: str, otherwise: Any = None) -> Any:
    """Return a field of a value, or `otherwise` if it is absent."""
    return value.get(name, otherwise) if isinstance(value, dict) else getattr(value, name)


def _is_absent_able(type_: Any, name: str, hint: Any) -> bool:
    # The hint first: with `from __future__ import annotations`, Python treats NotRequired as required.
    while (origin := typing.get_origin(hint)) in (typing.Annotated, typing_extensions.ReadOnly):
        hint = typing.get_args(hint)[0]
    if origin in (typing.NotRequired, typing.Required):
        return origin is typing.NotRequired
    return name not in type_.__required_keys__


def convert(data: Mapping[str, Any], type_: Any) -> Any:
    """Build a `type_` from a mapping. Raises `TypeError` for an unknown or missing field, or a wrong type."""
    fields = field_names(type_)
    known = fields | _aliases(type_)
    takes_more = is_pydantic(type_) and type_.model_config.get("extra") == "allow"
    if (unknown := [key for key in data if key not in known]) and not takes_more:
        raise TypeError(f"unknown field {unknown[0]!r}; {type_name(type_)} has {', '.join(fields)}")
    try:
        if is_pydantic(type_):
            return _convert_model(dict(data), type_)
        if hasattr(type_, "__pydantic_validator__"):  # a pydantic dataclass
            return type_.__pydantic_validator__.validate_python(dict(data), **_BOTH_NAMES)
        if own := _own_fields(type_):
            return _convert_fields(data, type_, own)
        return msgspec.convert(dict(data), type_, dec_hook=_convert_foreign)
    except (msgspec.ValidationError, ValueError, RecursionError) as error:  # pydantic's is a ValueError
        raise TypeError(explain(error)) from error


def _convert_model(data: dict[str, Any], type_: Any) -> Any:
    try:
        return type_.model_validate(data, **_BOTH_NAMES)
    except ValueError:
        # A strict model accepts text for a date only from JSON, and the data may come from there.
        try:
            _check_plain(data, "$")
        except TypeError:
            pass
        else:
            return type_.model_validate_json(encode(data), **_BOTH_NAMES)
        raise


@dataclasses.dataclass(frozen=True, slots=True)
class _Field:
    name: str
    type: Any
    names: tuple[str, ...]  #: the names under which it may be passed
    required: bool


def _own_fields(type_: Any) -> list[_Field]:
    """Return the fields of a class that has to be built field by field; none if msgspec can build it."""
    if is_struct(type_):  # as a whole, msgspec expects its wire names, its tag, or an array
        found = msgspec.structs.fields(type_)
        return [_Field(f.name, f.type, (f.name, f.encode_name), f.required) for f in found]
    if dataclasses.is_dataclass(type_) and not all(f.init for f in dataclasses.fields(type_)):
        hints, required = typing.get_type_hints(type_, include_extras=True), field_names(type_)
        names = [f.name for f in dataclasses.fields(type_) if f.init]
        return [_Field(name, hints[name], (name,), required[name]) for name in names]
    return []


def _convert_fields(data: Mapping[str, Any], type_: Any, fields: Iterable[_Field]) -> Any:
    arguments = {}
    for field in fields:
        given = next((name for name in field.names if name in data), None)
        if given is None and field.required:
            raise TypeError(f"Object missing required field `{field.name}`")
        if given is not None:
            try:
                arguments[field.name] = msgspec.convert(data[given], field.type, dec_hook=_convert_foreign)
            except msgspec.ValidationError as error:
                raise TypeError(f"{explain(error)} - of `{field.name}`") from error
    return type_(**arguments)


def _aliases(type_: Any) -> dict[str, bool]:
    """Return other names under which a type's fields may be passed."""
    if is_struct(type_):
        return {f.encode_name: f.required for f in msgspec.structs.fields(type_)}
    found: dict[str, bool] = {}
    fields = getattr(type_, "model_fields", None) or getattr(type_, "__pydantic_fields__", {})
    for field in fields.values():
        alias = field.validation_alias
        for each in getattr(alias, "choices", [alias]):
            name = getattr(each, "path", [each])[0]
            if isinstance(name, str):
                found[name] = False
    return found


# -- types --------------------------------------------------------------------------------------------------------


def check_type(type_: Any) -> None:
    """Raise `TypeError` if values of this type cannot be stored as JSON."""
    if type_ is NO_TYPE:
        return
    for problem in _problems(type_, set()):
        raise TypeError(problem)
    try:
        msgspec.json.schema(type_, schema_hook=_schema_foreign)
        decoder(type_)
    except (ValueError, AttributeError, RecursionError) as error:
        raise TypeError(f"{type_name(type_)}: {explain(error)}") from error


def _problems(type_: Any, seen: set[int]) -> Iterator[str]:
    """Yield the parts of a type that would be lost in JSON, whatever the value."""
    if id(type_) in seen:
        return
    seen.add(id(type_))
    for each in typing.get_args(type_):
        yield from _problems(each, seen)
    if isinstance(origin := typing.get_origin(type_), type):  # a generic class with its arguments
        if issubclass(origin, Mapping) and (key := typing.get_args(type_)[0]) in _NO_KEYS:
            yield f"a {type_name(key)} cannot be a key in JSON"
        yield from _problems(origin, seen)
        return
    if isinstance(type_, typing_extensions.TypeAliasType):
        yield from _problems(type_.__value__, seen)
        return
    fields = getattr(type_, "__pydantic_fields__", None) if isinstance(type_, type) else None
    if fields is not None:
        speaks = _has_serializer(type_)
        for name, field in fields.items():
            where = f"field {name!r} of {type_name(type_)}"
            if field.exclude and not speaks:
                yield f"{where} is excluded from the output, so it would be lost"
            names = [name, field.validation_alias, *getattr(field.validation_alias, "choices", [])]
            written = getattr(type_, "model_config", {}).get("serialize_by_alias") and field.serialization_alias
            if written and written not in names:
                yield f"{where} is written as {written!r} but not read under that name. Give it one alias for both"
            if any(hasattr(default, "validation_alias") for default in _defaults(type_, name)):
                yield f"{where} has its default in pydantic's Field, which is not read here. Write it as `= value`"
            if not speaks and not _serializes(field.metadata):
                yield from (f"{where}: {problem}" for problem in _problems(field.annotation, seen))
    elif (
        isinstance(type_, type) and hasattr(type_, "get_secret_value") and not hasattr(type_, "__pydantic_root_model__")
    ):
        seen.discard(id(type_))  # report each field that has it
        yield f"a {type_name(type_)} is written as asterisks. Declare a str, or a reference to the secret"
    elif isinstance(type_, type) and (
        dataclasses.is_dataclass(type_) or is_struct(type_) or typing_extensions.is_typeddict(type_)
    ):
        for hint in typing_extensions.get_type_hints(type_).values():
            yield from _problems(hint, seen)


def _defaults(type_: Any, name: str) -> list[Any]:
    return [f.default for f in dataclasses.fields(type_) if f.name == name] if dataclasses.is_dataclass(type_) else []


#: Types that cannot be keys of a JSON object.
_NO_KEYS = (bool, types.NoneType)


def _has_serializer(type_: Any) -> bool:
    found = getattr(type_, "__pydantic_decorators__", None)
    return bool(found and (found.field_serializers or found.model_serializers))


def _serializes(metadata: Iterable[Any]) -> bool:
    return any(hasattr(each, "when_used") for each in metadata)


# -- reading and writing ------------------------------------------------------------------------------------------


@functools.cache
def decoder(type_: Any) -> Callable[[Any], Any]:
    """Return a function that reads JSON as values of a type; for None, as plain JSON."""
    if type_ is None:
        return msgspec.json.Decoder().decode
    if is_pydantic(type_):  # which would make a Decimal from a float
        return msgspec.json.Decoder(type_, dec_hook=_decode_foreign, float_hook=Number.read).decode
    return msgspec.json.Decoder(type_, dec_hook=_decode_foreign).decode


class Number(float):
    """A float that remembers its JSON text: read as a `Decimal`, it has all its digits."""

    text: str

    @classmethod
    def read(cls, text: str) -> Number:
        number = cls(text)
        number.text = text
        return number

    def __str__(self) -> str:  # pydantic makes a Decimal from this text, as Decimal(str(number)) does
        return self.text


def _encode_foreign(value: Any) -> Any:
    if is_pydantic(type(value)):
        # Without computed fields, which are not input. As text, which pydantic can read back even in strict mode.
        return msgspec.Raw(value.model_dump_json(round_trip=True).encode())
    if isinstance(value, Number):
        return msgspec.Raw(value.text.encode())
    raise TypeError(f"a {type_name(type(value))} cannot be stored as JSON")


_ENCODER = msgspec.json.Encoder(enc_hook=_encode_foreign)


def _decode_foreign(type_: Any, data: Any) -> Any:
    if is_pydantic(type_):
        if _has_more_digits(data):
            # pydantic converts JSON numbers to Decimal through float. A strict model accepts nothing else.
            with contextlib.suppress(ValueError):
                return type_.model_validate(data, **_BOTH_NAMES)
        return type_.model_validate_json(encode(data), **_BOTH_NAMES)
    raise TypeError(f"a {type_name(type_)} cannot be read from JSON")


def _has_more_digits(data: Any) -> bool:
    """Return whether the data contains a number with more digits than a float."""
    if isinstance(data, Number):
        return Decimal(data.text).as_tuple() != Decimal(repr(float(data))).as_tuple()
    items = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    return any(_has_more_digits(item) for item in items)


def _convert_foreign(type_: Any, data: Any) -> Any:
    if is_pydantic(type_):
        return data if isinstance(data, type_) else type_.model_validate(data, **_BOTH_NAMES)
    raise TypeError(f"a {type_name(type_)} cannot be read from JSON")


def _schema_foreign(type_: Any) -> dict[str, Any]:
    if is_pydantic(type_):
        return {"type": "object"}  # not {}, which msgspec treats as no answer
    raise TypeError(f"a {type_name(type_)} cannot be stored as JSON")


# -- plain values ----------------------------------------------------------------------------------------------------


def _check_plain(value: Any, path: str) -> None:
    """Without a declared type, only JSON's own types are safe: any other would come back changed."""
    kind = type(value)  # exactly: a subclass (a StrEnum, a namedtuple) would come back as its base class
    if value is None or kind in (bool, int, str) or (kind is float and math.isfinite(value)):
        return
    if kind is list:
        for i, item in enumerate(value):
            _check_plain(item, f"{path}[{i}]")
    elif kind is dict and all(type(key) is str for key in value):
        for key, item in value.items():
            _check_plain(item, f"{path}.{key}")
    else:
        what = "a dict with keys other than str" if kind is dict else f"a {type_name(kind)}"
        what = f"the float {value}" if kind is float else what
        raise TypeError(f"{what} at {path} is not plain JSON. Declare its type, so that it can be restored")


def explain(error: BaseException) -> str:
    """Return the text of a type error, without the value."""
    if isinstance(error, msgspec.ValidationError) and error.__cause__ is not None:
        return explain(error.__cause__)  # from a type that msgspec does not know
    listed = getattr(error, "errors", None)
    if not callable(listed) or not hasattr(error, "error_count"):
        if isinstance(error, UnicodeError):  # its text quotes the value
            return "a text contains a lone surrogate, which cannot be written"
        return _QUOTED.sub(r"\1", str(error)) if isinstance(error, msgspec.ValidationError) else str(error)
    found = listed(include_url=False, include_input=False, include_context=False)
    return "; ".join(f"{each['msg']} - at `$.{'.'.join(map(str, each['loc']))}`" for each in found[:5])
