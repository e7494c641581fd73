"""`textrl/QA-v0`: questions whose answer stands in the prompt."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from functools import cache, partial

import numpy as np

from ...prompts.prompt import Prompt
from ...task import TextTask
from .common import Corpus, diagnostic_task

ROLES = ("who", "where", "when", "what", "why", "how", "which", "whose")
KINDS = ("red", "old", "big", "new")
THINGS = ("king", "town", "day", "boat", "war", "song")
_KNOWN, _CONFUSED = 0.4, 0.5  # chance in the corpus of the right answer, and that a wrong one is another fact's


@cache
def qa_task(size: str, split: str = "train") -> TextTask:
    """Return the task.

    ## Description
    The prompt is a few facts and a question, `who old king . where new town . ? where`; the answer stands in the facts: `new town`.
    The base policy learned from texts of which four in ten are right, others give another fact's answer, and others one that is made up.

    ## Action and observation spaces
    21 tokens: the end of text, 8 roles, 10 words of answers, `.` and `?`; see `TextGenerationEnv`.

    ## Rewards
    1 for an exact match after SQuAD's normalisation (case, punctuation, articles and white space do not count), else 0.  The optimum is 1.

    ## References
    Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text", for the measure; Weston et al. 2015, "Towards
    AI-Complete Question Answering", for generated facts.

    ## Version History
    * v0: first version.

    Args:
        size: Facts: `"2"`, `"3"` or `"8"`.
        split: `"train"`, `"validation"` or `"test"`; no two share a context.
    """
    facts = int(size)
    corpus = Corpus(_respond, prompts=4000, context=4 * facts + 8, steps=700)
    return diagnostic_task((*ROLES, *KINDS, *THINGS, ".", "?"), split, partial(_prompt, facts), gold, 3, corpus, _with_answer)


def answer(prompt: str) -> str:
    """Return the answer to the question that ends a prompt."""
    *facts, question = prompt.split(" . ")
    (words,) = (fact.split()[1:] for fact in facts if fact.split()[0] == question.split()[1])
    return " ".join(words)


def gold(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """Return 1 for each exact match with the answer, else 0."""
    return np.array([float(normalised(r) == normalised(answer(p))) for p, r in zip(prompts, responses, strict=True)])


def normalised(text: str) -> str:
    """Return the text as SQuAD compares it: lower case, without punctuation and articles, single spaces."""
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def _prompt(facts: int, rng: np.random.Generator) -> str:
    roles = ROLES[:facts]
    return " . ".join([*(f"{role} {rng.choice(KINDS)} {rng.choice(THINGS)}" for role in roles), f"? {rng.choice(roles)}"])


def _with_answer(text: str) -> Prompt:
    return Prompt(text, references=(answer(text),))


def _respond(prompt: str, rng: np.random.Generator) -> Sequence[str]:
    *told, _ = prompt.split(" . ")
    if rng.random() < _KNOWN:
        return [answer(prompt)]
    if rng.random() < _CONFUSED:
        return str(rng.choice(told)).split()[1:]
    return [str(rng.choice(KINDS)), str(rng.choice(THINGS))]
