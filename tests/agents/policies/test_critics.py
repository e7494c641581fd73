"""Critics, references, adapters, precision and memory: what each changes, and what none may change."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from agents import SequenceRolloutBuffer, TextPPO, TransformerPolicy
from agents.algorithms.common import text_algorithm
from agents.cli.train import run_train
from agents.cli.train_flags import Train
from agents.models.loading import load_lm, save_lm
from agents.rollouts.kl_shaping import RecordedTokens
from agents.rollouts.reference_model import move_reference
from tests.slow_cases import slow_but

from ..conftest import GPT2, LLAMA, VOCAB
from ..models.test_families import OWN


def make(env, **settings):
    arguments = dict(n_episodes=12, batch_size=6, n_epochs=2, learning_rate=1e-2, seed=0)
    names = ("beta", "reference", "reference_mixup", "critic_warmup", "n_epochs", "vf_coef", "learning_rate")
    arguments |= {name: settings.pop(name) for name in names if name in settings}
    return TextPPO("TransformerPolicy", env, policy_kwargs={"model": LLAMA, **settings}, **arguments)


def weights(module):
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def changed(module, before):
    return {name for name, parameter in module.named_parameters() if not torch.equal(parameter, before[name])}


def reward_model(folder):
    torch.manual_seed(1)
    config = AutoConfig.for_model(**{**LLAMA, "num_labels": 1, "pad_token_id": 1})
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("critic", ["shared", "separate", "reward model", "none"])
def test_every_critic_trains_and_is_saved(make_env, tmp_path, critic):
    if critic == "reward model":
        reward_model(tmp_path / "rm")
        critic = str(tmp_path / "rm")
    env = make_env(num_envs=4)
    agent = make(env, critic=critic)
    before = weights(agent.policy)
    agent.learn(100)
    moved = changed(agent.policy, before)
    assert any(name.startswith("lm.") for name in moved)
    assert any(name.startswith("value_head") for name in moved) == (critic != "none")
    assert any(name.startswith("value_trunk") for name in moved) == (critic not in ("shared", "none"))
    values = agent.rollout_buffer.values
    assert values.any() == (critic != "none")
    samples = agent.rollout_buffer.samples(np.arange(12))
    agent.save(tmp_path / "agent")
    if critic not in ("shared", "separate", "none"):
        (tmp_path / "rm").rename(tmp_path / "moved")  # the file names no folder
    loaded = TextPPO.load(tmp_path / "agent", env=env)
    for one, two in zip(*(p.policy.evaluate_actions(samples.observations, samples.actions) for p in (agent, loaded)), strict=True):
        assert torch.equal(one, two)


def test_acting_values_are_those_of_training(make_env):
    """One token at a time with a cache of its own, or all at once."""
    env = make_env(num_envs=5)
    agent = make(env, critic="separate", n_epochs=1)
    torch.nn.init.normal_(agent.policy.value_head.weight)
    with torch.no_grad():
        for parameter in agent.policy.value_trunk.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    agent.learn(30)  # one rollout; the update has changed the weights: compare on a fresh one
    agent.policy.set_training_mode(False)
    obs = {key: torch.as_tensor(value) for key, value in env.reset().items()}
    with torch.no_grad():
        _, values, _ = agent.policy(obs)
    torch.testing.assert_close(values, agent.policy.predict_values(obs), atol=1e-5, rtol=1e-5)
    assert values.std() > 0.1


def test_a_critic_from_a_reward_model_says_what_the_reward_model_says(make_env, tmp_path):
    model = reward_model(tmp_path / "rm").eval()
    env = make_env(num_envs=3)
    policy = TransformerPolicy(env.observation_space, env.action_space, lambda _: 1e-3, model=LLAMA, critic=str(tmp_path / "rm"))
    obs = env.reset()
    found = policy.predict_values({key: torch.as_tensor(value) for key, value in obs.items()})
    for row, prompt in enumerate(obs["prompt"]):
        theirs = model(input_ids=torch.as_tensor(prompt[prompt >= 0])[None]).logits[0, 0]
        torch.testing.assert_close(found[row, 0], theirs, atol=1e-5, rtol=1e-5)


def test_reward_models_that_do_not_fit(make_env, tmp_path):
    env = make_env()
    config = AutoConfig.for_model(**{**LLAMA, "num_labels": 3})
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "three")
    config = AutoConfig.for_model(**{**LLAMA, "num_labels": 1, "vocab_size": 8})
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "small")
    for critic, error, message in (
        (str(tmp_path / "three"), ValueError, "one output"),
        (str(tmp_path / "small"), ValueError, "has 8 tokens, the policy 24"),
        ("seperate", FileNotFoundError, "'shared', 'separate', 'none'"),
    ):
        with pytest.raises(error, match=message):
            make(env, critic=critic)


def test_a_detached_critic_leaves_the_trunk_alone(make_env):
    env = make_env()
    for detach in (True, False):
        policy = TransformerPolicy(env.observation_space, env.action_space, lambda _: 1e-3, model=LLAMA, detach_critic=detach)
        torch.nn.init.normal_(policy.value_head.weight)
        obs = {key: torch.as_tensor(value) for key, value in env.reset().items()}
        values, _, _ = policy.evaluate_actions(obs, torch.zeros(6, dtype=torch.int64))
        values.sum().backward()
        assert policy.value_head.weight.grad.abs().sum() > 0
        assert all(p.grad is None or not p.grad.any() for p in policy.lm.parameters()) == detach


def test_the_critics_own_learning_rate(make_env):
    env = make_env()
    agent = make(env, critic="separate", critic_learning_rate=0.0, learning_rate=1e-2)
    before = weights(agent.policy)
    agent.learn(60)
    moved = changed(agent.policy, before)
    assert moved and not any(name.startswith("value") for name in moved)
    agent = make(env, critic="separate", critic_learning_rate=5e-3, learning_rate=lambda left: 1e-2 * left)
    agent.learn(60)
    assert [group["lr"] for group in agent.policy.optimizer.param_groups] == [
        pytest.approx(agent.logger.name_to_value["policy/learning_rate"]),
        5e-3,
    ]


def test_warm_up_moves_the_critic_only(make_env):
    env = make_env()
    agent = make(env, critic_warmup=2)
    before = weights(agent.policy)
    seen = []
    original = agent.train

    def train():
        original()
        seen.append(changed(agent.policy, before))

    agent.train = train
    agent.learn(250)
    assert seen[0] and seen[1] and all(name.startswith("value_head") for name in seen[0] | seen[1])
    assert any(name.startswith("lm.") for name in seen[2])
    with pytest.raises(ValueError, match="nothing to warm up"):
        make(env, critic="none", critic_warmup=1)


@pytest.mark.parametrize("mixup", [0.0, 0.25])
def test_the_reference_moves_only_if_told_to(make_env, tmp_path, mixup, monkeypatch):
    env = make_env()
    agent = make(env, reference_mixup=mixup, beta=0.1)
    start = weights(agent.reference)
    agent.learn(50)
    moved = changed(agent.reference, start)
    if not mixup:
        assert not moved
        return
    agent = make(env, reference_mixup=mixup, beta=0.1)
    start, updates = weights(agent.reference), []

    def move(reference, policy, share):
        updates.append(weights(policy))
        move_reference(reference, policy, share)

    monkeypatch.setattr(text_algorithm, "move_reference", move)
    agent.learn(250)
    assert len(updates) > 2
    for name, expected in start.items():
        for update in updates:
            expected = (1 - mixup) * expected + mixup * update[name]
        torch.testing.assert_close(agent.reference.get_parameter(name).detach(), expected, atol=1e-6, rtol=1e-5)
    agent.save(tmp_path / "agent")
    loaded = TextPPO.load(tmp_path / "agent", env=env)
    assert not changed(loaded.reference, weights(agent.reference))


def test_references_that_cannot_be_mixed_or_do_not_fit(make_env, tmp_path):
    env = make_env()
    save_lm(load_lm({**LLAMA, "hidden_size": 32}), tmp_path / "wide")
    with pytest.raises(ValueError, match="own architecture"):
        make(env, reference=tmp_path / "wide", reference_mixup=0.1)
    with pytest.raises(ValueError, match="from 0 to 1"):
        make(env, reference_mixup=1.5)
    save_lm(load_lm({**LLAMA, "vocab_size": 8}), tmp_path / "small")
    with pytest.raises(ValueError, match="reference has 8 tokens, the environment 24"):
        make(env, reference=tmp_path / "small")
    save_lm(load_lm({**GPT2, "n_positions": 8}), tmp_path / "short")
    with pytest.raises(ValueError, match="reads 8 tokens"):
        SequenceRolloutBuffer(1, env.observation_space, env.action_space, reference=str(tmp_path / "short"))
    with pytest.raises(ValueError, match="fresh weights"):
        make(env, reference=LLAMA)


@pytest.mark.parametrize("model", slow_but([GPT2, OWN["nano"]], [LLAMA, GPT2, OWN["nano"]]), ids=["llama", "gpt2", "nano"])
def test_lora(make_env, tmp_path, model):
    pytest.importorskip("peft")
    save_lm(load_lm(model), tmp_path / "base")
    source = {"class": model["class"], "weights": str(tmp_path / "base")} if "class" in model else str(tmp_path / "base")
    base = load_lm(source)
    env = make_env()
    lora = {"r": 4, "lora_alpha": 8}
    if model is GPT2:
        lora["target_modules"] = ["c_attn", "c_proj"]
    agent = TextPPO(
        "TransformerPolicy", env, n_episodes=12, batch_size=6, n_epochs=2, learning_rate=1e-2, beta=0.1, seed=0,
        policy_kwargs={"model": source, "lora": lora},
    )  # fmt: skip
    assert agent.reference is None  # the base under the adapters
    before = weights(agent.policy)
    agent.learn(30)
    assert agent.rollout_buffer.stats.kl_per_sequence == pytest.approx(0, abs=1e-4)  # adapters start as nothing
    moved = changed(agent.policy, before)
    assert any("lora_B" in name for name in moved)
    assert all("lora_" in name or name.startswith("value_head") for name in moved)
    agent.learn(30, reset_num_timesteps=False)
    own = agent.rollout_buffer.stats.kl_per_sequence
    buffer = agent.rollout_buffer
    buffer.connect(reference=base)  # the same model, loaded apart
    tokens = RecordedTokens(buffer.log_probs, buffer.sampler, buffer.autocast, buffer._for_each, buffer._offsets)
    apart = buffer.kl_shaping.reference_log_probs(tokens)
    expected = (agent.rollout_buffer.log_probs - apart).sum() / len(agent.rollout_buffer.segments)
    assert own == pytest.approx(float(expected), abs=1e-4) and own != pytest.approx(0, abs=1e-3)
    samples = agent.rollout_buffer.samples(np.arange(12))
    agent.save(tmp_path / "agent")
    loaded = TextPPO.load(tmp_path / "agent", env=env)
    scores = [a.policy.evaluate_actions(samples.observations, samples.actions)[1] for a in (agent, loaded)]
    assert torch.equal(*scores)
    agent.policy.save_pretrained(tmp_path / "merged")
    ids = torch.tensor([[1, 2, 3]])
    if "class" not in model:
        whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        assert not any("lora" in name for name, _ in whole.named_parameters())
        torch.testing.assert_close(whole(ids).logits, agent.policy.lm(ids).logits, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="adapters share"):
        TextPPO("TransformerPolicy", env, reference_mixup=0.1, policy_kwargs={"model": source, "lora": lora})


def test_adapters_outside_the_optimizer_are_noticed(make_env):
    pytest.importorskip("peft")
    from rewards.models.lora import add_adapters

    agent = make(make_env())
    add_adapters(agent.policy.lm, {"r": 2})
    with pytest.raises(RuntimeError, match=r"not in the optimizer, lm.*lora_A"):
        agent.learn(10)


def test_a_policy_that_gets_no_gradient_is_noticed(make_env, monkeypatch):
    agent = make(make_env())
    backbone = agent.policy.backbone
    monkeypatch.setattr(type(backbone), "head", None)
    hidden, logits = backbone.hidden, backbone.logits
    backbone.hidden, backbone.logits = lambda batch: hidden(batch).detach(), lambda states: logits(states).detach()
    with pytest.raises(RuntimeError, match="no gradient reached"):
        agent.learn(10)


def gradients(policy, samples, **settings):
    policy = copy.deepcopy(policy)
    policy.settings = replace(policy.settings, **settings)
    policy.set_training_mode(True)
    policy.zero_grad()
    values, log_probs, entropies = policy.evaluate_actions(samples.observations, samples.actions)
    (values.square().mean() - log_probs.mean() + 0.1 * entropies.mean()).backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]), log_probs.detach()


@pytest.fixture
def rollout(make_env):
    env = make_env()
    agent = make(env)
    agent.learn(30)
    torch.nn.init.normal_(agent.policy.value_head.weight, std=0.1)
    return agent.policy, agent.rollout_buffer.samples(np.arange(12))


@pytest.mark.parametrize("size", slow_but([1, 5, 12], [1, 5, 11, 12, 99]))
def test_micro_batches_change_nothing(rollout, size):
    policy, samples = rollout
    expected, one = gradients(policy, samples)
    found, two = gradients(policy, samples, micro_batch_size=size)
    torch.testing.assert_close(two, one, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_micro_batches_with_repeats_and_cuts(make_env):
    env = make_env()
    agent = make(env, no_repeat_ngram=1, top_k=8)
    agent.learn(30)
    samples = agent.rollout_buffer.samples(np.arange(12))
    expected, one = gradients(agent.policy, samples)
    found, two = gradients(agent.policy, samples, micro_batch_size=5)
    torch.testing.assert_close(two, one, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_gradient_checkpointing_changes_nothing(make_env, rollout):
    policy, samples = rollout
    expected, one = gradients(policy, samples)
    env = make_env()
    again = TransformerPolicy(env.observation_space, env.action_space, lambda _: 1e-3, model=LLAMA, gradient_checkpointing=True)
    again.load_state_dict(policy.state_dict())
    assert any(getattr(part, "gradient_checkpointing", False) for part in again.lm.modules())
    found, two = gradients(again, samples)
    torch.testing.assert_close(two, one, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    with pytest.raises(ValueError, match="has no gradient_checkpointing_enable"):
        TransformerPolicy(env.observation_space, env.action_space, lambda _: 1e-3, model=OWN["nano"], gradient_checkpointing=True)


def test_mixed_precision(make_env):
    """Log-probabilities move by the rounding of the trunk; gradients point the same way; KL to the reference starts at 0."""
    env = make_env()
    policy = TransformerPolicy(env.observation_space, env.action_space, lambda _: 1e-3, model=LLAMA)
    mixed = TransformerPolicy(env.observation_space, env.action_space, lambda _: 1e-3, model=LLAMA, precision="bfloat16")
    mixed.load_state_dict(policy.state_dict())
    agent = make(env, precision="bfloat16")
    agent.learn(30)
    # Acting and reference see the same rounding but for the cache's other shapes.
    assert abs(agent.rollout_buffer.stats.kl_per_sequence) < 0.1
    assert {p.dtype for p in agent.policy.parameters()} == {torch.float32}
    samples = agent.rollout_buffer.samples(np.arange(12))
    expected, one = gradients(policy, samples)
    mixed.set_training_mode(True)
    values, log_probs, entropies = mixed.evaluate_actions(samples.observations, samples.actions)
    assert log_probs.dtype == values.dtype == entropies.dtype == torch.float32
    (values.square().mean() - log_probs.mean() + 0.1 * entropies.mean()).backward()
    found = torch.cat([p.grad.flatten() for p in mixed.parameters() if p.grad is not None])
    assert (log_probs - one).abs().max() < 0.15
    assert torch.cosine_similarity(found, expected, dim=0) > 0.999
    assert found.norm() == pytest.approx(float(expected.norm()), rel=0.02)


def test_precisions_have_names(make_env):
    with pytest.raises(ValueError, match="precision='bf16'"):
        make(make_env(), precision="bf16")


@pytest.mark.reports("precision='float16' is refused with the reason and the way out: in a new policy, a saved one, on the command line")
def test_float16_is_refused(make_env, tmp_path):
    reason = "small gradients round to 0.*use 'bfloat16'"
    with pytest.raises(ValueError, match=reason):
        make(make_env(), precision="float16")
    with pytest.raises(ValueError, match=reason):
        run_train(Train(precision="float16", out=tmp_path / "run"))
    make(make_env()).save(tmp_path / "agent.zip")
    older = {"policy_kwargs": {"model": LLAMA, "precision": "float16"}}
    with pytest.raises(ValueError, match=reason):
        TextPPO.load(tmp_path / "agent.zip", custom_objects=older)
    again = TextPPO.load(tmp_path / "agent.zip", policy_kwargs={"precision": "bfloat16"})
    assert again.policy.backbone.autocast == torch.bfloat16


def test_nan_is_explained(make_env):
    env = make_env()
    agent = make(env)
    with torch.no_grad():
        agent.policy.lm.get_input_embeddings().weight[7] = float("nan")
    obs = {"prompt": np.full((2, 6), -1), "response": np.full((2, 9), -1)}
    obs["prompt"][0, :2], obs["prompt"][1, :2] = [1, 2], [4, 5]
    obs["response"][1, :2] = [9, 7]
    with pytest.raises(FloatingPointError, match=r"row 1, at step 2 after token 7, prompt \[4, 5\]"):
        agent.policy.predict(obs)


@pytest.mark.parametrize("name", ["ppo", "a2c"])
def test_unmodified_algorithms_take_every_option(make_env, name):
    from stable_baselines3 import A2C

    env = make_env(num_envs=3)
    settings = {"n_steps": 12, "batch_size": 6, "n_epochs": 1} if name == "ppo" else {"n_steps": 12, "use_rms_prop": False}
    kwargs = {"model": LLAMA, "critic": "separate", "no_repeat_ngram": 2, "min_p": 0.05, "precision": "bfloat16", "micro_batch_size": 2}
    algorithm = PPO if name == "ppo" else A2C
    agent = algorithm(TransformerPolicy, env, rollout_buffer_class=SequenceRolloutBuffer, policy_kwargs=kwargs, **settings)
    before = weights(agent.policy)
    agent.learn(72)
    assert any(n.startswith("lm.") for n in changed(agent.policy, before)) and VOCAB == 24
