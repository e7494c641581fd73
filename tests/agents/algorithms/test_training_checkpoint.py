"""SFT, DPO and expert iteration stop anywhere and go on as if nothing had happened."""

import pytest
import torch

from agents import DPO, SFT, ExpertIteration
from agents.algorithms.common.training_checkpoint import load_training
from rewards.preferences.preference import Preference
from textrl_env import IntegerTokenizer, Prompt, TextTask

from ..conftest import GPT2, LLAMA, VOCAB, sevens

TEXTS = [("1 2", "3 4 5"), ("6", "7 8"), ("9 10", "11"), ("12", "13 14 15 16")]
PAIRS = [Preference("1 2", "3 4", "5"), Preference("7", "8", "9 10 11"), Preference("4 4", "1", "6")]
DROPPING = {**GPT2, "resid_pdrop": 0.2, "embd_pdrop": 0.2}
MAKERS = {
    "sft": (lambda: SFT(DROPPING, IntegerTokenizer(VOCAB, 0), batch_size=2, seed=1), TEXTS),
    "dpo": (lambda: DPO(LLAMA, IntegerTokenizer(VOCAB, 0), batch_size=2, seed=1), PAIRS),
}


class Stopped(Exception):
    pass


def stop_at(trainer, step):
    """Fail in the middle of a step, as Ctrl-C or a full disk would."""
    inner, seen = trainer._loss, []

    def loss(rows):
        seen.append(rows)
        if len(seen) > step:
            raise Stopped
        return inner(rows)

    trainer._loss = loss


@pytest.mark.parametrize("name", MAKERS)
def test_supervised_training_goes_on_bit_by_bit(name, tmp_path):
    make, texts = MAKERS[name]
    torch.manual_seed(3)
    whole = make().learn(texts, 25)
    torch.manual_seed(3)
    broken = make()
    stop_at(broken, 17)
    with pytest.raises(Stopped):
        broken.learn(texts, 25, checkpoint=tmp_path / "c", save_every=5)
    torch.manual_seed(99)
    again = make()
    stop_at(again, 10)  # of the 25, 15 are saved
    again.learn(texts, 25, checkpoint=tmp_path / "c", save_every=5)
    assert again.losses == whole.losses
    for (key, one), two in zip(whole.lm.state_dict().items(), again.lm.state_dict().values(), strict=True):
        assert torch.equal(one, two), key
    done = make()
    stop_at(done, 0)
    assert done.learn(texts, 25, checkpoint=tmp_path / "c").losses == whole.losses  # nothing is left to do
    with pytest.raises(ValueError, match="other texts or settings"):
        make().learn(texts[:2], 25, checkpoint=tmp_path / "c")


def test_expert_iteration_goes_on_bit_by_bit(tmp_path):
    task = TextTask(IntegerTokenizer(VOCAB, 0), [Prompt("1 2 3"), Prompt("4")], max_new_tokens=9)

    def make():
        return ExpertIteration(task, LLAMA, sevens, n=3, n_prompts=8, steps=2, learning_rate=1e-2, seed=2)

    whole = make().learn(5)
    make().learn(2, checkpoint=tmp_path / "c")
    broken = make()
    stop_at(broken.trainer, 3)  # in the second of the iterations that are left
    with pytest.raises(Stopped):
        broken.learn(5, checkpoint=tmp_path / "c")
    again = make().learn(5, checkpoint=tmp_path / "c")
    assert again.scores == whole.scores
    for (key, one), two in zip(whole.policy.state_dict().items(), again.policy.state_dict().values(), strict=True):
        assert torch.equal(one, two), key
    with pytest.raises(ValueError, match="other settings"):
        ExpertIteration(task, LLAMA, sevens, n=4, n_prompts=8, steps=2, seed=2).learn(5, checkpoint=tmp_path / "c")


def test_a_damaged_checkpoint_is_refused(tmp_path):
    trainer = SFT(LLAMA, IntegerTokenizer(VOCAB, 0), batch_size=2)
    trainer.learn(TEXTS, 4, checkpoint=tmp_path / "c", save_every=2)
    state = tmp_path / "c" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:200])
    with pytest.raises(ValueError, match="delete it to start over"):
        SFT(LLAMA, IntegerTokenizer(VOCAB, 0), batch_size=2).learn(TEXTS, 4, checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match="is no checkpoint of this training"):
        load_training(tmp_path, trainer.lm)


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11, 20])
def test_any_number_of_steps(steps):
    assert len(SFT(LLAMA, IntegerTokenizer(VOCAB, 0), batch_size=2).learn(TEXTS, steps).losses) == steps
