"""Training on fixed texts, saved half-way and gone on with, gives on the device what it gives on the CPU."""

import pytest
import torch

from agents import DPO, KTO, SFT
from rewards import Preference, thumbs_of
from textrl_env import IntegerTokenizer

from ..agents.conftest import GPT2, VOCAB

TEXTS = [("1 2", "3 4 5"), ("6", "7 8"), ("9 10", "11"), ("12", "13 14 15 16")]
PAIRS = [Preference("1 2", "3 4", "5"), Preference("7", "8", "9 10 11"), Preference("4 4", "1", "6")]


class Stopped(Exception):
    pass


@pytest.mark.parametrize(("kind", "texts"), [(SFT, TEXTS), (DPO, PAIRS), (KTO, thumbs_of(PAIRS))])
def test_a_checkpoint_goes_from_device_to_device(pretend_gpu, tmp_path, kind, texts):
    def make(device):
        return kind(GPT2, IntegerTokenizer(VOCAB, 0), batch_size=2, seed=1, learning_rate=1e-3, device=device)

    def stop(number):
        if number == 6:
            raise Stopped

    whole = make("cpu").learn(texts, 10)
    with pytest.raises(Stopped):
        make(pretend_gpu).learn(texts, 10, checkpoint=tmp_path / "c", save_every=4, callback=stop)
    for device in ("cpu", pretend_gpu):
        steps = []
        again = make(device)
        again.learn(texts, 10, checkpoint=tmp_path / "c", save_every=4, callback=steps.append)
        assert steps == ([5, 6, 7, 8, 9, 10] if device == "cpu" else [])
        assert again.losses == pytest.approx(whole.losses, abs=1e-5)
        assert {parameter.device.type for parameter in again.lm.parameters()} == {torch.device(device).type}
        for name, value in whole.lm.state_dict().items():
            if not name.endswith("c_attn.bias"):  # keys' biases cancel in attention: their gradient is rounding, of which Adam makes steps
                torch.testing.assert_close(again.lm.state_dict()[name].cpu(), value, rtol=0, atol=1e-4)
