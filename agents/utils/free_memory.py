"""How much memory is free."""

from __future__ import annotations

from pathlib import Path

import torch


def available(device: torch.device, root: Path = Path("/")) -> int | None:
    """Return the bytes that a device can still give; None where that is not known (macOS, Windows).

    On a CPU that is the lesser of what Linux calls available and what the control groups (containers) leave of their limits.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    table = root / "proc/meminfo"
    if device.type != "cpu" or not table.is_file():
        return None
    known = dict(line.split(":") for line in table.read_text().splitlines() if ":" in line)
    rooms = [int(known["MemAvailable"].split()[0]) * 1024] if "MemAvailable" in known else []
    return min(rooms + _group_rooms(root), default=None)


def _group_rooms(root: Path) -> list[int]:
    """Return what each control group (v2) above this process has left."""
    own = root / "proc/self/cgroup"
    named = [line[3:] for line in own.read_text().splitlines() if line.startswith("0::")] if own.is_file() else []
    rooms = []
    top = root / "sys/fs/cgroup"
    folder = top / named[0].lstrip("/") if named else top
    for group in (folder, *folder.parents):
        limit = group / "memory.max"
        if limit.is_file() and (text := limit.read_text().strip()) != "max":
            used = int((group / "memory.current").read_text())
            cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines()).get("inactive_file", "0")
            rooms.append(int(text) - used + int(cached))
        if group == top:
            break
    return rooms
