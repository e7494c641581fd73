"""Chat templates: messages to the text that a model was trained on, without transformers."""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from .utils.pretrained_files import PretrainedFiles, token_text

_LIKE_A_TOKEN = re.compile(r"<\|[^|]*\|>|<[^<>\s]+>|\[[^\[\]\s]+\]")  # how special tokens are spelled: <|im_end|>, </s>, [INST]


Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class ChatTemplate:
    """Renders a list of messages as a prompt that ends where the assistant is to write.

    The result equals `apply_chat_template(messages, tokenize=False, add_generation_prompt=True)` of transformers.

    Attributes:
        source: The template, in Jinja2.
        special_tokens: What the template calls `bos_token`, `eos_token` and so on.
        tools: Functions that the template shows to the model, as JSON schemas; None: none.
    """

    source: str
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    tools: Sequence[Mapping[str, Any]] | None = None

    def __call__(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return the prompt's text.

        Raises:
            jinja2.TemplateError: The template refuses the messages, or reaches for what the sandbox forbids.
        """
        return _compiled(self.source).render(
            messages=messages,
            tools=self.tools,  # None without tools: templates ask `is not none`, which is true of a name that is undefined
            documents=None,
            add_generation_prompt=True,
            **self.special_tokens,
        )


def render(template: Callable[[Sequence[Mapping[str, Any]]], str], messages: Sequence[Mapping[str, Any]]) -> tuple[str, Spans]:
    """Return a prompt's text, and where in it somebody typed what a special token looks like, see `Prompt.typed`.

    Each such spelling is marked in the messages, and the template run again: where it writes the same, the marks say where the spelling
    went.  One on which the template acts itself, as some do on `</think>`, is left to it.

    Args:
        template: Renders messages, see `ChatTemplate`.
        messages: Each with `role` and `content`.
    """
    text = template(messages)
    contents = [message["content"] for message in messages if isinstance(message["content"], str)]
    mark = next(c for c in map(chr, range(0xE000, 0xF8FF)) if c not in text and not any(c in content for content in contents))
    spans: set[tuple[int, int]] = set()
    for spelling in {found for content in contents for found in _LIKE_A_TOKEN.findall(content)}:
        marked = [
            {**m, "content": m["content"].replace(spelling, spelling[0] + mark + spelling[1:])} if isinstance(m["content"], str) else m
            for m in messages
        ]
        parts = template(marked).split(mark)
        if "".join(parts) == text:
            ends = list(itertools.accumulate(map(len, parts[:-1])))
            spans |= {(end - 1, end - 1 + len(spelling)) for end in ends}
    return text, tuple(sorted(spans))


def chat_template(source: str | Path | PretrainedFiles) -> ChatTemplate:
    """Return the chat template of a tokenizer, or one given as text.

    Args:
        source: A folder that holds `tokenizer_config.json` (and `chat_template.jinja`, which goes first), as
            transformers saves it; the `files` of a `FileTokenizer`; or a Jinja2 template.

    Raises:
        FileNotFoundError: No such folder, or it has no `tokenizer_config.json`.
        ValueError: The folder's tokenizer has no chat template, or the template does not parse.
    """
    if isinstance(source, str) and ("{{" in source or "{%" in source):
        return _checked(ChatTemplate(source), "the chat template")
    if isinstance(source, PretrainedFiles):
        config, name, template = source.config, source.name, source.template
    else:
        folder, name = Path(source), str(source)
        config_file, file = folder / "tokenizer_config.json", folder / "chat_template.jinja"
        if not config_file.is_file():
            raise FileNotFoundError(f"no tokenizer_config.json in {folder}: pass a tokenizer's folder, or a Jinja template as text")
        config = json.loads(config_file.read_text(encoding="utf-8"))
        template = file.read_text(encoding="utf-8") if file.is_file() else None
    written = _default_of(config.get("chat_template")) if template is None else template
    if written is None:
        raise ValueError(f"the tokenizer in {name} has no default chat template: pass a Jinja template as text")
    tokens = {key: token_text(value) for key, value in config.items() if key.endswith("_token") and value}
    return _checked(ChatTemplate(written, {k: v for k, v in tokens.items() if v is not None}), name)


def _default_of(template: Any) -> str | None:
    """Return the template called `default` where a tokenizer has several, as transformers picks it."""
    if isinstance(template, list):
        return next((entry["template"] for entry in template if entry["name"] == "default"), None)
    return template


def _checked(template: ChatTemplate, name: str) -> ChatTemplate:
    from jinja2 import TemplateSyntaxError

    try:
        _compiled(template.source)
    except TemplateSyntaxError as error:
        raise ValueError(f"{name} does not parse: {error.message} in line {error.lineno}") from error
    return template


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> Any:
    """Compile a template as transformers does: it comes from strangers, so it runs in a sandbox."""
    import jinja2
    from jinja2 import ext, nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(ext.Extension):
        """`{% generation %}` marks what the assistant wrote, for training masks; here it is only a scope."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)  # Jinja's own filter escapes HTML

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(source)
