"""Language models from plain data: build, load, check, switch dropout off."""

from __future__ import annotations

import copy
import hashlib
import importlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_file, save_model
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.dropout import _DropoutNd
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.activations import FastGELUActivation, NewGELUActivation
from transformers.utils import GENERATION_CONFIG_NAME

from textrl_env.utils.files import hash_file, new_folder
from textrl_env.utils.model_files import model_folder
from textrl_env.utils.suggestions import insist_on_path, near_path

from .backbones import backbone_of
from .backbones.image_text import is_image_text
from .lora import merged
from .model_checks import check_model
from .sampler import ids_of

LMSource = str | Path | Mapping[str, Any]
_OWN_CONFIG = "config.json"
_WITH_IMAGES = "vision-encoder-decoder"
_PROCESSOR = "preprocessor_config.json"
_RANDOM = re.compile("drop|jitter")  # layerdrop, drop_path, activation_dropout, router_jitter_noise, ...


class InShards(str):
    """A model's folder, hub id or `.gguf` file whose weights the processes of an engine share."""

    engine: Any


def in_shards(source: Any, engine: Any) -> Any:
    """Return a source of which each process reads its part, if it is one of files and the engine keeps shards; any other as it is.

    What `load_lm` makes of it nobody has tried, if `is_in_shards`: only all processes together can run it, see
    `agents.distributed.engine.Engine.read`.
    """
    if not (engine.sharded and isinstance(source, (str, Path))):
        return source
    made = InShards(source)
    made.engine = engine
    return made


def is_in_shards(lm: nn.Module) -> bool:
    """Return whether weights of a model are in shards."""
    return any(isinstance(parameter, DTensor) for parameter in lm.parameters())


def load_lm(source: LMSource) -> nn.Module:
    """Build a language model in float32, with dropout off.

    Args:
        source: One of

            - a folder or hub id that `from_pretrained` opens, decoder-only or encoder-decoder, or a `.gguf` file;
            - an architecture of transformers as plain data with `model_type`: fresh weights from torch's global generator;
            - a module of your own, see `agents.LanguageModel`: `{"class": "package.module:Name", **arguments}`, and
              `"weights": folder` for those that `save_pretrained` wrote.

    Raises:
        ValueError: The data name no model, the logits are not the head applied to the hidden states, or the model is random
            in training mode.
        TypeError: `source` is none of these, or the module lacks what `agents.LanguageModel` asks for.
    """
    if isinstance(source, InShards) and (parts := _filled(source)) is not None:
        return parts
    lm = _build(source)
    _prepare(lm)
    check_model(backbone_of(lm))
    return lm


def _filled(source: InShards) -> nn.Module | None:
    """Return a model that was built without weights and then filled; None if it cannot be."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):  # what no file holds of rotary positions is computed as always
        lm = _build(source, weights=False)
    if not isinstance(lm, PreTrainedModel):
        return None
    lm.tie_weights()
    _prepare(lm.eval())
    folder = Path(model_folder(source))
    if lm.can_generate() and (folder / GENERATION_CONFIG_NAME).is_file():
        lm.generation_config = GenerationConfig.from_pretrained(folder)
    return lm if source.engine.load(lm, folder) else None


def _prepare(lm: nn.Module) -> None:
    switch_off_dropout(lm)
    fuse_activations(lm)


def num_parameters(source: LMSource) -> int:
    """Return how many parameters a model has, from its configuration: no weights of transformers are read.

    Args:
        source: What `load_lm` takes.

    Raises:
        ValueError: The data name no model.
        TypeError: `source` is none of these.
    """
    own = isinstance(source, Mapping) and "class" in source  # its constructor may need numbers
    with torch.random.fork_rng(devices=[]), torch.device("cpu" if own else "meta"):
        return sum(parameter.numel() for parameter in _build(source, weights=False).parameters())


def _build(source: LMSource, weights: bool = True) -> nn.Module:
    """Build the module; without `weights`, those that files of transformers hold are not read."""
    if isinstance(source, Mapping):
        if "class" in source:
            return _own_model(source)
        if "model_type" not in source:
            raise ValueError(f"model={dict(source)!r}: a configuration needs 'model_type', e.g. 'llama' or 'gpt2', or 'class'")
        config = AutoConfig.for_model(**copy.deepcopy(dict(source)))  # it takes apart what describes an encoder and a decoder
        return _auto(config).from_config(config, dtype=torch.float32)
    if not isinstance(source, (str, Path)):
        raise TypeError(f"model is a {type(source).__name__}: pass a folder, a hub id, or a configuration as a dict")
    source = model_folder(source)
    written = Path(source) / _OWN_CONFIG
    if written.is_file() and "class" in (plain := json.loads(written.read_text(encoding="utf-8"))):
        # A file must not choose what code is imported.
        raise ValueError(
            f"{source} holds weights of {plain['class']}: pass model={{'class': {plain['class']!r}, 'weights': {str(source)!r}}}"
        )
    if (Path(source) / "adapter_config.json").is_file():
        raise ValueError(f"{source} holds adapters without their base model: fold them in (peft's merge_and_unload) and save that")
    insist_on_path(source)
    try:
        # trust_remote_code stays off: loading a policy never runs code that came with a file.
        config = AutoConfig.from_pretrained(str(source))
        _read_processor(config, Path(source) / _PROCESSOR)
        if not weights:
            return _auto(config).from_config(config, dtype=torch.float32)
        scaled = {"config": config} if _reads_pictures(config) else {}
        return _auto(config).from_pretrained(str(source), dtype=torch.float32, use_safetensors=True, **scaled)
    except OSError as error:
        if Path(source).exists():
            raise
        raise OSError(
            f"model {str(source)!r}: there is no such folder{near_path(Path(source))}, and the hub gives none: {error}"
        ) from error


def _reads_pictures(config: Any) -> bool:
    return config.model_type == _WITH_IMAGES or is_image_text(config)


def _read_processor(config: Any, path: Path) -> None:
    """Take how pixels are scaled from the file of an image processor, if a model that reads pictures has one beside it.

    Raises:
        ValueError: It does something else than divide by 255, take off a mean, and divide by a deviation.
    """
    if not _reads_pictures(config) or not path.is_file():
        return
    settings = json.loads(path.read_text(encoding="utf-8"))
    if not settings.get("do_rescale", True) or abs(settings.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-3:
        raise ValueError(f"{path} does not divide pixels by 255 (do_rescale, rescale_factor), and nothing else is known here")
    if settings.get("do_normalize", True):
        config.image_mean, config.image_std = (settings.get(name, [0.5] * 3) for name in ("image_mean", "image_std"))
    else:
        config.image_mean, config.image_std = [0.0] * 3, [1.0] * 3


def _processor(lm: PreTrainedModel) -> str:
    """Return the file by which `AutoImageProcessor` of transformers makes of a picture what the policy makes of it."""
    config: Any = lm.config
    height, width, _ = backbone_of(lm).image_shape  # type: ignore[attr-defined]  # of the class that reads pictures
    mean, std = (getattr(config, name, [0.5] * 3) for name in ("image_mean", "image_std"))
    scaling = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": mean, "image_std": std}
    size = {"do_resize": True, "size": {"height": height, "width": width}}
    return json.dumps({"image_processor_type": "ViTImageProcessor", **size, **scaling}, indent=2)


def _auto(config: Any) -> Any:
    if config.model_type == _WITH_IMAGES:
        config.decoder.is_decoder = config.decoder.add_cross_attention = True
        return AutoModelForImageTextToText
    if is_image_text(config):
        return AutoModelForImageTextToText
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def _own_model(source: Mapping[str, Any]) -> nn.Module:
    arguments = {name: value for name, value in source.items() if name not in ("class", "weights")}
    weights = source.get("weights")
    if weights is not None:
        insist_on_path(Path(weights))
        written = json.loads((Path(weights) / _OWN_CONFIG).read_text(encoding="utf-8"))
        if written.pop("class", None) != source["class"]:
            raise ValueError(f"{weights} holds no weights of {source['class']}: give the folder that save_pretrained wrote")
        arguments = {**written, **arguments}
    module, _, name = str(source["class"]).partition(":")
    if not name:
        raise ValueError(f"class={source['class']!r}: write it as 'package.module:Name'")
    made = getattr(importlib.import_module(module), name, None)
    if not (isinstance(made, type) and issubclass(made, nn.Module)):
        raise TypeError(f"class={source['class']!r} is no torch.nn.Module")
    lm = made(**arguments).float()
    lm.built_from = {"class": source["class"], **arguments}  # type: ignore[assignment]  # for config_of
    if weights is not None:
        load_model(lm, str(Path(weights) / "model.safetensors"))
    return lm


def config_of(lm: nn.Module) -> dict[str, Any]:
    """Return the model's configuration as plain data that `load_lm` accepts."""
    if not isinstance(lm, PreTrainedModel):
        return dict(lm.built_from)  # type: ignore[arg-type]  # _own_model set it
    config: Any = lm.config
    data = config.to_diff_dict()
    data["model_type"] = config.model_type
    for transient in ("transformers_version", "architectures", "dtype", "_name_or_path"):
        data.pop(transient, None)
    return data


def ends_of_model(lm: nn.Module, default: Sequence[int] = ()) -> tuple[int, ...]:
    """Return the ids that a model's configuration and `generation_config` call ends of text, of those that it has.

    Args:
        lm: The model.
        default: Where one of the two names just these, it says nothing.
    """
    if not isinstance(lm, PreTrainedModel):
        return ids_of(getattr(lm, "eos_token_id", None))
    sources = [ids_of(getattr(config, "eos_token_id", None)) for config in (lm.config, lm.generation_config)]
    named = [end for ends in sources if ends != tuple(default) for end in ends]
    return tuple(end for end in dict.fromkeys(named) if 0 <= end < backbone_of(lm).vocab_size)


def agreed_ends(lm: nn.Module, source: LMSource, of_task: Sequence[int] | None, given: Sequence[int]) -> tuple[int, ...]:
    """Return the ids that end a text; the task's, where it is known, once it is clear that nobody says otherwise.

    Args:
        lm: The model.
        source: Where it comes from.
        of_task: Those of the task's tokenizer; None: not known.
        given: Those that the user names; none: not named.

    Raises:
        ValueError: The user names others than the task; or names none, and the model's files name one that the task does not.
    """
    if of_task is None:
        return tuple(given) or ends_of_model(lm)
    if given and set(given) != set(of_task):
        raise ValueError(
            f"eos_token_id={list(given)}: the task's tokenizer ends texts with {list(of_task)}; leave it out, or name the ends to the "
            "tokenizer, FileTokenizer(..., eos_token=[...])"
        )
    beyond = [] if given else [end for end in _named_ends(lm, source) if end not in of_task]
    if beyond:
        raise ValueError(
            f"the model's configuration says that {beyond} ends a text, the task's tokenizer names {list(of_task)} only, and texts would "
            "go on behind it: name all to the tokenizer, FileTokenizer(..., eos_token=[...]), or say that the task is right with "
            f"policy_kwargs={{'eos_token_id': {list(of_task)}}}"
        )
    return tuple(of_task)


def _named_ends(lm: nn.Module, source: LMSource) -> tuple[int, ...]:
    """Return the ends that the model may have learned to write.

    Fresh weights have learned none: the task's end takes the place of the one that a dict names, and only several are taken seriously.
    An architecture's default says nothing of the tokenizer.
    """
    if isinstance(source, Mapping):
        ends = ends_of_model(lm)
        return ends if len(ends) > 1 else ()
    assert isinstance(lm, PreTrainedModel)
    return ends_of_model(lm, ids_of(getattr(AutoConfig.for_model(lm.config.model_type), "eos_token_id", None)))


def set_ends(lm: nn.Module, ends: Sequence[int]) -> None:
    """Write the ids that end a text into the model's configurations, so that `generate` of transformers stops where we do."""
    if isinstance(lm, PreTrainedModel) and ends:
        for config in (lm.config, lm.generation_config):
            if config is not None:
                config.eos_token_id = ends[0] if len(ends) == 1 else list(ends)


def switch_off_dropout(module: nn.Module) -> None:
    """Set every probability of dropout, of leaving out a layer or a path, and every jitter to 0.

    SB3's `train()` puts the policy in training mode; with dropout on, the first ratio of an update is noise instead of 1.
    """
    for part in module.modules():
        if isinstance(part, _DropoutNd):
            part.p = 0.0
        for name, value in list(vars(part).items()):
            if isinstance(value, float) and _RANDOM.search(name):
                setattr(part, name, 0.0)


def fuse_activations(module: nn.Module) -> None:
    """Have GELU's tanh approximation computed by torch's own operation.

    GPT-2, GPT-J, Phi, T5 1.1 and others spell it out in eight operations, which store four tensors of the MLP's size for the
    backward pass instead of one; the numbers are the same to rounding.
    """
    for part in list(module.modules()):
        for name, child in part.named_children():
            if isinstance(child, (NewGELUActivation, FastGELUActivation)):
                setattr(part, name, nn.GELU(approximate="tanh"))


def frozen(lm: nn.Module) -> nn.Module:
    """Return the model in evaluation mode, its parameters without gradients."""
    return lm.eval().requires_grad_(False)


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
        hash_file(path, digest)
    return digest.hexdigest()


def save_lm(
    lm: nn.Module,
    folder: str | Path,
    beside: Mapping[str, dict[str, torch.Tensor]] | None = None,
    tokenizer: Mapping[str, str] | None = None,
) -> None:
    """Write the model as `save_pretrained` does; the folder appears whole or not at all.

    Adapters are folded into the weights.  A module of one's own becomes its weights (safetensors) and its arguments (JSON).

    Args:
        lm: The model.
        folder: Replaced if it exists.
        beside: Further safetensors files in it, by name.
        tokenizer: The tokenizer's files by name, as its `pretrained_files` gives them.
    """
    with new_folder(folder) as made:
        whole = merged(lm)
        if isinstance(whole, PreTrainedModel):
            whole.save_pretrained(made, safe_serialization=True)
            if _reads_pictures(whole.config):
                (made / _PROCESSOR).write_text(_processor(whole), encoding="utf-8")
        else:
            save_model(whole, str(made / "model.safetensors"))
            (made / _OWN_CONFIG).write_text(json.dumps(config_of(lm), indent=2), encoding="utf-8")
        for name, tensors in (beside or {}).items():
            save_file(tensors, made / name)
        for name, text in (tokenizer or {}).items():
            (made / name).write_text(text, encoding="utf-8")
