"""The three statements that a step costs, on PostgreSQL: load a saga, save it, store a new one.

They are most of what the engine asks of a database, so they go to psycopg directly, as prepared statements, and those
who load or save at the same moment share a round trip and a commit. This path only ever succeeds. Where it does not,
for whatever reason, its caller asks SQLAlchemy in the ordinary way, and hears from it what is wrong.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import msgspec
from sqlalchemy import ARRAY, String, Table, bindparam, func, select
from sqlalchemy.types import TypeDecorator

from sagas.errors import StoreRefused, StoreUnavailable
from sagas.gathering import Gathering
from sagas.stores import places, schema, statements
from sagas.stores.connections import Connections
from sagas.stores.drivers import Kept
from sagas.stores.rows import Row

__all__ = ["FastPath"]

T = TypeVar("T")

#: Values by the names of columns or parameters.
Values = Mapping[str, Any]

#: A saga's row, and those of its steps.
Loaded = tuple[Row, Sequence[Row]]

#: Sagas of one round trip at most: so many are sent before the first of them is answered.
_MOST = 100

_ENCODER = msgspec.json.Encoder(enc_hook=str)  # a subclass of str is a str

_IDS = bindparam("ids", type_=ARRAY(String))
_SAGAS = select(schema.sagas).where(schema.sagas.c.id == func.any(_IDS))
_STEPS = select(schema.steps).where(schema.steps.c.saga_id == func.any(_IDS)).order_by(schema.steps.c.seq)
_SAGA = select(schema.sagas).where(schema.sagas.c.id == bindparam("id"))
_STEPS_OF_ONE = select(schema.steps).where(schema.steps.c.saga_id == bindparam("id")).order_by(schema.steps.c.seq)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A statement as PostgreSQL takes it, with `$1` for a parameter, and the names of its parameters in their order.

    Of a statement with names for its parameters, psycopg would look for them in its text each time that it is executed:
    it remembers where they are for no more than 50 of them.

    >>> statement = Prepared.of("SELECT %(a)s::TEXT, %(b)s, %(a)s, '100 %%'")
    >>> statement
    Prepared(text="SELECT $1::TEXT, $2, $1, '100 %'", names=('a', 'b'))
    >>> statement.values({"a": 1, "b": 2})
    [1, 2]
    """

    text: str
    names: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Prepared:
        """Return a statement that SQLAlchemy has written out for psycopg."""
        numbers: dict[str, int] = {}

        def numbered(found: re.Match[str]) -> str:
            if (name := found["name"]) is None:
                return "%"
            return f"${numbers.setdefault(name, len(numbers) + 1)}"

        return cls(_PARAMETER.sub(numbered, text), tuple(numbers))

    def values(self, named: Values) -> list[Any]:
        """Return the parameters in their order."""
        return [named[name] for name in self.names]


_PARAMETER = re.compile(r"%(?:\((?P<name>[^)]+)\)s|%)")


class _Save(NamedTuple):
    """What `FastPath.save` was given."""

    values: Values
    steps: Sequence[Values]
    outbox: Sequence[Values]

    @property
    def saga_id(self) -> str:
        return str(self.values["_id"])


class FastPath:
    """Prepared statements, for many callers at once. Safe to use from any thread.

    `timeout`: seconds after which a database that does not answer counts as gone. Every method raises
    `StoreUnavailable` then.
    """

    def __init__(self, connections: Connections, timeout: float) -> None:
        self._connections = connections
        self._engine = connections.engine
        self._timeout = timeout
        driver: Any = connections.engine.dialect.loaded_dbapi
        self._cursor: Callable[[Any], Any] = driver.RawCursor
        self._kept = Kept.of(self._engine)
        self._saves: dict[int, Prepared] = {}  # by how many steps they write
        self._inserting = Gathering(self._insert_all, most=_MOST)
        self._loading = Gathering(self._load_all, most=_MOST)
        self._saving = Gathering(self._save_all, most=_MOST)

    @classmethod
    def of(cls, connections: Connections, timeout: float) -> FastPath | None:
        """Return it for psycopg's connections that the store opens by itself. A framework's have rules of their own."""
        has_psycopg = connections.engine.dialect.driver == "psycopg"
        return cls(connections, timeout) if has_psycopg and connections.are_shared else None

    def load(self, saga_id: str) -> Loaded | None:
        """Return the rows of a saga and its steps. None where that did not work, or where there is none."""
        return self._loading.ask(saga_id)

    def save(self, values: Values, steps: Sequence[Values], outbox: Sequence[Values] = ()) -> bool:
        """Compare, set and write steps. False where that did not work: somebody was quicker, or has the row locked.

        `values`: the parameters of `COMPARE_AND_SET`. `steps`: the rows of those that it writes. `outbox`: the rows of
        the messages that are published with that.
        """
        return self._saving.ask(_Save(values, steps, outbox))

    def insert(self, row: Values) -> bool:
        """Store a new saga. False where that did not work, as when there is one of its name and key."""
        return self._inserting.ask(row)

    def pass_place(self, about: Values) -> Row | None:
        """Begin the next item in the place of one that has ended; return its row. None where that did not work.

        `about`: the parameters of `places.pass_at_once`.
        """

        def passed(driver: Any, is_kept: bool) -> list[Row]:
            return self._fetched(self._execute(driver, self._pass_place, about, prepare=is_kept), schema.sagas)

        # Not shared with others: it waits for the lock of a parent.
        found: list[Row] = self._attempt(passed, [])
        return found[0] if found else None

    # -- many at once -------------------------------------------------------------------------------------------

    def _insert_all(self, rows: Sequence[Values]) -> Sequence[bool]:
        bound, dialect = _DECORATED[schema.sagas.name], self._engine.dialect
        rows = [
            {**row, **{name: kind.process_bind_param(row[name], dialect) for name, kind in bound.items()}}
            for row in rows
        ]

        def insert(driver: Any, _is_kept: bool) -> set[str]:
            stored = self._execute(driver, self._insert, rows[0]).rowcount
            return {rows[0]["id"]} if stored else set()

        def insert_them(driver: Any, _is_kept: bool) -> set[str]:
            given = {"sagas": _ENCODER.encode(rows).decode()}
            return {saga_id for (saga_id,) in self._execute(driver, self._insert_together, given)}

        # One that cannot be stored, or whose key is being stored, takes the others with it; each asks by itself then.
        stored: set[str] = self._attempt(insert if len(rows) == 1 else insert_them, set())
        return [row["id"] in stored for row in rows]

    def _load_all(self, saga_ids: Sequence[str]) -> Sequence[Loaded | None]:
        # The sagas before their steps: if somebody saves in between, the revision is the older one and the next
        # compare-and-set is lost, never won by mistake.
        def load(driver: Any, is_kept: bool) -> dict[str, Loaded]:
            sagas = self._rows(driver, schema.sagas, list(set(saga_ids)), is_kept)
            begun = [row["id"] for row in sagas if row["revision"] > 1]
            steps: dict[str, list[Row]] = {row["id"]: [] for row in sagas}
            for row in self._rows(driver, schema.steps, begun, is_kept) if begun else ():
                steps[row["saga_id"]].append(row)
            return {row["id"]: (row, steps[row["id"]]) for row in sagas}

        found: dict[str, Loaded] = self._attempt(load, {})
        return [found.get(saga_id) for saga_id in saga_ids]

    def _rows(self, driver: Any, table: Table, ids: Sequence[str], is_kept: bool) -> list[Row]:
        one, many = self._loads[table.name]
        if len(ids) == 1:
            cursor = self._execute(driver, one, {"id": ids[0]})
        else:
            cursor = self._execute(driver, many, {"ids": ids}, prepare=is_kept)
        return self._fetched(cursor, table)

    def _fetched(self, cursor: Any, table: Table) -> list[Row]:
        names = table.c.keys()  # psycopg takes as long to tell them as to fetch the rows
        rows: list[dict[str, Any]] = [dict(zip(names, row, strict=True)) for row in cursor]
        for name, kind in _DECORATED[table.name].items():
            for row in rows:
                row[name] = kind.process_result_value(row[name], self._engine.dialect)
        return list(rows)

    def _save_all(self, saves: Sequence[_Save]) -> Sequence[bool]:
        if len(saves) == 1 and not saves[0].outbox:
            return [self._save_one(saves[0])]
        # Of two saves of one saga, one shall win: the second asks by itself.
        first = {save.saga_id: number for number, save in reversed(list(enumerate(saves)))}
        chosen = [saves[number] for number in first.values()]

        def save_them(driver: Any, is_kept: bool) -> set[str]:
            rows = {
                "sagas": [save.values for save in chosen],
                "steps": [step for save in chosen for step in save.steps],
                "outbox": [
                    {**row, "_saga": save.saga_id, "_number": number}
                    for save in chosen
                    for number, row in enumerate(save.outbox)
                ],
            }
            given = {name: _ENCODER.encode(each).decode() for name, each in rows.items()}
            return {saga_id for (saga_id,) in self._execute(driver, self._save_together, given, prepare=is_kept)}

        # One that cannot be stored takes the others with it; each of them asks by itself then.
        won: set[str] = self._attempt(save_them, set())
        return [first[save.saga_id] == number and save.saga_id in won for number, save in enumerate(saves)]

    def _save_one(self, save: _Save) -> bool:
        statement, named = self._save(len(save.steps)), statements.parameters_of(save.values, save.steps)
        return self._attempt(lambda driver, _is_kept: self._execute(driver, statement, named).rowcount > 0, False)

    def _execute(self, driver: Any, statement: Prepared, values: Values, *, prepare: bool = True) -> Any:
        """Execute a statement.

        `prepare`: False for one that could have a plan which scans a table. PostgreSQL keeps the plan of a prepared
        statement until it has analysed the table: made for an empty table, it would go on scanning while that grows.
        """
        given = statement.values(values)
        return self._cursor(driver).execute(statement.text, given, prepare=None if prepare else False)

    # -- one at a time ------------------------------------------------------------------------------------------

    def _attempt(self, ask: Callable[[Any, bool], T], otherwise: T) -> T:
        began = time.monotonic()
        try:
            with self._connections.translated(), self._kept.lend() as (driver, is_kept):
                return ask(driver, is_kept)
        except StoreUnavailable:
            if time.monotonic() - began < self._timeout:
                return otherwise
            raise  # it would take as long once more to hear the same
        except (StoreRefused, UnicodeError):
            return otherwise

    # -- statements, written out when they are first used -------------------------------------------------------

    @cached_property
    def _loads(self) -> Mapping[str, tuple[Prepared, Prepared]]:
        """By table: of one saga, and of many."""
        return {
            schema.sagas.name: (self._prepared(_SAGA), self._prepared(_SAGAS)),
            schema.steps.name: (self._prepared(_STEPS_OF_ONE), self._prepared(_STEPS)),
        }

    @cached_property
    def _insert(self) -> Prepared:
        return self._prepared(statements.insert_if_free())

    @cached_property
    def _insert_together(self) -> Prepared:
        return self._prepared(statements.insert_together())

    @cached_property
    def _save_together(self) -> Prepared:
        return self._prepared(statements.save_together())

    @cached_property
    def _pass_place(self) -> Prepared:
        return self._prepared(places.pass_at_once())

    def _save(self, steps: int) -> Prepared:
        if steps not in self._saves:
            self._saves[steps] = self._prepared(statements.save_at_once(steps, if_free=True))
        return self._saves[steps]

    def _prepared(self, statement: Any, **options: Any) -> Prepared:
        return Prepared.of(str(statement.compile(dialect=self._engine.dialect, **options)))


#: By table, the types of those columns whose values are converted on their way.
_DECORATED: Mapping[str, Mapping[str, TypeDecorator[Any]]] = {
    table.name: {column.name: column.type for column in table.c if isinstance(column.type, TypeDecorator)}
    for table in (schema.sagas, schema.steps)
}
