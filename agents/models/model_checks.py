"""What training relies on and a model may break without a word: it is tried when the model is loaded, without a chance of luck."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from .backbones import Backbone
from .backbones.base import example_ids
from .sequences import SequenceBatch, TextRecord, pack

_ROUNDING = 1e-3  # of the largest number; what is computed in another order differs by 1e-6 to 1e-5 of it, on a GPU by more
_COARSE = 3e-2  # the same in bfloat16, which a model in shards may be sent in
_FAR = 64.0  # logits as large as a trained model's: a cap that fresh weights never reach shows

_BEGINNING = 4  # tokens


@torch.no_grad()
def check_model(backbone: Backbone) -> None:
    """Insist on what training relies on.

    Raises:
        ValueError: Training mode makes the model random or another one, or see `check_head`.
    """
    lm = backbone.lm
    batch = pack([_text(backbone, np.arange(min(3, backbone.vocab_size)), np.arange(2))], backbone.device)
    name = type(lm).__name__
    lm.train()
    lowest, highest = (_hidden_if_drawn(backbone, batch, number) for number in (0.0, 1.0))
    lm.eval()
    hidden = backbone.hidden(batch)  # (2, D)
    if not (torch.equal(lowest, highest) and _same(lowest, hidden, backbone)):
        settings = vars(getattr(lm, "config", lm)).items()
        named = {key: value for key, value in settings if isinstance(value, float) and value and "drop" in key}
        raise ValueError(
            f"{name} is random in training mode or computes something else there, and the ratios of an update would be noise: make its "
            f"dropout a torch.nn.Dropout, which is switched off here, or set it to 0{f' in its configuration, {named}' if named else ''}"
        )
    check_head(backbone)


@torch.no_grad()
def check_head(backbone: Backbone) -> None:
    """Insist that the module's logits are its head applied to the hidden states, and what is known to come behind.

    Raises:
        ValueError: They are not: some architectures scale or cap them in ways of their own.
    """
    lm, prompt = backbone.lm, torch.arange(min(3, backbone.vocab_size), device=backbone.device)[None]  # (1, P)
    trains = lm.training
    lm.eval()
    try:
        if (own := _model_logits(backbone, prompt)) is None:
            return
        hidden = backbone.hidden(pack([_text(backbone, prompt[0].cpu().numpy(), np.arange(1))], backbone.device))  # (1, D)
        ours = backbone.logits(hidden)  # (1, V)
        hook = lm.get_output_embeddings().register_forward_hook(_far_apart)
        try:
            far_apart = _same(backbone.logits(hidden), _model_logits(backbone, prompt))
        finally:
            hook.remove()
    finally:
        lm.train(trains)
    if not (far_apart and _same(ours, own, backbone)):
        raise ValueError(f"{type(lm).__name__} changes its logits after the output head in a way that TransformerPolicy does not know")


@torch.no_grad()
def check_lengths(backbone: Backbone, prompt: int, response: int) -> None:
    """Insist that texts of so many tokens fit, and that how a text begins is read the same, however long it or its neighbours become.

    Some rotary positions (`rope_type` longrope, dynamic) change their scale beyond a length: what was written before it would be
    scored otherwise in an update, and a text otherwise beside a longer one.

    Raises:
        ValueError: They do not fit, or the model reads them by their length.
    """
    backbone.check_room(prompt, response)
    if not backbone.reads_prompt_apart:  # a threshold may lie within the prompt
        prompt, response = min(prompt, _BEGINNING), response + prompt - min(prompt, _BEGINNING)
    if response <= _BEGINNING:
        return
    ids = example_ids(backbone, prompt + response)
    one, two = (pack([_text(backbone, ids[:prompt], ids[prompt : prompt + n])], backbone.device) for n in (_BEGINNING, response))
    short, long = backbone.hidden(one), backbone.hidden(two)[:_BEGINNING]  # (4, D) each
    if torch.isfinite(short).all() and not _same(long, short, backbone):
        settings = getattr(getattr(backbone.lm, "config", None), "rope_parameters", None) or {}
        named = {key: settings[key] for key in ("rope_type", "original_max_position_embeddings") if key in settings}
        raise ValueError(
            f"{type(backbone.lm).__name__} reads the beginning of a text of {prompt + response} tokens otherwise than that of a short one "
            f"(hidden states differ by {float((long - short).abs().max()):.2g}){f', {named}' if named else ''}: what is written early "
            "would be scored otherwise in an update; shorten prompt and max_new_tokens, or take positions that do not depend on length"
        )


def _text(backbone: Backbone, prompt: np.ndarray, response: np.ndarray) -> TextRecord:
    images = backbone.example_images(1)
    return TextRecord(prompt, response, 0, image=None if images is None else images[0])


def _model_logits(backbone: Backbone, prompt: torch.Tensor) -> torch.Tensor | None:
    with backbone.precision():
        return backbone.model_logits(prompt)


def _same(ours: torch.Tensor, theirs: torch.Tensor | None, backbone: Backbone | None = None) -> bool:
    """Return whether two tensors are equal but for a backbone's rounding, which grows with the largest number, not with each."""
    if theirs is None:
        return False
    rounding = _ROUNDING if backbone is None or backbone.autocast is None else _COARSE
    gap = (ours - theirs).abs().max()
    return bool(gap.isfinite() and gap <= rounding * theirs.abs().max())


def _far_apart(head: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
    """Replace the output of the head, a forward hook."""
    return torch.linspace(-_FAR, _FAR, output.shape[-1], device=output.device).expand_as(output).clone()


def _hidden_if_drawn(backbone: Backbone, batch: SequenceBatch, number: float) -> torch.Tensor:
    """Return hidden states (N, D) for the case that every random number comes out as `number`."""
    with torch.random.fork_rng(devices=[]), sdpa_kernel(SDPBackend.MATH), _Drawn(number):  # the kernel whose dropout is an operation
        return backbone.hidden(batch)


class _Drawn(TorchDispatchMode):
    """Has all that torch draws come out as one number: trying with chance would miss what happens rarely."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags:
            return tree_map_only(torch.Tensor, lambda drawn: drawn.fill_(self.number), out)
        return out
