"""Generation against a plain loop over full forward passes."""

import numpy as np
import pytest
import torch

from agents import TextPPO
from agents.evaluation.policy_texts import make_policy
from agents.generation.text_generation import generate, stream
from agents.policies.transformer_policy import TransformerPolicy
from textrl_env import IntegerTokenizer
from textrl_env.envs.base import spaces_of

from ..conftest import EOS, LLAMA, VOCAB

TOKENIZER = IntegerTokenizer(VOCAB, EOS)
PROMPTS = ["1 2 3", "4", "5 6 7 8 9 10", "11 12", "13"]


@pytest.fixture
def policy(task):
    return make_policy(task, LLAMA, temperature=0.8)


def greedy(policy, prompt, limit):
    ids, written = TOKENIZER.encode_batch([prompt])[0], []
    for _ in range(limit):
        token = int(policy.lm(input_ids=torch.tensor([ids + written])).logits[0, -1].argmax())
        written.append(token)
        if token == EOS:
            break
    return TOKENIZER.decode_batch([written])[0]


def test_greedy_texts_are_those_of_full_forward_passes(policy):
    texts = generate(policy, TOKENIZER, PROMPTS, 12, deterministic=True, num_rows=2)
    assert texts == [greedy(policy, prompt, 12) for prompt in PROMPTS]
    assert len(set(texts)) > 2


def test_a_seed_decides_and_leaves_the_global_generator_alone(policy):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two, other = (generate(policy, TOKENIZER, PROMPTS, 12, seed=s) for s in (1, 1, 2))
    assert one == two != other
    assert torch.equal(torch.get_rng_state(), before)


def test_streamed_pieces_add_up_and_stop_strings_are_never_shown(policy):
    for settings in ({}, {"stop_strings": ["1 1", "2", " 7 "]}):
        pieces = list(stream(policy, TOKENIZER, "4", 30, seed=3, **settings))
        assert "".join(pieces) == generate(policy, TOKENIZER, ["4"], 30, seed=3, num_rows=1, **settings)[0]
        assert len(pieces) > 1


def test_what_save_pretrained_writes_opens_with_transformers_and_with_the_policy(policy, task, tmp_path):
    from transformers import AutoModelForCausalLM

    torch.nn.init.normal_(policy.value_head.weight)
    policy.save_pretrained(tmp_path / "out")
    ids = torch.tensor([[1, 2, 3]])
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(theirs(input_ids=ids).logits, policy.lm(input_ids=ids).logits)
    again = TransformerPolicy(*spaces_of(task), lambda _: 0.0, model=str(tmp_path / "out"))
    assert torch.equal(again.value_head.weight, policy.value_head.weight)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "value_head.safetensors"
    ]  # fmt: skip


def test_predict_on_one_text_and_on_many_with_and_without_state(make_env):
    env = make_env(num_envs=3)
    policy = TransformerPolicy(env.observation_space, env.action_space, lambda _: 1e-3, model=LLAMA)
    obs = env.reset()
    state = (np.zeros(2),)
    many, kept = policy.predict(obs, state=state, episode_start=np.ones(3, bool), deterministic=True)
    assert many.shape == (3,) and kept is state
    assert policy.predict(obs, deterministic=True)[1] is None
    for row in range(3):
        one, _ = policy.predict({key: value[row] for key, value in obs.items()}, deterministic=True)
        assert one.shape == () and one == many[row]
        masks = np.arange(VOCAB) != one
        other, _ = policy.predict({key: value[row] for key, value in obs.items()}, deterministic=True, action_masks=masks)
        assert other != one


def test_set_env_and_other_settings_at_load(make_env, tmp_path):
    env = make_env(num_envs=3)
    agent = TextPPO("TransformerPolicy", env, n_episodes=6, batch_size=3, policy_kwargs={"model": LLAMA})
    agent.learn(10)
    agent.save(tmp_path / "agent.zip")
    agent.set_env(make_env(num_envs=3, seed=8))
    agent.learn(20, reset_num_timesteps=False)
    loaded = TextPPO.load(tmp_path / "agent.zip", env=env, policy_kwargs={"temperature": 0.5, "top_k": 4})
    plain = TextPPO.load(tmp_path / "agent.zip", env=env)
    obs = {key: torch.as_tensor(value) for key, value in env.reset().items()}
    cold, warm = (model.policy.get_distribution(obs).distribution for model in (loaded, plain))
    assert ((cold.probs > 0).sum(-1) == 4).all()
    top = warm.logits.topk(4).indices
    torch.testing.assert_close(cold.logits.gather(1, top).log_softmax(-1), (2 * warm.logits.gather(1, top)).log_softmax(-1))
    loaded.learn(10)
