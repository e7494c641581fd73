"""Progress bars without a thread of their own."""

from __future__ import annotations

from contextlib import closing
from time import monotonic

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from stable_baselines3.common.callbacks import BaseCallback


class Bar:
    """A line with a title, the amounts done and to do, the time spent and the time left, and a note."""

    def __init__(self, title: str, total: int, show: bool = True) -> None:
        # No refresh thread: beside two spinning OpenMP threads on two cores it slowed small models eightfold.
        columns = (
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._progress = Progress(*columns, auto_refresh=False, disable=not show)
        self._task = self._progress.add_task(title, total=total, note="")
        self._drawn = 0.0
        self._progress.start()

    def advance(self, amount: int = 1, note: str | None = None) -> None:
        """Add to what is done, and draw at most five times a second; what is to do is never less than what is done."""
        self._progress.update(self._task, advance=amount)
        task = self._progress.tasks[0]
        if task.total is not None and task.completed > task.total > 0:  # a rollout ends with whole texts, beyond the tokens asked for
            self._progress.update(self._task, total=task.completed)
        if note is not None:
            self._progress.update(self._task, note=note)
        if monotonic() - self._drawn > 0.2:
            self._progress.refresh()
            self._drawn = monotonic()

    def follow(self, part: str, step: int, steps: int, loss: float) -> None:
        """Show step `step` of `steps` of a part of the work; the form that `rewards.fit_preference_model` reports in."""
        self._progress.update(self._task, completed=step, total=steps)
        self.advance(0, f"{part}, loss {loss:.2f}")

    def close(self) -> None:
        """Draw the last state."""
        self._progress.refresh()
        self._progress.stop()


def bar(title: str, total: int, show: bool = True) -> closing[Bar]:
    """Show a bar while the block runs."""
    return closing(Bar(title, total, show))


class TokenProgressBar(BaseCallback):
    """A bar of `num_timesteps`; SB3's own adds `num_envs` a step, although idle rows write nothing."""

    def _on_training_start(self) -> None:
        self.seen = self.model.num_timesteps
        self.bar = Bar(type(self.model).__name__, self.locals["total_timesteps"] - self.seen)

    def _on_step(self) -> bool:
        self.bar.advance(self.model.num_timesteps - self.seen)
        self.seen = self.model.num_timesteps
        return True

    def _on_training_end(self) -> None:
        self.bar.close()
