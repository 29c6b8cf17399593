"""Events and commands: how messages are declared, before anything carries them.

An event is a fact, named in the past tense. Its owner publishes it and any service may subscribe. A command asks one
service to act, and is named in the imperative. Its sender learns of a failure through `sagas.events.CommandFailed`.
"""

from __future__ import annotations

import dataclasses
import enum
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast, dataclass_transform

import msgspec

from sagas import values
from sagas.durations import whole_number
from sagas.endings import ends_process
from sagas.errors import DefinitionError, InvalidMessage, UnknownVersion
from sagas.values import Number, check_type, decoder, encode

__all__ = ["Kind", "MessageType", "NamingWarning", "command", "event", "type_of"]

C = TypeVar("C", bound=type)

#: Converts the data of one version to the next. It must be pure: the stored event does not change.
Upcaster = Callable[[dict[str, Any]], dict[str, Any]]

_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*){1,4}")
_LONGEST_NAME = 100
_ATTRIBUTE = "__sagas_message__"

#: Words that look like a fact although they do not end in "ed". They only decide about a warning, so gaps cost little.
_IRREGULAR = frozenset(
    """
    become begun bent bound born bought broken brought built burnt caught chosen come done drawn driven dropped eaten
    fallen fed felt forbidden forgiven forgotten fought found frozen given gone got gotten grown had heard held hidden
    hung kept known laid led left lent lost made meant met mistaken outdone overdrawn overridden overtaken overthrown
    paid proven rebuilt redone resent resold retaken rewound rewritten risen run said seen sent shaken shown shrunk shut
    sold spent spoken spun stolen stood stuck sunk sworn taken taught thought thrown told torn undone unpaid unsent
    unsold upheld withdrawn withheld woken won worn written
    """.split()  # noqa: SIM905 - a list of words
)
#: Words that look like a request at the start of a name: verbs for what services are asked to do.
_IMPERATIVE = frozenset(
    """
    abort accept acknowledge activate add adjust allocate apply approve archive assign attach authorise authorize
    begin bill block book build buy calculate call cancel capture change charge check choose clear close collect
    commit compute confirm convert copy correct count create credit deactivate debit decline decrease delete deliver
    detach disable dispatch do download draw drop enable end escalate estimate execute expire export extend fail
    fetch fill find finish flag forget freeze fulfil fulfill generate get give grant handle hide hold import
    increase index inform initiate insert install invite issue join keep launch leave link list load lock login make
    mark merge migrate modify move notify open order pack pause pay perform pick place post prepare proceed process
    produce publish purge push quote raise rebuild receive record redeem refresh refund refuse register reject
    release remind remove rename renew reopen repeat replace reply report request rerun resend reserve reset resolve
    restart restock restore resume retry return reverse revert review revoke route save schedule sell send set
    settle ship show sign split start stop store submit subtract suspend switch sync take tell terminate transfer
    trigger unblock undo unlock unregister update upgrade upload use validate verify void warn withdraw withhold
    write
    """.split()  # noqa: SIM905
)
#: Words that are the same in a request and in a fact: they are accepted for both.
_BOTH = frozenset(
    ["cut", "hit", "login", "logout", "put", "quit", "read", "rerun", "reset", "run", "set", "shut", "split"]
)
#: Words that end in "ed" and are not in the past tense.
_NO_PAST = frozenset(
    ["bleed", "breed", "embed", "exceed", "feed", "heed", "need", "proceed", "seed", "shed", "speed", "succeed", "weed"]
)


class NamingWarning(UserWarning):
    """A message's name reads like a name of the other kind. The declaration is still valid."""


class Kind(enum.StrEnum):
    """Whether a message is an event or a command."""

    EVENT = "event"
    COMMAND = "command"


@dataclass(frozen=True, slots=True)
class MessageType:
    """The declaration of a message: its name, version and Python class."""

    kind: Kind
    name: str  #: `<context>.<entity>.<what happened>`, or `<context>.<what to do>`
    version: int  #: raised for changes that older readers cannot read
    cls: type = field(repr=False)
    failure: bool = False  #: whether the event reports that something failed
    upcasters: Mapping[int, Upcaster] = field(default_factory=dict, repr=False, compare=False)
    was: tuple[str, ...] = field(default=(), repr=False, compare=False)  #: former names

    @property
    def context(self) -> str:
        """The service that owns an event, or receives a command."""
        return self.name.partition(".")[0]

    @property
    def topic(self) -> str:
        """The routing key of its messages."""
        return topic(self.name, self.version)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that its messages may have: the current name and the former ones."""
        return (self.name, *self.was)

    @property
    def versions(self) -> tuple[int, ...]:
        """Every version that can be read: the current one and those with an upcaster."""
        return (*sorted(self.upcasters), self.version)

    def load(self, data: msgspec.Raw | bytes, version: int) -> Any:
        """Return the message that was written as `data` in the given version of this type.

        Raises `UnknownVersion` for a version without an upcaster, and `InvalidMessage` if the data does not match the
        declared type.
        """
        try:
            if version != self.version:
                data = _encoded(self._upcast(_EXACT.decode(data), version))
            return decoder(self.cls)(data)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise InvalidMessage(f"{self.kind} {self.name!r} version {version}: {error}") from error

    def _upcast(self, data: Any, version: int) -> Any:
        if version not in self.upcasters:
            raise UnknownVersion(
                f"{self.kind} {self.name!r}: no upcaster leads from version {version} to version {self.version}, which "
                f"this code reads. Readable: {', '.join(map(str, self.versions))}. Add an upcaster or deploy newer code"
            )
        for step in range(version, self.version):
            try:
                data = self.upcasters[step](data)
            except BaseException as error:
                if ends_process(error):
                    raise
                raise InvalidMessage(
                    f"{self.kind} {self.name!r} version {step}: its upcaster failed: {type(error).__name__}: {error}"
                ) from error
        return data


_EXACT = msgspec.json.Decoder(float_hook=Number.read)


def _encoded(data: Any) -> bytes:
    try:
        return encode(data)
    except TypeError as error:
        raise ValueError(f"an upcaster must return data that JSON can represent: {error}") from error


def topic(name: str, version: int) -> str:
    return f"{name}.v{version}"


def any_version(name: str) -> str:
    """Return the binding of a queue that receives every version of a type."""
    return f"{name}.*"


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,))
def event(
    name: str,
    *,
    version: int = 1,
    failure: bool = False,
    upcasters: Mapping[int, Upcaster] | None = None,
    was: Iterable[str] = (),
    check_name: bool = True,
) -> Callable[[C], C]:
    """Declare a class as an event: a fact that its owner publishes.

    `name`: `<context>.<entity>.<what happened>`; the context is the service that owns it. A name that reads like a
        request causes a `NamingWarning`, unless `check_name=False`.
    `version`: raise it for a change that older readers cannot read; added optional fields keep it.
    `failure`: the event reports that something failed; a choreography must handle it.
    `upcasters`: for each old version that may still be read, a function that converts its data to the next version.
    `was`: former names; messages with those names are read as this event.

    The class may be a frozen dataclass, pydantic model or msgspec Struct; any other becomes a frozen dataclass.
    Raises `DefinitionError` for an invalid name or class.

    >>> @event("orders.order.placed")
    ... class OrderPlaced:
    ...     order_id: str
    >>> OrderPlaced(order_id="o-1")
    OrderPlaced(order_id='o-1')
    >>> type_of(OrderPlaced).topic
    'orders.order.placed.v1'
    """

    def declare(cls: C) -> C:
        _check_shape(Kind.EVENT, name)
        if check_name and _reads_like_request(name):
            _warn(
                f"event {name!r}: {name.rpartition('.')[2]!r} reads like a request. Name an event as a fact in the "
                "past tense, such as orders.order.placed; declare a request as a command. If the name is right, pass "
                "check_name=False"
            )
        return _declare(Kind.EVENT, name, version, cls, failure=failure, upcasters=upcasters, was=was)

    return declare


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,))
def command(
    name: str,
    *,
    version: int = 1,
    upcasters: Mapping[int, Upcaster] | None = None,
    was: Iterable[str] = (),
    check_name: bool = True,
) -> Callable[[C], C]:
    """Declare a class as a command: a request to one service.

    `name`: `<context>.<what to do>`; the context is the service that receives it. A name that reads like a fact causes
        a `NamingWarning`, unless `check_name=False`. The other parameters are as for `event`.

    >>> @command("payments.refund_payment")
    ... class RefundPayment:
    ...     payment_id: str
    """

    def declare(cls: C) -> C:
        _check_shape(Kind.COMMAND, name)
        if check_name and _reads_like_fact(name):
            _warn(
                f"command {name!r}: {name.rpartition('.')[2]!r} reads like a fact. Name a command as a request in the "
                "imperative, such as payments.refund_payment; declare a fact as an event. If the name is right, pass "
                "check_name=False"
            )
        return _declare(Kind.COMMAND, name, version, cls, failure=False, upcasters=upcasters, was=was)

    return declare


def type_of(message: Any) -> MessageType:
    """Return the declaration of a message or message class. Raises `DefinitionError` if it has none."""
    cls = message if isinstance(message, type) else type(message)
    declared: MessageType | None = cls.__dict__.get(_ATTRIBUTE)  # not inherited: a subclass is another message
    if declared is None:
        raise DefinitionError(
            f"{cls.__qualname__} is neither an event nor a command. Declare it with @event or @command"
        )
    return declared


def _declare(
    kind: Kind,
    name: str,
    version: int,
    cls: C,
    *,
    failure: bool,
    upcasters: Mapping[int, Upcaster] | None,
    was: Iterable[str],
) -> C:
    where, was = f"{kind} {name!r}", tuple(was)
    for old in was:
        _check_shape(kind, old)
    if name in was:
        raise DefinitionError(f"{where}: was= contains the current name. List only former names")
    whole_number(version, f"{where}: version", DefinitionError, why="versions count from 1")
    wanted = set(range(min(upcasters, default=version), version)) if upcasters else set()
    if upcasters and set(upcasters) != wanted:
        raise DefinitionError(
            f"{where}: its upcasters start from versions {sorted(upcasters)}, but to reach version {version} without a "
            f"gap they must start from {sorted(wanted)}"
        )
    cls = cast("C", _frozen(cls, where))
    try:
        check_type(cls)
    except (TypeError, NameError) as error:
        raise DefinitionError(f"{where}: {error}") from error
    setattr(cls, _ATTRIBUTE, MessageType(kind, name, version, cls, failure, dict(upcasters or {}), was))
    return cls


def _frozen(cls: type, where: str) -> type:
    """Return a class with immutable instances, made from the decorated class."""
    config = getattr(cls, "__struct_config__", None)
    model = getattr(cls, "model_config", None)
    if config is not None:
        frozen = config.frozen
    elif isinstance(model, dict):
        frozen = model.get("frozen", False)
    elif "__dataclass_params__" in cls.__dict__:
        frozen = cls.__dict__["__dataclass_params__"].frozen
    else:
        return dataclass(frozen=True, kw_only=True)(cls)
    if not frozen:
        raise DefinitionError(f"{where}: {cls.__qualname__} is mutable. Make the class frozen: messages never change")
    return cls


def _check_shape(kind: Kind, name: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
        raise DefinitionError(
            f"{kind} {name!r}: a name consists of two to five words of a-z, 0-9 and _, joined by dots, with at most "
            f"{_LONGEST_NAME} characters, such as orders.order.placed"
        )


def _reads_like_request(name: str) -> bool:
    """Guess whether the name of an event reads like a request. Names need not be English."""
    words = name.rpartition(".")[2].split("_")
    return words[0] in _IMPERATIVE - _BOTH and not any(map(_is_past, words))


def _reads_like_fact(name: str) -> bool:
    """Guess whether the name of a command reads like a fact."""
    words = name.rpartition(".")[2].split("_")
    if words[0] in _IMPERATIVE | _BOTH or words[0].removeprefix("re") in _IMPERATIVE:
        return False
    return _is_past(words[0]) or _is_past(words[-1])


def _is_past(word: str) -> bool:
    return (word.endswith("ed") and word not in _NO_PAST) or word in _IRREGULAR


def _warn(text: str) -> None:
    warnings.warn(text, NamingWarning, stacklevel=3)


def dump(message: Any) -> bytes:
    """Return the data of a message as JSON that can be read back. Raises `InvalidMessage` if that is impossible."""
    declared = type_of(message)
    try:
        # Python checks no types, and JSON has no NaN: the writer should get the error, rather than every reader.
        return values.dump(message, declared.cls).encode()
    except TypeError as error:
        raise InvalidMessage(
            f"{declared.kind} {declared.name!r}: its data cannot be stored as JSON and read back: {error}"
        ) from error
