"""A server at the edge: the LLM that answers (`llm`) and the judge (`judge`) of an evaluation, on loopback.

The LLM answers every prompt with words of its own, and improves prompts where it is asked to; the judge prefers the
answer with more words. With `faults` every third text meets one at its first request: 429, 500, a cut body. Requests
and answers are counted by what they are about.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from openai_server import Body, OpenAIServer, Reply, openai_server, user_text

FAULTS = (Reply(status=429, headers=(("Retry-After", "0.1"),)), Reply(status=500), Reply(("lost",), cut=True))
MORE = "Explain each step in order."
_PARTS = re.compile(r"<(question|answer_a|answer_b|model_1|model_2)((?:_\d+)?)>\n(.*?)\n</\1\2>", re.DOTALL)
_PROMPT = re.compile(r"<(user_prompt(?:_\d+)?)>\n(.*?)\n</\1>", re.DOTALL)

Key = tuple[str, ...]


def longer(question: str, first: str, second: str) -> str:
    """Return which answer has more words: A, B or C."""
    words = len(first.split()), len(second.split())
    return "C" if words[0] == words[1] else "A" if words[0] > words[1] else "B"


def in_words(letter: str, ranking: bool) -> str:
    """Return a verdict as the style asks for it; ranks cannot say that nobody is better but by being equal."""
    if not ranking:
        return f"A is called [[A]], B is called [[B]].\n\n[[{letter}]]"
    ranks = {"A": (1, 2), "B": (2, 1), "C": (1, 1)}[letter]
    return str([{"model": f"model_{number}", "rank": rank} for number, rank in enumerate(ranks, start=1)])


@dataclass
class LLMServer:
    """What the models do, and what was asked: ("answer", text), ("meta", prompt), ("judge", prompt, first, second)."""

    write: Callable[[str], str] = lambda prompt: f"An answer to: {prompt}"
    choose: Callable[[str, str, str], str] = longer
    say: Callable[[str, bool], str] = in_words
    faults: bool = False
    seconds: float = 0.0
    refuse: int = 0
    """A status that every request gets, if it is not 0."""
    refuse_after: int = 0
    """Requests that are answered before that."""
    asked: Counter[Key] = field(default_factory=Counter)
    answered: Counter[Key] = field(default_factory=Counter)
    server: OpenAIServer = field(default_factory=OpenAIServer)

    @property
    def base_url(self) -> str:
        return self.server.base_url

    def of(self, kind: str) -> Counter[Key]:
        """Return how often each thing of a kind was asked about."""
        return Counter({key: count for key, count in self.asked.items() if key[0] == kind})

    def reply(self, body: Body) -> str | Reply:
        """Answer a request."""
        key = about(body)
        with self.server.lock:
            self.asked[key] += 1
            total, nth = self.asked.total(), self.asked[key]
        if self.refuse and total > self.refuse_after:
            return Reply(status=self.refuse)
        digest = hashlib.sha256(json.dumps(key).encode()).digest()
        if self.faults and nth == 1 and digest[0] % 3 == 0:
            return FAULTS[digest[1] % len(FAULTS)]
        with self.server.lock:
            self.answered[key] += 1
        return Reply((self.text(key, body),), seconds=self.seconds)

    def text(self, key: Key, body: Body) -> str:
        if key[0] == "answer":
            return self.write(key[1])
        if key[0] == "meta":
            return f"{key[1]} {MORE}"
        return self.say(self.choose(*key[1:]), "model_1" in body["messages"][0]["content"])


def about(body: Body) -> Key:
    """Return what a request is about, whichever attempt it is."""
    first = body["messages"][1 if body["messages"][0]["role"] == "system" else 0]["content"]
    if body["model"] == "judge":
        return ("judge", *(text for _, _, text in _PARTS.findall(first)))
    if body["messages"][0]["role"] == "system":
        found = _PROMPT.search(user_text(body))
        return ("meta", found[2] if found else user_text(body))
    return ("answer", user_text(body))


@contextmanager
def llm_server(*, key: str | None = None, **options: Any) -> Iterator[LLMServer]:
    """Run both models while the block runs.

    Args:
        key: The key that requests must have.
        options: Fields of `LLMServer`.
    """
    players = LLMServer(**options)
    with openai_server(players.reply, models=("llm", "judge"), key=key) as server:
        players.server = server
        yield players
