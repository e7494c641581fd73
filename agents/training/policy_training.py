"""Training a policy by a reward into a run folder, resumable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from time import perf_counter
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger, configure

from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv

from ..algorithms.common.memory_check import check_memory
from ..algorithms.registry import ALGORITHMS, Algorithm
from ..distributed.process_group import ranks
from ..models.loading import LMSource
from ..utils.interrupts import StopCallback, stop_request
from ..utils.run_folder import RunFolder
from .callbacks import CurveCallback, rewind_curve
from .rewind_logs import rewind_logs
from .settings import PolicyTraining

# Takes the algorithm, the tokens (steps, iterations) that are left, the data it learns from, and how many are done, None of a new run
Before = Callable[[Any, int, Any, int | None], None]
_MADE = ("policy.zip", "curve.csv", "samples.jsonl", "log-*", "reward_hacking.csv", "alarms.txt", "model")  # in the folder of a stage


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
    depends_on: Mapping[str, Any],
    rules: dict[str, Any] | None = None,
    algo: str = "ppo",
    watch: BaseCallback | None = None,
    outdated: Sequence[str] = (),
    reference: LMSource | None = None,
    before: Before | None = None,
    arguments: Mapping[str, Any] | None = None,
    shard: bool = False,
) -> None:
    """Train into `run.path / stage`: `policy.zip`, `curve.csv` and a log of every metric (CSV, JSON and TensorBoard), and `samples.jsonl`.

    At the end `model` in it holds the language model, tokenizer, chat template and ends of text, as transformers opens them.

    A stage that was interrupted goes on from its last checkpoint; one that is done is not run again, but goes on if `total_tokens` was
    raised.  The first Ctrl-C or SIGTERM saves a checkpoint between two rollouts; from there a run goes on bit by bit.

    Args:
        run: The folder.
        stage: Name of the stage and of its subfolder.
        model: Where the policy starts.
        env: What it plays.
        config: How.
        depends_on: What the result depends on besides these arguments, by name; see `RunFolder.stage`.
        rules: Arguments of the policy: sampling rules, adapters, critic.
        algo: Name of the algorithm, see `agents.algorithms.registry`.
        watch: Looks on, and may end the training before its tokens are written.
        outdated: Patterns of files of the run that describe the policy: they are deleted when it changes.
        reference: What KL is measured against; None: `model`.
        before: Called before the first token, instead of a line on memory; what it raises ends the run.
        arguments: Further ones of the algorithm, such as `{"n_epochs": 1}`.
        shard: Whether each of several processes holds a part of the weights only.

    Raises:
        ValueError: The folder holds a training with other inputs or for more tokens, or a damaged checkpoint.
        KeyboardInterrupt: The user asked to stop; the message says what was saved.
    """
    config.check()
    together = ranks()
    checkpoint = run.path / stage / "policy.zip"
    given = {"reference": reference, "arguments": dict(arguments or {}) or None}
    inputs = {**depends_on, "model": model, "rules": rules, "algo": algo, **{name: it for name, it in given.items() if it is not None}}
    inputs |= {field.name: getattr(config, field.name) for field in fields(PolicyTraining) if field.name != "total_tokens"}
    outdated = [*outdated, f"evaluation-{stage}.*", f"groups-{stage}.json"]
    settings: dict[str, Any] = {"depends_on": inputs, "record": together.is_main, "makes": [f"{stage}/policy.zip"]}
    with run.stage(f"{stage} began", **settings) as start:
        asked = start.facts.get("total_tokens", config.total_tokens)
        if asked > config.total_tokens:
            raise ValueError(
                f"{run.path / stage} trains for {asked:,} tokens, and total_tokens={config.total_tokens:,} are fewer: "
                "ask for as many, use another folder (--out), or delete this run first (--overwrite)"
            )
        resumes = together.broadcast(not start.needed)
        start.needed, start.facts = True, {"total_tokens": config.total_tokens}
    if together.is_main and asked < config.total_tokens:
        run.forget(stage)
    together.wait()
    with run.stage(stage, **settings) as whole:
        if together.broadcast(whole.needed):
            if together.is_main:
                run.remove([*outdated, f"{stage}/model"])
                if not resumes:
                    run.remove([f"{stage}/{name}" for name in _MADE])
            began = perf_counter()
            if resumes:
                changed = {**ALGORITHMS[algo].when_loaded, **({"shard": True} if shard else {})}
                algorithm = ALGORITHMS[algo].made.load(checkpoint, env=env, **changed)
            else:
                algorithm = _new(ALGORITHMS[algo], model, env, config, rules, reference, {**(arguments or {}), "shard": shard})
            _learn(algorithm, run.path / stage, env, config, watch, before)
            if together.is_main:
                run.remove(outdated)  # made of a checkpoint on the way
            whole.facts |= {"seconds": perf_counter() - began, "device": str(algorithm.policy.device), "tokens": algorithm.saved_timesteps}
    together.wait()


def _learn(
    algorithm: Any,
    folder: Path,
    env: TextGenerationVecEnv,
    config: PolicyTraining,
    watch: BaseCallback | None,
    before: Before | None,
) -> None:
    """Train for the tokens that remain, and save the policy."""
    together = ranks()
    if together.is_main:
        rewind_curve(folder, algorithm.num_timesteps)
        rewind_logs(folder, algorithm.num_timesteps)
        algorithm.set_logger(configure(str(folder / f"log-{algorithm.num_timesteps}"), ["csv", "json", "tensorboard"]))
    else:
        algorithm.set_logger(Logger(None, []))
    remaining = config.total_tokens - algorithm.num_timesteps
    with stop_request("update of the policy", together.size > 1) as stop:
        try:
            if remaining > 0:
                algorithm.memory = check_memory(algorithm, tell=together.is_main and before is None)
                if before is not None:
                    before(algorithm, remaining, None, algorithm.num_timesteps or None)
                watched: list[BaseCallback] = [CurveCallback(folder, env.task.gold), StopCallback(stop)]
                watched += [] if watch is None else [watch]
                algorithm.learn(remaining, watched, log_interval=1, reset_num_timesteps=False, progress_bar=True)
        finally:
            algorithm.logger.close()
        algorithm.check_ranks()
        algorithm.save(folder / "policy.zip")
        stopped = any(together.gather(bool(stop)))
        if not stopped:
            algorithm.save_pretrained(folder / "model")
    if stopped:
        saved = algorithm.saved_timesteps
        raise KeyboardInterrupt(f"Stopped at {saved:,} of {config.total_tokens:,} tokens, saved in {folder / 'policy.zip'}.")


def _new(
    algorithm_of: Algorithm,
    model: LMSource,
    env: TextGenerationVecEnv,
    config: PolicyTraining,
    rules: dict[str, Any] | None,
    reference: LMSource | None,
    arguments: Mapping[str, Any],
) -> Any:
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
        reference=reference,
        **{**settings, **arguments},
    )
