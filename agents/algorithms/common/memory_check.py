"""The memory that a training needs: estimated from passes over short texts before it begins, and compared with what is free."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from rich.console import Console
from torch import nn
from torch.distributed.tensor import DTensor

from ...distributed.engine import Engine, layers_of
from ...models.backbones import Backbone
from ...models.backbones.kv_cache import BLOCK, KeysAndValues, SourceKeysAndValues
from ...models.cached_decoder import CachedDecoder
from ...models.decoding_weights import copied_bytes
from ...models.loading import is_in_shards
from ...models.memory_estimate import GIB, Load, MemoryEstimate, Saved, Sizes, estimate, remedy
from ...models.sequences import PartialTexts, TextRecord, pack
from ...rollouts.text_vec_env import text_env_of
from ...utils.free_memory import available


class Trained(Protocol):
    """What the estimate reads of an algorithm: its models, its environment, and how many texts they take at once."""

    policy: Any
    rollout_buffer: Any
    observation_space: Any
    env: Any
    device: torch.device
    n_episodes: int
    engine: Engine

    @property
    def reference(self) -> nn.Module | None:
        """The frozen model that KL is measured against."""

    @property
    def texts_per_update(self) -> int:
        """Texts in each minibatch of an update."""

    def _hand_to_engine(self) -> None:
        """Have the engine hold the weights from now on."""


def check_memory(algorithm: Trained, tell: bool = False) -> MemoryEstimate:
    """Estimate what a training needs, before it begins.

    Args:
        algorithm: With its environment.
        tell: Whether the estimate is printed; a warning that it may not fit always is.

    Raises:
        ValueError: It cannot fit.
    """
    engine = algorithm.engine
    if is_in_shards(algorithm.policy):
        algorithm._hand_to_engine()
    sizes = of_rank(engine.read(algorithm.policy, sizes_of, algorithm), engine, algorithm.policy.lm)
    return _checked(sizes, load_of(algorithm), algorithm.device, free_for(algorithm), tell)


def check_supervised(trainer: Any, rows: Sequence[Any]) -> MemoryEstimate:
    """Estimate what a training on fixed texts needs, before it begins, and warn if it may not fit.

    Args:
        trainer: `SFT` or `DPO`.
        rows: Its texts, encoded.

    Raises:
        ValueError: It cannot fit.
    """
    load = supervised_load(trainer, rows)
    sizes = trainer.engine.read(trainer.lm, supervised_sizes, trainer, load.prompt + load.response - 1)
    return _checked(of_rank(sizes, trainer.engine, trainer.lm), load, trainer.backbone.device, free_for(trainer), False)


def check_imitation(agent: Any) -> MemoryEstimate:
    """Estimate what an `ExpertIteration` needs, before it begins, and warn if it may not fit.

    Raises:
        ValueError: It cannot fit.
    """
    trainer, policy, task = agent.trainer, agent.policy, agent.task
    prompt, response = (policy.observation_space[key].shape[0] for key in ("prompt", "response"))
    size = trainer.engine.ranks.size
    texts, batch = -(-agent.n_prompts // size) * agent.n, -(-trainer.batch_size // size)
    at_once = min(policy.settings.micro_batch_size or batch, batch)
    kept = policy.sampler.cuts or task.constraint is not None
    load = Load(
        texts, min(texts, 256), prompt, response, at_once, 0, policy.settings.gradient_checkpointing, kept, batch, whole_logits=True
    )
    policy.set_training_mode(False)
    sizes = replace(supervised_sizes(trainer, prompt + response - 1), **_writing_sizes([policy.backbone]))
    return _checked(of_rank(sizes, trainer.engine, trainer.lm), load, trainer.backbone.device, free_for(trainer), False)


def _checked(sizes: Sizes, load: Load, device: torch.device, free: int | None, tell: bool) -> MemoryEstimate:
    made = estimate(sizes, load, device.type == "cpu" and sizes.shards == 1)  # shards have glibc give freed blocks back
    if tell:
        Console().print(made.line(free), highlight=False, soft_wrap=True)
    if free is not None and made.needed > free:
        raise ValueError(
            f"this training needs about {made.needed / GIB:.2f} GiB and {free / GIB:.2f} are free; {remedy(sizes, load, free)}"
        )
    if free is not None and made.total > 0.8 * free:
        warnings.warn(f"{made.line(free)}: it may not fit; {remedy(sizes, load, int(0.8 * free))}", stacklevel=3)
    return made


def free_for(algorithm: Any) -> int | None:
    """Return the bytes that a training may take: those that are free, and those that it holds already; None where that is not known."""
    device = algorithm.device if hasattr(algorithm, "policy") else algorithm.backbone.device
    left = available(device, beside=int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    return None if left is None else left + (held(algorithm) if hasattr(algorithm, "policy") else held_by_supervised(algorithm))


def of_rank(sizes: Sizes, engine: Engine, lm: nn.Module) -> Sizes:
    """Return what one of the processes of an engine holds, of sizes of the whole."""
    if engine.ranks.size == 1 or not engine.sharded:
        return replace(sizes, buckets=engine.ranks.size > 1)
    layers = [_bytes(layer.parameters()) for layer in layers_of(lm)]
    outside, sent = _bytes(lm.parameters()) - sum(layers), 1.0 if engine.dtype is None else engine.dtype.itemsize / 4
    return replace(sizes, shards=engine.ranks.size, outside=outside, layer=max(layers, default=0), sent=sent)


def load_of(algorithm: Trained) -> Load:
    """Return the numbers of texts and tokens that an algorithm will handle at once."""
    policy, buffer, env = algorithm.policy, algorithm.rollout_buffer, algorithm.env
    assert env is not None
    settings, task_env, size = policy.settings, text_env_of(env), algorithm.engine.ranks.size
    group = task_env.task.group_size
    texts = min(-(-algorithm.n_episodes // group // size) * group, algorithm.n_episodes) * getattr(algorithm, "max_sampling_rounds", 1)
    batch = -(-algorithm.texts_per_update // size)  # of one rank
    prompt, response = (algorithm.observation_space[key].shape[0] for key in ("prompt", "response"))
    return Load(
        texts,
        env.num_envs,
        prompt,
        response,
        min(settings.micro_batch_size or batch, batch),
        buffer.reference_batch_size if buffer.reference is not None else 0,
        settings.gradient_checkpointing,
        policy.sampler.cuts or task_env.core.constraint is not None or policy.mask is not None,
        minibatch=batch,
        group=group if hasattr(algorithm, "estimator") else 1,  # whose micro-batches keep a prompt's texts together
    )


def supervised_load(trainer: Any, rows: Sequence[Any]) -> Load:
    """Return what the longest texts of a training on fixed texts would be in one pass."""
    together = len(trainer._records(rows[:1]))  # 2 of a pair
    batch = -(-trainer.batch_size // trainer.engine.ranks.size)  # of one rank
    at_once = min(trainer._passes.get("micro_batch_size") or batch, batch)
    longest = sorted(rows, key=lambda row: sum(map(_length, trainer._records([row]))))[-at_once:]
    texts = trainer._records(longest)
    actions = -(-sum(len(text.actions) for text in texts) // len(texts))
    return Load(
        texts=batch * together,
        rows=0,
        prompt=max(map(_length, texts)) - actions,
        response=actions,
        at_once=at_once * together,
        reference_at_once=at_once * together if hasattr(trainer, "reference") else 0,
        checkpointing=getattr(trainer.backbone, "checkpoints", False),
        minibatch=batch * together,
        group=together,
        whole_logits=not hasattr(trainer, "reference"),
        together=together,
    )


def _length(text: TextRecord) -> int:
    return len(text.context) + len(text.actions) + sum(len(ids) for _, ids in text.replies)


def sizes_of(algorithm: Trained) -> Sizes:
    """Measure an algorithm's models: bytes that are stored, and what short texts leave behind."""
    policy = algorithm.policy
    policy.set_training_mode(False)  # a model that computes its layers again in training takes no cache there
    backbones: list[Backbone] = policy._backbones()
    copies = [model for model in (algorithm.reference, None if policy.mask is None else policy.mask.lm) if model is not None]
    length = sum(algorithm.observation_space[key].shape[0] for key in ("prompt", "response")) - 1
    masks = [] if policy.mask is None else [policy.mask._backbone]
    return Sizes(
        weights=_bytes(policy.parameters()),
        trained=_bytes(p for group in policy.optimizer.param_groups for p in group["params"]),
        reference=sum(_bytes(model.parameters()) for model in copies),
        moments=moments_of(policy.optimizer),
        **_writing_sizes(backbones, masks),
        **_passes(backbones, policy.vocab_size, length),
    )


def _writing_sizes(backbones: Sequence[Backbone], beside: Sequence[Backbone] = ()) -> dict[str, Any]:
    """Return what writing takes, as arguments of `Sizes`; models `beside` the policy have caches and no copies."""
    columns, sources, states = (sum(column) for column in zip(*map(cache_bytes, (*backbones, *beside)), strict=True))
    copies = sum(copied_bytes(b.lm) for b in backbones if b.autocast is None)
    return {"column": columns, "source_column": sources, "state": states, "repeats": _query_heads(backbones[0].lm), "copies": copies}


def supervised_sizes(trainer: Any, length: int) -> Sizes:
    """Measure the models of a training on fixed texts of up to `length` tokens: as `sizes_of`, with nothing to write texts with."""
    reference = getattr(trainer, "reference", trainer.backbone).lm
    return Sizes(
        weights=_bytes(trainer.lm.parameters()),
        trained=_bytes(p for p in trainer.lm.parameters() if p.requires_grad),
        reference=0 if reference is trainer.lm else _bytes(reference.parameters()),
        moments=2,  # AdamW
        column=0,
        source_column=0,
        state=0,
        repeats=1,
        **_passes([trainer.backbone], trainer.backbone.vocab_size, length),
    )


def _passes(backbones: Sequence[Backbone], vocab_size: int, length: int) -> dict[str, Any]:
    """Return what passes over texts of up to `length` tokens take, as arguments of `Sizes`; the first backbone is the policy's."""
    first, lm = backbones[0], backbones[0].lm
    layers = getattr(getattr(lm, "config", None), "num_hidden_layers", None)
    return {
        "saved": Saved(*(sum(column) for column in zip(*(saved_for_backward(b, length) for b in backbones), strict=True))),
        "layers": layers or max((len(m) for m in lm.modules() if isinstance(m, nn.ModuleList)), default=1),
        "layer_input": (4 if first.autocast is None else 2) * first.hidden_size * len(backbones),
        "vocabulary": vocab_size,
        "plain_head": first.head is not None,
        "head": 4 * vocab_size * first.hidden_size,
    }


def _query_heads(lm: nn.Module) -> int:
    """Return how many heads of queries share one of keys and values."""
    config = getattr(lm, "config", None)
    heads = getattr(config, "num_attention_heads", 1)
    return max(1, heads // (getattr(config, "num_key_value_heads", None) or heads))


def moments_of(optimizer: torch.optim.Optimizer) -> float:
    """Return how many bytes an optimizer keeps for each byte that it trains."""
    settings = optimizer.defaults
    if "betas" in settings:
        return 3 if settings.get("amsgrad") else 2
    return ("alpha" in settings) + bool(settings.get("centered")) + bool(settings.get("momentum"))


def saved_for_backward(backbone: Backbone, length: int) -> Saved:
    """Count what a forward pass of the trunk saves, on texts of up to 32 tokens, for texts of `length` tokens and fewer."""

    def of(length: int) -> int:
        batch = pack([_text(backbone, length)], backbone.device)
        return _saved_bytes(backbone, lambda: backbone._run_trunk(batch))

    short = min(8, length // 4)
    if short == 0:
        return Saved(token=of(length) / length)
    one, two, four = (of(k * short) for k in (1, 2, 4))
    pair = max(0.0, (four - 3 * two + 2 * one) / (6 * short**2))  # the parabola through the three
    token = (two - one) / short - 3 * pair * short
    fixed, key = one - token * short - pair * short**2, 0.0
    if backbone.joins:  # two texts of 4 * short tokens, of which half are a prompt that they share
        both = pack([_text(backbone, 4 * short)] * 2, backbone.device)
        key = max(0.0, (_saved_bytes(backbone, lambda: backbone.hidden(both)) - fixed - 6 * short * token) / (8 * short))
    return Saved(fixed, token, pair, key)


def _text(backbone: Backbone, length: int) -> TextRecord:
    """Return a text of which a model reads `length` tokens, about half of them its prompt."""
    context = max(1, length // 2)
    images = backbone.example_images(1)
    image = None if images is None else images[0]
    return TextRecord(np.zeros(context, np.int64), np.zeros(length - context + 1, np.int64), 0, image=image)


def _saved_bytes(backbone: Backbone, run: Callable[[], object]) -> int:
    """Return the bytes that a pass leaves for the backward pass, the weights themselves not counted."""
    weights = {p.untyped_storage().data_ptr() for p in backbone.lm.parameters() if not isinstance(p, DTensor)}
    saved: dict[int, torch.Tensor] = {}  # holds the tensors: an address that is free again would be taken for the same one

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), backbone.precision():
        out = run()
    del out
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def cache_bytes(backbone: Backbone) -> tuple[int, int, int]:
    """Return the bytes of a row's keys and values for a token, of those for a source's token, and of its recurrent states."""
    decoder = CachedDecoder()
    one = np.ones(1, np.int64)
    decoder.last_hidden(backbone, PartialTexts(np.zeros((1, 1), np.int64), one, one, backbone.example_images(1)))
    states = decoder._states
    if states is None:
        return 0, 0, 0
    columns, sources, recurrent = 0, 0, 0
    for layer in (*states.cache.layers, *states.cross.layers):
        size = _bytes(layer.buffers())  # type: ignore[union-attr]  # every layer here is one of ours
        if isinstance(layer, SourceKeysAndValues):
            sources += size
        elif isinstance(layer, KeysAndValues):
            columns += size // BLOCK
        else:
            recurrent += size
    return columns, sources, recurrent


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def held(algorithm: Trained) -> int:
    """Return the bytes of the estimate that are there already: weights, reference, and on a resumed run moments and gradients."""
    weights = list(algorithm.policy.parameters())
    kept = [value for state in algorithm.policy.optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    copies = [] if algorithm.reference is None else list(algorithm.reference.parameters())
    copies += [] if algorithm.policy.mask is None else list(algorithm.policy.mask.lm.parameters())
    return _bytes(map(_own, [*weights, *kept, *copies, *(p.grad for p in weights if p.grad is not None)]))


def held_by_supervised(trainer: Any) -> int:
    """Return the bytes of the estimate that are there already in a training on fixed texts: weights and reference."""
    reference = getattr(trainer, "reference", trainer.backbone).lm
    return _bytes(map(_own, [*trainer.lm.parameters(), *(() if reference is trainer.lm else reference.parameters())]))


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """Return what this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
