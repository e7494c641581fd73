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
    """Return the tokens that an agent may write on a task, by its name, while it learns."""
    name = plain_name(task)
    if is_exact(name):
        return EXACT_TOKENS
    if name == "review":
        return REVIEW_TOKENS
    tokens = {ladder.name.lower(): ladder.tokens for ladder in LADDERS}
    return tokens.get(name.rpartition("-")[0], tokens.get(name, STEP_TOKENS))


def budget_at(task: str, preset: str) -> int:
    """Return the tokens that an agent may write on a task, by its name, at a preset."""
    return round(PRESETS[preset] * budget(task))


def plain_name(task: str) -> str:
    """Return the name of a task for any way to write it: `recall-64` for `textrl/Recall-64-v0`."""
    return task.lower().removeprefix("textrl/").removesuffix("-v0")


def is_exact(task: str) -> bool:
    """Return whether a task, by its spec, is one whose optimum is enumerated."""
    return plain_name(task).startswith("exact-")


def family(task: str) -> str:
    """Return what is tuned together, by a task's spec: a ladder whatever the size, else the task alone; with settings, in their order."""
    spec = parse(task)
    name = plain_name(spec.name)
    stem = name.rpartition("-")[0]
    settings = (f"{key}={value}" for key, value in sorted(spec.settings.items()))
    return ":".join([stem if stem in {ladder.name.lower() for ladder in LADDERS} else name, *settings])


def capability(task: str) -> str:
    """Return what a task, by its name, probes, in a few words."""
    name = plain_name(task)
    if is_exact(name):
        return "known optimum"
    if name == "review":
        return "sentiment of film reviews"
    probes = {ladder.name.lower(): ladder.probes for ladder in LADDERS}
    return probes.get(name, probes.get(name.rpartition("-")[0], task))
