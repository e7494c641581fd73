"""How much memory is free."""

from __future__ import annotations

from pathlib import Path

import torch


def available(device: torch.device, root: Path = Path("/"), beside: int = 1) -> int | None:
    """Return the bytes that a device can still give; None where that is not known (macOS, Windows).

    On a CPU that is the least of what Linux calls available, what the control groups (containers) leave of their limits, and what is left
    of the limits of this process (`ulimit -v`, `ulimit -d`).

    Args:
        device: The device.
        root: Of the file system.
        beside: Processes that share the machine's memory, each of which takes as much.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    table = root / "proc/meminfo"
    if device.type != "cpu" or not table.is_file():
        return None
    known = dict(line.split(":") for line in table.read_text().splitlines() if ":" in line)
    rooms = [int(known["MemAvailable"].split()[0]) * 1024] if "MemAvailable" in known else []
    shared = [room // beside for room in rooms + _group_rooms(root)]
    return min(shared + _own_rooms(root), default=None)


def _own_rooms(root: Path) -> list[int]:
    """Return what the limits of this process leave."""
    import resource  # not on Windows

    status = root / "proc/self/status"
    used = dict(line.split(":") for line in status.read_text().splitlines()) if status.is_file() else {}
    limits = {"VmSize": resource.getrlimit(resource.RLIMIT_AS)[0], "VmData": resource.getrlimit(resource.RLIMIT_DATA)[0]}
    bound = {name: limit for name, limit in limits.items() if limit != resource.RLIM_INFINITY and name in used}
    return [limit - int(used[name].split()[0]) * 1024 for name, limit in bound.items()]


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
