"""When an agent's user turn is left alone: by the default policy, and unless it plainly asks for words.

"Send the mail to Bob" is worked off with tools; what is added to it could only become a second order. No list of verbs
names every deed, so the turn must begin like a question or a writing task, and not look like an order or a look-up.
Lexical, English, and in doubt the turn is left alone: a question that goes on as it is loses little, an order that
grows may do harm.
"""

from __future__ import annotations

import re
from typing import Final

from bpo_integrations.policy import Policy, all_of, default_policy, rule


def _one_of(words: str) -> str:
    return f"(?:{'|'.join(words.split())})"


_POLITE = (
    r"(?:please|kindly|(?:can|could|would|will) you(?: please| kindly| just)?|i(?:'d| would) like you to"
    r"|i (?:want|need) you to)"
)
_LEAD = rf"(?:(?:hi|hello|hey|ok|okay|now|then|also|and|just|go ahead and|quickly|{_POLITE})\b[,.!:]*\s+)*+"
_AFTER_A_VERB = _one_of(
    r"the an? my our your his her its their this that these those all every each any some it them me him us up if"
    r" whether back for to in on off out from with as two three four five six ten #?\d \w+\s#?\d [\"'“] (?-i:[A-Z])"
)
_OBJECT = rf"(?=\s+{_AFTER_A_VERB}(?!\s+(?:following|role)\b))"
"""What follows a verb, and not the noun that is spelled like it ("email marketing", "text classification")."""

_DEED = _one_of(
    r"alert approve archive assign attach back\sup block book buy call cancel change charge check clear click close"
    r" commit confirm connect copy deactivate decline decrease delete deploy dial dim disable disconnect dismiss"
    r" download e-?mail enable erase execute export fetch file forward google grant hang import increase install invite"
    r" launch lock log look\sup lower mail mark merge message move mute navigate notify open order pause pay pin ping"
    r" play post print publish pull purchase push put query raise read reboot rebook record refund register reject"
    r" remind remove rename renew reopen reply reschedule resend reserve reset restart restore retrieve revert revoke"
    r" roll run save scan schedule search send set share shut sign skip snooze start stop submit subscribe switch sync"
    r" tag text toggle track transfer trigger turn unblock uninstall unlock unmute unsubscribe update upgrade upload"
    r" verify wake wire withdraw"
)
_WORDS_NOT_DEEDS = (
    r"(?:set out|start (?:with|from|a (?:story|debate|discussion))|play (?:devil|a game|the (?:part|role|devil))"
    r"|open with|run (?:me )?through|put (?:yourself|together|it (?:in|into) (?:simple|plain))"
    r"|turn (?:this|the|it|my) (?:\w+ )?into|change the (?:tone|tense))\b"
)
_THING = _one_of(
    r"accounts? address(?:es)? alarms? appointments? balance bookings? branch(?:es)? calendar cart channels? columns?"
    r" contacts? customers? deals? devices? e-?mails? entry entries events? exchange\srate files? flights? folders?"
    r" forecast hotels? inbox invoices? issues? labels? logs? mails? meetings? messages? notes? notifications?"
    r" number\sof orders? packages? parcels? payments? photos? playlist price profile reminders? reports? repos?"
    r" repositor(?:y|ies) restaurants? rooms? rows? score settings? songs? status stock subscriptions? tables? tasks?"
    r" temperature tickets? time\sin timers? to-?dos? users? weather"
)
_LOOK_UP = (
    r"(?:add|bring|create|find|get|give|list|make|show|take|tell)\b(?: me)?(?: (?:up|out))?"
    r"(?: (?:the|an?|my|our|all|any|every|two|three|new|open|latest|last|next|current|cheap(?:est)?|nearest|nearby"
    rf"|unread))*(?: [\w'-]+)? {_THING}\b(?! (?:of contents|about|on how)\b)"
    r"|(?:find|get|give|list|show|tell)(?: me)? (?:all )?my\b|find (?:me )?(?:the|an?) (?:nearest|cheapest)\b"
    rf"|what(?:'s| is| are) (?:(?:the|my|our) )+(?:(?:current|latest|next|last) )?(?:[\w'-]+ )?{_THING}\b"
)
_SUM = (
    r"(?:add|calculate|compute|convert|divide|multiply|subtract|sum)\b[^?]*\d"
    r"|what(?:'s| is) -?\d[\d.,]* ?(?:[-+*/x^%]|times|plus|minus|divided by|percent of|to the power of) ?-?\d"
)
_ORDER = rf"(?!{_WORDS_NOT_DEEDS}){_DEED}\b{_OBJECT}"
_AT_THE_START: Final = re.compile(rf"\W*+{_LEAD}(?:{_ORDER}|play \w+\s*\Z|{_SUM}|{_LOOK_UP})", re.IGNORECASE)
_LATER: Final = re.compile(
    rf"(?<![.!,;\n])[.!,;\n][\s.!,;]*+(?:and |so |then )*{_POLITE}\s+{_ORDER}"
    r"|\band (?:then )?(?:e-?mail|file|forward|post|print|publish|save|send|share|submit|upload) (?:it|them|this)\b",
    re.IGNORECASE,
)
_ASK: Final = re.compile(
    rf"\W*+{_LEAD}(?:(?:how|who|why|what|which|when|where|can i|is|are"
    r"|do|does|should|explain|describe|discuss|compare|contrast"
    r"|suggest|recommend|outline|summari[sz]e|teach|draft|compose|plan|design|brainstorm|imagine|analy[sz]e|define"
    r"|illustrate|argue|evaluate|invent|develop|generate|prepare|provide)\b"
    r"|help me (?:understand|write)|walk me through|pros and cons"
    r"|tell me (?:about|a\b|how|why|what|more)|write (?:an?|me|the|some|about|in)\b"
    r"|(?:create|make|come up with) (?:an?|me|some|the)\b|find arguments|set out"
    r"|(?:share|give)(?: me)? (?:some|ideas|tips|advice|examples?)\b"
    r"|i want to (?:become|improve|know|learn|start|understand)\b)",
    re.IGNORECASE,
)
"""How a question or a writing task begins."""
_HEAD: Final = 1_000
"""Characters in which an order is looked for."""


def is_tool_command(prompt: str) -> bool:
    """Whether the prompt asks an agent to do or look up something, such as "book a table" or "add 3 and 4".

    It must begin so; further back a polite word is needed ("My card was stolen, please block it"), or
    that the text be sent on ("... and send it").
    """
    text = _head(prompt)
    return _AT_THE_START.match(text) is not None or _LATER.search(text) is not None


def _head(prompt: str) -> str:
    return prompt[:_HEAD].replace("’", "'")


def _may_be_an_order(prompt: str) -> bool:
    return is_tool_command(prompt) or _ASK.match(_head(prompt)) is None


agent_policy: Policy = all_of(default_policy, rule("tool command", _may_be_an_order))
"""`default_policy`, and whatever may be an order to an agent's tools: what `BPOMiddleware` asks
unless it is given an optimizer."""
