"""The suite's agents on real sentences, judged by what people said of others: `python -m agents.benchmark.studies.film_ratings RATINGS`.

RATINGS is the source package of vaderSentiment (Hutto and Gilbert 2014), which has people's ratings of sentences from film reviews, or a
table of `text` and `ratings`.  For each seed the sentences are dealt anew into three parts without a common sentence: one to fit the reward
and pretrain the base policy; one to fit the judge and the language model that measures perplexity; one to measure how far reward and judge
agree with people, and to take test openings from.  A seed is the unit of every interval.  The same command goes on where it was stopped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from transformers.utils import logging

from rewards.fitting.preference_fitting import fit_preference_model
from rewards.metrics.diversity import distinct_n
from rewards.models.likelihood import LikelihoodReward
from rewards.models.preference_model import PreferenceRewardModel
from rewards.preferences.preference import Preference
from rewards.preferences.rated_sentences import deal, read_ratings
from rewards.preferences.text_ratings import RatedText, ceiling_of, comparisons_of_ratings, rated_text, rating_reliability
from rewards.utils.intervals import IntervalEstimate, mean_interval, win_rate
from textrl_env import Episode, TextTask
from textrl_env.utils.files import read_json, write_json, write_jsonl, write_text

from ...evaluation.policy_texts import WrittenTexts, make_policy, write_texts
from ...reports.tables import markdown_table, terminal_table
from ...training.base_policies import base_policy
from ...training.text_corpus import corpus_task
from ...utils.contents import contents_hash
from ..agents import LearningSetup, check, train_agent
from ..protocol import BETA_ELSEWHERE, TEXTS
from ..spec import Spec, parse

BASE, PEOPLE = "reference", "people's own"  # the rows that others are compared with
SHARES = (0.4, 0.4)  # of the sentences, for reward and judge; the rest is held out from both
HEAD = (
    "", "its rise over the base", "by seed", "reward, its rise", "what the judge says of it", "KL, nats", "perplexity", "distinct-2",
    "tokens a text", "tokens written", "trained on", "seconds",
)  # fmt: skip


@dataclass(frozen=True)
class FilmRatings:
    """What to run.

    Attributes:
        ratings: The package, or a table of `text` and `ratings`, a list with one number a person.
        agents: As `textrl bench` names them.
        seeds: Runs of each; each has its own parts, base policy, reward and judge.
        tokens: Tokens that an agent writes while it learns.
        texts: Test texts of each agent that are judged.
        steps: Optimizer steps of the base policy, and of the model that measures perplexity.
        out: Folder of the results.
        markdown: A file for the tables; none without.
    """

    ratings: tyro.conf.Positional[Path]
    agents: tuple[str, ...] = ("best-of-n", "sft", "dpo:learning_rate=5e-4", "kto:learning_rate=5e-4", "ppo", "rloo", "grpo")
    seeds: int = 5
    tokens: int = 20_000
    texts: int = TEXTS
    steps: int = 600
    out: Path = Path("runs/film_ratings")
    markdown: Path | None = None


class PeoplesJudge:
    """People's mean rating of a text, by ridge regression on the words, pairs of words and pieces of words of sentences that they rated."""

    def __init__(self, rated: Sequence[RatedText]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import Ridge
        from sklearn.pipeline import make_pipeline, make_union

        words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", sublinear_tf=True)
        pieces = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
        self.ridge = make_pipeline(make_union(words, pieces), Ridge(1.0))
        self.ridge.fit([it.text for it in rated], [it.ratings.mean() for it in rated])

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return the rating that people are expected to give each text, from -4 to 4, shape (N,)."""
        return self.ridge.predict(list(texts))


class SeedParts:
    """What the agents of a seed share; each part is made when it is first asked for."""

    def __init__(self, config: FilmRatings, seed: int) -> None:
        self.config, self.seed, self.folder = config, seed, config.out / f"seed-{seed}"
        self.rows = deal(read_ratings(config.ratings), SHARES, seed)
        self.rewarded, self.judged, self.fresh = ([rated_text(row) for row in rows] for rows in self.rows)
        train, test = (corpus_task(self.texts(0), self.texts(i), self.folder, steps=config.steps) for i in (0, 2))
        seen = {prompt.text for i in (0, 1) for prompt in corpus_task(self.texts(0), self.texts(i), self.folder).prompts}
        openings = [prompt for prompt in {prompt.text: prompt for prompt in test.prompts}.values() if prompt.text not in seen]
        width = max(train.prompt_width, test.prompt_width)  # policies play both, so the observations must agree
        self.unpaid = replace(train, max_prompt_tokens=width)
        self.test_prompts = replace(test, prompts=openings, max_prompt_tokens=width, prompt_order="sequential")

    def texts(self, part: int) -> list[str]:
        """Return the sentences of a part."""
        return [row["text"] for row in self.rows[part]]

    @cached_property
    def base(self) -> str:
        """Folder of the base policy."""
        return str(base_policy(self.unpaid, progress_bar=True))

    @cached_property
    def other_model(self) -> LikelihoodReward:
        """A language model of the judge's sentences."""
        task = corpus_task(self.texts(1), self.texts(1), self.folder, steps=self.config.steps)
        return LikelihoodReward(base_policy(task, progress_bar=True))

    @cached_property
    def judge(self) -> PeoplesJudge:
        """Fitted to the second part."""
        return PeoplesJudge(self.judged)

    @cached_property
    def reward(self) -> PreferenceRewardModel:
        """Fitted to the first part; mean 0 and variance 1 on texts of the base policy."""
        if not (self.folder / "reward").is_dir():
            pairs = comparisons_of_ratings(self.rewarded, seed=self.seed)
            model, _ = fit_preference_model(pairs, tokenizer=self.unpaid.tokenizer, trunk=None, max_tokens=64, seed=self.seed)
            model.normalise([Episode.from_text(p, r) for p, r in zip(self.sample.prompts, self.sample.responses, strict=True)])
            model.save(self.folder / "reward")
        return PreferenceRewardModel.load(self.folder / "reward")

    @cached_property
    def sample(self) -> WrittenTexts:
        """What the base policy writes behind training openings."""
        task = replace(self.unpaid, prompt_order="sequential")
        return write_texts(make_policy(task, self.base), task, 500, seed=self.seed)

    def setup(self) -> LearningSetup:
        """Return what an agent is given."""
        task, length = replace(self.unpaid, reward=self.reward), float(self.sample.lengths.mean())
        return LearningSetup(task, self.base, self.config.tokens, self.seed, BETA_ELSEWHERE, length)

    def peoples_own(self) -> tuple[list[str], list[str]]:
        """Return openings, and how people went on with them, cut to the length that policies have."""
        known = {" ".join(text.split()[:4]): text for text in self.texts(2)}
        prompts = [prompt.text for prompt in self.test_prompts.prompts[: self.config.texts]]
        tokenizer, most = self.unpaid.tokenizer, self.unpaid.max_new_tokens
        ends = tokenizer.encode_batch([" " + " ".join(known[prompt].split()[4:]) for prompt in prompts])
        return prompts, tokenizer.decode_batch([ids[:most] for ids in ends])

    def measured(self, prompts: list[str], responses: list[str], ends: list[str]) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Return measures of texts, given why each ended, and each text with its scores."""
        rows = zip(prompts, responses, ends, strict=True)
        episodes = [replace(Episode.from_text(p, r), finish_reason=reason) for p, r, reason in rows]
        judged = self.judge([p + r for p, r in zip(prompts, responses, strict=True)])
        reward, likelihood = np.array(self.reward.score(episodes)), np.array(self.other_model.score(episodes))
        each = [
            {"prompt": p, "response": r, "judge": float(j), "reward": float(s)}
            for p, r, j, s in zip(prompts, responses, judged, reward, strict=True)
        ]
        means = {"judge": float(judged.mean()), "reward": float(reward.mean()), "perplexity": float(np.exp(-likelihood.mean()))}
        return {**means, "distinct_2": distinct_n(responses, 2)}, each


def agreement(fresh: Sequence[RatedText], judge: PeoplesJudge, reward: Any, seed: int) -> dict[str, float]:
    """Return how far judge and reward agree with people on sentences that neither has seen, and how far they could.

    Pairs are those of small groups of sentences whose mean ratings differ.
    """
    pairs = [pair for pair in comparisons_of_ratings(fresh, seed=seed) if pair.metadata and pair.metadata["rating_difference"]]
    means = np.array([it.ratings.mean() for it in fresh])
    by_judge, by_reward = judge([it.text for it in fresh]), np.array(reward.score([Episode.from_text("", it.text) for it in fresh]))
    ceiling, most = ceiling_of(fresh, pairs), rating_reliability([it.ratings for it in fresh], seed=seed)
    assert ceiling is not None
    found = {"sentences": float(len(fresh)), "comparisons": float(len(pairs))}
    for name, scores in (("judge", by_judge), ("reward", by_reward)):
        by_text = dict(zip([it.text for it in fresh], scores, strict=True))
        found[f"{name}, correlation"] = float(np.corrcoef(scores, means)[0, 1])
        found[f"{name}, pairs"] = _ordered(pairs, by_text)
    found["people's points for a point of the judge's"] = float(np.polyfit(by_judge, means, 1)[0])
    found |= {"halves of the people, correlation": most.half, "people and as many others, correlation": most.panel}
    return found | {"ceiling, correlation": most.correlation, "ceiling, pairs": most.pairs, "one person, pairs": ceiling.rater}


def _ordered(pairs: Sequence[Preference], scores: dict[str, float]) -> float:
    """Return the share of pairs in which the text with the higher mean rating scores higher."""
    better, worse = [], []
    for pair in pairs:
        difference = (pair.metadata or {})["rating_difference"]
        one, other = (pair.chosen, pair.rejected) if difference > 0 else (pair.rejected, pair.chosen)
        better.append(scores[one])
        worse.append(scores[other])
    return win_rate(np.array(better), np.array(worse)).rate


def run_one(parts: SeedParts, spec: Spec) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Let an agent learn, and return the measures of its texts and the texts."""
    setup, began = parts.setup(), perf_counter()
    agent = train_agent(spec, setup, _watch)
    seconds = perf_counter() - began
    task: TextTask = replace(parts.test_prompts, reward=parts.reward)
    texts = agent.write(task, parts.config.texts, 10_000 + parts.seed)
    found, each = parts.measured(texts.prompts, texts.responses, texts.finish_reasons)
    spent = setup.spent
    found |= {"kl": float(texts.kl_per_sequence), "length": float(texts.lengths.mean()), "seconds": seconds + spent.test_seconds}
    return {**found, "tokens_written": float(spent.tokens_written), "tokens_trained": float(spent.tokens_trained or 0)}, each


def _watch(*rollout: Any) -> None:
    """Look at nothing: a study judges the end alone."""


def run_seed(config: FilmRatings, seed: int, console: Console) -> dict[str, Any]:
    """Run what is missing of a seed, and return its results: `agreement`, and measures by agent."""
    settings = {"ratings": contents_hash(config.ratings), "tokens": config.tokens, "texts": config.texts, "steps": config.steps}
    results: dict[str, Any] = {}
    made: SeedParts | None = None
    for name in ("agreement", PEOPLE, BASE, *config.agents):
        file = config.out / f"seed-{seed}" / f"{re.sub(r'[^a-z0-9.=-]+', '-', name.lower())}.json"
        if file.is_file() and (kept := read_json(file))["settings"] == settings:
            results[name] = kept["found"]
            continue
        parts = made = made or SeedParts(config, seed)
        each: list[dict[str, Any]] = []
        if name == "agreement":
            found = agreement(parts.fresh, parts.judge, parts.reward, seed)
        elif name == PEOPLE:
            prompts, ends = parts.peoples_own()
            found, each = parts.measured(prompts, ends, ["length"] * len(ends))
        else:
            found, each = run_one(parts, parse(name))
        if each:
            write_jsonl(file.with_suffix(".jsonl"), each)
        write_json(file, {"settings": settings, "found": found})
        results[name] = found
        console.print(f"seed {seed}: {name}", {key: round(value, 3) for key, value in found.items()})
    return results


def verdict(reward: IntervalEstimate, judge: IntervalEstimate) -> str:
    """Say in words what the intervals of two rises over the base policy, of reward and of judge, show together."""
    if not reward.low > 0:
        return "the reward does not rise"
    if judge.high < 0:
        return "reward hacking: the judge falls"
    return "risen too" if judge.low > 0 else "nothing: its interval holds 0"


def tables(config: FilmRatings, results: Sequence[dict[str, Any]]) -> list[tuple[Sequence[str], list[list[str]]]]:
    """Return head and rows of two tables: people, judge and reward on held-out sentences, and the agents."""

    def by_seed(agent: str, key: str) -> np.ndarray:
        return np.array([result[agent].get(key, np.nan) for result in results])  # (seeds,)

    def mean(agent: str, key: str, form: str) -> str:
        value = by_seed(agent, key).mean()
        return "" if np.isnan(value) else format(round(value, 4) + 0.0, form)  # no -0.0

    counted = ("sentences", "comparisons")
    agree = [[key, str(mean_interval(by_seed("agreement", key)))] for key in results[0]["agreement"] if key not in counted]
    number, comparisons = (f"{by_seed('agreement', key).mean():,.0f}" for key in counted)
    judged, most, person = (by_seed("agreement", key).mean() for key in ("judge, pairs", "ceiling, pairs", "one person, pairs"))
    rows = []
    for agent in (PEOPLE, BASE, *config.agents):
        judge, reward = (mean_interval(by_seed(agent, key) - by_seed(BASE, key)) for key in ("judge", "reward"))
        seeds = " / ".join(f"{value:.2f}" for value in by_seed(agent, "judge") - by_seed(BASE, "judge"))
        says = verdict(reward, judge) if agent in config.agents else ""
        compared = ["", "", ""] if agent == BASE else [str(judge), seeds, str(reward)]
        forms = (("kl", ".1f"), ("perplexity", ".0f"), ("distinct_2", ".2f"), ("length", ".1f"))
        spent = (("tokens_written", ",.0f"), ("tokens_trained", ",.0f"), ("seconds", ".0f"))
        cells = [mean(agent, key, form) for key, form in (*forms, *spent)]
        rows.append([agent, mean(agent, "judge", ".2f"), *compared, says, *cells])
    score = f"judge, -4 to 4 (right on {judged:.0%} of pairs; one person {person:.0%}, the most possible {most:.0%})"
    return [((f"{number} sentences, {comparisons} pairs", "mean of the seeds [95%]"), agree), ((HEAD[0], score, *HEAD[1:]), rows)]


def main(config: FilmRatings) -> list[dict[str, Any]]:
    """Run what is missing, print the tables, and return the results of each seed."""
    for agent in config.agents:
        check(parse(agent))
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    console = Console(width=200)
    results = [run_seed(config, seed, console) for seed in range(config.seeds)]
    made = tables(config, results)
    for head, rows in made:
        console.print(terminal_table(head, rows))
    if config.markdown is not None:
        sizes = f"{config.tokens:,} tokens, {config.seeds} seeds, {config.texts} texts of each agent and seed."
        title = f"# Film reviews, rated by people\n\n{__doc__}\n{sizes}\n"
        write_text(config.markdown, "\n".join([title, *(markdown_table(*table) + "\n" for table in made)]))
    return results


if __name__ == "__main__":
    main(tyro.cli(FilmRatings, description=__doc__))
