"""Tasks on public corpora, read from local files in the formats that their authors publish, or from a dataset of the hub."""

from .tasks import REAL, real_task

__all__ = ["REAL", "real_task"]
