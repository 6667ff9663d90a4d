"""The scores of several optimizers on several sets, side by side: as text, as tables, as JSON.

Nothing is measured here (see `score.py`), and nothing is left out: what was not there to measure is a dash, and a
remark says where nothing was added or prompts failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bpo_integrations.result import OptimizedPrompt
from bpo_train.evaluation.records import TestPrompt
from bpo_train.evaluation.score import Score, score_results
from bpo_train.evaluation.subject import Similarity, tfidf_similarity

if TYPE_CHECKING:
    from rich.table import Table

ALL = "all"
"""The name of all sets together."""

NONE = "-"
"""Stands where there was nothing to measure."""

KEPT_BY = ("policy", "model", "guard")
"""What keeps prompts; the other way is that nothing can follow a prompt, or a policy of the user's own."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One optimizer's scores.

    Args:
        model: The spec that names it.
        mode: `augment` or `rewrite`.
        scores: By set; with several sets also of all of them together, as `all`.
        rewriter: The rewriter's id.
    """

    model: str
    mode: str
    scores: Mapping[str, Score]
    rewriter: str = ""

    @property
    def name(self) -> str:
        """Model and mode."""
        return f"{self.model}, {self.mode}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        sets = {name: score.to_dict() for name, score in self.scores.items()}
        return {"model": self.model, "mode": self.mode, "rewriter": self.rewriter, "sets": sets}


def by_set(
    results: Sequence[OptimizedPrompt | Exception],
    prompts: Sequence[TestPrompt],
    *,
    similarity: Similarity = tfidf_similarity,
) -> dict[str, Score]:
    """Score each set, and all together where there are several; in all, additions meet rivals of every set.

    Raises:
        ConfigurationError: As `score_results` does.
        MissingExtraError: As `score_results` does.
    """
    names = list(dict.fromkeys(prompt.set for prompt in prompts))
    if len(names) < 2 or len(results) != len(prompts):
        return {names[0] if names else ALL: score_results(results, prompts, similarity=similarity)}
    pairs = list(zip(results, prompts, strict=True))
    scores = {}
    for name in names:
        own = [pair for pair in pairs if pair[1].set == name]
        scores[name] = score_results([each for each, _ in own], [each for _, each in own], similarity=similarity)
    scores[ALL] = score_results(results, prompts, similarity=similarity)
    return scores


def figures(score: Score) -> dict[str, str]:
    """Return each measure's name and its figure, for people.

    Example:
        >>> from bpo_integrations.result import OptimizedPrompt
        >>> kept = OptimizedPrompt("Hi", "Hi", "kept", "policy: small talk")
        >>> figures(score_results([kept], [TestPrompt("1", "Hi")]))["changed"]
        '0 (0%)'
    """
    by = dict(score.kept_by)
    kept = " / ".join(str(by.pop(name, 0)) for name in KEPT_BY)
    violated, ratio, words = score.violated_share, score.length_ratio, score.words_added
    subject, contexts, languages, chrf = score.subject, score.contexts, score.languages, score.chrf
    chance = 1 / (subject.rivals + 1) if subject is not None else 0.0
    copied = NONE
    if contexts is not None:
        copied = f"{contexts.verbatim:.0%} of {contexts.prompts}"
        if contexts.similarity is not None:
            copied += f"; else {contexts.similarity:.0%} of it"
    return {
        "prompts": str(score.prompts),
        "changed": f"{score.changed} ({score.changed_share:.0%})",
        f"kept by {'/'.join(KEPT_BY)}/other": f"{kept} / {sum(by.values())}",
        "failed": str(score.failed),
        "raw violations": NONE if violated is None else f"{violated:.1%} of {score.candidates}",
        "words after / before": NONE if ratio is None else f"{ratio.median:.1f} (mean {ratio.mean:.1f})",
        "words added": NONE if words is None else f"{words.median:.0f} (mean {words.mean:.1f})",
        "alone in five words": _percent(score.alone),
        "distinct-4": _percent(score.distinct_4),
        "nearer to its prompt": NONE if subject is None else f"{subject.auc:.0%} (chance 50%)",
        "nearest to its prompt": NONE if subject is None else f"{subject.first:.0%} (chance {chance:.0%})",
        "context word for word": copied,
        "language kept": NONE if languages is None else f"{languages.kept:.1%} of {languages.prompts}",
        "chrF to gold": NONE if chrf is None else f"{chrf.optimized:.1f} (was {chrf.as_is:.1f})",
        "seconds a prompt": f"{score.seconds:.2f}",
    }


def _percent(share: float | None) -> str:
    return NONE if share is None else f"{share:.0%}"


def grid(columns: Mapping[str, Score]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of a table with a column for each score; a measure that none has is left out."""
    found = [figures(score) for score in columns.values()]
    rows = [[name, *(each[name] for each in found)] for name in found[0]]
    return ["", *columns], [row for row in rows if any(cell not in (NONE, "0") for cell in row[1:])]


def tables(scored: Sequence[Scored]) -> list[Table]:
    """Return rich tables: of one optimizer with a column a set, of several one table a set with a column each."""
    from rich.table import Table

    if len(scored) == 1:
        pages: list[tuple[str, Mapping[str, Score]]] = [(scored[0].name, scored[0].scores)]
    else:
        names = list(scored[0].scores)
        pages = [(name, {each.name: each.scores[name] for each in scored}) for name in names]
    made = []
    for title, columns in pages:
        head, rows = grid(columns)
        table = Table(title=title, title_justify="left")
        for place, name in enumerate(head):
            table.add_column(name, justify="right" if place else "left")
        for row in rows:
            table.add_row(*row)
        made.append(table)
    return made


def remarks(scored: Sequence[Scored]) -> list[str]:
    """Return what the reader should not overlook, in a line each."""
    found = []
    for each in scored:
        for name, score in each.scores.items():
            if not score.changed:
                found.append(f"{each.name}: nothing was added to the {score.prompts} prompts of {name}.")
            if score.failed:
                errors = ", ".join(f"{error} {count}" for error, count in score.failures.items())
                found.append(f"{each.name}: {score.failed} of {score.prompts} prompts of {name} failed ({errors}).")
    return found
