"""What kind of text a prompt is: the predicates behind the default policy's rules.

Lexical and English, written from what the words mean. Each is pure, linear in the prompt's length and defined for every
str. Instructions are looked for at the beginning and at the end of a prompt; what lies between is material.
"""

from __future__ import annotations

import re
import unicodedata

from bpo_integrations.guards.request import asks
from bpo_integrations.guards.text import sentences

HEAD, TAIL = 1_500, 600
"""Characters of a prompt's beginning and end in which instructions are looked for."""

SPECIFIC_WORDS, SPECIFIC_DEMANDS = 80, 8
"""A prompt of so many words with so many demands says enough. A high bar: a lower one keeps
more prompts that gain from an addition than prompts that do not (docs/policy.md)."""


def _any(*alternatives: str, flags: int = re.IGNORECASE) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{alternative})" for alternative in alternatives), flags)


def _instructions(prompt: str) -> str:
    """Return the beginning and the end of a prompt, with typographic apostrophes made plain."""
    ends = prompt if len(prompt) <= HEAD + TAIL else f"{prompt[:HEAD]}\n{prompt[-TAIL:]}"
    return ends.replace("’", "'")


# -- nothing to work on, or nothing that may be touched ----------------------------------------------------------------

_ROLE_MARKS = _any(
    r"<\|[A-Za-z_0-9▁｜ -]{1,40}\|>|<｜[^<>\n]{1,40}｜>",  # <|im_start|>, <|eot_id|>, <|endoftext|>, DeepSeek's
    r"\[/?(?:INST|SYS|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]|<</?SYS>>",
    r"</?s>|<(?:bos|eos|pad|unk)>|<(?:start|end)_of_turn>|\[(?:CLS|SEP|MASK|PAD)\]|\[gMASK\]|<sop>",
    r"</?(?:think|thinking|tool_call|tool_response|function_call|reasoning|assistant|system)>",
    r"(?m:^[ \t]*#{2,3} ?(?:Instruction|Response|Human|Assistant|System|User)s?:)",
)
_TRANSCRIPT = tuple(
    re.compile(rf"^[ \t]*(?:{who}):[ \t]", re.MULTILINE) for who in ("USER|User|HUMAN|Human", "ASSISTANT|Assistant|AI")
)
_INJECTION = _any(
    r"\b(?:ignore|disregard|forget|override|bypass)\b[^.?!\n]{0,30}\b(?:above|previous|prior|preceding|earlier|all"
    r"|your|the"
    r" system|these|those)\b[^.?!\n]{0,20}\b(?:instructions?|prompts?|rules|guidelines|directions|text|restrictions"
    r"|context)\b",
    r"\b(?:ignore|disregard|forget) (?:everything|all|anything|what(?:ever)?)\b[^.?!\n]{0,30}\b(?:above|before|said"
    r"|told|so far)\b",
    r"\b(?:ignore|disregard) the above\b|\b(?:reveal|print|repeat|show|output)\b[^.?!\n]{0,30}\b(?:system prompt|your"
    r" (?:initial |hidden |original )?instructions)\b",
    r"\byou are now (?:dan|in developer mode|jailbroken|unrestricted)\b|\bdo anything now\b"
    r"|\bdeveloper mode\b.{0,40}\benabled\b",
)
_KEPT_CONTROLS = frozenset("\t\n\r\u200b\u200c\u200d\ufeff\u00ad")
"""White space, the joiners of emoji and of Persian, and marks that copying leaves behind."""

_CODE_LINE = _any(
    r"[ \t]*[}\])]",
    r".{0,400}[;{}]\s*\Z",
    r"[ \t]*[\w.\[\]\"'()>*&-]{1,60} ?(?:[-+*/|:]?=|=>|:=|->|<<|>>)(?!=) ?\S",
    r"[ \t]*(?:def|class|fn|func|function|elif|try|catch|public|private|static|const|let|var|int|void|char|float"
    r"|double) ?[\w({:]",
    r"[ \t]*(?:import|from|package|using|namespace|struct|enum|#include|#define|#!|//|/\*|@\w|</?\w[^<>\n]{0,80}>)",
    r"[ \t]+(?:return|yield|raise|throw|break|continue|pass)\b",
    r"[ \t]*(?:if|for|while|else|switch|return|except|with|async|await)\b[^?]{0,200}[:)]\s*\Z",
    r"[ \t]*(?:SELECT|INSERT INTO|UPDATE|DELETE FROM|CREATE TABLE|FROM|WHERE|JOIN|GROUP BY|ORDER BY|LEFT JOIN) ",
    r"[ \t]*[\w.]{1,60}\([^?\n]{0,200}\)\s*:?\s*\Z",
    flags=0,
)
_NAMED_SLOT = re.compile(r"\{\{? ?\w[\w .-]{0,40}\}?\}")
_FENCE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)


def is_empty(prompt: str) -> bool:
    """Whether there is nothing to work on: blank, one character, or no letters."""
    return len(prompt.strip()) < 2 or not any(map(str.isalpha, prompt))


def has_role_marks(prompt: str) -> bool:
    """Whether the prompt holds a role mark or special token of any model's chat template."""
    return _ROLE_MARKS.search(prompt) is not None or all(mark.search(prompt) for mark in _TRANSCRIPT)


def is_injection(prompt: str) -> bool:
    """Whether the prompt tells a model to drop its instructions or to reveal them."""
    return _INJECTION.search(prompt.replace("’", "'")) is not None


def is_template_variable(prompt: str) -> bool:
    """Whether the prompt consists of unfilled slots, such as `{question}`."""
    return not any(map(str.isalnum, _SLOT.sub("", prompt)))


def has_control_characters(prompt: str) -> bool:
    """Control, bidirectional and other invisible characters, lone surrogates, private use."""
    if prompt.isascii() and prompt.replace("\n", " ").replace("\t", " ").replace("\r", " ").isprintable():
        return False
    return any(
        unicodedata.category(char) in ("Cc", "Cs", "Cf", "Co") and char not in _KEPT_CONTROLS
        for char in set(prompt)
        if not char.isprintable()
    )


def is_code_only(prompt: str) -> bool:
    """Whether every line is code, so that nothing asks for anything."""
    rest = _FENCE.sub("", prompt)
    if rest != prompt and not rest.strip():
        return True
    rest = _NAMED_SLOT.sub("x", rest)
    lines = [line for line in rest.splitlines() if line.strip()]
    if len(lines) > 400:
        lines = lines[:200] + lines[-200:]
    code = sum(_CODE_LINE.match(line) is not None for line in lines)
    enough = 1 if len(lines) == 1 else 0.9 * len(lines)
    return code >= enough and not any(map(_reads_as_prose, (lines[0], lines[-1])))


def _reads_as_prose(line: str) -> bool:
    if line.startswith((" ", "\t")) or (_STATEMENT.match(line) and line.rstrip().endswith((":", ";", "{", "}"))):
        return False
    return _PROSE_START.match(line) is not None


_STATEMENT = re.compile(
    r"(?:def|class|for|while|if|with|function|public|private|static|const|let|var|int|void|SELECT|INSERT|UPDATE|DELETE)\b"
)
_PROSE_START = re.compile(
    r"\s*[\"'“]?(?:[A-Z][a-z]+|[a-z]+)(?:'[a-z]+)?,? (?:[A-Za-z]+(?:'[a-z]+)?,? ){2}|.{0,200}\?\s*\Z"
    r"|\s*(?:fix|explain|why|what|how|who|write|make|convert|refactor|debug|optimi[sz]e|translate|find|solve|create"
    r"|help)\b",
    re.IGNORECASE,
)

# -- a turn of a conversation, not a prompt ----------------------------------------------------------------------------

_SMALL_TALK = re.compile(
    r"(?:(?:hi|hello|hey|hiya|howdy|yo|greetings|good (?:morning|afternoon|evening|night|day)|thanks?|thank you|thx"
    r"|ty|cheers"
    r"|bye|goodbye|see (?:you|ya)|welcome|congrat\w*|sorry|lol|haha\w*|wow|cool|nice|great|awesome|perfect|amazing"
    r"|good (?:job|bot)"
    r"|well done|much appreciated|you rock|how are you(?: doing)?(?: today)?|what's up|sup|how's it going"
    r"|nice to meet you"
    r"|are you there|who are you|there|you|so much|very much|a lot|everyone|all|again|my friend|buddy|mate"
    r"|assistant|bot|today"
    r"|have a (?:nice|good|great) (?:day|one|evening|weekend)|test|testing)\b\W*)+",
    re.IGNORECASE,
)
_BARE_TURN = re.compile(
    r"\W*(?:(?:yes|yeah|yep|yup|no|nope|nah|ok|okay|k|sure|right|correct|exactly|indeed|true|false|maybe|please|and"
    r"|but|so|now|then|well|just|do it"
    r"|go on|go ahead|continue|proceed|carry on|keep going|more|next|again|another(?: one)?|one more|stop|wait|done"
    r"|i see|got it"
    r"|why(?: not| is that)?|how(?: so| come)?|what|when|where|who|which(?: one)?|really|huh|what else|anything else"
    r"|and then|then what|like what|such as|for example|e\.g|explain(?: that| it| more| again| further)?|elaborate"
    r"|tell me more|say more|go deeper|expand"
    r"|try again|retry|redo(?: it)?|regenerate|repeat(?: that| it)?|fix (?:it|that|this)|shorter|longer|simpler"
    r"|make it (?:shorter|longer|simpler|better)"
    r"|in english|summari[sz]e(?: it| that| this)?|translate (?:it|that|this)|the (?:first|second|third|last"
    r"|other)(?: one)?"
    r"|what do you mean|i don't (?:know|understand|get it)|number \d+|option [a-d\d]|[a-d]|\d{1,4})\b\W*)+",
    re.IGNORECASE,
)
_COMMAND = _any(
    r"/[a-z][\w:-]{0,30}(?:\s.{0,200})?",  # a slash command
    r"(?:please |now |can you |go ahead and )?(?:(?:re)?run|execute|launch|start|stop|restart|kill|delete|remove"
    r"|rename|move|copy|open|close|read|cat"
    r"|edit|save|commit|push|pull|merge|revert|deploy|install|uninstall|build|lint|stage|checkout|rebase|undo)"
    r" (?:the |a |an |my |all |this |that |every |your )?(?:[\w./-]+ ){0,3}?(?:files?|folders?|director(?:y|ies)"
    r"|tests?|test suite|linter|scripts?|builds?|branch(?:es)?"
    r"|commits?|changes|servers?|app|containers?|dependenc(?:y|ies)|packages?|tabs?|terminal|pipeline|pr"
    r"|pull request|[\w./-]*\w\.[a-z]{1,5}|[\w-]*/[\w./-]+)"
    r"(?: (?:[\w./-]+ ?){1,3})?[.!]?",
    r"(?:git|npm|pip|cargo|docker|kubectl|make|cd|ls|rm|mv|cp|mkdir|cat|grep|curl|sudo|pytest|python3?|node"
    r"|apt(?:-get)?|brew) [\w./~'\"=-][^?]{0,200}",
)
_SHELL_PROSE = re.compile(
    r"\s*(?:make|cat|node|curl|python3?) (?:(?:me|a|an|the|it|this|that|my|\d+|up|sure)\b"
    r"|.*\b(?:to|that|which|with|for|of|from|in|and)\b)",
    re.IGNORECASE,
)
_SLOT = re.compile(
    r"\{\{[^{}]{0,60}\}\}|\$\{[^{}]{0,60}\}|\{[^{}]{0,60}\}|<[A-Za-z_][\w -]{0,40}>|\[[A-Z][A-Z_ ]{1,40}\]"
    r"|%\w{1,30}%|%[sd]|\$\w{1,40}|__[A-Z_]+__"
)


def is_command(prompt: str) -> bool:
    """Whether the prompt is an order to an agent or a shell: a slash command, "run the tests", "git status"."""
    text = prompt.strip()
    return len(text) <= 240 and _COMMAND.fullmatch(text) is not None and not _SHELL_PROSE.match(text)


def is_small_talk(prompt: str) -> bool:
    """Whether the prompt is a greeting, thanks or a farewell and nothing else."""
    return _is_all(_SMALL_TALK, prompt, 80)


def is_bare_turn(prompt: str) -> bool:
    """Whether the prompt is an answer or a nudge ("yes", "why?", "continue") that means nothing by itself."""
    return _is_all(_BARE_TURN, prompt, 60)


def _is_all(pattern: re.Pattern[str], prompt: str, longest: int) -> bool:
    text = prompt.strip().replace("’", "'")
    return len(text) <= longest and pattern.fullmatch(text) is not None


# -- augment mode: the prompt leaves no room ---------------------------------------------------------------------------

_ANSWER = "(?:answer|output|reply|respond|return|say|write|give|tell|state|provide|submit|choose|use|show)"
_LENGTH = "(?:an?|one|two|three|four|five|six|seven|eight|ten|single|[1-9]|1\\d\\d?|[2-9]\\d)"
_UNIT = "(?:words?|sentences?|lines?|paragraphs?|bullet points?|bullets|syllables)"
_FIXED_OUTPUT = _any(
    rf"\b{_ANSWER}\b[^.?!\n]{{0,30}}\b(?:only|just|nothing (?:else|but)|exactly)\b[^.?!\n]{{0,40}}\b(?:yes|no|true"
    rf"|false|answer"
    r"|number|words?|letter|name|json|code|result|label|output|list|value|title|translation|query|sql|html|category"
    r"|option|ok|digits?)\b",
    r"\b(?:only|just) (?:answer|output|reply|respond|return|print|write|give)\b(?= (?:with|in|the|an?|one|yes|no"
    r"|your)\b|:| [\"'“])",
    r"\bnothing (?:else|more)\b[.!]?\s*(?:\Z|\n)|\bthe final answer\b|\boutput (?:yes|no|true|false|positive"
    r"|negative|[01])\b",
    r"\b(?:no|without(?: any| an)?) (?:explanations?|comments?|commentary|preamble|extra text|additional text"
    r"|other text)\b",
    r"\b(?:yes or no|yes/no|true or false|true/false|true, false)\b|\b(?:in|with) (?:a|one|1) (?:single )?word\b"
    r"|\bone-word\b",
    r"\b(?:answer|output|reply|respond|say|choose|classify|label)\b[^.?!\n]{0,25}[\"“'][^\"”'\n]{1,30}[\"”'](?:,"
    r"| or| and|/) ?"
    r"(?:or )?[\"“'][^\"”'\n]{1,30}[\"”']",
    r"\b(?:directly|separated by (?:a )?(?:semi)?(?:commas?|colons?|spaces?))\.?[ \t]*(?:\n|\Z)",
    r"\b(?:return|output|give|generate|provide|format|write)\b[^.?!\n]{0,50}\b(?:as|in|into) (?:a |an "
    r"|valid )?(?:json|csv|yaml|xml)\b"
    r"[^.?!\n]{0,20}(?:array|string|dictionary|object|with)",
    r"\b(?:categor(?:y|ies)|labels?|intents?|options|classes|candidates) (?:include|are|can be|:)"
    r"|\bone of the following (?:categor|label|class)",
    r"\bselect (?:from )?\(?A\)?, \(?B\)?"
    r"|(?m:^[ \t]*\(?A[).:] ?[^?\n]{1,80}\n+[ \t]*\(?B[).:] ?[^?\n]{1,80}\n+[ \t]*\(?C[).:] ?[^?\n]{1,80}$)",
)
_LENGTH_LIMIT = _any(
    rf"\b(?:in|using|into) (?:just |only |about |around |exactly |at most |no more than |under |less than "
    rf"|fewer than |up to )?{_LENGTH}"
    rf"(?: (?:short|long|brief|concise|simple|complete|single))?[ -]{_UNIT}\b",
    r"\b(?:under|at most|no more than|no longer than|less than|fewer than|max(?:imum)?(?: of)?|up to|within"
    r"|limit(?:ed)?(?: \w+){0,3} to"
    rf"|not exceed(?:ing)?|below|exactly) (?:{_LENGTH}[ -]{_UNIT}|\d{{1,3}} (?:characters?|chars))\b"
    rf"|\b\d{{1,3}} (?:words|characters) or (?:less|fewer)\b",
    r"\b(?:an?|the) (?:\w+ )?(?:one|single|[1-9]\d?|1\d\d)[ -](?:word|sentence|line|paragraph"
    r"|character)\b(?! of\b)|\bone-liners?\b|\btl;?dr\b",
    r"\b(?:write|compose|draft|create|generate|make|give)\b[^.?!\n]{0,40}\b(?:tweet|haikus?|limericks?)\b",
    r"\b(?:briefly|in brief|in short|concisely|succinctly|be (?:brief|concise|short|succinct)"
    r"|short and (?:to the point|sweet)"
    r"|keep (?:it|this|the \w+|your \w+) (?:\w+ )?(?:short|brief|concise)|(?:short|brief|concise|quick) (?:answer"
    r"|summary|reply|response))\b",
)
_TEXT = "(?:text|sentences?|paragraph|passage|article|list|words|email|reviews?|tweet|string|set|numbers|data|document)"
_VERBATIM = _any(
    r"(?:translate|proofread|transcribe|paraphrase|rephrase|reword|spell ?check|repeat|copy|correct|sort"
    r"|alphabeti[sz]e|obfuscate|anonymi[sz]e)\b",
    rf"(?:extract|identify|find|list|return|detect|select|pick|replace|remove|highlight|underline"
    rf"|count)\b[^.?!\n]{{0,70}}\b(?:in|from|of|for)"
    rf" (?:the|this|these|each|my) (?:\w+ ){{0,2}}{_TEXT}\b",
    r"(?:convert|change|transform)\b[^.?!\n]{0,60}\b(?:to|into|measurement|units?"
    r"|following)\b(?![^\n]{0,200}\b(?:code|script|function|app"
    r"|program|class|component|lyrics|story)\b)",
    r"(?:use [^.?!\n]{1,40} to )?(?:fill in|complete|fill)\b[^.?!\n]{0,40}\b(?:blanks?|sentences?|gaps?|mask"
    r"|missing|lyrics|description|analogy)\b",
    r"(?:edit|fix|check|improve)\b[^.?!\n]{0,50}\b(?:grammar|grammatical|spelling|typos?|punctuation|misspelling)\b",
    r"(?:rewrite|change)\b[^.?!\n]{0,30}\b(?:sentence|phrase)\b|(?:classify|categori[sz]e)\b",
    r"(?:predict|tell(?: me)?|detect|identify|determine|decide|judge|say) (?:if|whether)\b|(?:predict|identify"
    r"|label|tag|assign)\b[^.?!\n]{0,20}"
    r"\b(?:sentiment|intent|label|class|category|parts of speech|pos)\b|given an? [^.?!\n]{1,60}, (?:classify"
    r"|output|return|predict|label)\b",
)
_LEAD = re.compile(
    r"\W*(?:(?:please|kindly|now|hi|hello|hey|ok|okay|in this task,?|you need to|your task is to|can you|could you"
    r"|would you|will you|i want you to|i need you to"
    r"|i'd like you to|help me(?: to)?)[,.!:]?\s+)*",
    re.IGNORECASE,
)
_OPEN_END = re.compile(
    r"_{3,}|<mask>|\b(?:answer|output|response|result|a)\s*:\s*\Z|::[^\n]*:\s*\Z|\[MASK\]", re.IGNORECASE
)
_DEMAND = re.compile(
    r"\b(?:include|including|must|should|make sure|ensure|provide|describe|explain|discuss|at least|each|format|use"
    r"|using|avoid|do not"
    r"|don't|also|cover|highlight|step[ -]by[ -]step|examples?|tone|style|focus|specific\w*|as well as|additionally"
    r"|finally|rhyme"
    r"|incorporat\w+|detailed|reasoning)\b",
    re.IGNORECASE,
)


def fixes_output(prompt: str) -> bool:
    """Whether the prompt says exactly what the answer may consist of."""
    return _FIXED_OUTPUT.search(_instructions(prompt)) is not None


def limits_length(prompt: str) -> bool:
    """Whether the prompt asks for a short answer."""
    return _LENGTH_LIMIT.search(_instructions(prompt)) is not None


def is_word_for_word(prompt: str) -> bool:
    """Whether the task is to hand a text on, to change it in one respect, or to sort it into a class."""
    text = _instructions(prompt)
    lead = _LEAD.match(text)
    start = lead.end() if lead else 0
    return _VERBATIM.match(text, start) is not None or _OPEN_END.search(text) is not None


def is_specific(prompt: str) -> bool:
    """Whether the prompt lists its requirements, so that one more would only compete with them."""
    text = _instructions(prompt)
    if len(text.split()) < SPECIFIC_WORDS:
        return False
    return sum(len(_DEMAND.findall(sentence)) for sentence in sentences(text) if asks(sentence)) >= SPECIFIC_DEMANDS
