"""The tasks of each suite, and how many tokens an agent may write while it learns each of them."""

from __future__ import annotations

from textrl_env import EXACT_TASKS, LADDERS
from textrl_env.utils.suggestions import did_you_mean

from .spec import Spec, parse

EXACT_TOKENS, REVIEW_TOKENS, STEP_TOKENS = 20_000, 40_000, 30_000
# Of its hundred datasets some with short questions, whose policies learn in a minute on one core
REASONING = ("spell_backward", "letter_counting", "gcd", "chain_sum", "count_bits")
PRESETS = {"quick": 0.5, "full": 1.0}  # share of the budgets

SUITES: dict[str, tuple[str, ...]] = {
    "exact": tuple(f"exact-{name.lower()}" for name in EXACT_TASKS),
    "diagnostic": (*(f"exact-{name.lower()}" for name in EXACT_TASKS), *(ladder.name.lower() for ladder in LADDERS), "review"),
    "reasoning": tuple(f"reasoning:dataset={name}:size=512:max_new_tokens=16" for name in REASONING),
    "ladders": tuple(f"{ladder.name.lower()}-{size}" for ladder in LADDERS for size in ladder.sizes),
}


def tasks_of(suite: str) -> list[Spec]:
    """Return the tasks of a suite.

    Raises:
        ValueError: There is no such suite.
    """
    if suite not in SUITES:
        raise ValueError(
            f"--suite {suite}: no suite is called so{did_you_mean(suite, SUITES)}; choose one of {', '.join(SUITES)}, or name --tasks"
        )
    return [parse(name) for name in SUITES[suite]]


def budget(task: str) -> int:
    """Return the tokens that an agent may write on a task while it learns."""
    if task.startswith("exact-"):
        return EXACT_TOKENS
    if task == "review":
        return REVIEW_TOKENS
    tokens = {ladder.name.lower(): ladder.tokens for ladder in LADDERS}
    return tokens.get(task.rpartition("-")[0], tokens.get(task, STEP_TOKENS))


def is_exact(task: str) -> bool:
    """Return whether a task, by its spec, is one whose optimum is enumerated."""
    return task.lower().removeprefix("textrl/").startswith("exact-")


def family(task: str) -> str:
    """Return the name of a ladder for a task of any size on it, and of any other task its own name: what is tuned together."""
    name = task.lower().removeprefix("textrl/").removesuffix("-v0")
    stem = name.rpartition("-")[0]
    return stem if stem in {ladder.name.lower() for ladder in LADDERS} else name


def capability(task: str) -> str:
    """Return what a task probes, in a few words."""
    if task.startswith("exact-"):
        return "known optimum"
    if task == "review":
        return "sentiment of film reviews"
    probes = {ladder.name.lower(): ladder.probes for ladder in LADDERS}
    return probes.get(task, probes.get(task.rpartition("-")[0], task))
