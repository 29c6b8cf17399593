"""A form for a value of any type that a saga can store: what the pages and the command line ask people.

A field is a text, a number, a date, a choice, or JSON for what has no simpler form. A page shows the fields and gives
the texts that it received to `Form.read`.
"""

from __future__ import annotations

import dataclasses
import enum
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import msgspec
import typing_extensions

from sagas.errors import SagaError
from sagas.kinds import is_pydantic, is_struct
from sagas.values import convert, encode, explain, field_names, load, parse

__all__ = ["Choice", "FieldKind", "Form", "FormField", "InvalidForm", "form_of"]

#: The name of the only field of a form whose payload has no fields of its own.
_WHOLE = "value"

#: Where an error says which field is wrong: msgspec and pydantic write `$.amount`, `convert` writes `amount`.
_FIELD = re.compile(r" - (?:at|of) `(?:\$\.)?(\w+)[^`]*`")


class FieldKind(enum.StrEnum):
    """How a field is asked for."""

    TEXT = "text"
    NUMBER = "number"  #: a whole number
    DECIMAL = "decimal"  #: a number that keeps its digits
    FLOAT = "float"
    DATE = "date"
    DATETIME = "datetime"  #: with or without a time zone, as the type says
    TIME = "time"
    CHOICE = "choice"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the values of a field."""

    text: str  #: what a page sends
    label: str
    value: Any = dataclasses.field(repr=False)  #: plain JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class FormField:
    """One question of a form."""

    name: str
    label: str
    kind: FieldKind
    required: bool
    nullable: bool = False  #: whether no answer means None, and not the default
    choices: tuple[Choice, ...] = ()
    initial: str = ""
    help: str = ""

    def read(self, text: str) -> Any:
        """Return the plain JSON value of an answer, or `...` where there is none. Raises `ValueError`."""
        text = text.replace("\r\n", "\n")
        if not text.strip() and not (self.kind is FieldKind.TEXT and text == "" and self.initial):
            if self.required:
                raise ValueError("an answer is required")
            return None if self.nullable else ...
        return _READERS[self.kind](self, text.strip() if self.kind is not FieldKind.TEXT else text)


def _read_number(_field: FormField, text: str) -> int:
    return int(_number(text, r"[+-]?\d{1,1000}", "a whole number"))


def _read_decimal(_field: FormField, text: str) -> str:
    return _number(text, r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,4})?", "a number")


def _read_choice(field: FormField, text: str) -> Any:
    for choice in field.choices:
        if choice.text == text:
            return choice.value
    raise ValueError(f"choose one of: {', '.join(each.text for each in field.choices)}")


def _number(text: str, pattern: str, what: str) -> str:
    if not re.fullmatch(pattern, text, re.ASCII):
        raise ValueError(f"this is not {what}")
    return text


def _as_typed(_field: FormField, text: str) -> str:
    """Return a text as it is. Dates and times are ISO 8601, which the type reads."""
    return text


def _read_time(_field: FormField, text: str) -> str:
    """Return a time with the seconds that a browser leaves out."""
    return f"{text}:00" if re.fullmatch(r"\d\d:\d\d", text) else text


def _read_json(_field: FormField, text: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"this is not JSON: {error}") from error


#: How the answer to a field of each kind becomes plain JSON.
_READERS: Mapping[FieldKind, Callable[[FormField, str], Any]] = {
    FieldKind.TEXT: _as_typed,
    FieldKind.NUMBER: _read_number,
    FieldKind.DECIMAL: _read_decimal,
    FieldKind.FLOAT: lambda field, text: float(_read_decimal(field, text)),
    FieldKind.DATE: _as_typed,
    FieldKind.DATETIME: _as_typed,
    FieldKind.TIME: _read_time,
    FieldKind.CHOICE: _read_choice,
    FieldKind.JSON: _read_json,
}


class InvalidForm(SagaError, ValueError):
    """Answers that make no value of the payload's type."""

    def __init__(self, errors: Mapping[str, str]) -> None:
        """`errors`: by field; under "" what is not about one field."""
        super().__init__("; ".join(f"{name}: {error}" if name else error for name, error in errors.items()))
        self.errors = errors


@dataclass(frozen=True, slots=True)
class Form:
    """The questions for one value.

    >>> form = form_of(bool, "approved")
    >>> [(field.label, [choice.label for choice in field.choices]) for field in form.fields]
    [('Approved', ['Yes', 'No'])]
    >>> form.read({"value": "true"})
    True
    """

    type: Any
    fields: tuple[FormField, ...]
    is_whole: bool = False  #: whether the only field is the value itself

    def read(self, answers: Mapping[str, str]) -> Any:
        """Return the value that the answers make. Raises `InvalidForm`, with what is wrong of each field."""
        errors: dict[str, str] = {}
        given: dict[str, Any] = {}
        for field in self.fields:
            try:
                value = field.read(answers.get(field.name, ""))
            except ValueError as error:
                errors[field.name] = str(error)
            else:
                if value is not ...:
                    given[field.name] = value
        if errors:
            raise InvalidForm(errors)
        try:
            if not self.is_whole:
                return convert(given, self.type)
            return load(encode(given.get(_WHOLE)).decode(), self.type)
        except (TypeError, ValueError, RecursionError) as error:  # msgspec's and pydantic's are ValueErrors
            raise InvalidForm(_by_field(explain(error), self)) from error


def form_of(type_: Any, name: str) -> Form:
    """Return the form for values of a type. `name`: what a value without fields is called."""
    if type_ is None or type_ is types.NoneType:
        return Form(type_, (), is_whole=True)
    try:
        required = field_names(type_)
    except TypeError:
        field = _field(_WHOLE, type_, label=_label(name), required=True, default=...)
        return Form(type_, (field,), is_whole=True)
    hints, defaults = _hints(type_), _defaults(type_)
    return Form(
        type_,
        tuple(
            _field(each, hints[each], label=_label(each), required=needed, default=defaults.get(each, ...))
            for each, needed in required.items()
            if _is_asked(type_, each)
        ),
    )


def _field(name: str, hint: Any, *, label: str, required: bool, default: Any) -> FormField:
    type_, nullable, about = _bare(hint)
    kind, choices = _kind(type_)
    return FormField(
        name=name,
        label=label,
        kind=kind,
        required=required and not nullable,
        nullable=nullable,
        choices=choices,
        initial="" if default is ... or default is None else _text(default, choices, kind),
        help=about,
    )


def _bare(hint: Any) -> tuple[Any, bool, str]:
    """Return a type without what surrounds it, whether None is allowed, and its description."""
    nullable, about = False, ""
    while True:
        origin = typing.get_origin(hint)
        if origin is typing.Annotated:
            hint, *marks = typing.get_args(hint)
            about = next((text for mark in marks if isinstance(text := getattr(mark, "description", None), str)), about)
        elif origin in (typing.NotRequired, typing.Required, typing_extensions.ReadOnly):
            hint = typing.get_args(hint)[0]
        elif isinstance(hint, typing_extensions.TypeAliasType):
            hint = hint.__value__
        elif isinstance(hint, typing.NewType):
            hint = hint.__supertype__
        elif origin in (typing.Union, types.UnionType) and types.NoneType in (members := typing.get_args(hint)):
            nullable = True
            hint = typing.Union[tuple(each for each in members if each is not types.NoneType)]  # noqa: UP007
        else:
            return hint, nullable, about


def _kind(type_: Any) -> tuple[FieldKind, tuple[Choice, ...]]:
    if type_ is bool:
        return FieldKind.CHOICE, (Choice("true", "Yes", value=True), Choice("false", "No", value=False))
    if typing.get_origin(type_) is typing.Literal:
        return FieldKind.CHOICE, tuple(_choice(value) for value in typing.get_args(type_))
    if isinstance(type_, type) and issubclass(type_, enum.Enum):
        if issubclass(type_, enum.Flag):
            return FieldKind.NUMBER, ()
        return FieldKind.CHOICE, tuple(_choice(each.value) for each in type_)
    simple = {
        str: FieldKind.TEXT,
        int: FieldKind.NUMBER,
        float: FieldKind.FLOAT,
        Decimal: FieldKind.DECIMAL,
        datetime: FieldKind.DATETIME,
        date: FieldKind.DATE,
        time: FieldKind.TIME,
    }
    return simple.get(type_, FieldKind.JSON), ()


def _choice(value: Any) -> Choice:
    return Choice(str(value), _label(value) if isinstance(value, str) else str(value), value)


def _label(name: str) -> str:
    text = name.replace("_", " ").strip() or name
    return text[:1].upper() + text[1:]


def _text(default: Any, choices: tuple[Choice, ...], kind: FieldKind) -> str:
    """Return a default as a person would type it."""
    plain = default.value if isinstance(default, enum.Enum) else default
    if choices:
        return next((each.text for each in choices if each.value == plain and type(each.value) is type(plain)), "")
    text = encode(plain).decode()
    return text if kind is FieldKind.JSON or not text.startswith('"') else str(parse(text))


def _hints(type_: Any) -> dict[str, Any]:
    if is_pydantic(type_):
        return {
            name: typing.Annotated[field.annotation, field] if field.description else field.annotation
            for name, field in type_.model_fields.items()
        }
    return typing_extensions.get_type_hints(type_, include_extras=True)


def _defaults(type_: Any) -> dict[str, Any]:
    """Return the defaults of a type's fields, where they are plain values."""
    if is_pydantic(type_):
        return {
            name: field.default
            for name, field in type_.model_fields.items()
            if not field.is_required() and field.default_factory is None
        }
    if dataclasses.is_dataclass(type_):
        return {f.name: f.default for f in dataclasses.fields(type_) if f.default is not dataclasses.MISSING}
    if is_struct(type_):
        return {f.name: f.default for f in msgspec.structs.fields(type_) if f.default is not msgspec.NODEFAULT}
    if attributes := getattr(type_, "__attrs_attrs__", None):
        return {a.name: a.default for a in attributes if a.init and isinstance(a.default, _PLAIN)}
    return {}


#: Defaults of attrs' classes may also be factories.
_PLAIN = (str, int, float, bool, Decimal, date, time, enum.Enum, types.NoneType)


def _is_asked(type_: Any, name: str) -> bool:
    """Tell whether a field is given when a value is made."""
    return not dataclasses.is_dataclass(type_) or type_.__dataclass_fields__[name].init


def _by_field(text: str, form: Form) -> dict[str, str]:
    """Return the error of a type by the field that it names."""
    if form.is_whole:
        return {_WHOLE: text}
    found: dict[str, str] = {}
    names = {field.name for field in form.fields}
    for part in text.split("; "):
        name = next((where[1] for where in reversed([*_FIELD.finditer(part)]) if where[1] in names), "")
        found[name] = _FIELD.sub("", part) if name else part
    return found
