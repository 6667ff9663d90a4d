"""Three plots of a constructed data set, as PNG: length ratios, words before and after, and how the rows ended.

Drawn with matplotlib's own objects rather than pyplot, so that nothing global is touched and no display is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpo_integrations.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BEFORE, AFTER, FAINT, INK = "#8da2b5", "#1f6f8b", "#e4e8ec", "#333f48"
MOST_REASONS = 12
RATIO_BINS = [0.0, *(step / 4 - 0.125 for step in range(1, 33))]
"""Bounds of the length ratio's bars, a quarter apart: a prompt that stays as long as it was is in the middle of one."""
WORD_BINS = [1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256, 362, 512]
"""Bounds in words, each about 1.4 times the one before."""


def draw(folder: Path, summary: Mapping[str, Any], statistics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Write the plots into a folder.

    Args:
        folder: Where the PNG files go.
        summary: What `summary.json` holds.
        statistics: What `statistics.summarize` returns.

    Returns:
        (title, file name) of each; none of something there are no figures of.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    histograms = statistics["histograms"]
    drawn: list[tuple[str, str]] = []
    if statistics["rows"]:
        title = "Length: words after by words before"
        figure, axes = _canvas(title)
        _bars(axes, binned(histograms["length_ratio"], RATIO_BINS), AFTER)
        axes.set_xticks(range(0, len(RATIO_BINS), 4), [*map(str, range(8)), "8+"])
        axes.set_xlabel("factor by which a prompt grows")
        drawn.append(_save(figure, folder, title, "length_ratio.png"))
        title = "Words of a prompt, before and after"
        figure, axes = _canvas(title)
        before, after = (binned(histograms["words"][of], WORD_BINS) for of in ("prompt", "optimized_prompt"))
        _bars(axes, before, BEFORE, label="prompt", place=-1)
        _bars(axes, after, AFTER, label="optimized prompt", place=1)
        axes.set_xticks([index - 0.5 for index in range(len(WORD_BINS))], [*map(str, WORD_BINS[:-1]), "512+"])
        axes.set_xlabel("words")
        axes.legend(frameon=False, labelcolor=INK)
        drawn.append(_save(figure, folder, title, "words.png"))
    outcomes = [("kept", int(summary.get("kept") or 0)), *_most(summary.get("reasons") or {})]
    if any(count for _, count in outcomes):
        title = "How the rows ended"
        figure, axes = _canvas(title, height=1.2 + 0.34 * len(outcomes), grid="x")
        names, counts = [name.replace("_", " ") for name, _ in outcomes], [count for _, count in outcomes]
        drawn_bars = axes.barh(names, counts, color=[AFTER] + [BEFORE] * (len(outcomes) - 1), height=0.66)
        axes.bar_label(drawn_bars, labels=[f"{count:,}" for count in counts], padding=4, color=INK, fontsize=9)
        axes.invert_yaxis()
        axes.margins(x=0.1)
        axes.set_xlabel("rows")
        drawn.append(_save(figure, folder, title, "outcomes.png"))
    return drawn


def binned(histogram: Sequence[tuple[float, int]], bounds: Sequence[float]) -> list[int]:
    """Count values by bin, from each bound up to below the next; the last bin takes all above, the first all below.

    Example:
        >>> binned([(0.5, 1), (1, 2), (7, 3)], [0, 1, 2])
        [1, 2, 3]
    """
    counts = [0] * len(bounds)
    for value, count in histogram:
        counts[max(0, sum(bound <= value for bound in bounds) - 1)] += count
    return counts


def _most(reasons: Mapping[str, int]) -> list[tuple[str, int]]:
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    if len(ordered) <= MOST_REASONS:
        return ordered
    rest = sum(count for _, count in ordered[MOST_REASONS - 1 :])
    return [*ordered[: MOST_REASONS - 1], ("other reasons", rest)]


def _canvas(title: str, *, height: float = 3.6, grid: str = "y") -> tuple[Figure, Axes]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", extra="train") from error
    figure = Figure(figsize=(7.2, height), layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.set_title(title, loc="left", color=INK, fontsize=12, fontweight="bold", pad=10)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(BEFORE)
    axes.tick_params(colors=INK, length=0, labelsize=9)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.set_axisbelow(True)
    axes.grid(axis="x" if grid == "x" else "y", color=FAINT)
    return figure, axes


def _bars(axes: Axes, counts: Sequence[int], colour: str, *, label: str | None = None, place: int = 0) -> None:
    """Draw bars of one width, whatever their bounds; two series stand side by side with `place` -1 and 1."""
    width = 0.43 if place else 0.86
    axes.bar([index + place * width / 2 for index in range(len(counts))], counts, width, color=colour, label=label)
    axes.margins(x=0.02)
    axes.set_ylabel("rows")


def _save(figure: Figure, folder: Path, title: str, name: str) -> tuple[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / name, dpi=144, metadata={"Software": None})
    return title, name
