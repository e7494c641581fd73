"""Checkpoints name classes by `agents`, which stays, and never by a file, which may move."""

import base64
import io
import json
import os
import pickletools
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import agents
import textrl_env
from agents import GRPO, NLPO, RLOO, Linear, ReinforcePlusPlus, TextA2C, TextMaskablePPO, TextPPO, TextTRPO
from tests.slow_cases import slow_where
from textrl_env import IntegerTokenizer, Prompt, TextGenerationVecEnv, TextTask

from ..conftest import LLAMA

ROOT = Path(__file__).resolve().parents[3]
OLD = Path(__file__).parent / "data" / "text_ppo.zip"
LOG_PROBS = [-0.8461254835128784, -2.478036880493164]
PACKAGES = ("agents", "rewards", "textrl_env")


def globals_of(data):
    """Return the full name of everything that unpickling would import."""
    pushed, memo, names = [], [], set()
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "GLOBAL":
            names.add(argument.replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            names.add(".".join(pushed[-2:]))
        if opcode.name == "MEMOIZE":
            memo.append(pushed[-1])
        elif opcode.name in ("BINGET", "LONG_BINGET"):
            pushed.append(memo[argument] if argument < len(memo) else None)
        else:
            pushed.append(argument if isinstance(argument, str) else None)
    return names


def pickles_of(path):
    """Yield every pickle in a checkpoint: SB3 stores them in base64 in a JSON file, torch in zip files of its own."""
    with zipfile.ZipFile(path) as archive:
        for entry in json.loads(archive.read("data")).values():
            if isinstance(entry, dict) and ":serialized:" in entry:
                yield base64.b64decode(entry[":serialized:"])
        for name in archive.namelist():
            if name.endswith(".pth"):
                with zipfile.ZipFile(io.BytesIO(archive.read(name))) as tensors:
                    yield from (tensors.read(part) for part in tensors.namelist() if part.endswith("data.pkl"))


def test_names_are_collected():
    import pickle

    from agents.training.callbacks import CurveCallback

    one = pickle.dumps([CurveCallback, [IntegerTokenizer, CurveCallback]], protocol=5)
    assert globals_of(one) == {"agents.training.callbacks.CurveCallback", f"{IntegerTokenizer.__module__}.IntegerTokenizer"}
    two = pickle.dumps([CurveCallback, agents.training.callbacks.rewind_curve], protocol=5)  # the second's module is in the memo
    assert globals_of(two) == {"agents.training.callbacks.CurveCallback", "agents.training.callbacks.rewind_curve"}
    assert globals_of(pickle.dumps(CurveCallback, protocol=0)) == {"agents.training.callbacks.CurveCallback"}


SETTINGS = {"n_episodes": 8, "learning_rate": Linear(1e-3), "seed": 0, "rollout_buffer_kwargs": {"norm_reward": True}}
BETAS = {"adaptive": {"beta": 0.1, "target": 1.0}, "fixed": 0.1, "schedule": Linear(0.1)}


ALGORITHMS = [
    (TextPPO, "adaptive"), (TextPPO, "fixed"), (RLOO, "schedule"), (TextMaskablePPO, "adaptive"), (NLPO, "fixed"), (GRPO, "fixed"),
    (ReinforcePlusPlus, "fixed"), (TextA2C, "fixed"), (TextTRPO, "fixed"),
]  # fmt: skip
LATER = ((TextPPO, "fixed"), (GRPO, "fixed"))  # PPO is there with another beta, and RLOO is GRPO's class


@pytest.mark.parametrize(("algorithm", "beta"), slow_where(lambda *case: case in LATER, ALGORITHMS))
def test_no_checkpoint_names_a_file(make_env, tmp_path, algorithm, beta):
    policy = "MaskableTransformerPolicy" if algorithm is TextMaskablePPO else "TransformerPolicy"
    env = make_env(group_size=4 if algorithm in (RLOO, GRPO) else 1)
    model = algorithm(policy, env, beta=BETAS[beta], policy_kwargs={"model": LLAMA}, **SETTINGS)
    model.learn(1)
    model.save(tmp_path / "model.zip")
    names = set().union(*map(globals_of, pickles_of(tmp_path / "model.zip")))
    own = {name for name in names if name.split(".")[0] in PACKAGES}
    assert {f"agents.{policy}", "agents.ScoreScale", "agents.Linear"} <= own
    assert own <= {f"agents.{name}" for name in agents.__all__} | {"textrl_env.TokenSpace"}
    assert "TokenSpace" in textrl_env.__all__
    loaded = algorithm.load(tmp_path / "model.zip", env=env)
    assert all(torch.equal(a, b) for a, b in zip(model.policy.parameters(), loaded.policy.parameters(), strict=True))


def test_a_checkpoint_from_before_a_move_loads():
    """The file was written at commit 276d5bb, after 3 rollouts of 8 texts; the numbers are those of the model that was saved."""
    task = TextTask(IntegerTokenizer(8, 0), [Prompt("1 2 3"), Prompt("4")], max_new_tokens=5)
    env = TextGenerationVecEnv(4, task=task, reward=lambda completions: [float(len(c)) for c in completions])
    model = TextPPO.load(OLD, env=env, device="cpu")
    obs = {
        "prompt": torch.tensor([[1, 2, 3], [4, -1, -1]]),  # (2, P)
        "response": torch.tensor([[5, 6, -1, -1, -1], [7, -1, -1, -1, -1]]),  # (2, T)
    }
    with torch.no_grad():
        values, log_probs, _ = model.policy.evaluate_actions(obs, torch.tensor([2, 0]))
        reference = model.reference(input_ids=torch.tensor([[1, 2, 3, 5, 6]])).logits[0, -1].log_softmax(-1)[2]
    assert values.flatten().tolist() == pytest.approx([1.2540080547332764, 0.1790601909160614], abs=1e-6)
    assert log_probs.tolist() == pytest.approx(LOG_PROBS, abs=1e-6)
    assert reference.item() == pytest.approx(-1.4988548755645752, abs=1e-6)
    assert (model.kl_controller.beta, model.kl_controller.target) == (0.10243593749999999, 0.01)
    assert vars(model.score_scale) == {
        "norm_reward": True, "clip_reward": None, "count": 24, "mean": 7.916666666666667, "squares": 259.8333333333333,
    }  # fmt: skip
    assert (model.num_rollouts, model.num_texts, model.num_timesteps) == (3, 24, 103)
    model.learn(1, reset_num_timesteps=False)
    assert model.num_rollouts == 4


MOVED = ("rollouts/kl_controller", "rollouts/reward_scaling", "rollouts/rollout_buffer", "policies/transformer_policy")
LOAD = """
import sys
import torch
from agents import TextPPO
policy = TextPPO.load(sys.argv[1], device="cpu").policy
obs = {"prompt": torch.tensor([[1, 2, 3], [4, -1, -1]]), "response": torch.tensor([[5, 6, -1, -1, -1], [7, -1, -1, -1, -1]])}
print(*policy.evaluate_actions(obs, torch.tensor([2, 0]))[1].tolist())
"""


@pytest.mark.slow
def test_it_loads_after_the_files_of_its_classes_have_moved(tmp_path):
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    sources = [path for kind in ("*.py", "*.pyi") for path in (tmp_path / "agents").rglob(kind)]
    for moved in MOVED:
        stem = Path(moved).name
        for path in sources:
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace(f"{stem} import", f"moved_{stem} import"), encoding="utf-8")
    for moved in MOVED:
        path = tmp_path / "agents" / f"{moved}.py"
        path.rename(path.with_name(f"moved_{path.name}"))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", LOAD, str(OLD)], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [float(number) for number in done.stdout.split()] == pytest.approx(LOG_PROBS, abs=1e-6)
