"""Draws a choreography: as Mermaid and Graphviz text, and as SVG with a layout of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from typing import Literal

from sagas.events.choreography import Graph
from sagas.events.messages import Kind

__all__ = ["FORMATS", "render"]

Format = Literal["mermaid", "dot", "svg"]
FORMATS: tuple[Format, ...] = ("mermaid", "dot", "svg")

Shape = Literal["event", "failure", "command", "handler", "undoing"]


@dataclass(frozen=True, slots=True)
class _Picture:
    """What is drawn: boxes by id, and arrows between them."""

    boxes: Mapping[str, tuple[Shape, str]]  #: each with shape and text
    arrows: tuple[tuple[str, str], ...]
    groups: Mapping[str, tuple[str, ...]]  #: the handlers of each service


def render(graph: Graph, format: Format = "mermaid") -> str:  # noqa: A002 - the usual name
    """Return a drawing of a choreography: text for Mermaid or Graphviz (`dot`), or a complete SVG image.

    Events are round, commands are hexagons, and handlers are boxes next to the name of their service. Failure events
    are red; a handler that compensates has a dashed border.
    """
    picture = _picture(graph)
    return {"mermaid": _mermaid, "dot": _dot, "svg": _svg}[format](picture)


def _picture(graph: Graph) -> _Picture:
    boxes: dict[str, tuple[Shape, str]] = {}
    arrows: list[tuple[str, str]] = []
    groups: dict[str, tuple[str, ...]] = {}
    for name, declared in sorted(graph.messages.items()):
        shape: Shape = "failure" if declared.failure else "command" if declared.kind is Kind.COMMAND else "event"
        boxes[f"m:{name}"] = (shape, name if declared.version == 1 else f"{name} v{declared.version}")
    for handler in graph.handlers:
        box = f"h:{handler.service}.{handler.name}"
        boxes[box] = ("undoing" if handler.compensates else "handler", f"{handler.service}: {handler.name}")
        groups[handler.service] = (*groups.get(handler.service, ()), box)
        arrows += [(f"m:{declared.name}", box) for declared in handler.handles]
        arrows += [(box, f"m:{declared.name}") for declared in handler.emits]
    return _Picture(boxes, tuple(dict.fromkeys(arrows)), groups)


# -- as text ------------------------------------------------------------------------------------------------------

_MERMAID: Mapping[Shape, str] = {
    "event": "([{}])", "failure": "([{}])", "command": "{{{{{}}}}}", "handler": "[{}]", "undoing": "[{}]",
}  # fmt: skip


def _mermaid(picture: _Picture) -> str:
    ids = {box: f"n{number}" for number, box in enumerate(picture.boxes)}

    def box(name: str) -> str:
        shape, text = picture.boxes[name]
        return f"{ids[name]}{_MERMAID[shape].format(chr(34) + text + chr(34))}:::{shape}"

    lines = ["flowchart TD"]
    for number, (service, handlers) in enumerate(picture.groups.items()):
        lines += [f'    subgraph s{number}["{service}"]', *(f"        {box(name)}" for name in handlers), "    end"]
    lines += [f"    {box(name)}" for name in picture.boxes if name.startswith("m:")]
    lines += [f"    {ids[start]} --> {ids[end]}" for start, end in picture.arrows]
    lines += ["    classDef failure stroke:#c62828,stroke-width:2px", "    classDef undoing stroke-dasharray:4 3"]
    return "\n".join(lines) + "\n"


_DOT: Mapping[Shape, str] = {
    "event": "shape=box style=rounded", "failure": "shape=box style=rounded color=red", "command": "shape=hexagon",
    "handler": "shape=box", "undoing": "shape=box style=dashed",
}  # fmt: skip


def _dot(picture: _Picture) -> str:
    def box(name: str) -> str:
        shape, text = picture.boxes[name]
        return f'"{name}" [label="{text}" {_DOT[shape]}];'

    lines = ["digraph choreography {", '    node [fontname="sans-serif"];']
    for service, handlers in picture.groups.items():
        lines += [f'    subgraph "cluster_{service}" {{', f'        label="{service}";']
        lines += [*(f"        {box(name)}" for name in handlers), "    }"]
    lines += [f"    {box(name)}" for name in picture.boxes if name.startswith("m:")]
    lines += [f'    "{start}" -> "{end}";' for start, end in picture.arrows]
    return "\n".join([*lines, "}"]) + "\n"


# -- as an image --------------------------------------------------------------------------------------------------

_ROW, _HEIGHT, _GAP, _MARGIN = 64.0, 30.0, 26.0, 20.0
_LETTER = 7.3  # the width of a character in 12 px monospace
_BEND = 12.0  # the width of the gap where a long arrow passes a row

_STYLE = """
.paper { fill: #ffffff } .arrow { fill: none; stroke: #7b8794; stroke-width: 1.3 } .head { fill: #7b8794 }
text { fill: #1f2933; font: 12px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; text-anchor: middle }
.box { fill: #f1f3f5; stroke: #7b8794 } .event, .failure { fill: #e3f2fd } .command { fill: #fff3cd }
.failure { stroke: #c62828; stroke-width: 2 } .undoing { stroke-dasharray: 4 3 }
@media (prefers-color-scheme: dark) {
.paper { fill: #14181d } .arrow { stroke: #8a94a0 } .head { fill: #8a94a0 } text { fill: #e4e7eb }
.box { fill: #2a3038; stroke: #8a94a0 } .event, .failure { fill: #16324a } .command { fill: #4a3b10 }
.failure { stroke: #ff8a80 }
}
"""


@dataclass(slots=True)
class _Layout:
    """Rows of boxes. Every arrow spans one row: a long arrow passes the rows between through gaps."""

    rows: list[list[str]] = field(default_factory=list)
    steps: list[tuple[str, str]] = field(default_factory=list)  #: downwards, each from one row to the next
    chains: list[list[str]] = field(default_factory=list)  #: the boxes and gaps that each arrow passes
    width: dict[str, float] = field(default_factory=dict)
    x: dict[str, float] = field(default_factory=dict)  #: the horizontal center


def _layout(picture: _Picture) -> _Layout:
    layout = _Layout()
    forward = _without_cycles(picture)
    row = _rows(picture.boxes, forward)
    layout.rows = [[] for _ in range(max(row.values(), default=-1) + 1)]
    for box, (_, text) in picture.boxes.items():
        layout.rows[row[box]].append(box)
        layout.width[box] = len(text) * _LETTER + 28
    for start, end in forward:
        passed = [f"{start}>{end}@{number}" for number in range(row[start] + 1, row[end])]
        for number, place in enumerate(passed, row[start] + 1):
            layout.rows[number].append(place)
            layout.width[place] = _BEND
        chain = [start, *passed, end]
        layout.steps += pairwise(chain)
        layout.chains.append(chain)
    _order(layout)
    _place(layout)
    return layout


def _without_cycles(picture: _Picture) -> list[tuple[str, str]]:
    """Return the arrows, with those that lead back reversed, so that all point downwards."""
    following: dict[str, list[str]] = {box: [] for box in picture.boxes}
    for start, end in picture.arrows:
        following[start].append(end)
    ends = {end for _, end in picture.arrows}
    done: set[str] = set()
    back: set[tuple[str, str]] = set()
    for root in sorted(picture.boxes, key=lambda box: box in ends):  # the starts of flows first
        stack = [(root, iter(following[root]))] if root not in done else []
        above = {root}
        done.add(root)
        while stack:
            box, rest = stack[-1]
            end = next(rest, "")
            if not end:
                stack.pop()
                above.discard(box)
            elif end in above:
                back.add((box, end))
            elif end not in done:
                done.add(end)
                above.add(end)
                stack.append((end, iter(following[end])))
    return list(dict.fromkeys((arrow[1], arrow[0]) if arrow in back else arrow for arrow in picture.arrows))


def _rows(boxes: Iterable[str], arrows: Iterable[tuple[str, str]]) -> dict[str, int]:
    """Assign each box the first row below everything that leads to it."""
    arrows = list(arrows)
    row = dict.fromkeys(boxes, 0)
    waiting_for = {box: sum(end == box for _, end in arrows) for box in row}
    ready = deque(box for box, count in waiting_for.items() if count == 0)
    while ready:
        box = ready.popleft()
        for end in (end for start, end in arrows if start == box):
            row[end] = max(row[end], row[box] + 1)
            waiting_for[end] -= 1
            if waiting_for[end] == 0:
                ready.append(end)
    return row


def _order(layout: _Layout) -> None:
    """Sort each row by the positions of its neighbours in the adjacent rows, so that fewer arrows cross."""
    above: dict[str, list[str]] = {}
    below: dict[str, list[str]] = {}
    for start, end in layout.steps:
        above.setdefault(end, []).append(start)
        below.setdefault(start, []).append(end)
    for round_ in range(8):
        neighbours = above if round_ % 2 == 0 else below
        for boxes in layout.rows if round_ % 2 == 0 else reversed(layout.rows):
            at = {box: index / max(len(row) - 1, 1) for row in layout.rows for index, box in enumerate(row)}
            boxes.sort(key=lambda box: _mean([at[other] for other in neighbours.get(box, [])], at[box]))


def _place(layout: _Layout) -> None:
    """Move each box towards its neighbours, as far as the other boxes in its row allow."""
    near: dict[str, list[str]] = {}
    for start, end in layout.steps:
        near.setdefault(start, []).append(end)
        near.setdefault(end, []).append(start)
    for boxes in layout.rows:
        at = 0.0
        for box in boxes:
            layout.x[box] = at + layout.width[box] / 2
            at += layout.width[box] + _GAP
    for round_ in range(24):
        for boxes in layout.rows if round_ % 2 == 0 else reversed(layout.rows):
            wanted = [_mean([layout.x[other] for other in near.get(box, [])], layout.x[box]) for box in boxes]
            _spread(layout, boxes, wanted)
    left = min((layout.x[box] - layout.width[box] / 2 for box in layout.x), default=0.0)
    for box in layout.x:
        layout.x[box] += _MARGIN - left


def _spread(layout: _Layout, boxes: list[str], wanted: list[float]) -> None:
    """Place a row's boxes as near to their wanted positions as their widths allow: adjacent boxes move together."""
    offset, at = [], 0.0
    for box in boxes:
        offset.append(at + layout.width[box] / 2)
        at += layout.width[box] + _GAP
    blocks: list[tuple[float, int]] = []  # where the row would have to start, and for how many boxes
    for want, middle in zip(wanted, offset, strict=True):
        start, count = want - middle, 1
        while blocks and blocks[-1][0] > start:
            before, several = blocks.pop()
            start, count = (before * several + start * count) / (several + count), several + count
        blocks.append((start, count))
    starts = [start for start, count in blocks for _ in range(count)]
    for box, start, middle in zip(boxes, starts, offset, strict=True):
        layout.x[box] = start + middle


def _mean(values: list[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _svg(picture: _Picture) -> str:
    layout = _layout(picture)
    y = {box: _MARGIN + _HEIGHT / 2 + number * _ROW for number, boxes in enumerate(layout.rows) for box in boxes}
    width = max((layout.x[box] + layout.width[box] / 2 for box in layout.x), default=0.0) + _MARGIN
    height = 2 * _MARGIN + max(len(layout.rows) - 1, 0) * _ROW + _HEIGHT
    size = f'width="{width:.0f}" height="{height:.0f}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {width:.0f} {height:.0f}" role="img">',
        f"<title>A choreography of {len(picture.groups)} services</title>",
        f"<style>{_STYLE}</style>",
        '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8"',
        ' orient="auto-start-reverse"><path class="head" d="M0 0 8 4 0 8z"/></marker>',
        f'<rect class="paper" {size}/>',
    ]
    for chain in layout.chains:
        way = f"M{layout.x[chain[0]]:.1f} {y[chain[0]] + _HEIGHT / 2:.1f}"
        for above, below in pairwise(chain):
            start, end = y[above] + _HEIGHT / 2, y[below] - _HEIGHT / 2
            middle, x = (start + end) / 2, layout.x[below]
            way += f"C{layout.x[above]:.1f} {middle:.1f} {x:.1f} {middle:.1f} {x:.1f} {end:.1f}"
            if below != chain[-1]:
                way += f"V{end + _HEIGHT:.1f}"
        # A reversed arrow points upwards; two boxes that lead to each other share one arrow with two heads.
        ends = (("end", (chain[0], chain[-1])), ("start", (chain[-1], chain[0])))
        heads = " ".join(f'marker-{end}="url(#head)"' for end, arrow in ends if arrow in picture.arrows)
        lines.append(f'<path class="arrow" {heads} d="{way}"/>')
    for box, (shape, text) in picture.boxes.items():
        lines.append(_box(shape, layout.x[box], y[box], layout.width[box]))
        lines.append(f'<text x="{layout.x[box]:.1f}" y="{y[box] + 4:.1f}">{escape(text)}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def _box(shape: Shape, x: float, y: float, width: float) -> str:
    left, top, half = x - width / 2, y - _HEIGHT / 2, _HEIGHT / 2
    if shape == "command":
        tip, right = 10.0, left + width
        points = f"{left:.1f},{y:.1f} {left + tip:.1f},{top:.1f} {right - tip:.1f},{top:.1f} {right:.1f},{y:.1f} "
        points += f"{right - tip:.1f},{top + _HEIGHT:.1f} {left + tip:.1f},{top + _HEIGHT:.1f}"
        return f'<polygon class="box {shape}" points="{points}"/>'
    round_ = half if shape in ("event", "failure") else 3
    return (
        f'<rect class="box {shape}" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{_HEIGHT:.1f}" '
        f'rx="{round_:.1f}"/>'
    )
