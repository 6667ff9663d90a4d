"""What must not speak against the prompt: detail where length is limited, and the opposite of what was asked."""

from __future__ import annotations

import re
from functools import lru_cache

from bpo_integrations.guards.base import guard
from bpo_integrations.guards.request import IMPERATIVES
from bpo_integrations.guards.text import REQUEST_WORDS, STOPWORDS, flat, number_values, sentences, stem, words

_I = re.IGNORECASE
_NUMBER = (
    r"(?:\d{1,3}|one|two|three|four|five|six|seven|eight|nine|ten|fifteen|twenty|thirty|forty|fifty"
    r"|a hundred|a single|a)"
)
_UNIT = r"(?:words?|sentences?|lines?|characters?|paragraphs?|bullet points?|tokens?|letters?)"

HARD_LIMIT = re.compile(
    rf"\b(?:(?:in|to|with|only|just|as|into|within|using|use|give|write|say) (?:only |just |exactly |about "
    rf"|around )?(?:one|a single"
    rf"|1|two|2)[ -](?:short )?"
    rf"(?:word|sentence|line|liner|phrase)s?"
    rf"|(?:under|below|within|at most|up to|no more than|not more than|less than|fewer than|not exceed(?:ing)?"
    rf"|maximum(?: of)?|max(?:imum)?"
    rf"|no longer than|limit(?:ed)? (?:it |your answer |the answer |yourself )?to|shorter than) {_NUMBER}[ -]?{_UNIT}"
    rf"|{_NUMBER} {_UNIT} (?:or (?:less|fewer|under)|max(?:imum)?|at most|tops)"
    r"|(?:just|only) (?:the |your )?(?:answer|number|name|word|result|letter|code|final answer)s?"
    r"|(?:answer|reply|respond|say)(?: with)?(?: only| just)? (?:yes or no|with yes|true or false)|one-liner"
    r"|tl;?dr|in a nutshell"
    r"|nothing (?:else|more)|no (?:explanations?|details?|elaboration)|without (?:any )?(?:explanations?"
    r"|explaining|details?|elaborat\w+))\b",
    _I,
)
"""The prompt bounds its answer to a size that leaves no room."""

_BARE = re.compile(
    r"\b(?:in|with|only|just) (?:only |just |exactly )?(?:one|a single) word\b|\byes or no\b|\b(?:just"
    r"|only) the answer\b",
    _I,
)
SOFT_LIMIT = re.compile(
    r"\b(?:brief|briefly|concise|concisely|succinct|succinctly|tersely|terse"
    r"|(?:keep|make) (?:it|this|your answer|the answer|your response|the response|them|each) (?:very |really "
    r"|nice and )?(?:short|brief|small|simple)"
    r"|(?:short|quick) (?:and (?:simple|sweet|concise) )?(?:answer|summary|explanation|reply|response|description"
    r"|overview|paragraph|definition|note|message)s?"
    r"|(?:be|keep) short|in short|don't (?:elaborate|go into detail))\b",
    _I,
)
"""The prompt asks for a short answer."""

_AT_LENGTH = re.compile(
    r"\b(?:(?:in|into|with) (?:great |more |much |full |further |rich |considerable |extensive |close "
    r"|fine )?(?:detail"
    r"|depth)(?!-)|in-depth|detailed|comprehensive(?:ly)?|thorough(?:ly)?|exhaustive(?:ly)?"
    r"|elaborate(?:ly)?|extensive(?:ly)?|lengthy|at length|long(?:er)? (?:answer|explanation|essay|response|text"
    r"|list|description|discussion|version)|as long as"
    r"|(?:several|multiple|many|numerous|various|three|four|five|six|ten|\d+) (?:\w+ )?(?:paragraphs|pages"
    r"|sections|chapters)|(?:full|complete|whole) (?:essay|article|report|background|history|account|discussion)"
    r"|(?:at least|minimum(?: of)?|more than|over|about|around) (?:\d{3,}|\d,\d{3}|[a-z]+ hundred|a thousand"
    r"|a hundred) words|\d{3,}[- ]words?|(?:five|four|three|two|six)[- ]hundred[- ]words?"
    r"|as (?:much|many) (?:\w+ )?(?:detail|information|examples|details)|every (?:detail|aspect|angle|facet"
    r"|nuance)|all (?:the )?(?:details|aspects|angles|nuances)|deep dive|long-form|full-length"
    r"|expand on|go deep\w*|extended|wide-ranging|in full|leave nothing out|do not (?:be brief|hold back)"
    r"|don't (?:be brief|hold back)|full detail|plenty of detail|lots of detail|(?:rich|ample|extra|more) details?)\b",
    _I,
)
_MORE = re.compile(
    r"\b(?:explain(?:ing)?|step[- ]by[- ]step|with (?:\w+ )?examples|(?:give|include|provide|add|cover|list"
    r"|discuss|describe|compare|show|mention|suggest)\b[^.]{3,200}?(?:,| and )[^.]{3,200}"
    r"|background|the reasons? (?:for|why|behind)|several|multiple|(?:a |with )(?:list|table) of|pros and cons"
    r"|then (?:explain|describe|discuss|list|give))\b",
    _I,
)

_PAIRS = (
    (r"informal(?:ly)?|casual(?:ly)?|conversational|chatty", r"formal(?:ly)?"),
    (r"formal(?:ly)?|professional(?:ly)?|academic", r"informal(?:ly)?|casual(?:ly)?|slang|chatty|jokey|goofy"),
    (
        r"serious(?:ly)?|solemn|somber|sombre|respectful",
        r"humorous(?:ly)?|funny|jok(?:e|es|ing)|comical?|silly|slapstick|puns?",
    ),
    (
        r"funny|humorous(?:ly)?|comedic|hilarious|silly",
        r"serious(?:ly)?|solemn|somber|sombre|humorless|without (?:any )?humou?r",
    ),
    (
        r"simple (?:words|terms|language|english)|layman\S*|(?:like|as if) i(?:'m| am) (?:five|5|a child)"
        r"|for (?:kids|children|a child|beginners|dummies)|eli5",
        r"technical (?:terms|language|jargon|detail|vocabulary)|jargon|advanced (?:terms|terminology|vocabulary)"
        r"|graduate[- ]level|highly technical|for experts|expert[- ]level",
    ),
    (
        r"happy ending|uplifting|optimistic|cheerful",
        r"tragic|sad ending|bleak|pessimistic|gloomy|hopeless|unhappy ending",
    ),
    (r"sad|tragic|bleak|gloomy", r"happy ending|cheerful|upbeat|uplifting"),
    (r"first[- ]person", r"third[- ]person|second[- ]person"),
    (r"third[- ]person", r"first[- ]person|second[- ]person"),
    (r"past tense", r"present tense|future tense"),
    (r"present tense", r"past tense|future tense"),
    (
        r"in (?:prose|paragraphs?|paragraph form|full sentences)|no (?:lists?|bullets?|bullet points)"
        r"|without (?:using )?(?:lists?|bullets?|bullet points)",
        r"bullet(?:ed)?(?: points?| list)?s?|numbered list|as a list|in a table|in a list",
    ),
    (
        r"(?:as|in|using) (?:a )?(?:bullet points?|bulleted list|bullet list|bullets)",
        r"in prose|no (?:lists?|bullets?|bullet points)|without (?:lists?|bullets?|bullet points)"
        r"|continuous (?:prose|paragraphs?)|in paragraphs?|flowing paragraphs?",
    ),
    (
        r"positive(?:ly)?",
        r"(?:only |purely |entirely |strictly )?negative (?:tone|review|light|manner|points|aspects)"
        r"|harsh(?:ly)? critici\w+",
    ),
    (r"recursive(?:ly)?|recursion", r"(?:iterative(?:ly)?|non-recursive|without recursion)"),
    (r"iterative(?:ly)?", r"recursive(?:ly)?|recursion"),
    (r"beginners?|novices?", r"for (?:experts|professionals|advanced)|expert[- ]level"),
    (r"vegan|vegetarian", r"(?:chicken|beef|pork|bacon|ham|fish|salmon|tuna|shrimp|lamb|turkey|meat)"),
    (r"vegan|dairy[- ]free", r"(?:cheese|butter|cream|milk|eggs?|honey|yogh?urt)"),
    (
        r"short|brief",
        r"(?:long(?:er)?|lengthy|extended|full-length) (?:story|poem|essay|text|version|article|answer|piece"
        r"|speech|email|letter|paragraph)",
    ),
    (
        r"long|lengthy|detailed|comprehensive|in detail",
        r"(?:keep it|make it|be) (?:very )?(?:short|brief)|in (?:one|a single) (?:sentence|word|line)"
        r"|as briefly as possible|one[- ]sentence",
    ),
    (
        r"for and against|pros and cons|both sides|advantages and disadvantages|balanced|unbiased|objective(?:ly)?",
        r"only (?:the )?(?:pros|advantages|benefits|positives?|one side|cons|disadvantages|drawbacks|negatives?)"
        r"|one-sided|biased",
    ),
    (r"rhym(?:e|es|ing)", r"(?:without|no|avoid|not) rhym\w+|free verse|unrhymed"),
    (
        r"free verse|(?:without|no|not) rhym\w+|unrhymed",
        r"rhym(?:e|es|ed|ing) (?:couplets|scheme|verses?|lines)|(?:make (?:it|them)|must|should) rhyme"
        r"|rhyme (?:every|each|the)",
    ),
)
_OPPOSITES = tuple((re.compile(rf"\b(?:{asked})\b"), re.compile(rf"\b(?:{against})\b")) for asked, against in _PAIRS)
_NEGATIVE = frozenset(
    "not don't without no never avoid avoiding except exclude excluding nor cannot can't skip omit instead rather"
    " than doesn't won't shouldn't isn't free unless".split()
)
_DENY = frozenset(
    """not don't without no never avoid avoiding except exclude excluding nor doesn't won't shouldn't mustn't skip
    omit""".split()
)
_TRIVIAL = frozenset(
    "matter doubt longer idea sense access problem know sure able understand want work find seem real way".split()
)
_CLAUSE_END = re.compile(r"[.!?,;:()\n]+(?:\s|$)|[()\n]")
_OPENS_AN_ORDER = frozenset("please do don't never no without but and it you".split())
_YOU_MUST = frozenset(
    {("you", "must"), ("you", "should"), ("you", "can"), ("you", "may"), ("it", "must"), ("it", "should")}
)
_ALWAYS_DENY = frozenset("without avoid avoiding excluding".split())
_ENDS_DENIAL = frozenset("but and so because then if when that which just only to unless instead for".split())
_WEAKENS = frozenset("every all just only exactly necessarily always too much more less".split())
DENIED_REACH = 4
"""Words behind a denial that it reaches."""


@guard("length limit")
def respects_length_limits(original: str, candidate: str) -> str | None:
    """Where the prompt limits its answer's length, nothing new asks for detail or length."""
    return _against_limits(original, candidate, strict=True)


@guard("length limit")
def adds_within_length_limits(original: str, addition: str) -> str | None:
    """As for rewrites; behind "in one sentence" or "under 50 words" no further thing to cover is asked for either."""
    return _against_limits(original, addition, strict=True)


@guard("contradiction")
def contradicts_nothing(original: str, addition: str) -> str | None:
    """Nothing asks for what the prompt excludes, or for the opposite of a manner it names."""
    prompt, added = original.lower(), addition.lower()
    for asked, against in _OPPOSITES:
        clash = against.search(added)
        wish = asked.search(prompt) if clash else None
        if clash and wish and flat(clash.group()) not in flat(original) and not _is_denied(clash.start(), added):
            return f"{clash.group()}, though the prompt says {wish.group()}"
    excluded = _excluded(original)
    if not excluded:
        return None
    for sentence in sentences(addition):
        line = words(sentence)
        for i, word in enumerate(line):
            root = stem(word)
            if root in excluded and not any(w in _NEGATIVE for w in line[max(0, i - 6) : i]):
                return f"{word}, which the prompt excludes"
    return None


def _against_limits(original: str, candidate: str, *, strict: bool) -> str | None:
    hard = HARD_LIMIT.search(original)
    limit = hard or SOFT_LIMIT.search(original)
    if limit is None:
        return None
    known = flat(original)
    roomy = hard is not None and any(len(value) > 2 for value in number_values(hard.group()))
    patterns = (_AT_LENGTH, _MORE) if strict and hard and not roomy else (_AT_LENGTH,)
    for pattern in patterns:
        for match in pattern.finditer(candidate):
            if flat(match.group()) not in known and not _is_denied(match.start(), candidate):
                return f"{match.group()}, though the prompt says {limit.group()}"
    return None


def _is_denied(at: int, text: str) -> bool:
    """Whether the words right before a place deny what stands there."""
    return any(word in _NEGATIVE for word in words(text[max(0, at - 40) : at])[-4:])


@lru_cache(maxsize=32)
def _excluded(original: str) -> frozenset[str]:
    """Stems of what the prompt says must not be there ("do not use loops"), unless it is asked for elsewhere too."""
    found: set[str] = set()
    rest: list[str] = []
    for clause in _CLAUSE_END.split(original):
        line = words(clause)
        instructs = bool(line) and (line[0] in IMPERATIVES or line[0] in _OPENS_AN_ORDER or line[:2] in _YOU_MUST)
        reach = 0
        for i, word in enumerate(line):
            if word in _DENY and (instructs or word in _ALWAYS_DENY):
                reach = 0 if line[i + 1 : i + 2] and line[i + 1] in _WEAKENS else DENIED_REACH
            elif reach and word in _ENDS_DENIAL:
                reach = 0
            elif reach and len(found) < 200:
                reach -= 1
                acts = line[i - 1] in _DENY and word in IMPERATIVES and i + 1 < len(line)
                if not acts and not _is_weightless(word):
                    found.add(stem(word))
            else:
                rest.append(word)
    return frozenset(found - {stem(word) for word in rest})


def _is_weightless(word: str) -> bool:
    return (
        word in STOPWORDS
        or word in REQUEST_WORDS
        or word in _TRIVIAL
        or len(word) < 3
        or word.isdigit()
        or word.endswith("ly")
    )
