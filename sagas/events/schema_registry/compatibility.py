"""Compatibility of two JSON Schemas: whether a reader of one accepts everything that a writer of the other may write.

The check is pure and conservative: a result of "compatible" is certain, and anything uncertain counts as incompatible.
It knows the part of JSON Schema (2020-12) that describes message types. It rejects anything else and names the place.

A writer writes only the properties and tuple items in its schema, unless the schema describes additional ones. A reader
ignores unknown properties, unless its schema forbids them, and fills in a required property that has a default.
"""

from __future__ import annotations

import enum
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, TypeAlias

from sagas.errors import SchemaRefused

__all__ = ["CHECKS", "VALIDATOR", "Difference", "Mode", "Rule", "check", "check_depth", "compare", "uncompared"]

#: The list of checks on a value that JSON Schema cannot express, as texts.
CHECKS = "x-checks"

#: The prefix of a check of which only the name is known.
VALIDATOR = "validator "

#: A check that is a limit, which can be looser or tighter than another.
_LIMIT = re.compile(r"(.+?)([<>])(=?)(-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)")

#: The deepest accepted nesting. Walking a deeper schema would exceed Python's recursion limit.
_DEEPEST = 200


class Mode(enum.StrEnum):
    """Which readers must be able to read which writers, between the revisions of a subject."""

    NONE = "NONE"  #: nothing is checked
    BACKWARD = "BACKWARD"  #: new readers read what the latest revision wrote
    FORWARD = "FORWARD"  #: readers of the latest revision read what the new one writes
    FULL = "FULL"  #: both
    BACKWARD_TRANSITIVE = "BACKWARD_TRANSITIVE"  #: as BACKWARD, with every revision
    FORWARD_TRANSITIVE = "FORWARD_TRANSITIVE"
    FULL_TRANSITIVE = "FULL_TRANSITIVE"

    @property
    def backward(self) -> bool:
        return self.startswith(("BACKWARD", "FULL"))

    @property
    def forward(self) -> bool:
        return self.startswith(("FORWARD", "FULL"))

    @property
    def transitive(self) -> bool:
        return self.endswith("TRANSITIVE")


class Rule(enum.StrEnum):
    """The subject of a difference."""

    TYPE = "type"
    VALUES = "values"  #: enum and const
    BOUNDS = "bounds"  #: minimum, maximum, multipleOf
    LENGTH = "length"
    PATTERN = "pattern"
    FORMAT = "format"
    REQUIRED = "required"
    PROPERTY = "property"  #: a property that the reader forbids
    ITEMS = "items"
    BRANCH = "branch"  #: of a union
    CHECK = "check"  #: a check that JSON Schema cannot express
    NAME = "name"  #: of a record or an enum (Avro)


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that the writer may write and the reader does not accept."""

    path: str  #: the place in a document: $.lines[*].sku
    rule: Rule
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"

    def under(self, step: str) -> Difference:
        """Return the difference with its path relative to the enclosing value."""
        return replace(self, path="$" + step + self.path[1:])


#: Compares a writer's definition with a reader's; the names are used in the reasons.
Compare: TypeAlias = Callable[[Any, Any, str, str], tuple[Difference, ...]]


def check(
    new: Any, revisions: Sequence[tuple[int, Any]], mode: Mode, how: Compare | None = None
) -> tuple[Difference, ...]:
    """Compare a new definition with the revisions of its subject, oldest first, in the given mode.

    `how`: compares two definitions in a format other than JSON Schema.
    Returns the differences; none if the definition is compatible. Raises `SchemaRefused` for an unsupported schema.

    >>> old = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    >>> new = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    >>> for difference in check(new, [(1, old)], Mode.BACKWARD):
    ...     print(difference)
    $.a: revision 1 may write an integer here; the new schema accepts a string
    """
    if mode is Mode.NONE:
        return ()
    how = how or compare
    found = list(how(new, new, "the new schema", "the new schema"))  # is it supported at all?
    for number, old in revisions if mode.transitive else revisions[-1:]:
        if mode.backward:
            found += how(old, new, f"revision {number}", "the new schema")
        if mode.forward:
            found += how(new, old, "the new schema", f"revision {number}")
    return tuple(dict.fromkeys(found))


def compare(
    writer: Any, reader: Any, writer_name: str = "the writer", reader_name: str = "the reader"
) -> tuple[Difference, ...]:
    """Return what a writer of one JSON Schema may write that a reader of the other does not accept.

    Raises `SchemaRefused` for an unsupported schema.
    """
    check_depth(writer, writer_name)
    check_depth(reader, reader_name)
    try:
        return _compared(writer, reader, writer_name, reader_name)
    except RecursionError as error:
        raise SchemaRefused(
            f"{writer_name} and {reader_name} cannot be compared: their schemas are nested too deep"
        ) from error


def _compared(writer: Any, reader: Any, writer_name: str, reader_name: str) -> tuple[Difference, ...]:
    wrote, reads = _Document(writer, writer_name, writes=True), _Document(reader, reader_name, writes=False)
    found = _Comparison(wrote, reads).differences(wrote.root, reads.root)
    return tuple(dict.fromkeys(found))


def check_depth(definition: Any, name: str) -> None:
    """Raise `SchemaRefused` for a definition that is nested too deep."""
    level = [definition]
    for _ in range(_DEEPEST):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return
    raise SchemaRefused(
        f"{name}: it is nested more than {_DEEPEST} levels deep, which cannot be compared. Move its parts to $defs and "
        "refer to them"
    )


def uncompared(definition: Any) -> Sequence[str]:
    """Return the checks in a definition whose changes are not visible, or that may not hold for long."""
    found: dict[str, None] = {}
    waiting = [definition]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            checks = each.get(CHECKS)
            for what in checks if isinstance(checks, list) else ():
                if isinstance(what, str) and what.startswith(VALIDATOR):
                    found[f"{what}: only its name is compared. Make sure it still accepts what it accepted before"] = (
                        None
                    )
                elif what == "in the future":
                    found["a time in the future when it is written may be past when it is read"] = None
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each
    return sorted(found)


# -- parsing a schema ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Node:
    """An unparsed schema within a document. It may refer to itself."""

    raw: Any
    at: str  #: JSON pointer, for messages

    @property
    def key(self) -> int:
        return id(self.raw)  # the documents keep their parts alive


@dataclass(frozen=True, slots=True)
class _Literal:
    """Exactly one value. A boolean is two literals; null is one."""

    value: Any
    checks: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class _Number:
    integer: bool
    lower: tuple[Fraction, bool] | None  #: the bound, and whether it is exclusive
    upper: tuple[Fraction, bool] | None
    multiple: Fraction | None
    format: str | None
    checks: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class _Text:
    shortest: int
    longest: float
    pattern: str | None
    format: tuple[str | None, str | None]  #: format and contentEncoding
    checks: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class _Array:
    prefix: tuple[_Node, ...]
    items: _Node
    shortest: int
    longest: float
    unique: bool
    checks: frozenset[str] = frozenset()

    def item(self, index: int) -> _Node:
        return self.prefix[index] if index < len(self.prefix) else self.items


@dataclass(frozen=True, slots=True)
class _Object:
    properties: Mapping[str, _Node]
    additional: _Node
    required: frozenset[str]
    names: _Node | None
    fewest: int
    most: float
    defaults: frozenset[str] = field(default=frozenset())
    checks: frozenset[str] = frozenset()
    tag: str | None = None  #: the property that distinguishes the branches of a union

    def property(self, name: str) -> _Node:
        return self.properties.get(name, self.additional)


_Branch = _Literal | _Number | _Text | _Array | _Object

_TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
_ANNOTATIONS = frozenset(
    {
        "$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default", "examples", "example",
        "deprecated", "readOnly", "writeOnly", "discriminator",
    }
)  # fmt: skip
_KEYWORDS = frozenset(
    {
        "$ref", "anyOf", "oneOf", "allOf", "type", "enum", "const",
        "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
        "minLength", "maxLength", "pattern", "format", "contentEncoding",
        "items", "prefixItems", "minItems", "maxItems", "uniqueItems",
        "properties", "required", "additionalProperties", "propertyNames", "minProperties", "maxProperties",
    }
)  # fmt: skip


class _Document:
    """One schema with its definitions, from a writer's or a reader's point of view."""

    def __init__(self, definition: Any, name: str, *, writes: bool) -> None:
        self.definition = definition
        self.name = name
        self.writes = writes
        self.root = _Node(definition, "#")
        self._known: dict[int, tuple[_Branch, ...]] = {}

    def branches(self, node: _Node, within: frozenset[int] = frozenset()) -> tuple[_Branch, ...]:
        """Parse a schema into alternatives with one type each."""
        if node.key not in self._known:
            if node.key in within:
                raise self.refusal(node, "it refers only to itself")
            found = self._take_apart(node, within | {node.key})
            if checks := self._checks(node):
                found = tuple(replace(branch, checks=branch.checks | checks) for branch in found)
            self._known[node.key] = found
        return self._known[node.key]

    def _checks(self, node: _Node) -> frozenset[str]:
        said = node.raw.get(CHECKS, []) if isinstance(node.raw, dict) else []
        if not isinstance(said, list) or not all(isinstance(each, str) for each in said):
            raise self.refusal(node, f"{CHECKS!r} is not a list of texts: {said!r}")
        return frozenset(said)

    def followed(self, node: _Node) -> _Node:
        """Return the target of a $ref, so that two references to one definition are the same node."""
        seen = set()
        while isinstance(node.raw, dict) and "$ref" in node.raw and node.key not in seen:
            if node.raw.get(CHECKS):
                break  # it has more checks than its target
            seen.add(node.key)
            self.branches(node)  # raises unless it is a plain $ref
            node = self._resolve(node, node.raw["$ref"])
        return node

    def refusal(self, node: _Node, what: str) -> SchemaRefused:
        return SchemaRefused(f"{self.name}, at {node.at}: {what}")

    def _take_apart(self, node: _Node, within: frozenset[int]) -> tuple[_Branch, ...]:
        raw = node.raw
        if raw is False:
            return ()
        if raw is True:
            raw = {}
        if not isinstance(raw, dict):
            raise self.refusal(node, f"{raw!r} is not a schema")
        if "$id" in raw and node.raw is not self.definition:
            raise self.refusal(node, "'$id' inside a schema is not supported: it changes the meaning of $ref")
        for word in raw:
            if word not in _KEYWORDS and word not in _ANNOTATIONS and not word.startswith("x-"):
                raise self.refusal(
                    node, f"the keyword {word!r} is not supported, so its restrictions cannot be compared"
                )
        said = set(raw) & _KEYWORDS
        for word in ("$ref", "allOf", "anyOf", "oneOf"):
            if word in said:
                self._alone(node, said, {word})
                return self._combined(node, word, within)
        types = self._types(node)
        if said & {"enum", "const"}:
            self._alone(node, said, {"enum", "const", "type"})
            return tuple(_Literal(value) for value in self._values(node) if any(_is_of(value, t) for t in types))
        return tuple(branch for type_ in types for branch in self._of_type(node, raw, type_))

    def _alone(self, node: _Node, said: set[str], words: set[str]) -> None:
        if others := sorted(said - words):
            raise self.refusal(
                node, f"{others[0]!r} beside {min(words & said)!r} is not supported; split them into separate schemas"
            )

    def _combined(self, node: _Node, word: str, within: frozenset[int]) -> tuple[_Branch, ...]:
        value = node.raw[word]
        if word == "$ref":
            return self.branches(self._resolve(node, value), within)
        if not isinstance(value, list) or not value:
            raise self.refusal(node, f"{word!r} is not a list of schemas")
        nodes = [_Node(raw, f"{node.at}/{word}/{index}") for index, raw in enumerate(value)]
        if word == "allOf" and len(nodes) > 1:
            raise self.refusal(node, "'allOf' with several schemas is not supported; merge them into one")
        found = [self.branches(each, within) for each in nodes]
        about = node.raw.get("discriminator")
        if isinstance(about, dict) and isinstance(tag := about.get("propertyName"), str):
            # The tag must be present to distinguish the branches, even if its own schema has a default for it.
            found = [tuple(_tagged(branch, tag) for branch in branches) for branches in found]
        if word == "oneOf" and not self.writes:
            self._check_apart(node, found)
        return tuple(branch for branches in found for branch in branches)

    def _resolve(self, node: _Node, reference: Any) -> _Node:
        if reference != "#" and not (isinstance(reference, str) and reference.startswith("#/")):
            raise self.refusal(node, f"$ref {reference!r} does not point into this document; move the definition here")
        target = self.definition
        for part in reference.split("/")[1:]:
            step = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, dict) or step not in target:
                raise self.refusal(node, f"$ref {reference!r} points to no definition in this document")
            target = target[step]
        return _Node(target, reference)

    def _check_apart(self, node: _Node, found: Sequence[tuple[_Branch, ...]]) -> None:
        """Make sure that no value fits two branches of a oneOf: a reader accepts what fits exactly one branch."""
        for index, branches in enumerate(found):
            for others in found[:index]:
                if not all(self._apart(a, b) for a in branches for b in others):
                    raise self.refusal(
                        node,
                        "one value may fit several branches of this oneOf; distinguish them by a required property "
                        "with a const, or use anyOf",
                    )

    def _apart(self, a: _Branch, b: _Branch) -> bool:
        if isinstance(a, _Literal) and isinstance(b, _Literal):
            return not _same(a.value, b.value)
        if isinstance(a, _Literal) or isinstance(b, _Literal):
            literal, other = (a, b) if isinstance(a, _Literal) else (b, a)
            return not isinstance(literal, _Literal) or not any(
                _is_of(literal.value, type_) for type_ in _FAMILIES[type(other)]
            )
        if isinstance(a, _Object) and isinstance(b, _Object):
            return any(self._tells_apart(a, b, name) for name in a.required & b.required)
        return type(a) is not type(b)

    def _tells_apart(self, a: _Object, b: _Object, name: str) -> bool:
        ours, theirs = (self.branches(each.property(name)) for each in (a, b))
        return all(
            isinstance(x, _Literal) and isinstance(y, _Literal) and not _same(x.value, y.value)
            for x in ours
            for y in theirs
        )

    def _types(self, node: _Node) -> Sequence[str]:
        said = node.raw.get("type", list(_TYPES)) if isinstance(node.raw, dict) else list(_TYPES)
        types = [said] if isinstance(said, str) else said
        if not isinstance(types, list) or not all(type_ in _TYPES for type_ in types):
            raise self.refusal(node, f"type {said!r} is not supported")
        if "number" in types:  # which includes integers
            types = [type_ for type_ in types if type_ != "integer"]
        return types

    def _values(self, node: _Node) -> list[Any]:
        raw = node.raw
        values = raw.get("enum", [raw.get("const")])
        if not isinstance(values, list):
            raise self.refusal(node, "'enum' is not a list of values")
        return [value for value in values if "const" not in raw or _same(value, raw["const"])]

    def _of_type(self, node: _Node, raw: Mapping[str, Any], type_: str) -> Iterable[_Branch]:
        match type_:
            case "null":
                return [_Literal(None)]
            case "boolean":
                return [_Literal(False), _Literal(True)]
            case "integer" | "number":
                return [self._number(node, raw, integer=type_ == "integer")]
            case "string":
                return [self._text(node, raw)]
            case "array":
                return [self._array(node, raw)]
        return [self._object(node, raw)]

    def _number(self, node: _Node, raw: Mapping[str, Any], *, integer: bool) -> _Number:
        lower = self._bound(node, raw, "minimum", "exclusiveMinimum", max)
        upper = self._bound(node, raw, "maximum", "exclusiveMaximum", min)
        if integer:  # so that "more than 0" equals "at least 1"
            if lower is not None:
                lower = Fraction(math.floor(lower[0]) + 1 if lower[1] else math.ceil(lower[0])), False
            if upper is not None:
                upper = Fraction(math.ceil(upper[0]) - 1 if upper[1] else math.floor(upper[0])), False
        multiple = self._fraction(node, raw, "multipleOf")
        return _Number(integer, lower, upper, multiple, self._string(node, raw, "format"))

    def _bound(
        self, node: _Node, raw: Mapping[str, Any], plain: str, exclusive: str, tighter: Callable[..., Any]
    ) -> tuple[Fraction, bool] | None:
        bounds = []
        for word, strict in ((plain, False), (exclusive, True)):
            value = self._fraction(node, raw, word)
            if value is not None:
                bounds.append((value, strict))
        # Of two equal bounds, the exclusive one is tighter at either end.
        return tighter(bounds, key=lambda b: (b[0], b[1] if tighter is max else not b[1])) if bounds else None

    def _fraction(self, node: _Node, raw: Mapping[str, Any], word: str) -> Fraction | None:
        value = raw.get(word)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.refusal(node, f"{word!r} is not a number: {value!r}")
        return Fraction(value)

    def _string(self, node: _Node, raw: Mapping[str, Any], word: str) -> str | None:
        value = raw.get(word)
        if value is not None and not isinstance(value, str):
            raise self.refusal(node, f"{word!r} is not text: {value!r}")
        return value

    def _count(self, node: _Node, raw: Mapping[str, Any], word: str, default: float) -> Any:
        value = raw.get(word, default)
        if isinstance(value, bool) or (value is not default and not isinstance(value, int)) or value < 0:
            raise self.refusal(node, f"{word!r} is not a count: {value!r}")
        return value

    def _text(self, node: _Node, raw: Mapping[str, Any]) -> _Text:
        pattern = self._string(node, raw, "pattern")
        if pattern is not None:
            try:
                re.compile(pattern)
            except re.error as error:
                raise self.refusal(node, f"the pattern {pattern!r} is not supported: {error}") from error
        return _Text(
            self._count(node, raw, "minLength", 0),
            self._count(node, raw, "maxLength", math.inf),
            pattern,
            (self._string(node, raw, "format"), self._string(node, raw, "contentEncoding")),
        )

    def _array(self, node: _Node, raw: Mapping[str, Any]) -> _Array:
        prefix, items = raw.get("prefixItems", []), raw.get("items")
        if not isinstance(prefix, list) or isinstance(items, list):
            raise self.refusal(node, "put a list of schemas in 'prefixItems', and one schema for the rest in 'items'")
        if items is None:
            items = not (self.writes and "prefixItems" in raw)
        longest = self._count(node, raw, "maxItems", math.inf)
        if items is False:
            longest = min(longest, len(prefix))
        return _Array(
            tuple(_Node(each, f"{node.at}/prefixItems/{index}") for index, each in enumerate(prefix)),
            _Node(items, f"{node.at}/items"),
            self._count(node, raw, "minItems", 0),
            longest,
            raw.get("uniqueItems", False) is True,
        )

    def _object(self, node: _Node, raw: Mapping[str, Any]) -> _Object:
        said, required = raw.get("properties", {}), raw.get("required", [])
        if not isinstance(said, dict) or not isinstance(required, list):
            raise self.refusal(node, "'properties' is not an object, or 'required' not a list")
        # Without properties it is a mapping, which may contain anything.
        others = raw.get("additionalProperties", not (self.writes and "properties" in raw))
        additional = _Node(others, f"{node.at}/additionalProperties")
        properties = {name: _Node(each, f"{node.at}/properties/{name}") for name, each in said.items()}
        if self.writes and "additionalProperties" not in raw:
            for name in required:  # it is written, with any value
                properties.setdefault(name, _Node(True, f"{node.at}/required"))
        names, most = raw.get("propertyNames"), self._count(node, raw, "maxProperties", math.inf)
        return _Object(
            properties,
            additional,
            frozenset(required),
            None if names is None else _Node(names, f"{node.at}/propertyNames"),
            self._count(node, raw, "minProperties", 0),
            min(most, len(properties)) if self.writes and others is False else most,
            frozenset(name for name in required if isinstance(said.get(name), dict) and "default" in said[name]),
        )


def _tagged(branch: _Branch, tag: str) -> _Branch:
    if not isinstance(branch, _Object):
        return branch
    return replace(branch, required=branch.required | {tag}, defaults=branch.defaults - {tag}, tag=tag)


_FAMILIES: Mapping[type, tuple[str, ...]] = {
    _Number: ("number",),
    _Text: ("string",),
    _Array: ("array",),
    _Object: ("object",),
}


def _is_of(value: Any, type_: str) -> bool:
    if isinstance(value, bool):
        return type_ == "boolean"
    if type_ == "integer":
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return isinstance(value, _PYTHON[type_])


_PYTHON: Mapping[str, Any] = {
    "null": type(None),
    "boolean": bool,
    "number": int | float,
    "string": str,
    "array": list,
    "object": dict,
}


def _same(a: Any, b: Any) -> bool:
    """Return whether two values are equal in JSON, where 1 and true are not."""
    if isinstance(a, bool) is not isinstance(b, bool):
        return False
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[name], b[name]) for name in a)
    return bool(a == b)


# -- comparing -----------------------------------------------------------------------------------------------------


class _Comparison:
    """Walks two documents side by side.

    A pair that occurs again on the way is assumed to be compatible: documents are finite, so if it is not, another
    place shows it.
    """

    def __init__(self, writer: _Document, reader: _Document) -> None:
        self.writer, self.reader = writer, reader
        self._assumed: set[tuple[int, int]] = set()
        self._failed: dict[tuple[int, int], list[Difference]] = {}

    def differences(self, written: _Node, read: _Node) -> list[Difference]:
        written, read = self.writer.followed(written), self.reader.followed(read)
        pair = written.key, read.key
        if pair in self._assumed:
            return []
        if pair in self._failed:
            return self._failed[pair]
        before = set(self._assumed)
        self._assumed.add(pair)
        found = self._unions(self.writer.branches(written), self.reader.branches(read))
        if found:
            self._assumed = before  # conclusions drawn from this pair are invalid
            self._failed[pair] = found
        return found

    def _unions(self, written: tuple[_Branch, ...], read: tuple[_Branch, ...]) -> list[Difference]:
        literals = [b for b in written if isinstance(b, _Literal)]
        stray = [b for b in literals if not any(self._takes(r, b.value) for r in read)]
        rest = [b for b in written if not isinstance(b, _Literal)]
        if {*map(type, written)} == _ANYTHING and not {*map(type, read)} >= _ANYTHING - {_Literal}:
            return [self._type("anything", read)]
        found: list[Difference] = []
        if stray and {type(b.value) for b in stray} <= {bool, type(None)}:
            found.append(self._type(" or ".join(dict.fromkeys(map(_kind, stray))), read))
        elif stray:
            values = ", ".join(json.dumps(b.value, ensure_ascii=False) for b in stray)
            reason = f"{self.writer.name} may write {values}; {self.reader.name} accepts no such value"
            found.append(self._difference(Rule.VALUES, reason))
        for literal in literals:
            missing = [list(self._unchecked(literal, r)) for r in read if self._takes(r, literal.value)]
            fewest: list[Difference] = min(missing, key=len, default=[])
            found += fewest
        for branch in rest:
            found += self._branch(branch, read, of_union=len(written) > 1 or len(read) > 1)
        return found

    def _type(self, what: str, read: tuple[_Branch, ...]) -> Difference:
        accepts = " or ".join(dict.fromkeys(map(_kind, read))) or "nothing"
        text = f"{self.writer.name} may write {what} here; {self.reader.name} accepts {accepts}"
        return Difference("$", Rule.TYPE, text)

    def _branch(self, branch: _Branch, read: tuple[_Branch, ...], *, of_union: bool) -> list[Difference]:
        if self._is_empty(branch):
            return []
        attempts = []
        for other in read:
            if type(other) is type(branch):
                before = set(self._assumed)
                found = self._fits(branch, other)
                if not found:
                    return []
                self._assumed = before
                attempts.append(found)
        if not attempts:
            return [self._type(_kind(branch), read)]
        # Of several, report the intended branch: one whose tag matches, and then the closest.
        meant = min(attempts, key=lambda found: (any(map(_is_of_tag, found)), len(found)))
        tags = list(filter(_is_of_tag, meant))
        if tags and of_union:
            reason = f"no branch of {self.reader.name} accepts {_kind(branch)} that {self.writer.name} may write here"
            return [self._difference(Rule.BRANCH, f"{reason}; the closest fails at {tags[0]}")]
        return meant

    def _is_empty(self, branch: _Branch) -> bool:
        return isinstance(branch, _Object) and any(
            not self.writer.branches(branch.property(name)) for name in branch.required
        )

    def _fits(self, written: _Branch, read: _Branch) -> list[Difference]:
        return self._fits_in_json(written, read) + self._unchecked(written, read)

    def _unchecked(self, written: _Branch, read: _Branch) -> list[Difference]:
        """Return the reader's additional checks that the writer does not have."""
        found = []
        for each in sorted(read.checks):
            if any(_is_as_tight(other, each) for other in written.checks):
                continue
            reason = f"{self.reader.name} checks {each!r}, {self.writer.name} does not"
            if each.startswith(VALIDATOR):
                reason += (
                    ", and its effect is unknown. If it rejects nothing that was accepted before, give the field "
                    f"json_schema_extra={{{CHECKS!r}: []}}"
                )
            found.append(self._difference(Rule.CHECK, reason))
        return found

    def _fits_in_json(self, written: _Branch, read: _Branch) -> list[Difference]:
        if isinstance(written, _Number) and isinstance(read, _Number):
            return self._numbers(written, read)
        if isinstance(written, _Text) and isinstance(read, _Text):
            return self._texts(written, read)
        if isinstance(written, _Array) and isinstance(read, _Array):
            return self._arrays(written, read)
        assert isinstance(written, _Object)
        assert isinstance(read, _Object)
        return self._objects(written, read)

    def _numbers(self, written: _Number, read: _Number) -> list[Difference]:
        found = []
        if read.integer and not written.integer:
            found.append(self._type("a number", (read,)))
        for word, ours, theirs, sign in (
            ("below", written.lower, read.lower, 1),
            ("above", written.upper, read.upper, -1),
        ):
            if theirs is not None and (ours is None or not _is_within(ours, theirs, sign)):
                end = " or equal to" if theirs[1] else ""
                limit = f"{self.reader.name} accepts nothing {word}{end} {_figure(theirs[0])}"
                found.append(self._difference(Rule.BOUNDS, f"{limit}; {self.writer.name} may write it"))
        if read.multiple is not None and (
            written.multiple is None or (written.multiple / read.multiple).denominator != 1
        ):
            whole = written.integer and read.multiple.numerator == 1
            if not whole:
                found.append(
                    self._difference(
                        Rule.BOUNDS,
                        f"{self.reader.name} accepts multiples of {_figure(read.multiple)}; {self.writer.name} may "
                        "write other numbers",
                    )
                )
        if read.format is not None and read.format != written.format:
            found.append(self._format((read.format, None), (written.format, None)))
        return found

    def _difference(self, rule: Rule, reason: str) -> Difference:
        return Difference("$", rule, reason)

    def _texts(self, written: _Text, read: _Text) -> list[Difference]:
        found = self._sizes(
            (written.shortest, written.longest), (read.shortest, read.longest), "characters", Rule.LENGTH
        )
        if read.pattern is not None and read.pattern != written.pattern:
            said = "any text" if written.pattern is None else f"text matching {written.pattern!r}"
            found.append(
                self._difference(
                    Rule.PATTERN,
                    f"{self.reader.name} accepts text matching {read.pattern!r}; {self.writer.name} may write {said}",
                )
            )
        for ours, theirs in zip(written.format, read.format, strict=True):
            if theirs is not None and theirs != ours:
                found.append(self._format(read.format, written.format))
                break
        return found

    def _format(self, read: tuple[str | None, ...], written: tuple[str | None, ...]) -> Difference:
        theirs, ours = (" ".join(word for word in each if word) or "any" for each in (read, written))
        return self._difference(
            Rule.FORMAT, f"{self.reader.name} accepts the format {theirs}; {self.writer.name} may write {ours}"
        )

    def _sizes(self, written: tuple[int, float], read: tuple[int, float], what: str, rule: Rule) -> list[Difference]:
        found = []
        for word, ours, theirs, bad in (
            ("at least", written[0], read[0], written[0] < read[0]),
            ("at most", written[1], read[1], written[1] > read[1]),
        ):
            if bad:
                other = "any number" if ours in (0, math.inf) else f"{ours:g}"
                found.append(
                    self._difference(
                        rule,
                        f"{self.reader.name} accepts {word} {theirs:g} {what}; {self.writer.name} may write {other}",
                    )
                )
        return found

    def _arrays(self, written: _Array, read: _Array) -> list[Difference]:
        found = self._sizes((written.shortest, written.longest), (read.shortest, read.longest), "items", Rule.ITEMS)
        if read.unique and not written.unique and written.longest > 1:
            found.append(
                self._difference(
                    Rule.ITEMS, f"{self.reader.name} accepts no duplicate items; {self.writer.name} may write some"
                )
            )
        named = max(len(written.prefix), len(read.prefix))
        for index in range(int(min(named, written.longest, read.longest))):
            found += _under(f"[{index}]", self.differences(written.item(index), read.item(index)))
        if min(written.longest, read.longest) > named:
            found += _under("[*]", self.differences(written.items, read.items))
        return found

    def _objects(self, written: _Object, read: _Object) -> list[Difference]:
        reason = f"{self.reader.name} requires it; {self.writer.name} may omit it"
        found = [
            Difference("$" + _step(name), Rule.REQUIRED, reason)
            for name in sorted(read.required - written.required)
            if not self._is_filled(read, name) and not (name == read.tag and _is_written(written, name))
        ]
        for name in sorted({*written.properties, *read.properties}):
            found += _under(_step(name), self._property(written.property(name), read.property(name)))
        found += _under(".*", self._property(written.additional, read.additional))
        found += self._names(written, read)
        ours = max(written.fewest, len(written.required)), written.most
        return found + self._sizes(ours, (read.fewest, read.most), "properties", Rule.LENGTH)

    def _property(self, written: _Node, read: _Node) -> list[Difference]:
        if read.raw is False and self.writer.branches(written):
            reason = f"{self.writer.name} may write it; {self.reader.name} forbids unknown properties"
            return [self._difference(Rule.PROPERTY, reason)]
        return self.differences(written, read)

    def _names(self, written: _Object, read: _Object) -> list[Difference]:
        if read.names is None:
            return []
        found = []
        for name, node in sorted(written.properties.items()):
            if self.writer.branches(node) and not self._node_takes(read.names, name):
                found.append(
                    Difference("$" + _step(name), Rule.PROPERTY, f"{self.reader.name} accepts no property of this name")
                )
        if written.additional.raw is not False:
            names = written.names or _ANY_TEXT
            found += _under(".*~", self.differences(names, read.names))
        return found

    # -- one value ------------------------------------------------------------------------------------------------

    def _is_filled(self, read: _Object, name: str) -> bool:
        node = read.property(name)
        return name in read.defaults and self._node_takes(node, node.raw["default"])

    def _node_takes(self, read: _Node, value: Any) -> bool:
        return any(self._takes(branch, value) for branch in self.reader.branches(read))

    def _takes(self, read: _Branch, value: Any) -> bool:
        """Return whether a reader certainly accepts a value."""
        if isinstance(read, _Literal):
            return _same(read.value, value)
        if not any(_is_of(value, type_) for type_ in _FAMILIES[type(read)]):
            return False
        if isinstance(read, _Number):
            exact = Fraction(value)
            one = _Number(_is_of(value, "integer"), (exact, False), (exact, False), exact or None, None)
            return not self._numbers(one, replace(read, multiple=read.multiple if exact else None))
        if isinstance(read, _Text):
            fits = read.pattern is None or re.search(read.pattern, value) is not None
            one_text = _Text(len(value), len(value), read.pattern, (None, None))
            return fits and not self._texts(one_text, read)
        if isinstance(read, _Array):
            return (
                read.shortest <= len(value) <= read.longest
                and all(self._node_takes(read.item(index), item) for index, item in enumerate(value))
                and not (read.unique and any(_same(a, b) for i, a in enumerate(value) for b in value[:i]))
            )
        return (
            all(name in value or self._is_filled(read, name) for name in read.required)
            and read.fewest <= len(value) <= read.most
            and all(self._node_takes(read.property(name), item) for name, item in value.items())
            and (read.names is None or all(self._node_takes(read.names, name) for name in value))
        )


_ANY_TEXT = _Node({"type": "string"}, "#")
_ANYTHING = {_Literal, _Number, _Text, _Array, _Object}


def _is_within(ours: tuple[Fraction, bool], theirs: tuple[Fraction, bool], sign: int) -> bool:
    """Return whether our bound is as tight as theirs; `sign` is 1 for lower bounds, -1 for upper ones."""
    mine, limit = ours[0] * sign, theirs[0] * sign
    return mine > limit or (mine == limit and (ours[1] or not theirs[1]))


def _is_as_tight(ours: str, theirs: str) -> bool:
    if ours == theirs:
        return True
    mine, limit = _LIMIT.fullmatch(ours), _LIMIT.fullmatch(theirs)
    if mine is None or limit is None or mine[1] != limit[1] or mine[2] != limit[2]:
        return False
    sign = 1 if limit[2] == ">" else -1
    return _is_within((Fraction(mine[4]), not mine[3]), (Fraction(limit[4]), not limit[3]), sign)


def _is_written(written: _Object, name: str) -> bool:
    """Return whether an optional property is the tag of its type, which is always written."""
    raw = written.property(name).raw
    return isinstance(raw, dict) and "const" in raw and "default" in raw and _same(raw["const"], raw["default"])


def _is_of_tag(difference: Difference) -> bool:
    return difference.rule is Rule.VALUES and re.fullmatch(r"\$\.\w+", difference.path) is not None


def _kind(branch: _Branch) -> str:
    if isinstance(branch, _Literal):
        if isinstance(branch.value, bool):
            return "a boolean"
        return json.dumps(branch.value, ensure_ascii=False)
    if isinstance(branch, _Number) and branch.integer:
        return "an integer"
    return {_Number: "a number", _Text: "a string", _Array: "an array", _Object: "an object"}[type(branch)]


def _figure(value: Fraction) -> str:
    return str(value.numerator if value.denominator == 1 else float(value))


def _step(name: str) -> str:
    return f".{name}" if re.fullmatch(r"\w+", name) else f"[{json.dumps(name, ensure_ascii=False)}]"


def _under(step: str, found: Iterable[Difference]) -> list[Difference]:
    return [difference.under(step) for difference in found]
