"""Values in and out of JSON, with their types kept.

What is stored is JSON text. What a step gets back is what its author declared: a dataclass, a pydantic model,
`Decimal`, `UUID`, `datetime`, and whatever else msgspec knows. Nothing is guessed and nothing is pickled.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

__all__ = [
    "NO_TYPE",
    "Number",
    "check_type",
    "convert",
    "decoder",
    "dump",
    "encode",
    "field_names",
    "is_pydantic",
    "load",
]

#: Stands for "no type was declared": plain JSON only, and it comes back as plain JSON.
NO_TYPE: Any = object()


def dump(value: Any, type_: Any = NO_TYPE) -> str:
    """Return `value` as JSON text, sure that `load(text, type_)` gives it back.

    Raises `TypeError`, saying where, when that cannot be promised.
    """
    if type_ is NO_TYPE or type_ is Any:
        _check_plain(value, "$")
        return msgspec.json.encode(value).decode()
    try:
        text = encode(value).decode()
    except (ValueError, OverflowError, RecursionError, msgspec.EncodeError) as error:
        raise TypeError(f"cannot be kept as JSON: {error}") from error
    try:
        back = load(text, type_)
    except (msgspec.ValidationError, ValueError) as error:
        raise TypeError(f"{error} (declared as {_name(type_)}, got {_name(type(value))})") from error
    if back != value:  # also where a class does not define equality: then nobody can tell
        raise TypeError(f"declared as {_name(type_)}, but {value!r} would come back as {back!r}")
    return text


def load(text: str, type_: Any = NO_TYPE) -> Any:
    """Return the value that `dump` wrote."""
    return decoder(None if type_ is NO_TYPE else type_)(text)


def encode(value: Any) -> bytes:
    """Return `value` as JSON, without a promise that it comes back. Raises what msgspec raises, or `TypeError`."""
    return _ENCODER.encode(value)


def field_names(type_: Any) -> dict[str, bool]:
    """Return the fields of an input type, each with whether it must be given."""
    if is_pydantic(type_):
        return {name: field.is_required() for name, field in type_.model_fields.items()}
    if dataclasses.is_dataclass(type_):
        return {
            f.name: f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
            for f in dataclasses.fields(type_)
        }
    if isinstance(type_, type) and issubclass(type_, msgspec.Struct):
        return {f.name: f.required for f in msgspec.structs.fields(type_)}
    if typing.is_typeddict(type_):
        return {name: name in type_.__required_keys__ for name in typing.get_type_hints(type_)}
    raise TypeError(f"{_name(type_)} is not a dataclass, pydantic model, msgspec Struct or TypedDict")


def check_type(type_: Any) -> None:
    """Raise `TypeError` when values of this type could not be kept as JSON."""
    if type_ is not NO_TYPE:
        msgspec.json.schema(type_, schema_hook=_schema_foreign)


def convert(data: Mapping[str, Any], type_: Any) -> Any:
    """Build a `type_` from a mapping. Raises `TypeError` for a field unknown, missing or of a wrong type."""
    fields = field_names(type_)
    if unknown := sorted(set(data) - set(fields)):
        raise TypeError(f"unknown field {unknown[0]!r}; {_name(type_)} has {', '.join(fields)}")
    try:
        if is_pydantic(type_):
            return type_.model_validate(dict(data))
        return msgspec.convert(dict(data), type_, dec_hook=_decode_foreign)
    except (msgspec.ValidationError, ValueError) as error:  # pydantic's is a ValueError
        raise TypeError(str(error)) from error


@functools.cache
def decoder(type_: Any) -> Callable[[Any], Any]:
    """Return what reads JSON text, or bytes, as values of a type; of None, as plain JSON."""
    if type_ is None:
        return msgspec.json.Decoder().decode
    if is_pydantic(type_):  # which makes a Decimal of what is a float by then
        return msgspec.json.Decoder(type_, dec_hook=_decode_foreign, float_hook=Number.read).decode
    return msgspec.json.Decoder(type_, dec_hook=_decode_foreign).decode


class Number(float):
    """A float that remembers how it was written in JSON: read as a `Decimal` it has all its digits."""

    text: str

    @classmethod
    def read(cls, text: str) -> Number:
        number = cls(text)
        number.text = text
        return number

    def __str__(self) -> str:  # which is what pydantic makes a Decimal of, and what Decimal(str(number)) takes
        return self.text


def _check_plain(value: Any, path: str) -> None:
    """Without a declared type only what JSON itself has is safe: anything else would come back changed."""
    kind = type(value)  # exactly: a subclass (a StrEnum, a namedtuple) would come back as its base
    if value is None or kind in (bool, int, str) or (kind is float and math.isfinite(value)):
        return
    if kind is list:
        for i, item in enumerate(value):
            _check_plain(item, f"{path}[{i}]")
    elif kind is dict and all(type(key) is str for key in value):
        for key, item in value.items():
            _check_plain(item, f"{path}.{key}")
    else:
        raise TypeError(f"{value!r} at {path} is not plain JSON; declare its type so that it comes back as what it is")


def _encode_foreign(value: Any) -> Any:
    if is_pydantic(type(value)):
        return value.model_dump(mode="json")
    if isinstance(value, Number):
        return msgspec.Raw(value.text.encode())
    raise TypeError(f"a {_name(type(value))} cannot be kept as JSON")


_ENCODER = msgspec.json.Encoder(enc_hook=_encode_foreign)


def _decode_foreign(type_: Any, data: Any) -> Any:
    if is_pydantic(type_):
        return data if isinstance(data, type_) else type_.model_validate(data)
    raise TypeError(f"a {_name(type_)} cannot be read from JSON")


def _schema_foreign(type_: Any) -> dict[str, Any]:
    if is_pydantic(type_):
        return {"type": "object"}  # not {}: msgspec takes that for no answer
    raise TypeError(f"a {_name(type_)} cannot be kept as JSON")


def is_pydantic(type_: Any) -> bool:
    """Tell whether a type is a pydantic model."""
    # Asked by shape, so that pydantic stays the user's choice and is never imported here.
    return isinstance(type_, type) and hasattr(type_, "__pydantic_validator__") and hasattr(type_, "model_validate")


def _name(type_: Any) -> str:
    return getattr(type_, "__qualname__", None) or str(type_)
