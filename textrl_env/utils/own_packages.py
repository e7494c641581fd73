"""Loading what ships beside this package, and saying so if another project's package stands in its place."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import distributions, packages_distributions
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

_PACKAGES = MappingProxyType({"rewards": "make", "agents": "TextPPO"})  # each with a name that ours exports


def load(entry: str) -> Any:
    """Return what an entry such as `"rewards.rules.text_rules:LengthReward"` names.

    Raises:
        ImportError: The module cannot be imported, or `rewards` or `agents` is another project's package; openai-agents has one too.
    """
    module_name, attribute = entry.split(":", 1)
    package = module_name.split(".")[0]
    if package in _PACKAGES:
        module = import_module(package)
        _check_is_ours(module, _PACKAGES[package] in getattr(module, "__all__", ()))
    module = import_module(module_name)
    if package in _PACKAGES:
        _check_is_ours(module)
    return getattr(module, attribute)


def _check_is_ours(module: ModuleType, has_our_names: bool = True) -> None:
    folder = Path(__file__).resolve().parents[2]
    file = Path(module.__file__ or "?").resolve()
    package = module.__name__.split(".")[0]
    if folder not in file.parents:
        fault = f"was imported from {file}, not from beside textrl_env in {folder}"
    elif not has_our_names:
        fault = f"in {file} was overwritten"
    else:
        return
    others = ", ".join(sorted(set(packages_distributions().get(package, ())) - {"textrl-env"}))
    fix = "use a clean virtual environment, and `pip install textrl-env` in it"
    if any(distributions(name="textrl")):
        fix += ", not textrl, which is another project"
    raise ImportError(f"'{package}' {fault}: another package of that name is installed{others and f' by {others}'}; {fix}")
