"""Tokenizers as transformers keeps them: what a folder, a file or an object says, and the files that transformers reads back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .model_files import model_folder

CONFIG, FILE, TEMPLATE = "tokenizer_config.json", "tokenizer.json", "chat_template.jinja"


@dataclass(frozen=True)
class PretrainedFiles:
    """A tokenizer before it is known where its texts end.

    Attributes:
        backend: The `tokenizers.Tokenizer`.
        name: For messages.
        config: What `tokenizer_config.json` holds.
        ends: Ids that the model's `config.json` and `generation_config.json` call ends of text.
        template: The chat template in a file of its own, if there is one.
        encoder_decoder: Whether the model's `config.json` is an encoder-decoder's.
    """

    backend: Any
    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    ends: tuple[int, ...] = ()
    template: str | None = None
    encoder_decoder: bool = False

    def token(self, name: str) -> str | None:
        """Return the spelling of `"eos_token"`, `"bos_token"` and so on; None where the configuration names none."""
        return token_text(self.config.get(name))


def token_text(value: Any) -> str | None:
    """Return the spelling of a token, which older tokenizers save with its flags."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None  # `add_bos_token: true` ends in `_token` as well


def read_tokenizer(source: Any) -> PretrainedFiles:
    """Return what there is to know of a tokenizer.

    Args:
        source: A `tokenizer.json`, a folder that holds one, a `.gguf` file, the id of a model on the hub, a `tokenizers.Tokenizer`, a fast
            tokenizer of transformers, or a tokenizer of this package.

    Raises:
        FileNotFoundError: There is no such file.
        TypeError: It is none of these.
        ValueError: The file cannot be parsed, or the tokenizer has no fast backend.
    """
    if isinstance(source, str | Path):
        return _from_file(Path(model_folder(source, weights=False)))
    kind = type(source).__name__
    if type(source).__module__.startswith("tokenizers"):
        return PretrainedFiles(_copied(source), kind)
    if hasattr(source, "pretrained_files"):
        from tokenizers import Tokenizer as Backend

        files = source.pretrained_files()
        return PretrainedFiles(Backend.from_str(files[FILE]), kind, json.loads(files[CONFIG]), (), files.get(TEMPLATE))
    backend = getattr(source, "backend_tokenizer", None)
    if backend is not None:
        tokens = {name: str(token) for name, token in source.special_tokens_map.items() if isinstance(token, str)}
        kept = {key: value for key, value in source.init_kwargs.items() if isinstance(value, str | bool | int | float)}
        template = getattr(source, "chat_template", None)
        return PretrainedFiles(_copied(backend), kind, kept | tokens, (), template if isinstance(template, str) else None)
    if hasattr(source, "convert_tokens_to_ids"):
        raise ValueError(f"{kind} is a slow tokenizer of transformers: save it in the fast format (tokenizer.json), and pass that folder")
    raise TypeError(
        f"tokenizer={source!r} is a {kind}: pass a Tokenizer of textrl_env, a fast tokenizer of transformers, a tokenizer.json, or a "
        "folder that holds one"
    )


def _copied(backend: Any) -> Any:
    return type(backend).from_str(backend.to_str())  # the caller's padding and special tokens stay as they are


def _from_file(path: Path) -> PretrainedFiles:
    from tokenizers import Tokenizer as Backend  # 30 ms that `import textrl_env` need not pay

    if path.is_dir() and not (path / FILE).is_file():
        holds = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        raise FileNotFoundError(
            f"no tokenizer file at {path / FILE}; the folder holds {holds}: save a fast tokenizer there, as "
            "AutoTokenizer.from_pretrained(...).save_pretrained(folder) does"
        )
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"no tokenizer file at {path}, and the hub of models, or its cache where there is no network, has none of this name"
        )
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # the Rust side raises a bare Exception
        raise ValueError(f"{path} is not a tokenizer.json that `tokenizers` can read: {error}") from error
    if path.name != FILE:
        return PretrainedFiles(backend, str(path))
    folder = path.parent
    config = {**_plain(folder / "special_tokens_map.json"), **_plain(folder / CONFIG)}
    ends = dict.fromkeys(i for name in ("config.json", "generation_config.json") for i in _ends(_plain(folder / name), backend))
    template = folder / TEMPLATE
    chat = template.read_text(encoding="utf-8") if template.is_file() else None
    return PretrainedFiles(backend, str(path), config, tuple(ends), chat, _plain(folder / "config.json").get("is_encoder_decoder") is True)


def _plain(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    return content if isinstance(content, dict) else {}


def _ends(config: Mapping[str, Any], backend: Any) -> list[int]:
    """Return the ends that a model's file names; a single id may be an architecture's default, which is the end of another tokenizer."""
    named: Any = config.get("eos_token_id")
    if isinstance(named, list):
        return [i for i in named if backend.id_to_token(i) is not None]
    token = backend.get_added_tokens_decoder().get(named)
    return [named] if token is not None and token.special else []


def written_files(backend: Any, config: Mapping[str, Any], template: str | None = None) -> dict[str, str]:
    """Return the files, by name, from which `AutoTokenizer.from_pretrained` makes the tokenizer anew."""
    files = {FILE: backend.to_str(), CONFIG: json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **config}, indent=2)}
    return files if template is None else {**files, TEMPLATE: template}


def of_words(words: list[str], config: Mapping[str, Any]) -> dict[str, str]:
    """Return the files of a tokenizer whose tokens are words between spaces."""
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    backend = Backend(WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    backend.pre_tokenizer = WhitespaceSplit()
    return written_files(backend, config)
