"""What `textrl train` says before it trains."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..models.loading import is_in_shards
from ..training.policy_training import Before
from ..training.run_plan import DryRun, ModelFacts, RunPlan, TokenFacts, plan_of

_WIDTH = 160  # characters of a text: two lines of a terminal


def print_plan(plan: RunPlan, console: Console) -> None:
    """Print a plan, a line for each thing to know."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, lines in _parts(plan).items():
        for number, line in enumerate(lines):
            table.add_row("" if number else name, Text(line))
    console.print(table)


def tell_plan(console: Console, dry_run: bool) -> Before:
    """Return what `train_policy` and `learn_offline` call before they train: it prints the plan, or for a run that goes on one line.

    Raises:
        DryRun: When called, if `dry_run`: the plan is all that was asked for.
    """

    def tell(agent: Any, amount: int, data: Any = None, done: int | None = None) -> None:
        if done is not None:
            console.print(f"goes on at {done:,}, {amount:,} more to go" if done else "goes on from its checkpoint", highlight=False)
        elif is_in_shards(getattr(agent, "policy", None) or agent.lm):
            console.print("no plan: each process read its part of the weights, and none could write or time a text by itself")
        elif not console.quiet:  # of several processes, one tells
            print_plan(plan_of(agent, amount, data), console)
        if dry_run:
            raise DryRun

    return tell


def _parts(plan: RunPlan) -> dict[str, list[str]]:
    plays = plan.total_tokens is not None
    parts = {
        "model": [_model(plan.model)],
        **({} if plan.reference is None else {plan.reference[0]: [_model(plan.reference[1])]}),
        "tokenizer": [_tokenizer(plan.tokens)],
        "prompts" if plays else "texts": [f"{number} {_cut(repr(text))}" for number, text in enumerate(plan.texts, 1)],
    }
    if plan.samples:
        parts["samples"] = [f"{sample.score:+.3g} {_cut(repr(sample.response))}" for sample in plan.samples]
        parts["samples"].append("the reward's scores of what the first policy writes to these prompts")
    estimate, free = plan.memory
    parts["memory"] = [estimate.line(free).removeprefix("memory: ")]
    each = sum(plan.seconds.values())
    told = ", ".join(f"{name} {_seconds(seconds)}" for name, seconds in plan.seconds.items())
    what = "iteration" if plays else "step"
    parts[what] = [f"about {_seconds(each)} for {plan.each:,} texts ({told}), estimated from {plan.measured} texts that were timed"]
    tokens = f"{plan.total_tokens:,} tokens" if plan.total_tokens is not None else f"{plan.passes:.1f} times over the texts"
    parts["run"] = [f"about {plan.iterations:,} {what}s, {tokens}, {_hours(plan.iterations * each)} (hours:minutes)"]
    return parts


def _model(model: ModelFacts) -> str:
    kind, *sizes = model.sizes.items()
    shape = "".join(f", {name} {size:,}" if name != "layers" else f", {size} layers" for name, size in sizes)
    some = f"{_millions(model.trained)} of them trained" if model.trained else "none of them trained"
    trained = "all of them trained" if model.trained == model.parameters else some
    return f"{kind[1]}{shape}: {_millions(model.parameters)} parameters, {trained}, {model.dtype} on {model.device}"


def _tokenizer(tokens: TokenFacts) -> str:
    begins = f"prompts begin with {_spelled(tokens.beginning)}" if tokens.beginning else "prompts begin with no token of their own"
    return f"{tokens.vocabulary:,} tokens; texts end with {_spelled(tokens.ends)}; {begins}"


def _spelled(tokens: dict[int, str]) -> str:
    return " or ".join(f"{number} {spelling}".rstrip() for number, spelling in tokens.items())


def _millions(number: int) -> str:
    return f"{number / 1e6:,.1f} M" if number >= 1e5 else f"{number:,}"


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def _hours(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02}" if minutes else "less than 0:01"


def _cut(text: str) -> str:
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 4]} ..."
