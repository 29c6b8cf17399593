"""Draw docs/compensation.svg: one saga that compensates, from message to checkpoint. `python docs/generate_sequence.py`."""  # noqa: INP001, E501 - a script

from __future__ import annotations

from html import escape
from pathlib import Path

__all__: list[str] = []

ACTORS = ("caller", "database", "broker", "worker", "outside")
#: From whom to whom, what, and its kind; from nobody: a note over the database.
ROWS = [
    ("caller", "database", "start: one row, PENDING", "save"),
    ("caller", "broker", "message: seat, epoch 1", "wake"),
    ("broker", "worker", "seat, epoch 1", "wake"),
    ("worker", "database", "claim seat: owner, lease", "save"),
    ("worker", "outside", "book the seat", "act"),
    ("worker", "database", "checkpoint: seat DONE; claim payment", "save"),
    ("worker", "outside", "charge the card", "act"),
    ("outside", "worker", "declined", "bad"),
    ("worker", "database", "payment FAILED", "save"),
    ("worker", "broker", "link_error: sagas.fail", "wake"),
    ("broker", "worker", "sagas.fail", "wake"),
    ("worker", "database", "compensate: COMPENSATING, epoch 2", "save"),
    ("worker", "broker", "message: seat.compensate, epoch 2", "wake"),
    ("broker", "worker", "seat.compensate, epoch 2", "wake"),
    ("worker", "outside", "cancel the seat", "act"),
    ("worker", "database", "seat COMPENSATED, saga COMPENSATED", "save"),
    ("caller", "database", "wait(): COMPENSATED", "read"),
]
COLUMN, ROW, TOP, MARGIN = 176, 34, 66, 70

STYLE = """
.paper { fill: #ffffff } text { font: 12px system-ui, sans-serif; fill: #1f2328; text-anchor: middle }
.actor { font-weight: 600 } .line { stroke: #c3ccd5; stroke-width: 1.2 } .box { fill: #eef2f6; stroke: #7b8794 }
.arrow { stroke-width: 1.6; fill: none } .save { stroke: #00796b } .wake { stroke: #7b8794; stroke-dasharray: 4 3 }
.act { stroke: #2f6fd0 } .bad { stroke: #c62828 } .read { stroke: #00796b; stroke-width: 1 }
@media (prefers-color-scheme: dark) {
.paper { fill: #151b23 } text { fill: #e6edf3 } .line { stroke: #3d444d } .box { fill: #2a313c; stroke: #6b7684 }
.save, .read { stroke: #4db6ac } .wake { stroke: #9198a1 } .act { stroke: #6aa5ff } .bad { stroke: #ff8a80 }
}
"""


def drawing() -> str:
    """Return the whole image."""
    at = {actor: MARGIN + number * COLUMN for number, actor in enumerate(ACTORS)}
    width, height = 2 * MARGIN + (len(ACTORS) - 1) * COLUMN, TOP + len(ROWS) * ROW + 16
    size = f'width="{width}" height="{height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {width} {height}" role="img">',
        "<title>A saga that compensates, from message to checkpoint</title>",
        f"<style>{STYLE}</style>",
        '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">',
        '<path fill="context-stroke" d="M0 0 8 4 0 8z"/></marker>',
        f'<rect class="paper" {size} rx="8"/>',
    ]
    for actor, x in at.items():
        lines.append(f'<line class="line" x1="{x}" x2="{x}" y1="44" y2="{height - 10}"/>')
        lines.append(f'<rect class="box" x="{x - 52}" y="14" width="104" height="30" rx="6"/>')
        lines.append(f'<text class="actor" x="{x}" y="34">{actor}</text>')
    for number, (source, target, text, kind) in enumerate(ROWS):
        y = TOP + number * ROW + 18
        start, end = at[source], at[target]
        middle = (start + end) / 2
        back = 3 if end > start else -3
        lines.append(f'<path class="arrow {kind}" marker-end="url(#head)" d="M{start} {y}H{end - back}"/>')
        half = len(text) * 3.3
        lines.append(f'<rect class="paper" x="{middle - half:.0f}" y="{y - 18}" width="{2 * half:.0f}" height="14"/>')
        lines.append(f'<text x="{middle:.0f}" y="{y - 6}">{escape(text)}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("compensation.svg").write_text(drawing(), encoding="utf-8")
