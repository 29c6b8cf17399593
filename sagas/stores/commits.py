"""What is to be done when a caller's own transaction commits: just before, or once it has."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.orm import Session, SessionTransaction

from sagas.causes import CURRENT, Cause, within
from sagas.errors import ConfigurationError
from sagas.stores.transactions import check

__all__ = ["Commits"]

Then = Callable[[], object]

#: How many rounds of what is asked for before the commit may ask for more. Each sees what the one before it did.
_MOST_ROUNDS = 100


class Commits:
    """What is to be called around the commit of the outermost transaction of a session, or of a connection.

    In the order in which it was asked for, and not at all when the transaction, or the savepoint that it was asked in,
    is rolled back. What fails before the commit prevents it; the session can then only be rolled back. Of what is
    called after it all is called, and the first failure is raised by the commit that has succeeded.
    """

    def __init__(self, target: Session | Connection) -> None:
        self._target = target
        # Each with the savepoint that it was asked for in; on a connection, with the names of all that are around it.
        self._before: list[tuple[Any, Then]] = []
        self._after: list[tuple[Any, Then]] = []
        self._failure: BaseException | None = None
        self._late: BaseException | None = None  # what failed after the commit
        self._over = False  # it has committed, and what is to be called then is being called
        if isinstance(target, Session):
            event.listen(target, "before_commit", self._session_commits)
            event.listen(target, "after_commit", self._session_committed)
            event.listen(target, "after_transaction_end", self._transaction_ended)
        else:
            event.listen(target, "commit", self._connection_commits)
            _call_after_commit(target, self._committed)
            event.listen(target, "rollback", self._rolled_back)
            event.listen(target, "rollback_savepoint", self._rolled_back_to)
            event.listen(target, "release_savepoint", self._released)

    @classmethod
    def of(cls, target: Session | Connection) -> Commits:
        # Listeners cannot be taken away while they are called, so each target gets its own, once.
        made: Commits | None = getattr(target, "_sagas_commits", None)
        if made is None:
            made = cls(target)
            setattr(target, "_sagas_commits", made)  # noqa: B010 - it is not theirs to declare
        return made

    @staticmethod
    def prepare(target: Session) -> None:
        """Call now what was asked for before the commit of a session, as part of its transaction."""
        made: Commits | None = getattr(target, "_sagas_commits", None)
        if made is not None:
            made._prepare_once()  # noqa: SLF001

    def before(self, then: Then) -> None:
        """Call `then` before the commit, in the transaction. It may ask for more.

        Raises `ConfigurationError` while what follows the commit is being called: then it is too late.
        """
        if self._over:
            raise ConfigurationError("this session's transaction has committed: nothing can be done before that now")
        self._begin()
        self._before.append((self._savepoint(), then))

    def after(self, then: Then) -> None:
        """Call `then` once the transaction has committed, with the cause that it has now."""
        self._begin()
        self._after.append((self._savepoint(), partial(_call, then, CURRENT.get())))

    def _begin(self) -> None:
        """Begin the transaction that is meant, unless it has begun: else its rollback would not be heard of."""
        if not self._over and not self._target.in_transaction():
            self._target.begin()

    def _savepoint(self) -> Any:
        nested: Any = self._target.get_nested_transaction()
        if isinstance(self._target, Session):
            return nested
        names = []  # the events of a connection tell of savepoints by their names
        while nested is not None:
            names.append(nested._savepoint)  # noqa: SLF001
            nested = nested._previous_nested  # noqa: SLF001
        return names

    def _committed(self) -> None:
        failures: list[Exception] = []
        self._over = True
        try:
            while self._after:
                try:
                    self._after.pop(0)[1]()
                except Exception as failure:  # noqa: BLE001 - the others have their turn first
                    failures.append(failure)
        finally:
            self._over = False
        if failures:
            raise failures[0]

    def _rolled_back(self, _: Connection | None = None) -> None:
        self._before, self._after, self._failure = [], [], None

    # -- on a connection ------------------------------------------------------------------------------------------

    def _connection_commits(self, connection: Connection) -> None:
        if not (self._before or self._after or self._failure):
            return
        self._prepare_once()
        check(connection, "a transaction that events or sagas wait for")

    def _released(self, _: Connection, name: str, __: object) -> None:
        """From now on it is the enclosing savepoints that decide."""
        for savepoints, _then in (*self._before, *self._after):
            if name in savepoints:
                savepoints.remove(name)

    def _rolled_back_to(self, _: Connection, name: str, __: object) -> None:
        self._before = [asked for asked in self._before if name not in asked[0]]
        self._after = [asked for asked in self._after if name not in asked[0]]

    # -- on a session ---------------------------------------------------------------------------------------------

    def _session_commits(self, session: Session) -> None:
        if session.in_nested_transaction():  # the events also fire when a savepoint is released
            return
        self._prepare_once()
        if self._after:
            session.flush()
            begun: Any = session.get_transaction()
            for connection, *_ in begun._connections.values():  # noqa: SLF001 - to ask for one would begin it
                check(connection, "a transaction that events or sagas wait for")

    def _prepare_once(self) -> None:
        if self._failure is not None:
            raise self._failure  # a second commit must not leave out what failed in the first
        try:
            self._prepare()
        except BaseException as failure:
            self._failure = failure
            raise

    def _prepare(self) -> None:
        for _ in range(_MOST_ROUNDS):
            if not self._before:
                return
            waiting, self._before = self._before, []
            for _savepoint, then in waiting:
                then()
        raise RecursionError(f"after {_MOST_ROUNDS} rounds there is still more to do before the commit")

    def _session_committed(self, session: Session) -> None:
        released = session.get_nested_transaction()
        if released is None:
            try:
                self._committed()
            except BaseException as failure:  # noqa: BLE001 - in here it would leave the session unusable
                self._late = failure
        else:  # from now on it is the enclosing savepoint that decides
            self._before = [(released.parent if at is released else at, then) for at, then in self._before]
            self._after = [(released.parent if at is released else at, then) for at, then in self._after]

    def _transaction_ended(self, _: Session, ended: SessionTransaction) -> None:
        # Not the events about rollbacks: a failed flush or a closed session takes things along without those.
        if ended.parent is None:
            self._rolled_back()
            late, self._late = self._late, None
            if late is not None:
                raise late
        elif ended.nested:  # what it leaves to the enclosing one when it is released, it has left
            self._before = [asked for asked in self._before if asked[0] is not ended]
            self._after = [asked for asked in self._after if asked[0] is not ended]


def _call(then: Then, cause: Cause | None) -> None:
    """Call what was asked for by code with this cause. That of the commit may be another, or none."""
    with within(cause):
        then()


def _call_after_commit(connection: Connection, then: Then) -> None:
    """Call `then` whenever a connection has committed. SQLAlchemy's own event comes before that: nobody sees it yet."""

    def followed(commit: Callable[..., None]) -> Callable[..., None]:
        def commit_and_call(*arguments: Any) -> None:
            commit(*arguments)
            then()

        return commit_and_call

    for name in ("_commit_impl", "_commit_twophase_impl"):
        setattr(connection, name, followed(getattr(connection, name)))
