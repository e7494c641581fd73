"""What holds for every family of models: `python -m agents.benchmark.performance.model_families` measures it and writes the table.

- *cached*: largest difference of a log-probability between cached decoding and full passes, over a ragged rollout.
- *ratio*: largest |pi / pi_old - 1| in the first minibatch of an update, which should be 0.
- *gradient*: largest difference between the gradient of whole texts and that of one pass per token, over the largest entry.
- *saved*: whether `save_pretrained` and loading give the same log-probabilities, bit by bit.
- *cached / full tokens/s*: decoding speed with the cache and without.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from stable_baselines3.common.utils import obs_as_tensor
from transformers.utils import logging

from rewards.utils.devices import get_device
from textrl_env import IntegerTokenizer, Prompt, TextTask
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv
from textrl_env.utils.files import write_text

from ...models.mixed_precision import Precision
from ...policies.transformer_policy import TransformerPolicy
from ...reports.tables import markdown_table, terminal_table
from ...rollouts.collect import play_episodes
from ...rollouts.rollout_buffer import SequenceRolloutBuffer
from .architectures import WITH_IMAGES, architectures, example_images

COLUMNS = ("family", "cached", "ratio", "gradient", "saved", "cached tokens/s", "full tokens/s", "speed-up")


@dataclass(frozen=True)
class Families:
    """What to measure.

    Attributes:
        width: Hidden size.
        rows: Texts side by side.
        new_tokens: Longest response.
        vocabulary: Tokens.
        device: Where the models are.
        precision: See `TransformerPolicy`.
        only: Families to measure; all without any.
        own: A module of your own to measure too: what `agents.models.loading.load_lm` takes, as a JSON object.
        out: A Markdown file to write; none without.
    """

    width: int = 128
    rows: int = 16
    new_tokens: int = 64
    vocabulary: int = 256
    device: str = str(get_device())
    precision: Precision = "float32"
    only: tuple[str, ...] = ()
    own: str | None = None
    out: Path | None = None


def main(config: Families) -> list[tuple[Any, ...]]:
    """Measure all families, print and write the table, and return its rows."""
    known = architectures(config.vocabulary, config.width, 256)
    if config.own is not None:
        own = json.loads(config.own)
        known[own["class"]] = own
    logging.disable_progress_bar()
    rows = [(name, *measure(known[name], config)) for name in config.only or known]
    cells = [shown(row) for row in rows]
    title = f"{config.device}, {config.precision}, width {config.width}, {config.rows} rows, {config.new_tokens} new tokens"
    Console().print(terminal_table(COLUMNS, cells, title))
    if config.out is not None:
        head = f"# Families of models\n\n{__doc__}\n{title}, {os.cpu_count()} cores, torch {torch.__version__}:\n"
        write_text(config.out, f"{head}\n{markdown_table(COLUMNS, cells)}\n")
    return rows


def measure(model: dict[str, Any], config: Families) -> tuple[float, float, float, bool, float, float, float]:
    """Return the columns of the table after the name."""
    torch.manual_seed(0)
    images = example_images(4) if model.get("model_type") in WITH_IMAGES else [None] * 4
    prompts = [Prompt(" ".join(str(7 * n + i) for i in range(3 + 5 * n)), image=images[n]) for n in range(4)]
    task = TextTask(IntegerTokenizer(config.vocabulary, 0), prompts, config.new_tokens)
    env = TextGenerationVecEnv(config.rows, task=task, reward=lambda completions: [float(len(c)) for c in completions])
    env.seed(0)

    def make(source: Any) -> TransformerPolicy:
        made = TransformerPolicy(env.observation_space, env.action_space, lambda _: 1e-3, model=source, precision=config.precision)
        made.set_training_mode(False)
        return made.to(config.device)

    policy = make(model)
    torch.nn.init.normal_(policy.value_head.weight, std=0.1)  # type: ignore[union-attr]
    cached = _cache_error(policy, env, config)
    buffer = SequenceRolloutBuffer(1, env.observation_space, env.action_space, config.device, n_envs=config.rows)
    observations: list[Any] = []
    for _ in play_episodes(policy, _Watched(env, observations), buffer, 2 * config.rows):  # type: ignore[arg-type]
        pass
    samples = buffer.samples(np.arange(config.rows))
    with torch.no_grad():
        _, log_probs, _ = policy.evaluate_actions(samples.observations, samples.actions)
        ratio = float((log_probs - samples.old_log_prob).exp().sub(1).abs().max())
    gradient = _gradient_error(policy, buffer, observations, config)
    with tempfile.TemporaryDirectory() as folder:
        policy.save_pretrained(f"{folder}/model")
        again = make({"class": model["class"], "weights": f"{folder}/model"} if "class" in model else f"{folder}/model")
        with torch.no_grad():
            saved = torch.equal(again.evaluate_actions(samples.observations, samples.actions)[1], log_probs)
    fast, slow = (max(_speed(policy, env, config, use) for _ in range(2)) for use in (True, False))
    return cached, ratio, gradient, saved, fast, slow, fast / slow


class _Watched:
    """The environment, and a list of all observations that it gave."""

    def __init__(self, env: TextGenerationVecEnv, seen: list[Any]) -> None:
        self.unwrapped, self.num_envs, self._env, self._seen = env, env.num_envs, env, seen

    def reset(self) -> Any:
        """Begin."""
        self._seen.append(self._env.reset())
        return self._seen[-1]

    def step(self, actions: np.ndarray) -> Any:
        """Go on."""
        result = self._env.step(actions)
        self._seen.append(result[0])
        return result


@torch.no_grad()
def _cache_error(policy: TransformerPolicy, env: TextGenerationVecEnv, config: Families) -> float:
    obs, worst = env.reset(), 0.0
    for _ in range(2 * config.new_tokens):
        tensors: Any = obs_as_tensor(obs, policy.device)  # type: ignore[arg-type]
        actions, _, log_probs = policy(tensors)
        worst = max(worst, float((policy.evaluate_actions(tensors, actions)[1] - log_probs).abs().max()))
        obs = env.step(actions.cpu().numpy())[0]
    return worst


def _gradient_error(policy: TransformerPolicy, buffer: SequenceRolloutBuffer, observations: list[Any], config: Families) -> float:
    """Compare one text's gradient in one pass with the sum over passes of one token each."""
    segment = buffer.segments[0]
    span = range(segment.steps.start, segment.steps.stop)
    samples = buffer.samples(np.array([0]))
    one_each = {key: torch.as_tensor(np.stack([observations[t][key][segment.row] for t in span])) for key in observations[0]}
    gradients = []
    for source in (samples.observations, {key: value.to(config.device) for key, value in one_each.items()}):
        policy.zero_grad()
        values, log_probs, entropies = policy.evaluate_actions(source, samples.actions)
        assert entropies is not None
        (values.square().mean() - log_probs.mean() + 0.1 * entropies.mean()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    policy.zero_grad(set_to_none=True)
    return float((gradients[0] - gradients[1]).abs().max() / gradients[1].abs().max())


@torch.no_grad()
def _speed(policy: TransformerPolicy, env: TextGenerationVecEnv, config: Families, use_cache: bool) -> float:
    """Return tokens per second of full-length texts; the end-of-text token is not let through."""
    policy.drop_caches()
    before, policy.backbone.cacheable = policy.backbone.cacheable, use_cache
    steps = config.new_tokens if use_cache else min(config.new_tokens, 24) // 2 * 2
    obs: Any = env.reset()
    seconds = 0.0
    skip = 0 if use_cache else config.new_tokens // 2 - steps // 2  # full passes: a stretch around the mean length
    for step in range(skip + steps):
        began = perf_counter()
        actions = policy.predict(obs)[0] if step >= skip else np.ones(config.rows, np.int64)
        seconds += perf_counter() - began if step >= skip else 0.0
        obs = env.step(np.maximum(actions, 1))[0]
    policy.backbone.cacheable = before
    return config.rows * steps / seconds


def shown(row: tuple[Any, ...]) -> list[str]:
    """Return the cells of a row."""
    name, cached, ratio, gradient, saved, fast, slow, speedup = row
    errors = (f"{error:.1e}" for error in (cached, ratio, gradient))
    return [name, *errors, "yes" if saved else "no", f"{fast:,.0f}", f"{slow:,.0f}", f"{speedup:.1f}x"]


if __name__ == "__main__":
    main(tyro.cli(Families))
