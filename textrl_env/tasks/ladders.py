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
LADDERS: tuple[Ladder, ...] = (
    Ladder("Recall", "credit over length", f"{_AT}.recall:recall_task", ("4", "16", "64"), "16", 40_000),
    Ladder("Lock", "sparse reward", f"{_AT}.lock:lock_task", ("4", "8", "12"), "8"),
    Ladder("Vocab", "many actions", f"{_AT}.vocab:vocab_task", ("64", "512", "4096"), "512", 20_000),
    Ladder("Modes", "diversity", f"{_AT}.modes:modes_task", ("4", "16", "64"), "16", 15_000),
    Ladder("Brackets", "grammar, learned", f"{_AT}.brackets:brackets_task", ("2", "4", "8"), "4"),
    Ladder("BracketsMasked", "grammar, masked", f"{_AT}.brackets:bracketsmasked_task", ("2", "4", "8"), "4"),
    Ladder("Json", "format, learned", f"{_AT}.json_object:json_task", ("2", "3", "4"), "3"),
    Ladder("JsonMasked", "format, masked", f"{_AT}.json_object:jsonmasked_task", ("2", "3", "4"), "3"),
    Ladder("QA", "facts in a context", f"{_AT}.qa:qa_task", ("2", "3", "8"), "3", 15_000),
    Ladder("Translate", "word order, agreement", f"{_AT}.translate:translate_task", ("3", "5", "7"), "5"),
    Ladder("Summary", "coverage against length", f"{_AT}.summary:summary_task", ("1", "2", "3"), "2"),
    Ladder("Dialogue", "several turns", f"{_AT}.dialogue:dialogue_task", ("1", "2", "3"), "2"),
    Ladder("Calculator", "calling tools", f"{_AT}.calculator:calculator_task", ("1", "2", "3"), "2", 40_000),
    Ladder("Persona", "the worst served group", f"{_AT}.persona:persona_task", ("2", "3", "4"), "3", 20_000),
    Ladder("NoisyPref", "noisy preferences", f"{_AT}.noisy_preferences:noisypref_task", ("0", "20", "40"), "20"),
    Ladder("Hack", "a reward with a loophole", f"{_AT}.reward_hacking:hack_task", ("1", "2", "4"), "4"),
    Ladder("Caption", "facts in a picture", f"{_AT}.caption:caption_task", ("1", "2", "3"), "2", 20_000),
)


def environment_ids() -> dict[str, str]:
    """Return the task's name for each environment id of the suite."""
    named = {f"textrl/{x.name}-v0": x.name.lower() for x in LADDERS}
    return named | {f"textrl/{x.name}-{size}-v0": f"{x.name.lower()}-{size}" for x in LADDERS for size in x.sizes}


def factories() -> dict[str, tuple[str, str]]:
    """Return factory and size for each task name of the suite."""
    named = {x.name.lower(): (x.factory, x.default) for x in LADDERS}
    return named | {f"{x.name.lower()}-{size}": (x.factory, size) for x in LADDERS for size in x.sizes}
