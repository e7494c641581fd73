"""Progress bars without a thread of their own; plain lines where the output is no terminal."""

from __future__ import annotations

from contextlib import closing
from datetime import timedelta
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column
from stable_baselines3.common.callbacks import BaseCallback

_LINES_APART = 10.0  # seconds between two plain lines, and a twentieth of the time that has passed


class Bar:
    """A line with a title, the amounts done and to do, the time spent and the time left, and a note.

    It fits a terminal of 80 columns: the bar itself takes what room the rest leaves.  Where the output is a file or a pipe, there is a
    plain line every ten seconds, fewer as time passes, and one at the end.
    """

    def __init__(self, title: str, total: int, show: bool = True, console: Console | None = None) -> None:
        # No refresh thread: beside two spinning OpenMP threads on two cores it slowed small models eightfold.
        columns = (
            TextColumn("{task.description}"),
            BarColumn(None, table_column=Column(ratio=1)),
            MofNCompleteColumn(separator="/"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        made = Progress(*columns, console=console, auto_refresh=False, expand=True)
        drawn = made.console.is_terminal or made.console.is_jupyter
        made.disable = not (show and drawn)
        self._progress, self._lines = made, show and not drawn
        self._task = self._progress.add_task(title, total=total, note="")
        self._began = self._drawn = monotonic()
        self._progress.start()

    def advance(self, amount: int = 1, note: str | None = None) -> None:
        """Add to what is done, and draw at most five times a second; what is to do is never less than what is done."""
        self._progress.update(self._task, advance=amount)
        task = self._progress.tasks[0]
        if task.total is not None and task.completed > task.total > 0:  # a rollout ends with whole texts, beyond the tokens asked for
            self._progress.update(self._task, total=task.completed)
        if note is not None:
            self._progress.update(self._task, note=note)
        now = monotonic()
        if now - self._drawn > (max(_LINES_APART, (now - self._began) / 20) if self._lines else 0.2):
            self._draw(now)

    def follow(self, part: str, step: int, steps: int, loss: float) -> None:
        """Show step `step` of `steps` of a part of the work; the form that `rewards.fit_preference_model` reports in."""
        self._progress.update(self._task, completed=step, total=steps)
        self.advance(0, f"{part}, loss {loss:.2f}")

    def close(self) -> None:
        """Draw the last state."""
        self._draw(monotonic())
        self._progress.stop()

    def _draw(self, now: float) -> None:
        self._drawn = now
        if not self._lines:
            self._progress.refresh()
            return
        task, spent = self._progress.tasks[0], now - self._began
        share = task.completed / task.total if task.total else 1.0
        parts = [f"{task.completed:,.0f}/{task.total or 0:,.0f}", str(timedelta(seconds=round(spent)))]
        if 0 < share < 1:
            parts.append(f"{timedelta(seconds=round(spent / share - spent))} left")
        told = ", ".join([*parts, *filter(None, [task.fields["note"]])])
        self._progress.console.print(f"{task.description} {told}", markup=False, highlight=False, soft_wrap=True)


def bar(title: str, total: int, show: bool = True) -> closing[Bar]:
    """Show a bar while the block runs."""
    return closing(Bar(title, total, show))


class TokenProgressBar(BaseCallback):
    """A bar of `num_timesteps`, with mean reward, KL and length of the latest rollout's texts.

    SB3's own adds `num_envs` a step, although idle rows write nothing.
    """

    def _on_training_start(self) -> None:
        self.seen = self.model.num_timesteps
        self.bar = Bar(type(self.model).__name__, self.locals["total_timesteps"] - self.seen)

    def _on_step(self) -> bool:
        self.bar.advance(self.model.num_timesteps - self.seen)
        self.seen = self.model.num_timesteps
        return True

    def _on_rollout_end(self) -> None:
        logged = self.logger.name_to_value
        names = {"reward": "objective/score", "KL": "kl/per_sequence", "length": "tokens/length"}
        self.bar.advance(0, " ".join(f"{name} {round(logged[key], 3) + 0.0:.3g}" for name, key in names.items() if key in logged))

    def _on_training_end(self) -> None:
        self.bar.close()
