"""The diagnostic suite: one capability a task, each with a ladder of sizes.  Plain data; tasks are built when they are asked for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ladder:
    """One capability, from easy to hard.

    Attributes:
        name: As in the environment's ids, `textrl/{name}-{size}-v0`, and `textrl/{name}-v0` for the default size.
        probes: What the task asks of an agent.
        factory: `module:attribute` of a function of (size, split) that returns the task.
        sizes: From easy to hard.
        default: The size that the benchmark takes unless told otherwise.
        tokens: What an agent may write while it learns the default size.
    """

    name: str
    probes: str
    factory: str
    sizes: tuple[str, ...]
    default: str
    tokens: int = 30_000


_AT = "textrl_env.tasks.diagnostic"
LADDERS: tuple[Ladder, ...] = (Ladder("Recall", "credit over length", f"{_AT}.recall:recall_task", ("4", "16", "64"), "16"),)


def environment_ids() -> dict[str, str]:
    """Return the task's name for each environment id of the suite."""
    named = {f"textrl/{x.name}-v0": x.name.lower() for x in LADDERS}
    return named | {f"textrl/{x.name}-{size}-v0": f"{x.name.lower()}-{size}" for x in LADDERS for size in x.sizes}


def factories() -> dict[str, tuple[str, str]]:
    """Return factory and size for each task name of the suite."""
    named = {x.name.lower(): (x.factory, x.default) for x in LADDERS}
    return named | {f"{x.name.lower()}-{size}": (x.factory, size) for x in LADDERS for size in x.sizes}
