"""Bars as SVG, small enough to be written by hand: each the median, with a line from the lowest to the highest."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["bars"]

_WIDTH, _LEFT, _RIGHT, _ROW, _TOP = 760, 190, 110, 26, 62

# It brings its own background, so that it can be read wherever it is shown; dark where the reader's system is.
_STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .card { fill: #ffffff; stroke: #d1d9e0 } .title { font-weight: 600; font-size: 15px } .small { fill: #59636e }
  .grid { stroke: #d1d9e0 } .base { stroke: #59636e; stroke-dasharray: 4 3 }
  .bar { fill: #8aa4c8 } .ours { fill: #2f6fd0 } .range { stroke: #1f2328; stroke-width: 1.5 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .card { fill: #151b23; stroke: #3d444d } .small { fill: #9198a1 }
    .grid { stroke: #2a313c } .base { stroke: #9198a1 }
    .bar { fill: #5a6f8f } .ours { fill: #4a8df0 } .range { stroke: #e6edf3 }
  }
"""


def bars(
    title: str,
    axis: str,
    rows: Mapping[str, Sequence[float]],
    *,
    ours: Sequence[str] = (),
    around: float | None = None,
) -> str:
    """Draw a bar for each row's values: from zero, or, with `around`, from that value on a logarithmic axis."""
    known = {label: values for label, values in rows.items() if values}
    low, high = min(map(min, known.values())), max(map(max, known.values()))
    height = _TOP + _ROW * len(known) + 34
    ticks = _plain_ticks(high) if around is None else _doubled_ticks(low, high)

    def x(value: float) -> float:
        scaled = (lambda v: v) if around is None else math.log2
        first, last = scaled(ticks[0]), scaled(ticks[-1])
        return _LEFT + (scaled(value) - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT)

    bottom = _TOP + _ROW * len(known)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{height - 1}" rx="8"/>',
        f'<text class="title" x="16" y="28">{escape(title)}</text>',
        f'<text class="small" x="16" y="48">{escape(axis)}</text>',
    ]
    for tick in ticks:
        kind = "base" if tick == around else "grid"
        parts += [
            f'<line class="{kind}" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{_TOP - 4}" y2="{bottom + 4}"/>',
            f'<text class="small" x="{x(tick):.1f}" y="{bottom + 22}" text-anchor="middle">{tick:,g}</text>',
        ]
    for number, (label, values) in enumerate(known.items()):
        middle, y = statistics.median(values), _TOP + _ROW * number
        kind = "ours" if label in ours else "bar"
        begin, end = sorted((x(middle), x(ticks[0] if around is None else around)))
        parts += [
            f'<text x="{_LEFT - 10}" y="{y + 17}" text-anchor="end">{escape(label)}</text>',
            f'<rect class="{kind}" x="{begin:.1f}" y="{y + 5}" width="{end - begin:.1f}" height="16" rx="2"/>',
            f'<line class="range" x1="{x(min(values)):.1f}" x2="{x(max(values)):.1f}" y1="{y + 13}" y2="{y + 13}"/>',
            f'<text x="{_WIDTH - 16}" y="{y + 17}" text-anchor="end">{_short(middle)}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2f}"


def _plain_ticks(high: float) -> list[float]:
    size = 10 ** math.floor(math.log10(high))
    step = next(size * part for part in (0.2, 0.5, 1, 2) if high / (size * part) <= 6)
    return [step * number for number in range(math.ceil(high / step) + 1)]


def _doubled_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log2(min(low, 0.9))), math.ceil(math.log2(max(high, 1.1)))
    return [2.0**power for power in range(first, last + 1)]
