"""What an import costs, and whose packages are imported."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "stable_baselines3", "scipy", "matplotlib")


def loaded_after(code):
    probe = f"{code}\nimport sys\nprint(' '.join({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.splitlines()[-1].split())


def test_importing_the_environment_loads_numpy_and_gymnasium_only():
    ours = loaded_after("import sys; sys.path.insert(0, '.'); import textrl_env")
    theirs = loaded_after("import sys; sys.path.insert(0, '.'); import gymnasium, numpy")
    assert ours - theirs <= {"textrl_env"} | set(sys.stdlib_module_names)


@pytest.mark.parametrize("reward", ["vader", "length"])
def test_playing_with_a_rule_reward_loads_no_torch(reward):
    play = f"e = gymnasium.make('textrl/Review-v0', reward={reward!r}); e.reset(seed=0); e.step(5); e.step(1)"
    assert not loaded_after(f"import sys; sys.path.insert(0, '.'); import textrl_env, gymnasium; {play}") & set(HEAVY)


@pytest.mark.parametrize("room", ["textrl_env", "rewards", "agents"])
def test_every_folder_of_files_is_a_package(room):
    """setuptools finds packages by their __init__.py: a folder without one would be missing from the wheel."""
    assert not {path.parent for path in (ROOT / room).rglob("*.py")} - {path.parent for path in (ROOT / room).rglob("__init__.py")}


def test_a_stranger_named_rewards_is_refused(tmp_path):
    """Other projects call a package `agents` or `rewards` too; the loader must notice when it got theirs."""
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "__init__.py").write_text("")
    (tmp_path / "rewards" / "rules.py").write_text("class LengthReward: ...")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import textrl_env; textrl_env.make_reward('length')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "not from beside textrl_env" in done.stderr
