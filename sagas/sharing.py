"""Messages that sagas share: of `start_many`, of recovery, and of threads that dispatch at the same moment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

from celery import Celery, Task
from kombu.messaging import Producer

from sagas.batches import Batches, alike_groups, as_message, grouped
from sagas.checkpoints import Direction, node_of
from sagas.endings import ends_process
from sagas.gathering import Gathering
from sagas.inline_steps import is_timed
from sagas.plan import Plan
from sagas.task_names import BATCH, task_name

__all__ = ["SharedMessages"]

#: Seconds for which a thread waits for another one that sends, before it sends by a connection of its own.
_PATIENCE = 1.0


class SharedMessages:
    """Sends plans that differ by nothing but their saga's id in one message, where they may share one.

    `send`: sends one plan in a message of its own, by the producer that it is given or by one that it finds.
    """

    def __init__(self, app: Celery, batches: Batches, send: Callable[[Plan, Producer | None], None]) -> None:
        self._app = app
        self._batches = batches
        self._send = send
        self._meetings: dict[str, Gathering[Plan, bool]] = {}  # by the task that a plan begins with

    def first_task(self, plan: Plan) -> Task:
        return self._app.tasks[task_name(plan.saga, node_of(plan.stages[0].steps[0]), plan.direction)]

    def may_share(self, plan: Plan) -> bool:
        """Tell whether what is left of a saga may travel in one message with others like it: see `sagas.batches`."""
        task = self.first_task(plan)
        by_itself = plan.stages[0].joined or plan.direction is Direction.BACKWARD or self._app.conf.task_always_eager
        return not (self._batches.size == 1 or by_itself or task.rate_limit or is_timed(task))

    def send_one(self, alike: Sequence[Plan], producer: Producer | None = None, *, side_by_side: bool = True) -> None:
        """Send plans that are alike, and may share a message, in one.

        `side_by_side`: whether they may run in threads beside the thread of their task.
        Raises kombu's `OperationalError` when the broker does not answer.
        """
        plan = alike[0]
        task = self.first_task(plan)
        queue = plan.saga.steps[node_of(plan.stages[0].steps[0])].queue or getattr(task, "queue", None)
        # It goes where the step's own message would: there is a worker that serves that.
        options = self._app.amqp.router.route({"queue": queue} if queue else {}, task.name)
        message = as_message(alike, side_by_side=side_by_side)
        self._app.tasks[BATCH].apply_async(kwargs=message, producer=producer, **options)

    def send_many(self, plans: Iterable[Plan], size: int) -> None:
        """Send plans by one connection. `size`: sagas in one message at most."""
        self._send_groups(grouped(plans, size), side_by_side=True)

    def send_with_others(self, plan: Plan) -> None:
        """Send a plan in one message with those that gather while another thread sends, or alone.

        Raises what sending it alone raises.
        """
        if not (self.may_share(plan) and self._is_sent_with_others(plan)):
            self._send(plan, None)

    def _is_sent_with_others(self, plan: Plan) -> bool:
        name = self.first_task(plan).name
        if (meeting := self._meetings.get(name)) is None:
            meeting = self._meetings.setdefault(name, Gathering(self._send_gathered, most=self._batches.size))
        return bool(meeting.ask_within(_PATIENCE, plan))

    def _send_gathered(self, plans: Sequence[Plan]) -> Sequence[bool]:
        if len(plans) == 1:
            self._send(plans[0], None)
            return [True]
        try:
            # Who started them did not ask for a batch: their functions run where those of others do.
            self._send_groups(alike_groups(plans), side_by_side=False)
        except BaseException as error:
            if ends_process(error):
                raise
            return [False] * len(plans)  # each is sent by itself, with Celery's retries, and hears what is wrong
        return [True] * len(plans)

    def _send_groups(self, groups: Iterable[Sequence[Plan]], *, side_by_side: bool) -> None:
        with self._app.producer_or_acquire() as producer, _pipelined(producer):
            for alike in groups:
                if len(alike) > 1 and self.may_share(alike[0]):
                    self.send_one(alike, producer, side_by_side=side_by_side)
                else:
                    for plan in alike:
                        self._send(plan, producer)


def _pipelined(producer: Producer) -> AbstractContextManager[object]:
    """Have a producer send in batches where its transport can: Redis's, since kombu 5.7."""
    batch: AbstractContextManager[object] = producer.batch() if hasattr(producer, "batch") else nullcontext()
    return batch
