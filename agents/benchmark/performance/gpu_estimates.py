"""What larger models would take on GPUs, on paper.

`python -m agents.benchmark.performance.gpu_estimates` prints the tables of docs/scale.md.

Nothing here was run on a GPU.  Memory comes from the formulas of `agents.models.memory_estimate`, fed with the number of parameters of
the architecture and with what a slim copy of it (same proportions, one and two layers) saves for its backward pass on a CPU.
Times are operations and bytes over the data sheet's rates, times the shares of them that are assumed below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ...algorithms.common.memory_check import cache_bytes, saved_for_backward
from ...models.backbones import backbone_of
from ...models.loading import load_lm
from ...models.memory_estimate import GIB, Load, Saved, Sizes, estimate, lightened
from ...reports.tables import markdown_table

ROOM = round(0.9 * 141e9)  # bytes of one H200; a tenth is left to the context, libraries and fragments
BANDWIDTH = 4.8e12 * 0.6  # bytes a second; the share is an assumption
BFLOAT16 = 990e12 * 0.4  # operations a second of the trunk in an update, dense bfloat16; the share is an assumption
FLOAT32 = 67e12 * 0.7  # of the head, which computes in float32 outside the tensor cores; the share is an assumption
LINK = 450e9 * 0.7  # bytes a second in each direction between GPUs of one machine; the share is an assumption
DISPATCH = 0.5e-3  # seconds of Python for each layer of a decoding step, measured on a CPU with layers too small to compute anything
RANK = 16  # of adapters
TEXTS, MINIBATCH, EPOCHS = 512, 64, 4  # of an iteration of TextPPO
PROMPT, RESPONSE = 256, 256

_LLAMA = {"model_type": "llama", "bos_token_id": None, "eos_token_id": 0, "max_position_embeddings": 2048}
MODELS: dict[str, dict[str, Any]] = {
    "124M": {
        "model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50_257,
        "bos_token_id": None, "eos_token_id": 0,
    },
    "1B": {
        **_LLAMA, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128_256, "tie_word_embeddings": True,
    },
    "7B": {
        **_LLAMA, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "head_dim": 128, "vocab_size": 32_000, "tie_word_embeddings": False,
    },
}  # fmt: skip
_SHRINK = {"124M": 1, "1B": 8, "7B": 16}
_SCALED = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")


@dataclass(frozen=True)
class Paper:
    """A model of the tables.

    Attributes:
        name: Key of `MODELS`.
        layers: Blocks.
        width: Hidden size.
        vocabulary: Tokens.
        repeats: Query heads for each head of keys and values.
        parameters: All of them.
        trunk: Those of the blocks.
        adapters: Those of adapters of rank `RANK` on all linear layers of the blocks.
        saved: Bytes for the backward pass in mixed precision, without the cast weights.
        column: Bytes of keys and values of a token, in bfloat16.
    """

    name: str
    layers: int
    width: int
    vocabulary: int
    repeats: int
    parameters: int
    trunk: int
    adapters: int
    saved: Saved
    column: int

    @property
    def head(self) -> int:
        """Weights of the head."""
        return self.width * self.vocabulary


def paper(name: str) -> Paper:
    """Read an architecture off its configuration, without its weights."""
    config = AutoConfig.for_model(**MODELS[name])
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config)
    blocks = next(m for m in lm.modules() if isinstance(m, torch.nn.ModuleList))
    matrices = [p for p in blocks.parameters() if p.dim() == 2]
    shrink = _SHRINK[name]
    one, two = (_slim(name, layers) for layers in (1, 2))
    per_layer = [(b - a) * shrink for a, b in zip(one, two, strict=True)]
    return Paper(
        name,
        config.num_hidden_layers,
        config.hidden_size,
        config.vocab_size,
        config.num_attention_heads // (getattr(config, "num_key_value_heads", None) or config.num_attention_heads),
        lm.num_parameters(),
        sum(p.numel() for p in blocks.parameters()),
        sum(RANK * sum(p.shape) for p in matrices),
        Saved(0, *(config.num_hidden_layers * bytes_ for bytes_ in per_layer[:2])),
        config.num_hidden_layers * per_layer[2],
    )


def _slim(name: str, layers: int) -> tuple[int, int, int]:
    """Return what a slim copy saves for each token and pair of tokens, and its keys and values of a token; bytes, in mixed precision."""
    slim = {key: value // _SHRINK[name] if key in _SCALED else value for key, value in MODELS[name].items()}
    slim |= {"n_layer" if name == "124M" else "num_hidden_layers": layers, "vocab_size": 8}
    backbone = backbone_of(load_lm(slim))
    backbone.autocast = torch.bfloat16
    saved = saved_for_backward(backbone, 64)
    return round(saved.token), round(saved.pair), cache_bytes(backbone)[0]


def sizes_of(model: Paper, adapters: bool, shards: int = 1) -> Sizes:
    """Return what `agents.models.memory_estimate` asks for: float32 weights, mixed precision, a critic on the trunk, Adam."""
    weights = 4 * (model.parameters + (model.adapters if adapters else 0))
    return Sizes(
        weights=weights,
        trained=4 * model.adapters if adapters else weights,
        reference=0 if adapters else weights,  # the base model under the adapters takes none
        moments=2,
        saved=model.saved._replace(fixed=2 * model.trunk if shards == 1 else 0),  # autocast's copy of the weights; shards are sent as such
        layers=model.layers,
        layer_input=4 * model.width,  # the residual stream of mixed precision is float32
        column=model.column,
        source_column=0,
        state=0,
        repeats=model.repeats,
        vocabulary=model.vocabulary,
        plain_head=True,
        head=4 * model.vocabulary * model.width,
        shards=shards,
        outside=4 * (model.parameters - model.trunk),
        layer=4 * model.trunk // model.layers,
        sent=0.5,
    )


def fitting(sizes: Sizes, gpus: int = 1) -> tuple[Load, int]:
    """Return a load that fits each of `gpus` GPUs (the lightest one if none does), and its bytes on one of them."""
    texts = TEXTS // gpus
    load = lightened(sizes, Load(texts, texts, PROMPT, RESPONSE, MINIBATCH // gpus, 64), ROOM)
    return load, estimate(sizes, load, False).needed


def seconds(model: Paper, adapters: bool, load: Load, gpus: int = 1, shards: int = 1) -> dict[str, float]:
    """Return the seconds of writing, of writing at the speed of bfloat16 weights alone, of the reference, of updates and of summing."""
    tokens, texts = PROMPT + RESPONSE, TEXTS // gpus
    rounds = -(-texts // load.rows)
    cache = load.rows * model.column * (PROMPT + RESPONSE / 2) / BANDWIDTH
    head = max(4 * model.head / BANDWIDTH, 2 * load.rows * model.head / FLOAT32)
    casts = (8 if shards == 1 else 2) * model.trunk / BANDWIDTH  # float32 is read, bfloat16 written and read, at every step
    step = max(casts + cache + head, DISPATCH * model.layers)
    bare = (2 * (model.trunk + model.head) + load.rows * model.column * (PROMPT + RESPONSE / 2)) / 4.8e12 / 0.6
    reading = texts * 2 * model.trunk * PROMPT / BFLOAT16
    trunk, head_once = texts * model.trunk * tokens, texts * model.head * RESPONSE
    passes = (4 if adapters else 6) + 2 * load.checkpointing + 2 * (load.at_once < MINIBATCH // gpus)
    steps = EPOCHS * TEXTS // MINIBATCH
    trained = 4 * (model.adapters if adapters else model.parameters)
    sent = 8 * model.trunk + 8 * (model.parameters - model.trunk) if shards > 1 else 2 * trained  # layers in bfloat16 twice, and gradients
    update = EPOCHS * (passes * trunk / BFLOAT16 + 8 * head_once / FLOAT32) + steps * 7 * trained / shards / BANDWIDTH
    return {
        "writing": rounds * RESPONSE * step + reading,
        "writing, bf16 weights": rounds * RESPONSE * bare + reading,
        "reference": 2 * trunk / BFLOAT16 + 2 * head_once / FLOAT32,
        "update": update,
        "sending": steps * (gpus - 1) / gpus * sent / LINK,
    }


def tables() -> str:
    """Return both tables in Markdown."""
    models = [paper(name) for name in MODELS]
    memory, time = [], []
    for model in models:
        for adapters in (False, True):
            sizes, trained = sizes_of(model, adapters), f"adapters, rank {RANK}" if adapters else "all"
            load, needed = fitting(sizes)
            memory.append(_memory_row(model, trained, sizes, load, needed))
            for gpus in (1, 8):
                load, needed = fitting(sizes, gpus)
                if needed <= ROOM:
                    time.append(_time_row(model, trained, gpus, seconds(model, adapters, load, gpus)))
        if fitting(sizes_of(model, False))[1] > ROOM:
            sizes = sizes_of(model, False, 8)
            load, needed = fitting(sizes, 8)
            memory.append(_memory_row(model, "all, in 8 shards", sizes, load, needed))
            time.append(_time_row(model, "all, in 8 shards", 8, seconds(model, False, load, 8, 8)))
    memory_head = ("model", "trained", "weights", "gradients, Adam", "reference", "keys and values", "update", "least", "fits with")
    time_head = ("model", "trained", "GPUs", "writing s", "if weights were bf16 s", "reference s", "update s", "sending s", "tokens/s")
    return f"{markdown_table(memory_head, memory)}\n\n{markdown_table(time_head, time)}"


def _memory_row(model: Paper, trained: str, sizes: Sizes, load: Load, needed: int) -> list[str]:
    memory = estimate(sizes, load, False)
    stored, phases = memory.stored, memory.phases
    parts = [stored["weights"], stored["gradients"] + stored["optimizer"], stored["reference"], phases["writing"]["cache"]]
    parts += [sum(phases["update"].values()), needed]
    how = f"{load.rows} rows, {load.at_once} texts at once" + (", checkpointing" if load.checkpointing else "")
    fits = how if needed <= ROOM else "does not fit"
    return [model.name, trained, *(f"{part / GIB:.1f}" for part in parts), fits]


def _time_row(model: Paper, trained: str, gpus: int, spent: dict[str, float]) -> list[str]:
    whole = sum(value for part, value in spent.items() if part != "writing, bf16 weights")
    cells = [f"{value:.2f}" if value < 10 else f"{value:.0f}" for value in spent.values()]
    return [model.name, trained, str(gpus), *cells, f"{TEXTS * RESPONSE / whole:,.0f}"]


if __name__ == "__main__":
    print(tables())
