"""Contenders of `agents.benchmark.performance.speed`: each a process of its own, which does one iteration when told to.

So the time of all is taken in turns and the peak memory of each is its own.  A contender writes a line of JSON when it is ready, one after
each iteration, and one with its memory and versions at the end; it reads a line before each iteration and before the end.
`python -m agents.benchmark.performance.speed_contenders ours` is TextPPO, `grpo` GRPO, `sb3` SB3's PPO, `sb3-policy` the same with our
policy, and `trl_peer.py` beside this file is TRL's trainers.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from textrl_env.utils.files import plain

from ...utils.run_folder import versions
from .hardware import peak_mib, resident_mib
from .speed_workload import Speed, iterate, iterate_stock, make_grpo, make_ours, make_stock, model_config

INSTALL = "python -m venv trl && trl/bin/pip install torch trl==1.12.0 requests, then --trl trl/bin/python"
_HERE = Path(__file__).parent


class Contender:
    """A process that does iterations on demand.

    Args:
        name: What it is called in tables.
        command: What starts it.

    Attributes:
        rows: What its iterations reported, the first of them warm-up.
        memory_mib: Its peak memory above what it held once everything was imported; after `finish`.
        versions: Of the libraries that it used; after `finish`.
    """

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self.rows: list[dict[str, Any]] = []
        self.memory_mib, self.versions = 0.0, dict[str, str]()
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True)

    def wait(self) -> None:
        """Return when it has imported and built everything."""
        self._read()

    def iterate(self) -> None:
        """Have it do one iteration."""
        self.rows.append(self._ask())

    def finish(self) -> None:
        """Take its memory and versions."""
        last = self._ask()
        self.memory_mib, self.versions = last["memory_mib"], last["versions"]

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):  # of what a process that has ended never read
                stream.close()
        self._process.terminate()
        self._process.wait()
        self._errors.close()

    def _ask(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # _read says why it ended
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            raise RuntimeError(f"{self.name} ended with code {self._process.returncode}:\n{self._errors.read()[-2000:]}")
        return json.loads(line)


def contenders(config: Speed) -> list[tuple[str, list[str]]]:
    """Return the arguments of `Contender` for ours, SB3's PPO twice, and TRL's trainers if there is an environment that has them.

    Where texts come in groups, GRPO is timed here too.
    """
    settings = json.dumps(plain(dataclasses.asdict(config)))
    command = [sys.executable, "-m", "agents.benchmark.performance.speed_contenders"]
    names = {"ours": "ours"}
    names |= {"ours, GRPO": "grpo"} if config.group > 1 else {}
    names |= {"SB3 PPO": "sb3", "SB3 PPO, our policy": "sb3-policy"} if config.stock else {}
    commands = [(shown, [*command, name, settings]) for shown, name in names.items()]
    python = trl_python(config.trl)
    newest = trl_python(config.trl_newest) if config.trl_newest is not None else python
    if python is not None or newest is not None:
        shared = ("prompt", "new_tokens", "episodes", "epochs", "batch", "threads", "precision", "device")
        work = json.dumps({"model": model_config(config), **{name: getattr(config, name) for name in shared}})
        flags = ["--iterations", str(1 + config.repeats), "--work", work, "--lockstep"]
        where = {name: python if name.startswith("ppo") else newest for name in config.trl_trainers}
        script = str(_HERE / "trl_peer.py")
        commands += [(f"TRL {name}", [str(of), "-I", script, name, *flags]) for name, of in where.items() if of is not None]
    return commands


def trl_python(chosen: Path | None) -> Path | None:
    """Return the Python of an environment with TRL: the chosen one, else this one if it has TRL, else None.

    Raises:
        ValueError: The chosen one is no file.
    """
    if chosen is not None and not chosen.is_file():
        raise ValueError(f"trl={chosen}: there is no such Python; give that of an environment with TRL ({INSTALL})")
    return chosen or (Path(sys.executable) if importlib.util.find_spec("trl") else None)


def main(name: str, settings: str) -> None:
    """Do iterations on demand: the other side of `Contender`."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever is printed must not mix with the lines

    def write(row: dict[str, Any]) -> None:
        lines.write(json.dumps(row) + "\n")
        lines.flush()

    config = Speed(**json.loads(settings))
    torch.set_num_threads(config.threads)
    idle = resident_mib(config.device)
    run = _prepare(name, config)
    write({"ready": True})
    for _ in range(1 + config.repeats):
        _await_word()
        write(run())
    _await_word()  # what ends a process must not disturb the others
    write({"memory_mib": peak_mib(config.device) - idle, "versions": versions()})


def _await_word() -> None:
    if not sys.stdin.readline():
        sys.exit("nobody is waiting")


def _prepare(name: str, config: Speed) -> Callable[[], dict[str, float]]:
    if name in ("ours", "grpo"):
        ours = make_ours(config) if name == "ours" else make_grpo(config)
        return lambda: iterate(ours)
    stock = make_stock(config, own_policy=name == "sb3-policy")
    return lambda: iterate_stock(stock, config.stock_minibatches)


if __name__ == "__main__":
    main(*sys.argv[1:])
