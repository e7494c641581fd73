"""`textrl/Calculator-v0`: products that nobody can know, with a calculator and a price list to call."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import numpy as np

from ...task import TextTask
from ..tools import Call, Tools, calculator, call_in
from .common import FILLERS, Corpus, diagnostic_task

_CALLS = 0.3  # share of the corpus that calls the tools; the others guess


@cache
def calculator_task(size: str, split: str = "train") -> TextTask:
    """Return the task.

    ## Description
    The prompt is a product of two numbers, `4 7 * 8 3`; from size 2 on one of them, and at size 3 both, are prices of goods, which only a
    list of prices knows: `tin oak sea * 8 3`.  A turn that ends with `]` calls a tool: `[ price tin oak sea ]` gets ` 4 7`, and
    `[ calculate 4 7 * 8 3 ]` gets ` 3 9 0 1`; what is no call, or no product, gets ` error`.  A turn that ends with `.` is the answer:
    `answer 3 9 0 1 .`.  Seven texts in ten of the base policy's corpus guess instead of calling.

    ## Action and observation spaces
    27 tokens: the end of text, 10 digits, `*`, `[`, `]`, `.`, `price`, `calculate`, `answer`, `error` and 8 words of goods; see
    `TextGenerationEnv`.  The tools' results are part of the response observation, and no actions.

    ## Rewards
    1 if the text ends with the right product, without leading zeros, between `answer` and `.`, else 0.  The optimum is 1.

    ## References
    Schick et al. 2023, "Toolformer: Language Models Can Teach Themselves to Use Tools", for the form of the calls.

    ## Version History
    * v0: first version.

    Args:
        size: Calls that the answer needs: `"1"`, `"2"` or `"3"`.
        split: `"train"`, `"validation"` or `"test"`; no two share a product.
    """
    calls = int(size)
    words = (*"0123456789", "*", "[", "]", ".", "price", "calculate", "answer", "error", *FILLERS)
    turns: dict[str, Any] = {"stop_tokens": ("]", "."), "reply": Tools([calculate, price], write=in_words), "max_turns": calls + 2}
    room = 16 + 8 * calls
    corpus = Corpus(_respond, prompts=4000, context=8 + room, steps=600)
    return diagnostic_task(words, split, partial(_prompt, calls), gold, room, corpus, **turns)


def price(goods: str) -> str:
    """Return what three words of goods cost, from 12 to 99, by a hash of them."""
    if len(goods.split()) != 3 or not set(goods.split()) <= set(FILLERS):
        raise KeyError(goods)
    return str(12 + int.from_bytes(hashlib.sha256(goods.encode()).digest()[:4], "big") % 88)


def calculate(expression: str) -> str:
    """Return the value of an expression whose digits are apart."""
    return calculator(_joined(expression))


def in_words(result: str, failed: bool) -> str:
    """Write a number digit by digit."""
    return " error" if failed else f" {' '.join(result)}"


def product(prompt: str) -> str:
    """Return the right answer, digits apart."""
    first, second = (part if part[0].isdigit() else price(part) for part in prompt.split(" * "))
    return " ".join(calculate(f"{first} * {second}"))


def gold(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """Return 1 for each text that ends with the right answer, else 0."""
    return np.array([float(r.split()[-n:] == said) for p, r in zip(prompts, responses, strict=True) for n, said in [_answer(p)]])


def _answer(prompt: str) -> tuple[int, list[str]]:
    said = ["answer", *product(prompt).split(), "."]
    return len(said), said


def _joined(text: str) -> str:
    return re.sub(r"(?<=\d) +(?=\d)", "", text)


def _prompt(calls: int, rng: np.random.Generator) -> str:
    factors = [" ".join(str(rng.integers(12, 100))) for _ in range(2)]
    for i in range(calls - 1):
        factors[i] = " ".join(rng.choice(FILLERS, 3))
    return " * ".join(factors)


def _respond(prompt: str, rng: np.random.Generator) -> Sequence[str]:
    if rng.random() >= _CALLS:
        return ["answer", *str(rng.integers(144, 9802)), "."]
    words, factors = list[str](), prompt.split(" * ")
    for i, factor in enumerate(factors):
        if not factor[0].isdigit():
            words += ["[", "price", *factor.split(), "]", *price(factor)]
            factors[i] = " ".join(price(factor))
    return [*words, "[", "calculate", *" * ".join(factors).split(), "]", *product(prompt).split(), "answer", *product(prompt).split(), "."]


def calls_in(response: str) -> list[Call]:
    """Return the calls of a text, results left out."""
    found = (call_in(f"{part}]") for part in response.split("]")[:-1])
    return [call for call in found if call is not None]
