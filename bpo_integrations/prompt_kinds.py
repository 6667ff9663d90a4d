"""Which kind of task a prompt is, by its words: what a gate's rules and the profiles go by.

Lexical and English, written from what the words mean; a prompt in another language is `other`. Pure, linear in the
prompt's length, defined for every str. It knows kinds, not quality: whether a kind gains is for a measurement to say.
"""

from __future__ import annotations

import re
from typing import Final, Literal, get_args

from bpo_integrations.guards.request import asks_anywhere
from bpo_integrations.recognize import HEAD, TAIL, is_word_for_word

PromptKind = Literal[
    "what_if", "roleplay", "text", "code_trap", "code", "estimate", "math", "writing", "advice", "knowledge", "other"
]
"""`what_if`: a world that is not so. `roleplay`: the LLM is to be somebody. `text`: work on a text that is given.
`code_trap`: code whose cases are easily overlooked. `code`: other code. `estimate`: a quantity that nobody counted.
`math`: reckoning with given figures, proofs. `writing`: a text to be written. `advice`: what one should do.
`knowledge`: what is so. `other`: none of these."""

KINDS: Final[tuple[PromptKind, ...]] = get_args(PromptKind)
"""All kinds."""


def _any(*alternatives: str) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{alternative})" for alternative in alternatives), re.IGNORECASE)


_START = r"\A\W*(?:(?:please|hi|hello|hey|ok|okay|so|and|now|well)\b[,.!:]*\s+)*"

_ROLEPLAY = _any(
    r"\b(?:pretend|imagine|act|behave|speak|talk|respond|answer)\b[^.?!\n]{0,20}\b(?:you(?:'re| are| were)"
    r"|to be|as (?:if"
    r" you|an?\b|the\b)|like an?\b)",
    r"\b(?:role-?play|in character|stay in (?:your )?role|in the voice of|from the (?:perspective"
    r"|point of view) of)\b",
    r"\bif you were an?\b",
    rf"{_START}as an? [^.?!\n]{{1,60}}?, (?:how|what|describe|tell|explain|write|introduce|would|share|give)\b",
    rf"{_START}you are an? [^.?!\n]{{1,80}}[.!,] (?:describe|tell|how|what|share"
    rf"|talk) (?:[^.?!\n]{{0,30}}\b)?your?\b",
    r"\bhow would you (?:introduce yourself|describe (?:yourself|your \w+))\b",
)
_WHAT_IF = _any(
    rf"{_START}(?:what|how about) if\b(?! (?:i|my|we|our)\b)",  # "What if I forget my password?" asks for advice
    r"\bwhat (?:would|could|might) (?:have )?(?:happen(?:ed)?|change[d]?|be different|the world|life|history"
    r"|society)\b"
    r"[^.?!\n]{0,80}\bif\b",
    r"\bhow (?:would|could|might) [^.?!\n]{1,80}\b(?:be|look|have been|have turned out|differ)\b[^.?!\n]{0,40}\bif\b",
    r"\bif [^.?!\n]{1,80}\b(?:had (?:not |never )?\w+|hadn't|never existed|did(?:n't| not) exist|disappeared"
    r"|vanished)"
    r"\b[^.?!\n]{0,80},? (?:what|how|would|where)\b",
    r"\b(?:suppose|imagine|assume) (?:that )?[^.?!\n]{1,80}\b(?:had (?:not|never)|never existed|disappeared"
    r"|vanished)\b",
    r"\b(?:imagine|describe|picture) a world (?:where|in which|without)\b|\b(?:counterfactual|alternate history)\b",
)
_QUANTITY = r"\bhow (?:many|much|long|far|often|fast|big|large|heavy|tall|old|high|deep)\b"
_ESTIMATE = _any(
    r"\b(?:guesstimate|ballpark|fermi (?:problem|question|estimat\w+)|rough (?:figure|guess|number|estimate)"
    r"|back[- ]of[- ]the[- ]envelope)\b",
    r"\bestimate (?:how|the|its|their|my|our|an?)\b[^.?!\n]{0,40}\b(?:costs?|numbers?|amount|time|size"
    r"|population|weight"
    r"|mass|volume|energy|power|prices?|budget|revenue|age|many|much|long|far)\b",
    rf"(?:approximately|roughly|about|around|on average),? {_QUANTITY}"
    rf"|{_QUANTITY}[^.?!\n]{{0,80}}\b(?:approximately|roughly|on average|in total|altogether)\b",
    rf"{_QUANTITY}[^.?!\n]{{0,80}}\b(?:average|typical|an? ordinary)\b[^.?!\n]{{0,40}}\b(?:in|during|over|per"
    rf"|each|every"
    r"|take|need|cost|use)\b",
    rf"{_QUANTITY}[^.?!\n]{{0,60}}\b(?:in the (?:world|universe|sky|ocean|sea)|on (?:the )?earth|worldwide|globally"
    r"|around the world|in (?:a|one|your) (?:lifetime|grain|drop|minute|second|human \w+)|(?:each|every|per|a)"
    r" (?:day|year|hour|minute|second)|daily|annually|yearly|throughout history|in history|ever (?:written|made|built"
    r"|lived|recorded|existed|sold)|since the (?:beginning|dawn|birth)|in all (?:the|of)|fit (?:in|into|inside)|fall"
    r" during|have (?:ever )?(?:been|lived))\b",
    rf"{_QUANTITY}[^.?!\n]{{0,60}}\b(?:would|does|will|do) (?:it|you|we|one) (?:take|need|cost)\b[^.?!\n]{{0,60}}\bto"
    r" (?:lift|fill|cover|build|move|count|walk|drive|reach|replace|travel|power|feed|paint|empty|circle)\b",
)
_NUMBER = re.compile(r"(?<![\w.])\$?\d[\d,]*(?:\.\d+)?")
_CODE_THING = (
    r"(?:functions?|methods?|programs?|scripts?|code|snippets?|class(?:es)?|quer(?:y|ies)|regex(?:es)?|regexp"
    r"|regular expressions?|algorithms?|data structures?|api|apis|endpoints?|macros?|shaders?|parsers?|unit tests?"
    r"|stored procedures?|dockerfile|makefile|web ?scraper|crawler|decorator|binary search|linked list|hash ?map|trie"
    r"|queue|stack)"
)
_LANGUAGE = (
    r"(?:python|java|javascript|typescript|c\+\+|c#|golang|rust|kotlin|swift|php|ruby|perl|scala|haskell|matlab|bash"
    r"|powershell|shell script|sql|mysql|postgres(?:ql)?|html|css|react|vue|angular|node\.?js|django|flask"
    r"|pandas|numpy"
    r"|pytorch|tensorflow|swiftui|unity|verilog|vhdl|assembly|vba|excel formula|leetcode|solidity|terraform"
    r"|kubernetes)"
)
_CODE = _any(
    rf"\b(?:write|implement|create|develop|build|make|give|show|provide|generate|design|draft|code|fix|debug"
    rf"|optimi[sz]e"
    rf"|refactor|improve|complete|review|convert|port|test|add"
    rf"|find)\b[^.?!\n]{{0,60}}\b{_CODE_THING}\b(?! of (?:conduct"
    r"|ethics|honor|law)|s? for (?:an?|the|my) (?:\w+ )?(?:video|podcast|film|movie|play|show|episode|commercial))",
    rf"\b{_LANGUAGE}(?![\w+#])[^.?!\n]{{0,60}}\b(?:{_CODE_THING}|to (?:take|read|print|find|check|count|sort"
    rf"|parse)|that"
    r" (?:reads|takes|prints|finds|returns|checks))\b",
    rf"\b(?:write|implement|create|develop|build|make|code|draft|plot)\b[^.?!\n]{{0,60}}\b(?:in|with"
    rf"|using) {_LANGUAGE}(?![\w+#])",
    r"\b(?:stack ?trace|traceback|segfault|segmentation fault|null ?pointer\w*|compil(?:e|er) error|syntax error)\b",
)
_CODE_BLOCK = re.compile(
    r"```|^[ \t]*(?:def |class |import |#include|public |function |SELECT |const |let )", re.MULTILINE
)
_TRAP = _any(
    # Input that is not what one thinks of: text, files, numbers at the edge.
    r"\b(?:validat\w+|sanitiz\w+|pars(?:e|es|er|ing)|regex\w*|regular expressions?|e-?mail address(?:es)?|urls?|csv"
    r"|unicode|utf-?8|encod\w+|escap\w+|user input|text file|large files?|line by line|tokeniz\w+)\b",
    r"\b(?:overflow|float\w*|rounding|currency|money|prices?|division|modulo|big ?int\w*|factorial|prime\w*|fibonacci"
    r"|permutations?|combinations?|median|percentage)\b",
    # Time, order, and what happens at once.
    r"\b(?:time ?zones?|dates?|timestamps?|leap years?|daylight saving|schedul\w+|cron|birthday|age)\b",
    r"\b(?:concurren\w+|parallel\w*|threads?|multi-?thread\w*|async\w*|race conditions?|locks?|deadlock\w*"
    r"|mutex|atomic"
    r"|transactions?|cache|caching|rate[- ]limit\w*|retr(?:y|ies)|queue|producer)\b",
    # Algorithms with boundaries.
    r"\b(?:binary search|off[- ]by[- ]one|recurs\w+|dynamic programming|subsequence|subarray|substring|palindrome\w*"
    r"|sliding window|linked list|cycle|graph|shortest path|dijkstra|topological|backtracking|n-?queens|sudoku"
    r"|knapsack"
    r"|(?:merge|quick|heap) ?sort|sort(?:ed|ing)? (?:an? )?arrays?|in[- ]place|duplicates?"
    r"|without (?:using )?(?:any )?"
    r"(?:extra|additional|built-?in)|two stacks|lru|hash (?:table|map)|shuffle|random\w*)\b",
    # Where a mistake costs.
    r"\b(?:passwords?|authenticat\w+|encrypt\w+|hash(?:ing|ed)?|sql injection|security|secure|permissions?|payments?"
    r"|delet\w+|migrat\w+|memory leak|garbage collect\w*|pointers?|malloc|edge cases?|corner cases?|bugs?|debug)\b",
)
_MATH = _any(
    rf"{_START}(?:solve|prove|simplify|factor(?:i[sz]e)?|differentiate|integrate|calculate|compute|evaluate)\b",
    r"\b(?:equation|integral|derivative|polynomial|matrix|eigenvalue\w*|theorem|proof|prove that"
    r"|probability that|f\(x\)"
    r"|\\(?:frac|sum|int|sqrt|begin)|line segment|perimeter|square root|triangle|remainder)",
    r"\bwhat(?:'s| is) -?\d[\d.,]* ?(?:[-+*/x^%]|times|plus|minus|divided by|percent of)",
)
_WORD_PROBLEM = _any(
    _QUANTITY, r"\bwhat (?:is|was|will be) the (?:total|sum|average|probability|length|area|cost|price)\b"
)
_GIVEN = re.compile(
    r"\b(?:you are|you will be|you're) given\b(?![^.?!\n]{0,60}\b(?:array|integer|string|code|function)s?\b)", re.I
)
_TEXT_TASK = _any(
    r"\b(?:summari[sz]e|paraphrase|rephrase|reword|proofread|translate|extract|classify|categori[sz]e|edit"
    r"|rewrite|shorten"
    r"|condense|rearrange|re-arrange|punctuate|annotate|label|correct)\b[^.?!\n]{0,60}\b(?:this|these|that"
    r"|following|given"
    r"|below|above|texts?|sentences?|passage|paragraph|article|emails?|reviews?|story|statements?|words?|poem"
    r"|list|from|tone)"
    r"\b",
    r"\b(?:based on|according to|given|using|from|in) (?:this|the|these) (?:following |above |below |provided "
    r"|given )?"
    r"(?:text|passage|paragraph|article|excerpt|document|context|reference|dialogue|conversation|description"
    r"|information)\b",
    r"\bfor the given\b|\bthe (?:given|following) (?:text|sentence|passage|email"
    r"|tweet|review|dialogue|conversation|article|paragraph|words?)\b",
)
_FORM = (
    r"(?:e-?mails?|letters?|stor(?:y|ies)|poems?|essays?|articles?|posts?|blog|scripts?|speech(?:es)?|songs?"
    r"|lyrics|reviews?"
    r"|headlines?|titles?|slogans?|captions?|tweets?|ads?|advertisements?|jokes?|dialog(?:ue)?s?|scenes?|plots?"
    r"|novel|play"
    r"|chapters?|paragraphs?|introductions?|descriptions?|bios?|biography|resume|cover letter|cv|press release"
    r"|newsletter"
    r"|proposal|report|haikus?|limericks?|sonnets?|raps?|monologue|screenplay|fanfic\w*|outline|template|statement"
    r"|announcement|message|invitation|toast|tagline|names?|summary|agenda|syllabus|ticket)"
)
_WRITING = _any(
    rf"\b(?:write|draft|compose|create|generate|craft|come up with|make(?: up)?|produce|develop|invent|prepare"
    rf"|design|pen"
    rf"|structure|continue|finish|help me write)\b[^.?!\n]{{0,60}}\b{_FORM}\b",
    rf"{_START}(?:write|draft|compose)\b",
)
_ADVICE = _any(
    r"\bhow (?:can|could|do|should|would|might|to|often should) ?(?:i|we|you|one|people"
    r"|someone)?\b(?! (?:explain|describe))",
    r"\b(?:should i|can i|what should|what can i|tips|advice|recommend\w*|suggest\w*|best (?:way|ways"
    r"|practices?|time|place"
    r"|thing)|ways to|steps to|strateg(?:y|ies)|how to|help me|ideas? for|plan (?:for|a|my)|itinerary|recipe"
    r"|brainstorm)\b",
)
_KNOWLEDGE = _any(
    r"\?",
    rf"{_START}(?:explain|describe|define|discuss|compare|contrast|outline|list|name|tell (?:me|us)|what|why"
    rf"|who|whom|whose|when"
    r"|where|which|how|is|are|was|were|do|does|did|can|could|has|have|differences?|analy[sz]e|identify|give)\b",
)


def kind_of(prompt: str) -> PromptKind:
    """Return the kind of a prompt; where several fit, the one that says most.

    Example:
        >>> kind_of("How many piano tuners are there in the world?")
        'estimate'
        >>> kind_of("Implement a binary search in Python.")
        'code_trap'
        >>> kind_of("Write a poem about the sea.")
        'writing'
    """
    text = prompt if len(prompt) <= HEAD + TAIL else f"{prompt[:HEAD]}\n{prompt[-TAIL:]}"
    text = text.replace("’", "'")
    if _WHAT_IF.match(text):  # "What if you were ..." is no role
        return "what_if"
    if _ROLEPLAY.search(text):
        return "roleplay"
    if _GIVEN.search(text):
        return "text"
    if _CODE.search(text) or (_CODE_BLOCK.search(text) and asks_anywhere(text)):
        return "code_trap" if _TRAP.search(text) else "code"
    if _WHAT_IF.search(text):
        return "what_if"
    figures = len(_NUMBER.findall(text))
    if _ESTIMATE.search(text) and figures < 3:  # with more it is a sum
        return "estimate"
    if _MATH.search(text) or (figures >= 2 and _WORD_PROBLEM.search(text)):
        return "math"
    if _TEXT_TASK.search(text) or is_word_for_word(prompt):
        return "text"
    if _WRITING.search(text):
        return "writing"
    if _ADVICE.search(text):
        return "advice"
    return "knowledge" if _KNOWLEDGE.search(text) else "other"
