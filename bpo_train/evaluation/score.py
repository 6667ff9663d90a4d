"""What an optimizer does to prompts, in figures that need neither a judge nor an answering LLM.

Promises: pure functions of results; every prompt is counted once, as changed, kept or failed; a figure that nothing
stands behind is None, never a division by zero. What it does not say: whether any LLM's answers become better. These
figures only tell a broken optimizer from a sound one.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rapidfuzz.distance import LCSseq

from bpo_integrations.errors import ConfigurationError, MissingExtraError
from bpo_integrations.language import detect
from bpo_integrations.result import Candidate, OptimizedPrompt
from bpo_train.data.statistics import Distinct
from bpo_train.data.words import words
from bpo_train.evaluation.records import TestPrompt
from bpo_train.evaluation.subject import Similarity, Subject, on_subject, tfidf_similarity

HEAD = 5
"""First words by which additions are told apart."""

_WITH_DETAIL = ("policy", "model", "joint")
"""Reasons of the pipeline whose second part names a rule; what a guard found would name the user's words."""


@dataclass(frozen=True, slots=True)
class Average:
    """The middle of some values."""

    mean: float
    median: float


@dataclass(frozen=True, slots=True)
class Contexts:
    """What became of the contexts of changed prompts.

    Args:
        prompts: Changed prompts that have a context.
        verbatim: Share of those whose context stands in the result, character for character.
        similarity: Of the others: mean share of the context's words that are left, in their order; None without others.
    """

    prompts: int
    verbatim: float
    similarity: float | None


@dataclass(frozen=True, slots=True)
class Languages:
    """Whether changed prompts stayed in their language.

    Args:
        prompts: Changed prompts whose language can be told before and after.
        kept: Share of those in which it is the same.
        changes: How often which became which, as `de > en`.
    """

    prompts: int
    kept: float
    changes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Chrf:
    """Nearness to gold rewrites, by sacrebleu's chrF (0 to 100).

    Args:
        prompts: How many have a gold rewrite.
        optimized: Of the optimized prompts.
        as_is: Of the prompts as they are, which is the figure to beat.
    """

    prompts: int
    optimized: float
    as_is: float


@dataclass(frozen=True, slots=True)
class Score:
    """The figures of one optimizer on one set of prompts.

    Args:
        prompts: How many there are.
        changed: How many left the optimizer changed.
        kept: How many were kept, by reason: `policy: fixed output`, `model: nothing to add`, `guard names`.
        failures: How many failed, by the error's name; their prompts go on as they are.
        candidates: Texts that the model wrote, before any guard, empty ones left out.
        violations: How many of those a guard rejected, by guard.
        length_ratio: Words after by words before, of changed prompts.
        words_added: Words of the addition; of a rewrite, the words that are new in it.
        alone: Share of additions whose first five words no other addition begins with. Falls as sets grow.
        distinct_4: Unique runs of four words among all of the additions. Falls as sets grow.
        subject: Whether additions are about their own prompts.
        contexts: What became of contexts; None without any.
        languages: Whether the language was kept; None where none can be told.
        chrf: Nearness to gold; None without gold.
        seconds: Wall-clock seconds a prompt.
    """

    prompts: int
    changed: int
    kept: Mapping[str, int]
    failures: Mapping[str, int]
    candidates: int
    violations: Mapping[str, int]
    length_ratio: Average | None
    words_added: Average | None
    alone: float | None
    distinct_4: float | None
    subject: Subject | None
    contexts: Contexts | None
    languages: Languages | None
    chrf: Chrf | None
    seconds: float

    @property
    def failed(self) -> int:
        """How many prompts failed."""
        return sum(self.failures.values())

    @property
    def changed_share(self) -> float:
        """Changed prompts by all, failed ones included."""
        return self.changed / self.prompts

    @property
    def violated_share(self) -> float | None:
        """Rejected candidates by all; None where the model wrote nothing."""
        return sum(self.violations.values()) / self.candidates if self.candidates else None

    @property
    def kept_by(self) -> dict[str, int]:
        """How many prompts were kept by what: `policy`, `model`, `guard`, ..."""
        parts = Counter[str]()
        for reason, count in self.kept.items():
            parts[(re.findall(r"\w+", reason) or ["unknown"])[0]] += count
        return dict(parts.most_common())

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON: the fields, and the shares that follow from them."""
        violated = self.violated_share
        return {
            **asdict(self),
            "failed": self.failed,
            "changed_share": round(self.changed_share, 4),
            "violated_share": None if violated is None else round(violated, 4),
            "kept_by": self.kept_by,
        }


def score_results(
    results: Sequence[OptimizedPrompt | Exception],
    prompts: Sequence[TestPrompt],
    *,
    similarity: Similarity = tfidf_similarity,
) -> Score:
    """Measure what an optimizer made of prompts.

    Args:
        results: Its results, an error in place of each that it has none for (as `PromptOptimizer.try_batch` gives).
        prompts: The prompts, in the same order.
        similarity: How near an addition is to a prompt, for `Score.subject`.

    Raises:
        ConfigurationError: There are no prompts, or not as many results.
        MissingExtraError: scikit-learn is not installed; or sacrebleu, where there is gold.

    Example:
        >>> prompts = [TestPrompt("1", "How is tea made?"), TestPrompt("2", "Say yes.")]
        >>> made = OptimizedPrompt(prompts[0].prompt, "How is tea made? Name the steps.", "augmented", "by the model")
        >>> kept = OptimizedPrompt(prompts[1].prompt, prompts[1].prompt, "kept", "policy: fixed output")
        >>> score = score_results([made, kept], prompts)
        >>> score.changed, score.kept, score.words_added
        (1, {'policy: fixed output': 1}, Average(mean=3.0, median=3.0))
    """
    if not prompts:
        msg = "There are no prompts to score."
        raise ConfigurationError(msg, hint="Give a set with at least one prompt.")
    if len(results) != len(prompts):
        msg = f"There are {len(results)} results for {len(prompts)} prompts."
        raise ConfigurationError(msg, hint="Give one result a prompt, in the same order.")
    pairs = list(zip(results, prompts, strict=True))
    made = [(result, prompt) for result, prompt in pairs if isinstance(result, OptimizedPrompt)]
    sound = [(result, prompt) for result, prompt in made if failure(result) is None]
    changed = [(result, prompt) for result, prompt in sound if result.changed]
    raw = [candidate for result, _ in made for candidate in result.candidates if candidate.text]
    additions = [added(result) for result, _ in changed]
    before = [len(words(result.original)) for result, _ in changed]
    after = [len(words(result.text)) for result, _ in changed]
    return Score(
        prompts=len(prompts),
        changed=len(changed),
        kept=_ranked(kept_because(result) for result, _ in sound if not result.changed),
        failures=_ranked(name for result in results if (name := failure(result)) is not None),
        candidates=len(raw),
        violations=dict(raw_violations(raw).most_common()),
        length_ratio=average([new / old for new, old in zip(after, before, strict=True) if old]),
        words_added=average([len(words(text)) for text in additions]),
        alone=round(distinct_share(additions), 4) if additions else None,
        distinct_4=round(distinct_4(additions), 4) if additions else None,
        subject=on_subject([result.original for result, _ in changed], additions, similarity=similarity),
        contexts=contexts_kept([(prompt.context, result.text) for result, prompt in changed if prompt.context]),
        languages=languages_kept([(result.original, result.text) for result, _ in changed]),
        chrf=nearness_to_gold([(result, prompt.gold) for result, prompt in sound if prompt.gold]),
        seconds=round(sum(result.seconds for result, _ in made) / len(prompts), 4),
    )


def added(result: OptimizedPrompt) -> str:
    """Return what a result adds to its prompt: the addition, or the new words of a rewrite.

    Example:
        >>> added(OptimizedPrompt("Write on tea.", "Write a short poem on tea.", "rewritten", ""))
        'a short poem'
    """
    if result.addition or not result.changed:
        return result.addition
    return " ".join(" ".join(part.text for part in result.diff() if part.op == "added").split())


def kept_because(result: OptimizedPrompt) -> str:
    """Return the kind of reason, without the user's words that a guard quotes.

    Example:
        >>> kept_because(OptimizedPrompt("", "", "kept", "guard numbers: 1985"))
        'guard numbers'
    """
    reason = result.reason.split(":")
    return ":".join(reason[:2]) if reason[0] in _WITH_DETAIL else reason[0]


def failure(result: OptimizedPrompt | Exception) -> str | None:
    """Return the name of the error that a prompt failed with, or None.

    Example:
        >>> failure(OptimizedPrompt("Hi", "Hi", "kept", "failed: EngineTimeoutError: no answer in 60 s"))
        'EngineTimeoutError'
    """
    if isinstance(result, Exception):
        return type(result.__cause__ or result).__name__
    if result.changed or not result.reason.startswith("failed:"):
        return None
    return result.reason.split(":")[1].strip() or "unknown"


def raw_violations(candidates: Iterable[Candidate]) -> Counter[str]:
    """Count what guards found in a model's texts, by guard; candidates without text do not count."""
    return Counter(each.violation.guard for each in candidates if each.text and each.violation is not None)


def distinct_share(texts: Sequence[str], head: int = HEAD) -> float:
    """Return the share of texts whose first words no other text begins with; 0.0 without texts.

    Example:
        >>> distinct_share(["Name three causes.", "Name three causes!", "Show the steps."])
        0.3333333333333333
    """
    heads = [tuple(words(text)[:head]) for text in texts]
    counts = Counter(heads)
    return sum(counts[each] == 1 for each in heads) / max(1, len(heads))


def distinct_4(texts: Iterable[str]) -> float:
    """Return the unique runs of four words among all (see `Distinct`); 1.0 without any."""
    found = Distinct()
    for text in texts:
        found.add(words(text))
    return found.share


def average(values: Sequence[float]) -> Average | None:
    """Return mean and median; None without values."""
    if not values:
        return None
    return Average(round(statistics.fmean(values), 2), round(float(statistics.median(values)), 2))


def contexts_kept(pairs: Sequence[tuple[str, str]]) -> Contexts | None:
    """Measure how faithfully contexts were copied.

    Args:
        pairs: (context, the text it should stand in).

    Example:
        >>> contexts_kept([("Tea is hot.", "Sum up: Tea is hot."), ("Tea is very hot.", "Sum up: tea is hot.")])
        Contexts(prompts=2, verbatim=0.5, similarity=0.75)
    """
    if not pairs:
        return None
    lost = [(words(context), words(text)) for context, text in pairs if context.strip() not in text]
    left = [LCSseq.similarity(context, text) / len(context) if context else 0.0 for context, text in lost]
    verbatim = round(1 - len(lost) / len(pairs), 4)
    return Contexts(len(pairs), verbatim, round(statistics.fmean(left), 4) if left else None)


def languages_kept(pairs: Iterable[tuple[str, str]]) -> Languages | None:
    """Measure whether texts stayed in their language.

    Args:
        pairs: (before, after).

    Example:
        >>> languages_kept([("Wie geht es dir heute?", "How are you today, my friend?")])
        Languages(prompts=1, kept=0.0, changes={'de > en': 1})
    """
    told = [(old, new) for before, after in pairs if (old := detect(before)) and (new := detect(after))]
    if not told:
        return None
    changes = _ranked(f"{old} > {new}" for old, new in told if old != new)
    return Languages(len(told), round(1 - sum(changes.values()) / len(told), 4), changes)


def nearness_to_gold(pairs: Sequence[tuple[OptimizedPrompt, str]]) -> Chrf | None:
    """Return chrF of results, and of the prompts as they were, against gold rewrites; None without gold.

    Raises:
        MissingExtraError: sacrebleu is not installed.
    """
    if not pairs:
        return None
    try:
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise MissingExtraError("sacrebleu", extra="train") from error

    gold = [[gold for _, gold in pairs]]
    optimized = CHRF().corpus_score([result.text for result, _ in pairs], gold).score
    as_is = CHRF().corpus_score([result.original for result, _ in pairs], gold).score
    return Chrf(len(pairs), round(optimized, 2), round(as_is, 2))


def _ranked(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())
