"""Every flag of every command and every argument of every algorithm is used as it is, or refused with its name and its limit."""

import math
from collections.abc import Callable
from pkgutil import resolve_name
from typing import Annotated, Literal

import numpy as np
import pytest
from annotated_types import Ge, Interval

from agents import DPO, GRPO, NLPO, RLOO, SFT, Reinforce, TextA2C, TextMaskablePPO, TextPolicyGradient, TextPPO, TextTRPO
from agents.cli.main import COMMANDS, main
from agents.policies.policy_settings import PolicySettings
from agents.training.settings import OfflineTraining, PolicyTraining
from agents.utils.limits import Above0, Count, Share, check, hints_of, wanted
from textrl_env import IntegerTokenizer

from ..conftest import LLAMA

REFUSED = pytest.mark.reports("A value that cannot be, of any flag or argument, is refused before any work, with name, value and limit.")


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (Count, "a whole number of at least 1"), (Above0 | None, "a number above 0 or null"), (Share, "a number from 0 to 1"),
        (Annotated[float, Interval(gt=0, lt=1)], "a number above 0 and below 1"),
        (tuple[Count, ...], "a list, each entry a whole number of at least 1"),
        (Above0 | Callable[[float], float], "a number above 0 or a function"), (Literal["a", "b"], "one of a, b"),
    ],
)  # fmt: skip
def test_what_is_wanted_in_words(hint, words):
    assert wanted(hint) == words


@pytest.mark.parametrize(
    ("value", "hint", "right"),
    [(1, Count, True), (np.int64(3), Count, True), (0, Count, False), (True, Count, False), (2.0, Count, False), ("3", Count, False),
     (np.float32(0.5), Above0, True), (1, Above0, True), (math.nan, Above0, False), (math.inf, Above0, False), (1.0, Share, True),
     (math.nan, Share, False), (None, Annotated[int, Ge(1)] | None, True)],
)  # fmt: skip
def test_what_is_taken(value, hint, right):
    if right:
        assert check("x", value, hint) == value
    else:
        with pytest.raises(ValueError, match=r"^x is not a (whole )?number"):
            check("x", value, hint)


@REFUSED
@pytest.mark.parametrize("command", COMMANDS)
def test_every_number_of_every_command_has_its_limits(command, capsys):
    """What no number can be is refused, by a message that names the flag and the value."""
    kind = resolve_name(f"agents.{COMMANDS[command][0]}")
    for name, hint in hints_of(kind).items():
        if "number" in wanted(hint):
            flag, bad = f"--{name.replace('_', '-')}", "-3" if "whole" in wanted(hint) else "nan"
            assert main([*command.split(), flag, bad]) == 2
            assert f"error: {flag} {bad} is not a " in capsys.readouterr().err


@REFUSED
@pytest.mark.parametrize("kind", [TextPPO, TextMaskablePPO, NLPO, TextA2C, TextTRPO, TextPolicyGradient, RLOO, GRPO, Reinforce])
def test_every_number_of_every_algorithm_has_its_limits(kind, make_env):
    """Each is refused by name, whatever else is right."""
    for name, hint in kind._hints.items():
        if "a number" in wanted(hint) or "a whole number" in wanted(hint):
            bad = -3 if "whole" in wanted(hint) else math.nan
            with pytest.raises(ValueError, match=rf"{name}={bad}|beta={bad}"):
                kind(next(iter(kind.policy_aliases)), make_env(8, group_size=4), **{"policy_kwargs": {"model": LLAMA}, name: bad})


@REFUSED
@pytest.mark.parametrize("kind", [SFT, DPO])
@pytest.mark.parametrize(
    "setting", [{"learning_rate": -1.0}, {"batch_size": 0}, {"weight_decay": math.nan}, {"seed": -1}, {"batch_size": 2.5}]
)
def test_arguments_of_trainers_on_texts(kind, setting):
    (name,) = setting
    with pytest.raises(ValueError, match=f"{name}="):
        kind(LLAMA, IntegerTokenizer(24), **setting)


@REFUSED
def test_steps_of_trainers_on_texts():
    with pytest.raises(ValueError, match="steps=0 is not a whole number of at least 1"):
        SFT(LLAMA, IntegerTokenizer(24)).learn([("1", " 2")], 0)


@REFUSED
@pytest.mark.parametrize(
    "setting",
    [{"temperature": 0.0}, {"temperature": math.inf}, {"temperature": "0.5"}, {"top_k": -1}, {"top_k": 2.5}, {"top_p": 0.0}, {"min_p": 1.5},
     {"min_new_tokens": -1}, {"critic_learning_rate": -0.1}, {"micro_batch_size": -1}, {"no_repeat_ngram": 1.5}, {"compile": 1}],
)  # fmt: skip
def test_settings_of_policies(setting):
    ((name, value),) = setting.items()
    with pytest.raises(ValueError, match=f"^{name}={value!r} is not "):
        PolicySettings(**setting)


@REFUSED
def test_settings_of_trainings_in_python():
    for setting in ({"total_tokens": -5}, {"n_episodes": 0}, {"learning_rate": math.inf}, {"seed": 2**32}, {"batch_size": 1.5}):
        with pytest.raises(ValueError, match=next(iter(setting))):
            PolicyTraining(**setting).check()
    with pytest.raises(ValueError, match="beta=0"):
        OfflineTraining(10, 1e-3, beta=0)
    with pytest.raises(ValueError, match="steers an adaptive beta"):
        PolicyTraining(beta=0.1, kl_target=4).check()


@REFUSED
def test_a_list_in_place_of_a_tuple():
    """A file's list is right, and Python's is not: a run's settings cannot change after they were checked."""
    check("agents", ["ppo"], tuple[str, ...], as_json=True)
    with pytest.raises(ValueError, match=r"agents=\['ppo'\] is not a list, each entry text, written as a tuple in Python: \('ppo',\)"):
        check("agents=['ppo']", ["ppo"], tuple[str, ...])
