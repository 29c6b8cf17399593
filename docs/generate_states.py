"""Draw the states of sagas and steps from the tables in `sagas.checkpoints`.

`python docs/generate_states.py` writes docs/states.md, its two drawings, and the drawing in README.md.
With `--check` it writes nothing, and exits with 1 when one of them is out of date.
"""  # noqa: INP001 - a script, not a package

from __future__ import annotations

import argparse
import enum
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from sagas.checkpoints import FINISHED, SAGA_MOVES, STEP_MOVES, SagaStatus, StepStatus

__all__ = ["render"]

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
STATES = ROOT / "docs" / "states.md"
SAGA_DRAWING = ROOT / "docs" / "states-saga.svg"
STEP_DRAWING = ROOT / "docs" / "states-step.svg"

BEGIN = "<!-- states:begin -->"
END = "<!-- states:end -->"

Status = TypeVar("Status", bound=enum.StrEnum)
Moves = Mapping[Status, Mapping[Status, str]]

#: Where each state is drawn: its column and its row.
SAGA_PLACES = {
    SagaStatus.PENDING: (0.0, 0.0),
    SagaStatus.RUNNING: (1.2, 0.0),
    SagaStatus.COMPLETED: (2.4, 0.0),
    SagaStatus.STUCK: (1.2, 1.2),
    SagaStatus.COMPENSATING: (0.0, 1.2),
    SagaStatus.COMPENSATED: (0.0, 2.4),
}
STEP_PLACES = {  # STUCK and SKIPPED, where people decide, are in the table only
    StepStatus.PENDING: (0.0, 1.6),
    StepStatus.RUNNING: (1.2, 1.6),
    StepStatus.DONE: (2.4, 0.8),
    StepStatus.FAILED: (2.4, 1.6),
    StepStatus.IN_DOUBT: (2.4, 2.4),
    StepStatus.WAITING: (1.2, 0.4),
    StepStatus.COMPENSATING: (3.6, 1.6),
    StepStatus.COMPENSATED: (4.8, 1.6),
}

#: Sizes in a drawing: of a box, from one column and row to the next, and of the margin.
WIDTH, HEIGHT, COLUMN, ROW, MARGIN = 118, 34, 150, 76, 24

STYLE = """
.paper { fill: #ffffff } .arrow { fill: none; stroke: #59636e; stroke-width: 1.4 } .head { fill: #59636e }
.rare { stroke-dasharray: 4 3; stroke-width: 1 }
text { font: 12px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #1f2328; text-anchor: middle }
.box { fill: #eef2f6; stroke: #7b8794 } .good { fill: #d9f2e3 } .back { fill: #fdf0d0 } .bad { fill: #fbdedb }
@media (prefers-color-scheme: dark) {
.paper { fill: #151b23 } .arrow { stroke: #9198a1 } .head { fill: #9198a1 } text { fill: #e6edf3 }
.box { fill: #2a313c; stroke: #6b7684 } .good { fill: #143d29 } .back { fill: #463a16 } .bad { fill: #4f2320 }
}
"""
KINDS = {
    "COMPLETED": "good", "DONE": "good", "COMPENSATING": "back", "COMPENSATED": "back",
    "STUCK": "bad", "FAILED": "bad", "IN_DOUBT": "bad",
}  # fmt: skip


def render() -> dict[Path, str]:
    """Return what each file should hold, by its path."""
    return {
        STATES: _page(),
        SAGA_DRAWING: _svg("The states of a saga", SAGA_MOVES, SAGA_PLACES),
        STEP_DRAWING: _svg("The states of a step", STEP_MOVES, STEP_PLACES),
        README: _with_drawing(README.read_text(encoding="utf-8")),
    }


def _page() -> str:
    return f"""# States

Drawn from `SAGA_MOVES` and `STEP_MOVES` in `sagas/checkpoints.py` by `python docs/generate_states.py`. Do not edit.
No other move is possible: the record refuses it.

## A saga

![The states of a saga, and the moves between them](states-saga.svg)

{_table(SAGA_MOVES)}

A saga that is COMPENSATED has nothing left to do, but is not sealed: an action that was given up may still report its
success. Then the saga goes back to COMPENSATING and undoes that action once more.

## A step

![The states of a step, and the moves between them](states-step.svg)

Dashed: an action that reports its success after all. Moves to STUCK, and those that an operator makes, are in the table
only.

{_table(STEP_MOVES)}

No status of a step is terminal in itself: what a step still needs depends on the direction of its saga.
"""


def _with_drawing(text: str) -> str:
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{README.name} has no {BEGIN} ... {END}")
    return f"{head}{BEGIN}\n{_drawing(SAGA_MOVES, SagaStatus.PENDING)}\n{END}{tail}"


def _drawing(moves: Moves[Status], first: Status) -> str:
    arrows = [f"    {source} --> {target}" for source, targets in moves.items() for target in targets]
    ends = [f"    {source} --> [*]" for source in moves if source in FINISHED]
    return "\n".join(["```mermaid", "stateDiagram-v2", f"    [*] --> {first}", *arrows, *ends, "```"])


def _svg(title: str, moves: Moves[Status], places: Mapping[Status, tuple[float, float]]) -> str:
    at = {
        state: (MARGIN + WIDTH / 2 + column * COLUMN, MARGIN + HEIGHT / 2 + row * ROW)
        for state, (column, row) in places.items()
    }
    width = max(x for x, _ in at.values()) + WIDTH / 2 + MARGIN
    height = max(y for _, y in at.values()) + HEIGHT / 2 + MARGIN
    size = f'width="{width:.0f}" height="{height:.0f}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {width:.0f} {height:.0f}" role="img">',
        f"<title>{title}</title>",
        f"<style>{STYLE}</style>",
        '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">',
        '<path class="head" d="M0 0 8 4 0 8z"/></marker>',
        f'<rect class="paper" {size} rx="8"/>',
    ]
    for source, targets in moves.items():
        for target, why in targets.items():
            if source not in at or target not in at:
                continue
            rare = " rare" if "STUCK" in (source, target) or "after all" in why else ""
            both = source in moves[target]
            lines.append(
                f'<path class="arrow{rare}" marker-end="url(#head)" d="{_way(at[source], at[target], both)}"/>'
            )
    for state, (x, y) in at.items():
        kind = KINDS.get(str(state), "")
        lines.append(
            f'<rect class="box {kind}" x="{x - WIDTH / 2:.1f}" y="{y - HEIGHT / 2:.1f}" width="{WIDTH}" '
            f'height="{HEIGHT}" rx="6"/>'
        )
        lines.append(f'<text x="{x:.1f}" y="{y + 4:.1f}">{state}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def _way(start: tuple[float, float], end: tuple[float, float], both: bool) -> str:
    """Return the curve from the edge of one box to that of another; of two that lead both ways, each keeps right."""
    across, down = end[0] - start[0], end[1] - start[1]
    length = (across**2 + down**2) ** 0.5
    # Far ones bend, so that they pass by the boxes between them.
    far = length > 1.5 * COLUMN and (abs(down) < ROW / 2 or abs(across) < COLUMN / 2)
    bend = 0.32 * length if far else 16.0 if both else 0.0
    middle = (
        (start[0] + end[0]) / 2 + bend * down / length,
        (start[1] + end[1]) / 2 - bend * across / length,
    )
    (x1, y1), (x2, y2) = _edge(start, middle), _edge(end, middle)
    return f"M{x1:.1f} {y1:.1f}Q{middle[0]:.1f} {middle[1]:.1f} {x2:.1f} {y2:.1f}"


def _edge(middle: tuple[float, float], to: tuple[float, float]) -> tuple[float, float]:
    """Return where the line from the middle of a box to another point leaves the box."""
    across, down = to[0] - middle[0], to[1] - middle[1]
    part = min((WIDTH / 2 + 2) / abs(across) if across else 9e9, (HEIGHT / 2 + 2) / abs(down) if down else 9e9)
    return middle[0] + across * part, middle[1] + down * part


def _table(moves: Moves[Status]) -> str:
    rows = ["| from | to | why |", "|---|---|---|"]
    for source, targets in moves.items():
        name = f"{source} (terminal)" if source in FINISHED else str(source)
        rows += [f"| {name} | {target} | {why} |" for target, why in targets.items()]
        if not targets:
            rows.append(f"| {name} | | |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description="Draw the states of sagas and steps.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when a file is out of date")
    check = parser.parse_args().check
    stale = [(path, text) for path, text in render().items() if _read(path) != text]
    for path, text in stale:
        if not check:
            path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{path.relative_to(ROOT)} {'is out of date' if check else 'written'}\n")
    return 1 if check and stale else 0


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())
