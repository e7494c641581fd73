"""One model of each family, as small as wanted: what the table of families and the tests build."""

from __future__ import annotations

from typing import Any

import numpy as np

EOS = 0
ENCODER_DECODERS = ("t5", "bart")
WITH_IMAGES = ("vision-encoder-decoder", "llava")  # read square pictures of IMAGE_SIDE pixels a side
IMAGE_SIDE = 12


def architectures(vocabulary: int, width: int = 16, room: int = 64) -> dict[str, dict[str, Any]]:
    """Return a configuration for each family: two layers, two heads, weights large enough that every input matters.

    Args:
        vocabulary: Tokens; 0 is the end of the text.
        width: Hidden size, a multiple of 8.
        room: Longest text.
    """
    scale = 1.2 / width**0.5  # 0.3 at width 16
    tokens = dict(vocab_size=vocabulary, bos_token_id=None, eos_token_id=EOS)
    plain = dict(
        **tokens, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=room, initializer_range=scale,
    )  # fmt: skip
    rotary = dict(**plain, num_key_value_heads=1, pad_token_id=None)
    window = dict(sliding_window=5)
    gemma = dict(**rotary, head_dim=width // 2)
    mixed = ["sliding_attention", "full_attention"]
    mamba = dict(
        **tokens, hidden_size=width, num_hidden_layers=2, pad_token_id=None, initializer_range=scale, state_size=4, expand=2
    )  # fmt: skip
    gpt2 = dict(model_type="gpt2", **tokens, n_embd=width, n_layer=2, n_head=2, n_positions=room, initializer_range=scale)
    vit = dict(
        image_size=IMAGE_SIDE, patch_size=6, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=scale,
    )  # fmt: skip
    clip = dict(model_type="clip_vision_model", **vit, initializer_factor=4.0, projection_dim=width)
    return {
        "gpt2": gpt2,
        "llama": dict(model_type="llama", **rotary),
        "mistral": dict(model_type="mistral", **rotary, **window),
        "qwen2": dict(model_type="qwen2", **rotary, **window, use_sliding_window=True, layer_types=mixed),
        "qwen3": dict(model_type="qwen3", **rotary, head_dim=width // 2),
        "gpt_neox": dict(model_type="gpt_neox", **plain),
        "opt": dict(
            model_type="opt", **tokens, hidden_size=width, ffn_dim=2 * width, num_hidden_layers=2, num_attention_heads=2,
            word_embed_proj_dim=width, max_position_embeddings=room, pad_token_id=None, init_std=scale,
        ),
        "gemma": dict(model_type="gemma", **gemma),
        "gemma2": dict(model_type="gemma2", **gemma, **window, layer_types=mixed, query_pre_attn_scalar=width // 2),
        "gemma3_text": dict(
            model_type="gemma3_text", **gemma, **window, layer_types=mixed, query_pre_attn_scalar=width // 2,
            final_logit_softcapping=10.0,
        ),
        "mamba": dict(model_type="mamba", **mamba, time_step_rank=2),
        "mamba2": dict(model_type="mamba2", **mamba, num_heads=4, head_dim=width // 2, n_groups=1, chunk_size=8),
        "t5": dict(
            model_type="t5", vocab_size=vocabulary, d_model=width, d_kv=width // 2, d_ff=2 * width, num_layers=2, num_heads=2,
            pad_token_id=0, decoder_start_token_id=0, eos_token_id=EOS, relative_attention_num_buckets=8,
            relative_attention_max_distance=16,
        ),
        "bart": dict(
            model_type="bart", vocab_size=vocabulary, d_model=width, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=2 * width, decoder_ffn_dim=2 * width, max_position_embeddings=room,
            pad_token_id=1, bos_token_id=2, eos_token_id=EOS, decoder_start_token_id=0, forced_eos_token_id=None, init_std=scale,
        ),
        "vision-encoder-decoder": dict(model_type="vision-encoder-decoder", encoder=dict(model_type="vit", **vit), decoder=gpt2),
        "llava": dict(  # its token for a picture is no token of the text
            model_type="llava", vision_config=clip, text_config=dict(model_type="llama", **{**rotary, "vocab_size": vocabulary + 1}),
            image_token_index=vocabulary, eos_token_id=EOS,
        ),
    }  # fmt: skip


def example_images(number: int) -> np.ndarray:
    """Return pictures of noise that the families with pictures read, each another one, shape (number, IMAGE_SIDE, IMAGE_SIDE, 3), uint8."""
    return np.random.default_rng(0).integers(256, size=(number, IMAGE_SIDE, IMAGE_SIDE, 3), dtype=np.uint8)
