"""What an import costs, and which room may import which."""

import ast
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


def imports_of(path, room):
    """Absolute top-level names that a file imports; relative imports cannot leave a room."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= len(path.relative_to(ROOT / room).parts), f"{path} leaves its room"


@pytest.mark.parametrize(("room", "forbidden"), [("textrl_env", {"rewards", "agents"}), ("rewards", {"agents"})])
def test_arrows_never_point_back(room, forbidden):
    files = sorted((ROOT / room).rglob("*.py"))
    assert len(files) >= 5
    for path in files:
        assert not set(imports_of(path, room)) & forbidden, path


def test_a_stranger_named_rewards_is_refused(tmp_path):
    """Other projects call a package `agents` or `rewards` too; the loader must notice when it got theirs."""
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "__init__.py").write_text("")
    (tmp_path / "rewards" / "rules.py").write_text("class LengthReward: ...")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import textrl_env; textrl_env.make_reward('length')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "not from beside textrl_env" in done.stderr
