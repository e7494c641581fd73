"""The `textrl` command."""

from __future__ import annotations

import dataclasses
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import tyro
import yaml
from rich.console import Console
from rich.text import Text

from textrl_env import RewardError

# Module, configuration and function of each command, of one word or two; imported when asked for, since most of them need torch.
COMMANDS = {
    "bench": ("agents.benchmark.bench", "Bench", "run_bench"),
    "bench compare": ("agents.benchmark.compare", "Compare", "run_compare"),
    "bench frontier": ("agents.benchmark.frontier", "Frontier", "run_frontier"),
    "bench leaderboard": ("agents.benchmark.leaderboard", "Leaderboard", "run_leaderboard"),
    "bench report": ("agents.benchmark.report", "BenchReport", "run_report"),
    "demo": ("agents.pipelines.demo", "Demo", "run_demo"),
    "feedback create": ("agents.cli.feedback", "Create", "run_create"),
    "feedback export": ("agents.cli.feedback", "Export", "run_export"),
    "feedback forget": ("agents.cli.feedback", "Forget", "run_forget"),
    "feedback import": ("agents.cli.feedback", "Import", "run_import"),
    "feedback log": ("agents.cli.feedback", "Log", "run_log"),
    "feedback report": ("agents.cli.feedback_report", "FeedbackReport", "run_report"),
    "feedback rotate": ("agents.cli.feedback", "Rotate", "run_rotate"),
    "feedback serve": ("agents.cli.feedback", "FeedbackServe", "run_serve"),
    "tune": ("agents.hyperparameter_search.tune", "Tune", "run_tune"),
    "train": ("agents.cli.train", "Train", "run_train"),
    "evaluate": ("agents.cli.evaluate", "Evaluate", "run_evaluate"),
    "generate": ("agents.cli.generate", "Generate", "run_generate"),
    "loop": ("agents.pipelines.feedback_loop", "Loop", "run_loop"),
    "play": ("agents.cli.play", "Play", "run_play"),
    "reward report": ("agents.cli.reward_report", "Report", "run_report"),
    "reward score": ("agents.cli.reward_score", "Score", "run_score"),
    "reward serve": ("agents.cli.reward_serve", "Serve", "run_serve"),
}

_USAGE = """textrl COMMAND [flags]

  bench              compare agents on tasks
  bench compare      say what changed between two benchmarks beyond noise
  bench frontier     draw score against KL over a range of settings
  bench leaderboard  a page of the best agents, and how to repeat each row
  bench report       write the report of a benchmark anew
  demo               pretrain, sample, compare, fit a reward model, tune by PPO, judge
  train              train one policy on a task or on text files
  loop               rounds of sampling, comparing, fitting and tuning, with people or simulated annotators
  tune               look for good settings of an algorithm on a task
  evaluate           measure a run's policy on the test prompts of its task
  generate           write texts with a run's policy
  play               play an environment yourself
  feedback create    make a study: what people are asked to compare, rate, rank, flag or write
  feedback serve     open its page
  feedback report    agreement, accuracy and doubts; a ranking of the policies that wrote the texts
  feedback export    answers as preferences, for another study, or for Label Studio
  feedback import    answers of another study or of Label Studio
  feedback rotate    seal the texts with a new key
  feedback forget    delete everything about an annotator
  feedback log       who did what
  reward report      fit a reward model to a file of preferences, and report on it
  reward score       score the texts of a file
  reward serve       serve a reward model over HTTP

textrl COMMAND --help lists the flags; --config FILE reads them from a YAML file first."""


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand.

    Returns:
        0; 2 for a wrong command or setting; 130 after Ctrl-C, which keeps what was finished.
    """
    argv = sys.argv[1:] if argv is None else argv
    words = 2 if " ".join(argv[:2]) in COMMANDS else 1
    command = " ".join(argv[:words])
    if command not in COMMANDS:
        asked = command in ("-h", "--help")
        print(_USAGE, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    module_name, kind, run = COMMANDS[command]
    try:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        module = import_module(module_name)
        getattr(module, run)(resolve(getattr(module, kind), argv[words:]))
    except KeyboardInterrupt:
        _tell("\nStopped. What was finished is kept; the same command goes on from there.", interrupted=True)
        return 130
    except (ValueError, TypeError, OSError, RewardError, FloatingPointError, ImportError) as error:
        if not getattr(error, "told", False):  # by the rank where it happened
            _tell(Text("error: ", "red").append(str(error), "default"))
        return 2
    return 0


def _tell(message: str | Text, interrupted: bool = False) -> None:
    """Print why the command ends; of several ranks that say the same, one does."""
    if "agents.distributed.process_group" in sys.modules:  # or this process never asked for others
        first = import_module("agents.distributed.process_group").tell_others(str(message).removeprefix("error: "), interrupted)
        if not first:
            return
    Console(stderr=True).print(message)


def resolve(kind: Any, argv: list[str]) -> Any:
    """Return the configuration: the class's defaults, then the file of `--config`, then the flags.

    Raises:
        ValueError: The file is missing, is no YAML mapping, or has a key that the configuration has not.
    """
    default = kind()
    if "--config" in argv:
        at = argv.index("--config")
        if at + 1 == len(argv):
            raise ValueError("--config needs a file")
        default = dataclasses.replace(default, **_read(Path(argv[at + 1]), kind))
        argv = argv[:at] + argv[at + 2 :]
    return tyro.cli(kind, default=default, args=argv)


def _read(path: Path, kind: Any) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"--config {path}: no such file")
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"--config {path}: expected settings as 'name: value', one a line")
    known = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"--config {path}: unknown settings {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    hints = get_type_hints(kind)
    return {name: _as_declared(value, hints[name]) for name, value in values.items()}


def _as_declared(value: Any, hint: Any) -> Any:
    """YAML knows neither paths nor tuples."""
    if value is not None and Path in (hint, *get_args(hint)) and get_origin(hint) is not tuple:
        return Path(value)
    if get_origin(hint) is tuple:
        return tuple(Path(item) if Path in get_args(hint) else item for item in value)
    return value
