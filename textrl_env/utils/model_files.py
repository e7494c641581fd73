"""Where a model's files lie: its folder, the one that a GGUF file was unpacked into, or the hub's copy in the cache of Hugging Face."""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from pathlib import Path

from .files import hash_file, new_folder
from .folders import cache_folder
from .optional_imports import optional_import
from .suggestions import insist_on_path

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_PLAIN = ["*.json", "*.jinja"]  # configuration and tokenizer


def model_folder(source: str | Path, weights: bool = True) -> str | Path:
    """Return the folder of a model that is given as folder, `.gguf` file or id on the hub; of what is none of these `source` itself.

    A `.gguf` file is unpacked into the cache, under a hash of its contents: weights in float32 (safetensors), configuration, ends of text,
    tokenizer and chat template.  What was quantized stays as it was rounded; only the storage is float32.  A model of the hub is downloaded
    into Hugging Face's cache; without a network it is looked for there.

    Args:
        source: Where the model is.
        weights: Whether the weights are needed of a model of the hub, beside configuration and tokenizer.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: The package gguf is missing.
        ValueError: transformers cannot read the file.
    """
    path = Path(source)
    if path.suffix.lower() != ".gguf":
        return source if path.exists() else _of_hub(str(source), weights) or source
    if not path.is_file():
        raise FileNotFoundError(f"there is no model at {path.absolute()}")
    digest = hashlib.sha256()
    hash_file(path, digest)
    folder = cache_folder() / "gguf" / f"{path.stem}-{digest.hexdigest()[:16]}"
    if not folder.is_dir():
        _unpack(path, folder)
    return folder


def _of_hub(name: str, weights: bool) -> Path | None:
    """Return the folder of a model of the hub; None if the hub and its cache have none of this name."""
    if name.endswith(".json") or not _HUB_ID.fullmatch(name):
        return None
    insist_on_path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    with suppress(OSError, HFValidationError):  # not found, not allowed, no network: whoever asked says what it cannot do without
        patterns = [*_PLAIN, "*.safetensors"] if weights else _PLAIN
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=["*/*"]))
    return None


def _unpack(path: Path, folder: Path) -> None:
    with optional_import("gguf", f"{path} needs the package gguf"):
        import gguf  # noqa: F401  # transformers imports it, with a message of its own
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        read = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    except Exception as error:  # transformers raises whatever its readers of some forty architectures raise
        raise ValueError(f"{path} cannot be read as a model: {type(error).__name__}: {error}") from error
    # transformers refuses to write what came from GGUF, although it holds plain float32 by now
    config = read.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    with new_folder(folder) as made:
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        _drop_tokens(made / "tokenizer.json", config.vocab_size)


def _drop_tokens(file: Path, vocab_size: int) -> None:
    """Remove added tokens without a row in the embedding: transformers' reader adds `<|endoftext|>` to models that have none."""
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["id"] < vocab_size]
    file.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
