"""`textrl loop`: sample, choose pairs, wait for labels, fit the reward model, train, evaluate, and start the next round."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from rewards import Preference, PreferenceRewardModel, fit_preference_model, read_preferences, write_preferences
from rewards.feedback.import_export import items_of
from rewards.feedback.pair_selection import Sample, choose_pairs
from rewards.preferences.label_consensus import agreement, consensus
from rewards.preferences.simulated_annotators import Annotator
from rewards.utils.intervals import clustered_by, mean_interval, prompt_units, unit_means, win_rate, wins
from textrl_env import Episode, FileTokenizer, TextTask, make_task
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv
from textrl_env.reward_model import NoReward
from textrl_env.utils.files import plain, write_json, write_jsonl
from textrl_env.utils.tables import read_rows

from ..algorithms.ppo import TextPPO
from ..evaluation.policy_texts import make_policy, write_texts
from ..models.loading import frozen, load_lm
from ..policies.transformer_policy import TransformerPolicy
from ..training.base_policies import base_policy
from ..training.policy_training import train_policy
from ..training.settings import PolicyTraining
from ..utils.device_flag import on_device
from ..utils.run_folder import RunFolder, versions
from ..utils.threads import choose_threads
from .feedback_loop_report import below_chance, write_loop_report
from .flags import PEOPLE, Loop

_ENSEMBLE = 4  # reward models whose disagreement is uncertainty
_POOL = 3  # candidate pairs for each that is asked, when uncertainty chooses


class LabelsMissingError(ValueError):
    """People have not answered everything yet."""


@on_device
def run_loop(config: Loop) -> None:
    """Run the rounds that are missing, then write the report.

    Raises:
        ValueError: A number is out of range, or the task lacks a base policy or a gold score that simulated annotators need.
        LabelsMissingError: People have not answered the study of a round yet; the message names the command.
    """
    console = Console()
    config.check()
    choose_threads()
    task = make_task(config.task)
    if not config.asks_people:
        _simulated(config, task)
    run = RunFolder(config.out)
    if config.overwrite and any(run.path.glob("round-*/study")):
        raise ValueError(f"--overwrite: {run.path} holds a study for people: use another --out, or move their answers away first")
    with run.begin("loop", config.overwrite, ("round-*", "base.jsonl", "rounds.json", "rounds.png", "report.html")):
        run.config = config
        _rounds(config, run, task, console)


def _rounds(config: Loop, run: RunFolder, task: TextTask, console: Console) -> None:
    base = base_policy(task, progress_bar=True)
    names = ("task", "annotators", "overlap", "choose", "weigh", "texts", *(f.name for f in dataclasses.fields(PolicyTraining)))
    depends_on = {"base": base, **{name: getattr(config, name) for name in names}}
    if not config.asks_people:  # whose answers may turn out fewer than were planned
        depends_on["labels"] = config.labels
    rows: list[dict[str, Any]] = []
    _judge_base(config, run, base, depends_on)
    for number in range(1, config.rounds + 1):
        console.rule(f"round {number} of {config.rounds}")
        rows.append(_round(config, run, number, task, base, depends_on))
        if (line := below_chance(rows[-1])) is not None:
            console.print(f"warning: {line}", style="bold red", highlight=False, markup=False, soft_wrap=True)
        write_json(run.path / "rounds.json", {"base": run.facts("base"), "rounds": rows})
    _print(console, rows)
    console.print(f"report: {write_loop_report(run.path)}")


def _round(config: Loop, run: RunFolder, number: int, task: TextTask, base: Path, shared: Mapping[str, Any]) -> dict[str, Any]:
    own = RunFolder(run.path / f"round-{number}")
    manifest = {"round": number, "config": plain(dataclasses.asdict(config)), "base": base.name, "versions": versions()}
    write_json(own.path / "manifest.json", manifest)
    before = run.path / f"round-{number - 1}" / "policy" / "policy.zip"
    policy, reward_folder = own.path / "policy" / "policy.zip", own.path / "reward"
    answers = [run.path / f"round-{n}" / "preferences.jsonl" for n in range(1, number + 1)]
    with own.stage("pairs", {**shared, "answers": answers[:-1], "writer": before if number > 1 else None}, makes=["pairs.jsonl"]) as stage:
        if stage.needed:
            writer = make_policy(task, base) if number == 1 else TextPPO.load(before).policy
            ensemble = [] if number == 1 or config.choose != "uncertain" else _ensemble(config, task, _answers(run.path, number - 1))
            _choose(config, own, number, task, writer, ensemble)
    with own.stage("labels", {**shared, "labels": config.labels, "pairs": own.path / "pairs.jsonl"}, makes=["preferences.jsonl"]) as stage:
        if stage.needed:
            (_ask_people if config.asks_people else _ask_simulated)(config, own, task)
    with own.stage("reward", {**shared, "answers": answers}, makes=["reward"]) as stage:
        if stage.needed:
            stage.facts = _fit(config, run.path, own, number, task)
    reward = PreferenceRewardModel.load(reward_folder)
    env = TextGenerationVecEnv(config.n_episodes, task=task, reward=reward)
    train_policy(own, "policy", str(base), env, config, {**shared, "reward": reward_folder}, outdated=["texts.jsonl"])
    judged = {**shared, "reward": reward_folder, "policy": policy, "base_texts": run.path / "base.jsonl"}
    with own.stage("judged", judged, makes=["texts.jsonl"]) as stage:
        if stage.needed:
            stage.facts = _judge(config, own, TextPPO.load(policy).policy, reward, base, read_rows(run.path / "base.jsonl"))
    return {"round": number, **own.facts("reward"), **own.facts("judged")}


def _choose(config: Loop, own: RunFolder, number: int, task: TextTask, writer: TransformerPolicy, ensemble: Sequence[Any]) -> None:
    """Have the policy write two texts to each of enough prompts, and choose the pairs that annotators are asked about."""
    wanted = config.pairs * (_POOL if ensemble else 1)
    shift = (number - 1) * wanted % len(task.prompts)  # every round has prompts of its own, as far as they go
    prompts = [task.prompts[(shift + i) % len(task.prompts)] for i in range(min(wanted, len(task.prompts)))]
    ordered = dataclasses.replace(task, prompts=tuple(prompts), prompt_order="sequential")
    samples = []
    for copy in range(2):
        seed = config.seed * 1000 + number * 10 + copy
        texts = write_texts(writer, ordered, wanted, NoReward(), seed=seed, progress_bar=True, title=f"write texts {'ab'[copy]}")
        samples += [Sample(p, r, f"round-{number - 1}") for p, r in zip(texts.prompts, texts.responses, strict=True)]
    how = config.choose if ensemble or config.choose != "uncertain" else "random"
    items = choose_pairs(samples, config.pairs, how, ensemble, config.seed)
    write_jsonl(own.path / "pairs.jsonl", ({"prompt": i.prompt, "responses": i.responses, "sources": i.sources} for i in items))


def _ask_simulated(config: Loop, own: RunFolder, task: TextTask) -> None:
    pairs = [(row["prompt"], *row["responses"]) for row in read_rows(own.path / "pairs.jsonl")]
    answers = [answer for annotator in _simulated(config, task) for answer in annotator.compare(pairs)]
    write_preferences(own.path / "preferences.jsonl", answers)


def _simulated(config: Loop, task: TextTask) -> list[Annotator]:
    """Return the annotators.

    Raises:
        ValueError: The task has no gold score that they could follow, or settings are none.
    """
    if task.gold is None:
        raise ValueError(f"task {config.task!r} has no gold score for simulated annotators to follow: pass --annotators people")
    made = []
    for number, text in enumerate(config.annotators):
        try:
            made.append(Annotator(task.gold, **{"name": f"simulated-{number}", **json.loads(text)}, seed=config.seed))
        except (TypeError, ValueError) as error:
            raise ValueError(f"--annotators {text}: {error}; pass JSON objects such as '{{\"flip\": 0.2}}', or {PEOPLE}") from error
    return made


def _ask_people(config: Loop, own: RunFolder, task: TextTask) -> None:
    from rewards.feedback.manage_study import create_study, export_answers
    from rewards.feedback.study import Study

    study = own.path / "study"
    if not (study / "feedback.db").is_file():
        settings = Study(overlap=config.overlap, name=f"{config.task}, {own.path.name}")
        made = create_study(study, settings, items_of(read_rows(own.path / "pairs.jsonl")))
        Console().print(made.describe(), soft_wrap=True)
    have = export_answers(study, own.path / "preferences.jsonl")
    wanted = config.pairs * config.overlap
    if have < wanted:
        raise LabelsMissingError(
            f"{have} of {wanted} answers are there: run `textrl feedback serve {study}`, answer, and run the same loop again; "
            f"or set --labels to what there is"
        )


def _answers(folder: Path, rounds: int) -> list[Preference]:
    return [p for number in range(1, rounds + 1) for p in read_preferences(folder / f"round-{number}" / "preferences.jsonl")]


def _fit(config: Loop, folder: Path, own: RunFolder, number: int, task: TextTask) -> dict[str, Any]:
    """Fit a reward model to the answers of all rounds, mean 0 and variance 1 on the texts of this round."""
    given = _answers(folder, number)
    data = consensus(given) if config.weigh else given
    model, report = fit_preference_model(data, tokenizer=_tokenizer(task), trunk=None, seed=config.seed)
    model.normalise([Episode.from_text(p.prompt, text) for p in given[:1000] for text in (p.chosen, p.rejected)])
    model.save(own.path / "reward")
    Console().print(f"reward model: {report}", highlight=False, markup=False)
    measured = {"held_out_accuracy": report.held_out_accuracy, "alpha": agreement(given)}
    interval = {"held_out_interval": report.held_out_interval, "held_out": report.n_held_out}
    return {"answers": len(given), **interval, **{name: None if np.isnan(value) else value for name, value in measured.items()}}


def _ensemble(config: Loop, task: TextTask, given: Sequence[Preference]) -> list[PreferenceRewardModel]:
    """Fit reward models to bootstrap samples of the answers."""
    models = []
    for member in range(_ENSEMBLE):
        chosen = np.random.default_rng([config.seed, member]).integers(len(given), size=len(given))
        models.append(fit_preference_model([given[i] for i in chosen], tokenizer=_tokenizer(task), trunk=None, seed=member)[0])
    return models


def _tokenizer(task: TextTask) -> FileTokenizer:
    if not isinstance(task.tokenizer, FileTokenizer):
        raise ValueError("the loop saves reward models with the task's tokenizer, which must be a file: this task's is not")
    return task.tokenizer


def _judge_base(config: Loop, run: RunFolder, base: Path, depends_on: Any) -> None:
    """Have the base policy write on the test prompts; every round is compared with these texts."""
    with run.stage("base", depends_on, makes=["base.jsonl"]) as stage:
        if stage.needed:
            task = make_task(config.task, split="test", prompt_order="sequential")
            policy, seed = make_policy(task, base), 1000 + config.seed
            texts = write_texts(policy, task, config.texts, NoReward(), seed=seed, progress_bar=True, title="base")
            rows = ({"prompt": p, "response": r} for p, r in zip(texts.prompts, texts.responses, strict=True))
            write_jsonl(run.path / "base.jsonl", rows)
            stage.facts["gold"] = None if task.gold is None else float(task.gold(texts.prompts, texts.responses).mean())


def _judge(
    config: Loop,
    own: RunFolder,
    policy: TransformerPolicy,
    reward: PreferenceRewardModel,
    base: Path,
    base_rows: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Compare the round's policy with the base policy on the test prompts, and the reward model with the gold score."""
    task = make_task(config.task, split="test", prompt_order="sequential")
    reference = frozen(load_lm(base))
    seed = 2000 + config.seed
    texts = write_texts(policy, task, config.texts, reward, reference, seed=seed, progress_bar=True, title="judge")
    theirs = [row["response"] for row in base_rows]
    base_scores = np.array(reward.score([Episode.from_text(row["prompt"], row["response"]) for row in base_rows]))
    facts: dict[str, Any] = {
        "learned": float(texts.scores.mean()),
        "learned_base": float(base_scores.mean()),
        "kl_per_sequence": texts.kl_per_sequence,
        "length": float(texts.lengths.mean()),
    }
    rows = [
        {"prompt": p, "response": r, "learned": s} for p, r, s in zip(texts.prompts, texts.responses, texts.scores.tolist(), strict=True)
    ]
    if task.gold is not None:
        ours, base_gold = task.gold(texts.prompts, texts.responses), task.gold(texts.prompts, theirs)
        margins, truth = texts.scores - base_scores, ours - base_gold
        decided = np.flatnonzero(truth)
        right = wins(margins * np.sign(truth))[decided]
        facts |= {
            "gold": float(ours.mean()),
            "gold_interval": list(mean_interval(unit_means(ours, prompt_units(texts.prompts)))[1:]),
            "win_rate": dataclasses.asdict(win_rate(ours, base_gold, texts.prompts)),
            "reward_accuracy": dataclasses.asdict(clustered_by(right, prompt_units([texts.prompts[i] for i in decided]))),
        }
        for row, value in zip(rows, ours.tolist(), strict=True):
            row["gold"] = value
    write_jsonl(own.path / "texts.jsonl", rows)
    return facts


def _print(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table("round", "answers", "alpha", "gold", "wins against base", "reward accuracy", "KL per text", "learned")
    for row in rows:
        alpha, gold = row["alpha"], row.get("gold")
        rates = ("-" if gold is None else f"{row[key]['rate']:.1%}" for key in ("win_rate", "reward_accuracy"))
        table.add_row(
            str(row["round"]), str(row["answers"]), "-" if alpha is None else f"{alpha:.2f}", "-" if gold is None else f"{gold:+.3f}",
            *rates, f"{row['kl_per_sequence']:.2f}", f"{row['learned']:+.2f}",
        )  # fmt: skip
    console.print(table)
