"""Outlines in the place of shapes, steps that nodes opened, and the field's names for columns and statuses."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from alembic import context, op

from sagas.stores.columns import MYSQL_OPTIONS, LongText, UtcDateTime, exact

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_SAGA = sa.table("sagas_saga", *(sa.column(name, sa.String()) for name in ("id", "shape", "outline")))
_STEP = sa.table(
    "sagas_step",
    *(sa.column(name, sa.String()) for name in ("saga_id", "node", "status")),
    *(sa.column(name, sa.Integer()) for name in ("seq", "stage", "started_seq")),
)
_HISTORY = sa.table("sagas_history", sa.column("what", sa.String()))
_LETTER = sa.table("sagas_dead_letter", sa.column("resolution", sa.String()))

#: Columns with new names: the table, the old name, the new name, the type, and whether it may be null.
_RENAMED: tuple[tuple[str, str, str, Any, bool], ...] = (
    ("sagas_saga", "stalls", "idle_checks", sa.Integer(), False),
    ("sagas_saga", "ready_at", "stage_ready_at", UtcDateTime(), False),
    ("sagas_saga", "wake_at", "next_check_at", UtcDateTime(), True),
    ("sagas_step", "name", "node", exact(100), False),
    ("sagas_step", "position", "started_seq", sa.Integer(), False),
    ("sagas_history", "by", "actor", sa.String(200), True),
    ("sagas_dead_letter", "by", "actor", sa.String(200), True),
    ("sagas_audit", "by", "actor", sa.String(200), True),
    ("events_dead_letter", "by", "actor", sa.String(200), True),
)

#: Columns of a step that are new: the name, the type, and whether it may be null.
_NEW: tuple[tuple[str, Any, bool], ...] = (
    ("item", sa.Integer(), True),
    ("seq", sa.Integer(), False),
    ("stage", sa.Integer(), False),
    ("kind", sa.String(8), False),
)

_STATUSES = {"UNDOING": "COMPENSATING", "UNDONE": "COMPENSATED"}
_KINDS = {"turned back": "compensation started", "landed late": "late outcome", "undo failed": "compensation failed"}


def upgrade() -> None:
    bind = op.get_bind()
    # The table of sagas is changed in place: where SQLite copies a table, it deletes the steps with the old one.
    op.drop_index("ix_sagas_saga_wake_at", table_name="sagas_saga")
    for table, old, new, type_, nullable in _RENAMED:
        _rename(table, old, new, type_, nullable=nullable)
    _index_due("next_check_at")
    op.add_column("sagas_step", sa.Column("item", sa.Integer, nullable=True))
    op.add_column("sagas_step", sa.Column("seq", sa.Integer, nullable=False, server_default="0"))
    op.add_column("sagas_step", sa.Column("stage", sa.Integer, nullable=False, server_default="0"))
    op.add_column("sagas_step", sa.Column("kind", sa.String(8), nullable=False, server_default="step"))
    shapes = _all(bind, sa.select(_SAGA.c.shape).distinct())
    for shape in shapes:
        of_shape = sa.select(_SAGA.c.id).where(_SAGA.c.shape == shape)
        for number, nodes in enumerate(_stages(shape)):
            wanted = _STEP.c.node.in_([_name(node) for node in nodes]), _STEP.c.saga_id.in_(of_shape)
            bind.execute(sa.update(_STEP).where(*wanted).values(stage=number))
    bind.execute(sa.update(_STEP).where(_STEP.c.started_seq > 0).values(seq=_STEP.c.started_seq))
    _number_the_rest(bind)
    _set_key("seq", sa.String(8), sa.String(12))
    _replace(bind, _STEP.c.status, _STATUSES)
    _replace(bind, _HISTORY.c.what, _KINDS)
    _replace(bind, _LETTER.c.resolution, _KINDS)
    _rename("sagas_saga", "shape", "outline", LongText, nullable=False)
    for shape in shapes:
        bind.execute(sa.update(_SAGA).where(_SAGA.c.outline == shape).values(outline=_outline(list(_stages(shape)))))
    _transient("events_redelivery", "events_consumer_lease", "deliveries")
    op.drop_table("events_reader")
    op.drop_table("events_suspect")


def downgrade() -> None:
    bind = op.get_bind()
    _transient("events_suspect", "events_reader", "begun")
    op.drop_table("events_consumer_lease")
    op.drop_table("events_redelivery")
    outlines = _all(bind, sa.select(_SAGA.c.outline).distinct())
    _rename("sagas_saga", "outline", "shape", sa.Text(), nullable=False)
    for outline in outlines:
        bind.execute(sa.update(_SAGA).where(_SAGA.c.shape == outline).values(shape=_shape(json.loads(outline))))
    for column, values in ((_STEP.c.status, _STATUSES), (_HISTORY.c.what, _KINDS), (_LETTER.c.resolution, _KINDS)):
        _replace(bind, column, {new: old for old, new in values.items()})
    _set_key("node", sa.String(12), sa.String(8))
    op.drop_index("ix_sagas_saga_next_check_at", table_name="sagas_saga")
    for table, old, new, type_, nullable in _RENAMED:
        _rename(table, new, old, type_, nullable=nullable)
    _index_due("wake_at")


def _all(bind: sa.Connection, query: Any) -> list[Any]:
    """Return what is there to convert. A script of SQL cannot read: run on a database with sagas, it says so."""
    if context.is_offline_mode():
        op.execute("-- This converts no sagas: for a database that has some, use `sagas db upgrade` or `migrate`.")
        return []
    return list(bind.execute(query).scalars())


def _rename(table: str, old: str, new: str, type_: Any, *, nullable: bool) -> None:
    mysql = op.get_context().dialect.name in ("mysql", "mariadb")
    op.alter_column(
        table,
        old,
        new_column_name=new,
        type_=type_ if mysql else None,  # the others keep the type that the column has
        existing_type=type_ if mysql else None,
        existing_nullable=nullable,
    )


def _replace(bind: sa.Connection, column: Any, values: Mapping[str, str]) -> None:
    for old, new in values.items():
        bind.execute(sa.update(column.table).where(column == old).values({column.name: new}))


def _index_due(column: str) -> None:
    due = sa.text(f"{column} IS NOT NULL")
    op.create_index(f"ix_sagas_saga_{column}", "sagas_saga", [column], postgresql_where=due, sqlite_where=due)


def _transient(redelivery: str, lease: str, count: str) -> None:
    """Make the two tables whose rows are of no use to processes that start anew."""
    op.create_table(
        redelivery,
        sa.Column("queue", exact(200), nullable=False),
        sa.Column("event_id", exact(36), nullable=False),
        sa.Column(count, sa.Integer, nullable=False),
        sa.Column("seen_at", UtcDateTime, nullable=False),
        sa.PrimaryKeyConstraint("queue", "event_id", name=f"pk_{redelivery}"),
        **MYSQL_OPTIONS,
    )
    op.create_index(f"ix_{redelivery}_seen_at", redelivery, ["seen_at"])
    op.create_table(
        lease,
        sa.Column("queue", exact(200), nullable=False),
        sa.Column("owner", sa.String(100), nullable=False),
        sa.Column("lease_until", UtcDateTime, nullable=False),
        sa.PrimaryKeyConstraint("queue", name=f"pk_{lease}"),
        **MYSQL_OPTIONS,
    )


def _stages(shape: str) -> Iterator[list[dict[str, object]]]:
    """Read a shape, such as `reserve > authorize & quote- > capture! > ship`."""
    past = False
    for stage in shape.split(" > "):
        nodes: list[dict[str, object]] = []
        for text in stage.split(" & "):
            name = text.rstrip("!-")
            if text.endswith("!"):
                past = True
                nodes.append({"pivot": name})
            else:
                undone = not past and not text.endswith("-")
                nodes.append({"step": name} if undone else {"step": name, "compensation": False})
        yield nodes


def _outline(stages: list[list[dict[str, object]]]) -> str:
    return json.dumps([stage if len(stage) > 1 else stage[0] for stage in stages], ensure_ascii=False)


def _name(node: dict[str, object]) -> str:
    return str(node.get("step", node.get("pivot")))


def _shape(outline: list[Any]) -> str:
    past, shape = False, []
    for stage in outline:
        nodes = stage if isinstance(stage, list) else [stage]
        texts = []
        for node in nodes:
            past = past or "pivot" in node
            mark = "!" if "pivot" in node else "" if past or node.get("compensation", True) else "-"
            texts.append(_name(node) + mark)
        shape.append(" & ".join(texts))
    return " > ".join(shape)


def _number_the_rest(bind: sa.Connection) -> None:
    """Number the steps that have a row though they never began, after those of their saga that did."""
    if context.is_offline_mode():
        return
    idle = bind.execute(
        sa.select(_STEP.c.saga_id, _STEP.c.node).where(_STEP.c.seq == 0).order_by(_STEP.c.saga_id, _STEP.c.stage)
    ).all()
    for saga_id, node in idle:
        last = bind.execute(sa.select(sa.func.max(_STEP.c.seq)).where(_STEP.c.saga_id == saga_id)).scalar_one()
        mine = _STEP.c.saga_id == saga_id, _STEP.c.node == node
        bind.execute(sa.update(_STEP).where(*mine).values(seq=last + 1))


def _set_key(column: str, status: sa.String, longer: sa.String) -> None:
    dialect = op.get_context().dialect.name
    if dialect == "sqlite":
        _rebuild(column, longer, _NEW if column == "seq" else ())
        return
    if dialect == "postgresql":
        op.drop_constraint("pk_sagas_step", "sagas_step", type_="primary")
        op.create_primary_key("pk_sagas_step", "sagas_step", ["saga_id", column])
    else:  # in one go: the foreign key needs an index at all times
        op.execute(f"ALTER TABLE sagas_step DROP PRIMARY KEY, ADD PRIMARY KEY (saga_id, {column})")
    op.alter_column("sagas_step", "status", type_=longer, existing_type=status, existing_nullable=False)
    if column == "node":
        for name, _, _ in reversed(_NEW):
            op.drop_column("sagas_step", name)


def _rebuild(key: str, status: sa.String, new: Sequence[tuple[str, Any, bool]]) -> None:
    """Copy the table of steps, as SQLite needs for another key. Nothing is read, so that a script can do it."""
    columns = [
        ("saga_id", sa.String(36), False),
        ("node", exact(100), False),
        *new,
        ("status", status, False),
        ("started_seq", sa.Integer(), False),
        ("failures", sa.Integer(), False),
        ("lost", sa.Integer(), False),
        ("owner", sa.String(100), True),
        *((name, UtcDateTime(), True) for name in ("lease_until", "deadline", "due_at", "sent_at")),
        ("result", LongText, True),
        ("error", LongText, True),
        *((name, UtcDateTime(), True) for name in ("started_at", "finished_at")),
    ]
    names = ", ".join(name for name, _, _ in columns)
    op.rename_table("sagas_step", "sagas_step_before")
    op.create_table(
        "sagas_step",
        *(sa.Column(name, type_, nullable=nullable) for name, type_, nullable in columns),
        sa.PrimaryKeyConstraint("saga_id", key, name="pk_sagas_step"),
        sa.ForeignKeyConstraint(["saga_id"], ["sagas_saga.id"], name="fk_sagas_step_saga_id", ondelete="CASCADE"),
    )
    op.execute(f"INSERT INTO sagas_step ({names}) SELECT {names} FROM sagas_step_before")  # noqa: S608
    op.drop_table("sagas_step_before")
