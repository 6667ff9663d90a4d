"""The plots of a report's page, as SVG that stands in the page itself.

Promises: places are percent of the width and sizes are pixels, so that text stays readable on a narrow screen; colours
are the page's classes, so that dark and light are its matter; every plot tells in words what it shows. Pure; whatever
comes from a file is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any, Final

from bpo_train.evaluation.breakdown import PROMPT_BINS, PROMPT_PARTS
from bpo_train.evaluation.conclusions import interval, points

Figures = Mapping[str, Any]

BAR, ROW, PLOT = 30, 46, 190
"""Heights in pixels: of a bar, of a row of whiskers, of the plot over prompt length."""

NARROWEST: Final = 9.0
"""Percent of the width below which a bar has no number in it."""

FEW: Final = 10
"""Prompts below which a part is drawn faint, and does not widen the axis."""

_STEPS: Final = (5, 10, 20, 25, 50)


def bar(figures: Figures) -> str:
    """Return win, tie and loss as one stacked bar.

    Args:
        figures: With `win`, `tie` and `loss` in percent.
    """
    told = ", ".join(f"{name} {figures[name]:.1f}%" for name in ("win", "tie", "loss"))
    parts, start = [], 0.0
    for name in ("win", "tie", "loss"):
        width = figures[name]
        parts.append(_tag("rect", f"fill-{name}", x=_percent(start), y=0, width=_percent(width), height=BAR))
        if width >= NARROWEST:
            middle = _percent(start + width / 2)
            parts.append(_text(f"{width:.0f}%", f"on-{name} middle", x=middle, y=BAR / 2 + 4))
        start += width
    return _svg("bar", BAR, told, parts)


def scale(results: Iterable[Figures]) -> int:
    """Return how far the axis of whiskers goes to either side, in points: all intervals fit.

    Example:
        >>> scale([{"delta_ci95": [-12, 31], "length_controlled": None}])
        40
    """
    bounds = [10.0]
    for result in results:
        for figures in (result, result.get("length_controlled")):
            if figures:
                bounds += [abs(bound) for bound in figures["delta_ci95"]]
    widest = max(bounds)
    step = next((step for step in _STEPS if widest <= 4 * step), _STEPS[-1])
    return min(100, step * math.ceil(widest / step))


def whiskers(result: Figures, limit: int) -> str:
    """Return an arm's delta with its interval, and below it the same at equal answer length.

    Args:
        result: The figures of one arm and judge.
        limit: What the axis goes to, as `scale` says.
    """
    equal = result["length_controlled"]
    told = f"delta {points(result['delta'])}, 95% interval {interval(result['delta_ci95'])}"
    parts = [*_grid(limit, ROW), _whisker(result, limit, ROW / 2 - (9 if equal else 0), "dot")]
    if equal:
        told += f"; at equal answer length {points(equal['delta'])}, {interval(equal['delta_ci95'])}"
        parts.append(_whisker(equal, limit, ROW / 2 + 9, "ring"))
    return _svg("whiskers", ROW, told, parts)


def axis(limit: int) -> str:
    """Return the numbers below whiskers."""
    texts = []
    for value in _ticks(limit):
        place = "start" if value == -limit else "end" if value == limit else "middle"
        texts.append(_text(_tick(value), f"tick {place}", x=_place(value, limit), y=13))
    return _svg("axis", 18, "", texts)


def small_whisker(part: Figures) -> str:
    """Return the whiskers of a table's row, from -100 to 100."""
    told = f"{points(part['delta'])}, {interval(part['delta_ci95'])}"
    tone = "" if part["shown"] else " faint"
    line = _tag("line", "zero", x1="50%", x2="50%", y1=0, y2=18)
    return _svg(f"small{tone}", 18, told, [line, _whisker(part, 100, 9, "dot")])


def gain_by_length(parts: Sequence[Figures], limit: int) -> str:
    """Return the gain against the prompt's length.

    Args:
        parts: The breakdown by `words`, whose labels are those of `breakdown.PROMPT_PARTS`.
        limit: What the axis goes to; what lies beyond is drawn at its end.
    """
    drawn = [_level(value, limit) for value in _ticks(limit)]
    drawn += [_text(_tick(value), "tick end", x=-8, y=_height(value, limit) + 4) for value in _ticks(limit)]
    drawn += [_text(label, "tick middle strong", x=_column(place), y=PLOT + 17) for place, label in enumerate(_short())]
    places = [PROMPT_PARTS.index(part["label"]) for part in parts]
    for (one, start), (other, end) in pairwise(zip(parts, places, strict=True)):
        heights = {"y1": _height(one["delta"], limit), "y2": _height(other["delta"], limit)}
        drawn.append(_tag("line", "path", x1=_column(start), x2=_column(end), **heights))
    for part, place in zip(parts, places, strict=True):
        x, (low, high) = _column(place), part["delta_ci95"]
        title = f"{part['label']}: {points(part['delta'])} ({interval(part['delta_ci95'])}), {part['n']} prompts"
        stem = _tag("line", "stem", x1=x, x2=x, y1=_height(low, limit), y2=_height(high, limit))
        dot = _tag("circle", "dot", cx=x, cy=_height(part["delta"], limit), r=4.5)
        faint = " faint" if part["n"] < FEW else ""
        drawn.append(f'<g class="{tone(part)}{faint}"><title>{escape(title)}</title>{stem}{dot}</g>')
        drawn.append(_text(f"n={part['n']}", "tick middle", x=x, y=PLOT + 32))
    told = "; ".join(f"{part['label']}: {points(part['delta'])}" for part in parts)
    return _svg("length", PLOT + 38, f"Gain by words of the prompt: {told}", drawn)


def tone(part: Figures) -> str:
    """Return the class of a figure: `better`, `worse`, or `open` where no difference is shown."""
    if not part["shown"]:
        return "open"
    return "better" if part["delta"] > 0 else "worse"


def _short() -> list[str]:
    inner = [f"{low}–{high - 1}" for low, high in pairwise(PROMPT_BINS)]
    return [f"<{PROMPT_BINS[0]}", *inner, f"{PROMPT_BINS[-1]}+"]


def _column(place: int) -> str:
    return _percent(100 * (place + 0.5) / len(PROMPT_PARTS))


def _tick(value: int) -> str:
    return points(value).removesuffix(".0")


def _ticks(limit: int) -> list[int]:
    step = next((step for step in _STEPS if limit <= 4 * step), _STEPS[-1])
    return list(range(-step * (limit // step), limit + 1, step))


def _grid(limit: int, height: float) -> list[str]:
    return [
        _tag("line", "grid" if value else "zero", x1=_place(value, limit), x2=_place(value, limit), y1=0, y2=height)
        for value in _ticks(limit)
    ]


def _level(value: float, limit: int) -> str:
    height = _height(value, limit)
    return _tag("line", "grid" if value else "zero", x1="0%", x2="100%", y1=height, y2=height)


def _whisker(figures: Figures, limit: int, y: float, mark: str) -> str:
    low, high = (_place(bound, limit) for bound in figures["delta_ci95"])
    parts = [_tag("line", "stem", x1=low, x2=high, y1=y, y2=y)]
    parts += [_tag("line", "stem", x1=end, x2=end, y1=y - 5, y2=y + 5) for end in (low, high)]
    parts.append(_tag("circle", mark, cx=_place(figures["delta"], limit), cy=y, r=4.5))
    return "".join(parts)


def _place(value: float, limit: int) -> str:
    return _percent(50 + 48 * max(-1.0, min(1.0, value / limit)))


def _height(value: float, limit: int) -> float:
    return round(PLOT / 2 - (PLOT / 2 - 8) * max(-1.0, min(1.0, value / limit)), 1)


def _percent(value: float) -> str:
    return f"{value:.2f}%"


def _tag(name: str, classes: str, **attributes: object) -> str:
    written = "".join(f' {key}="{escape(str(value))}"' for key, value in attributes.items())
    return f'<{name} class="{classes}"{written}/>'


def _text(text: str, classes: str, *, x: str | float, y: float) -> str:
    return f'<text class="{classes}" x="{x}" y="{y:g}">{escape(text)}</text>'


def _svg(classes: str, height: float, told: str, parts: Iterable[str]) -> str:
    label = f'role="img" aria-label="{escape(told)}"' if told else 'aria-hidden="true"'
    return f'<svg class="{classes}" width="100%" height="{height:g}" {label}>{"".join(parts)}</svg>'
