"""`textrl/Summary-v0`: keep the facts in few words."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial

import numpy as np

from ...prompts.prompt import Prompt
from ...task import TextTask
from .common import Corpus, diagnostic_task

WHO = ("fox", "cow", "hen", "owl", "pig", "ram")
DID = ("bit", "saw", "met", "led")
WHAT = ("hay", "oak", "hut", "jam", "cup", "net")
_KEPT = {"news": 0.75, "chat": 0.5}  # chance in the corpus that a sentence of this kind is kept
_LABEL, _WRONG = 0.3, 0.1  # chance that a kept sentence brings its label along, and that a word of it is another one


@cache
def summary_task(size: str, split: str = "train") -> TextTask:
    """Return the task.

    ## Description
    The prompt tells news and chat in random order, `chat cow saw oak news fox bit jam`.  A summary keeps all news and nothing else:
    `fox bit jam`.  The base policy keeps some chat, drops some news, and makes mistakes.

    ## Action and observation spaces
    19 tokens: the end of text and the words; see `TextGenerationEnv`.

    ## Rewards
    The share of news kept, word for word and in one piece, times min(1, words of the shortest full summary / words written).  The optimum
    is 1.  A copy of the prompt scores 3/8, an empty text 0.

    ## References
    Stiennon et al. 2020, "Learning to summarize from human feedback", for coverage against length.

    ## Version History
    * v0: first version.

    Args:
        size: Pieces of news, and of chat: `"1"`, `"2"` or `"3"`.
        split: `"train"`, `"validation"` or `"test"`; no two share a prompt.
    """
    pieces = int(size)
    words = (*WHO, *DID, *dict.fromkeys([*WHAT, *_KEPT]))
    corpus = Corpus(partial(_respond, pieces), prompts=3000, context=14 * pieces + 4, steps=600)
    return diagnostic_task(words, split, partial(_prompt, pieces), gold, 6 * pieces + 2, corpus, _with_news)


def news(prompt: str) -> list[str]:
    """Return the pieces of news in a prompt."""
    words = prompt.split()
    return [" ".join(words[i + 1 : i + 4]) for i in range(0, len(words), 4) if words[i] == "news"]


def gold(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """Return the share of news kept times brevity, for each response."""
    return np.array([_score(news(p), r.split()) for p, r in zip(prompts, responses, strict=True)])


def _score(facts: list[str], words: list[str]) -> float:
    if not words:
        return 0.0
    pieces = {" ".join(words[i : i + 3]) for i in range(len(words) - 2)}
    return sum(fact in pieces for fact in facts) / len(facts) * min(1.0, 3 * len(facts) / len(words))


def _prompt(pieces: int, rng: np.random.Generator) -> str:
    labels = rng.permutation(["news", "chat"] * pieces)
    told: list[str] = []
    while len(told) < len(labels):  # no two sentences alike, or a fact would count twice
        sentence = f"{rng.choice(WHO)} {rng.choice(DID)} {rng.choice(WHAT)}"
        told += [sentence] if sentence not in told else []
    return " ".join(f"{label} {sentence}" for label, sentence in zip(labels, told, strict=True))


def _with_news(text: str) -> Prompt:
    return Prompt(text, references=(" ".join(news(text)),))


def _respond(pieces: int, prompt: str, rng: np.random.Generator) -> Sequence[str]:
    words, kept = prompt.split(), list[str]()
    for i in range(0, len(words), 4):
        if rng.random() < _KEPT[words[i]]:
            said = [str(rng.choice((*WHO, *DID, *WHAT))) if rng.random() < _WRONG else word for word in words[i + 1 : i + 4]]
            kept += [words[i], *said] if rng.random() < _LABEL else said
    return kept[: 6 * pieces + 2]
