"""The drawing of one saga: of a definition, and of each state that a step can have."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from sagas import Direction, Parallel, Pivot, Saga, SagaRecord, SagaStatus, Step, StepRecord, StepStatus
from sagas.checkpoints import HistoryEntry, HistoryKind
from sagas.contrib.flower.timeline import timeline
from sagas.drawing import Format, look_of, render
from sagas.outline import Outline

AT = datetime(2026, 1, 1, tzinfo=UTC)


def nothing() -> None:
    pass


ORDER = Saga(
    "place_order",
    Step("reserve", nothing, compensation=nothing),
    Parallel(Step("authorize", nothing, compensation=nothing), Step("quote", nothing, compensation=None)),
    Pivot("capture", nothing),
    Step("confirm", nothing),
)


def record(status: SagaStatus = SagaStatus.RUNNING, *, back: bool = False, **steps: StepRecord) -> SagaRecord:
    return SagaRecord(
        id="id", name=ORDER.name, version=1, key="k", outline=ORDER.outline, correlation_id="c", input="{}", status=status,
        direction=Direction.BACKWARD if back else Direction.FORWARD, created_at=AT, updated_at=AT, stage_ready_at=AT, steps=steps,
    )  # fmt: skip


def step(name: str, status: StepStatus, **fields: Any) -> StepRecord:
    return StepRecord(node=name, status=status, **{"started_seq": 1, **fields})


def test_the_shape_says_it_all() -> None:
    for saga in (ORDER, Saga("one", Pivot("only", nothing)), Saga("x", Step("a", nothing, compensation=None))):
        drawn = [
            [(node.name, node.is_pivot, node.compensated) for node in stage]
            for stage in Outline.parse(saga.outline).stages
        ]
        assert drawn == [
            [(each.name, each.step.is_pivot, each.compensation is not None) for each in stage] for stage in saga.stages
        ]


def test_mermaid_of_a_definition() -> None:
    assert render(ORDER).splitlines() == [
        "flowchart TD",
        '    a0["reserve"]:::idle', '    u0(["undo"]):::idle', "    a0 -.- u0",
        '    a1["authorize"]:::idle', '    u1(["undo"]):::idle', "    a1 -.- u1",
        '    a2["quote"]:::idle',
        '    a3{{"capture"}}:::idle',
        '    a4["confirm"]:::idle',
        "    a0 --> a1", "    a0 --> a2", "    a1 --> a3", "    a2 --> a3", "    a3 --> a4",
        "    classDef idle fill:#f4f6f8,stroke:#9aa5b1",
    ]  # fmt: skip


def test_a_saga_is_coloured() -> None:
    stuck = record(
        SagaStatus.STUCK,
        reserve=step("reserve", StepStatus.DONE, result="1"),
        capture=step("capture", StepStatus.STUCK),
    )
    text = render(stuck)
    assert 'a0["reserve<br>done"]:::done' in text
    assert 'a3{{"capture<br>STUCK"}}:::stuck' in text
    assert "classDef stuck fill:#c53030,stroke:#8b1a1a,color:#ffffff" in text
    dot = render(stuck, "dot")
    assert 'label="saga place_order, version 1, STUCK"' in dot
    assert 'a3 [label="capture\\nSTUCK" shape=hexagon style=filled fillcolor="#c53030"' in dot


@pytest.mark.parametrize(
    ("status", "fields", "back", "action", "undo"),
    [
        (StepStatus.PENDING, {"started_seq": 0}, False, "idle", "idle"),
        (StepStatus.PENDING, {"failures": 1}, False, "waiting: attempt 2 next", "idle"),
        (StepStatus.RUNNING, {"lost": 1}, False, "running: attempt 2", "idle"),
        (StepStatus.DONE, {"result": "1"}, False, "done: done", "idle"),
        (StepStatus.DONE, {"result": "1"}, True, "done: done", "waiting: to be undone"),
        (StepStatus.FAILED, {}, True, "failed: failed", "waiting: to be undone"),
        (StepStatus.FAILED, {"started_seq": 0}, True, "failed: failed", "idle"),
        (StepStatus.IN_DOUBT, {}, True, "doubt: in doubt", "waiting: to be undone"),
        (StepStatus.COMPENSATING, {"owner": "w", "result": "1"}, True, "done: done", "running: attempt 1"),
        (StepStatus.COMPENSATING, {"failures": 2}, True, "failed: no result", "waiting: attempt 3 next"),
        (StepStatus.COMPENSATED, {"result": "null"}, True, "done: done", "undone: undone"),
        (StepStatus.SKIPPED, {}, False, "skipped: skipped", "idle"),
        (StepStatus.SKIPPED, {"result": "1"}, True, "done: done", "skipped: skipped"),
        (StepStatus.STUCK, {}, False, "stuck: STUCK", "idle"),
        (StepStatus.STUCK, {"result": "1"}, True, "done: done", "stuck: STUCK"),
    ],
)
def test_what_a_step_looks_like(status: StepStatus, fields: dict[str, Any], back: bool, action: str, undo: str) -> None:
    parts = look_of(step("x", status, **fields), Direction.BACKWARD if back else Direction.FORWARD)
    assert tuple(f"{part.look}: {part.words}" if part.words else part.look for part in parts) == (action, undo)


@pytest.mark.parametrize("styled", [True, False])
def test_the_image_is_whole(styled: bool) -> None:
    long = Saga("long", Step("a_name_that_is_far_too_long_for_a_box", nothing, compensation=nothing))
    for saga in (ORDER, long, record(reserve=step("reserve", StepStatus.RUNNING))):
        image = ET.fromstring(render(saga, "svg", styled=styled))
        width, height = float(image.get("width", 0)), float(image.get("height", 0))
        boxes = [each for each in image.iter("{http://www.w3.org/2000/svg}rect") if each.get("class") == "saga-box"]
        stages = Outline.parse(saga.outline).stages
        assert len(boxes) == sum(1 + node.compensated for stage in stages for node in stage)
        rectangles = [tuple(float(each.get(name, 0)) for name in ("x", "y", "width", "height")) for each in boxes]
        for x, y, wide, high in rectangles:
            assert 0 <= x <= x + wide <= width
            assert 0 <= y <= y + high <= height
        for one in rectangles:  # none lies on another
            for other in rectangles:
                if one is not other:
                    apart = one[0] + one[2] <= other[0] or other[0] + other[2] <= one[0]
                    assert apart or one[1] + one[3] <= other[1] or other[1] + other[3] <= one[1]
        assert (image.find("{http://www.w3.org/2000/svg}style") is not None) is styled


@pytest.mark.parametrize("form", ["mermaid", "dot", "svg"])
def test_one_word_of_each_state_in_each_format(form: Format) -> None:
    drawn = render(record(quote=step("quote", StepStatus.IN_DOUBT)), form)
    assert "in doubt" in drawn


def test_the_timeline() -> None:
    def at(seconds: float) -> datetime:
        return AT + timedelta(seconds=seconds)

    undone = step("reserve", StepStatus.COMPENSATED, started_at=at(0), finished_at=at(8), result="1")
    running = step("authorize", StepStatus.RUNNING, started_seq=2, owner="w", started_at=at(4))
    history = [
        HistoryEntry(at=at(2), what=HistoryKind.STEP_FAILED, epoch=1, step="reserve", detail="once"),
        HistoryEntry(at=at(4), what=HistoryKind.COMPENSATION_STARTED, epoch=1),
    ]
    saga = replace(record(back=True, reserve=undone, authorize=running), next_check_at=at(20))
    first, second = timeline(saga, history, at(10))
    assert [(bar.left, bar.width, bar.look) for bar in first.bars] == [(0, 40, "done"), (40, 40, "undone")]
    assert [(mark.left, mark.words) for mark in first.marks] == [(20, "step failed: once")]
    assert [(bar.left, bar.width, bar.look) for bar in second.bars] == [(40, 60, "running")]
    assert (first.seconds, second.seconds) == (8, 6)
    assert timeline(record(), [], AT) == []


def test_a_step_that_waits_for_its_child() -> None:
    step = StepRecord(node="stay", seq=1, kind="child", status=StepStatus.WAITING, started_seq=1, child_id="c")
    action, undo = look_of(step, Direction.FORWARD)
    assert (action.words, undo.words) == ("waits for its child", "")
    action, undo = look_of(replace(step, result="{}"), Direction.BACKWARD)
    assert (action.words, undo.words) == ("done", "waits for its child")
