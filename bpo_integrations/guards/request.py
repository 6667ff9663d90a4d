"""Whether a sentence asks for something: a question, an imperative, or a wish.

A closed list of English verbs and openings; text in another language is answered by its question marks alone.
"""

from __future__ import annotations

import re
from functools import lru_cache

from bpo_integrations.guards.text import sentences, words

IMPERATIVES = frozenset(
    """abbreviate accept account acknowledge act adapt add address adjust advise align allow alternate analyse analyze
    annotate answer anticipate appeal apply approach argue arrange articulate ask assemble assess assign assist
    associate assume attach avoid back balance base be begin bold brainstorm break briefly bring build calculate
    capture categorise categorize center centre challenge change characterize chart check choose cite clarify
    classify clean close code collect combine come comment communicate compare compile complete compose compute
    condense conclude conduct configure confirm connect consider construct contextualize continue contrast
    convert convey correct count cover craft create critique cut date deal debate debug decide decode deduce
    define deliver demonstrate derive describe design detail determine develop devise diagnose differentiate
    direct discuss display distinguish dive divide do document don't draft draw dramatize edit elaborate elicit
    emphasise emphasize employ emulate encourage end engage enhance ensure enumerate establish estimate evaluate
    evoke examine exclude execute expand explain explore export expose express extend extract feature fill
    filter find finish first fit fix flag flesh focus follow for forget formalise formalize format formulate
    frame gather generate get give go grade greet ground group guess guide handle have hear help highlight
    identify ignore illustrate imagine implement improve include incorporate indicate infer inform inquire
    insert inspect integrate interpret introduce invent investigate invite join judge justify keep label lay
    lead leave let limit link list load look loop make mark match mean measure mention merge mind mix model
    modify move name narrate never note number observe offer omit output open optimise optimize order organise
    organize outline pair paraphrase pass perform permit pick pile place plan play plot point portray predict
    prefer prepare present preserve pretend prevent print prioritise prioritize proceed process produce program
    project pronounce propose prove provide put quantify quote randomize rank rate rather read rearrange reason
    recall recap recite recommend record recount reduce refactor refer refine reflect refrain reject relate rely
    remember remind remove reorder repeat rephrase replace reply report represent research resolve respect
    respond restate restrict restructure return reveal reverse review revise rewrite role round run save say
    score search select send separate set share show simplify simulate sketch solve sort speak specify speculate
    spell split stage stand start state stay stick stop stream stress structure study style suggest summarise
    summarize supply support suppose surround tabulate tackle tag tailor take talk teach tell test think tie
    title touch trace track train transcribe transform translate treat try turn type uncover understand update
    use utilise utilize validate value vary verify view visualise visualize walk warn watch weave weigh work
    wrap write""".split()
)
"""Base forms that open an instruction to a language model."""

_QUESTION_WORDS = frozenset(
    """what what's who who's whom whose which when when's where where's why how how's is are am was were do does did
    can could will would should shall may might has have had isn't aren't don't doesn't didn't can't couldn't
    won't wouldn't shouldn't whaduup""".split()
)
_LEADS = frozenset(
    """please kindly also then and but or so now next finally lastly first firstly second secondly third just always
    briefly clearly carefully concisely simply where possible additionally furthermore moreover instead again hi
    hello hey ok okay thanks here only especially never do quickly step""".split()
)
_WISH = re.compile(
    r"\b(?:please|from now on|i(?:'d| would) (?:like|love|appreciate|want)|i(?:'m| am) (?:looking|trying|searching"
    r"|asking|interested)"
    r"|i (?:want|need|wish|have to|am going to|must|wonder|don't know)|we (?:want|need)|(?:can|could|would|will) you"
    r"|you (?:will|must|are to|are (?:a|an|the))|^you\b|your (?:task|job|goal|role|mission|objective)"
    r"|help me|let's|let us|i['’]?m (?:curious|wondering))\b",
    re.IGNORECASE,
)
_SUBORDINATES = frozenset(
    """for if in with when while where whenever wherever under after before as to at from besides despite rather
    because since instead along on by using based given then throughout within without unless once until
    although though across between beyond among apart alongside during concerning regarding like unlike both
    where each""".split()
)
_PART = re.compile(r"[,;:–—]\s+|\s-\s")
_CLAUSE = re.compile(r"[,;:–—-]\s+|\bthen\s+|\band\s+")


@lru_cache(maxsize=256)
def asks(sentence: str) -> bool:
    """Whether a sentence or line is a question, an instruction or a wish.

    Example:
        >>> asks("For each city, give its population."), asks("Paris is the capital.")
        (True, False)
    """
    if sentence.rstrip("\"'”’)*_ \t\n").endswith(("?", "？", "؟", ";?")):
        return True
    text = sentence[:1000]
    if opens_with_verb(text) or _WISH.search(text.replace("’", "'")):
        return True
    first = next(iter(words(text)), "")
    if first in _QUESTION_WORDS:
        return True
    return any(opens_with_verb(clause, leads=False) for clause in _CLAUSE.split(text)[1:8])


def instructs(sentence: str) -> bool:
    """As `asks`, but a question needs its mark: "When designing an app, there are many factors." is a statement."""
    if sentence.rstrip("\"'”’)*_ \t\n").endswith(("?", "？", "؟")):
        return True
    text = sentence[:1000]
    if opens_with_verb(text) or _WISH.match(text):
        return True
    if next(iter(words(text)), "") not in _SUBORDINATES:
        return False
    return any(opens_with_verb(clause, leads=False) for clause in _PART.split(text)[1:8])


def opens_with_verb(text: str, *, leads: bool = True) -> bool:
    """Whether the first word, past leading adverbs and "please", is an imperative."""
    for place, word in enumerate(words(text)[:6]):
        if word in IMPERATIVES:
            return True
        if not ((leads or place == 0) and (word in _LEADS or word.endswith("ly"))):
            return False
    return False


def asks_anywhere(text: str) -> bool:
    """Whether any sentence or line of `text` asks for something."""
    return any(asks(sentence) for sentence in sentences(text))
