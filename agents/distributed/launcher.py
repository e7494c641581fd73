"""Checks of the program that launched this process: torchrun is supported, `accelerate launch` only as far as it works."""

from __future__ import annotations

import os

_TORCHRUN = "torchrun --nproc-per-node N -m agents.cli train ..."


def check_launcher() -> None:
    """Refuse a launcher whose settings would have no effect.

    Raises:
        ValueError: `accelerate launch` started one process, or asked for an engine that is not torch's.
    """
    for name in ("DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            raise ValueError(f"ACCELERATE_USE_{name}=true: models train on torch's own engines; use {_TORCHRUN}, and shard=True for shards")
    launched = [name for name in ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU") if name in os.environ]
    if launched and not os.environ.get("WORLD_SIZE"):
        raise ValueError(
            f"{launched[0]} is set but WORLD_SIZE is not: `accelerate launch` started a single process, as it does on CPUs whatever "
            f"--num_processes says; use {_TORCHRUN}, or plain `textrl train` for one process"
        )
    if os.environ.get("ACCELERATE_MIXED_PRECISION", "no") not in ("", "no"):
        raise ValueError(
            f"ACCELERATE_MIXED_PRECISION={os.environ['ACCELERATE_MIXED_PRECISION']!r} would have no effect: pass --precision bfloat16, or "
            "policy_kwargs={'precision': 'bfloat16'}"
        )
