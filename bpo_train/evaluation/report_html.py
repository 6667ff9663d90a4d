"""A report as one page that needs nothing else: styles and plots stand in it, and it loads nothing.

Promises: whatever users and models wrote is text on the page, never markup, and the page forbids itself scripts and
resources; the same figures as `report.json`. The page's form stands in `report.html.j2`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Final

from bpo_integrations.errors import MissingExtraError
from bpo_train.evaluation import figures
from bpo_train.evaluation.conclusions import interval, points
from bpo_train.evaluation.report_text import PARTS, about, judged_by, measured, named, parts_of, percent, subsets

TEMPLATE: Final = "report.html.j2"

LONGEST: Final = 6_000
"""Characters of an answer that are shown; report.json has all."""

STANDINGS: Final = {
    "better": "better",
    "worse": "worse",
    "open": "no difference shown",
    "weak": "judge too weak to conclude",
}
ADDED: Final = {
    "explanation": "explanation: asks for reasons or steps",
    "elaboration": "elaboration: says more of what is wanted",
    "hint": "hint: names points or cases to think of",
    "safety": "safety: asks for harmless content",
    "rewording": "rewording: hardly a word added",
    "nothing": "nothing: left as it was",
}
"""What the parts by addition are called on the page."""


def to_html(report: Mapping[str, Any]) -> str:
    """Return the report as a page.

    Args:
        report: What `report_data.compute` returns.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise MissingExtraError("jinja2", extra="train") from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(points=points, interval=interval, percent=percent, clip=_clip)
    source = (files("bpo_train.evaluation") / TEMPLATE).read_text(encoding="utf-8")
    drawn = {
        name: _marked(getattr(figures, name), Markup)
        for name in ("bar", "whiskers", "axis", "small_whisker", "gain_by_length")
    }
    return environment.from_string(source).render(
        report=report,
        about=about(report),
        limit=figures.scale(report["results"]),
        length_limit=figures.scale(
            part for result in report["results"] for part in result["by"]["words"] if part["n"] >= figures.FEW
        ),
        parts=PARTS,
        parts_of=parts_of,
        added=ADDED,
        standings=STANDINGS,
        named=named,
        judged_by=judged_by,
        subsets=subsets,
        measured=measured,
        tone=figures.tone,
        **drawn,
    )


def _marked(draw: Any, markup: Any) -> Any:
    """Return a function whose SVG the template takes as it is; `figures` escapes what comes from files."""

    def drawn(*arguments: Any) -> Any:
        return markup(draw(*arguments))

    return drawn


def _clip(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} […]"
