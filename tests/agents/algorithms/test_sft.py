"""Supervised learning: where texts end, and what of them is learned."""

import numpy as np
import pytest
import torch

from agents import SFT
from agents.algorithms.common.training_warnings import TrainingWarning
from agents.models.sequences import TextRecord
from rewards.preferences.preference import Preference
from textrl_env import IntegerTokenizer

from ..conftest import LLAMA, VOCAB


def trainer_of(**settings):
    return SFT(LLAMA, IntegerTokenizer(VOCAB, 0), **settings)


def learned(trainer, *texts):
    return [row.actions.tolist() for row in trainer._encode(texts)]


@pytest.mark.reports("SFT closes texts that end, and neither chunks, nor texts cut at the limit, nor texts that are closed already")
def test_where_texts_end():
    trainer = trainer_of(train_on_prompts=False)
    assert learned(trainer, ("1", " 2 3"), ("1", " 2 3", False), ("1", " 2 3", True), ("1", " 2 0")) == [
        [2, 3, 0],
        [2, 3],
        [2, 3, 0],
        [2, 0],
    ]
    limited = trainer_of(train_on_prompts=False, max_new_tokens=2)
    assert learned(limited, ("1", " 2"), ("1", " 2 3"), ("1", " 2 0"), ("1", " 2 3 4")) == [[2, 0], [2, 3], [2, 0], [2, 3]]
    with pytest.warns(TrainingWarning, match=r"1 of 2 responses \(50%\) are longer than max_new_tokens=2"):
        limited.learn([("1", " 2"), ("1", " 2 3 4")], 1)


@pytest.mark.reports("SFT on what a policy wrote learns the policy's own tokens, with an end only where it wrote one")
def test_texts_as_a_policy_wrote_them():
    record = TextRecord(np.array([1, 2]), np.array([3, 4, 5]), 0, [(2, np.array([8, 9]))])
    for whole in (True, False):
        trainer = trainer_of(train_on_prompts=whole)
        with torch.no_grad():
            table = trainer.lm(torch.tensor([[1, 2, 3, 4, 8, 9, 5]])).logits[0].log_softmax(-1)
        assert trainer.evaluate([record]) == pytest.approx(-float(table[1, 3] + table[2, 4] + table[5, 5]) / 3, abs=1e-5)
        assert learned(trainer, record, ("1", " 6"))[0] == [3, 4, 5]


@pytest.mark.reports("SFT refuses what is no text, has nothing to learn, is longer than the model reads, or goes on past its end")
@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("ab", TypeError, "'ab' is a str: pass"),
        (Preference("1", " 2", " 3"), TypeError, "is a Preference: pass"),
        (("1", None), TypeError, "two strings"),
        (("1 2", "", False), ValueError, "no token to learn"),
        (("1 " * 65, " 2"), ValueError, "1 of 1 texts are too long for the model, which reads 64 tokens: .*takes 66"),
        (("1", " 2 0 3"), ValueError, "before its end"),
    ],
)  # fmt: skip
def test_what_is_refused(text, error, message):
    with pytest.raises(error, match=message):
        trainer_of(train_on_prompts=False).learn([text], 1)
