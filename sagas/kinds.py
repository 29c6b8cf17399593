"""What kind of type a value has: a pydantic model, a msgspec Struct, and what to call it."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["ABSENT", "is_pydantic", "is_struct", "type_name"]

#: The value of a field that is absent.
ABSENT: Any = object()


def is_pydantic(type_: Any) -> bool:
    """Return whether a type is a pydantic model."""
    # Checked by its attributes, so that pydantic stays the user's choice and is never imported here.
    return isinstance(type_, type) and hasattr(type_, "__pydantic_validator__") and hasattr(type_, "model_validate")


def is_struct(type_: Any) -> bool:
    """Return whether a type is a msgspec Struct."""
    return isinstance(type_, type) and issubclass(type_, msgspec.Struct)


def type_name(type_: Any) -> str:
    """Return the name of a type for people."""
    return getattr(type_, "__qualname__", None) or str(type_)
