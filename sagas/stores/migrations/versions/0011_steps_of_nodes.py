"""The outline of a definition, in the place of its shape; and steps that their nodes opened, numbered."""

import json
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op

from sagas.stores.schema import LongText, exact

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_SAGA = sa.table("sagas_saga", sa.column("id"), sa.column("shape"), sa.column("outline"))
_STEP = sa.table("sagas_step", *(sa.column(name) for name in ("saga_id", "node", "seq", "stage", "position")))


def upgrade() -> None:
    bind = op.get_bind()
    # The table of sagas is changed in place: where SQLite copies a table, it deletes the steps with the old one.
    op.alter_column("sagas_step", "name", new_column_name="node", existing_type=exact(100), existing_nullable=False)
    op.add_column("sagas_step", sa.Column("item", sa.Integer, nullable=True))
    op.add_column("sagas_step", sa.Column("seq", sa.Integer, nullable=False, server_default="0"))
    op.add_column("sagas_step", sa.Column("stage", sa.Integer, nullable=False, server_default="0"))
    op.add_column("sagas_step", sa.Column("kind", sa.String(8), nullable=False, server_default="step"))
    shapes = bind.execute(sa.select(_SAGA.c.shape).distinct()).scalars().all()
    for shape in shapes:
        of_shape = sa.select(_SAGA.c.id).where(_SAGA.c.shape == shape)
        for number, nodes in enumerate(_stages(shape)):
            wanted = _STEP.c.node.in_([_name(node) for node in nodes]), _STEP.c.saga_id.in_(of_shape)
            bind.execute(sa.update(_STEP).where(*wanted).values(stage=number))
    bind.execute(sa.update(_STEP).where(_STEP.c.position > 0).values(seq=_STEP.c.position))
    _number_the_rest(bind)
    _set_key("seq")
    _rename("shape", "outline", LongText)
    for shape in shapes:
        bind.execute(sa.update(_SAGA).where(_SAGA.c.outline == shape).values(outline=_outline(list(_stages(shape)))))


def downgrade() -> None:
    bind = op.get_bind()
    outlines = bind.execute(sa.select(_SAGA.c.outline).distinct()).scalars().all()
    _rename("outline", "shape", sa.Text())
    for outline in outlines:
        bind.execute(sa.update(_SAGA).where(_SAGA.c.shape == outline).values(shape=_shape(json.loads(outline))))
    _set_key("node")
    with op.batch_alter_table("sagas_step") as steps:
        for column in ("kind", "stage", "seq", "item"):
            steps.drop_column(column)
        steps.alter_column("node", new_column_name="name", existing_type=exact(100), existing_nullable=False)


def _rename(old: str, new: str, type_: Any) -> None:
    mysql = op.get_bind().dialect.name in ("mysql", "mariadb")
    op.alter_column(
        "sagas_saga",
        old,
        new_column_name=new,
        type_=type_ if mysql else None,  # the others have one type for every text
        existing_type=sa.Text(),
        existing_nullable=False,
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
    idle = bind.execute(
        sa.select(_STEP.c.saga_id, _STEP.c.node).where(_STEP.c.seq == 0).order_by(_STEP.c.saga_id, _STEP.c.stage)
    ).all()
    for saga_id, node in idle:
        last = bind.execute(sa.select(sa.func.max(_STEP.c.seq)).where(_STEP.c.saga_id == saga_id)).scalar_one()
        mine = _STEP.c.saga_id == saga_id, _STEP.c.node == node
        bind.execute(sa.update(_STEP).where(*mine).values(seq=last + 1))


def _set_key(column: str) -> None:
    if op.get_bind().dialect.name in ("mysql", "mariadb"):  # in one go: the foreign key needs an index at all times
        op.execute(f"ALTER TABLE sagas_step DROP PRIMARY KEY, ADD PRIMARY KEY (saga_id, {column})")
        return
    with op.batch_alter_table("sagas_step") as steps:
        steps.drop_constraint("pk_sagas_step", type_="primary")
        steps.create_primary_key("pk_sagas_step", ["saga_id", column])
