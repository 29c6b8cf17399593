"""Checks that pydantic makes on a value but leaves out of its JSON Schema.

They are added as texts under `x-checks`, so that a change becomes visible: a datetime that must have a time zone, the
digits of a `Decimal`, the bounds of values that are written as text, the schemes of a URL, and validators, which only
have names. This module is imported only if there is a pydantic model, so pydantic is installed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from datetime import date, datetime, time, timedelta
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from sagas.events.schema_registry.compatibility import CHECKS, VALIDATOR

__all__ = ["Generator"]

_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_ANY_TEXT = {"type": "string"}


class Generator(GenerateJsonSchema):
    """Describes a model as pydantic does, and adds the missing checks."""

    def datetime_schema(self, schema: Any) -> dict[str, Any]:
        return {**_moment(schema, "date-time", "date-time-local"), **_checked(_of_moment(schema))}

    def time_schema(self, schema: Any) -> dict[str, Any]:
        return {**_moment(schema, "time", "partial-time"), **_checked(_of_moment(schema))}

    def date_schema(self, schema: Any) -> dict[str, Any]:
        return {**super().date_schema(schema), **_checked(_of_moment(schema))}

    def timedelta_schema(self, schema: Any) -> dict[str, Any]:
        return {**super().timedelta_schema(schema), **_checked(_bounds(schema))}

    def decimal_schema(self, schema: Any) -> dict[str, Any]:
        return {**super().decimal_schema(schema), **_checked(_of_decimal(schema))}

    def url_schema(self, schema: Any) -> dict[str, Any]:
        return {**super().url_schema(schema), **_checked(_of_url(schema))}

    def multi_host_url_schema(self, schema: Any) -> dict[str, Any]:
        return {**super().multi_host_url_schema(schema), **_checked(_of_url(schema))}

    def dict_schema(self, schema: Any) -> dict[str, Any]:
        described = super().dict_schema(schema)
        if "propertyNames" not in described and "patternProperties" not in described and "keys_schema" in schema:
            names = self.generate_inner(schema["keys_schema"])
            names = _NUMERIC.get(names.get("type", ""), names)
            if {name: value for name, value in names.items() if name != "title"} != _ANY_TEXT:
                described["propertyNames"] = names
        return described

    def function_before_schema(self, schema: Any) -> dict[str, Any]:
        return {**super().function_before_schema(schema), **self._validator(schema)}

    def function_after_schema(self, schema: Any) -> dict[str, Any]:
        return {**super().function_after_schema(schema), **self._validator(schema)}

    def function_wrap_schema(self, schema: Any) -> dict[str, Any]:
        return {**super().function_wrap_schema(schema), **self._validator(schema)}

    def function_plain_schema(self, schema: Any) -> dict[str, Any]:
        return {**super().function_plain_schema(schema), **self._validator(schema)}

    def _validator(self, schema: Any) -> dict[str, Any]:
        function = schema["function"]["function"]
        while isinstance(function, functools.partial):
            function = function.func
        module = getattr(function, "__module__", None) or ""
        if module.partition(".")[0] in ("pydantic", "pydantic_core"):
            inner = schema.get("schema")  # for pydantic's own types, the inner schema counts
            return _checked(_of_url(inner)) if inner and inner["type"] in ("url", "multi-host-url") else {}
        name = getattr(function, "__qualname__", None) or type(function).__qualname__
        inner_checks: list[str] = []
        if "schema" in schema:
            inner_checks = self.generate_inner(schema["schema"]).get(CHECKS, [])
        return {CHECKS: sorted({*inner_checks, f"{VALIDATOR}{module}.{name}"})}


#: The names in a mapping whose keys are numbers.
_NUMERIC = {
    "integer": {"pattern": "^-?[0-9]+$"},
    "number": {"pattern": "^-?[0-9]+([.][0-9]+)?([eE][-+]?[0-9]+)?$"},
}


def _checked(checks: Iterator[str]) -> dict[str, Any]:
    found = sorted(checks)
    return {CHECKS: found} if found else {}


def _moment(schema: Mapping[str, Any], zoned: str, local: str) -> dict[str, Any]:
    match schema.get("tz_constraint"):
        case None:
            return {"anyOf": [{"type": "string", "format": zoned}, {"type": "string", "format": local}]}
        case "naive":
            return {"type": "string", "format": local}
    return {"type": "string", "format": zoned}


def _of_moment(schema: Mapping[str, Any]) -> Iterator[str]:
    if "now_op" in schema:
        yield f"in the {schema['now_op']}"
    if isinstance(offset := schema.get("tz_constraint"), int):
        yield f"with the offset {offset}"
    yield from _bounds(schema)


def _of_decimal(schema: Mapping[str, Any]) -> Iterator[str]:
    digits, places = schema.get("max_digits"), schema.get("decimal_places")
    if digits is not None:
        yield f"digits<={digits}"
        yield f"whole digits<={digits - (places or 0)}"
    if places is not None:
        yield f"decimal places<={places}"
    if "multiple_of" in schema:
        yield f"multiple of {schema['multiple_of']}"
    yield from _bounds(schema)


def _of_url(schema: Mapping[str, Any]) -> Iterator[str]:
    if schemes := schema.get("allowed_schemes"):
        yield f"scheme {' or '.join(sorted(schemes))}"
    if schema.get("host_required"):
        yield "with a host"


def _bounds(schema: Mapping[str, Any]) -> Iterator[str]:
    for word, sign in _BOUNDS.items():
        if (limit := schema.get(word)) is not None:
            if isinstance(limit, timedelta):
                yield f"seconds{sign}{limit.total_seconds()}"
            else:
                yield f"value{sign}{limit.isoformat() if isinstance(limit, date | datetime | time) else limit}"
