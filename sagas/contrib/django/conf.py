"""The settings `CELERY_SAGAS_*`, read from Django's settings."""

from __future__ import annotations

import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

from django.conf import settings

from sagas.errors import ConfigurationError

__all__ = ["PREFIX", "Settings", "alias", "problems", "read"]

PREFIX = "CELERY_SAGAS_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings and their defaults. In Django's settings, each is in capitals after `CELERY_SAGAS_`."""

    app: str = ""  #: the Celery app, as for `celery -A`: "shop.celery"; by default the current one
    database: str = "default"  #: the alias in `DATABASES` of the database that stores sagas
    events: str = ""  #: the dotted path of an `Events` object: "shop.events.events"
    lease: float = 30.0  #: for this and the following see `Sagas`
    redispatch_after: float = 30.0
    recovery_interval: float = 1.0
    max_payload: int = 1_048_576
    run_next_inline: bool = True
    redact: Collection[str] = ()


_TYPES = typing.get_type_hints(Settings)
_NAMES = [field.name for field in fields(Settings)]


def read() -> Settings:
    """Return the settings. Raises `ConfigurationError` for the first invalid one."""
    for problem in problems():
        raise ConfigurationError(problem)
    return Settings(**_given())


def alias() -> str:
    """Return the alias of the sagas' database, even if other settings are invalid."""
    given: str = getattr(settings, f"{PREFIX}DATABASE", "default")
    return given


def problems() -> list[str]:
    """Return the problems with the settings, each as a sentence."""
    found = []
    for name, value in _given().items():
        if name not in _TYPES:
            known = ", ".join(PREFIX + each.upper() for each in _NAMES)
            found.append(f"there is no setting {PREFIX}{name.upper()}. The settings are: {known}")
            continue
        wanted, fits = _KINDS[_TYPES[name]]
        if not fits(value):
            found.append(f"{PREFIX}{name.upper()} is {value!r}, but must be {wanted}")
    if not found and alias() not in settings.DATABASES:
        aliases = ", ".join(map(repr, settings.DATABASES))
        found.append(f"{PREFIX}DATABASE is {alias()!r}, which is not in DATABASES. The aliases are: {aliases}")
    if not settings.DATABASES.get(alias(), {}).get("AUTOCOMMIT", True):
        found.append(
            f"DATABASES[{alias()!r}] has AUTOCOMMIT = False, so nothing that a worker writes would be committed. "
            f"Remove it, or store the sagas in another database with {PREFIX}DATABASE"
        )
    return found


def _given() -> dict[str, Any]:
    names = sorted(name for name in dir(settings) if name.startswith(PREFIX))
    return {name.removeprefix(PREFIX).lower(): getattr(settings, name) for name in names}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


#: For each type: a description and a check.
_KINDS: Mapping[Any, tuple[str, Callable[[Any], bool]]] = {
    str: ("a string", lambda value: isinstance(value, str)),
    bool: ("True or False", lambda value: isinstance(value, bool)),
    float: ("a positive number of seconds", _is_number),
    int: ("a positive whole number of bytes", lambda value: _is_number(value) and isinstance(value, int)),
    Collection[str]: (
        "a list of field names",
        lambda value: (
            not isinstance(value, str)
            and isinstance(value, Collection)
            and all(isinstance(each, str) for each in value)
        ),
    ),
}
