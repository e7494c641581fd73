"""Arguments of `load`: each replaces what was saved, as if the constructor had got it, or is refused with the reason."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from agents import GRPO, NLPO, RLOO, TextA2C, TextMaskablePPO, TextPPO, TextTRPO
from textrl_env import IntegerTokenizer, Prompt, TextGenerationVecEnv, TextTask, WordTokenizer

from ..conftest import GPT2, LLAMA, VOCAB, sevens

SMALL = {**LLAMA, "num_hidden_layers": 1}


def make(env, algorithm=TextPPO, **settings):
    policy = "MaskableTransformerPolicy" if algorithm is TextMaskablePPO else "TransformerPolicy"
    settings = {"n_episodes": 12, "seed": 0, **settings, "policy_kwargs": {"model": SMALL, **settings.get("policy_kwargs", {})}}
    return algorithm(policy, env, **settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An agent that learned from a rollout, and the file that it was saved in."""
    prompts = [Prompt("1 2 3"), Prompt("4"), Prompt("5 6 7 8 9 10")]
    env = TextGenerationVecEnv(6, task=TextTask(IntegerTokenizer(VOCAB, 0), prompts, max_new_tokens=9), reward=sevens)
    agent = make(env, n_episodes=12, batch_size=12, beta={"target": 3.0})
    agent.learn(30)
    agent.save(file := tmp_path_factory.mktemp("trained") / "agent")
    return agent, file


@pytest.fixture
def grouped(make_env, task):
    return lambda: make_env(num_envs=4, task=replace(task, group_size=4))


@pytest.mark.reports("A critic's own learning rate can be given, changed and taken away when a policy is loaded, and moments stay.")
@pytest.mark.parametrize(("saved", "loaded"), [(None, 0.5), (0.25, 0.5), (0.25, None)])
def test_the_critics_learning_rate(make_env, tmp_path, saved, loaded):
    agent = make(make_env(), policy_kwargs={"critic_learning_rate": saved})
    agent.learn(30)
    agent.save(tmp_path / "agent")
    again = TextPPO.load(tmp_path / "agent", env=make_env(), policy_kwargs={"critic_learning_rate": loaded})
    moments = [agent.policy.optimizer.state[p]["exp_avg"] for p in agent.policy.parameters()]
    kept = [again.policy.optimizer.state[p]["exp_avg"] for p in again.policy.parameters()]
    assert all(torch.equal(*pair) for pair in zip(moments, kept, strict=True)) and moments[0].any()
    again.learn(30, reset_num_timesteps=False)
    rates = {id(p): group["lr"] for group in again.policy.optimizer.param_groups for p in group["params"]}
    for parameter in again.policy.parameters():
        critic = any(parameter is p for p in again.policy.value_head.parameters())
        assert rates[id(parameter)] == (loaded if critic and loaded else 3e-4)


@pytest.mark.reports("Arguments of the optimizer that are given when a policy is loaded are used.")
def test_the_optimizers_arguments(make_env, tmp_path):
    make(make_env()).save(tmp_path / "agent")
    again = TextPPO.load(tmp_path / "agent", env=make_env(), policy_kwargs={"optimizer_kwargs": {"weight_decay": 0.5, "eps": 1e-3}})
    assert {(group["weight_decay"], group["eps"]) for group in again.policy.optimizer.param_groups} == {(0.5, 1e-3)}


USED = {  # what is given, and where the constructor takes it
    "learning_rate": (0.125, lambda agent: agent.lr_schedule(0.3)),
    "n_episodes": (6, lambda agent: agent.n_episodes),
    "beta": (0.75, lambda agent: agent.rollout_buffer.kl_shaping.controller.beta),
    "gamma": (0.5, lambda agent: agent.rollout_buffer.gamma),
    "batch_size": (3, lambda agent: agent.batch_size),
    "clip_range": (0.4, lambda agent: agent.clip_range(1.0)),
    "target_kl": (2.0, lambda agent: agent.target_kl),
    "n_epochs": (7, lambda agent: agent.n_epochs),
    "critic_warmup": (2, lambda agent: agent.critic_warmup),
    "stats_window_size": (5, lambda agent: agent.ep_info_buffer.maxlen),
    "rollout_buffer_kwargs": ({"whiten_rewards": True}, lambda agent: {"whiten_rewards": agent.rollout_buffer.kl_shaping.whiten_rewards}),
}


@pytest.mark.reports("Every argument of the constructor that load is given is used.")
@pytest.mark.parametrize("name", USED)
def test_an_argument_is_used(make_env, trained, name):
    (value, read), (agent, file) = USED[name], trained
    plain, again = TextPPO.load(file, env=make_env()), TextPPO.load(file, env=make_env(), **{name: value})
    assert read(again) == value != read(plain)
    assert again.rollout_buffer.whiten_advantages  # PPO's own, whatever else the buffer is told
    assert name == "beta" or again.kl_controller.beta == plain.kl_controller.beta == agent.kl_controller.beta
    again.learn(30, reset_num_timesteps=False)
    assert read(again) == value and again.num_rollouts == 2


@pytest.mark.reports("norm_reward and clip_reward that load is given are used, and the moments of the scores that were seen stay.")
def test_the_scale_of_scores(make_env, tmp_path):
    agent = make(make_env(), rollout_buffer_kwargs={"norm_reward": True})
    agent.learn(30)
    agent.save(tmp_path / "agent")
    again = TextPPO.load(tmp_path / "agent", env=make_env(), rollout_buffer_kwargs={"clip_reward": 0.1})
    scale, saved = again.rollout_buffer.kl_shaping.score_scale, agent.score_scale
    assert (scale.norm_reward, scale.clip_reward) == (True, 0.1) and scale is again.score_scale
    assert (scale.count, scale.mean, scale.squares) == (saved.count, saved.mean, saved.squares) and saved.count == 12
    off = TextPPO.load(tmp_path / "agent", env=make_env(), rollout_buffer_kwargs={"norm_reward": False})
    assert not off.rollout_buffer.kl_shaping.score_scale.norm_reward


@pytest.mark.reports("A seed that load is given starts the generators anew, instead of those that were saved.")
def test_a_seed_is_used(make_env, tmp_path):
    make(make_env()).learn(20).save(tmp_path / "agent")
    written = []
    for seed in (11, 11, 12, None):
        again = TextPPO.load(tmp_path / "agent", env=make_env(), **({} if seed is None else {"seed": seed}))
        again.learn(20, reset_num_timesteps=False)
        written.append(np.asarray(again.rollout_buffer.actions).flatten().tolist())
    assert written[0] == written[1] and written[0] != written[2] and written[0] != written[3]


@pytest.mark.reports("What a constructor derives of an argument follows when load changes it: the place of KL, whitening, minibatches.")
def test_what_is_derived_follows(make_env, grouped, tmp_path):
    make(grouped(), GRPO).save(tmp_path / "grpo")
    again = GRPO.load(tmp_path / "grpo", env=grouped(), kl_in="reward", kl_estimator="k1")
    assert again.rollout_buffer.kl_shaping.kl_reward == "k1"
    make(grouped(), RLOO).save(tmp_path / "rloo")
    again = RLOO.load(tmp_path / "rloo", env=grouped(), whiten_advantages=True)
    assert again.whiten
    with pytest.raises(ValueError, match="the gradient of k1 in the loss is 0"):
        RLOO.load(tmp_path / "rloo", env=grouped(), kl_in="loss")
    for algorithm in (TextA2C, TextTRPO):
        make(make_env(), algorithm).save(tmp_path / "other")
        again = algorithm.load(tmp_path / "other", env=make_env(), whiten_advantages=False)
        assert not again.rollout_buffer.whiten_advantages
    make(make_env(), NLPO).save(tmp_path / "nlpo")
    assert NLPO.load(tmp_path / "nlpo", env=make_env(), mask_top_p=0.25).policy.mask._sampler.top_p == 0.25
    make(make_env(), TextMaskablePPO).save(tmp_path / "maskable")
    assert TextMaskablePPO.load(tmp_path / "maskable", env=make_env(), n_epochs=2).n_epochs == 2


REFUSED = {
    "an unknown name": ({"learning_rat": 0.1}, TypeError, r"takes no argument 'learning_rat' \(did you mean 'learning_rate'"),
    "SB3's steps": ({"n_steps": 5}, TypeError, "takes no argument 'n_steps'"),
    "an attribute": ({"num_timesteps": 0}, TypeError, "takes no argument 'num_timesteps'"),
    "out of range": ({"n_episodes": 0}, ValueError, "n_episodes=0 is not a whole number of at least 1"),
    "a share": ({"reference_mixup": 2.0}, ValueError, r"reference_mixup=2\.0"),
    "the policy's class": ({"policy": "TransformerPolicy"}, ValueError, "load takes no policy: the file says"),
    "another reference": ({"reference": "somewhere"}, ValueError, "the file holds the reference's weights"),
    "another model": ({"policy_kwargs": {"model": GPT2}}, ValueError, "policy_kwargs: model=.*the file holds the weights"),
    "another critic": ({"policy_kwargs": {"critic": "separate"}}, ValueError, "policy_kwargs: critic='separate': the file holds"),
    "no critic": ({"policy_kwargs": {"critic": "none"}}, ValueError, "policy_kwargs: critic='none': the file holds"),
    "adapters": ({"policy_kwargs": {"lora": {"r": 2}}}, ValueError, "lora=.*the file holds None: only lora_alpha can change"),
    "another optimizer": ({"policy_kwargs": {"optimizer_class": torch.optim.SGD}}, ValueError, "optimizer_class=.*the file holds"),
    "an unknown policy's": ({"policy_kwargs": {"temprature": 0.5}}, TypeError, r"'temprature' \(did you mean 'temperature'"),
    "a rule out of range": ({"policy_kwargs": {"temperature": 0.0}}, ValueError, r"temperature=0\.0 is not a number above 0"),
}


@pytest.mark.reports("An argument of load that cannot be used is refused with the reason.")
@pytest.mark.parametrize("name", REFUSED)
def test_an_argument_is_refused(make_env, trained, name):
    (arguments, error, reason), (_, file) = REFUSED[name], trained
    with pytest.raises(error, match=reason):
        TextPPO.load(file, env=make_env(), **arguments)
    TextPPO.load(file, env=make_env())  # the file is as it was


@pytest.mark.reports("A group size is the task's: load refuses another.")
def test_a_group_size_is_the_tasks(grouped, tmp_path):
    make(grouped(), RLOO).save(tmp_path / "agent")
    with pytest.raises(ValueError, match="load takes no group_size: the environment's task says it"):
        RLOO.load(tmp_path / "agent", env=grouped(), group_size=2)


@pytest.mark.reports("The scale of adapters can change when a policy is loaded, their rank cannot.")
def test_the_scale_of_adapters(make_env, tmp_path):
    pytest.importorskip("peft")
    make(make_env(), policy_kwargs={"lora": {"r": 2, "lora_alpha": 4}}).save(tmp_path / "agent")
    again = TextPPO.load(tmp_path / "agent", env=make_env(), policy_kwargs={"lora": {"r": 2, "lora_alpha": 8}})
    assert again.policy.lm.model.layers[0].self_attn.q_proj.scaling == {"default": 4.0}
    with pytest.raises(ValueError, match=r"lora=.*'r': 3.*only lora_alpha can change"):
        TextPPO.load(tmp_path / "agent", env=make_env(), policy_kwargs={"lora": {"r": 3, "lora_alpha": 4}})


@pytest.mark.reports("A reference that moved to another folder is found under its new name, if it is the same one.")
def test_a_reference_that_moved(make_env, tmp_path):
    make(make_env()).policy.save_pretrained(tmp_path / "one")
    make(make_env(), reference=str(tmp_path / "one")).save(tmp_path / "agent")
    (tmp_path / "one").rename(tmp_path / "two")
    again = TextPPO.load(tmp_path / "agent", env=make_env(), reference=str(tmp_path / "two"))
    assert again.reference_source == str(tmp_path / "two")
    make(make_env(), seed=5).policy.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="has changed since this model was saved"):
        TextPPO.load(tmp_path / "agent", env=make_env(), reference=str(tmp_path / "other"))
    with pytest.raises(ValueError, match="the file names the reference's folder"):
        TextPPO.load(tmp_path / "agent", env=make_env(), reference=None)
    with pytest.raises(ValueError, match="without a reference that it needs"):
        TextPPO.load(tmp_path / "agent", env=make_env(), reference=str(tmp_path / "two"), reference_mixup=0.5)


@pytest.mark.reports("A policy is not loaded into an environment whose tokens mean other texts; other rows, prompts and rewards are used.")
def test_another_environment(make_env, task, tmp_path):
    make(make_env()).learn(20).save(tmp_path / "agent")
    words = WordTokenizer([f"w{i}" for i in range(VOCAB - 1)])
    for tokenizer in (words, IntegerTokenizer(VOCAB, eos_token_id=3)):
        prompts = [Prompt(" w1 w2 w3 w4 w5 w6" if tokenizer is words else "5 6 7 8 9 10")]
        other = make_env(task=TextTask(tokenizer, prompts, max_new_tokens=9))
        with pytest.raises(
            ValueError, match="tokenizer is another than the policy learned with" if tokenizer is words else "spaces do not match"
        ):
            TextPPO.load(tmp_path / "agent", env=other)
    twos = TextTask(task.tokenizer, [Prompt("2 2 2 2 2 2")], max_new_tokens=9)
    used = make_env(num_envs=3, task=twos, reward=lambda completions: [5.0] * len(completions))
    again = TextPPO.load(tmp_path / "agent", env=used)
    assert again.n_envs == 3
    again.learn(20)
    assert set(again.rollout_buffer.scores) == {5.0} and all((s.context[:6] == 2).all() for s in again.rollout_buffer.segments)
    with pytest.raises(ValueError, match="spaces do not match"):
        TextPPO.load(tmp_path / "agent", env=make_env(task=TextTask(task.tokenizer, [Prompt("1")], max_new_tokens=9)))
