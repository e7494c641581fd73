"""RL4LMs' continuation of film reviews, as published: `python -m agents.benchmark.studies.published_imdb aclImdb`.

Ramamurthy et al. 2023, "Is Reinforcement Learning (Not) for Natural Language Processing", and the settings of their repository
(`task_configs/imdb_text_continuation/gpt2_ppo.yml`): a GPT-2 that was trained on the reviews goes on with the first half of one (its last
64 tokens) for up to 48 tokens; a classifier's probability that prompt and text are positive is both reward and score; PPO writes 50
rollouts of 1,280 tokens over 2,000 training reviews and is judged on 2,000 test reviews.  `DIFFERENCES` lists what is not as theirs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console

from agents import AdaptiveKLController, TextPPO
from rewards import ClassifierReward
from rewards.utils.devices import get_device
from rewards.utils.intervals import mean_interval
from textrl_env import Episode, TextTask, make_task
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv
from textrl_env.utils.files import plain, write_json

from ...evaluation.policy_texts import make_policy, write_texts
from ...models.loading import frozen, load_lm
from ...reports.tables import terminal_table

# Sentiment of GPT-2 and of PPO in the table of their appendix, means over seeds; from memory, see docs/real-data.md
PUBLISHED = {"before": 0.489, "after": 0.602}
ROLLOUT, LENGTH, REVIEWS = 1280, 48, 2000
KEPT = 8  # texts of each seed
TARGET = 0.5  # nats a token, mean over a rollout
DIFFERENCES = (
    "rollouts are 27 whole texts (theirs: 1,280 tokens, texts cut where they end)",
    "a minibatch is one whole text (64 tokens of any text), and advantages are whitened over the rollout (a minibatch)",
    "reviews are drawn by another generator; training reviews come from nine tenths of the training split (four fifths)",
    "their controller of KL counts rollouts, ours episodes: by horizon 270 the coefficient moves by the same 2% a rollout of 27 texts",
)


class OfWholeReview(ClassifierReward):
    """The classifier's probability of the whole first half and the text, however much of that half the policy read; as theirs."""

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """Return one probability for each text."""
        return super().score([dataclasses.replace(episode, prompt=episode.metadata["whole"]) for episode in episodes])


@dataclass(frozen=True)
class PublishedImdb:
    """What to run.

    Attributes:
        corpus: Folder `aclImdb`, a table of it, or `hf:ID`.
        model: Folder or hub id of the policy.
        classifier: Folder or hub id of the classifier; its class 1 is the positive one.
        tokens: Tokens that PPO writes with each seed.
        texts: Test reviews that are gone on with.
        seeds: Runs.
        device: As `textrl train` takes it.
        out: A JSON file for the numbers and the first texts of each seed.
    """

    corpus: Annotated[str, tyro.conf.Positional]
    model: str = "lvwerra/gpt2-imdb"
    classifier: str = "lvwerra/distilbert-imdb"
    tokens: int = 50 * ROLLOUT
    texts: int = REVIEWS
    seeds: int = 5
    device: str = "auto"
    out: Path = Path("runs/published_imdb.json")


def reviews(config: PublishedImdb, split: str, number: int, seed: int = 0, order: str = "random") -> TextTask:
    """Return the task on `number` reviews of a split, drawn without replacement."""
    task = make_task(
        {"name": "imdb-half", "path": config.corpus, "tokenizer": config.model},
        split=split,
        reward=OfWholeReview(config.classifier, label=1, device=config.device),
        max_new_tokens=LENGTH,
        prompt_order=order,
    )
    drawn = np.random.default_rng(seed).permutation(len(task.prompts))[:number]
    prompts = [task.prompts[i] for i in drawn]
    whole = [dataclasses.replace(prompt, metadata={**prompt.metadata, "whole": prompt.text}) for prompt in prompts]
    return dataclasses.replace(task, prompts=whole)


def train(config: PublishedImdb, seed: int) -> TextPPO:
    """Return PPO after its training."""
    env = TextGenerationVecEnv(10, task=reviews(config, "train", REVIEWS, seed))
    episodes = round(ROLLOUT / LENGTH)
    agent = TextPPO(
        "TransformerPolicy", env, learning_rate=1e-6, n_episodes=episodes, batch_size=1, n_epochs=5, gamma=0.99, gae_lambda=0.95,
        clip_range=0.2, ent_coef=0.0, vf_coef=0.5, beta=AdaptiveKLController(0.1, TARGET * LENGTH, 10 * episodes), seed=seed,
        device=config.device, policy_kwargs={"model": config.model, "critic": "separate"},
    )  # fmt: skip
    agent.learn(config.tokens, progress_bar=True)
    return agent


def main(config: PublishedImdb) -> dict[str, list[float]]:
    """Run all seeds, print the scores beside the published ones, write the file, and return each seed's scores and KL in nats a text."""
    judge = reviews(config, "test", config.texts, order="sequential")
    reference = frozen(load_lm(config.model).to(get_device(config.device)))
    first = make_policy(judge, config.model, config.device)
    scores: dict[str, list[float]] = {"before": [], "after": [], "kl": []}
    samples = []
    for seed in range(config.seeds):
        after = write_texts(train(config, seed).policy, judge, config.texts, reference=reference, seed=seed)
        scores["before"].append(float(write_texts(first, judge, config.texts, seed=seed).scores.mean()))
        scores["after"].append(float(after.scores.mean()))
        scores["kl"].append(after.kl_per_sequence)
        samples.append([{"prompt": after.prompts[i], "response": after.responses[i], "score": float(after.scores[i])} for i in range(KEPT)])
        write_json(config.out, {"config": plain(dataclasses.asdict(config)), "scores": scores, "published": PUBLISHED, "samples": samples})
    rows = [
        [title, "{:.3f} [{:.3f}, {:.3f}]".format(*mean_interval(np.array(scores[name]))), str(PUBLISHED.get(name, ""))]
        for name, title in (("before", "before training"), ("after", "PPO"), ("kl", "KL, nats a text"))
    ]
    console = Console(width=100)
    console.print(terminal_table(("", "here, over seeds", "published"), rows, "Sentiment of 48 tokens after half a review"))
    console.print("Not as theirs: " + "; ".join(DIFFERENCES) + f".\nNumbers and texts: {config.out}")
    return scores


if __name__ == "__main__":
    main(tyro.cli(PublishedImdb))
