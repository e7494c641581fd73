"""What is watched and kept while a policy trains."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import TensorBoardOutputFormat

from textrl_env.task import GoldScore
from textrl_env.utils.files import append_csv, told_when_full, write_text

from ..algorithms.common.text_algorithm import TextAlgorithm
from ..rollouts.reward_scaling import moments
from .rewind_logs import naming

CURVE = (
    "iteration", "texts", "tokens", "learned", "gold", "kl_per_sequence", "beta", "entropy", "length", "finished_by_eos",
)  # fmt: skip
SAMPLES = 8  # texts of a rollout that are shown


class CurveCallback(BaseCallback):
    """Appends a row to `curve.csv` after every rollout, saves the model every `save_every` rollouts, and shows what is written.

    Several ranks each have one: they count the texts of all, and the first writes the files, with samples of its own texts.

    Args:
        folder: Holds `curve.csv`, `policy.zip` and `samples.jsonl`, a few texts of every `save_every`-th rollout, which TensorBoard
            shows as a table too.
        gold: The task's own judgement of the texts; without one the column is empty.
        save_every: Rollouts between checkpoints.
    """

    def __init__(self, folder: Path, gold: GoldScore | None = None, save_every: int = 5) -> None:
        super().__init__()
        self.folder = folder
        self.gold = gold
        self.save_every = save_every

    def _on_training_start(self) -> None:
        assert isinstance(self.model, TextAlgorithm)
        if self.model.ranks.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)

    def _on_rollout_start(self) -> None:
        # Between rollouts, weights, optimizer and controller belong together: this is where a resumed run goes on
        assert isinstance(self.model, TextAlgorithm)
        if self.model.num_rollouts and self.model.num_rollouts % self.save_every == 0:
            self.model.save(self.folder / "policy.zip")

    def _on_rollout_end(self) -> None:
        assert isinstance(self.model, TextAlgorithm)
        rollout = self.model.last_rollout
        assert rollout is not None
        gold = float("nan")
        if self.gold is not None:
            gold = float(moments(np.asarray(self.gold(rollout.prompts, rollout.responses), float), self.model.ranks).mean)
            self.logger.record("objective/gold", gold)
        if not self.model.ranks.is_main:
            return
        logged = self.logger.name_to_value
        row = {
            "iteration": self.model.num_rollouts,
            "texts": self.model.num_texts,
            "tokens": self.model.num_timesteps,
            "learned": logged["objective/score"],
            "gold": gold,
            "kl_per_sequence": logged["kl/per_sequence"],
            "beta": logged["kl/beta"],
            "entropy": logged["objective/entropy"],
            "length": logged["tokens/length"],
            "finished_by_eos": logged["tokens/finished_by_eos"],
        }
        append_csv(self.folder / "curve.csv", CURVE, row)
        if (self.model.num_rollouts - 1) % self.save_every == 0:
            self._show(rollout.infos[:SAMPLES])

    def _show(self, texts: Sequence[Mapping[str, Any]]) -> None:
        rows = [{"tokens": self.model.num_timesteps, **{key: text[key] for key in ("prompt", "response", "score")}} for text in texts]
        path = self.folder / "samples.jsonl"
        with told_when_full(path, "its last row may be cut"), path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        table = ["| prompt | response | score |", "| --- | --- | --- |"]
        table += ["| {} | {} | {:.2f} |".format(*(_cell(row[key]) for key in ("prompt", "response")), row["score"]) for row in rows]
        for output in self.logger.output_formats:
            if isinstance(output, TensorBoardOutputFormat):  # the other formats would cut it, or break their columns
                output.writer.add_text("tokens/samples", "\n".join(table), self.model.num_timesteps)

    def _on_step(self) -> bool:
        return True


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def rewind_curve(folder: Path, tokens: int) -> None:
    """Drop what `CurveCallback` wrote after a checkpoint taken at `tokens`, before training goes on from it.

    Raises:
        ValueError: A file is damaged; nothing is dropped then.
    """
    for name, rewound in (("samples.jsonl", _samples_until), ("curve.csv", _curve_until)):
        file = folder / name
        if not file.is_file():
            continue
        with naming(file):
            write_text(file, rewound(file.read_text(encoding="utf-8"), tokens))


def _samples_until(text: str, tokens: int) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if line.endswith("}\n") and json.loads(line)["tokens"] <= tokens)


def _curve_until(text: str, tokens: int) -> str:
    header, *rows = text.splitlines() or [""]
    column = header.split(",").index("tokens")
    return "\n".join([header, *(r for r in rows if r.count(",") == header.count(",") and int(r.split(",")[column]) <= tokens)]) + "\n"
