"""One small model of each family: what the table of families and the tests build."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

VOCAB, EOS = 24, 0

_ROTARY: Mapping[str, Any] = dict(
    vocab_size=VOCAB, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    max_position_embeddings=64, bos_token_id=None, eos_token_id=EOS, pad_token_id=None, initializer_range=0.3,
)  # fmt: skip
_GEMMA: Mapping[str, Any] = {**_ROTARY, "head_dim": 8}
_MAMBA: Mapping[str, Any] = dict(
    vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, bos_token_id=None, eos_token_id=EOS, pad_token_id=None, initializer_range=0.3
)

DECODERS: Mapping[str, dict[str, Any]] = {
    "gpt2": dict(
        model_type="gpt2", vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=None, eos_token_id=EOS,
        initializer_range=0.3,
    ),
    "llama": {"model_type": "llama", **_ROTARY},
    "mistral": {"model_type": "mistral", **_ROTARY, "sliding_window": 5},
    "qwen2": {
        "model_type": "qwen2", **_ROTARY, "use_sliding_window": True, "sliding_window": 5,
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "qwen3": {"model_type": "qwen3", **_ROTARY, "head_dim": 8},
    "gpt_neox": dict(
        model_type="gpt_neox", vocab_size=VOCAB, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, bos_token_id=None, eos_token_id=EOS, initializer_range=0.3,
    ),
    "opt": dict(
        model_type="opt", vocab_size=VOCAB, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2,
        word_embed_proj_dim=16, max_position_embeddings=64, bos_token_id=None, eos_token_id=EOS, pad_token_id=None, init_std=0.3,
    ),
    "gemma": {"model_type": "gemma", **_GEMMA},
    "gemma2": {
        "model_type": "gemma2", **_GEMMA, "sliding_window": 5, "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gemma3_text": {
        "model_type": "gemma3_text", **_GEMMA, "sliding_window": 5, "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention"], "final_logit_softcapping": 10.0,
    },
    "mamba": {"model_type": "mamba", **_MAMBA, "state_size": 4, "expand": 2, "time_step_rank": 2},
    "mamba2": {
        "model_type": "mamba2", **_MAMBA, "state_size": 4, "expand": 2, "num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 8,
    },
}  # fmt: skip
ENCODER_DECODERS: Mapping[str, dict[str, Any]] = {
    "t5": dict(
        model_type="t5", vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, pad_token_id=0,
        decoder_start_token_id=0, eos_token_id=EOS, initializer_factor=1.0, relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
    ),
    "bart": dict(
        model_type="bart", vocab_size=VOCAB, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64, pad_token_id=1, bos_token_id=2,
        eos_token_id=EOS, decoder_start_token_id=0, forced_eos_token_id=None, init_std=0.3,
    ),
}  # fmt: skip
FAMILIES: Mapping[str, dict[str, Any]] = {**DECODERS, **ENCODER_DECODERS}
