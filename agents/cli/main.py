"""The `textrl` command."""

from __future__ import annotations

import dataclasses
import gc
import os
import select
import shlex
import signal
import sys
import threading
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import tyro
from rich.console import Console
from rich.text import Text

from textrl_env import RewardError
from textrl_env.utils.suggestions import did_you_mean

from ..utils.limits import check_fields
from ..utils.run_folder import versions

# Where in `agents` the flags and the function of each command are, of one word or two, and what it does; the function is imported when
# the flags have been read, since most of them need torch
COMMANDS = {
    "bench": ("benchmark.flags:Bench", "benchmark.bench:run_bench", "compare agents on tasks"),
    "bench compare": ("benchmark.flags:Compare", "benchmark.compare:run_compare", "say what changed between two benchmarks beyond noise"),
    "bench frontier": ("benchmark.flags:Frontier", "benchmark.frontier:run_frontier", "draw score against KL over a range of settings"),
    "bench leaderboard": (
        "benchmark.flags:Leaderboard", "benchmark.leaderboard:run_leaderboard",
        "a page of the best agents, and how to repeat each row",
    ),
    "bench report": ("benchmark.flags:BenchReport", "benchmark.report:run_report", "write the report of a benchmark anew"),
    "bench tune": (
        "hyperparameter_search.flags:TuneAgents", "hyperparameter_search.tune_agents:run_tune_agents",
        "the same search for good settings for every agent on every task",
    ),
    "demo": ("pipelines.flags:Demo", "pipelines.demo:run_demo", "pretrain, sample, compare, fit a reward model, train by PPO, judge"),
    "train": ("cli.train_flags:Train", "cli.train:run_train", "train one policy on a task or on text files"),
    "loop": (
        "pipelines.flags:Loop", "pipelines.feedback_loop:run_loop",
        "rounds of sampling, comparing, fitting and training, with people or simulated annotators",
    ),
    "tune": ("hyperparameter_search.flags:Tune", "hyperparameter_search.tune:run_tune", "look for good settings of an algorithm on a task"),
    "evaluate": ("cli.flags:Evaluate", "cli.evaluate:run_evaluate", "measure a run's policy on the test prompts of its task"),
    "generate": ("cli.flags:Generate", "cli.generate:run_generate", "write texts with a run's policy"),
    "play": ("cli.play:Play", "cli.play:run_play", "play an environment yourself"),
    "feedback create": ("cli.feedback:Create", "cli.feedback:run_create", "make a study: what people compare, rate, rank, flag or write"),
    "feedback serve": ("cli.feedback:FeedbackServe", "cli.feedback:run_serve", "open its page"),
    "feedback report": (
        "cli.flags:FeedbackReport", "cli.feedback_report:run_report",
        "agreement, accuracy and doubts; a ranking of the policies that wrote the texts",
    ),
    "feedback export": ("cli.feedback:Export", "cli.feedback:run_export", "answers as preferences, for another study, or for Label Studio"),
    "feedback import": ("cli.feedback:Import", "cli.feedback:run_import", "answers of another study or of Label Studio"),
    "feedback rotate": ("cli.feedback:Rotate", "cli.feedback:run_rotate", "seal the texts with a new key"),
    "feedback forget": ("cli.feedback:Forget", "cli.feedback:run_forget", "delete everything about an annotator"),
    "feedback log": ("cli.feedback:Log", "cli.feedback:run_log", "who did what"),
    "reward report": ("cli.flags:Report", "cli.reward_report:run_report", "fit a reward model to a file of preferences, and report on it"),
    "reward score": ("cli.flags:Score", "cli.reward_score:run_score", "score the texts of a file"),
    "reward serve": ("cli.reward_serve:Serve", "cli.reward_serve:run_serve", "serve a reward model over HTTP"),
}  # fmt: skip

_GO_ON = ("bench", "demo", "train", "loop", "tune")  # commands that go on where they were stopped


def _usage() -> str:
    lines = "\n".join(f"  {command:<18} {purpose}" for command, (*_, purpose) in COMMANDS.items())
    end = "textrl COMMAND --help lists the flags; --config FILE reads them from a YAML file first."
    return f"textrl COMMAND [flags]\n\n{lines}\n\n{end}"


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand.

    Returns:
        0; 2 for a wrong command or setting, or work that failed; 130 after Ctrl-C or SIGTERM, which keep what was finished; 141 where
        whoever reads the output stopped reading.
    """
    if argv is None:  # a process of its own: of what imports make nothing is garbage, and looking for it takes a fifth of their time
        gc.disable()
    try:
        status = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # such as by `textrl ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes once more when it ends
        return 141


def _run(argv: list[str]) -> int:
    words = 2 if " ".join(argv[:2]) in COMMANDS else 1
    command = " ".join(argv[:words])
    if command in ("-h", "--help", "--version"):
        print(f"textrl {versions()['textrl-env']}" if command == "--version" else _usage())
        return 0
    if command not in COMMANDS:
        print(_unknown(argv) if command else _usage(), file=sys.stderr)
        return 2
    flags, run, _ = COMMANDS[command]
    try:
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop as after Ctrl-C, which a job in the background ignores
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        config = resolve(resolve_name(f"agents.{flags}"), argv[words:], f"textrl {command}")
        work = resolve_name(f"agents.{run}")
        if not gc.isenabled():
            gc.freeze()
            gc.enable()
        work(config)
    except KeyboardInterrupt as stopped:
        again = shlex.join(["textrl", *(word for word in argv if word != "--overwrite")])
        told = str(stopped) or "Stopped. The stages that were finished are kept."
        _tell(f"\n{told} To go on: {again}" if command in _GO_ON else "\nStopped.", interrupted=True)
        return 130
    except (ValueError, TypeError, OSError, RewardError, FloatingPointError, ImportError) as error:
        if isinstance(error, BrokenPipeError) and _is_unread(sys.stdout):
            raise
        if not getattr(error, "told", False):  # by the rank where it happened
            _tell(Text("error: ", "red").append(str(error), "default"))
        return 2
    return 0


def _is_unread(output: Any) -> bool:
    """Return whether whoever read the output has stopped; other pipes may break too."""
    if not hasattr(select, "poll"):  # Windows
        return True
    poll = select.poll()
    poll.register(output.fileno(), 0)
    return bool(poll.poll(0))


def _unknown(argv: list[str]) -> str:
    """Return what is said of a command that there is not."""
    groups = {command.partition(" ")[0] for command in COMMANDS if " " in command}
    asked = " ".join(argv[: 2 if argv[0] in groups else 1])
    near = did_you_mean(asked, [*COMMANDS, *groups]) or did_you_mean(" ".join(argv[:2]), COMMANDS)
    return f"error: there is no command {asked!r}{near}; there are:\n\n{_usage()}"


def _tell(message: str | Text, interrupted: bool = False) -> None:
    """Print why the command ends; of several ranks that say the same, one does."""
    if "agents.distributed.process_group" in sys.modules:  # or this process never asked for others
        first = resolve_name("agents.distributed.process_group").tell_others(str(message).removeprefix("error: "), interrupted)
        if not first:
            return
    Console(stderr=True).print(message, soft_wrap=True)


def resolve(kind: Any, argv: list[str], program: str = "textrl") -> Any:
    """Return the configuration: the class's defaults, then the file of `--config`, then the flags.

    Raises:
        ValueError: The file is missing, or holds something that the configuration does not, see `read_settings`; or a value is out of
            range.
    """
    default, from_file = kind(), {}
    if "--config" in argv:
        at = argv.index("--config")
        if at + 1 == len(argv):
            raise ValueError("--config needs a file")
        from .config_file import not_onto_itself, read_settings

        file, argv = Path(argv[at + 1]), argv[:at] + argv[at + 2 :]
        from_file = read_settings(file, kind)
        default = dataclasses.replace(default, **from_file)
    config = tyro.cli(kind, default=default, args=argv, prog=program)
    check_fields(config, lambda name, value: f"--{name.replace('_', '-')} {value}")
    ignored = [name for name in getattr(config, "unused", list)() if name in from_file and getattr(config, name) == from_file[name]]
    if ignored:  # earlier versions wrote settings that the algorithm does not use
        print(f"--config {file}: ignored, for this run does not use them: {', '.join(ignored)}", file=sys.stderr)
        config, default = (dataclasses.replace(one, **{name: getattr(kind(), name) for name in ignored}) for one in (config, default))
    return not_onto_itself(config, default, file, argv) if from_file else config
