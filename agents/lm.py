"""Language models from plain data: build, load, check, switch dropout off."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from .sequences import lm_head, trunk_of

LMSource = str | Path | Mapping[str, Any]


def load_lm(source: LMSource) -> PreTrainedModel:
    """Build a causal language model in float32, with dropout off.

    Args:
        source: A folder or hub id that `from_pretrained` opens, or a configuration as plain data with `model_type`
            (fresh weights from torch's global generator).

    Raises:
        ValueError: The configuration has no `model_type`, or the logits are not the head applied to the hidden states.
        TypeError: `source` is neither.
    """
    if isinstance(source, Mapping):
        if "model_type" not in source:
            raise ValueError(f"model={dict(source)!r}: a configuration needs 'model_type', e.g. 'llama' or 'gpt2'")
        config = AutoConfig.for_model(**source)
        lm = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    elif isinstance(source, (str, Path)):
        # trust_remote_code stays off: loading a policy never runs code that came with a file.
        lm = AutoModelForCausalLM.from_pretrained(str(source), dtype=torch.float32, use_safetensors=True)
    else:
        raise TypeError(f"model is a {type(source).__name__}: pass a folder, a hub id, or a configuration as a dict")
    switch_off_dropout(lm)
    _check_head(lm)
    return lm


def config_of(lm: nn.Module) -> dict[str, Any]:
    """Return the model's configuration as plain data that `load_lm` accepts."""
    config: Any = lm.config
    data = config.to_diff_dict()
    data["model_type"] = config.model_type
    for transient in ("transformers_version", "architectures", "dtype", "_name_or_path"):
        data.pop(transient, None)
    return data


def switch_off_dropout(module: nn.Module) -> None:
    """Set every dropout probability to 0.

    SB3's `train()` puts the policy in training mode; with dropout on, the first ratio of an update is noise instead of 1.
    """
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        for name in ("attention_dropout", "dropout"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)


def frozen(lm: PreTrainedModel) -> PreTrainedModel:
    """Return the model in evaluation mode, its parameters without gradients."""
    return lm.eval().requires_grad_(False)


def on_device(lm: PreTrainedModel, device: torch.device | str) -> PreTrainedModel:
    """Move the model; transformers' own annotation of `to` takes no device."""
    nn.Module.to(lm, device)
    return lm


def folder_hash(folder: str | Path) -> str:
    """Return the SHA-256 over the names and bytes of a model folder's configuration and weights.

    Raises:
        FileNotFoundError: The folder holds no safetensors file.
    """
    files = sorted(p for p in Path(folder).glob("*") if p.name == "config.json" or p.suffix == ".safetensors")
    if not any(p.suffix == ".safetensors" for p in files):
        raise FileNotFoundError(f"{folder} holds no .safetensors file: give the folder that save_pretrained wrote")
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def save_lm(lm: PreTrainedModel, folder: str | Path, beside: Mapping[str, dict[str, torch.Tensor]] | None = None) -> None:
    """Write the model as `save_pretrained` does, to a temporary name first, so that no half-written folder remains.

    Args:
        lm: The model.
        folder: Replaced if it exists.
        beside: Further safetensors files in it, by name.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".{folder.name}.{os.getpid()}"  # not mkdtemp, whose folders nobody else may read
    try:
        lm.save_pretrained(temporary, safe_serialization=True)
        for name, tensors in (beside or {}).items():
            save_file(tensors, temporary / name)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@torch.no_grad()
def _check_head(lm: PreTrainedModel) -> None:
    """Insist that logits = head(hidden): some architectures scale or cap them, and the policy would miss it."""
    ids = torch.tensor([[0, 1]])
    lm.eval()
    expected = lm(input_ids=ids).logits
    found = lm_head(lm, trunk_of(lm)(input_ids=ids).last_hidden_state)
    if not torch.allclose(expected, found, atol=1e-4):
        raise ValueError(
            f"{type(lm).__name__} changes its logits after the output head (e.g. a cap or a scale), which TransformerPolicy "
            "does not support"
        )
