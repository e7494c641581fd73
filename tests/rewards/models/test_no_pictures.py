"""Reward models that read text only refuse prompts with pictures, before a text is written."""

import pytest

import rewards
from rewards import PersonalRewardModel
from textrl_env import TextGenerationEnv

from .checkpoints import save_constants


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    save_constants(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "folder"), [("preference", "preference"), ("personal", "preference"), ("scalar_head", "scalar"), ("likelihood", "lm")]
)
def test_pictures_are_refused(checkpoints, name, folder):
    reward = rewards.make("preference" if name == "personal" else name, path=str(checkpoints / folder))
    if name == "personal":
        reward = PersonalRewardModel(reward, {})
    with pytest.raises(ValueError, match=f"^{name} judges responses to their prompts, and cannot see the pictures of these"):
        TextGenerationEnv("caption-1", reward)
    TextGenerationEnv("recall", reward)
