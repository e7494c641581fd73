"""Tasks on public corpora, read from local files in the formats that their authors publish, or from a dataset of the hub."""

from .tasks import CORPORA, real_task

__all__ = ["CORPORA", "real_task"]
