"""Training that does not play the environment: on texts, on preferences, or on the policy's own best texts."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from rewards.preferences.preference import Preference
from textrl_env import TextTask

from ..algorithms.common.training_warnings import TrainingWarning
from ..algorithms.dpo import DPO, Loss, check_comparisons
from ..algorithms.expert_iteration import ExpertIteration
from ..algorithms.kto import KTO
from ..algorithms.sft import SFT
from ..distributed.process_group import ranks
from ..models.loading import LMSource
from ..policies.policy_settings import PolicySettings
from ..utils.run_folder import RunFolder
from .policy_training import Before
from .settings import OPTIONS, OfflineTraining

LOSS_OF: Mapping[str, Loss] = {"dpo": "sigmoid", "ipo": "ipo", "robust-dpo": "robust", "simpo": "simpo"}


def learn_offline(
    algo: str,
    run: RunFolder,
    stage: str,
    model: LMSource,
    task: TextTask,
    data: Sequence[tuple[str, str]] | Sequence[Preference] | Any,
    config: OfflineTraining,
    depends_on: Mapping[str, Any],
    whole: bool = False,
    passes: Mapping[str, Any] | None = None,
    before: Before | None = None,
    shard: bool = False,
) -> None:
    """Train into `run.path / stage / model`, a folder that transformers and our policies open; resumable, like `train_policy`.

    Processes that torchrun started train one model; all call this together.

    Args:
        algo: One of `OFFLINE`.
        run: The folder.
        stage: Name of the stage and of its subfolder.
        model: Where the policy starts.
        task: Its tokenizer, lengths, and for expert iteration its prompts.
        data: Texts of (prompt, response) for `sft`, preferences for `dpo` and its relatives, `Thumb`s for `kto`, a reward for
            `expert-iteration`.
        config: How.
        depends_on: What the result depends on besides these arguments, by name; see `RunFolder.stage`.
        whole: Whether `sft` learns a corpus: texts longer than the task allows to their end, and the prompts as well as the responses.
        passes: How texts go through the model: `lora`, `precision` and `micro_batch_size`, see `agents.PolicySettings`.
        before: Called before the first step; what it raises ends the run.
        shard: Whether each of several processes holds a part of the weights only.

    Raises:
        ValueError: The folder holds a training with other inputs, or a damaged checkpoint; or expert iteration is to keep shards.
        KeyboardInterrupt: The user asked to stop; the message says what was saved.
    """
    together = ranks()
    own = {name: value for name, value in (passes or {}).items() if value != getattr(PolicySettings, name)}
    inputs = {**depends_on, "model": model, "algo": algo, **config.given(), **own}
    checkpoint, out = run.path / stage / "checkpoint", run.path / stage / "model"
    outdated = [f"evaluation-{stage}.*", f"groups-{stage}.json"]
    with run.stage(stage, inputs, together.is_main, makes=[f"{stage}/model"]) as made:
        if not together.broadcast(made.needed):
            return
        with run.stage(f"{stage} began", inputs, together.is_main, makes=[f"{stage}/checkpoint"]) as start:
            if start.needed and together.is_main:
                shutil.rmtree(checkpoint, ignore_errors=True)
        if together.is_main:
            run.remove(outdated)
        together.wait()
        done = 0 if checkpoint.is_dir() else None
        if algo == "expert-iteration":
            if shard:
                raise ValueError("shard=True: expert iteration writes with all weights on each process, leave it out")
            agent = ExpertIteration(task, model, data, learning_rate=config.learning_rate, seed=config.seed, **own)
            if before is not None:
                before(agent, config.steps, None, done)
            agent.learn(config.steps, True, checkpoint)
            agent.trainer.save(out)
            made.facts |= {"score": agent.scores[-1], "device": str(agent.policy.device)}
        else:
            options = {name: value for name, value in config.given().items() if name in OPTIONS.get(algo, ())}
            trainer = supervised(algo, model, task, config.learning_rate, config.seed, whole, shard=shard, **options, **own)
            if before is not None:
                before(trainer, config.steps, data, done)
            trainer.learn(data, config.steps, progress_bar=True, checkpoint=checkpoint)
            trainer.save(out)
            made.facts |= {"loss": trainer.losses[-1], "cut": trainer.num_cut, "device": str(trainer.backbone.device)}
        if together.is_main:
            run.remove(outdated)
    if together.is_main:
        shutil.rmtree(checkpoint, ignore_errors=True)
    together.wait()


def supervised(
    algo: str,
    model: LMSource,
    task: TextTask,
    learning_rate: float,
    seed: int,
    whole: bool = False,
    **arguments: Any,
) -> SFT | DPO | KTO:
    """Return the trainer of this name; with `whole` it learns prompts too, and responses beyond the task's limit, as corpora want it."""
    limit = None if whole else task.max_new_tokens
    settings = {"learning_rate": learning_rate, "seed": seed, "max_new_tokens": limit, **arguments}
    if algo in LOSS_OF:
        return DPO(model, task.tokenizer, loss=LOSS_OF[algo], **settings)
    if algo == "sft":
        return SFT(model, task.tokenizer, train_on_prompts=whole, **settings)
    return KTO(model, task.tokenizer, **settings)


def preferred_texts(pairs: Sequence[Preference]) -> list[tuple[str, str]]:
    """Return the preferred response to each prompt, for `sft`; ties, where none is, are left out, and the number of them is said.

    Raises:
        ValueError: All are ties.
    """
    check_comparisons(pairs)
    texts = [(pair.prompt, pair.chosen) for pair in pairs if not pair.is_tie]
    if not texts:
        raise ValueError(f"all {len(pairs)} comparisons are ties: there is no preferred text to imitate")
    if len(texts) < len(pairs):
        message = f"{len(pairs) - len(texts)} of {len(pairs)} comparisons are ties and left out: neither text is preferred"
        warnings.warn(message, TrainingWarning, stacklevel=2)
    return texts
