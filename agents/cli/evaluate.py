"""`textrl evaluate`: measures of the texts that the policy of a finished run writes."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.console import Console
from rich.table import Table

from rewards.analysis.group_means import by_group
from rewards.metrics.diversity import distinct_n
from textrl_env import TextTask
from textrl_env.utils.files import write_json, write_jsonl

from ..evaluation.policy_texts import WrittenTexts, make_policy, write_texts
from ..training.trained_run import TrainedRun, open_run
from .arguments import reward_of
from .flags import Evaluate


def measures(texts: WrittenTexts, task: TextTask) -> dict[str, float]:
    """Return what is known of a policy's texts; the gold score only if the task has one."""
    gold = {} if task.gold is None else {"gold": float(task.gold(texts.prompts, texts.responses).mean())}
    reasons = {f"finished_by_{r}": texts.finish_reasons.count(r) / len(texts.finish_reasons) for r in sorted(set(texts.finish_reasons))}
    return {
        "score": float(texts.scores.mean()),
        "score_std": float(texts.scores.std()),
        "return": float(texts.returns.mean()),
        **gold,
        "kl_per_sequence": texts.kl_per_sequence,
        **{f"distinct_{n}": distinct_n(texts.responses, n) for n in (1, 2, 3)},
        "length": float(texts.lengths.mean()),
        **reasons,
        "tokens_per_second": texts.tokens_per_second,
    }


def run_evaluate(config: Evaluate) -> None:
    """Write `evaluation-POLICY.json` and `evaluation-POLICY.jsonl` into the run, and print a table."""
    run = open_run(config.run, config.policy)
    reward = reward_of(run.reward if config.reward is None else config.reward)
    texts = write_texts(run.policy, run.task, config.texts, reward, run.reference, config.seed, progress_bar=True, title="evaluate")
    figures = measures(texts, run.task)
    name = config.run / f"evaluation-{run.name}"
    write_json(name.with_suffix(".json"), {"policy": run.name, "texts": config.texts, "seed": config.seed, **figures})
    rows = zip(texts.prompts, texts.responses, texts.scores.tolist(), strict=True)
    write_jsonl(name.with_suffix(".jsonl"), ({"prompt": p, "response": r, "score": s} for p, r, s in rows))
    table = Table(title=f"{config.texts} texts of {config.run / run.name}", show_header=False)
    for key, value in figures.items():
        table.add_row(key, f"{value:,.3f}")
    Console().print(table)
    if config.by is not None:
        _by_group(config, run, reward, texts)
    print(f"{name.with_suffix('.json')}")


def _by_group(config: Evaluate, run: TrainedRun, reward: Any, after: WrittenTexts) -> None:
    """Write `groups-POLICY.json` and print what each group of prompts gets, before and after training."""
    assert config.by is not None
    prompts = [run.task.prompts[i] for i in sorted(i % len(run.task.prompts) for i in range(config.texts))]  # as the texts are ordered
    if not any(config.by in prompt.metadata for prompt in prompts):
        known = sorted({column for prompt in prompts for column in prompt.metadata})
        raise ValueError(f"--by {config.by}: no prompt has this column; known: {', '.join(known) or 'none'}")
    groups = [str(prompt.metadata.get(config.by)) for prompt in prompts]
    means = {}
    if run.first is not None:
        before = write_texts(
            make_policy(run.task, run.first), run.task, config.texts, reward, None, config.seed, progress_bar=True, title="before training"
        )
        means["before"] = by_group(before.scores, groups)
    means["after"] = by_group(after.scores, groups)
    write_json(config.run / f"groups-{run.name}.json", {when: dataclasses.asdict(value) for when, value in means.items()})
    table = Table("", config.by, "texts", "reward", "95% interval")
    for when, value in means.items():
        for m in value.means:
            table.add_row(when, m.group, str(m.num), f"{m.mean:.3f}", f"{m.low:.3f} to {m.high:.3f}")
        table.add_row(when, "gap", "", f"{value.gap:.3f}", f"{value.gap_low:.3f} to {value.gap_high:.3f}")
    Console().print(table)
