"""SFT, DPO, KTO and expert iteration stop anywhere and go on as if nothing had happened."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from agents import DPO, KTO, SFT, ExpertIteration
from agents.algorithms.common.training_checkpoint import load_training
from rewards import Preference, thumbs_of
from tests.slow_cases import slow_but
from textrl_env import IntegerTokenizer, Prompt, TextTask

from ..conftest import GPT2, LLAMA, VOCAB, sevens

TEXTS = [("1 2", "3 4 5"), ("6", "7 8"), ("9 10", "11"), ("12", "13 14 15 16")]
PAIRS = [Preference("1 2", "3 4", "5"), Preference("7", "8", "9 10 11"), Preference("4 4", "1", "6")]
DROPPING = {**GPT2, "resid_pdrop": 0.2, "embd_pdrop": 0.2}
SHARD = "shard-00001-model-00001-of-00001.safetensors"
LORA = {"r": 2, "lora_alpha": 8}
MAKERS = {
    "sft": (lambda: SFT(DROPPING, IntegerTokenizer(VOCAB, 0), batch_size=2, seed=1), TEXTS),
    "sft with adapters": (lambda: SFT(LLAMA, IntegerTokenizer(VOCAB, 0), batch_size=3, seed=1, lora=LORA, micro_batch_size=2), TEXTS),
    "dpo with adapters": (lambda: DPO(LLAMA, IntegerTokenizer(VOCAB, 0), batch_size=2, seed=1, learning_rate=1e-2, lora=LORA), PAIRS),
    "dpo": (lambda: DPO(LLAMA, IntegerTokenizer(VOCAB, 0), batch_size=2, seed=1), PAIRS),
    "kto": (lambda: KTO(LLAMA, IntegerTokenizer(VOCAB, 0), batch_size=2, seed=1, learning_rate=1e-2), thumbs_of(PAIRS)),
}


class Stopped(Exception):
    pass


def stop_at(trainer, step):
    """Fail in the middle of a step, as Ctrl-C or a full disk would."""
    inner, seen = trainer._mean_loss, []

    def loss(rows, backward):
        seen.append(rows)
        if len(seen) > step:
            raise Stopped
        return inner(rows, backward)

    trainer._mean_loss = loss


@pytest.mark.parametrize("name", slow_but(("sft with adapters", "dpo"), MAKERS))
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


@pytest.mark.parametrize("rules", slow_but([{}], [{}, {"lora": LORA, "micro_batch_size": 3, "temperature": 0.8}]))
def test_expert_iteration_goes_on_bit_by_bit(tmp_path, rules):
    task = TextTask(IntegerTokenizer(VOCAB, 0), [Prompt("1 2 3"), Prompt("4")], max_new_tokens=9)

    def make():
        return ExpertIteration(task, LLAMA, sevens, n=3, n_prompts=8, steps=2, learning_rate=1e-2, seed=2, **rules)

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
        ExpertIteration(task, LLAMA, sevens, n=4, n_prompts=8, steps=2, seed=2, **rules).learn(5, checkpoint=tmp_path / "c")
    rules = {**rules, "top_k": 5}
    with pytest.raises(ValueError, match="other settings"):
        make().learn(5, checkpoint=tmp_path / "c")


def test_a_checkpoint_of_adapters_holds_no_copy_of_the_base(tmp_path):
    trainer = SFT(LLAMA, IntegerTokenizer(VOCAB, 0), batch_size=2, lora=LORA).learn(TEXTS, 2, checkpoint=tmp_path / "c")
    saved = load_file(tmp_path / "c" / SHARD)
    weights = {name.removeprefix("model.") for name in saved if name.startswith("model.")}
    assert {"lora_A" in name or "lora_B" in name for name in weights} == {True}
    assert weights == {name for name, parameter in trainer.lm.named_parameters() if parameter.requires_grad}
    save_file({name: value for name, value in saved.items() if "layers.0.mlp" not in name}, tmp_path / "c" / SHARD)
    with pytest.raises(ValueError, match=r"6 names are not in both, model\.layers\.0\.mlp\..*lora_A.*delete it"):
        SFT(LLAMA, IntegerTokenizer(VOCAB, 0), batch_size=2, lora=LORA).learn(TEXTS, 2, checkpoint=tmp_path / "c")


def test_a_checkpoint_of_one_file_as_it_was_written_before_goes_on(tmp_path):
    make, texts = MAKERS["sft"]
    whole = make().learn(texts, 8, checkpoint=tmp_path / "whole", save_every=4)
    half = make()
    stop_at(half, 4)
    with pytest.raises(Stopped):
        half.learn(texts, 8, checkpoint=tmp_path / "c", save_every=4)
    saved = load_file(tmp_path / "c" / SHARD)
    assert {name.split(".")[0] for name in saved} == {"model", "optimizer", "generator"}
    (tmp_path / "c" / SHARD).unlink()
    save_file(saved, tmp_path / "c" / "state.safetensors")  # without the places of parts in the whole
    assert make().learn(texts, 8, checkpoint=tmp_path / "c").losses == whole.losses


def test_a_damaged_checkpoint_is_refused(tmp_path):
    trainer = SFT(LLAMA, IntegerTokenizer(VOCAB, 0), batch_size=2)
    trainer.learn(TEXTS, 4, checkpoint=tmp_path / "c", save_every=2)
    state = tmp_path / "c" / SHARD
    state.write_bytes(state.read_bytes()[:200])
    with pytest.raises(ValueError, match="delete it to start over"):
        SFT(LLAMA, IntegerTokenizer(VOCAB, 0), batch_size=2).learn(TEXTS, 4, checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match="is no checkpoint of this training"):
        load_training(tmp_path, trainer.lm)


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11, 20])
def test_any_number_of_steps(steps):
    assert len(SFT(LLAMA, IntegerTokenizer(VOCAB, 0), batch_size=2).learn(TEXTS, steps).losses) == steps
