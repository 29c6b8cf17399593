"""Draws one saga: its stages, what undoes them, and where each step stands. As Mermaid, Graphviz or SVG."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Literal

from sagas.checkpoints import Direction, SagaSummary, StepRecord, StepStatus
from sagas.definition import Saga
from sagas.outline import Outline

__all__ = ["FORMATS", "STYLE", "Part", "look_of", "render"]

Format = Literal["mermaid", "dot", "svg"]
FORMATS: tuple[Format, ...] = ("mermaid", "dot", "svg")

#: How an action or a compensation looks; each has a colour and, so that colours are not needed, words.
Look = Literal["idle", "waiting", "running", "done", "failed", "doubt", "stuck", "undone", "skipped"]


@dataclass(frozen=True, slots=True)
class Part:
    """An action or a compensation as it is drawn."""

    look: Look = "idle"
    words: str = ""


def look_of(step: StepRecord, direction: Direction) -> tuple[Part, Part]:
    """Return what a step's action and its compensation look like, in a saga that goes this way."""
    back = direction is Direction.BACKWARD
    to_undo = Part("waiting", "to be undone") if back and step.started_seq else Part()
    # Once a step is being undone, only its result tells what its action came to.
    acted = Part("done", "done") if step.result is not None else Part("failed", "no result")
    attempt = f"attempt {step.attempt}"
    action, undo = Part(), Part()
    match step.status:
        case StepStatus.PENDING if step.failures or step.lost:
            action = Part("waiting", f"{attempt} next")
        case StepStatus.RUNNING:
            action = Part("running", attempt)
        case StepStatus.WAITING:
            action, undo = (acted, _waits(step)) if back else (_waits(step), undo)
        case StepStatus.DONE:
            action, undo = Part("done", "done"), to_undo
        case StepStatus.FAILED:
            action, undo = Part("failed", "failed"), to_undo
        case StepStatus.IN_DOUBT:
            action, undo = Part("doubt", "in doubt"), to_undo
        case StepStatus.COMPENSATING:
            action, undo = acted, Part("running", attempt) if step.held else Part("waiting", f"{attempt} next")
        case StepStatus.COMPENSATED:
            action, undo = acted, Part("undone", "undone")
        case StepStatus.SKIPPED | StepStatus.STUCK:
            ended = Part("skipped", "skipped") if step.status is StepStatus.SKIPPED else Part("stuck", "STUCK")
            action, undo = (acted, ended) if back else (ended, undo)
    return action, undo


def _waits(step: StepRecord) -> Part:
    if step.child_id is not None:
        return Part("waiting", "waits for its child")
    return Part("waiting", f"waits until {step.due_at:%Y-%m-%d %H:%M} UTC" if step.due_at else "waits")


def render(saga: Saga | SagaSummary, format: Format = "mermaid", *, styled: bool = True) -> str:  # noqa: A002
    """Return a drawing of a definition; or of one saga, its steps coloured by their state.

    `styled=False` leaves the colours out of an SVG, for a page that has `STYLE` in its own style sheet.

    >>> from sagas import Saga, Step
    >>> print(render(Saga("greet", Step("hello", lambda: "hi", compensation=None))), end="")
    flowchart TD
        a0["hello"]:::idle
        classDef idle fill:#f4f6f8,stroke:#9aa5b1
    """
    picture = _Picture.of(saga)
    match format:
        case "mermaid":
            return _mermaid(picture)
        case "dot":
            return _dot(picture)
        case "svg":
            return _svg(picture, styled=styled)


@dataclass(frozen=True, slots=True)
class _Box:
    """A step as it is drawn: its action and, where it can be undone, its compensation."""

    number: int
    name: str
    pivot: bool
    action: Part
    undo: Part | None


@dataclass(frozen=True, slots=True)
class _Picture:
    title: str
    stages: tuple[tuple[_Box, ...], ...]

    @classmethod
    def of(cls, saga: Saga | SagaSummary) -> _Picture:
        record = saga if isinstance(saga, SagaSummary) else None
        stages: list[tuple[_Box, ...]] = []
        number = 0
        for nodes in Outline.parse(saga.outline).stages:
            boxes = []
            for node in nodes:
                action, undo = (Part(), Part()) if record is None else look_of(record.step(node.name), record.direction)
                boxes.append(_Box(number, node.label, node.is_pivot, action, undo if node.compensated else None))
                number += 1
            stages.append(tuple(boxes))
        state = "" if record is None else f", {record.status}"
        return cls(f"saga {saga.name}, version {saga.version}{state}", tuple(stages))

    @property
    def boxes(self) -> list[_Box]:
        return [box for stage in self.stages for box in stage]

    @property
    def arrows(self) -> list[tuple[_Box, _Box]]:
        return [(start, end) for one, next_ in pairwise(self.stages) for start in one for end in next_]

    @property
    def looks(self) -> list[Look]:
        found = {part.look for box in self.boxes for part in (box.action, box.undo) if part is not None}
        return [look for look in _COLOURS if look in found]


#: Fill, edge and text of each look on a light page, then on a dark one.
_COLOURS: Mapping[Look, tuple[tuple[str, str, str], tuple[str, str, str]]] = {
    "idle": (("#f4f6f8", "#9aa5b1", "#52606d"), ("#20262d", "#66727f", "#b8c2cc")),
    "waiting": (("#fff6db", "#b7860b", "#5c4400"), ("#3a3113", "#d1a730", "#f5e3ae")),
    "running": (("#e1effe", "#1c64f2", "#1a3f8f"), ("#14294d", "#5b9bff", "#cfe1ff")),
    "done": (("#e3f6e8", "#2f8f4e", "#14532d"), ("#12331f", "#4fb477", "#c8f0d6")),
    "failed": (("#fdeaea", "#c53030", "#7b1d1d"), ("#3b1a1a", "#f08080", "#ffd5d5")),
    "doubt": (("#ffefe0", "#d26a13", "#7a3a05"), ("#40270f", "#f09a4a", "#ffe0c2")),
    "stuck": (("#c53030", "#8b1a1a", "#ffffff"), ("#d64545", "#ffb3b3", "#ffffff")),
    "undone": (("#efe9fb", "#7a54c7", "#46307a"), ("#2a2142", "#a88be8", "#e2d6fb")),
    "skipped": (("#eceff1", "#607d8b", "#37474f"), ("#263036", "#90a4ae", "#d5dee3")),
}

# -- as text ------------------------------------------------------------------------------------------------------


def _mermaid(picture: _Picture) -> str:
    lines = ["flowchart TD"]
    for box in picture.boxes:
        text = f'"{_lines(box.name, box.action, "<br>")}"'
        shape = f"{{{{{text}}}}}" if box.pivot else f"[{text}]"
        lines.append(f"    a{box.number}{shape}:::{box.action.look}")
        if box.undo is not None:
            lines.append(f'    u{box.number}(["{_lines("undo", box.undo, "<br>")}"]):::{box.undo.look}')
            lines.append(f"    a{box.number} -.- u{box.number}")
    lines += [f"    a{start.number} --> a{end.number}" for start, end in picture.arrows]
    for look in picture.looks:
        fill, edge, text = _COLOURS[look][0]
        colour = f",color:{text}" if look == "stuck" else ""
        lines.append(f"    classDef {look} fill:{fill},stroke:{edge}{colour}")
    return "\n".join(lines) + "\n"


def _dot(picture: _Picture) -> str:
    def node(name: str, text: str, look: Look, more: str) -> str:
        fill, edge, colour = _COLOURS[look][0]
        return f'    {name} [label="{text}" {more} fillcolor="{fill}" color="{edge}" fontcolor="{colour}"];'

    lines = ["digraph saga {", f'    label="{picture.title}";', '    node [fontname="sans-serif"];']
    for box in picture.boxes:
        more = "shape=hexagon style=filled" if box.pivot else "shape=box style=filled"
        lines.append(node(f"a{box.number}", _lines(box.name, box.action, "\\n"), box.action.look, more))
        if box.undo is not None:
            undo = _lines("undo", box.undo, "\\n")
            lines.append(node(f"u{box.number}", undo, box.undo.look, 'shape=box style="filled,rounded,dashed"'))
            lines.append(f"    a{box.number} -> u{box.number} [style=dashed arrowhead=none];")
            lines.append(f"    {{ rank=same; a{box.number}; u{box.number}; }}")
    lines += [f"    a{start.number} -> a{end.number};" for start, end in picture.arrows]
    return "\n".join([*lines, "}"]) + "\n"


def _lines(name: str, part: Part, end: str) -> str:
    return f"{name}{end}{part.words}" if part.words else name


# -- as an image --------------------------------------------------------------------------------------------------

_HEIGHT, _BELOW, _BESIDE, _LINK, _MARGIN = 44.0, 30.0, 28.0, 22.0, 12.0
_LETTER = 7.4  # of 12 px monospace
_UNDO = 104.0  # the width of a compensation
_LONGEST = 30  # letters of a name that are shown; the rest is in its tooltip


def _variables(which: int) -> str:
    return "".join(
        f" --{look}-fill: {each[which][0]}; --{look}-edge: {each[which][1]}; --{look}-text: {each[which][2]};"
        for look, each in _COLOURS.items()
    )


_LIGHT = f"--saga-paper: #ffffff; --saga-line: #7b8794;{_variables(0)}"
_DARK = f"--saga-paper: #14181d; --saga-line: #8a94a0;{_variables(1)}"

_RULES = "".join(
    f".saga-drawing .{look} .saga-box {{ fill: var(--{look}-fill); stroke: var(--{look}-edge) }}\n"
    f".saga-drawing .{look} text {{ fill: var(--{look}-text) }}\n"
    for look in _COLOURS
)

#: The style sheet of every drawing. The colours follow `data-bs-theme` where a page has it (Bootstrap's word for light
#: and dark), else what the reader's system prefers.
STYLE = f""".saga-drawing {{ {_LIGHT} }}
@media (prefers-color-scheme: dark) {{ .saga-drawing {{ {_DARK} }} }}
[data-bs-theme="light"] .saga-drawing {{ {_LIGHT} }}
[data-bs-theme="dark"] .saga-drawing {{ {_DARK} }}
.saga-drawing .saga-paper {{ fill: var(--saga-paper) }}
.saga-drawing .saga-arrow {{ fill: none; stroke: var(--saga-line); stroke-width: 1.4 }}
.saga-drawing .saga-head {{ fill: var(--saga-line) }}
.saga-drawing .saga-link {{ stroke: var(--saga-line); stroke-width: 1.4; stroke-dasharray: 4 3 }}
.saga-drawing .saga-box {{ stroke-width: 1.4 }}
.saga-drawing .saga-pivot .saga-box {{ stroke-width: 2.6 }}
.saga-drawing .saga-undo .saga-box {{ stroke-dasharray: 4 3 }}
.saga-drawing text {{
  font: 12px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; text-anchor: middle
}}
.saga-drawing .saga-words {{ font-size: 11px; font-weight: 600 }}
{_RULES}"""


def _svg(picture: _Picture, *, styled: bool) -> str:
    wide = max(min(len(box.name), _LONGEST) + (8 if box.pivot else 0) for box in picture.boxes) * _LETTER + 28
    x = _columns(picture, max(wide, 120.0))
    wide = max(wide, 120.0)
    y = {box.number: _MARGIN + row * (_HEIGHT + _BELOW) for row, stage in enumerate(picture.stages) for box in stage}
    right = max(x[box.number] + wide / 2 + (_LINK + _UNDO if box.undo else 0) for box in picture.boxes) + _MARGIN
    bottom = 2 * _MARGIN + len(picture.stages) * (_HEIGHT + _BELOW) - _BELOW
    size = f'width="{right:.0f}" height="{bottom:.0f}"'
    view = f'viewBox="0 0 {right:.0f} {bottom:.0f}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="saga-drawing" {size} {view} role="img">',
        f"<title>{escape(picture.title)}</title>",
        *([f"<style>{STYLE}</style>"] if styled else []),
        f'<rect class="saga-paper" {size}/>',
    ]
    for start, end in picture.arrows:
        lines += _arrow(x[start.number], y[start.number] + _HEIGHT, x[end.number], y[end.number])
    for box in picture.boxes:
        left, top = x[box.number] - wide / 2, y[box.number]
        kind = "pivot" if box.pivot else "action"
        short = box.name if len(box.name) <= _LONGEST else f"{box.name[: _LONGEST - 1]}…"
        if box.undo is not None:
            middle = top + _HEIGHT / 2
            lines.append(
                f'<line class="saga-link" x1="{left + wide:.1f}" y1="{middle}" '
                f'x2="{left + wide + _LINK:.1f}" y2="{middle}"/>'
            )
            about = f"what undoes {box.name}: {box.undo.words or 'not needed so far'}"
            lines += _box(left + wide + _LINK, top, _UNDO, "undo", box.undo, "undo", about)
        text = f"{short} (pivot)" if box.pivot else short
        lines += _box(left, top, wide, text, box.action, kind, f"{box.name}: {box.action.words or 'not begun'}")
    return "\n".join([*lines, "</svg>"]) + "\n"


def _columns(picture: _Picture, wide: float) -> dict[int, float]:
    """Return where the middle of each action is: those of a stage are spread around the middle of the drawing."""
    x: dict[int, float] = {}
    for stage in picture.stages:
        at, middles = 0.0, []
        for box in stage:
            middles.append(at + wide / 2)
            at += wide + (_LINK + _UNDO if box.undo else 0) + _BESIDE
        centre = (middles[0] + middles[-1]) / 2
        x |= {box.number: middle - centre for box, middle in zip(stage, middles, strict=True)}
    left = min(x.values()) - wide / 2
    return {number: middle - left + _MARGIN for number, middle in x.items()}


def _arrow(x1: float, y1: float, x2: float, y2: float) -> list[str]:
    tip, middle = y2 - 7, (y1 + y2) / 2
    way = f"M{x1:.1f} {y1:.1f}C{x1:.1f} {middle:.1f} {x2:.1f} {middle - 4:.1f} {x2:.1f} {tip:.1f}"
    head = f"M{x2 - 4:.1f} {tip:.1f}h8L{x2:.1f} {y2:.1f}z"
    return [f'<path class="saga-arrow" d="{way}"/>', f'<path class="saga-head" d="{head}"/>']


def _box(left: float, top: float, wide: float, text: str, part: Part, kind: str, about: str) -> list[str]:
    middle, line = left + wide / 2, top + _HEIGHT / 2
    first = line - 4 if part.words else line + 4
    place = f'x="{left:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{_HEIGHT}"'
    lines = [
        f'<g class="saga-{kind} {part.look}"><title>{escape(about)}</title>',
        f'<rect class="saga-box" {place} rx="{_HEIGHT / 2 if kind == "undo" else 6}"/>',
        f'<text x="{middle:.1f}" y="{first:.1f}">{escape(text)}</text>',
    ]
    if part.words:
        lines.append(f'<text class="saga-words" x="{middle:.1f}" y="{line + 13:.1f}">{escape(part.words)}</text>')
    return [*lines, "</g>"]
