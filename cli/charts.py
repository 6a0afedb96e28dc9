"""Charts as inline SVG: bars of percent, curves, shares. Colours are those of the page's style sheet, by class.

Every text is escaped; every axis has a label.
"""

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 440, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 58
PLOT_W, PLOT_H = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
FLOOR = TOP + PLOT_H
STEPS = (1, 2, 2.5, 5, 10)


def bars(
    labels: Sequence[str], series: Sequence[tuple[str, str, Sequence[float]]], counts: Sequence[int], axis: str
) -> str:
    """Groups of bars of percent: a group a label, a bar a series (name, class, values); below each label its count."""
    slot = PLOT_W / max(1, len(labels))
    width = min(34.0, 0.76 * slot / max(1, len(series)))
    parts = [_frame("percent", [(value, str(value)) for value in range(0, 101, 20)], top=100)]
    for place, (label, count) in enumerate(zip(labels, counts, strict=True)):
        middle = LEFT + slot * (place + 0.5)
        parts.append(_text(middle, FLOOR + 15, label, "middle"))
        parts.append(_text(middle, FLOOR + 29, f"n {count:,}", "middle", "faint"))
        for number, (name, kind, values) in enumerate(series):
            height = PLOT_H * values[place] / 100
            x = middle + width * (number - len(series) / 2)
            said = f"{label}: {name} {values[place]:.1f} of {count:,}"
            parts.append(
                f'<rect class="{kind}" x="{x + 1:.1f}" y="{FLOOR - height:.1f}" width="{width - 2:.1f}" '
                f'height="{height:.1f}"><title>{escape(said)}</title></rect>'
            )
            if width >= 18:
                parts.append(_text(x + width / 2, FLOOR - height - 3, f"{values[place]:.0f}", "middle", "small"))
    parts.append(_text(LEFT + PLOT_W / 2, HEIGHT - 8, axis, "middle"))
    return _svg(parts, f"{' and '.join(name for name, _, _ in series)} in percent by {axis}")


def curve(points: Sequence[tuple[float, float]], axis: str, unit: str) -> str:
    """One line through (x, y), both from 0."""
    most_x = max((x for x, _ in points), default=1) or 1
    most_y = max((y for _, y in points), default=1) or 1
    step = _step(most_y)
    ticks = [step * number for number in range(int(most_y / step) + 2)]
    top = ticks[-1]
    parts = [_frame(unit, [(value, f"{value:g}") for value in ticks], top=top)]
    across = _step(most_x)
    for number in range(int(most_x / across) + 1):
        x = LEFT + PLOT_W * across * number / most_x
        parts.append(_text(x, FLOOR + 15, f"{across * number:g}", "middle"))
    line = " ".join(f"{LEFT + PLOT_W * x / most_x:.1f},{FLOOR - PLOT_H * y / top:.1f}" for x, y in points)
    parts.append(f'<polyline class="line" points="{line}"/>')
    parts.append(_text(LEFT + PLOT_W / 2, FLOOR + 34, axis, "middle"))
    return _svg(parts, f"{unit} by {axis}")


def shares(rows: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> str:
    """A bar a row, of full width, cut into named shares of 1."""
    height, left = 30, 60
    parts = []
    for place, (label, parted) in enumerate(rows):
        y, x = 4 + place * (height + 10), float(left)
        parts.append(_text(left - 8, y + height / 2 + 4, label, "end"))
        for number, (name, share) in enumerate(parted):
            width = (WIDTH - left - 4) * share
            said = f"{name} {share:.2f}"
            parts.append(
                f'<rect class="share{number}" x="{x:.1f}" y="{y}" width="{max(0, width - 1):.1f}" height="{height}">'
                f"<title>{escape(f'{label}: {said}')}</title></rect>"
            )
            if width > 7 * len(said):
                parts.append(_text(x + width / 2, y + height / 2 + 4, said, "middle", "inside"))
            x += width
    return _svg(parts, "weight of each bank by task", height=len(rows) * (height + 10))


def _frame(unit: str, ticks: Sequence[tuple[float, str]], top: float) -> str:
    """Grid lines with their values, and the label of the vertical axis."""
    lines = []
    for value, label in ticks:
        y = FLOOR - PLOT_H * value / top
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(_text(LEFT - 6, y + 4, label, "end", "faint"))
    middle = TOP + PLOT_H / 2
    turned = f'<text transform="translate(12 {middle:.0f}) rotate(-90)" text-anchor="middle">{escape(unit)}</text>'
    return "".join([*lines, turned])


def _step(most: float) -> float:
    """A round distance, at most five of which make up `most`."""
    size = 10.0 ** math.floor(math.log10(most / 5))
    return next(size * step for step in STEPS if most <= 5 * size * step * (1 + 1e-9))


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{named}>{escape(text)}</text>'


def _svg(parts: Sequence[str], described: str, height: int = HEIGHT) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(described)}">'
        f"{''.join(parts)}</svg>"
    )
