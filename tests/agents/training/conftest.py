import pytest

from agents.models.loading import load_lm, save_lm
from textrl_env import make_task


@pytest.fixture
def recall_lm(tmp_path):
    """Folder of a small model with the tokens of recall."""
    tokenizer = make_task("recall").tokenizer
    config = {
        "model_type": "llama", "vocab_size": tokenizer.vocab_size, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128, "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id, "initializer_range": 0.3,
    }  # fmt: skip
    save_lm(load_lm(config), tmp_path / "lm")
    return str(tmp_path / "lm")
