"""Arguments of algorithms that would not be used, that are missing, or whose names are another library's."""

import pytest
from stable_baselines3 import PPO

from agents import DPO, GRPO, RLOO, SFT, Reinforce, TextA2C, TextMaskablePPO, TextPPO, TextTRPO, TransformerPolicy
from textrl_env import IntegerTokenizer

from ..conftest import LLAMA

POLICY = {"model": LLAMA}
NAMES = pytest.mark.reports("A wrong or missing argument of an algorithm is refused with its meaning, or with what it is called here.")
UNUSED = pytest.mark.reports("An argument that the chosen estimator would not use is refused.")


@NAMES
@pytest.mark.parametrize("kind", [TextPPO, TextA2C, TextTRPO, RLOO, GRPO, TextMaskablePPO])
def test_names(kind, make_env):
    policy = next(iter(kind.policy_aliases))
    with pytest.raises(
        TypeError, match=rf"{kind.__name__} takes no argument 'n_steps' \(here it is n_episodes: texts per rollout, not steps\)"
    ):
        kind(policy, make_env(), n_steps=32, policy_kwargs=POLICY)
    with pytest.raises(TypeError, match=rf"{kind.__name__} takes no argument 'learning_rte' \(did you mean 'learning_rate'\?\)"):
        kind(policy, make_env(), learning_rte=0.1, policy_kwargs=POLICY)
    with pytest.raises(TypeError, match=f"{kind.__name__} needs 'policy': Name of the policy class"):
        kind(env=make_env())
    with pytest.raises(TypeError, match=r"'model' \(here it is policy_kwargs={'model': ...}\)"):
        kind(policy, make_env(), model=LLAMA)


@NAMES
@pytest.mark.parametrize("kind", [TextPPO, PPO])
def test_settings_of_the_policy(kind, make_env):
    policy = "TransformerPolicy" if kind is TextPPO else TransformerPolicy
    with pytest.raises(ValueError, match=r"no model: pass policy_kwargs={'model': ...}"):
        kind(policy, make_env())
    with pytest.raises(TypeError, match=r"the policy has no setting 'temprature' \(did you mean 'temperature'\?\)"):
        kind(policy, make_env(), policy_kwargs={**POLICY, "temprature": 0.5})
    with pytest.raises(ValueError, match="min_new_tokens=10: a text of this task has at most 9 tokens"):
        kind(policy, make_env(), policy_kwargs={**POLICY, "min_new_tokens": 10})


@NAMES
def test_trainers_on_texts():
    with pytest.raises(TypeError, match="SFT needs 'model': What"):
        SFT(tokenizer=IntegerTokenizer(24))
    with pytest.raises(TypeError, match=r"DPO takes no argument 'bta' \(did you mean 'beta'\?\)"):
        DPO(LLAMA, IntegerTokenizer(24), bta=0.3)


@UNUSED
@pytest.mark.parametrize(
    ("kind", "settings"),
    [(RLOO, {"gamma": 0.9}), (GRPO, {"gae_lambda": 0.5}), (Reinforce, {"vf_coef": 0.3}), (RLOO, {"clip_range_vf": 0.2}),
     (Reinforce, {"group_size": 2}), (RLOO, {"ptx_texts": [("1", " 2")]}), (GRPO, {"max_sampling_rounds": 3}), (RLOO, {"group_size": 2})],
)  # fmt: skip
def test_arguments_that_would_not_be_used(kind, settings, make_env):
    env = make_env(8, group_size=4)
    kind("TransformerPolicy", env, n_episodes=8, policy_kwargs=POLICY)
    with pytest.raises(ValueError, match=next(iter(settings))):
        kind("TransformerPolicy", env, n_episodes=8, policy_kwargs=POLICY, **settings)
    kind("TransformerPolicy", env, n_episodes=8, policy_kwargs=POLICY, vf_coef=0.0)  # as it is


def test_arguments_of_the_buffer_that_the_algorithm_has_itself(make_env):
    for settings, message in (
        ({"beta": 5.0}, "rollout_buffer_kwargs: beta would be replaced by the algorithm's own: pass beta to the algorithm"),
        ({"beta": 5.0, "reference": LLAMA}, "beta, reference would be replaced"),
    ):
        for kind in (TextPPO, RLOO):
            with pytest.raises(ValueError, match=message):
                kind("TransformerPolicy", make_env(8, group_size=4), policy_kwargs=POLICY, rollout_buffer_kwargs=settings)
    for settings in ({"whiten_advantages": True}, {"kl_reward": "none"}):
        with pytest.raises(ValueError, match=f"{next(iter(settings))} would be replaced by the algorithm's own: pass (whiten|kl_in and)"):
            RLOO("TransformerPolicy", make_env(8, group_size=4), policy_kwargs=POLICY, rollout_buffer_kwargs=settings)
    assert not TextPPO(
        "TransformerPolicy", make_env(), policy_kwargs=POLICY, rollout_buffer_kwargs={"whiten_advantages": False}
    ).rollout_buffer.whiten_advantages


@pytest.mark.parametrize("critic", ["separate", "none"])
def test_a_critic_with_a_trunk_of_its_own_is_not_detached(critic, make_env):
    with pytest.raises(ValueError, match="detach_critic=True keeps the critic's gradient out of the actor's trunk"):
        TextPPO("TransformerPolicy", make_env(), policy_kwargs={**POLICY, "critic": critic, "detach_critic": True})
