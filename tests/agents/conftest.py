"""Small texts of integers, and tiny models with random but not trivial weights."""

import numpy as np
import pytest
import torch

from textrl_env import IntegerTokenizer, Prompt, TextTask
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv

VOCAB = 24
EOS = 0

LLAMA = {
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "initializer_range": 0.3,
}
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": VOCAB,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 64,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "initializer_range": 0.3,
}
MODELS = {"llama": LLAMA, "gpt2": GPT2}


def sevens(prompts, completions):
    """Reward: how many sevens were written."""
    return [float(c.split().count("7")) for c in completions]


@pytest.fixture(scope="session")
def small_reviews_cache(made_once):
    """A cache folder with the base policy of `small_reviews.small_task`."""
    from .small_reviews import build

    return made_once("small-reviews", build)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    np.random.seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def task():
    return TextTask(IntegerTokenizer(VOCAB, EOS), [Prompt("1 2 3"), Prompt("4"), Prompt("5 6 7 8 9 10")], max_new_tokens=9)


@pytest.fixture
def make_env(task):
    def make(num_envs=6, reward=sevens, seed=3, task=task, **settings):
        env = TextGenerationVecEnv(num_envs, task=task, reward=reward, **settings)
        env.seed(seed)
        return env

    return make
