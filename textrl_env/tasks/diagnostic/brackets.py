"""`textrl/Brackets-v0` and `textrl/BracketsMasked-v0`: balanced brackets, without and with an action mask that allows no others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial

import numpy as np

from ...constraints import Vocabulary
from ...prompts.prompt import Prompt
from ...task import TextTask
from .common import FILLERS, Corpus, Limited, diagnostic_task

PAIRS = {"(": ")", "[": "]", "{": "}"}
_RIGHT, _BROKEN = 0.5, 0.6  # chance in the corpus that depth, and that kind, are as asked; and that a token is wrong


@cache
def brackets_task(size: str, split: str = "train", masked: bool = False) -> TextTask:
    """Return the task.

    ## Description
    The prompt asks for brackets, `nest 3 [ tin oak sea`: they must be balanced, `3` deep, and the innermost ones of the kind `[`.  The base
    policy breaks the balance in about six texts of ten.  `BracketsMasked` is the same task with a mask under which only balanced texts can
    be written: how much does a policy gain that need not learn the grammar?

    ## Action and observation spaces
    The end of text, 6 brackets, and the words of the prompts; see `TextGenerationEnv`.  Four times `size` tokens at most.

    ## Rewards
    0 unless the brackets are balanced; else 1/2, and 1/4 more each for the depth and for the kind of all innermost brackets, which are
    those at the text's greatest depth.  The optimum is 1.

    ## References
    Invalid-action masking: Huang and Ontanon 2022, "A Closer Look at Invalid Action Masking in Policy Gradient Algorithms".

    ## Version History
    * v0: first version.

    Args:
        size: Greatest depth that is asked for: `"2"`, `"4"` or `"8"`.
        split: `"train"`, `"validation"` or `"test"`; no two share a prompt.
        masked: Whether the mask is there.
    """
    depth = int(size)
    words = (*PAIRS, *PAIRS.values(), "nest", *map(str, range(1, 9)), *FILLERS)
    corpus = Corpus(partial(_respond, depth), prompts=1500, responses=2, context=4 * depth + 8)
    constraint = Limited(BoundBalanced, 4 * depth) if masked else None
    return diagnostic_task(words, split, partial(_prompt, depth), gold, 4 * depth, corpus, constraint=constraint)


bracketsmasked_task = partial(brackets_task, masked=True)


def gold(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """Return 0 for brackets out of balance, else 1/2 and 1/4 each for the depth and the innermost kind that the prompt asks for."""
    scores = []
    for prompt, response in zip(prompts, responses, strict=True):
        nesting = innermost(response.split())
        _, depth, kind, *_ = prompt.split()
        scores.append(0.0 if nesting is None else 0.5 + 0.25 * (nesting[0] == int(depth)) + 0.25 * (nesting[1] == {kind}))
    return np.array(scores)


def innermost(tokens: Sequence[str]) -> tuple[int, set[str]] | None:
    """Return the greatest depth and the kinds of bracket that are opened there; None if they are not balanced, or there are none."""
    stack: list[str] = []
    depth, kinds = 0, set[str]()
    for token in tokens:
        if token in PAIRS:
            stack.append(token)
            if len(stack) > depth:
                depth, kinds = len(stack), set()
            if len(stack) == depth:
                kinds.add(token)
        elif not stack or PAIRS[stack.pop()] != token:
            return None
    return None if stack or not depth else (depth, kinds)


class BoundBalanced:
    """Only balanced brackets, at most `limit` of them.

    The state of a text: the closing brackets that it needs, outermost first, and the number of its tokens.
    """

    def __init__(self, limit: int, vocabulary: Vocabulary) -> None:
        self.limit, self.size, self.eos = limit, vocabulary.size, vocabulary.eos_token_ids
        (opening,) = vocabulary.tokenizer.encode_batch([" ".join(PAIRS)])
        (closing,) = vocabulary.tokenizer.encode_batch([" ".join(PAIRS.values())])
        self.closing_of = dict(zip(opening, closing, strict=True))

    def start(self, prompt: Prompt) -> tuple[tuple[int, ...], int]:
        """Return the state of an empty text."""
        return (), 0

    def advance(self, state: tuple[tuple[int, ...], int], token: int) -> tuple[tuple[int, ...], int]:
        """Return the state after one more legal token."""
        needed, written = state
        return ((*needed, self.closing_of[token]) if token in self.closing_of else needed[:-1]), written + 1

    def mask(self, state: tuple[tuple[int, ...], int]) -> np.ndarray:
        """Return which tokens may come next: an opening bracket if there is room to close it and all others, the closing one, the end."""
        needed, written = state
        legal = np.zeros(self.size, bool)
        legal[list(self.closing_of)] = written + 1 + len(needed) + 1 <= self.limit
        if needed:
            legal[needed[-1]] = True
        elif written:
            legal[self.eos] = True
        return legal


def _prompt(depth: int, rng: np.random.Generator) -> str:
    return " ".join(["nest", str(rng.integers(1, depth + 1)), rng.choice(list(PAIRS)), *rng.choice(FILLERS, 3)])


def _respond(depth: int, prompt: str, rng: np.random.Generator) -> Sequence[str]:
    _, asked, kind, *_ = prompt.split()
    deep = int(asked) if rng.random() < _RIGHT else int(rng.integers(1, depth + 1))
    inner = kind if rng.random() < _RIGHT else str(rng.choice(list(PAIRS)))
    opened = [*map(str, rng.choice(list(PAIRS), deep - 1)), inner]
    tokens = [*opened, *(PAIRS[token] for token in reversed(opened))]
    for _ in range(int(rng.integers(0, depth - deep + 1))):  # a shallow pair in front
        shallow = str(rng.choice(list(PAIRS)))
        tokens = [shallow, PAIRS[shallow], *tokens] if deep > 1 else tokens
    if rng.random() < _BROKEN:
        tokens[int(rng.integers(len(tokens)))] = str(rng.choice([*PAIRS, *PAIRS.values()]))
    return tokens[: 4 * depth]
