"""The loss curve of a run as a PNG, from the trainer's own log.

Drawn with matplotlib's own objects rather than pyplot, so that nothing global is touched and no display is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bpo_integrations.errors import MissingExtraError
from bpo_train.data.plots import AFTER, BEFORE, FAINT, INK

LOSS_PLOT = "loss.png"
SHARES = {"eval_violations": "guard violations", "eval_unchanged": "left unchanged"}


def series(history: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Return the steps at which a figure was logged, and its values; of a step that was logged twice the last.

    Example:
        >>> series([{"step": 1, "loss": 2.0}, {"step": 1, "eval_loss": 1.5}], "eval_loss")
        ([1], [1.5])
    """
    found = {int(entry["step"]): float(entry[name]) for entry in history if name in entry and "step" in entry}
    return list(found), list(found.values())


def draw_curves(folder: Path, history: Sequence[Mapping[str, Any]]) -> list[str]:
    """Draw the losses, and below them the shares of the generations where there are any.

    Args:
        folder: Where the PNG goes.
        history: `trainer.state.log_history`.

    Returns:
        The names of the files: one, or none where nothing was logged.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if not any("loss" in entry or "eval_loss" in entry for entry in history):
        return []
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", extra="train") from error
    below = any(name in entry for entry in history for name in SHARES)
    figure = Figure(figsize=(7.2, 5.4 if below else 3.6), layout="constrained", facecolor="white")
    panels = figure.subplots(1 + below, 1, sharex=True, squeeze=False, height_ratios=[2, 1][: 1 + below])[:, 0]
    panels[0].plot(*series(history, "loss"), color=BEFORE, marker=".", markersize=3, label="training")
    panels[0].plot(*series(history, "eval_loss"), color=AFTER, marker="o", markersize=4, label="held out")
    panels[0].set_title("Loss in nats per completion token", loc="left", color=INK, fontsize=12, fontweight="bold")
    if below:
        for (name, label), colour in zip(SHARES.items(), (AFTER, BEFORE), strict=True):
            panels[1].plot(*series(history, name), color=colour, marker="o", markersize=4, label=label)
        panels[1].set_ylim(-0.03, 1.03)
        panels[1].set_title("Share of the prompts", loc="left", color=INK, fontsize=10)
    for axes in panels:
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(BEFORE)
        axes.tick_params(colors=INK, length=0, labelsize=9)
        axes.grid(axis="y", color=FAINT)
        axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    panels[-1].set_xlabel("step", color=INK)
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / LOSS_PLOT, dpi=144, metadata={"Software": None})
    return [LOSS_PLOT]
