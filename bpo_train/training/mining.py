"""Preference pairs for a rewriter, mined without a person: what was written for a prompt against what the model draws.

The chosen text is the training row's own. A text that the model drew for the same prompt is rejected where it

- breaks a guard (`guard: NAME`), the guards being those that judge it in use;
- is off the subject (`off the subject`): nearer to other prompts than to its own;
- is generic (`generic`): close to the centroid of what was written for all prompts;
- adds something where nothing is to be added (`not wanted`);
- or is ranked lower by a judge (`judge`), where one is given.

Promises: pure; the same draws give the same pairs. The two measures of likeness have no threshold of their own: the
rows' own texts say what is usual, and a draw is rejected only where it is worse than nine in ten of them and than its
own row's. What they do not do: by default they compare letters and words (TF-IDF), which misses a synonym, and is
noisy where a prompt is short.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from bpo_integrations.errors import ConfigurationError
from bpo_integrations.judging import Judge
from bpo_integrations.result import Candidate, Mode
from bpo_train.evaluation.subject import Similarity, tfidf_similarity
from bpo_train.training.likeness import genericness, strangeness, word_similarity

GUARD, SUBJECT, GENERIC, NOT_WANTED, JUDGE = "guard", "off the subject", "generic", "not wanted", "judge"
REASONS = (GUARD, NOT_WANTED, SUBJECT, GENERIC, JUDGE)
"""In the order in which they are looked for; a draw has the first that applies."""

Score = Callable[[Sequence[str], Sequence[str]], Sequence[float | None]]
"""Prompts and texts to the worth of each text for its prompt: higher is better, None where nobody can tell."""


@dataclass(frozen=True, slots=True)
class Draw:
    """A training row, and what the model drew for its prompt."""

    id: str
    prompt: str
    chosen: str
    candidates: tuple[Candidate, ...]
    licence: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """One preference, in TRL's form; `why` says why the rejected text was rejected."""

    id: str
    prompt: str
    chosen: str
    rejected: str
    why: str
    licence: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Rules:
    """What counts as a reason.

    Args:
        usual: Share of the rows' own texts that are not generic, and not off the subject; the rest shows where the two
            begin. 1 turns both rules off.
        per_prompt: Most pairs of a prompt.
        margin: The judge rejects a draw that scores lower than the chosen text by more than this.

    Raises:
        ConfigurationError: A value is out of its range.
    """

    usual: float = 0.9
    per_prompt: int = 2
    margin: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.usual <= 1 or self.per_prompt < 1 or self.margin < 0:
            msg = f"usual={self.usual}, per_prompt={self.per_prompt} or margin={self.margin} is out of its range."
            raise ConfigurationError(msg, hint="usual lies in (0, 1], per_prompt is 1 or more, margin 0 or more.")


@dataclass(frozen=True, slots=True)
class Mined:
    """The pairs, and what became of the draws.

    Args:
        pairs: In the order of the draws.
        statistics: `rows`, `rows_with_a_pair`, `draws`, `pairs`; `rejected` (draws by reason, guards by name), `kept`
            (draws with nothing against them), `repeated` (the same text again, or the chosen one) and
            `chosen_rejected` (rows left out because their own text breaks a guard).
    """

    pairs: list[Pair]
    statistics: dict[str, Any] = field(default_factory=dict)


def mine(
    draws: Sequence[Draw],
    mode: Mode,
    rules: Rules | None = None,
    *,
    near: Similarity | None = None,
    score: Score | None = None,
) -> Mined:
    """Turn draws into pairs.

    Args:
        draws: Rows that may be trained on, with the model's draws.
        mode: `augment` or `rewrite`; chooses the guards.
        rules: What counts as a reason.
        near: Sentence embeddings for both measures (`embedding_similarity`); None takes TF-IDF: of runs of letters for
            the subject, of words for the centroid.
        score: A judge; None judges nothing.

    Raises:
        MissingExtraError: scikit-learn is not installed.

    Example:
        >>> draw = Draw("1", "Name a prime.", "Say why it is one.", (Candidate("Please provide the text first."),))
        >>> [pair.why for pair in mine([draw], "augment", Rules(usual=1)).pairs]
        ['guard: asks back']
    """
    rules = rules or Rules()
    judge = Judge(mode, None, None, ())
    sound = [draw for draw in draws if not _violation(judge, draw.prompt, Candidate(draw.chosen), mode)]
    texts = [list(_fresh(draw)) for draw in sound]
    reasons = [
        [
            f"{GUARD}: {guard}"
            if (guard := _violation(judge, draw.prompt, candidate, mode))
            else ("" if draw.chosen else NOT_WANTED)
            for candidate in found
        ]
        for draw, found in zip(sound, texts, strict=True)
    ]
    for row, place, reason in _unlike(sound, texts, _undecided(reasons), rules.usual, near):
        reasons[row][place] = reasons[row][place] or reason
    for row, place, reason in _ranked_lower(sound, texts, _undecided(reasons), rules.margin, score):
        reasons[row][place] = reason
    pairs = [pair for row in zip(sound, texts, reasons, strict=True) for pair in _pairs(*row, rules.per_prompt)]
    found = Counter(reason for row in reasons for reason in row)
    statistics = {
        "rows": len(draws),
        "chosen_rejected": len(draws) - len(sound),
        "rows_with_a_pair": len({pair.id for pair in pairs}),
        "draws": sum(len(draw.candidates) for draw in draws),
        "repeated": sum(len(draw.candidates) for draw in sound) - sum(map(len, texts)),
        "kept": found.pop("", 0),
        "rejected": dict(found.most_common()),
        "pairs": len(pairs),
        "pairs_by_reason": dict(Counter(pair.why for pair in pairs).most_common()),
    }
    return Mined(pairs, statistics)


Places = Sequence[tuple[int, int]]
Found = tuple[int, int, str]


def _undecided(reasons: Sequence[Sequence[str]]) -> Places:
    return [(row, place) for row, found in enumerate(reasons) for place, why in enumerate(found) if not why]


def _violation(judge: Judge, prompt: str, candidate: Candidate, mode: Mode) -> str:
    found = judge.violation(prompt, candidate, mode, softens=False)
    return found.guard if found else ""


def _fresh(draw: Draw) -> Iterator[Candidate]:
    """Yield the candidates that are neither empty, nor the chosen text, nor there already."""
    seen = {"", _plain(draw.chosen)}
    for candidate in draw.candidates:
        plain = _plain(candidate.text)
        if plain not in seen:
            seen.add(plain)
            yield candidate


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _pairs(draw: Draw, candidates: Sequence[Candidate], reasons: Sequence[str], most: int) -> list[Pair]:
    """Return a row's pairs: of each reason one first, so that the frequent reasons do not crowd out the others."""
    ranks: Counter[str] = Counter()
    ordered: list[tuple[int, int, Pair]] = []
    for candidate, why in zip(candidates, reasons, strict=True):
        if why:
            pair = Pair(draw.id, draw.prompt, draw.chosen, candidate.text, why, draw.licence, draw.source)
            kind = why.partition(":")[0]
            ordered.append((ranks[kind], REASONS.index(kind), pair))
            ranks[kind] += 1
    ordered.sort(key=lambda entry: entry[:2])
    return [pair for _, _, pair in ordered[:most]]


def _unlike(
    draws: Sequence[Draw], texts: Sequence[Sequence[Candidate]], places: Places, usual: float, near: Similarity | None
) -> Iterator[Found]:
    """Yield the draws that are off the subject, then those that are generic."""
    chosen = [row for row, draw in enumerate(draws) if draw.chosen]  # the others' draws have been decided
    if usual == 1 or not places or len(chosen) < 2:
        return
    prompts, gold = [draw.prompt for draw in draws], [draws[row].chosen for row in chosen]
    drawn, owners = [texts[row][place].text for row, place in places], [row for row, _ in places]
    at = {row: place for place, row in enumerate(chosen)}
    letters, words = near or tfidf_similarity, near or word_similarity
    for reason, of_gold, of_drawn in (
        (SUBJECT, strangeness(prompts, gold, chosen, letters), strangeness(prompts, drawn, owners, letters)),
        (GENERIC, *genericness(gold, drawn, [at[row] for row in owners], words)),
    ):
        limit = sorted(of_gold)[min(len(of_gold) - 1, int(usual * len(of_gold)))]
        own = dict(zip(chosen, of_gold, strict=True))
        for (row, place), value in zip(places, of_drawn, strict=True):
            if value > max(limit, own.get(row, limit)):
                yield row, place, reason


def _ranked_lower(
    draws: Sequence[Draw], texts: Sequence[Sequence[Candidate]], places: Places, margin: float, score: Score | None
) -> Iterator[Found]:
    """Yield the draws that the judge ranks below their row's own text; all are scored in one call."""
    if score is None or not places:
        return
    rows = sorted({row for row, _ in places})
    asked = [(draws[row].prompt, draws[row].chosen) for row in rows]
    asked += [(draws[row].prompt, texts[row][place].text) for row, place in places]
    values = list(score([prompt for prompt, _ in asked], [text for _, text in asked]))
    own = dict(zip(rows, values, strict=False))
    for (row, place), value in zip(places, values[len(rows) :], strict=True):
        best = own[row]
        if value is not None and best is not None and value < best - margin:
            yield row, place, JUDGE
