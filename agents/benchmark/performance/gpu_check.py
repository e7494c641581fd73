"""Everything that only a GPU can show, in one command: `make gpu-check` writes the tables of docs/gpu.md.

A part that fails does not stop the others: its place in the document says why, and the command ends with 1.
`python -m agents.benchmark.performance.gpu_check --device cpu --tiny --out FILE` runs all of it on small models, without meaning.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.console import Console

from textrl_env import IntegerTokenizer
from textrl_env.utils.files import write_text

from ...models.loading import load_lm, save_lm
from ...models.mixed_precision import Precision
from ...reports.tables import markdown_table
from . import decoding, memory, model_families
from .gpu_estimates import MODELS
from .hardware import card
from .speed_contenders import Contender, contenders
from .speed_workload import Speed

BEGIN, END = "<!-- gpu-check writes from here -->", "<!-- to here -->"
SMOLLM2: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49_152, "max_position_embeddings": 2048, "tie_word_embeddings": True, "rope_theta": 100_000.0,
    "bos_token_id": None, "eos_token_id": 0,
}  # fmt: skip
FULL = {"GPT-2 small": MODELS["124M"], "SmolLM2-135M": SMOLLM2}
_SMALL = {"vocab_size": 64, "num_hidden_layers": 1, "hidden_size": 24, "intermediate_size": 32, "num_attention_heads": 3}
TINY = {"GPT-2 small": {**MODELS["124M"], "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 64}, "SmolLM2-135M": {**SMOLLM2, **_SMALL}}
Part = Literal["tests", "families", "decoding", "memory", "speed"]


@dataclass(frozen=True)
class GpuCheck:
    """What to run.

    Attributes:
        device: Where.
        tiny: Small models and little work, which show that every part runs and nothing else.
        parts: All without any.
        precision: Of the table of families.
        trl: Python of an environment with TRL; by default this one, if TRL is installed.
        out: The document that holds the tables.
    """

    device: str = "cuda"
    tiny: bool = False
    parts: tuple[Part, ...] = ()
    precision: Precision = "bfloat16"
    trl: Path | None = None
    out: Path = Path("docs/gpu.md")


def main(config: GpuCheck) -> int:
    """Run the parts, and write their tables between the two marks of the document; return how many failed."""
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit(f"gpu-check: torch {torch.__version__} sees no CUDA device here, so nothing was run and {config.out} stays as it is")
    before, _, after = _cut(config.out)
    failed, texts = 0, []
    for part in config.parts or PARTS:
        Console().print(f"{part} ...", highlight=False)
        try:
            text = PARTS[part](config)
        except Exception as error:  # the others are worth having; the document and the exit status tell of this one
            failed += 1
            text = f"**Failed.** {type(error).__name__}: {' '.join(str(error).split())[-1500:]}"
        Console().print(text, markup=False, highlight=False, soft_wrap=True)
        texts.append(f"### {TITLES[part]}\n\n{text}\n")
    head = f"{card(config.device)}, torch {torch.__version__}, transformers {version('transformers')}, {date.today():%d %B %Y}."
    write_text(config.out, "\n".join([f"{before}{BEGIN}\n", head, "", *texts, f"{END}{after}"]))
    return failed


def _cut(document: Path) -> list[str]:
    """Return what a document has before the tables, the tables, and what it has behind them."""
    parts = re.split(f"{re.escape(BEGIN)}|{re.escape(END)}", document.read_text(encoding="utf-8")) if document.is_file() else ["", "", "\n"]
    if len(parts) != 3:
        sys.exit(f"gpu-check: {document} does not hold the lines {BEGIN} and {END} once each, between which the tables go")
    return parts


def tests(config: GpuCheck) -> str:
    """Run the tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "-rs"]
    command += ["tests/agents/models/test_mixed_precision.py"] if config.tiny else ["tests"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = ran.stdout.strip().splitlines()
    if ran.returncode:
        raise RuntimeError(f"pytest ended with {ran.returncode}: {' '.join(lines[-15:])} {ran.stderr[-500:]}")
    skipped = [re.sub(r"^SKIPPED \[(\d+)\] \S+ ", r"\1 skipped: ", line) for line in lines if line.startswith("SKIPPED")]
    return "\n".join([f"`pytest -m gpu`: {lines[-1].strip('= ')}.", *(f"- {line}" for line in skipped)])


def families(config: GpuCheck) -> str:
    """Measure every family in mixed precision, as docs/families.md does in float32 on a CPU."""
    small: dict[str, Any] = {"only": ("llama",), "width": 16, "rows": 4, "new_tokens": 12} if config.tiny else {}
    rows = model_families.main(model_families.Families(device=config.device, precision=config.precision, **small))
    table = markdown_table(model_families.COLUMNS, map(model_families.shown, rows))
    return f"In {config.precision}; the columns are those of [families.md](families.md).\n\n{table}"


def decode(config: GpuCheck) -> str:
    """Time decoding step by step and with CUDA graphs."""
    small = {"rows": 4, "shortest": 2, "longest": 6, "width": 16, "layers": 1, "vocabulary": 64, "repeats": 1}
    size = small if config.tiny else {"width": 768, "layers": 12, "vocabulary": 50_257}
    asked = decoding.Decode(device=config.device, cuda_graphs=config.device.startswith("cuda"), **size)
    speeds = decoding.main(asked)
    rows = []
    for kind, eager in speeds.items():
        if not kind.endswith("graphs"):
            graphs = speeds.get(f"{kind}, CUDA graphs")
            rows.append((kind, f"{eager:,.0f}", *(("-", "-") if graphs is None else (f"{graphs:,.0f}", f"{graphs / eager:.2f}x"))))
    said = f"{asked.rows} rows of the size of GPT-2 small, {asked.prompt} prompt and {asked.shortest} to {asked.longest} new tokens"
    return f"{said}.\n\n{markdown_table(('texts', 'eager tokens/s', 'CUDA graphs tokens/s', 'ratio'), rows)}"


def estimates(config: GpuCheck) -> str:
    """Compare the estimate of memory with the peak, for both models."""
    tables = []
    for name, folder in _folders(config):
        small = {"only": (13,), "prompt": 4, "new_tokens": 6, "texts": 8, "micro_batch_size": 4, "group_size": 4} if config.tiny else {}
        settings: dict[str, Any] = small or {"prompt": 128, "new_tokens": 128, "texts": 64, "micro_batch_size": 16}
        with folder as model:
            rows = memory.main(memory.Memory(model, device=config.device, **settings))
        said = f"{name}, {settings['texts']} texts of {settings['prompt']} prompt and {settings['new_tokens']} response tokens:"
        tables.append(f"{said}\n\n{markdown_table(memory.COLUMNS, rows)}")
    return "\n\n".join(tables)


def speed(config: GpuCheck) -> str:
    """Time whole iterations of ours and of TRL's trainers in turns, each in a process of its own."""
    rows = []
    for name, model in _models(config).items():
        small: dict[str, Any] = {"prompt": 4, "new_tokens": 6, "episodes": 8, "batch": 4, "epochs": 1, "repeats": 1} if config.tiny else {}
        settings = small or {"prompt": 128, "new_tokens": 128, "episodes": 64, "batch": 16, "repeats": 3}
        asked = Speed(model=json.dumps(model), vocabulary=model["vocab_size"], device=config.device, trl=config.trl, **settings)
        for one, command in contenders(asked):
            if not one.startswith("SB3"):
                rows.append((f"{name}, {one}", *_timed(one, command, asked)))
    said = "Iterations of TextPPO, and of TRL's trainers where TRL is installed, with random weights and in float32"
    return f"{said}.\n\n{markdown_table(('', 'tokens/s', 'seconds', 'rollout', 'update', 'peak MiB'), rows)}"


def _timed(name: str, command: list[str], asked: Speed) -> list[str]:
    """Return the cells of one contender; one that fails leaves the others their rows."""
    one = Contender(name, command)
    try:
        one.wait()
        for _ in range(1 + asked.repeats):
            one.iterate()
        one.finish()
    except RuntimeError as error:
        said = " ".join(re.sub(r"[|^~]+", " ", str(error)).split())  # no bars in a cell, no marks of a traceback
        return ["**failed**", said[-300:], "", "", ""]
    finally:
        one.close()
    seconds, rollout, update = (
        statistics.median(row[key] for row in one.rows[1:]) for key in ("seconds", "rollout_seconds", "update_seconds")
    )
    speed = asked.episodes * asked.new_tokens / seconds
    return [f"{speed:,.0f}", f"{seconds:.2f}", f"{rollout:.2f}", f"{update:.2f}", f"{one.memory_mib:,.0f}"]


def _models(config: GpuCheck) -> dict[str, dict[str, Any]]:
    return TINY if config.tiny else FULL


def _folders(config: GpuCheck) -> Iterator[tuple[str, Any]]:
    """Yield each model's name, and what makes its folder: random weights, or the real ones of the second where TEXTRL_SMOLLM2 says."""
    for name, model in _models(config).items():
        yield name, _folder(model, os.environ.get("TEXTRL_SMOLLM2") if name.startswith("SmolLM2") else None)


@contextmanager
def _folder(model: dict[str, Any], real: str | None) -> Iterator[str]:
    if real is not None:
        yield real
        return
    with tempfile.TemporaryDirectory() as folder:
        save_lm(load_lm(model), folder, {}, IntegerTokenizer(model["vocab_size"], 0).pretrained_files())
        yield folder


PARTS: dict[str, Callable[[GpuCheck], str]] = {
    "tests": tests, "families": families, "decoding": decode, "memory": estimates, "speed": speed,
}  # fmt: skip
TITLES = {
    "tests": "Tests", "families": "Families of models", "decoding": "Decoding", "memory": "Memory, estimated and measured",
    "speed": "Tokens a second",
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(min(1, main(tyro.cli(GpuCheck))))
