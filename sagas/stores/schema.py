"""The tables. Migrations in `migrations/` bring a database to this; a test holds the two together."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

from sagas.stores.columns import MYSQL_OPTIONS, CauseText, LongText, Serial, UtcDateTime, exact

__all__ = [
    "metadata",
    # sagas
    "sagas",
    "steps",
    "history",
    "dead_letters",
    "audit",
    "schedules",
    "ticks",
    # events
    "outbox",
    "relay_shards",
    "inbox",
    "redeliveries",
    "bindings",
    "consumer_leases",
    "event_dead_letters",
    "event_schemas",
    "streams",
    "stored_events",
    "positions",
    "snapshots",
    "projections",
    "live_projections",
]

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

sagas = Table(
    "sagas_saga",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("name", exact(100), nullable=False),
    Column("version", Integer, nullable=False),
    Column("key", exact(200), nullable=False),
    Column("outline", LongText, nullable=False),
    Column("correlation_id", exact(200), nullable=False),
    Column("input", LongText, nullable=False),
    Column("caused_by", CauseText),
    Column("traceparent", String(55)),
    # Of child sagas. No foreign keys: a tree may be deleted in parts.
    Column("parent_id", String(36)),
    Column("parent_step", exact(120)),
    Column("parent_item", Integer),
    # 1 when the next item has begun in the place of this one. It is no part of the record.
    Column("place_passed", Integer),
    Column("root_id", String(36)),
    Column("status", String(12), nullable=False),
    Column("direction", String(8), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("dispatches", Integer, nullable=False, server_default="1"),
    Column("idle_checks", Integer, nullable=False),
    Column("error", LongText),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("stage_ready_at", UtcDateTime, nullable=False),
    Column("deadline", UtcDateTime),
    Column("next_check_at", UtcDateTime),
    UniqueConstraint("name", "key"),
    # Recovery asks for what is due: the finished, by far the most, are not in its index where the database can leave
    # them out, and come last in it where it cannot.
    Index(
        None,
        "next_check_at",
        postgresql_where=Column("next_check_at").is_not(None),
        sqlite_where=Column("next_check_at").is_not(None),
    ),
    # The lists: by status and by saga, newest first, which is the order of the ids.
    Index(None, "status", "id"),
    Index(None, "name", "id"),
    Index(None, "correlation_id"),
    Index(
        "ix_sagas_saga_parent_item",
        "parent_id",
        "parent_step",
        "parent_item",
        postgresql_where=Column("parent_item").is_not(None),
        sqlite_where=Column("parent_item").is_not(None),
    ),
    Index(
        "ix_sagas_saga_root_id",
        "root_id",
        postgresql_where=Column("root_id").is_not(None),
        sqlite_where=Column("root_id").is_not(None),
    ),
    **MYSQL_OPTIONS,
)

steps = Table(
    "sagas_step",
    metadata,
    Column("saga_id", String(36), ForeignKey(sagas.c.id, ondelete="CASCADE"), primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("node", exact(100), nullable=False),
    Column("item", Integer),
    Column("stage", Integer, nullable=False),
    Column("kind", String(8), nullable=False),
    Column("status", String(12), nullable=False),
    Column("started_seq", Integer, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("lost", Integer, nullable=False),
    Column("owner", String(100)),
    Column("lease_until", UtcDateTime),
    Column("deadline", UtcDateTime),
    Column("due_at", UtcDateTime),
    Column("opened_at", UtcDateTime),
    Column("sent_at", UtcDateTime),
    Column("input", LongText),
    Column("result", LongText),
    Column("error", LongText),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Column("child_id", String(36)),
    Column("heartbeat_at", UtcDateTime),
    Column("heartbeat_details", LongText),
    Column("progress_done", BigInteger),
    Column("progress_total", BigInteger),
    **MYSQL_OPTIONS,
)

#: The items of a step: how many there are, and the next one to begin; while it compensates, to be told.
fan_outs = Table(
    "sagas_fan_out",
    metadata,
    Column("saga_id", String(36), ForeignKey(sagas.c.id, ondelete="CASCADE"), primary_key=True),
    Column("step", exact(120), primary_key=True),
    Column("items", Integer, nullable=False),
    Column("next_item", Integer, nullable=False),
    **MYSQL_OPTIONS,
)

#: How far the messages of each Celery task have come: every one that was sent before `sent_at` has arrived, or is lost.
arrivals = Table(
    "sagas_arrival",
    metadata,
    Column("task", exact(255), primary_key=True),
    Column("sent_at", UtcDateTime, nullable=False),
    **MYSQL_OPTIONS,
)

history = Table(
    "sagas_history",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    Column("saga_id", String(36), ForeignKey(sagas.c.id, ondelete="CASCADE"), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("what", String(50), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("step", exact(100)),
    Column("detail", LongText, nullable=False),
    Column("actor", String(200)),
    Index(None, "saga_id", "id"),
    **MYSQL_OPTIONS,
)

dead_letters = Table(
    "sagas_dead_letter",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    Column("saga_id", String(36), ForeignKey(sagas.c.id, ondelete="CASCADE"), nullable=False),
    Column("step", exact(100), nullable=False),
    Column("direction", String(8), nullable=False),
    Column("error", LongText, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("resolved_at", UtcDateTime),
    Column("resolution", String(50)),
    Column("reason", LongText),
    Column("actor", String(200)),
    Index(None, "saga_id", "step"),
    Index(None, "resolved_at"),
    **MYSQL_OPTIONS,
)

#: What was done to the sagas as a whole, and is in no history: that goes with its saga.
audit = Table(
    "sagas_audit",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    Column("at", UtcDateTime, nullable=False),
    Column("actor", String(200)),
    Column("what", String(50), nullable=False),
    Column("detail", LongText, nullable=False),
    Column("reason", LongText, nullable=False),
    Column("count", BigInteger, nullable=False),  # of the sagas that it was done to
    **MYSQL_OPTIONS,
)

schedules = Table(
    "sagas_schedule",
    metadata,
    Column("name", exact(100), primary_key=True),
    Column("saga", exact(100), nullable=False),
    Column("cron", exact(200), nullable=False),
    Column("timezone", exact(100), nullable=False),
    Column("next_at", UtcDateTime, nullable=False),
    Column("waiting", UtcDateTime),
    Column("paused_at", UtcDateTime),
    Column("paused_by", String(200)),
    Column("paused_why", LongText),
    Column("seen_at", UtcDateTime, nullable=False),
    Column("revision", Integer, nullable=False),
    **MYSQL_OPTIONS,
)

#: What became of each time of a schedule. The key is what keeps two workers from starting one tick twice.
ticks = Table(
    "sagas_tick",
    metadata,
    Column("schedule", exact(100), primary_key=True),
    Column("at", UtcDateTime, primary_key=True),
    Column("outcome", String(8), nullable=False),
    Column("why", LongText, nullable=False),
    Column("saga_id", String(36)),  # no foreign key: the tick outlives its saga
    Column("decided_at", UtcDateTime, nullable=False),
    Column("actor", String(200)),
    **MYSQL_OPTIONS,
)

# -- events: on their way -----------------------------------------------------------------------------------------

outbox = Table(
    "events_outbox",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    Column("shard", Integer, nullable=False),  # of its key: one relay at a time sends a shard, so that order is kept
    Column("event_id", exact(36), nullable=False),
    Column("type", exact(100), nullable=False),
    Column("version", Integer, nullable=False),
    Column("source", exact(100), nullable=False),
    Column("key", exact(200)),
    Column("correlation_id", exact(200), nullable=False),
    Column("causation_id", String(200)),
    Column("queue", exact(200)),  # to one queue: a command, or a replay
    Column("body", LongText, nullable=False),  # the envelope
    Column("created_at", UtcDateTime, nullable=False),
    Column("sent_at", UtcDateTime),
    Column("heard", Boolean),  # false where it was sent, and no queue was bound to its type
    Index(None, "event_id"),
    Index(None, "correlation_id"),
    Index(
        "ix_events_outbox_heard",
        "heard",
        "id",
        postgresql_where=Column("heard").is_not(None),
        sqlite_where=Column("heard").is_not(None),
    ),
    Index(
        "ix_events_outbox_unsent",
        "shard",
        "id",
        postgresql_where=Column("sent_at").is_(None),
        sqlite_where=Column("sent_at").is_(None),
    ),
    # For what is asked by time; and for the unsent of a shard on MySQL, whose indexes cannot leave the sent ones out.
    Index(None, "sent_at", "shard", "id"),
    **MYSQL_OPTIONS,
)

#: One row a shard, locked by the relay that sends it.
relay_shards = Table("events_relay_shard", metadata, Column("shard", Integer, primary_key=True, autoincrement=False))

inbox = Table(
    "events_inbox",
    metadata,
    Column("queue", exact(200), primary_key=True),
    Column("source", exact(100), primary_key=True),  # whose ids need not differ from those of others
    Column("event_id", exact(36), primary_key=True),
    Column("type", exact(100), nullable=False),
    Column("version", Integer, nullable=False),
    Column("correlation_id", exact(200), nullable=False),
    Column("causation_id", String(200)),
    Column("handled_at", UtcDateTime, nullable=False),
    Column("digest", String(64)),  # of its content; empty where it was handled before there was this column
    Index(None, "correlation_id"),
    Index(None, "handled_at"),
    **MYSQL_OPTIONS,
)

#: Messages that were given out more than once, and how often each was begun: one that kills whoever handles it is found
#: out by that. A broker's own count also goes up for the innocent that were fetched together with it.
redeliveries = Table(
    "events_redelivery",
    metadata,
    Column("queue", exact(200), primary_key=True),
    Column("event_id", exact(36), primary_key=True),
    Column("deliveries", Integer, nullable=False),
    Column("seen_at", UtcDateTime, nullable=False),
    Index(None, "seen_at"),
    **MYSQL_OPTIONS,
)

#: What was bound to which queue, as the services of this database declared it. A broker need not be able to tell.
bindings = Table(
    "events_binding",
    metadata,
    Column("queue", exact(200), primary_key=True),
    Column("topic", exact(150), primary_key=True),  # empty for the queue itself
    Column("exchange", exact(200), nullable=False),
    Column("declared_at", UtcDateTime, nullable=False),
    Column("removed_at", UtcDateTime),  # what still comes of it is passed over
    **MYSQL_OPTIONS,
)

#: Who may read a queue whose messages are handled in order: one process at a time.
consumer_leases = Table(
    "events_consumer_lease",
    metadata,
    Column("queue", exact(200), primary_key=True),
    Column("owner", String(100), nullable=False),
    Column("lease_until", UtcDateTime, nullable=False),
    **MYSQL_OPTIONS,
)

event_dead_letters = Table(
    "events_dead_letter",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    Column("queue", exact(200), nullable=False),
    Column("event_id", exact(36), nullable=False),  # empty where the body is no envelope
    Column("type", exact(100), nullable=False),
    Column("version", Integer, nullable=False),
    Column("key", exact(200)),
    Column("correlation_id", exact(200), nullable=False),
    Column("headers", LongText, nullable=False),  # JSON
    Column("body", LongText, nullable=False),
    Column("error", LongText, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("behind", BigInteger),  # the dead letter of its key that it is parked behind
    Column("created_at", UtcDateTime, nullable=False),
    Column("resolved_at", UtcDateTime),
    Column("resolution", String(50)),
    Column("reason", LongText),
    Column("actor", String(200)),
    Index(None, "queue", "key"),
    Index(None, "event_id"),
    Index(None, "correlation_id"),
    Index(None, "resolved_at"),
    **MYSQL_OPTIONS,
)

# -- events: what they look like ----------------------------------------------------------------------------------

event_schemas = Table(
    "events_schema",
    metadata,
    Column("subject", exact(150), primary_key=True),  # type and version: orders.order.placed.v1
    Column("revision", Integer, primary_key=True, autoincrement=False),  # from 1
    Column("format", String(20), nullable=False),
    Column("definition", LongText, nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("owner", exact(100), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    **MYSQL_OPTIONS,
)

# -- events: as the truth -----------------------------------------------------------------------------------------

streams = Table(
    "events_stream",
    metadata,
    Column("name", exact(200), primary_key=True),
    Column("version", Integer, nullable=False),  # of its last event
    **MYSQL_OPTIONS,
)

stored_events = Table(
    "events_event",
    metadata,
    Column("position", Serial, primary_key=True, autoincrement=True),
    Column("stream", exact(200), nullable=False),
    Column("stream_version", Integer, nullable=False),  # from 1
    Column("event_id", String(36), nullable=False),
    Column("type", exact(100), nullable=False),
    Column("version", Integer, nullable=False),
    Column("data", LongText, nullable=False),
    Column("metadata", LongText, nullable=False),
    Column("recorded_at", UtcDateTime, nullable=False),
    UniqueConstraint("stream", "stream_version"),
    UniqueConstraint("event_id"),
    **MYSQL_OPTIONS,
)

#: The last position, in one row that each writer locks. MySQL's alone: the others need no such bottleneck.
positions = Table(
    "events_position",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("position", BigInteger, nullable=False),
    **MYSQL_OPTIONS,
)

snapshots = Table(
    "events_snapshot",
    metadata,
    Column("stream", exact(200), primary_key=True),
    # Of the state. In the key, so that old and new code can run side by side, each with snapshots of its own.
    Column("schema_version", Integer, primary_key=True, autoincrement=False),
    Column("stream_version", Integer, nullable=False),
    Column("form", String(64)),  # of the type of the state
    Column("state", LongText, nullable=False),
    Column("recorded_at", UtcDateTime, nullable=False),
    **MYSQL_OPTIONS,
)

projections = Table(
    "events_projection",
    metadata,
    Column("name", exact(100), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("position", BigInteger, nullable=False),  # of the last event that it has seen
    Column("failed_position", BigInteger),  # of the event that it stopped at
    Column("error", LongText),  # what that event did to it
    Column("updated_at", UtcDateTime, nullable=False),
    **MYSQL_OPTIONS,
)

#: Which version of a projection is read. A row of its own, so that a promotion is one update.
live_projections = Table(
    "events_projection_live",
    metadata,
    Column("name", exact(100), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("since", UtcDateTime, nullable=False),
    **MYSQL_OPTIONS,
)
