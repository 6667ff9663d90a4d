"""How candidates are drawn from the rewriting model.

`Decoding` is plain data that every engine understands; the three named ones are the embedded model's default and the
paper's two inference settings.
"""

from __future__ import annotations

from dataclasses import dataclass

from bpo_integrations.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Decoding:
    """Sampling parameters.

    Args:
        temperature: 0 is greedy.
        top_p: Nucleus mass, in (0, 1].
        n: Candidates a prompt.
        seed: Makes sampling repeatable; None draws anew each time. Has no effect on greedy decoding.
        max_new_tokens: Upper bound on each candidate; None lets the rewriter choose it from the prompt's length.
        min_extra_tokens: When set, a candidate has at least as many tokens as the prompt, plus this many.
        banned: Strings that must not be generated.
        stop: Strings that end a candidate (and are cut off).
        cut: Strings at which a finished candidate is cut.
        empty_threshold: Augmenting models only: nothing is added where the model's probability of adding nothing is at
            least this. None takes the rewriter's own.
        repetition_penalty: Divides the logits of tokens that the candidate already holds (CTRL, Keskar et al. 2019,
            section 4.1; the prompt's tokens do not count); 1 is none. None takes the rewriter's own.

    Raises:
        ConfigurationError: A value is out of its range, or `n` > 1 with greedy decoding.

    Example:
        >>> Decoding(temperature=0.6, top_p=0.9, n=2).greedy
        False
    """

    temperature: float = 0.0
    top_p: float = 1.0
    n: int = 1
    seed: int | None = None
    max_new_tokens: int | None = None
    min_extra_tokens: int | None = None
    banned: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()
    empty_threshold: float | None = None
    repetition_penalty: float | None = None

    def __post_init__(self) -> None:
        for ok, what in (
            (self.temperature >= 0, f"temperature is {self.temperature}; it must be 0 (greedy) or more"),
            (0 < self.top_p <= 1, f"top_p is {self.top_p}; it must lie in (0, 1]"),
            (self.n >= 1, f"n is {self.n}; it must be 1 or more"),
            (
                self.max_new_tokens is None or self.max_new_tokens >= 1,
                f"max_new_tokens is {self.max_new_tokens}; it must be 1 or more",
            ),
            (
                self.empty_threshold is None or 0 <= self.empty_threshold,
                f"empty_threshold is {self.empty_threshold}; it must be 0 (never add) or more (over 1: always add)",
            ),
            (
                self.repetition_penalty is None or self.repetition_penalty >= 1,
                f"repetition_penalty is {self.repetition_penalty}; it must be 1 (none) or more",
            ),
            (
                self.n == 1 or not self.greedy,
                f"n is {self.n} with greedy decoding, which has one candidate only",
            ),
        ):
            if not ok:
                msg = f"Impossible decoding: {what}."
                raise ConfigurationError(msg, hint="Correct the Decoding, or take GREEDY, STABLE or AGGRESSIVE.")

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is taken at every step."""
        return self.temperature == 0


GREEDY = Decoding()
"""The embedded model's default: chains stay reproducible."""

STABLE = Decoding(temperature=0.6, top_p=0.9)
"""The paper's inference setting (section 3.4): one sample, which often leaves a good prompt as it is."""

AGGRESSIVE = Decoding(
    temperature=0.9,
    top_p=0.9,
    n=5,
    min_extra_tokens=5,
    banned=("[PROTECT]", "\n\n[PROTECT]", "[KEEP", "[INSTRUCTION]"),
    stop=("\n",),
    cut=("[KE", "[INS", "[PRO"),
)
"""The reference code's second setting: five samples, longer than the prompt, a newline ends each."""

DECODINGS = {"greedy": GREEDY, "stable": STABLE, "aggressive": AGGRESSIVE}


def named_decoding(decoding: Decoding | str) -> Decoding:
    """Return a decoding by name, or the one given.

    Raises:
        ConfigurationError: No decoding has that name.

    Example:
        >>> named_decoding("stable").temperature
        0.6
    """
    if isinstance(decoding, Decoding):
        return decoding
    try:
        return DECODINGS[decoding]
    except KeyError:
        msg = f"Unknown decoding {decoding!r}."
        raise ConfigurationError(msg, hint=f"Use one of {', '.join(DECODINGS)}, or a Decoding.") from None
