"""Scoring in batches against one by one: `python -m rewards.benchmark`.

4,096 responses of 64 tokens, a preference model with 4 layers of width 256, random weights.  "One by one" is a call of `score` for each
text, of which a sample is timed between the batches.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from textrl_env.episode import Episode
from textrl_env.tokenizer import FileTokenizer

from .models.preference_model import PreferenceRewardModel
from .models.scorers import PreferenceNetwork, build_trunk

NUM_TEXTS, TOKENS, VOCABULARY, ROUNDS, SAMPLE = 4096, 64, 4096, 3, 256


def main() -> dict[str, float]:
    """Measure, print, and return the figures: texts a second, and their ratio."""
    model, half, rng = _model("float32"), _model("bfloat16"), np.random.default_rng(0)
    batched, halved, single, repeated = [], [], [], []
    for _ in range(ROUNDS):
        texts = [
            Episode.from_text("", " ".join(f"w{i}" for i in row)) for row in rng.integers(1, VOCABULARY, (NUM_TEXTS + SAMPLE, TOKENS - 1))
        ]
        batch, sample = texts[:NUM_TEXTS], texts[NUM_TEXTS:]
        single.append(_rate(model, [[text] for text in sample[: SAMPLE // 2]]))
        batched.append(_rate(model, [batch]))
        single.append(_rate(model, [[text] for text in sample[SAMPLE // 2 :]]))
        halved.append(_rate(half, [batch]))
        repeated.append(_rate(model, [batch]))
    figures = {"one by one": median(single), "batched": median(batched), "in bfloat16": median(halved), "seen before": median(repeated)}
    print(f"{NUM_TEXTS:,} responses of {TOKENS} tokens, 4 layers, width 256, {torch.get_num_threads()} thread(s)")
    for name, rate in figures.items():
        print(f"{name:>12}: {rate:>10,.0f} texts/s, {rate / figures['one by one']:.1f}x")
    return figures


def _rate(model: PreferenceRewardModel, batches: list[list[Episode]]) -> float:
    start = perf_counter()
    for batch in batches:
        model.score(batch)
    return sum(map(len, batches)) / (perf_counter() - start)


def _model(dtype: str) -> PreferenceRewardModel:
    backend = Tokenizer(models.WordLevel({"<eos>": 0, **{f"w{i}": i for i in range(1, VOCABULARY)}}, unk_token="<eos>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(0)
    size = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
    trunk = build_trunk({"model_type": "llama", **size, "max_position_embeddings": TOKENS}, VOCABULARY, TOKENS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_text(json.dumps(json.loads(backend.to_str())), encoding="utf-8")
        tokenizer = FileTokenizer(path, eos_token="<eos>")
    return PreferenceRewardModel(PreferenceNetwork(VOCABULARY, 0, trunk, 0.0), tokenizer, max_tokens=TOKENS, dtype=dtype)


if __name__ == "__main__":
    main()
