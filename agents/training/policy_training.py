"""Training a policy by a reward into a run folder, resumable."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger, configure

from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv

from ..algorithms.common.memory_check import check_memory
from ..algorithms.registry import ALGORITHMS, Algorithm, on_ranks
from ..distributed.process_group import ranks
from ..models.loading import LMSource
from ..utils.limits import Above0, AtLeast0, Count, Seed, check_fields
from ..utils.run_folder import RunFolder
from .callbacks import CurveCallback, rewind_curve
from .reward_hacking_callback import RewardHackingCallback


@dataclass(frozen=True)
class PolicyTraining:
    """How a policy is trained; the values suit models of about a million parameters.

    Attributes:
        beta: Fixed coefficient of the KL penalty, 0 for none; by default the algorithm's own, or an adaptive one that holds `kl_target`.
        kl_target: KL per text that the adaptive coefficient steers to, in nats.
        total_tokens: Tokens that the policy writes.
        n_episodes: Texts per rollout.
        batch_size: Texts per minibatch.
        learning_rate: Falls linearly to 0.
        seed: Of everything that is drawn.
    """

    beta: AtLeast0 | None = None
    kl_target: Above0 = 8.0
    total_tokens: Count = 110_000
    n_episodes: Count = 128
    batch_size: Count = 32
    learning_rate: Above0 = 5e-4
    seed: Seed = 0

    def check(self) -> None:
        """Insist on values in their ranges, none of which would be ignored."""
        check_fields(self)
        check_penalty(self.beta, self.kl_target)


def check_penalty(beta: float | None, kl_target: float | None) -> None:
    """Refuse a target for a coefficient that is fixed; its default counts as not given, for the files of runs hold it."""
    if beta is not None and kl_target not in (None, PolicyTraining.kl_target):
        raise ValueError(f"--kl-target {kl_target:g} steers an adaptive beta, and --beta {beta:g} is fixed: leave one of them out")


@dataclass(frozen=True)
class Linear:
    """A learning rate that falls to 0; a class and not a lambda, so that a checkpoint can hold it."""

    __module__ = "agents"

    start: float

    def __call__(self, progress_remaining: float) -> float:
        """Return the rate for SB3's `progress_remaining`, from 1 to 0."""
        return self.start * progress_remaining


def train_policy(
    run: RunFolder,
    stage: str,
    model: LMSource,
    env: TextGenerationVecEnv,
    config: PolicyTraining,
    depends_on: Any,
    rules: dict[str, Any] | None = None,
    algo: str = "ppo",
    watch: RewardHackingCallback | None = None,
) -> None:
    """Train into `run.path / stage`: `policy.zip`, `curve.csv` and a log of every metric (CSV, JSON and TensorBoard), and `samples.jsonl`.

    A stage that was interrupted goes on from its last checkpoint; one that is done is not run again.

    Args:
        run: The folder.
        stage: Name of the stage and of its subfolder.
        model: Where the policy starts, and its reference.
        env: What it plays.
        config: How.
        depends_on: Plain data that the result depends on besides `config`.
        rules: Sampling rules of the policy.
        algo: Name of the algorithm, see `agents.algorithms.registry`.
        watch: Looks for reward hacking beside it.
    """
    config.check()
    together = ranks()
    algorithm_of = ALGORITHMS[algo] if together.size == 1 else on_ranks(algo)
    names = ("beta", "kl_target", "total_tokens", "n_episodes", "batch_size", "learning_rate", "seed")
    circumstances = [depends_on, rules, algo, *(getattr(config, name) for name in names)]
    with run.stage(stage, circumstances, record=together.is_main) as whole:
        if together.broadcast(whole.needed):
            began = perf_counter()
            with run.stage(f"{stage} began", circumstances, record=together.is_main) as start:
                checkpoint = run.path / stage / "policy.zip"
                resumes = together.broadcast(not start.needed and checkpoint.is_file())
                if not resumes and together.is_main:
                    for left_over in ("policy.zip", "curve.csv", "samples.jsonl"):
                        (run.path / stage / left_over).unlink(missing_ok=True)
            if resumes:
                algorithm = algorithm_of.made.load(checkpoint, env=env, **algorithm_of.when_loaded)
            else:
                algorithm = _new(algorithm_of, model, env, config, rules)
            _learn(algorithm, run.path / stage, env, config, watch)
            whole.facts["seconds"] = perf_counter() - began
    together.wait()


def _learn(algorithm: Any, folder: Path, env: TextGenerationVecEnv, config: PolicyTraining, watch: RewardHackingCallback | None) -> None:
    """Train for the tokens that remain, and save the policy."""
    together = ranks()
    if together.is_main:
        rewind_curve(folder, algorithm.num_timesteps)
        algorithm.set_logger(configure(str(folder / f"log-{algorithm.num_timesteps}"), ["csv", "json", "tensorboard"]))
    else:
        algorithm.set_logger(Logger(None, []))
    remaining = config.total_tokens - algorithm.num_timesteps
    try:
        if remaining > 0:
            algorithm.memory = check_memory(algorithm, tell=together.is_main)
            watched: list[BaseCallback] = [CurveCallback(folder, env.task.gold)] if together.is_main else []
            watched += [] if watch is None else [watch]
            algorithm.learn(remaining, watched, log_interval=1, reset_num_timesteps=False, progress_bar=True)
    finally:
        algorithm.logger.close()
    together.check_equal({"weights": algorithm.policy})
    if together.is_main:
        algorithm.save(folder / "policy.zip")


def _new(algorithm_of: Algorithm, model: LMSource, env: TextGenerationVecEnv, config: PolicyTraining, rules: dict[str, Any] | None) -> Any:
    adaptive = {"beta": 0.2, "target": config.kl_target, "horizon": 10 * config.n_episodes}
    settings: dict[str, Any] = {"n_episodes": config.n_episodes, "beta": adaptive, **algorithm_of.settings}
    if config.beta is not None:
        settings["beta"] = config.beta
    if algorithm_of.minibatches:
        settings["batch_size"] = config.batch_size
    return algorithm_of.made(
        algorithm_of.policy,
        env,
        learning_rate=Linear(config.learning_rate),
        policy_kwargs={"model": model, **(rules or {})},
        seed=config.seed,
        **settings,
    )
