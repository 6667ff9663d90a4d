"""What the `openai` client raises, in our words: what happened, what to do next, and whether it may work later.

The server's own words are left out: they may hold a piece of the prompt, or of the key.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from bpo_integrations.errors import BPOError, EngineError, EngineTimeoutError, PromptTooLongError

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI, OpenAIError

RETRYABLE_STATUSES = frozenset({408, 409, 425, 429})
"""HTTP statuses below 500 after which the same call may succeed."""

_TOO_LONG = re.compile(r"context[ _](?:length|size|window)", re.IGNORECASE)


def is_retryable(status: int) -> bool:
    """Whether a call that ended with an HTTP status may succeed later.

    Example:
        >>> is_retryable(503), is_retryable(404)
        (True, False)
    """
    return status in RETRYABLE_STATUSES or status >= 500


async def explained(error: OpenAIError, where: str, client: AsyncOpenAI) -> BPOError:
    """Return our error for the client's.

    Args:
        error: What the client raised.
        where: Names the model and the server.
        client: Asked for the models that there are, where the one wanted is not.
    """
    from openai import APIConnectionError, APIStatusError, APITimeoutError

    if isinstance(error, APITimeoutError):
        msg = f"The server did not answer in time ({where})."
        return EngineTimeoutError(msg, hint="Give a larger timeout=, or a smaller concurrency=.")
    if isinstance(error, APIConnectionError):
        cause = f" ({type(error.__cause__).__name__})" if error.__cause__ else ""
        msg = f"The server cannot be reached, or hung up{cause}: {where}."
        return EngineError(msg, hint="Check that it runs, and base_url=.")
    if isinstance(error, APIStatusError):
        return await _refused(error, where, client)
    msg = f"The server's answer cannot be used ({type(error).__name__}, {where})."
    return _final(EngineError(msg, hint="Check that it is OpenAI-compatible, and that base_url= ends in /v1."))


async def _refused(error: APIStatusError, where: str, client: AsyncOpenAI) -> EngineError:
    """Return our error for an HTTP status."""
    status = error.status_code
    msg = f"The server answered with HTTP status {status} ({where})."
    if is_retryable(status):
        return EngineError(msg, hint="Call again later; perhaps with a smaller concurrency= or more max_retries=.")
    if status in (401, 403):
        return _final(EngineError(msg, hint="The key is wrong: give api_key=, or set BPO_API_KEY."))
    if status == 404:
        return _final(EngineError(msg, hint=await _what_is_served(client)))
    if _TOO_LONG.search(str(error)):
        return PromptTooLongError(msg, hint="The prompt does not fit into the model's context.")
    return _final(EngineError(msg, hint="The server's log says what it refuses; check extra_body= and vllm=."))


async def _what_is_served(client: AsyncOpenAI) -> str:
    from openai import OpenAIError

    try:
        served = [model.id for model in (await client.with_options(timeout=5.0, max_retries=0).models.list()).data]
    except OpenAIError:
        return "Check the model's name, and that base_url= ends in /v1."
    return f"The server has: {', '.join(sorted(served)[:20]) or 'no model'}."


def _final(error: EngineError) -> EngineError:
    """Mark an error that the same call would meet again."""
    error.retryable = False
    return error
