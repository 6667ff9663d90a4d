"""What must not come in, in either mode: talk to the user, talk about the rewriting, the template, marks, emoji, slots.

Only what is new counts: a sentence or phrase that the prompt holds already is the user's own.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from functools import lru_cache

from bpo_integrations.guards.base import guard
from bpo_integrations.guards.literal import placeholders
from bpo_integrations.guards.text import flat, sentences, words
from bpo_integrations.templates import AUGMENT_INSTRUCTION, PAPER_INSTRUCTION

_I = re.IGNORECASE

ROLE_MARKS = re.compile(
    r"\[/?INST\]|<<?/?SYS>>?|<\|[\w-]{1,40}\|>|</?s>|<(?:bos|eos|unk|pad|mask|start_of_turn|end_of_turn|tool_call)>"
    r"|</?think>|<｜[^｜>\n]{1,40}｜>|\[(?:/?PROTECT|/?KEEP|/?INSTRUCTION|BOS|EOS)\b"
    r"|(?m:^[ \t]*(?:\#{1,4}[ \t]*)?(?:\*\*)?(?:human|user|assistant|system|ai|bot|chatgpt|gpt|response"
    r"|instruction)(?:\*\*)?[ \t]*:)"
    r"|(?<=[.!?>\]])[ \t]+(?:human|user|assistant|system)[ \t]*:",
    _I,
)
"""Literal role marks and special tokens of the common chat formats."""

EMOJI = re.compile("[\U0001f000-\U0001faff\u2600-\u27bf\u2b50\u2b55\ufe0f\u200d\u20e3\U000e0020-\U000e007f]")

_INPUT = (
    r"(?:text|sentences?|articles?|passages?|paragraphs?|codes?|snippets?|documents?|files?|links?|data(?:set)?"
    r"|topics?|subject"
    r"|details?|information|info|context|questions?|prompts?|lists?|essays?|e-?mails?|drafts?|story|stories"
    r"|inputs?|content"
    r"|images?|urls?|requirements?|preferences?|specifics?|poems?|problems?|messages?|materials?|background"
    r"|numbers?|names?"
    r"|words?|excerpts?|quotes?|examples?|transcript|report|letter|resume|query|request|instructions?|task"
    r"|scenario|situation)"
)
_GIVEN = (
    r"(?:text|sentences?|articles?|passages?|paragraphs?|snippets?|documents?|files?|data(?:set)?|topics?|subject"
    r"|context|drafts?"
    r"|inputs?|content|prompts?|requirements?|preferences?|specifics?|materials?|transcript|excerpts?|scenario)"
)
_HAND_OVER = r"(?:provide|supply|specify|enter|submit|share|send|insert)(?: (?:me|us))?(?: with)?"
_FOR_ME = (
    r"(?:that |which )?(?:you(?:'d| would|'ll|'re| are| want| need| have| wish| like)|needs? to be|to be \w+ed\b"
    r"|to me\b|to work with\b"
    r"|so (?:that )?(?:i|we)\b|and i(?:'ll| will| can)\b)"
)
_THEIRS = (
    r"(?:texts?|sentences?|articles?|paragraphs?|drafts?|documents?|files?|links?|photos?|images?|pictures?"
    r"|screenshots?|resume|cv"
    r"|essays?|letters?|e-?mails?|messages?|lists?|notes?|data(?:set)?|numbers|questions?|requests?|quer(?:y|ies)"
    r"|prompts?|topics?|input"
    r"|idea|goals?|needs?|wishes|preferences?|requirements?|constraints?|priorities|interests?|tastes?|hobbies"
    r"|budget|location|address|city"
    r"|country|region|time ?zone|age|gender|name|job|role|profession|industry|field|company|business|team|employer"
    r"|school|class|course"
    r"|level|skills?|experience|background|situation|circumstances|context|case|problem|issue|symptoms?|diet"
    r"|allergies|health|audience"
    r"|readers?|customers?|users?|deadline|timeline|schedule|dates?|project|product|device|system|setup"
    r"|environment|version|operating"
    r"|os|browser|code|error|logs?|language|details?|information|choice|pick|favou?rite)"
)
_NOT_THE_MODEL = (  # what one asks a model, too, is let pass
    r"(?!(?:also |really |personally |still |ever |\w+ly )*(?:think|recommend|suggest|know|believe|consider|advise"
    r"|see|say|feel"
    r"|find|propose|choose|rank|rate|agree|explain|describe|handle|do|solve|approach|interpret|understand|define"
    r"|calculate|compute"
    r"|prove|implement|heard|seen|read|learned|been|sure|certain|able|aware|familiar|confident|an?|the|made"
    r"|trained|allowed|capable"
    r"|programmed|supposed|have (?:any|a|an|some|feelings|access|opinions?|emotions?|thoughts|information"
    r"|knowledge|suggestions)"
    r"|get|make|use|go|enjoy|like|love|experience|exist|dream|remember)\b)\w+"
)
_ADJECTIVES = r"(?:(?!own )[\w'-]+ ){0,2}?"
_ASKS_BACK = tuple(
    re.compile(pattern)
    for pattern in (
        # "please provide the text.", "could you share your draft so that ..."
        rf"\b{_HAND_OVER} (?:(?:the|your|any|that|this|exact|full|actual|complete|original"
        rf"|specific) )+(?:[\w-]+ ){{0,2}}?{_GIVEN}"
        rf"(?: or [\w-]+)?(?=\s*(?:[.!?]*$|,|below|here|first|{_FOR_ME}))",
        rf"\b(?:{_HAND_OVER}|(?:give|include|tell|write)(?: (?:me|us))?) (?:[\w-]+ ){{1,4}}?(?:{_GIVEN}"
        rf"|{_INPUT})(?: or [\w-]+)? (?:{_FOR_ME})",
        rf"(?:^|\b(?:please|kindly|can you|could you|would you|you(?: should| must| need to)))(?: please| kindly"
        rf"| also)? ?{_HAND_OVER} "
        rf"(?:(?:a|some|any|more|further|additional|specific|bit|few|little|of|other|relevant) )+(?:details?"
        rf"|information|info|context|specifics"
        rf"|background|examples? of what you \w+)(?=\s*(?:[.!?]*$|{_FOR_ME}|first\b|about (?:what|your"
        rf"|the (?:topic|subject|task|project|context))\b))",
        rf"(?:^|\b(?:please|kindly|you(?:'d| would)? (?:like to|can|could|may)|to|and) )"
        rf"(?:paste|upload|attach|send|share|supply) (?:me |us )?(?:the|your|a|an|any|some|it|them"
        rf"|more)\b(?: [\w-]+){{0,4}}?"
        rf" ?(?:{_INPUT}|here|below|it)\b(?! with (?:friends|others|family))",
        r"\b(?:provide|share|send|give|paste|tell|specify|describe|clarify|state|indicate)(?: (?:me|us"
        r"|with))* (?:\w+ )?your "
        r"(?:own |specific |preferred |exact |current |desired |target )*"
        r"(?:text|sentence|article|code|question|request|preferences?|requirements?|audience|goals?|needs|budget"
        r"|location"
        r"|details|draft|topic|data|document|input|message|situation|context|query|task|name|age|language|level)\b",
        r"\b(?:what|which|how many|how long|how much)\b[\w\s,'-]{0,60}?\b(?:would|do|did|should|are|were|will) you "
        r"(?:like|want|wish|prefer|need|have in mind|mean|looking|interested|referring|asking|thinking|working|hoping"
        r"|planning|require|intend|be interested)\b",
        r"\blet (?:me|us) know\b(?! (?:if you (?:can't|cannot|are unsure|do not know|don't know)))",
        r"\btell (?:me|us) (?:a (?:bit|little) )?(?:more about (?:what|your|yourself|the (?:context|task|project)"
        r"|it first)"
        r"|(?:what|which|how|whether) (?:[\w-]+ ){0,3}?you(?:'d| would|'re| are)? (?:like|want|need|prefer|looking"
        r"|have in mind|mean|aim)"
        r"|(?:what|which) (?:it|this|that) (?:is|should be) (?:for|about)|first)",
        r"\bi(?:'ll| will| would|'d| may| might)? (?:also )?(?:need|require|want)(?: to know)? (?:a )?"
        r"(?:(?:bit |little |few )?more|the|your|some|additional|further|which|what|to see (?:the"
        r"|your)) ?[\w\s-]{0,25}?"
        r"(?:details?|information|context|text|code|input|specifics|you|from you|to (?:help|proceed|begin|start))\b",
        r"\b(?:so (?:that )?(?:i|we) (?:can|could|may)|(?:before|for me to|in order to|and|then) (?:i(?:'ll| can"
        r"| will))|i(?:'ll| will|'d be| would be"
        r"|'m| am) (?:happy|glad|able|ready|here)?) ?(?:to )?(?:better |best |properly |then )?"
        r"(?:help|assist|tailor|proceed|get started|begin|give you|provide you|offer you|answer (?:you|your|it"
        r"|accurately|properly)"
        r"|understand (?:what you|your|you)|rewrite (?:it|the|your)|summari[sz]e (?:it|the|your)|translate (?:it"
        r"|the|your)"
        r"|anal[yi][sz]e (?:it|the|your)|do (?:it|this|that) for you|work on it)\b(?! (?:her|him|them|my|others"
        r"|people)\b)",
        r"\b(?:(?:could|can|would|will) you|please|kindly|you should)(?: please| kindly| also)* (?:clarify|specify"
        r"|confirm|elaborate on|indicate)"
        r"(?: for me)? (?:what you|which|whether you|if you|your|what (?:kind|type|sort)|how you|the (?:topic"
        r"|subject|kind|type"
        r"|format|language|audience|tone|length|purpose|context|exact|desired|intended|text)\b(?! (?:between"
        r"|of (?!the (?:text|answer|response|output)))))",
        r"\b(?:do|did|are|have|would|is there|are there)(?: you)?(?: \w+){0,4}? you (?:have|want|need|prefer"
        r"|looking|thinking|mind)? ?"
        r"(?:in mind|me to|like me|prefer\b|looking for|want me|want to (?:focus|include|cover)|interested in"
        r"|referring)",
        r"\bdo you (?:have|want|need|prefer) (?:a |an |any |me |the |some )?(?:specific|particular|preference"
        r"|preferred|me to|certain"
        r"|requirements?|more details)",
        r"\byou(?:'d| would|'re| are)? ?(?:have in mind|like me to|want me to|wish me to|would like to (?:know|see"
        r"|discuss|focus))\b",
        r"\bfeel free to (?:share|ask|provide|add|send|give|let)|\bhow (?:can|may) i (?:help|assist)"
        r"|\bhappy to help\b",
        r"\b(?:waiting for|awaiting|once (?:i have|you(?:'ve| have)?)|after you|as soon as you|when you(?:'ve"
        r"| have)?)"
        r"(?: \w+){0,2}? (?:your|provide|provided|share|shared|send|sent|paste|pasted|upload|uploaded|attach|tell"
        r"|reply|given|give)\b",
        r"\b(?:can|could|would) you (?:please )?(?:explain|describe|say|elaborate|tell me)(?: to me| a (?:bit"
        r"|little))? (?:more\b(?! (?:about|on) (?!what you|your|it\b))|what you (?:mean|want|need))",
        r"\bwould you (?:like|prefer|rather)\b|\bmay i (?:have|see|know)\b",
        # what only the user can have: "your preferred style", "the missing figures", "the ingredients you have"
        r"\byour (?:own )?(?:preferred|desired|intended|target|favou?rite) ",
        r"\b(?:provide|supply|send|share|fill in)(?: me| us)?(?: with)? the (?:missing|required|necessary|requested"
        r"|remaining) [\w-]+(?: [\w-]+)?[.!]",
        r"\b(?:provide|supply|send|share|list|give|name|specify|include|enter|indicate)\b[^.?!]{0,40} (?:that "
        r"|which )?you (?:already |currently )?"
        r"(?:have|own|possess|like|dislike|know of|live|work|plan|wrote)(?: (?:at hand|at home|on hand|in|to use"
        r"|now|so far|already))?[.!?]",
        r"^(?:please|kindly|can you|could you) confirm\b|\bif you (?:can |could )?(?:give|tell|send|provide|share"
        r"|let)(?: \w+)? (?:me|us|know|more|the|your)\b"
        r"[^.?!]{0,60}\b(?:i|we) (?:can|could|will|would|might)\b|\bi (?:can|could|will|would"
        r"|might)\b[^.?!]{0,40}\bif you (?:can |could )?"
        r"(?:give|tell|send|provide|share|let)\b",
        # a question about the user's doings: "how many guests are you expecting?"
        rf"\b(?:are|were|do|did|have|had) you {_NOT_THE_MODEL}(?=[^.?!]{{0,120}}\?)",
        r"\b(?:may|might|shall|should) i (?:ask|assume|suggest|offer)\b(?=[^.?!]{0,80}\?)",
        r"\b(?:what|which|whom|where|who) (?:[\w-]+ )?(?:should|shall|do|can|must|may) i (?:write|talk|do|say"
        r"|focus|include|cover|add|use|start|begin"
        r"|address|work|help)(?: (?:on|about|with|in|it|to|for|here|next|first))*\?",
        r"\b(?:can|could|would|will) you (?:please |kindly )?(?:be (?:a (?:bit|little) )?(?:more "
        r"|less )?(?:specific|precise|clear|exact|concrete)"
        r"|narrow (?:it|this|that|the \w+) down|(?:send|forward|upload|attach|paste|resend|link)\b)",
        r"^(?:please|kindly|just|simply|now|first|then|so|go ahead and)(?:,? please)? (?:paste|upload|attach|send"
        r"|share|forward|enter|type|drop)\b",
        r"\b(?:describe|outline|explain|clarify|mention|note) your (?:current|specific|exact|particular|personal"
        r"|present|intended|desired|target|typical)\b",
        r"\bi(?:'m| am) (?:still |now )?(?:waiting|awaiting|ready|looking forward)\b|\bwithout (?:the|your|more"
        r"|any|further|it|that|this|knowing|seeing)"
        r"\b[^.?!]{0,60}\bi (?:cannot|can't|am unable|won't|could not|couldn't)\b|\bit (?:would|will) (?:help"
        r"|be (?:helpful|useful|great|good|nice))"
        r" (?:\w+ ){0,2}(?:if|to know|when) (?:you|your|what|which)\b",
        # a question about what is the user's: "who is your audience?", "would you mind telling me your budget?"
        rf"\byour {_ADJECTIVES}{_THEIRS}\b(?=[^.?!]{{0,80}}\?)",
        # an order to hand over: "enter your question below", "tell me your age"
        rf"\b(?:enter|type|put|insert|submit|attach|upload|paste|share|send|provide|supply|specify|tell|inform"
        rf"|fill|drop|post)\b"
        rf"(?: (?!me how|me whether|me what|me if)[\w-]+){{0,3}}? (?:in )?your {_ADJECTIVES}{_THEIRS}\b",
        r"\b(?:can|could|would|will|may|might) (?:you|i)(?: please| kindly| mind)? (?:give|giving|get|provide"
        r"|providing|share|sharing|send|sending"
        r"|tell|telling|have|see|ask for|know|add|offer)(?: (?:me|us))?(?: with)? (?:(?:some|a|any|bit|little|few"
        r"|more|further|additional|extra|other"
        r"|the|of|your) )+(?:[\w-]+ )?(?:context|details?|information|info|background|specifics|clarification"
        r"|input|data|text|examples?)\s*\?",
        r"\b(?:provide|include|give|share|send|specify|enter|add|attach|list|name|indicate|mention|choose|select"
        r"|pick|say|state)\b[^.?!]{0,60}"
        r"\b(?:that |which |what |whom |where )?you(?:'d| would|'re| are)? (?:want|wish|like|have in mind"
        r"|referring|talking|interested|asking"
        r"|looking|thinking|trying|hoping)\b",
        r"\bi(?:'ll| will| would|'d| may)? (?:also |first |just )?(?:need|have|want|like) to (?:know|see|hear"
        r"|understand|have|ask) (?:more about |about "
        r"|a (?:bit|little) (?:more )?(?:about )?|exactly )?(?:you\b|your\b|(?:what|which|who|how|where|why"
        r"|when)\b[^.?!]{0,30}\byou)",
        r"\b(?:wait|waiting|ready|look forward|looking forward) (?:for|to) (?:you|your|hear|receiv\w+|read)\b",
        r"\bask (?:the user|your user)\b|\bthe user (?:should|must|needs to|is asked)\b",
    )
)
_REVISED = (
    r"(?:revised|rewritten|improved|optimi[sz]ed|enhanced|refined|updated|modified|reworded|rephrased|new|better"
    r"|clearer|edited"
    r"|adjusted|original|polished|expanded|altered)"
)
_ABOUT = tuple(
    re.compile(pattern)
    for pattern in (
        rf"\b{_REVISED} (?:(?:and|more|version of (?:the|your|this)|\w+ed|user|the) ){{0,3}}(?:prompts?|requests?"
        rf"|quer(?:y|ies)|instructions?|wording"
        rf"|phrasing|questions?)\b",
        r"\bwith (?:this|these|such|my) (?:change|edit|addition|tweak|adjustment|rewording|revision|rewrite"
        r"|modification|improvement)s?\b"
        r"|\b(?:question|request|prompt|query|instruction|wording)s? (?:has|have|had|was|were|is|are) (?:been "
        r"|now |also )*(?:re(?:phrased|worded"
        r"|written|vised|fined|structured)|clarified|improved|shortened|simplified|optimi[sz]ed|polished|edited"
        r"|expanded|adjusted|enhanced"
        r"|modified|made (?:more|clear))",
        rf"\b(?:this|that|my|above) {_REVISED} (?:version|text|one|form)\b|\bthe {_REVISED} version (?:is|now|asks"
        rf"|makes|adds|includes|will|should|of (?:the|your) (?:prompt|request|question))\b",
        r"\b(?:this|your|my|above) (?:prompt|rewrite|rewriting|rewording|rephrasing)s?\b|\bthe (?:rewrite"
        r"|rewording|rephrasing)\b"
        r"|\bthe prompt (?:is|should|now|asks?|will|can|could|to be|more|has|was|itself|needs?|by|with|so|clear"
        r"|specif|ask)"
        r"|\b(?:this|the|my) (?:addition|edit|revision|modification|improvement|prompt)s? (?:is|are|will|makes?"
        r"|helps?|ensures?|should|asks?|guides?"
        r"|clarif\w+|now|encourages?|gives?|provides?|specif\w+|allows?|adds?|keeps?|narrows?|was|were|tells?"
        r"|prompts?|invites?|sets?|would|can)\b"
        r"|\b(?:this|the|your|that|my|above) added (?:\w+ )?(?:sentence|text|phrase|part|instruction|line|words?"
        r"|detail|details|request|context)s?\b",
        r"\bi(?:'ve| have)?(?: also| just| only| slightly)? (?:rewritten|rewrote|revised|improved|optimi[sz]ed"
        r"|added|rephrased|reworded|clarified|refined|expanded"
        r"|edited|restructured|adjusted|modified|polished|kept|made (?:it|the|this|your))\b",
        r"\b(?:the|this|these|my) (?:changes?|additions?|edits?|adjustments?|modifications?|improvements?"
        r"|revisions?) "
        r"(?:i |we (?:made|have)|made\b|ensure|clarif|to the (?:prompt|wording|request|question))",
        r"\bin (?:this|my|the (?:new|revised|improved)) version\b|\b(?:this|my) (?:new |revised )?version (?:is"
        r"|now|has|asks|makes|adds)\b"
        r"|\bi(?:'ve| have)? (?:also |just )?(?:removed|cut|dropped|shortened|simplified|replaced|changed|included"
        r"|specified|stated|named|fixed"
        r"|corrected|narrowed|broken|split|made) (?:\w+ ){0,2}(?:vague|unclear|ambigu\w+|redundan\w+|unnecessary"
        r"|wording|phrasing|prompts?|request"
        r"|specific|clearer|instruction)",
        r"\b(?:explanation|summary|list) of (?:the |my )?(?:changes|improvements|edits|modifications)\b"
        r"|\bchanges made\b",
        r"\b(?:make|makes|made|making) (?:the|this|your|it a) (?:\w+ )?(?:prompt|request|question|query"
        r"|instruction) (?:\w+ )?"
        r"(?:more|clearer|better|specific|easier|stronger)",
        r"\bhere(?:'s| is) (?:a|an|the|your|my) (?:\w+ ){0,3}(?:prompt|version|rewrite|rewording|instruction)\b",
        r"\bby (?:adding|asking|specifying|including|rephrasing|rewording|stating)\b[^.?!\n]{0,80}\b(?:the"
        r"|an?) (?:\w+ )?(?:ai|model|llm"
        r"|assistant|chatbot|response|prompt|answer) (?:can|will|is|should|becomes|knows|gets|would|could|may)",
        r"\b(?:this|it|that|which|doing so|adding this) (?:will |should |would |now |also |can |better )*(?:helps?"
        r"|ensures?|allows?|enables?|gives?|leads?|guides?"
        r"|makes? sure|encourages?|prompts?|results?|makes?|provides?) (?:\w+ ){0,3}?(?:the )?(?:\w+ )?(?:ai|model"
        r"|llm|assistant|chatbot|(?:an? |in a |the )?(?:\w+ )?"
        r"(?:response|reply|prompt))\b",
        r"\bas (?:an? )?(?:ai|language) (?:language )?model,|\b(?:improved|revised|rewritten|optimi[sz]ed|enhanced"
        r"|refined|final|new|better) "
        r"(?:prompt|version|request|query)\s*:|^\W{0,3}(?:note|explanation|rationale|comment|changes|reason"
        r"|addition|prompt)\s*:",
        r"\b(?:the|this) (?:sentence|phrase|line|wording|phrasing|instruction|request)(?: above| below"
        r"| here)? (?:is now|now|adds|asks the|"
        r"clarifies|helps|ensures|specifies|encourages|guides|tells the|was added|has been added|should be added"
        r"|to add)\b",
        r"\b(?:would|will|can|should|to|could) (?:help|improve|enhance|strengthen|elicit|get|yield|produce|lead to"
        r"|result in|make for) (?:\w+ ){0,3}?"
        r"(?:prompt|(?:better|clearer|more \w+) (?:response|answer|reply|output|result)s?)\b",
    )
)
_ASKS_BACK_SIGNS = re.compile(
    r"\b(?:you|your|i|we|me|us|user|please|kindly|provide|supply|specify|enter|submit|share|send|insert|paste"
    r"|upload|attach"
    r"|tell|give|include|write|describe|clarify|state|indicate|awaiting|waiting)\b"
)
_ABOUT_SIGNS = re.compile(
    r"\b(?:i|prompts?|version|text|one|form|rewrit\w*|rewording|rephras\w*|revis\w*|addition\w*|add\w*|edit\w*"
    r"|modif\w*|improve\w*"
    r"|adjust\w*|chang\w*|explanation|summary|ai|llm|model|assistant|chatbot|response|reply|answer|results?|output"
    r"|note|rationale"
    r"|comment|reason|sentence|phrase|line|wording|phrasing|instructions?|requests?|quer(?:y|ies)|questions?|i've)\b"
)
_TO_THE_MODEL = re.compile(
    r"\b(?:help|give|guide|allow|enable|tell|let|make|lead|steer|encourage|push|direct|point|nudge|ask|instruct"
    r"|show|prompt|provide)(?:s|es|ing)?"
    r" (?:for )?(?:the |an? |any |your )?(?:ai|model|llm|language model|assistant|chatbot|bot|chatgpt|gpt"
    r"|machine)s?\b"
)
_ABOUT_AI = re.compile(
    r"\b(?:ai|a\.i\.|artificial intelligence|models?|llms?|assistants?|chatbots?|bots?|chatgpt"
    r"|gpt|machines?)\b",
    _I,
)
_PROMPT_WORD = re.compile(r"\b(?:prompts?|rewrit\w*|rewrote|revis\w*|rephras\w*|version)\b", _I)
_PHRASES = tuple(
    f" {phrase} "
    for phrase in (
        "expert prompt engineer",
        "prompt engineer",
        "prompt engineering",
        "helpful and harmless",
        "what to add",
        "add to this prompt",
        "added to this prompt",
        "add to the prompt",
        "improve this prompt",
        "improve the prompt",
        "improving this prompt",
        "for a better answer",
    )
)
_RUN = 5  # words of the template in a row that give it away


@guard("role marks")
def brings_no_role_marks(original: str, candidate: str) -> str | None:
    """No special token and no role mark ("[INST]", "<|im_end|>", "User:") that the prompt does not hold."""
    known = {mark.strip().lower() for mark in ROLE_MARKS.findall(original)}
    return next((mark for mark in ROLE_MARKS.findall(candidate) if mark.strip().lower() not in known), None)


@guard("emoji")
def brings_no_emoji(original: str, candidate: str) -> str | None:
    """No emoji that the prompt does not hold."""
    known = set(EMOJI.findall(original))
    found = next((sign for sign in EMOJI.findall(candidate) if sign not in known), None)
    return None if found is None else f"U+{ord(found):04X}"


@guard("new placeholders")
def brings_no_placeholders(original: str, candidate: str) -> str | None:
    """No slot to be filled that the prompt does not hold; HTML's tags are none."""
    for slot in placeholders(candidate):
        if slot not in original and not _HTML_TAG.fullmatch(slot):
            return slot
    return None


_HTML_TAG = re.compile(
    r"</?(?:a|b|i|p|g|u|s|br|hr|h[1-6]|ul|ol|li|td|tr|th|em|div|img|svg|nav|pre|head|html|body|span|form|code|path"
    r"|main|meta|link"
    r"|table|thead|tbody|input|label|style|title|video|audio|canvas|button|script|header|footer|section|article"
    r"|textarea"
    r"|select|option|strong|iframe|template|slot|details|summary|dialog|figure)(?: [^>]*)?/?>",
    _I,
)


@guard("asks back")
def asks_nothing_back(original: str, candidate: str) -> str | None:
    """The candidate asks the LLM, never the user: no "please provide the text", no "which topic would you like?"."""
    return next(_new_matches(_ASKS_BACK_SIGNS, _ASKS_BACK, original, candidate), None)


@guard("comments")
def makes_no_comments(original: str, candidate: str) -> str | None:
    """No talk about the prompt, its rewriting or what the addition is good for."""
    matches = _new_matches(_ABOUT_SIGNS, _ABOUT, original, candidate)
    if _PROMPT_WORD.search(original):
        matches = (found for found in matches if not _PROMPT_WORD.search(found))
    if not _ABOUT_AI.search(original):
        matches = itertools.chain(matches, _new_matches(_ABOUT_SIGNS, (_TO_THE_MODEL,), original, candidate))
    return next(matches, None)


@guard("template")
def leaks_no_template(original: str, candidate: str) -> str | None:
    """None of the instruction that the rewriting model was given."""
    new, known = flat(candidate), flat(original)
    return next((run.strip() for run in _template_runs() if run in new and run not in known), None)


@lru_cache(maxsize=1)
def _template_runs() -> tuple[str, ...]:
    runs = list(_PHRASES)
    for instruction in (PAPER_INSTRUCTION, AUGMENT_INSTRUCTION):
        said = words(instruction)
        runs += [f" {' '.join(said[i : i + _RUN])} " for i in range(len(said) - _RUN + 1)]
    return tuple(runs)


def _new_matches(
    signs: re.Pattern[str], patterns: tuple[re.Pattern[str], ...], original: str, candidate: str
) -> Iterator[str]:
    """Yield what the patterns match in the candidate's sentences that are not the prompt's own.

    Each pattern needs one of the signs, which are looked for first because that is cheap.
    """
    known = flat(original)
    for sentence in sentences(candidate):
        if words(sentence) and flat(sentence) in known:
            continue
        text = sentence.lower().replace("’", "'")[:2000]
        if not signs.search(text):
            continue
        for pattern in patterns:
            for match in pattern.finditer(text):
                if flat(match.group()) not in known:
                    yield match.group()
