"""What a finished run is good for: `textrl evaluate` measures its policy, `textrl generate` writes texts with it."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml
from rich.console import Console
from rich.table import Table
from torch import nn

from rewards.diversity import distinct_n
from rewards.groups import by_group
from textrl_env import TextTask, make_task, read_prompts

from .algorithms import ALGORITHMS
from .base import base_policy
from .evaluation import Texts, make_policy, write_texts
from .generation import generate, stream
from .policy import TransformerPolicy
from .run_folder import RunFolder, write_json, write_jsonl
from .train import Train, reward_of, task_of


@dataclass(frozen=True)
class Evaluate:
    """Measure the policy of a run on the test prompts of its task.

    Attributes:
        run: Folder of `textrl train` or `textrl demo`.
        policy: Subfolder of the policy, if there are several.
        reward: Name of a reward model, a saved one's folder, or a JSON object; by default the run's own.
        by: Column of the prompts' data: rewards of each of its values are listed, of the policy and of what it started from.
        texts: How many texts the policy writes.
        seed: Of the sampling.
    """

    run: Annotated[Path, tyro.conf.Positional] = Path("runs/demo")
    policy: str | None = None
    reward: str | None = None
    by: str | None = None
    texts: int = 500
    seed: int = 0


@dataclass(frozen=True)
class Generate:
    """Write texts with the policy of a run.

    Attributes:
        run: Folder of `textrl train` or `textrl demo`.
        prompts: What to go on with; a single one is streamed.
        policy: Subfolder of the policy, if there are several.
        file: More prompts, as `read_prompts` takes them: .jsonl, .csv, .parquet or .txt.
        out: JSON Lines file for `prompt` and `response`; by default they are printed.
        max_new_tokens: Longest response; by default the task's.
        deterministic: Take the likeliest token instead of drawing one.
        seed: Of the sampling.
    """

    run: Annotated[Path, tyro.conf.Positional] = Path("runs/demo")
    prompts: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    policy: str | None = None
    file: Path | None = None
    out: Path | None = None
    max_new_tokens: int | None = None
    deterministic: bool = False
    seed: int = 0


@dataclass(frozen=True)
class TrainedRun:
    """A run that left a policy.

    Attributes:
        name: The policy's subfolder.
        task: What it was trained on, with the prompts of the test split in order if the task has splits.
        policy: Who writes.
        reference: What KL is measured against; None: nothing.
        reward: What it was trained for, as plain data.
        first: The model it started from; None if there was none.
    """

    name: str
    task: TextTask
    policy: TransformerPolicy
    reference: nn.Module | str | None
    reward: Any
    first: str | None


def open_run(folder: Path, policy: str | None = None) -> TrainedRun:
    """Open a run folder.

    Args:
        folder: Of `textrl train` or `textrl demo`.
        policy: Subfolder of the policy; None takes the only one, or that with KL shaping.

    Raises:
        FileNotFoundError: The folder holds no configuration or no finished policy.
        ValueError: There is no such policy, or several and none is named.
    """
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"{folder} holds no config.yaml: pass the folder of a textrl run")
    found = sorted({path.parent.name for name in ("policy.zip", "model") for path in folder.glob(f"*/{name}")})
    if not found:
        raise FileNotFoundError(f"{folder} holds no finished policy (*/policy.zip or */model): run textrl train or textrl demo first")
    name = policy or (found[0] if len(found) == 1 else "kl")
    if name not in found:
        raise ValueError(f"{folder} has no policy {name!r}: choose one of {', '.join(found)} with --policy")
    settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    if "algo" in settings:
        values = {field.name: settings[field.name] for field in dataclasses.fields(Train) if field.name in settings}
        corpus = tuple(Path(path) for path in values.pop("corpus", ()))
        config = Train(**values | {"corpus": corpus})
        task, reward = task_of(config, RunFolder(folder), split="test"), reward_of(config.reward)
    else:
        task, reward = make_task("review", split="test"), {"name": "preference", "path": str(folder / "reward")}
    ordered = dataclasses.replace(task, prompt_order="sequential")
    first = settings.get("model") or (None if task.recipe is None or settings.get("algo") == "sft" else str(base_policy(task)))
    if not (folder / name / "policy.zip").is_file():
        return TrainedRun(name, ordered, make_policy(task, folder / name / "model"), first, reward, first)
    algorithm = ALGORITHMS[settings.get("algo", "ppo")].made.load(folder / name / "policy.zip", device="cpu")
    return TrainedRun(name, ordered, algorithm.policy, algorithm.reference, reward, first)


def measures(texts: Texts, task: TextTask) -> dict[str, float]:
    """Return what is known of a policy's texts; the gold score only if the task has one."""
    gold = {} if task.gold is None else {"gold": float(task.gold(texts.prompts, texts.responses).mean())}
    reasons = {f"finished_by_{r}": texts.finish_reasons.count(r) / len(texts.finish_reasons) for r in sorted(set(texts.finish_reasons))}
    return {
        "score": float(texts.scores.mean()),
        "score_std": float(texts.scores.std()),
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
    reward = run.reward if config.reward is None else reward_of(config.reward)
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


def _by_group(config: Evaluate, run: TrainedRun, reward: Any, after: Texts) -> None:
    """Write `groups-POLICY.json` and print what each group of prompts gets, before and after training."""
    assert config.by is not None
    prompts = [run.task.prompts[i % len(run.task.prompts)] for i in range(config.texts)]
    if not any(config.by in prompt.metadata for prompt in prompts):
        known = sorted({column for prompt in prompts for column in prompt.metadata})
        raise ValueError(f"--by {config.by}: no prompt has this column; known: {', '.join(known) or 'none'}")
    groups = [str(prompt.metadata.get(config.by)) for prompt in prompts]
    found = {}
    if run.first is not None:
        before = write_texts(
            make_policy(run.task, run.first), run.task, config.texts, reward, None, config.seed, progress_bar=True, title="before training"
        )
        found["before"] = by_group(before.scores, groups)
    found["after"] = by_group(after.scores, groups)
    write_json(config.run / f"groups-{run.name}.json", {when: dataclasses.asdict(value) for when, value in found.items()})
    table = Table("", config.by, "texts", "reward", "95% interval")
    for when, value in found.items():
        for m in value.means:
            table.add_row(when, m.group, str(m.num), f"{m.mean:.3f}", f"{m.low:.3f} to {m.high:.3f}")
        table.add_row(when, "gap", "", f"{value.gap:.3f}", f"{value.gap_low:.3f} to {value.gap_high:.3f}")
    Console().print(table)


def run_generate(config: Generate) -> None:
    """Write texts to the terminal or to a file."""
    run = open_run(config.run, config.policy)
    prompts = [*config.prompts, *([] if config.file is None else (p.text for p in read_prompts(config.file)))]
    if not prompts:
        raise ValueError("nothing to go on with: pass prompts, or --file")
    limit = config.max_new_tokens or run.task.max_new_tokens
    policy, tokenizer = run.policy, run.task.tokenizer
    if len(prompts) == 1 and config.out is None:
        print(prompts[0], end="", flush=True)
        for piece in stream(policy, tokenizer, prompts[0], limit, config.deterministic, config.seed):
            print(piece, end="", flush=True)
        print()
        return
    responses = generate(policy, tokenizer, prompts, limit, config.deterministic, seed=config.seed, progress_bar=sys.stderr.isatty())
    if config.out is not None:
        write_jsonl(config.out, ({"prompt": p, "response": r} for p, r in zip(prompts, responses, strict=True)))
        return
    for prompt, response in zip(prompts, responses, strict=True):
        print(f"{prompt}{response}")
