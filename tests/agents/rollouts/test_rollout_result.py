"""What callbacks read of a rollout."""

import dataclasses

import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback

from agents import TextPPO
from agents.rollouts import RolloutResult
from agents.rollouts.rollout_samples import RolloutStats

from ..conftest import LLAMA

STATS = RolloutStats(
    kl_per_sequence=1.5, kl_per_token=0.5, kl_per_token_k3=0.4, beta=0.1, score=2.0, shaped_return=1.85, entropy=2.1, num_tokens=12,
    num_sequences=4, reference_seconds=0.1,
)  # fmt: skip


def test_columns_by_hand():
    infos = [
        {"prompt": "1", "response": "7 7", "score": 2, "finish_reason": "eos"},
        {"prompt": "2", "response": "3", "score": 0.0, "finish_reason": "length"},
        {"prompt": "1", "response": "", "score": 0.5, "finish_reason": "eos"},
        {"prompt": "4", "response": "7", "score": 1.0, "finish_reason": "stop"},
    ]
    rollout = RolloutResult(infos, STATS, seconds=2.0)
    assert rollout.prompts == ["1", "2", "1", "4"] and rollout.responses == ["7 7", "3", "", "7"]
    assert rollout.scores.tolist() == [2.0, 0.0, 0.5, 1.0] and rollout.scores.dtype == np.float64
    assert [rollout.share_finished_by(reason) for reason in ("eos", "length", "stop", "turns")] == [0.5, 0.25, 0.25, 0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        rollout.seconds = 0.0


class Reads(BaseCallback):
    def __init__(self):
        super().__init__()
        self.rollouts, self.ended = [], []

    def _on_step(self):
        self.ended += [info for info, done in zip(self.locals["infos"], self.locals["dones"], strict=True) if done]
        return True

    def _on_rollout_end(self):
        self.rollouts.append(self.model.last_rollout)


def test_a_callback_reads_the_texts_that_were_just_written(make_env, tmp_path):
    model = TextPPO("TransformerPolicy", make_env(4), n_episodes=10, beta=0.3, seed=0, policy_kwargs={"model": LLAMA})
    assert model.last_rollout is None
    reads = Reads()
    model.learn(100, reads)
    assert len(reads.rollouts) == model.num_rollouts > 1
    for number, rollout in enumerate(reads.rollouts):
        infos = reads.ended[10 * number : 10 * (number + 1)]
        assert rollout.responses == [info["response"] for info in infos]
        assert rollout.prompts == [info["prompt"] for info in infos] and rollout.seconds > rollout.stats.reference_seconds > 0
        assert rollout.scores.tolist() == [text.split().count("7") for text in rollout.responses]
        assert rollout.stats.score == pytest.approx(rollout.scores.mean())
        assert rollout.stats.shaped_return == pytest.approx(rollout.stats.score - 0.3 * rollout.stats.kl_per_sequence, abs=1e-5)
    model.save(tmp_path / "model")
    assert TextPPO.load(tmp_path / "model").last_rollout is None  # texts are not part of a checkpoint
