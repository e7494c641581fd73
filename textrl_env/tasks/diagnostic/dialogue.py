"""`textrl/Dialogue-v0`: ask a user for what only the user knows, then book it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import numpy as np

from ...episode import Episode
from ...task import TextTask
from .common import FILLERS, Corpus, diagnostic_task

SLOTS: dict[str, tuple[str, ...]] = {
    "where": ("rome", "oslo", "lima", "paris"),
    "when": ("monday", "friday", "sunday", "today"),
    "many": ("one", "two", "three", "four"),
}
_ASKED, _RIGHT = 0.6, 0.7  # chance in the corpus that a slot is asked for, and that what was heard is booked


@cache
def dialogue_task(size: str, split: str = "train") -> TextTask:
    """Return the task.

    ## Description
    A simulated user, `hello from tin oak sea`, wants to book and answers questions: the agent's turn `where ?` gets `rome`.  A turn that
    ends with `.` ends the dialogue: `book rome friday .`; so does one that is no question.  What the user wants follows from a hash of the
    prompt: nobody can guess it, but the same user always wants the same.  The base policy forgets to ask and mixes up what it heard.

    ## Action and observation spaces
    28 tokens: the end of text, 3 questions, 12 values, `?`, `.`, `book`, and the words of the prompts and of the user; see
    `TextGenerationEnv`.  The tokens of the user are part of the response observation, and no actions.

    ## Rewards
    The share of slots that the booking names rightly, once and with no other value of the same slot, at the end; 0 without a booking.  The
    optimum is 1.

    ## References
    Multi-turn environments with a simulated user: Abdulhai et al. 2023, "LMRL Gym".

    ## Version History
    * v0: first version.

    Args:
        size: Slots: `"1"`, `"2"` or `"3"`.
        split: `"train"`, `"validation"` or `"test"`; no two share a user.
    """
    slots = int(size)
    values = [value for values in SLOTS.values() for value in values]
    words = (*SLOTS, *values, "?", ".", "book", "hello", "from", "sorry", *FILLERS)
    turns: dict[str, Any] = {"stop_tokens": ("?", "."), "reply": reply, "max_turns": slots + 2}
    corpus = Corpus(partial(_respond, slots), prompts=2000, responses=2, context=4 * slots + 14, steps=500)
    return diagnostic_task(words, split, _prompt, partial(gold, slots), 4 * slots + 6, corpus, **turns)


def wish(prompt: str) -> dict[str, str]:
    """Return what a user wants, a value for each slot."""
    lot = hashlib.sha256(prompt.strip().encode()).digest()
    return {slot: values[lot[i] % len(values)] for i, (slot, values) in enumerate(SLOTS.items())}


def reply(episodes: Sequence[Episode]) -> list[str | None]:
    """Answer a question; None ends the dialogue."""
    answers: list[str | None] = []
    for episode in episodes:
        words = episode.response.split()
        asked = words[-2] if len(words) > 1 and words[-1] == "?" else ""
        answers.append(f" {wish(episode.prompt).get(asked, 'sorry')}" if words and words[-1] == "?" else None)
    return answers


def gold(slots: int, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """Return the share of slots that each booking names rightly; 0 where there is none."""
    return np.array([_score(list(wish(p).items())[:slots], r.split()) for p, r in zip(prompts, responses, strict=True)])


def _score(wanted: list[tuple[str, str]], words: list[str]) -> float:
    if "book" not in words or words[-1] != ".":
        return 0.0
    booked = words[len(words) - words[::-1].index("book") : -1]
    return float(np.mean([[word for word in booked if word in SLOTS[slot]] == [value] for slot, value in wanted]))


def _prompt(rng: np.random.Generator) -> str:
    return " ".join(["hello", "from", *rng.choice(FILLERS, 4)])


def _respond(slots: int, prompt: str, rng: np.random.Generator) -> Sequence[str]:
    words, booked, wanted = list[str](), list[str](), wish(prompt)
    for slot in list(SLOTS)[:slots]:
        asked = rng.random() < _ASKED
        words += [slot, "?", wanted[slot]] if asked else []
        booked.append(wanted[slot] if asked and rng.random() < _RIGHT else str(rng.choice(SLOTS[slot])))
    return [*words, "book", *booked, "."]
