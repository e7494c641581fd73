"""The settings of a policy: checked, frozen, and saved as plain data."""

import dataclasses

import pytest
import torch

from agents import PolicySettings, TransformerPolicy

from ..conftest import LLAMA

SETTINGS = {"temperature": 0.7, "top_k": 3, "min_new_tokens": 2, "banned_tokens": (4,), "critic": "separate", "micro_batch_size": 5}


def test_a_saved_policy_holds_plain_data_and_loads_with_the_same_settings(make_env, tmp_path):
    env = make_env()
    policy = TransformerPolicy(env.observation_space, env.action_space, lambda _: 1e-3, model=LLAMA, **SETTINGS)
    policy.save(tmp_path / "policy.pt")
    data = torch.load(tmp_path / "policy.pt", weights_only=False)["data"]
    assert {name: data[name] for name in SETTINGS} == SETTINGS
    assert not any(type(value).__module__.startswith("agents") for value in data.values())
    again = TransformerPolicy.load(tmp_path / "policy.pt")
    assert again.settings == policy.settings == PolicySettings(**SETTINGS)
    assert again.sampler == policy.sampler


def test_the_sampler_knows_the_ends_and_never_draws_what_is_no_token():
    assert [PolicySettings().sampler(ends).eos_token_id for ends in ([], [1], [1, 4])] == [None, 1, (1, 4)]
    assert PolicySettings(banned_tokens=[2, 3]).sampler([1], unused=[3, 6]).banned_tokens == (2, 3, 6)


@pytest.mark.parametrize(("setting", "message"), [({"micro_batch_size": -1}, "micro_batch_size=-1"), ({"precision": "int8"}, "'int8'")])
def test_settings_out_of_range(setting, message):
    with pytest.raises(ValueError, match=message):
        PolicySettings(**setting)


def test_settings_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PolicySettings().temperature = 2.0
