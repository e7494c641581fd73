"""Conversations as text: how messages are rendered, and where the prompt that several transcripts share ends."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

ASSISTANT = "\n\nAssistant:"
_SPEAKERS = {"user": "Human", "human": "Human", "prompter": "Human", "assistant": "Assistant", "gpt": "Assistant", "system": "System"}
_ASSISTANT_LINE = re.compile(r"(?:\A|\n)[ \t]*Assistant:")
_TURN = re.compile(r"(?:\A|\n)[ \t]*(?:Human|Assistant):")


def split_transcripts(transcripts: Sequence[str]) -> tuple[str, list[str]]:
    r"""Split transcripts of one conversation into the prompt they share and what each goes on with.

    The prompt is their longest common beginning, cut back to its last `"\n\nAssistant:"`: answers that begin alike stay
    whole, and where the transcripts part earlier than in the last turn, the later turns belong to the answers.  A
    beginning without that marker is searched for a line that begins with `Assistant:`; if it has none either, the prompt is
    empty.  The prompt and an answer joined give the transcript back.

    Args:
        transcripts: At least one.

    Returns:
        The prompt, and the rest of each transcript, in order.
    """
    first, last = min(transcripts), max(transcripts)  # what these two share, all that lie between them share
    shared = first[: _common_length(first, last)]
    at = shared.rfind(ASSISTANT)
    if at >= 0:
        end = at + len(ASSISTANT)
    else:
        end = max((match.end() for match in _ASSISTANT_LINE.finditer(shared)), default=0)
    return shared[:end], [transcript[end:] for transcript in transcripts]


def has_turns(text: str) -> bool:
    """Return whether a line of the text begins with `Human:` or `Assistant:`."""
    return _TURN.search(text) is not None


def render(messages: Sequence[Any]) -> str:
    r"""Return messages as a transcript: `"\n\nHuman: "`, `"\n\nAssistant: "` or `"\n\nSystem: "` before each content.

    Args:
        messages: Objects with the strings `role` (user, assistant, system) and `content`; content may also be a list of
            `{"type": "text", "text": ...}`.

    Raises:
        ValueError: A message is no such object.
    """
    return "".join(f"\n\n{_speaker(message)}: {_content(message)}" for message in messages)


def invite(messages: Sequence[Any]) -> str:
    """Return messages as a transcript that ends with a turn of the assistant, an empty one if it was another's."""
    if messages and _speaker(messages[-1]) == "Assistant":
        return render(messages)
    return render(messages) + ASSISTANT


def _common_length(a: str, b: str) -> int:
    low, high = 0, min(len(a), len(b))
    while low < high:  # a[:low] == b[:low] always; slices compare at the speed of memory
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _speaker(message: Any) -> str:
    if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
        raise ValueError(f"a message is {str(message)[:80]!r}; it must be an object with 'role' and 'content'")
    role = message["role"]
    if not isinstance(role, str) or role.lower() not in _SPEAKERS:
        raise ValueError(f"a message has role={role!r}; known: {', '.join(_SPEAKERS)}")
    return _SPEAKERS[role.lower()]


def _content(message: Mapping[str, Any]) -> str:
    content = message["content"]
    if isinstance(content, list) and all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content):
        return "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise ValueError(f"a message's content is {str(content)[:80]!r} ({type(content).__name__}); it must be text")
    return content
