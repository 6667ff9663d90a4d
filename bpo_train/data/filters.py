"""What is left out before money is spent on annotation, in a stated order, every row with its reason.

The cheap checks come first. The verdict on a row depends on the rows before it, the options and the seed, never on how
the rows were read. Memory holds hashes and sketches, and 64 texts for self-BLEU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from bpo_integrations.errors import ConfigurationError
from bpo_integrations.language import detect, is_english
from bpo_train.data.novelty import NearDuplicates, SelfBleu, TestSets
from bpo_train.data.preference import Preference
from bpo_train.data.sample import Sampler
from bpo_train.data.words import words

REASONS = {
    "licence": "its licence is not among those allowed",
    "too_short": "too few words",
    "language": "in another language",
    "test_set": "shares a long run of words with a test set",
    "near_duplicate": "nearly the same as an earlier prompt",
    "self_bleu": "made of what other prompts say",
    "not_sampled": "not drawn for the sample",
}
"""Reasons for which a row is dropped, in the order in which they are looked for."""

Check: TypeAlias = Callable[[Preference], bool]


@dataclass(frozen=True, slots=True)
class Filters:
    """Which rows go to the annotator.

    Attributes:
        licences: Licences that are allowed, in any case of letters; empty allows all.
        min_words: The least number of words in the prompt with its context; 0 allows all.
        languages: ISO 639-1 codes that are allowed; empty allows all. Where the language cannot be told (code, two
            words), a prompt passes, unless English is among the allowed and its letters are not ASCII.
        decontaminate: Test sets, as files or folders, that no prompt may overlap with (13 words in a row).
        near_duplicates: MinHash similarity of three-word runs, between 0 and 1, from which on a prompt counts as
            seen; None switches it off.
        self_bleu: The highest BLEU-4 against a random 64 of the kept prompts, between 0 and 1; None switches it off.
        sample: How many rows to draw of what is left, by source and category in proportion; None takes all.
        seed: For self-BLEU's sample and for the drawing.

    Raises:
        ConfigurationError: A number is out of its range.

    Example:
        >>> rows = [Preference(str(n), text, "Yes.", "No.") for n, text in enumerate(["Hm?", "How do vaccines work?"])]
        >>> [reason for _, reason in Filters().apply(rows)]
        ['too_short', None]
    """

    licences: tuple[str, ...] = ()
    min_words: int = 3
    languages: tuple[str, ...] = ()
    decontaminate: tuple[str | Path, ...] = ()
    near_duplicates: float | None = 0.8
    self_bleu: float | None = 0.6
    sample: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("near_duplicates", self.near_duplicates), ("self_bleu", self.self_bleu)):
            if value is not None and not 0 < value <= 1:
                msg = f"{name}={value} is out of range."
                raise ConfigurationError(msg, hint="Give a number above 0 and at most 1, or None to switch it off.")
        if self.min_words < 0 or (self.sample is not None and self.sample < 1):
            msg = f"min_words={self.min_words}, sample={self.sample}: out of range."
            raise ConfigurationError(msg, hint="Give min_words from 0 on, and a sample from 1 on.")

    def apply(self, rows: Iterable[Preference]) -> Iterator[tuple[Preference, str | None]]:
        """Yield every row once, in order, with the reason for dropping it (`REASONS`), or None where it is kept.

        Args:
            rows: The rows; with `sample` they are read twice, so it must be something that can be: a list, a `Source`.

        Raises:
            ConfigurationError: A sample is asked of an iterator, or a test set cannot be read.
        """
        checks = self._checks()
        if self.sample is None:
            return ((row, _first(checks, row)) for row in rows)
        if iter(rows) is rows:
            msg = "A sample is drawn in two readings, and these rows can be read only once."
            raise ConfigurationError(msg, hint="Pass a list or a Source instead of an iterator.")
        return self._sampled(rows, checks, Sampler(self.sample, seed=self.seed))

    def _sampled(
        self, rows: Iterable[Preference], checks: dict[str, Check], sampler: Sampler
    ) -> Iterator[tuple[Preference, str | None]]:
        codes, reasons = bytearray(), [None, *REASONS]
        for number, row in enumerate(rows):
            reason = _first(checks, row)
            codes.append(reasons.index(reason))
            if reason is None:
                sampler.offer(number, id=row.id, stratum=(row.source, row.category))
        drawn = sampler.drawn()
        for number, row in enumerate(rows):
            if number >= len(codes):
                msg = "The rows changed between two readings."
                raise ConfigurationError(msg, hint="Let nothing write to the source meanwhile.")
            reason = reasons[codes[number]]
            yield row, reason or (None if number in drawn else "not_sampled")

    def _checks(self) -> dict[str, Check]:
        """Return the checks that are switched on, in the order of `REASONS`; each is new and remembers nothing yet."""
        checks: dict[str, Check] = {}
        if self.licences:
            allowed = {licence.lower() for licence in self.licences}
            checks["licence"] = lambda row: row.licence.lower() not in allowed
        if self.min_words:
            checks["too_short"] = lambda row: len(words(prompt_of(row))) < self.min_words
        if self.languages:
            checks["language"] = lambda row: not _is_allowed(prompt_of(row), self.languages)
        if self.decontaminate:
            tests = TestSets(self.decontaminate)
            checks["test_set"] = lambda row: tests.check(prompt_of(row))
        if self.near_duplicates is not None:
            seen = NearDuplicates(self.near_duplicates)
            checks["near_duplicate"] = lambda row: seen.check(prompt_of(row))
        if self.self_bleu is not None:
            others = SelfBleu(self.self_bleu, seed=self.seed)
            checks["self_bleu"] = lambda row: others.check(prompt_of(row))
        return checks


def prompt_of(row: Preference) -> str:
    """Return what the user sent: the instruction, with the context below it where there is one."""
    return row.instruction if row.context is None else f"{row.instruction}\n{row.context}"


def _first(checks: dict[str, Check], row: Preference) -> str | None:
    return next((reason for reason, fails in checks.items() if fails(row)), None)


def _is_allowed(text: str, languages: tuple[str, ...]) -> bool:
    code = detect(text)
    if code is None:
        return "en" not in languages or is_english(text)
    return code in languages
