import pytest
import torch

from agents.models.loading import load_lm, save_lm
from textrl_env import make_task

from .launch import run, torchrun
from .parts import write_models


@pytest.fixture(scope="session")
def two_ranks(made_once):
    """A folder with what two processes found, all tasks in turn: to start them takes longer than most tasks."""

    def make(folder):
        write_models(folder / "parts")
        run(torchrun("tests.agents.distributed.everything", folder), timeout=480)

    return made_once("two-ranks", make)


@pytest.fixture
def tiny(tmp_path):
    """A model with the tokens of film reviews and 16 dimensions."""
    eos = make_task("review").tokenizer.eos_token_id
    torch.manual_seed(0)
    save_lm(
        load_lm({
            "model_type": "llama", "vocab_size": 4096, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": eos,
        }),
        tmp_path / "tiny",
    )  # fmt: skip
    return tmp_path / "tiny"
