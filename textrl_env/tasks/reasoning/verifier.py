"""What an answer to a question of reasoning-gym is worth, and which of its datasets can be asked."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ...utils.never_copied import NeverCopied

# Datasets that are refused, and why
UNFIT: Mapping[str, str] = {
    "boxnet": "its verifier fails on answers that are JSON of another shape",
    "codeio": "it makes its questions by running the programs of a data file",
    "composite": "it mixes other datasets: make a task of each",
    "intermediate_integration": "its verifier lets SymPy run the answer as Python code",
    "list_functions": "the same seed gives other questions each time",
    "polynomial_multiplication": "its verifier lets SymPy run the answer as Python code",
    "simple_integration": "its verifier lets SymPy run the answer as Python code",
}


def _is_literal(answer: str) -> bool:
    """Return whether an answer is a Python literal, or rows of numbers, `_` and `Q`: evaluating it computes nothing."""
    if re.fullmatch(r"[\d\s_Q-]*", answer):
        return True
    try:
        ast.literal_eval(answer)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False
    return True


def _is_arithmetic(answer: str) -> bool:
    """Return whether an answer holds numbers, four operations and brackets alone: no names, and no powers, which might never end."""
    return len(answer) < 200 and "**" not in answer and re.fullmatch(r"[0-9\s.()+*/-]*", answer) is not None


def _is_product(answer: str) -> bool:
    return all(re.fullmatch(r"[0-9]{1,18}", factor.strip()) for factor in answer.split("×"))  # noqa: RUF001, as the dataset writes it


def _is_matrix(answer: str) -> bool:
    try:
        rows = json.loads(answer)
    except (ValueError, RecursionError):
        return False
    return isinstance(rows, list) and all(isinstance(row, list) for row in rows)


def _is_finite(answer: str) -> bool:
    return re.search(r"\d[eE]|inf", answer) is None


def _has_digit(answer: str) -> bool:
    return re.search(r"[0-9]", answer) is not None


# What an answer must be before these verifiers see it.  They would evaluate others as Python code, or fail on them.
READABLE: Mapping[str, Callable[[str], bool]] = {
    "binary_matrix": _is_literal,
    "n_queens": _is_literal,
    "spiral_matrix": _is_literal,
    "string_insertion": _is_literal,
    "countdown": _is_arithmetic,
    "puzzle24": _is_arithmetic,
    "coin_flip": _is_finite,
    "game_of_life": _is_matrix,
    "pool_matrix": _has_digit,
    "prime_factorization": _is_product,
}


class Verifier(NeverCopied):
    """Scores responses as the dataset of their question does.

    Args:
        dataset: Its name.
        configurations: Of the dataset, one for each level.
        entries: By the text of the prompt: its level, and what the dataset says of the question.
    """

    def __init__(self, dataset: str, configurations: Sequence[Any], entries: Mapping[str, tuple[int, Mapping[str, Any]]]) -> None:
        self.dataset, self.configurations, self.entries = dataset, tuple(configurations), dict(entries)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Return the score of each response, in [0, 1].

        Raises:
            ValueError: A prompt is none of the task's.
        """
        return np.array([self._score(prompt, response) for prompt, response in zip(prompts, responses, strict=True)], float)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the datasets out, for some hold functions that cannot be pickled; they are made anew."""
        return {key: value for key, value in self.__dict__.items() if key != "_datasets"}

    @cached_property
    def _datasets(self) -> list[Any]:
        from reasoning_gym.factory import DATASETS

        return [DATASETS[self.dataset][0](configuration) for configuration in self.configurations]

    def _score(self, prompt: str, response: str) -> float:
        if prompt not in self.entries:
            raise ValueError(f"prompt {prompt[:80]!r} is no question of this task, so there is no answer to compare with")
        level, entry = self.entries[prompt]
        answer = answer_in(response)
        if answer != entry["answer"] and not READABLE.get(self.dataset, bool)(answer):
            answer = ""
        return float(self._datasets[level].score_answer(answer, entry))


def answer_in(response: str) -> str:
    """Return what stands in the last `<answer>...</answer>` of a response, or else all of it, without the white space around it."""
    marked = re.findall(r"<answer>(.*?)</answer>", response, re.DOTALL)
    return str(marked[-1] if marked else response).strip()
