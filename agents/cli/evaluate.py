"""`textrl evaluate`: measures of the texts that the policy of a finished run writes."""

from __future__ import annotations

import dataclasses
import math
import shlex

from rich.console import Console
from rich.table import Table

from rewards.analysis.group_means import by_group
from textrl_env.reward_model import own_code
from textrl_env.utils.files import write_json, write_jsonl

from ..evaluation.text_comparison import compare
from ..training.outcome_report import print_outcome
from ..training.run_outcome import Exam, Outcome, aim_of, prompts_of_run, texts_after, texts_before
from ..training.trained_run import TrainedRun, open_run
from ..utils.device_flag import on_device
from .arguments import reward_of
from .flags import Evaluate


@on_device
def run_evaluate(config: Evaluate) -> None:
    """Write `evaluation-POLICY.json` and `evaluation-POLICY.jsonl` into the run, and print a table."""
    run = open_run(config.run, config.policy)
    reward = reward_of(run.reward if config.reward is None else config.reward)
    if config.reward is None and own_code(reward):  # opening a folder runs no code that only the folder names
        raise ValueError(f"the reward of {config.run} is code of somebody's own: pass --reward {shlex.quote(run.reward)} to run it")
    exam = Exam(reward, config.texts, seed=config.seed)
    after = texts_after(run, exam)
    before = None if run.first is None else texts_before(config.run, exam, run.first, run.rules, run.named_reference)
    outcome = Outcome(compare(before, after, aim_of(run.settings)), before, after, prompts_of_run(config.run, run, exam))
    found, name = dataclasses.asdict(outcome.comparison), config.run / f"evaluation-{run.name}"
    facts = {"policy": run.name, "texts": config.texts, "seed": config.seed, "prompts": outcome.prompts}
    write_json(name.with_suffix(".json"), {**facts, **found.pop("after"), **found})
    write_jsonl(name.with_suffix(".jsonl"), after)
    console = Console()
    print_outcome(outcome, console)
    if config.by is not None:
        _by_group(config, run, outcome, console)
    print(f"{name.with_suffix('.json')}")


def _by_group(config: Evaluate, run: TrainedRun, outcome: Outcome, console: Console) -> None:
    """Write `groups-POLICY.json` and print what each group of prompts gets, before and after training."""
    assert config.by is not None
    prompts = [run.task.prompts[i] for i in sorted(i % len(run.task.prompts) for i in range(config.texts))]  # as the texts are ordered
    if not any(config.by in prompt.metadata for prompt in prompts):
        known = sorted({column for prompt in prompts for column in prompt.metadata})
        raise ValueError(f"--by {config.by}: no prompt has this column; known: {', '.join(known) or 'none'}")
    groups = [str(prompt.metadata.get(config.by)) for prompt in prompts]
    written = {"before": outcome.before, "after": outcome.after}
    means = {
        when: by_group([row["score"] for row in rows], groups, [row["prompt"] for row in rows])
        for when, rows in written.items()
        if rows is not None
    }
    write_json(config.run / f"groups-{run.name}.json", {when: dataclasses.asdict(value) for when, value in means.items()})
    table = Table("", config.by, "texts", "reward", "95% interval")
    for when, value in means.items():
        for m in value.means:
            table.add_row(when, m.group, str(m.num), f"{m.mean:.3f}", _ends(m.low, m.high))
        table.add_row(when, "gap", "", f"{value.gap:.3f}", _ends(value.gap_low, value.gap_high))
    console.print(table)


def _ends(low: float, high: float) -> str:
    return f"{low:.3f} to {high:.3f}" if math.isfinite(low) else "- (one prompt)"
