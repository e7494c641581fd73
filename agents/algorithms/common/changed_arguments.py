"""Arguments that change when a saved algorithm is loaded: each is used as the constructor would, or refused with the reason."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stable_baselines3.common.vec_env import VecEnv
from torch.optim import Adam

from ...rollouts.text_vec_env import text_env_of

_ATTRIBUTES = {  # where the constructor puts what it takes, if not under the argument's own name
    "beta": "kl_controller", "reference": "reference_source", "stats_window_size": "_stats_window_size", "whiten_advantages": "whiten"
}  # fmt: skip
_FIXED = {
    "policy": "the file says of which class the policy is",
    "_init_setup_model": "what is loaded is always built",
    "group_size": "the environment's task says it",
}
_MISSING = object()


def changed_attributes(made: Any, saved: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of an algorithm that come out otherwise if its constructor gets some arguments anew.

    It is built twice without its policy, of the arguments that were saved, with and without the new ones: so new ones are checked as
    always, and reach whatever the constructor derives of them.

    Args:
        made: Class of the algorithm.
        saved: Attributes in the file.
        given: Arguments that replace saved ones; of `policy_kwargs` and `rollout_buffer_kwargs` only those that they name.

    Raises:
        TypeError: The class takes no such argument.
        ValueError: One is out of range, or does not fit what the file holds.
    """
    for name in given:
        if name in _FIXED:
            raise ValueError(f"load takes no {name}: {_FIXED[name]}")
    arguments = _saved_arguments(made, saved)
    before = _built(made, saved, arguments)
    new = dict(given)
    for name in ("policy_kwargs", "rollout_buffer_kwargs"):
        if name in given:
            new[name] = {**(arguments.get(name) or {}), **(given[name] or {})}
    _check_policy(arguments.get("policy_kwargs") or {}, new.get("policy_kwargs") or {})
    after = _built(made, saved, {**arguments, **new})
    changed = {name: value for name, value in vars(after).items() if not _equal(value, vars(before).get(name, _MISSING))}
    if "rollout_buffer_kwargs" in given:  # a file of another class may lack what the constructor puts there
        changed["rollout_buffer_kwargs"] = after.rollout_buffer_kwargs
    if "reference" in given and (saved.get("reference_source") is None) != (given["reference"] is None):
        held = "holds the reference's weights" if given["reference"] is not None else "names the reference's folder"
        raise ValueError(f"reference={given['reference']!r}: the file {held}, and KL goes on being measured to that one: leave it out")
    if "seed" in given:
        changed |= {"seed": given["seed"], "resume_state": None}  # the generators of the file would go before it
    if "_stats_window_size" in changed:
        changed["ep_info_buffer"] = deque(saved.get("ep_info_buffer") or (), maxlen=changed["_stats_window_size"])
    return changed


def _saved_arguments(made: Any, saved: Mapping[str, Any]) -> dict[str, Any]:
    names = [name for name in made.__signature__.parameters if name not in ("policy", "env", "device", "_init_setup_model")]
    arguments = {name: saved[_ATTRIBUTES.get(name, name)] for name in names if _ATTRIBUTES.get(name, name) in saved}
    buffer = dict(arguments.pop("rollout_buffer_kwargs", None) or {})
    own = _built(made, saved, arguments).rollout_buffer_kwargs  # what the constructor itself puts there
    if "whiten_advantages" in names and "whiten_advantages" in buffer:
        value = buffer.pop("whiten_advantages")  # where the constructor puts none, it is of another class's file
        arguments |= {"whiten_advantages": value} if "whiten_advantages" in own else {}
    return {**arguments, "rollout_buffer_kwargs": {name: value for name, value in buffer.items() if own.get(name, _MISSING) != value}}


def _built(made: Any, saved: Mapping[str, Any], arguments: Mapping[str, Any]) -> Any:
    return made(saved["policy_class"], None, _init_setup_model=False, **arguments)


def _check_policy(saved: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    for name in ("model", "critic", "optimizer_class"):
        if name in new and new[name] != saved.get(name, Adam):
            raise ValueError(f"policy_kwargs: {name}={new[name]!r}: the file holds the weights and the optimizer of another; leave it out")
    if new and _without_scale(new.get("lora")) != _without_scale(saved.get("lora")):
        raise ValueError(f"policy_kwargs: lora={new.get('lora')!r}, the file holds {saved.get('lora')!r}: only lora_alpha can change")


def _without_scale(lora: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if lora is None else {name: value for name, value in lora.items() if name not in ("lora_alpha", "lora_dropout")}


def _equal(one: Any, two: Any) -> bool:
    return one is two or (type(one) is type(two) and bool(one == two))


def check_buffer(given: Mapping[str, Any] | None, apart: Sequence[str]) -> None:
    """Refuse arguments of the buffer that the algorithm has itself, and that its own would replace.

    Raises:
        ValueError: There are some.
    """
    if wrong := [name for name in apart if name in (given or {})]:
        own = "kl_in and kl_estimator" if wrong == ["kl_reward"] else ", ".join(wrong)
        raise ValueError(f"rollout_buffer_kwargs: {', '.join(wrong)} would be replaced by the algorithm's own: pass {own} to the algorithm")


def vocabulary_hash(env: VecEnv) -> str:
    """Return the SHA-256 of what the tokens of an environment mean: the text of each, and which one ends a text."""
    tokenizer = text_env_of(env).core.task.tokenizer
    texts = tokenizer.decode_batch([[token] for token in range(tokenizer.vocab_size)])
    return hashlib.sha256("\0".join([str(tokenizer.eos_token_id), *texts]).encode()).hexdigest()


def check_whole(file: Path) -> None:
    """Check that a checkpoint is a whole ZIP file, whose parts have their checksums.

    Raises:
        ValueError: It is not.
    """
    if not file.is_file():  # SB3 adds ".zip", or says that there is none
        return
    try:
        with zipfile.ZipFile(file) as opened:
            # The tail of half a file may be a whole ZIP file: the one that holds the weights
            damaged = opened.testzip() if "data" in opened.namelist() else "half of it is missing"
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        damaged = str(error)
    if damaged is not None:
        raise ValueError(f"{file} is a damaged checkpoint ({damaged}): restore it from a copy, or delete it to start this training anew")
