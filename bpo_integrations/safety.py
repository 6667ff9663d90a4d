"""Which prompts plainly ask for harm: they are left to the LLM's own policy, or softened.

A lexical recognizer built for precision: it knows what is said openly and in English, and overlooks what is hinted at.
It is no moderation tool: it blocks nothing, and nobody's access may depend on it. It only keeps an unsafe request from
being made more effective. Pure, linear in the prompt's length, never raises.
"""

from __future__ import annotations

import re

HEAD, TAIL = 2_000, 1_000
"""Characters looked at of a prompt's beginning and of its end: who asks for harm says so there, not in a pasted one."""


def _any(*alternatives: str) -> str:
    return f"(?:{'|'.join(alternatives)})"


def _compiled(rules: dict[str, tuple[str, ...]]) -> dict[str, re.Pattern[str]]:
    return {topic: re.compile(rf"\b{_any(*rule)}", re.IGNORECASE) for topic, rule in rules.items()}


_KIN = _any(
    "wife|husband|girlfriend|boyfriend|ex|mother|mom|father|dad|parents?|brother|sister|siblings?|son|daughter|child",
    "children|kids?|baby|family|friends?|neighbou?rs?|boss|manager|co-?workers?|colleagues?|roommate|classmates?"
    "|teacher",
    "professor|landlord|bully|enem(?:y|ies)|police officers?|cops?|girls?|boys?|wom[ae]n|m[ae]n|guys?|lady|students?",
    "person|stranger|grandm\\w+|grandf\\w+|dogs?|cats?|pupp(?:y|ies)|kittens?|animals?|pets?|hamsters?|goldfish|birds?",
)
_PERSON = _any(
    r"(?:(?:some|any)(?:one|body)|people|him|her|them|others|humans?|(?:rich|old|elderly|homeless) people)\b(?!')",
    rf"(?:my|your|his|her|their|our|the|an?|this|that|some)(?: [\w']+){{0,2}}? {_KIN}\b(?!')",
)
_WHOSE = r"(?:someone's|somebody's|people's|his|her|their|my [\w']+'s|(?:a|an|the) \w+'s)"
_GROUP = _any(
    "(?:black|white|asian|jewish|muslim|mexican|hispanic|latino|arab|african|chinese|indian|gay|trans(?:gender)?"
    "|old|older",
    "fat|disabled|homeless|poor|foreign|native american) (?:people|persons?|m[ae]n|wom[ae]n|guys?|girls?|folks|kids)",
    "blacks|whites|jews|muslims|mexicans|asians|arabs|africans|immigrants|refugees|women|gays|lesbians|homosexuals",
    "foreigners|christians|catholics|liberals|conservatives|feminists|indians|italians|russians|germans|the (?:poor"
    "|homeless)",
)
_DISPARAGED = _any(
    "stupid|dumb|lazy|dirty|filthy|inferior|evil|greedy|selfish|violent|criminals?|thieves|ugly|disgusting"
    "|worthless|sluts?",
    "annoying|terrorists|scum|animals|vermin|crazy|smelly|smell|stink|entitled|subhuman|trash|slutty|cheap|rude"
    "|useless",
    "steal|lie|whine|complain|suck|ruin\\w*|weird|drunks?|weak|less intelligent|taking over|invading|destroying"
    "|so bad|bad",
)
_DRUG = _any(
    r"(?:crystal )?meth\b|methamphetamines?|crack (?:cocaine|pipes?)|crackpipes?|cocaine|heroin|lsd|mdma|ecstasy"
    r"|fentanyl",
    r"ghb|pcp|roofies|rohypnol|opium|ketamine|steroids|psilocybin|magic mushrooms|shrooms|marijuana|cannabis|weed\b",
    r"(?:hard|illegal|illicit|party) drugs\b",
)
_BOMB = _any(
    r"(?<!bath )(?<!cherry )(?<!seed )(?<!cocoa )(?<!chocolate )(?<!logic )bombs?\b(?! calorimeter)|explosives"
    r"|grenades?",
    "molotovs?|napalm|ghost guns?|silencers?|shivs?|shanks?|sarin|ricin|anthrax|land ?mines?|untraceable (?:guns?"
    "|poison)",
    "(?:mustard|nerve|chlorine|poison(?:ous)?) gas|(?:chemical|biological|nuclear) weapons?",
)
_GUN = r"(?:gun|pistol|rifle|firearm|weapon)\b(?! (?:licen[cs]e|permit|safe|control|rack|case|show))"
_BUILDING = (
    r"(?:house|home|apartment|cars?|office|stores?|shop|bank|safe|locker|school|atm|warehouse|theaters?|concerts?)\b"
)
_SECRET = _any(
    "(?:home|residential|private|street) address|(?:cell|mobile|home|private|personal)(?: phone)? number|ssn",
    "social security number|bank account(?: number)?|credit card(?: number)?",
)
_MINOR = (
    r"(?:minors?|child|children|kids?|under-?age|school ?(?:girl|boy)s?|little (?:girl|boy)s?|toddlers?|pre-?teens?)\b"
)

_ASKS = re.compile(
    r"\b(?:how (?:do|can|could|would|should|might|much|many|to)|ways?|methods?|tricks?|tips|advice|instructions?"
    r"|steps?|guide"
    r"|recipe|(?:i|we)(?:'d| would| really| just| am| are|'m|'re)* (?:want|wanna|need|plan|planning|like|going"
    r"|gonna|trying)"
    r"|help me|teach me|show me|tell me|give me|let me|(?:should|can|could|may|if) i|(?:can|could|would|will) you"
    r"|where (?:can|do|could|is)|what(?:'s| can| could| should| would| are| is| kind| type)|is it|is there|any good"
    r"|write)\b",
    re.IGNORECASE,
)
"""What makes a sentence a request of the user's own, unlike a report about crimes or a question about history."""

_ACTS = _compiled(
    {
        "violence": (
            "(?:kill|murder|poison|stab|strangle|choke|suffocate|drown|torture|maim|injure|hurt|rape|molest|grope"
            "|kidnap|abduct"
            "|drug|behead|electrocute|assault|beat up|run over|lynch|bully|harass|blackmail|extort|stalk|threaten"
            "|terrorize"
            rf"|enslave|shoot|rob|mug|scam|punch|slap|kick)(?:ing)? (?:[\w']+ )?{_PERSON}(?! (?:an? )?(?:e-?mail"
            rf"|text|message))",
            rf"(?:hit|beat|fight|trip) (?:my|his|her|your) (?:[\w']+ )?{_KIN}\b(?! (?:at|in|to|on)\b)",
            rf"make {_PERSON} (?:sick|ill|suffer|bleed|disappear|cry|fall|vomit|go away|feel (?:bad|stupid|guilty"
            rf"|worse))\b",
            r"(?:put|slip|spike)\b[^.?!]{0,40}\b(?:in|into|someone's|his|her|my [\w']+'s) (?:his |her |their "
            r"|someone's )?"
            r"(?:drink|food|coffee|lunch|beer)\b",
            r"break (?:[\w']+ )?[\w']+'s? (?:hand|arm|leg|neck|nose|jaw|skull|knees?|fingers?|bones?)\b",
            r"(?:disable|cut) [\w' ]{1,20} brakes\b|(?:get|take) revenge\b|get back at\b|get even with\b",
            rf"(?:ruin|destroy|wreck|sabotage) (?:{_WHOSE}|my [\w']+) (?:\w+ )?(?:life|marriage|career|reputation"
            rf"|day)\b",
            "(?:dispose of|get rid of|hide) (?:an?|the) (?:dead )?(?:body|corpse)|hire an? (?:hitman|assassin)",
            "(?:sniping|sniper|knife|acid|terror(?:ist)?) attack (?:on|at|in)|shoot up (?:an?|the|my) "
            "|mass shooting at",
            "(?:killing|raping|molesting|torturing|beating|enslaving) (?:children|kids|women|people|animals)",
        ),
        "weapons": (
            "(?:make|making|build|building|construct|create|assemble|3d[ -]print|buy|get|obtain|plant|detonate"
            "|set off|recipe for)"
            rf"(?: [\w-]+){{0,3}}? {_BOMB}",
            rf"(?:make|get|buy|obtain|sneak|bring|smuggle|hide) an? (?:[\w-]+ )?{_GUN}",
            r"(?:burn(?:ing)? down|set fire to|blow(?:ing)? up|burn|bomb) (?:an?|the|my|his|her|their) (?:\w+ )?"
            r"(?:cars?|house|building|church|school|mosque|synagogue|bridge|plane)\b",
        ),
        "drugs": (
            r"(?:make|making|cook|synthesi[sz]e|produce|grow|buy|find|score|sneak|smuggle|sell|deal|inject|snort"
            r"|smoke|get|take"
            rf"|recipe for)(?: [\w'-]+){{0,2}}? {_DRUG}(?! (?:tests?|stores?|addict|stocks?|policy|laws?)|-)",
            r"(?:sneak|smuggle|hide|deal|snort|inject|cook) (?:my |some )?(?:drugs|booze|stash|crack)\b"
            r"|drug dealer near",
            r"(?:pass|cheat on|beat|fake) (?:a|my|the) (?:drug|urine) test|get high (?:on|off|from|with|without)\b",
        ),
        "theft": (
            r"(?:steal|stealing|shoplift|shoplifting|embezzle|embezzling|counterfeit|defraud|pickpocket"
            r"|launder money)\b"
            r"(?! (?:the show|second|third|home|bases?|focus|ideas))",
            r"hot[- ]?wir(?:e|ing) (?:[\w']+ ){0,2}(?:cars?|trucks?|vehicles?|motorcycles?|motorbikes?|scooters?)\b",
            rf"(?:rob|break into|breaking into|sneak into|sneak in) (?:(?:an?|the|my"
            rf"|{_WHOSE}) )?(?:\w+ )?{_BUILDING}",
            r"(?:forge|fake|make|get|buy|print|sell)(?: [\w'-]+){0,2}? (?:fake|forged|counterfeit)(?: [\w-]+)? "
            r"(?:ids?|passports?|money|bills|checks?|prescriptions?|cards?|diplomas?|licenses?|notes?|tickets?)\b",
            r"forge (?:an?|my|his|her) \w+|commit (?:\w+ ){0,2}?(?:fraud|theft|robbery|arson|perjury|crimes?"
            r"|murder)\b",
            "get away with (?:murder|stealing|a crime|it|shoplifting|cheating|killing|not paying)"
            "|without (?:getting|being) caught",
            r"(?:cheat|lie) (?:on|out of|my way (?:out|in|to)|your way (?:out|in|to)) (?:[\w']+ ){0,2}?"
            r"(?:tax(?:es)?|exams?|tests?|welfare|unemployment|dui|forms|wife|husband|girlfriend|insurance|top)\b",
            r"(?:evade|dodge|avoid paying|not pay|skip) (?:my |the )?(?:taxes|child support|rent)\b"
            r"|destroy (?:the )?evidence\b",
            rf"(?:con|swindle|bribe|extort|blackmail|scam) {_PERSON}|(?:credit card|insurance|identity) (?:scam"
            rf"|theft)\b",
            r"pirated|(?:pirate|torrent) (?:movies?|games?|software|textbooks?|music)\b|(?:stream"
            r"|watch) [\w ]{1,30} for free\b",
            r"(?:get|buy|make|enter|download|sell|park|hunt|sneak)\b[^.?!]{0,30}\billegally\b",
        ),
        "accounts": (
            rf"hack(?:ing)? into\b|hack (?:someone|somebody|my|an?|the|{_WHOSE}) (?:[\w']+ ){{0,2}}?"
            r"(?:accounts?|phone|facebook|instagram|snapchat|e-?mail|wi-?fi|computer|webcam|password|bank)\b",
            rf"(?:steal|crack|guess|get into|read|see|bug|tap|clone|brick|unlock) {_WHOSE} (?:\w+ )?"
            r"(?:password|login|pin|identity|e-?mails?|texts?|messages|phone|facebook|instagram|accounts?)\b",
            rf"(?:track|spy on|listen in on|eavesdrop on) {_PERSON}",
            r"(?:write|make|create|build|spread|deploy)(?: [\w-]+){0,3}? (?:malware|ransomware|keylogger|botnet"
            r"|computer virus"
            r"|phishing (?:site|e-?mail)s?)\b",
        ),
        "privacy": (
            rf"{_SECRET} (?:of|for) (?-i:[A-Z])|(?:home|residential|private) address (?:of|for)\b"
            rf"|address of th(?:is|at) person\b",
            rf"(?:(?-i:[A-Z])\w+'s|{_WHOSE}) (?:\w+ )?(?:{_SECRET}|address|phone number|password)\b",
            r"where (?:does )?(?:he|she|my [\w']+|(?:this|that|the) (?:girl|guy|woman|man|person|boy)) lives?\b",
            r"(?:photo|picture|video|film|record|track|watch|touch|look|take|put|install|follow)\b[^.?!]{0,60}"
            r"\bwithout (?:him|her|them|someone|anyone|people) (?:knowing|noticing|finding out)\b",
            rf"(?:follow|stalk|spy on|peep (?:on|at)|watch) {_PERSON} (?:home|at night|undress|shower|naked"
            rf"|change)\b|upskirt\b",
        ),
        "abuse": (
            r"(?:racial |ethnic )?slurs\b|(?:swear|curse|cuss|bad|dirty|profane|perverse|vulgar) words\b"
            r"|profanit(?:y|ies)\b",
            r"insults? (?:for|to|about|against|i |that)\b|insult (?:me|someone|somebody|him|her|my)\b|(?:swear"
            r"|curse) at me\b",
            r"(?:mean|nasty|hurtful) (?:things to say|pranks?|jokes?|names?)\b|names? to call (?:someone|my|an?)\b"
            r"|[fn][ -]word spelled\b",
            r"(?:make fun of|mock|tease|embarrass|body[ -]?shame|humiliate|cyberbully|spread rumou?rs about"
            r"|prank) (?:[\w']+ )?"
            rf"(?:{_PERSON}|fat|disabled|ugly)",
            r"(?:racist|sexist|homophobic|anti-?semitic) (?:jokes?|insults?|names?|speech|things)\b",
            r"(?:join|start) (?:an? |the )?(?:white supremac\w+|kkk|ku klux klan|neo-?nazi|nazi|isis|terrorist)\b",
        ),
        "sexual": (
            r"send (?:me )?nudes|talk dirty|have sex with (?:my|an? (?:dog|horse|animal|student|minor)|someone who"
            r"|a drunk)\b",
            r"(?:masturbate|jerk off) (?:to|in front of|in public|on)\b|(?:get|see) [\w ]{1,20} (?:naked"
            r"|to sleep with me|to have sex)\b",
        ),
    }
)
"""Harmful in a sentence that asks."""

_WORDS = _compiled(
    {
        "self-harm": (
            r"(?:kill|hang|cut|hurt|harm|poison|drown|starve) myself\b(?! (?:while|when|shaving|cooking|exercis))",
            r"end my (?:own )?life\b|(?:want|going|like) to (?:die|commit suicide)\b|how (?:do|can"
            r"|to)(?: i)? commit suicide\b",
            r"(?:painless|easiest|quickest|best) way to (?:die|commit suicide)\b|(?:ways|how) to (?:overdose"
            r"|kill yourself)\b",
        ),
        "minors": (
            r"(?:sex|sexy|sexual(?:ly)?|nudes?|naked|porn|erotic\w*|molest\w*|fondl\w+)\b(?! (?:ed|education|health"
            r"|abuse|assault|of"
            r"|ratio|differences?|orientation|identity|selection|reproduction|offenders?|harassment|oats|mole)\b)"
            rf"[^.?!]{{0,40}}\b{_MINOR}",
            rf"{_MINOR}[^.?!]{{0,20}}\b(?:porn|nudes?|naked|erotica)\b",
        ),
        "hate": (
            r"(?:nigg(?:er|a)s?|faggots?|kikes?|wetbacks?|tranny|trannies|towelheads?|ragheads?|gooks?)\b",
            rf"(?:why|all|such|so|those|these|most)\b[^.?!]{{0,20}}\b{_GROUP}\b[^.?!]{{0,25}}\b{_DISPARAGED}\b",
            rf"{_GROUP} (?:are|is|should be|must be) (?:\w+ ){{0,2}}?(?:{_DISPARAGED}|killed|exterminated|enslaved"
            rf"|hanged)\b",
            rf"(?:i hate|get rid of|keep out|better than|superior to|smarter than"
            rf"|can't stand) (?:\w+ ){{0,2}}?{_GROUP}\b",
            rf"can {_GROUP} be trusted|{_GROUP} (?:should|need to|must) (?:go back|leave|be deported|be banned"
            rf"|get out)\b",
            "white (?:power|supremacy) (?:is|rules|now)|keep america white|holocaust (?:is|was"
            "|being) (?:a )?(?:fake|hoax|lie)",
            "(?:good reasons|benefits|advantages) (?:to have|of|for) slavery",
        ),
        "abuse": (
            r"call me (?:an? |some )?(?:bad|profane|dirty|nasty|ugly|mean|rude) (?:names?|words?)\b"
            r"|shut (?:the \w+ )?up\b|i hate you\b",
            r"fuck (?:you|off|u)\b|(?:lick|suck|kiss) my (?:butthole|ass|dick|cock|pussy|balls)\b|you (?:suck"
            r"|are (?:so )?(?:stupid|dumb|ugly))\b",
            r"you(?:'re| are|r) (?:such )?an? (?:\w+ )?(?:bitch|asshole|idiot|moron|whore|slut|cunt|retard"
            r"|piece of shit)\b",
        ),
    }
)
"""Unsafe wherever it stands."""

_SETTING = re.compile(
    r"\b(?:stor(?:y|ies)|novel|fiction(?:al)?|poem|song|lyrics|screenplay|movie (?:script|plot|scene)|anime|manga"
    r"|games?|gaming"
    r"|rpg|d&d|dungeons|minecraft|roblox|skyrim|unity|godot|pygame|boss fight|characters?|scene|dialogue"
    r"|fan ?fic\w*|plot"
    r"|role-?play|classif\w+|detect\w*|moderat\w+|sentiment|toxic(?:ity)?|hate speech|translate|essay|debate|thesis"
    r"|prevent\w*|protect\w*|avoid|stop (?:someone|people|my|being)|recogni[sz]e|awareness|defen[cds]\w*|shakespeare"
    r"|process(?:es)?|threads?|regex|python|javascript|function|command|script|server|docker|linux|sql|dataset)\b",
    re.IGNORECASE,
)
"""Where the same words mean no harm: fiction, games, moderation, prevention, computing."""

_NEVER_EXCUSED = ("minors", "self-harm")
_SENTENCE = re.compile(r"[^.?!]+[.?!]*")


def is_unsafe(prompt: str) -> bool:
    """Whether a prompt plainly asks for harm, or is abusive.

    Args:
        prompt: The user's turn, in English; the first 2,000 and the last 1,000 characters are looked at.

    Returns:
        True for open requests for violence, weapons, drugs, self-harm, theft, fraud, breaking into accounts, exposing
        or stalking persons, sexual content with minors, and for hate and abuse. False promises nothing.

    Example:
        >>> is_unsafe("How do I kill a Python process?"), is_unsafe("How can I poison my neighbor?")
        (False, True)
    """
    return unsafe_topic(prompt) is not None


def unsafe_topic(prompt: str) -> str | None:
    """Return what kind of harm a prompt plainly asks for, such as `weapons`, or None."""
    ends = prompt if len(prompt) <= HEAD + TAIL else f"{prompt[:HEAD]}. {prompt[-TAIL:]}"
    text = " ".join(ends.replace("’", "'").split())
    excused = _SETTING.search(text) is not None
    for topic, pattern in _WORDS.items():
        if (not excused or topic in _NEVER_EXCUSED) and pattern.search(text):
            return topic
    if excused:
        return None
    asking = [sentence for sentence in _SENTENCE.findall(text) if _ASKS.search(sentence)]
    for sentence in asking:
        for topic, pattern in _ACTS.items():
            if pattern.search(sentence):
                return topic
    return None
