"""Logs of a training that goes back to a checkpoint: what was written after it is written again, and must not be there twice."""

from __future__ import annotations

import csv
import io
import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event

from textrl_env.utils.files import new_path, write_text

_STEP = "time/total_timesteps"  # SB3's name


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Name a file that cannot be read, and say what can be done.

    Raises:
        ValueError: The block could not read it.
    """
    try:
        yield
    except (ValueError, KeyError, TypeError, DecodeError) as error:
        raise ValueError(
            f"{file} is empty or damaged ({error}): restore it, or delete it to go on from the checkpoint without its rows until now"
        ) from error


def rewind_logs(folder: Path, tokens: int) -> None:
    """Drop what `log-*` in a folder hold of steps after `tokens`: rows of CSV and JSON, and points of TensorBoard.

    Raises:
        ValueError: A file is damaged.
    """
    for file in folder.glob("log-*/progress.csv"):
        with naming(file):
            header, *rows = csv.reader(io.StringIO(file.read_text(encoding="utf-8"))) if file.stat().st_size else [[]]
            if _STEP in header:
                column = header.index(_STEP)
                kept = [row for row in rows if len(row) == len(header) and float(row[column]) <= tokens]
                out = io.StringIO()
                csv.writer(out, lineterminator="\n").writerows([header, *kept])
                write_text(file, out.getvalue())
    for file in folder.glob("log-*/progress.json"):
        with naming(file):
            lines = [line for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("}\n")]
            write_text(file, "".join(line for line in lines if json.loads(line).get(_STEP, 0) <= tokens))
    for file in folder.glob("log-*/events.out.tfevents.*"):
        with naming(file), new_path(file) as temporary:
            kept_records = [record for record, step in _records(file.read_bytes()) if step <= tokens]
            temporary.write_bytes(b"".join(kept_records))


def _records(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield each whole record of an event file, and its step; a record is its length (8 bytes), a checksum (4), data, a checksum (4)."""
    start = 0
    while start + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, start)
        end = start + 12 + length + 4
        if end > len(data):  # the process was killed as it wrote this
            return
        yield data[start:end], Event.FromString(data[start + 12 : end - 4]).step
        start = end
