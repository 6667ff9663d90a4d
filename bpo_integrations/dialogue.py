"""Whether a turn of a conversation can be understood by itself.

English, by its words: what points back (pronouns, "another", "the second one"), and how little of its own the turn
names. The weights are a logistic regression, fitted on TREC CAsT 2020 by `tests/benchmarks/dialogue.py`;
docs/dialogue.md has the figures. What a turn points to is not looked for. Pure, bounded time, never raises on any str.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import MappingProxyType

from bpo_integrations.guards.text import STOPWORDS, stem
from bpo_integrations.language import is_english
from bpo_integrations.recognize import is_small_talk

READ = 1_000
"""Characters of a turn that are read: one that says so much before it points anywhere has named its subject."""

TURNS, SHORT_TEXT = 40, 250
"""So many texts of a history are looked at, and of these the ones of at most so many characters: what the user said
before is what a turn repeats when it stands by itself; answers hold words of every kind."""

SHORT_FOREIGN = 6
"""Words up to which a turn that is not English counts as leaning; a Chinese, Japanese or Korean sign is half a word."""

EARLY = 3
"""What points somewhere points back, not into the turn itself, where fewer specific words stand before it."""

WEIGHTS = MappingProxyType(
    {
        "pronoun": 2.54,
        "late pronoun": 0.95,
        "there": 1.62,
        "opener": 1.63,
        "pointer": 0.9,
        "definite": 0.7,
        "specific words": -1.03,
        "names": -0.62,
        "known words": -0.98,
    }
)
"""Log odds of each feature (`features`)."""

BIAS = 3.93
"""Log odds of a turn without any of them: the fit's constant, 2.36, and as much as CAsT 2020 allows before false alarms
rise: 1.57, for a recall of 0.97."""

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
_SIGN = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]")
_REMARK = re.compile(
    r"(?:(?:that|this|it)(?:'s| is| was| seems| sounds| looks)|ok|okay|oh|wow|interesting|great|cool|nice|good|thanks"
    r"|thank you|got it|i see|awesome|perfect|yes|no|sure|right|well|hmm)\b[^.!?\n]{0,60}[.!]\s+(?=\S)",
    re.IGNORECASE,
)
_OPENER = re.compile(
    r"(?:and|but|so|or|then|because|now|besides|also|(?:what|how) about|why not|what else)\b", re.IGNORECASE
)
_QUESTION_OPENER = re.compile(r"(?:(?:what|how) about|what else|why\?)", re.IGNORECASE)
_CLAUSE_END = re.compile(r"\s*(?:[.,;:?!]|\Z)")
_MATERIAL = re.compile(r"[:\n]\s*\S+\s+\S|[\"“][^\"”]{8,}[\"”]")

_PRONOUNS = frozenset(
    "it it's its itself he him his himself she her hers herself they them their theirs themselves".split()
)
_DEMONSTRATIVES = frozenset("this that that's these those".split())
_OTHER = frozenset(
    "other others another else instead too also same such similar latter former both previous either rest next".split()
)
_BEFORE_THAT = frozenset(
    """about for of with in on at by from to is was are does do did can could would will should than like and but so
    after before if because why how when what what's""".split()
)
_EXPLETIVE_AFTER = frozenset(
    """cost costs take takes took possible necessary important safe legal ok okay true better best easy easier hard
    difficult normal common worth is was""".split()
)
_EXPLETIVE_CLOSE = frozenset("to that for if".split())
_BE = frozenset("is are was were will would".split())
_AFTER_EXISTS = _BE | frozenset("any a be been some has have".split())
_OWN_COMPLEMENT = frozenset("of in for to that who which between on".split())
_EMPTY_WORDS = STOPWORDS | frozenset(
    """tell told show give explain describe know knew please interesting interested interest wow well thank ok okay oh
    many lot we're weren't i'd let think thought hear heard say says said mean meant wonder wondering curious mentioned
    mention guess suppose believe understand understood sound sounds sounded seem feel look looks looking find found
    learn agree hope surprised surprising sorry sure bit stuff quite probably definitely especially exactly else
    generally usually typically often sometimes always never ever still already though although anything something
    everything nothing someone anyone everyone people person day today now currently right go going come take taking
    keep put try trying happen happens happened talk talking discuss read question answer information info detail
    details good bad better worse nice great cool fine different specific particular certain additional
    overall""".split()
)
_RELATIONAL = frozenset(
    map(
        stem,
        """advantage affect alternative application approach area aspect background begin benefit big cause challenge
        chance change characteristic common compare component con concern consequence cost criticism danger detail
        difference difficult disadvantage drawback easy effect effective element end evidence example fact factor
        feature first function future goal happen hard help history idea impact implication importance influence
        ingredient issue kind last leader length level limit long main major mean measure member method name number
        old option origin other part people person place point popular population prevent price pro problem process
        property purpose reason recent recommend relation relationship requirement response result risk role rule
        second side sign significance similar size solution source stage start step stop story support symptom task
        term time tip treat treatment trend type typical usage value variant version work worse year""".split(),
    )
)
"""Words that name something *of* something else, or what becomes of it: alone they do not say what a turn is about."""


@dataclass(frozen=True)
class _Reading:
    """The words of a turn, with the remarks before its question left out."""

    text: str

    @classmethod
    def of(cls, turn: str) -> _Reading:
        text = turn[: 2 * READ].replace("’", "'").strip()[:READ]
        for _ in range(3):  # "Wow. That's a lot. Thanks! How do I ...": a remark closes what was, and opens nothing
            remark = _REMARK.match(text)
            text = text[remark.end() :] if remark else text
        return cls(text)

    @cached_property
    def words(self) -> list[tuple[str, int]]:
        """Each word in lower case, with the place of its first character."""
        found = []
        for match in _WORD.finditer(self.text):
            word = match.group().lower()
            found.append((word if word in ("it's", "that's", "what's") else word.removesuffix("'s"), match.start()))
        return found

    @cached_property
    def specific(self) -> list[bool]:
        """For each word, whether it says what the turn is about."""
        return [len(w) > 1 and w not in _EMPTY_WORDS and stem(w) not in _RELATIONAL for w, _ in self.words]

    @cached_property
    def has_material(self) -> bool:
        """Whether the turn brings a text, or a list, that "this" and "the following" point to."""
        return _MATERIAL.search(self.text) is not None

    def word(self, place: int) -> str:
        """Return a word; an empty one outside the turn."""
        return self.words[place][0] if 0 <= place < len(self.words) else ""

    def starts_sentence(self, place: int, marks: str = ".!?") -> bool:
        return place == 0 or self.text[: self.words[place][1]].rstrip()[-1:] in tuple(marks)

    def ends_clause(self, place: int) -> bool:
        """Whether nothing follows a word but a mark."""
        return _CLAUSE_END.match(self.text, self.words[place][1] + len(self.words[place][0])) is not None

    def walk(self) -> Iterator[tuple[int, str, int]]:
        """Yield each word's place, the word, and the number of specific words before it."""
        before = 0
        for place, (word, _) in enumerate(self.words):
            yield place, word, before
            before += self.specific[place]


def _is_expletive(turn: _Reading, place: int, word: str) -> bool:
    """Whether "it" points nowhere: "does it cost ... to", "is it possible that"."""
    following = {turn.word(place + step) for step in range(2, 7)}
    return word == "it" and turn.word(place + 1) in _EXPLETIVE_AFTER and bool(following & _EXPLETIVE_CLOSE)


def _is_place(turn: _Reading, place: int, word: str) -> bool:
    """Whether "there" is a place and not the subject of "there is"."""
    return word == "there" and turn.word(place + 1) not in _AFTER_EXISTS and turn.word(place - 1) not in _BE


def _points(turn: _Reading, place: int, word: str) -> bool:
    """Whether a word that is no pronoun takes up something: "this", "the other", "a new one"."""
    if word in ("one", "ones"):
        return place > 0 and turn.word(place + 1) != "of"
    if word in ("this", "these", "those"):
        return not turn.has_material
    if word in ("that", "that's"):  # after a noun or a verb of saying it opens a clause of its own
        last = place + 1 == len(turn.words)
        alone = last or turn.starts_sentence(place, ".!?,") or turn.word(place - 1) in _BEFORE_THAT
        return alone and not turn.has_material
    return word in _OTHER


def _is_open_definite(turn: _Reading, place: int, word: str) -> bool:
    """Whether "the" opens a noun phrase that nothing in the turn completes: "the side effects", not "the cost of"."""
    if word != "the" or turn.has_material:
        return False
    end = place + 1
    while turn.word(end) and turn.word(end) not in STOPWORDS:
        end += 1
    return end > place + 1 and turn.word(end) not in _OWN_COMPLEMENT


def _known(history: Sequence[str]) -> frozenset[str]:
    """Return the stems of the specific words in the short ones among the last `TURNS` texts: the user's, as a rule."""
    return frozenset().union(*(_stems(text) for text in history[-TURNS:] if len(text) <= SHORT_TEXT))


@lru_cache(maxsize=256)
def _stems(text: str) -> frozenset[str]:
    turn = _Reading.of(text)
    return frozenset(stem(word) for (word, _), specific in zip(turn.words, turn.specific, strict=True) if specific)


def features(turn: str, history: Sequence[str] = ()) -> dict[str, float]:
    """Return what speaks for and against a turn's leaning on earlier ones; the keys are those of `WEIGHTS`.

    Args:
        turn: The user's turn; the first `READ` characters count.
        history: Earlier turns and answers, oldest first.

    Example:
        >>> features("How much does it cost?")["pronoun"]
        1.0
    """
    reading = _Reading.of(turn)
    found = dict.fromkeys(WEIGHTS, 0.0)
    named: set[str] = set()
    earlier = 0  # specific words in the turn's earlier sentences
    for place, word, before in reading.walk():
        starts = reading.starts_sentence(place)
        if starts:
            earlier = before
            if (_OPENER if place == 0 else _QUESTION_OPENER).match(reading.text, reading.words[place][1]):
                found["opener"] = 1.0
        if reading.specific[place]:
            named.add(stem(word))
            found["names"] += not starts and reading.text[reading.words[place][1]].isupper()
        if _is_place(reading, place, word):
            found["there"] = 1.0
        if earlier:
            continue  # what points somewhere may well point to the turn's own beginning
        if word in _PRONOUNS and not _is_expletive(reading, place, word):
            found["pronoun" if before < 2 or reading.ends_clause(place) else "late pronoun"] = 1.0
        if before < EARLY or word in _DEMONSTRATIVES:
            found["pointer"] = max(found["pointer"], _points(reading, place, word))
        if before < EARLY:
            found["definite"] = max(found["definite"], _is_open_definite(reading, place, word))
    found["names"] = min(3.0, found["names"])
    found["specific words"] = min(4.0, len(named))
    if not found["pronoun"]:  # "what did the user's earlier words do to it?" leans, known words or not
        found["known words"] = min(2.0, sum(word in named for word in _known(history)))
    return found


def leans_on_history(turn: str, history: Sequence[str]) -> bool:
    """Whether `turn` needs the turns before it to be understood.

    Args:
        turn: The user's turn.
        history: Earlier turns and answers, oldest first. Which words of the turn the user said before counts; which
            of the answers' words it holds does not.

    Returns:
        False without a history or after greetings alone, and for small talk. For a turn that is not English: whether it
        is short.

    Example:
        >>> leans_on_history("and in Germany?", ["How high is the VAT in France?", "20%."])
        True
        >>> leans_on_history("How do I sort a list of dictionaries in Python?", ["How high is the VAT?", "20%."])
        False
    """
    if is_small_talk(turn) or all(is_small_talk(text) for text in history):
        return False
    if not is_english(turn):
        return _foreign_words(turn[:READ]) <= SHORT_FOREIGN
    return BIAS + sum(WEIGHTS[name] * value for name, value in features(turn, history).items()) > 0


def _foreign_words(text: str) -> float:
    signs = len(_SIGN.findall(text))
    return signs / 2 + len(_WORD.findall(_SIGN.sub(" ", text)))
