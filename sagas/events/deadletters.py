"""Dead letters: messages that could not be handled, stored whole until a person decides what to do with them."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, Select, delete, func, insert, select, update

from sagas.errors import NotAllowed
from sagas.events import redeliveries
from sagas.events.brokers import Delivery
from sagas.events.envelope import Envelope
from sagas.events.incoming import read
from sagas.events.letters import REPLAY_OF, EventDeadLetter, EventResolution, replay_of, stored
from sagas.events.messages import Kind, event
from sagas.events.outbox import write
from sagas.stores import schema
from sagas.stores.engines import reading, translated
from sagas.stores.transactions import begun
from sagas.text import clean, is_clean

__all__ = ["CommandFailed", "DeadLetters"]

#: Our header with the key of an unreadable message, if it does not fit in its column.
_KEY = "sagas-key"

#: The most characters that are stored of an error, and that fit in the columns.
_LONGEST_ERROR, _LONGEST_TYPE, _LONGEST_KEY, _LONGEST_ACTOR = 20_000, 100, 200, 200

#: How many rows are deleted at once.
_BATCH = 1000

_TABLE = schema.event_dead_letters.c


#: The most characters of an error in `CommandFailed`.
_LONGEST_NOTICE = 1000


@event("sagas.command.failed", failure=True)
class CommandFailed:
    """A command became a dead letter. Its sender learns of it by handling this event; `correlation_id` names the flow.

    It is published in the transaction that files the dead letter, with the command as its cause and with the same key.
    A replay that fails again does not publish it again.
    """

    command_id: str  #: the id of its envelope
    command: str  #: its type
    sender: str
    receiver: str
    error: str
    attempts: int  #: 0 if it was refused, or if nobody received it


class DeadLetters:
    """The dead letters of one database.

    `tracked`: the queues that are consumed against this database. A dead letter of these queues is resolved when its
    message has been handled; others are resolved when it is sent. `renamed`: old queue names, with their new names.
    """

    def __init__(self, engine: Engine, tracked: Collection[str], renamed: Mapping[str, str] | None = None) -> None:
        self._engine = engine
        self._tracked = frozenset(tracked)
        self._renamed = dict(renamed or {})

    def follow(self) -> None:
        """Move the open dead letters of renamed queues to the new names."""
        for old, new in self._renamed.items():
            theirs = _TABLE.queue == old, _TABLE.resolved_at.is_(None)
            with translated(self._engine), self._engine.begin() as connection:
                connection.execute(update(schema.event_dead_letters).where(*theirs).values(queue=new))

    # -- filing -------------------------------------------------------------------------------------------------

    def file(
        self,
        queue: str,
        envelope: Envelope,
        *,
        error: str,
        attempts: int,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> int:
        """Store a message that could not be handled. Returns the id of its dead letter.

        `body`, `headers`: as received; by default those that this library would write.
        A message that already has an open dead letter keeps it: it was redelivered, or replayed and failed again.
        """
        with translated(self._engine), begun(self._engine) as connection:
            return self.file_in(connection, queue, envelope, body=body, headers=headers, error=error, attempts=attempts)

    def file_in(
        self,
        connection: Connection,
        queue: str,
        envelope: Envelope,
        *,
        error: str,
        attempts: int,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        behind: int | None = None,
    ) -> int:
        """Do the same as `file`, in the caller's transaction. `behind`: the dead letter that it is parked behind."""
        redeliveries.clear_in(connection, queue, envelope.event_id)
        open_ = select(schema.event_dead_letters).where(
            _TABLE.event_id == envelope.event_id, _TABLE.queue == queue, _TABLE.resolved_at.is_(None)
        )
        # A message from another source or with other content is another message.
        rows = connection.execute(open_.with_for_update()).mappings().all()
        known = next((letter for letter in map(EventDeadLetter.of, rows) if letter.is_of(envelope)), None)
        if known is not None:
            again = update(schema.event_dead_letters).where(_TABLE.id == known.id)
            connection.execute(
                again.values(
                    error=clean(error, _LONGEST_ERROR),
                    attempts=known.attempts + attempts,
                    resolution=None,
                    reason=None,
                    actor=None,
                )
            )
            return known.id
        if envelope.kind is Kind.COMMAND:
            write(connection, _failure(envelope, error, attempts))
        if REPLAY_OF in envelope.metadata:
            about = {name: value for name, value in envelope.metadata.items() if name != REPLAY_OF}
            body, headers = msgspec.structs.replace(envelope, metadata=about).encode(), None
        return self._insert(
            connection,
            queue=queue,
            **_columns(envelope),
            headers=envelope.headers() if headers is None else headers,
            body=envelope.encode() if body is None else body,
            error=error,
            attempts=attempts,
            behind=behind,
        )

    def file_unread(self, delivery: Delivery, error: str) -> int:
        """Store a message that is not an envelope, byte for byte."""
        with translated(self._engine), begun(self._engine) as connection:
            return self.file_unread_in(
                connection,
                delivery.queue,
                topic=delivery.topic,
                key=delivery.key,
                headers=delivery.headers,
                body=delivery.body,
                error=error,
            )

    def file_unread_in(
        self,
        connection: Connection,
        queue: str,
        *,
        topic: str,
        key: str | None,
        headers: Mapping[str, str],
        body: bytes,
        error: str,
    ) -> int:
        """Do the same as `file_unread`, in the caller's transaction."""
        if key is not None and (len(key) > _LONGEST_KEY or not is_clean(key)):
            headers = {**headers, _KEY: key}
            key = None  # truncated, it might equal another key
        return self._insert(
            connection,
            queue=queue,
            event_id="",
            type=clean(topic, _LONGEST_TYPE),
            version=0,
            key=key,
            correlation_id="",
            headers=headers,
            body=body,
            error=error,
            attempts=0,
            behind=None,
        )

    @staticmethod
    def _insert(connection: Connection, *, headers: Mapping[str, str], body: bytes, error: str, **values: Any) -> int:
        row = {
            **values,
            **stored(body, headers),
            "error": clean(error, _LONGEST_ERROR),
            "created_at": datetime.now(UTC),
        }
        inserted = connection.execute(insert(schema.event_dead_letters).values(row))
        (letter,) = inserted.inserted_primary_key or (0,)
        return int(letter)

    # -- looking ------------------------------------------------------------------------------------------------

    def select(
        self,
        *,
        queue: str | None = None,
        type: str | None = None,  # noqa: A002
        key: str | None = None,
        correlation_id: str | None = None,
        resolved: bool = False,
        limit: int = 100,
    ) -> Sequence[EventDeadLetter]:
        """Return dead letters, oldest first: the open ones or, with `resolved`, all."""
        query = select(schema.event_dead_letters).order_by(_TABLE.id).limit(limit)
        asked = {"queue": queue, "type": type, "key": key, "correlation_id": correlation_id}
        for name, value in asked.items():
            if value is not None and not is_clean(value):
                return []  # no database can store such text
            if value is not None:
                query = query.where(_TABLE[name] == value)
        return self._rows(query if resolved else query.where(_TABLE.resolved_at.is_(None)))

    def get(self, ids: Iterable[int]) -> Sequence[EventDeadLetter]:
        """Return dead letters by their ids, oldest first. Raises `NotAllowed` for an id that does not exist."""
        wanted = set(ids)
        found = self._rows(select(schema.event_dead_letters).where(_TABLE.id.in_(wanted)).order_by(_TABLE.id))
        if missing := sorted(wanted - {letter.id for letter in found}):
            raise NotAllowed(f"there is no dead letter {missing[0]}")
        return found

    def count(self) -> dict[str, int]:
        """Return the number of open dead letters per queue."""
        query = select(_TABLE.queue, func.count()).where(_TABLE.resolved_at.is_(None)).group_by(_TABLE.queue)
        with reading(self._engine) as connection:
            return {queue: count for queue, count in connection.execute(query)}  # noqa: C416 - rows are not pairs

    def _rows(self, query: Select[Any]) -> list[EventDeadLetter]:
        with reading(self._engine) as connection:
            return [EventDeadLetter.of(row) for row in connection.execute(query).mappings()]

    # -- resolving ----------------------------------------------------------------------------------------------

    def replay(
        self,
        letters: Iterable[EventDeadLetter],
        *,
        reason: str,
        actor: str | None = None,
        rate: float | None = None,
        dry_run: bool = True,
    ) -> list[EventDeadLetter]:
        """Send messages again, each to the one queue where it failed. Returns those that are, or would be, sent.

        `rate`: the most messages per second. `dry_run`: only return what would be sent.
        In an ordered queue, the first message of a key is sent; those parked behind it follow as each is handled.
        Messages that this code cannot read as envelopes are skipped: other code may read them. Raises `NotAllowed` if
        nobody is known to read a message's queue; nothing is sent then.
        """
        letters = [replace(letter, queue=self._renamed.get(letter.queue, letter.queue)) for letter in letters]
        for letter in letters:
            self._check_read(letter)
        if not dry_run:
            self.follow()
        sent: list[EventDeadLetter] = []
        for letter in letters:
            if letter.envelope() is None or letter.resolved_at is not None or self._parked(letter):
                continue
            if not dry_run:
                if rate is not None and sent:
                    time.sleep(1 / rate)
                with translated(self._engine), self._engine.begin() as connection:
                    if not self._lock(connection, letter.id):
                        continue
                    self._send(connection, letter, reason=reason, actor=actor)
            sent.append(letter)
        return sent

    def _check_read(self, letter: EventDeadLetter) -> None:
        envelope = letter.envelope()
        if letter.queue in self._tracked or not letter.queue or envelope is None or letter.resolved_at is not None:
            return
        service, _, purpose = letter.queue.partition(".")
        if envelope.kind is Kind.COMMAND and not any(queue.startswith(f"{service}.") for queue in self._tracked):
            return  # the receiver is elsewhere; if it has no queue, the command becomes a dead letter again
        raise NotAllowed(
            f"dead letter {letter.id}: this process does not read its queue {letter.queue!r}. It reads: "
            f"{', '.join(sorted(self._tracked)) or 'none'}. If the handler or service was renamed, declare "
            f"was=[{purpose!r}] at @service.on, or Service(..., was=[{service!r}]). If other code reads the queue, "
            "replay it there. Otherwise discard it"
        )

    def discard(
        self, letters: Iterable[EventDeadLetter], *, reason: str, actor: str | None = None
    ) -> list[EventDeadLetter]:
        """Resolve dead letters without handling them. Returns those that were open.

        In an ordered queue, the next message parked with the same key is sent.
        """
        discarded: list[EventDeadLetter] = []
        for letter in letters:
            with translated(self._engine), self._engine.begin() as connection:
                first = self._first(connection, letter.queue, letter.key)
                if not self._lock(connection, letter.id):
                    continue
                self._resolve(connection, letter.id, resolution=EventResolution.DISCARDED, reason=reason, actor=actor)
                if first == letter.id and letter.key is not None:
                    self.release(connection, letter.queue, letter.key, actor=actor)
            discarded.append(letter)
        return discarded

    def handled(self, connection: Connection, queue: str, envelope: Envelope) -> None:
        """Resolve the dead letter of a replayed message, in the transaction that handled it."""
        open_ = _TABLE.resolved_at.is_(None)
        mine = (_TABLE.id == replay_of(envelope), _TABLE.queue == queue, _TABLE.event_id == envelope.event_id, open_)
        done = update(schema.event_dead_letters).where(*mine)
        resolved = connection.execute(
            done.values(resolved_at=datetime.now(UTC), resolution=EventResolution.REPLAYED)
        ).rowcount
        if resolved and envelope.key is not None:
            self.release(connection, queue, envelope.key, actor=None)

    def release(self, connection: Connection, queue: str, key: str, *, actor: str | None) -> None:
        """Send the next parked message of a key, if there is one."""
        query = _of_key(queue, key).where(_TABLE.behind.is_not(None), _TABLE.resolution.is_(None)).limit(1)
        row = connection.execute(query.with_for_update()).mappings().first()
        if row is not None:
            letter = EventDeadLetter.of(row)
            self._send(connection, letter, reason=f"after dead letter {letter.behind}", actor=actor)

    def first(self, connection: Connection, queue: str, key: str) -> EventDeadLetter | None:
        """Return the oldest open dead letter of a key, and lock it against resolution in this transaction."""
        row = connection.execute(_of_key(queue, key).limit(1).with_for_update()).mappings().first()
        return None if row is None else EventDeadLetter.of(row)

    def any_open(self, connection: Connection, queue: str, keys: Collection[str]) -> bool:
        """Return whether any of these keys has an open dead letter."""
        where = (_TABLE.queue == queue, _TABLE.key.in_(keys), _TABLE.resolved_at.is_(None))
        return connection.execute(select(_TABLE.id).where(*where).limit(1)).first() is not None

    def discarded(self, connection: Connection, queue: str, envelope: Envelope) -> bool:
        """Return whether a person discarded a message that is still on its way."""
        mine = _TABLE.id == replay_of(envelope), _TABLE.queue == queue, _TABLE.event_id == envelope.event_id
        query = select(_TABLE.resolution).where(*mine)
        return connection.execute(query).scalar() == EventResolution.DISCARDED

    def purge(self, older: timedelta) -> int:
        """Delete those resolved longer ago than `older`. Returns how many. Each batch is a transaction."""
        table, before, total = schema.event_dead_letters, datetime.now(UTC) - older, 0
        found = select(_TABLE.id).where(_TABLE.resolved_at < before).order_by(_TABLE.resolved_at).limit(_BATCH)
        while True:
            with translated(self._engine), self._engine.begin() as connection:
                ids = connection.execute(found).scalars().all()
                if ids:
                    connection.execute(delete(table).where(_TABLE.id.in_(ids)))
            total += len(ids)
            if len(ids) < _BATCH:
                return total

    @staticmethod
    def _first(connection: Connection, queue: str, key: str | None) -> int | None:
        if key is None:
            return None
        return connection.execute(_of_key(queue, key).with_only_columns(_TABLE.id).limit(1)).scalar()

    def _parked(self, letter: EventDeadLetter) -> bool:
        if letter.behind is None:
            return False
        with reading(self._engine) as connection:
            return self._first(connection, letter.queue, letter.key) != letter.id

    @staticmethod
    def _lock(connection: Connection, letter: int) -> bool:
        query = select(_TABLE.id).where(_TABLE.id == letter, _TABLE.resolved_at.is_(None))
        return connection.execute(query.with_for_update()).first() is not None

    def _send(self, connection: Connection, letter: EventDeadLetter, *, reason: str, actor: str | None) -> None:
        envelope = read(letter.body, letter.headers)
        if not letter.event_id:  # the code that filed it could not read it as an envelope
            named = update(schema.event_dead_letters).where(_TABLE.id == letter.id)
            connection.execute(named.values(_columns(envelope)))
        if letter.queue in self._tracked:
            about = {**envelope.metadata, REPLAY_OF: letter.id}
            envelope = msgspec.structs.replace(envelope, metadata=about)
            mark = update(schema.event_dead_letters).where(_TABLE.id == letter.id)
            how = EventResolution.REPLAYING
            connection.execute(mark.values(resolution=how, reason=clean(reason), actor=_actor(actor)))
        else:
            self._resolve(connection, letter.id, resolution=EventResolution.REPLAYED, reason=reason, actor=actor)
        write(connection, envelope, letter.queue or None)

    @staticmethod
    def _resolve(
        connection: Connection, letter: int, *, resolution: EventResolution, reason: str, actor: str | None
    ) -> None:
        mark = update(schema.event_dead_letters).where(_TABLE.id == letter)
        now = datetime.now(UTC)
        values = {"resolved_at": now, "resolution": resolution, "reason": clean(reason), "actor": _actor(actor)}
        connection.execute(mark.values(values))


def _columns(envelope: Envelope) -> dict[str, Any]:
    return {
        "event_id": envelope.event_id,
        "type": envelope.event_type,
        "version": envelope.version,
        "key": envelope.key,
        "correlation_id": envelope.correlation_id,
    }


def _actor(actor: str | None) -> str | None:
    return None if actor is None else clean(actor, _LONGEST_ACTOR)


def _failure(command: Envelope, error: str, attempts: int) -> Envelope:
    failed = CommandFailed(
        command_id=command.event_id,
        command=command.event_type,
        sender=command.source,
        receiver=command.event_type.partition(".")[0],
        error=clean(error, _LONGEST_NOTICE),
        attempts=attempts,
    )
    return Envelope.wrap(failed, source="sagas", key=command.key, cause=command)


def _of_key(queue: str, key: str) -> Select[Any]:
    where = (_TABLE.queue == queue, _TABLE.key == key, _TABLE.resolved_at.is_(None))
    return select(schema.event_dead_letters).where(*where).order_by(_TABLE.id)
