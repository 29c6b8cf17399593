"""The library's tables as Django models, for reading and filtering. Only the engine writes them.

They are managed, so that Django's test runner empties them too; the migrations create the tables from the library's own
schema. Older Django versions cannot express a key of several columns: the model then has the first column as primary
key. Use such a model with `filter` rather than `get(pk=...)`; `whole_key` names the fields that identify a row. The
rows of `events_relay_shard` and `events_position` are created once and must stay, so these tables have no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from django.db import models

from sagas.contrib.django.conf import alias
from sagas.contrib.django.fields import PayloadField
from sagas.errors import NotAllowed

__all__ = [
    "Arrival", "AuditEntry", "Binding", "DeadLetter", "Event", "EventDeadLetter", "EventSchema", "HistoryEntry",
    "ConsumerLease", "InboxMessage", "LiveProjection", "OutboxMessage", "Projection", "Redelivery", "Saga", "Schedule",
    "Snapshot", "Step", "Stream", "Tick",
]  # fmt: skip


def _refuse(*_: Any, **__: Any) -> Any:
    raise NotAllowed(
        "only the engine writes the tables of sagas: start sagas, and let operators use the admin or manage.py sagas"
    )


class _ReadOnlyQuerySet(models.QuerySet):
    create = bulk_create = update = bulk_update = delete = get_or_create = update_or_create = _refuse


class _Manager(models.Manager.from_queryset(_ReadOnlyQuerySet)):  # type: ignore[misc]
    """Uses the database that stores sagas, unless another one is given."""

    def get_queryset(self) -> Any:
        queryset = super().get_queryset()
        return queryset if self._db else queryset.using(alias())


class _ReadOnly(models.Model):
    objects = _Manager()

    class Meta:
        abstract = True
        default_permissions = ("view",)

    save = delete = _refuse


class _SeveralColumns(_ReadOnly):
    """A table whose key has several columns. Rows are equal if all of these are equal, not only the first."""

    whole_key: ClassVar[tuple[str, ...]]

    class Meta(_ReadOnly.Meta):
        abstract = True

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, models.Model) or other._meta.concrete_model is not self._meta.concrete_model:
            return NotImplemented
        return isinstance(other, _SeveralColumns) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(tuple(self._identity().items()))

    def _identity(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.whole_key}

    def refresh_from_db(self, using: str | None = None, fields: Sequence[str] | None = None, **_: Any) -> None:
        """Read the row again by its whole key: the primary key alone would match other rows."""
        rows = type(self).objects.using(using or self._state.db).filter(**self._identity())
        names = [field.attname for field in self._meta.concrete_fields]
        wanted = names if fields is None else [name for name in names if name in fields]
        values = rows.values(*wanted).get()
        for name in wanted:
            setattr(self, name, values[name])
        if fields is None:
            self._state.fields_cache.clear()


def _name(length: int, **options: Any) -> Any:
    return models.CharField(max_length=length, **options)


class Saga(_ReadOnly):
    id = _name(36, primary_key=True)
    name = _name(100)
    version = models.IntegerField()
    key = _name(200)
    outline = models.TextField()
    correlation_id = _name(200)
    input = PayloadField()
    status = _name(12)
    direction = _name(8)
    epoch = models.IntegerField()
    revision = models.IntegerField()
    dispatches = models.IntegerField()
    idle_checks = models.IntegerField()
    error = models.TextField(null=True)
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()
    stage_ready_at = models.DateTimeField()
    deadline = models.DateTimeField(null=True)
    next_check_at = models.DateTimeField(null=True)
    traceparent = _name(55, null=True)
    caused_by = models.TextField(null=True)
    parent_id = _name(36, null=True)
    parent_step = _name(120, null=True)
    parent_item = models.IntegerField(null=True)
    place_passed = models.IntegerField(null=True)
    root_id = _name(36, null=True)

    class Meta(_ReadOnly.Meta):
        db_table = "sagas_saga"
        ordering = ("-id",)
        permissions = (("operate_saga", "Can retry, skip, cancel, compensate and resume sagas"),)

    def __str__(self) -> str:
        return f"{self.name} {self.key}"


class Step(_SeveralColumns):
    whole_key = ("saga_id", "seq")
    saga = models.OneToOneField(Saga, models.DO_NOTHING, primary_key=True, related_name="+")
    seq = models.IntegerField()
    node = _name(100)
    item = models.IntegerField(null=True)
    stage = models.IntegerField()
    kind = _name(8)
    status = _name(12)
    started_seq = models.IntegerField()
    failures = models.IntegerField()
    lost = models.IntegerField()
    owner = _name(100, null=True)
    lease_until = models.DateTimeField(null=True)
    deadline = models.DateTimeField(null=True)
    due_at = models.DateTimeField(null=True)
    opened_at = models.DateTimeField(null=True)
    sent_at = models.DateTimeField(null=True)
    input = PayloadField(null=True)
    result = PayloadField(null=True)
    error = models.TextField(null=True)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    child_id = _name(36, null=True)
    heartbeat_at = models.DateTimeField(null=True)
    heartbeat_details = PayloadField(null=True)
    progress_done = models.BigIntegerField(null=True)
    progress_total = models.BigIntegerField(null=True)

    class Meta(_ReadOnly.Meta):
        db_table = "sagas_step"


class FanOut(_SeveralColumns):
    whole_key = ("saga_id", "step")
    saga = models.OneToOneField(Saga, models.DO_NOTHING, primary_key=True, related_name="+")
    step = _name(120)
    items = models.IntegerField()
    next_item = models.IntegerField()

    class Meta(_ReadOnly.Meta):
        db_table = "sagas_fan_out"


class Arrival(_ReadOnly):
    task = _name(255, primary_key=True)
    sent_at = models.DateTimeField()

    class Meta(_ReadOnly.Meta):
        db_table = "sagas_arrival"


class AuditEntry(_ReadOnly):
    id = models.BigAutoField(primary_key=True)
    at = models.DateTimeField()
    actor = _name(200, null=True)
    what = _name(50)
    detail = models.TextField()
    reason = models.TextField()
    count = models.BigIntegerField()

    class Meta(_ReadOnly.Meta):
        db_table = "sagas_audit"


class HistoryEntry(_ReadOnly):
    id = models.BigAutoField(primary_key=True)
    saga = models.ForeignKey(Saga, models.DO_NOTHING, related_name="history")
    at = models.DateTimeField()
    what = _name(50)
    epoch = models.IntegerField()
    step = _name(100, null=True)
    detail = models.TextField()
    actor = _name(200, null=True)

    class Meta(_ReadOnly.Meta):
        db_table = "sagas_history"
        verbose_name_plural = "history"


class DeadLetter(_ReadOnly):
    id = models.BigAutoField(primary_key=True)
    saga = models.ForeignKey(Saga, models.DO_NOTHING, related_name="dead_letters")
    step = _name(100)
    direction = _name(8)
    error = models.TextField()
    created_at = models.DateTimeField()
    resolved_at = models.DateTimeField(null=True)
    resolution = _name(50, null=True)
    reason = models.TextField(null=True)
    actor = _name(200, null=True)

    class Meta(_ReadOnly.Meta):
        db_table = "sagas_dead_letter"


class Schedule(_ReadOnly):
    name = _name(100, primary_key=True)
    saga = _name(100)
    cron = _name(200)
    timezone = _name(100)
    next_at = models.DateTimeField()
    waiting = models.DateTimeField(null=True)
    paused_at = models.DateTimeField(null=True)
    paused_by = _name(200, null=True)
    paused_why = models.TextField(null=True)
    seen_at = models.DateTimeField()
    revision = models.IntegerField()

    class Meta(_ReadOnly.Meta):
        db_table = "sagas_schedule"
        ordering = ("name",)
        permissions = (("operate_schedule", "Can pause, resume and run schedules"),)

    def __str__(self) -> str:
        return str(self.name)


class Tick(_SeveralColumns):
    whole_key = ("schedule", "at")
    schedule = _name(100, primary_key=True)
    at = models.DateTimeField()
    outcome = _name(8)
    why = models.TextField()
    saga_id = _name(36, null=True)
    decided_at = models.DateTimeField()
    actor = _name(200, null=True)

    class Meta(_ReadOnly.Meta):
        db_table = "sagas_tick"


# -- events in transit --------------------------------------------------------------------------------------------


class OutboxMessage(_ReadOnly):
    id = models.BigAutoField(primary_key=True)
    shard = models.IntegerField()
    event_id = _name(36)
    type = _name(100)
    version = models.IntegerField()
    source = _name(100)
    key = _name(200, null=True)
    correlation_id = _name(200)
    causation_id = _name(200, null=True)
    queue = _name(200, null=True)
    body = PayloadField()
    created_at = models.DateTimeField()
    sent_at = models.DateTimeField(null=True)
    heard = models.BooleanField(null=True)

    class Meta(_ReadOnly.Meta):
        db_table = "events_outbox"


class InboxMessage(_SeveralColumns):
    whole_key = ("queue", "source", "event_id")
    queue = _name(200, primary_key=True)
    event_id = _name(36)
    type = _name(100)
    version = models.IntegerField()
    source = _name(100)
    correlation_id = _name(200)
    causation_id = _name(200, null=True)
    handled_at = models.DateTimeField()
    digest = _name(64, null=True)

    class Meta(_ReadOnly.Meta):
        db_table = "events_inbox"


class Binding(_SeveralColumns):
    whole_key = ("queue", "topic")
    queue = _name(200, primary_key=True)
    topic = _name(150)
    exchange = _name(200)
    declared_at = models.DateTimeField()
    removed_at = models.DateTimeField(null=True)

    class Meta(_ReadOnly.Meta):
        db_table = "events_binding"


class Redelivery(_SeveralColumns):
    whole_key = ("queue", "event_id")
    queue = _name(200, primary_key=True)
    event_id = _name(36)
    deliveries = models.IntegerField()
    seen_at = models.DateTimeField()

    class Meta(_ReadOnly.Meta):
        db_table = "events_redelivery"


class ConsumerLease(_ReadOnly):
    queue = _name(200, primary_key=True)
    owner = _name(100)
    lease_until = models.DateTimeField()

    class Meta(_ReadOnly.Meta):
        db_table = "events_consumer_lease"


class EventDeadLetter(_ReadOnly):
    id = models.BigAutoField(primary_key=True)
    queue = _name(200)
    event_id = _name(36)
    type = _name(100)
    version = models.IntegerField()
    key = _name(200, null=True)
    correlation_id = _name(200)
    headers = PayloadField()
    body = PayloadField()
    error = models.TextField()
    attempts = models.IntegerField()
    behind = models.BigIntegerField(null=True)
    created_at = models.DateTimeField()
    resolved_at = models.DateTimeField(null=True)
    resolution = _name(50, null=True)
    reason = models.TextField(null=True)
    actor = _name(200, null=True)

    class Meta(_ReadOnly.Meta):
        db_table = "events_dead_letter"


# -- events: schemas and the event store --------------------------------------------------------------------------


class EventSchema(_SeveralColumns):
    whole_key = ("subject", "revision")
    subject = _name(150, primary_key=True)
    revision = models.IntegerField()
    format = _name(20)
    definition = models.TextField()
    fingerprint = _name(64)
    owner = _name(100)
    created_at = models.DateTimeField()

    class Meta(_ReadOnly.Meta):
        db_table = "events_schema"


class Stream(_ReadOnly):
    name = _name(200, primary_key=True)
    version = models.IntegerField()

    class Meta(_ReadOnly.Meta):
        db_table = "events_stream"


class Event(_ReadOnly):
    position = models.BigAutoField(primary_key=True)
    stream = _name(200)
    stream_version = models.IntegerField()
    event_id = _name(36)
    type = _name(100)
    version = models.IntegerField()
    data = PayloadField()
    metadata = PayloadField()
    recorded_at = models.DateTimeField()

    class Meta(_ReadOnly.Meta):
        db_table = "events_event"


class Snapshot(_SeveralColumns):
    whole_key = ("stream", "schema_version")
    stream = _name(200, primary_key=True)
    schema_version = models.IntegerField()
    stream_version = models.IntegerField()
    form = _name(64, null=True)
    state = PayloadField()
    recorded_at = models.DateTimeField()

    class Meta(_ReadOnly.Meta):
        db_table = "events_snapshot"


class Projection(_SeveralColumns):
    whole_key = ("name", "version")
    name = _name(100, primary_key=True)
    version = models.IntegerField()
    position = models.BigIntegerField()
    failed_position = models.BigIntegerField(null=True)
    error = models.TextField(null=True)
    updated_at = models.DateTimeField()

    class Meta(_ReadOnly.Meta):
        db_table = "events_projection"


class LiveProjection(_ReadOnly):
    name = _name(100, primary_key=True)
    version = models.IntegerField()
    since = models.DateTimeField()

    class Meta(_ReadOnly.Meta):
        db_table = "events_projection_live"
