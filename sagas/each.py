"""`Each`: a node that runs an action, or a saga, for every item of a list."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sagas.durations import finite_number, whole_number
from sagas.errors import DefinitionError
from sagas.nodes import UNSAID, Node, Step

if TYPE_CHECKING:
    from sagas.definition import Saga
    from sagas.retries import Retry

__all__ = ["Each"]


class Each(Node):
    """Runs an action, or a saga, for every item of a list. Each item has its own attempts, history and key.

    `action`: a function, or a `Saga`. A function receives the item as its parameter `item`; its other parameters are
        filled by name, as those of a `Step`. `compensation` undoes one item; it also receives `item`, and `result`.
    `over`: the name of an input field or of an earlier node, or a function that returns the items. They are stored
        once, when the node is reached.
    `max_concurrency`: how many items are in progress at the same time.
    `allow_failures`: how many items may fail (an int), or which fraction of them (a float, 0.05 = 5 %). A failed item
        is compensated and the others stand. With more failures, the node has failed.
    `key`: a function that receives `item` and returns its stable name; left out, that is its position.
    `input`: for a `Saga`, a function that receives `item` and returns the saga's input; left out, the input is the
        item.
    `retry`, `compensation_retry`, `timeout`, `start_timeout`, `heartbeat_timeout`, `queue`, `max_deliveries`: of each
        item, as of a `Step`.
    `when`: run the node only if this function returns true; otherwise the result is None.

    The result for later steps is the list of the items' results, in order, with None for an item that failed. If the
    saga compensates, the items that have begun are compensated, last first; the others are not touched.

    >>> Each("reserve", lambda item: item, compensation=None, over="lines")
    Each('reserve')
    """

    kind = "each"

    def __init__(
        self,
        name: str,
        action: Callable[..., Any] | Saga[Any],
        *,
        over: str | Callable[..., Any],
        compensation: Callable[..., Any] | None = UNSAID,
        max_concurrency: int = 20,
        allow_failures: float = 0,
        key: Callable[..., str] | None = None,
        input: Callable[..., Any] | None = None,  # noqa: A002
        when: Callable[..., Any] | None = None,
        timeout: float | timedelta = 300.0,
        start_timeout: float | timedelta | None = None,
        retry: Retry | None = None,
        compensation_retry: Retry | None = None,
        heartbeat_timeout: float | timedelta | None = None,
        queue: str | None = None,
        max_deliveries: int = 5,
    ) -> None:
        where = f"each {name!r}"
        saga: Any = action if hasattr(action, "stages") else None
        super().__init__(name, over if callable(over) else _given, compensation=UNSAID, when=when, queue=queue)
        if saga is not None and compensation is not UNSAID:
            raise DefinitionError(f"{where}: a saga is compensated by its own steps, so it takes no compensation")
        if saga is None and input is not None:
            raise DefinitionError(f"{where}: input= makes the input of a saga; an action receives the item itself")
        self.saga = saga
        self.input = input
        self.key = key
        self.over = over
        self.max_concurrency = whole_number(max_concurrency, f"{where}: max_concurrency", DefinitionError)
        self.is_fraction = isinstance(allow_failures, float)
        self.allow_failures = finite_number(allow_failures, f"{where}: allow_failures", DefinitionError)
        if self.allow_failures < 0 or (self.is_fraction and self.allow_failures > 1):
            raise DefinitionError(
                f"{where}: allow_failures={allow_failures!r} must be a number of items, or 0.0 to 1.0"
            )
        #: What runs for one item; None where that is a saga of the author's.
        self.item: Step | None = None
        if saga is None:
            self.item = Step(
                name,
                action,  # type: ignore[arg-type]  # it is no saga
                compensation=compensation,
                timeout=timeout,
                start_timeout=start_timeout,
                retry=retry,
                compensation_retry=compensation_retry,
                heartbeat_timeout=heartbeat_timeout,
                queue=queue,
                max_deliveries=max_deliveries,
            )

    def allowed(self, items: int) -> int:
        """Return how many of so many items may fail."""
        return int(self.allow_failures * items) if self.is_fraction else int(self.allow_failures)


def _given(items: Any) -> Any:
    """Return the items as they are: a field of the input, or the result of an earlier node."""
    return items
