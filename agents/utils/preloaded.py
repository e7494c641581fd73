"""What the server of `fresh_processes` imports before it forks: none of it is garbage, so that nobody need look for any in it."""

import gc
from importlib import import_module

gc.disable()
for _name in (
    "agents.benchmark.run_job",
    *(f"agents.algorithms.{name}" for name in ("ppo", "rloo", "a2c", "dpo")),
    "torch._dynamo",  # which the first step of an optimizer imports
):
    import_module(_name)
gc.freeze()
gc.enable()
