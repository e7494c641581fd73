"""What test_parts.py has processes do: `torchrun --nproc-per-node 2 -m tests.agents.distributed.parts TASK FOLDER`."""

import copy
import gc
import pickle
import resource
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor

from agents import DPO, SFT, TextPPO
from agents.algorithms.common import memory_check
from agents.distributed.engine import _give_back_large_blocks, engine_of
from agents.distributed.process_group import ranks
from agents.models.backbones import backbone_of
from agents.models.loading import in_shards, is_in_shards, load_lm, save_lm
from agents.models.sequences import TextRecord, pack
from textrl_env import IntegerTokenizer

from ..conftest import EOS, GPT2, LLAMA, VOCAB
from .offline import PAIRS, TEXTS
from .ranked import make_env

STEPS = 3
LIMITS = 365_000_000, 520_000_000  # bytes of data, beyond those of the libraries, for SFT and for PPO
TOKENIZER = IntegerTokenizer(VOCAB, EOS)
T5 = {
    "model_type": "t5", "vocab_size": VOCAB, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2,
    "eos_token_id": EOS, "pad_token_id": 1, "decoder_start_token_id": 1,
}  # fmt: skip
MODELS = {
    "llama": LLAMA,
    "tied": {**LLAMA, "tie_word_embeddings": True},
    "bfloat16": LLAMA,
    "gpt2": GPT2,  # tied, without the prefix that the module's names have
    "t5": T5,
    "incomplete": GPT2,
}


def write_models(folder):
    """Write the models that `loaded` and `trained` read."""
    for name, config in MODELS.items():
        torch.manual_seed(0)
        lm = load_lm(config)
        lm.generation_config.eos_token_id = [EOS, 5]
        path = folder / "models" / name
        if name == "bfloat16":
            lm.bfloat16().save_pretrained(path, max_shard_size="2KB")
            assert len(list(path.glob("*.safetensors"))) > 3
        else:
            save_lm(lm, path)
        if name in ("gpt2", "incomplete"):
            old, new = ("transformer.", "") if name == "gpt2" else ("ln_f.weight", "ln_f.other")
            tensors = load_file(path / "model.safetensors")
            save_file({key.replace(old, new): value for key, value in tensors.items()}, path / "model.safetensors", {"format": "pt"})


def local(model):
    """Return how many numbers of a model's weights this process holds."""
    return sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in model.parameters())


def hidden(lm):
    backbone = backbone_of(lm)
    return backbone.logits(backbone.hidden(pack([TextRecord(np.arange(1, 4), np.arange(5, 11), 0)], "cpu")))


def loaded(folder):
    """Load each model in parts: what it holds, its weights, what it computes, and what else belongs to it."""
    for path in sorted((folder / "models").iterdir()):
        engine = engine_of(ranks(), shard=True)
        lm = load_lm(in_shards(path, engine))
        held, parts = local(lm), is_in_shards(lm)
        weights = {name: value.clone() for name, value in engine.gathered(lm.state_dict()).items()}
        engine.wrap(lm, torch.optim.AdamW(lm.parameters()))
        with torch.no_grad():
            logits = engine.read(lm, hidden, lm)
        buffers = {name: value.clone() for name, value in lm.named_buffers()}
        ends = lm.generation_config.eos_token_id
        whole = engine.copied(lm)
        if ranks().is_main:
            whole.save_pretrained(folder / "saved" / path.name)
        found = parts, held, local(lm), weights, logits, buffers, lm.training, ends
        (folder / f"{path.name}-{ranks().rank}.pickle").write_bytes(pickle.dumps(found))


def trained(folder):
    """Train from a folder, sharded or not: SFT, DPO, PPO; and what cannot be read in parts."""
    source, found = folder / "models" / "llama", {}
    for shard in (False, True):
        sft = SFT(source, TOKENIZER, batch_size=5, shard=shard).learn(TEXTS, STEPS)
        dpo = DPO(source, TOKENIZER, batch_size=5, shard=shard).learn(PAIRS, STEPS)
        for name, trainer in {"sft": sft, "dpo": dpo}.items():
            found[name, shard] = trainer.losses, weights_of(trainer.engine, trainer.lm), trainer.memory.stored
        sft.save(folder / f"sft-{shard}")
        settings = {"policy_kwargs": {"model": source, "eos_token_id": EOS}, "seed": 0, "n_episodes": 16, "batch_size": 8, "device": "cpu"}
        ppo = TextPPO("TransformerPolicy", make_env(1), shard=shard, n_epochs=1, **settings)
        assert is_in_shards(ppo.policy) == is_in_shards(ppo.reference) == shard
        ppo.learn(100)
        ppo.save_pretrained(folder / f"ppo-{shard}")
        actions = copy.deepcopy(ppo.rollout_buffer.actions)
        found["ppo", shard] = actions, weights_of(ppo.engine, ppo.policy), ppo.memory.stored
    for name, kwargs in {"lora": {"lora": {"r": 2}}, "separate": {"critic": "separate"}}.items():
        whole = TextPPO("TransformerPolicy", make_env(1), shard=True, **settings | {"policy_kwargs": settings["policy_kwargs"] | kwargs})
        found[name] = is_in_shards(whole.policy)
        whole.learn(10)
    (folder / f"trained-{ranks().rank}.pickle").write_bytes(pickle.dumps(found))


def weights_of(engine, model: nn.Module):
    return {name: value.clone() for name, value in engine.gathered(model.state_dict()).items()}


def used(name="VmData"):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def limited(folder):
    """Train a model by SFT and by PPO, with less memory than it takes whole; write what was said and held."""
    said, held = [], []
    alone, estimated = ranks().size == 1, memory_check.available
    for attempt in (imitate, play):  # libraries allocate at first use
        attempt(folder / "tiny", not alone)
    _give_back_large_blocks()  # in one process too, so that what is used is what was not freed
    for available in (estimated, lambda device, **_: None) if alone else (estimated,):  # not refused by the estimate alone
        memory_check.available = available
        for attempt, limit in zip((imitate, play), LIMITS, strict=True):
            gc.collect()
            resource.setrlimit(resource.RLIMIT_DATA, (used() + limit, resource.RLIM_INFINITY))
            try:
                held.append(attempt(folder / "large", not alone))
            except (ValueError, RuntimeError) as error:
                if not alone:
                    raise
                said.append(str(error))
    (folder / f"limited-{ranks().size}-{ranks().rank}.pickle").write_bytes(pickle.dumps((said, held)))


def imitate(source, shard):
    trainer = SFT(source, TOKENIZER, batch_size=2, shard=shard, learning_rate=1e-4).learn(TEXTS, STEPS)
    return trainer.losses, used("VmHWM"), trainer.memory.needed


def play(source, shard):
    settings = {"n_episodes": 4, "batch_size": 2, "n_epochs": 1, "seed": 0, "device": "cpu", "learning_rate": 1e-5}
    ppo = TextPPO("TransformerPolicy", make_env(1, rows=4), policy_kwargs={"model": source}, shard=shard, **settings)
    ppo.learn(20)
    return ppo.num_texts, used("VmHWM"), ppo.memory.needed


if __name__ == "__main__":
    torch.set_num_threads(1)
    *names, path = sys.argv[1:]
    for name in names:
        globals()[name](Path(path))
