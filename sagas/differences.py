"""Compares values in depth, their types included."""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
from collections.abc import Iterable, Iterator
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

from sagas.kinds import ABSENT, is_pydantic, is_struct, type_name

__all__ = ["differences", "same"]


def same(one: Any, other: Any) -> bool:
    """Return whether two values are equal in depth, including their types, even if their class has no `__eq__`."""
    return next(differences(one, other, "$"), None) is None


def differences(value: Any, back: Any, path: str) -> Iterator[str]:
    """Yield the places where a value that was read back differs from the original, in depth."""
    kind: Any = type(value)
    came: Any = type(back)
    if isinstance(value, enum.Enum) or value is None or back is None:
        if value is not back:
            yield (
                f"{type_name(kind)} at {path} would be {type_name(came)}"
                if kind is not came
                else f"the {type_name(kind)} at {path} would have another value"
            )
    elif came is float and kind is int:  # a whole number may be passed for a float
        if value != back:
            yield f"an int at {path} has more digits than a float"
    elif kind is not came and not (issubclass(kind, came) and _is_mere(came) and not hasattr(value, "_fields")):
        yield f"{type_name(kind)} at {path} would be {type_name(came)}"
    elif (fields := _field_names(kind)) is not None:
        for name in fields:
            one, other = getattr(value, name, ABSENT), getattr(back, name, ABSENT)
            if not (one is other or (type(one) in _SIMPLE and type(one) is type(other) and one == other)):
                yield from differences(one, other, f"{path}.{name}")
        if is_pydantic(kind):
            for name, what in (("__pydantic_extra__", "extra fields"), ("__pydantic_private__", "private attributes")):
                yield from differences(getattr(value, name), getattr(back, name), f"{path} ({what})")
    elif isinstance(value, dict):
        yield from _differing_keys(value, back, path)
        for key, item in value.items():
            if key in back:
                yield from differences(item, back[key], f"{path}[...]")
    elif isinstance(value, list | tuple):
        if len(value) != len(back):
            yield f"{len(value)} items at {path} would be {len(back)}"
        for i, (one, other) in enumerate(zip(value, back, strict=False)):
            yield from differences(one, other, f"{path}[{i}]")
    elif isinstance(value, set | frozenset):
        yield from _differing_keys(value, back, path)
    elif isinstance(value, Decimal) and value.is_nan():
        yield f"NaN at {path}, which is not equal to anything, not even itself"
    elif not _is_equal(value, back):
        yield f"the {type_name(kind)} at {path} would have another value"


#: Of these types, equal values are the same.
_SIMPLE = frozenset([str, int, bool])

#: A subclass of these types may be declared as the base type. It then comes back as the base type.
_MERE = (str, int, float, bytes, bytearray, datetime, date, time, Decimal, list, dict, set, frozenset)


def _is_mere(kind: type) -> bool:
    return kind in _MERE


@functools.cache
def _field_names(kind: Any) -> tuple[str, ...] | None:
    """Return the names of the fields that objects of a type have; None if it has none."""
    if is_pydantic(kind):
        return tuple(kind.model_fields)
    if dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind))
    if is_struct(kind):
        return tuple(kind.__struct_fields__)
    attributes = getattr(kind, "__attrs_attrs__", None)
    return None if attributes is None else tuple(each.name for each in attributes)


def _differing_keys(value: Iterable[Any], back: Iterable[Any], path: str) -> Iterator[str]:
    keys = {key: key for key in back}
    ours = list(value)
    if len(ours) != len(keys):
        yield f"{len(ours)} items at {path} would be {len(keys)}"
    for key in ours:
        # Some equal keys are not found by hash, such as the repeated hour of a time zone.
        match = keys[key] if key in keys else next((each for each in keys if same(key, each)), ABSENT)
        if match is ABSENT:
            yield f"the {type_name(type(key))} in {path} would be another, or of another type"
        else:
            yield from differences(key, match, f"{path}{{}}")


def _is_equal(value: Any, back: Any) -> bool:
    if isinstance(value, datetime | time):
        # Not `==`: with two time zones it is never true in an hour that a clock change repeats or skips.
        return (
            value.replace(tzinfo=None) == back.replace(tzinfo=None)
            and (value.tzinfo is None) == (back.tzinfo is None)
            and value.utcoffset() == back.utcoffset()
        )
    if isinstance(value, Decimal):
        return bool(value.as_tuple() == back.as_tuple())  # 1.0 and 1.00 are equal but not the same
    if isinstance(value, float):
        return value == back and math.copysign(1, value) == math.copysign(1, back)
    return bool(value == back)
