"""What an import costs, and whose packages are imported."""

import shutil
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


def fake(folder, package, distribution=None, text=""):
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text(text)
    if distribution:
        info = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "top_level.txt").write_text(f"{package}\n")


def fault_of_the_command(*path):
    """Run `textrl` as its console script does, with folders at the front of the path, and return its last line."""
    code = f"import sys; sys.path[:0] = {[*map(str, path)]!r}; from textrl_env.__main__ import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=path[0])
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


def test_the_command_names_a_strangers_agents(tmp_path):
    fake(tmp_path, "agents", "openai-agents", "__all__ = ['Agent']")
    fake(tmp_path, "textrl", "textrl")
    fault = fault_of_the_command(tmp_path, ROOT)
    assert f"'agents' was imported from {tmp_path}" in fault
    assert "another package of that name is installed by openai-agents" in fault
    assert fault.endswith("use a clean virtual environment, and `pip install textrl-env` in it, not textrl, which is another project")


def test_the_command_names_a_strangers_agents_in_the_same_folder(tmp_path):
    """Two wheels with one package leave one folder with the files of both."""
    fake(tmp_path, "agents", text="__all__ = ['Agent']")
    (tmp_path / "agents" / "cli").mkdir()
    (tmp_path / "agents" / "cli" / "__init__.py").write_text("def main(): return 0")
    shutil.copytree(ROOT / "textrl_env", tmp_path / "textrl_env", ignore=shutil.ignore_patterns("__pycache__"))
    fault = fault_of_the_command(tmp_path)
    assert f"'agents' in {tmp_path / 'agents' / '__init__.py'} was overwritten: another package of that name is installed" in fault


def test_the_command_starts():
    done = subprocess.run([sys.executable, "-m", "textrl_env", "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "textrl" in done.stdout
