"""A checkpoint names `agents.TextPPO` and not the file that holds it: files can move, and old checkpoints load."""

import base64
import dataclasses
import functools
import json
import pickletools
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from agents import GRPO, NLPO, RLOO, AdaptiveKLController, ReinforcePlusPlus, TextA2C, TextMaskablePPO, TextPPO, TextTRPO
from agents.algorithms.maskable_ppo import TextMaskablePPO as SamePPO

from ..conftest import LLAMA

ROOT = Path(__file__).resolve().parents[3]
OLD = Path(__file__).with_name("data") / "ppo_2026_11.zip"  # written right after the packages got their sub-packages


def modules_named(path):
    """Return the modules of ours that the pickles in a checkpoint of Stable-Baselines3 name."""
    with zipfile.ZipFile(path) as file:
        data = json.loads(file.read("data"))
    pickles = [value[":serialized:"] for value in data.values() if isinstance(value, dict) and ":serialized:" in value]
    assert pickles
    names = set()
    for text in pickles:
        for _, argument, _ in pickletools.genops(base64.b64decode(text)):
            if isinstance(argument, str):  # a module's name is a string of its own, or the first word of GLOBAL's argument
                names.add(argument.split(" ")[0])
    return {name for name in names if name.split(".")[0] in ("agents", "rewards", "textrl_env")}


def saved(make_env, path, algorithm, **settings):
    policy = "MaskableTransformerPolicy" if algorithm is TextMaskablePPO else "TransformerPolicy"
    model = algorithm(policy, make_env(), policy_kwargs={"model": LLAMA}, n_episodes=6, seed=0, **settings)
    model.learn(1)
    model.save(path)
    return path


def test_exported_classes_say_where_they_are_exported():
    assert SamePPO is TextMaskablePPO
    assert {cls.__module__ for cls in (TextPPO, RLOO, TextMaskablePPO, AdaptiveKLController)} == {"agents"}


@pytest.mark.parametrize("algorithm", [TextPPO, TextA2C, TextTRPO, TextMaskablePPO, NLPO, RLOO, GRPO, ReinforcePlusPlus])
def test_checkpoints_name_the_package_alone(make_env, task, tmp_path, algorithm):
    settings = {} if algorithm is TextA2C else {"batch_size": 6}
    grouped = dataclasses.replace(task, group_size=2 if algorithm in (RLOO, GRPO) else 1)
    env = functools.partial(make_env, task=grouped)
    path = saved(env, tmp_path / "model.zip", algorithm, beta={"target": 3.0}, **settings)
    assert modules_named(path) == {"agents"}


LOAD = """
import sys, numpy as np
sys.path.insert(0, {tree!r})
from agents import TextPPO
import agents
assert agents.__file__.startswith({tree!r}), agents.__file__
model = TextPPO.load({path!r}, device="cpu")
print(float(model.kl_controller.beta), sum(float(p.detach().double().sum()) for p in model.policy.parameters()), model.num_timesteps)
"""


def test_an_old_checkpoint_loads_after_files_have_moved(tmp_path):
    """The file was saved by an earlier commit; here, two files that held its classes get other names first."""
    for name in ("agents", "rewards", "textrl_env"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    moved = {"agents/rollouts/kl_controller.py": "kl_coefficient", "agents/rollouts/reward_scaling.py": "scaling"}
    for old, new in moved.items():
        path = tmp_path / old
        path.rename(path.with_name(f"{new}.py"))
        for file in [*(tmp_path / "agents").rglob("*.py"), *(tmp_path / "agents").rglob("*.pyi")]:
            text = file.read_text(encoding="utf-8")
            if path.stem in text:
                file.write_text(text.replace(f".{path.stem} import", f".{new} import"), encoding="utf-8")
    assert not (tmp_path / "agents/rollouts/kl_controller.py").exists()
    told = []
    for tree in (ROOT, tmp_path):
        code = LOAD.format(tree=str(tree), path=str(OLD))
        done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        told.append([float(word) for word in done.stdout.split()])
    expected = json.loads(OLD.with_suffix(".json").read_text(encoding="utf-8"))
    for beta, total, steps in told:
        assert (beta, steps) == (expected["beta"], expected["num_timesteps"])
        np.testing.assert_allclose(total, expected["sum_of_parameters"], rtol=1e-12)
