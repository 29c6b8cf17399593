"""The list of sagas: the request in the URL, and the matching rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from urllib.parse import urlencode

from sagas.checkpoints import FINISHED, SagaStatus, SagaSummary
from sagas.errors import AmbiguousSaga, SagaNotFound
from sagas.operations import Operations
from sagas.stores import EVERYTHING, Filter
from sagas.stores.lists import MANY_IDLE_CHECKS, SETTLED

__all__ = ["AGES", "PAGE", "Asked", "Listing", "age", "find", "look"]

#: Rows per page.
PAGE = 50

#: The choices for how long a saga has not changed.
AGES: Mapping[str, timedelta] = {
    "1m": timedelta(minutes=1),
    "10m": timedelta(minutes=10),
    "1h": timedelta(hours=1),
    "1d": timedelta(days=1),
    "7d": timedelta(days=7),
}


@dataclass(frozen=True, slots=True)
class Asked:
    """The request in the URL's parameters. Unknown values are ignored."""

    view: str = ""  #: "all", or by default the sagas that need a person
    status: str = ""
    saga: str = ""
    step: str = ""
    error: str = ""
    age: str = ""
    correlation: str = ""
    before: str = ""  #: an id: return the page after it

    @classmethod
    def of(cls, value: Callable[[str], str]) -> Asked:
        asked = cls(**{name: value(name) for name in cls.__slots__})
        known = asked.status in SagaStatus.__members__
        return cls(
            **{
                **{name: getattr(asked, name) for name in cls.__slots__},
                "status": asked.status if known else "",
                "age": asked.age if asked.age in AGES else "",
                "view": asked.view if asked.view == "all" else "",
            }
        )

    @property
    def plain(self) -> bool:
        """Whether there are no filters: the list then shows the sagas that need a person."""
        return not any(getattr(self, name) for name in self.__slots__ if name != "before")

    def where(self, now: datetime) -> Filter:
        if self.plain:
            return Filter(attention=True)
        statuses = frozenset({SagaStatus(self.status)}) if self.status else frozenset()
        if self.step and not statuses:
            # Finished sagas are at no step. They are by far the most; without them an index gives the answer.
            statuses = frozenset(SagaStatus) - FINISHED
        return Filter(
            name=self.saga or None,
            statuses=statuses,
            step=self.step or None,
            error=self.error or None,
            correlation_id=self.correlation or None,
            updated_before=now - AGES[self.age] if self.age else None,
        )

    def url(self, **changes: str) -> str:
        """Return the URL query for this request, with changes."""
        values = {name: getattr(self, name) for name in self.__slots__} | {"before": ""} | changes
        return urlencode({name: value for name, value in values.items() if value})


@dataclass(frozen=True, slots=True)
class Listing:
    """A page of the list."""

    asked: Asked
    now: datetime
    rows: Sequence[SagaSummary]  #: newest first, with their steps
    more: bool  #: whether there is another page
    recent: Sequence[SagaSummary] = field(default=())  #: shown if nothing needs a person

    def stands_at(self, record: SagaSummary) -> str:
        """Return the steps that have started and are not settled."""
        names = [step.name for step in record.steps.values() if step.started_seq and step.status not in SETTLED]
        return ", ".join(names)

    @staticmethod
    def trouble(record: SagaSummary) -> str:
        """Return the saga's error, or a note if it does not progress."""
        if record.error is None and record.idle_checks >= MANY_IDLE_CHECKS and record.next_check_at is not None:
            return "not progressing: no worker has started its next step for a long time"
        return record.trouble or ""


def look(operations: Operations, asked: Asked) -> Listing:
    """Query the database for a page."""
    now = operations.store.now()
    rows = operations.queries.select(asked.where(now), limit=PAGE + 1, before=asked.before or None, with_steps=True)
    recent = operations.queries.select(EVERYTHING, limit=10, with_steps=True) if asked.plain and not rows else ()
    return Listing(asked, now, rows[:PAGE], len(rows) > PAGE, recent)


def find(operations: Operations, text: str) -> tuple[str | None, str]:
    """Return the id of the saga that a search finds, or None and the reason."""
    try:
        return operations.queries.resolve(text).id, ""
    except AmbiguousSaga as error:
        return None, str(error)
    except SagaNotFound as error:
        return None, f"{error}. It is not a correlation id either"


def age(then: datetime, now: datetime) -> str:
    """Return how long ago a time was, in one unit.

    >>> from datetime import UTC
    >>> age(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 2, 40, tzinfo=UTC))
    '2 h'
    """
    seconds = max((now - then).total_seconds(), 0.0)
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"
