"""The programs of docs/how-to/clients.md, each where its library is installed; what the main environment has, tests/test_readme.py runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "how-to" / "clients.md").read_text(encoding="utf-8")
SECTIONS = {name: text for name, text in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)}
# module to look for, and what holds after the program
NOT_HERE = {
    "RLlib": ("lz4.frame", "assert result['env_runners']['num_env_steps_sampled'] >= 256"),
    "Tianshou": ("tianshou", "assert result.trainer_result.train_step >= 512 and 0 <= result.trainer_result.best_reward <= 1"),
    "skrl": ("skrl", "assert runner.agent.memory.num_envs == 1 and runner.agent.memory.get_tensor_by_name('log_prob').isfinite().all()"),
    "imitation": ("imitation", "assert cloning.policy.observation_space == envs.observation_space and len(texts) >= 20"),
}


def run(folder, *command):
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_every_library_of_the_table_has_its_program():
    named = re.findall(r"^\| \[(.+?)\]\(#(.+?)\) \|", PAGE, re.MULTILINE)
    assert [name for name, _ in named] == list(SECTIONS)
    assert all(link == name.lower().replace(" ", "-") for name, link in named)
    assert all("```python" in text or "```sh" in text for text in SECTIONS.values())
    assert {name for name, text in SECTIONS.items() if "```python no-run" in text} == set(NOT_HERE)


@pytest.mark.parametrize("name", SECTIONS)
def test_at_most_five_lines_are_special(name):
    programs = re.findall(r"```(?:python(?: no-run)?|yaml)\n(.*?)```", SECTIONS[name], re.DOTALL)
    assert all(1 <= sum("textrl" in line or "Tokens" in line for line in program.splitlines()) <= 5 for program in programs)


@pytest.mark.slow
@pytest.mark.parametrize("name", NOT_HERE)
def test_program(name, tmp_path):
    module, holds = NOT_HERE[name]
    pytest.importorskip(module, reason=f"{name} is not installed here: see docs/how-to/clients.md")
    (program,) = re.findall(r"```python no-run\n(.*?)```", SECTIONS[name], re.DOTALL)
    run(tmp_path, "-c", f"{program}\n{holds}")


@pytest.mark.slow
def test_program_of_rl_zoo(tmp_path):
    pytest.importorskip("rl_zoo3", reason="RL Zoo is not installed here: see docs/how-to/clients.md")
    (settings,), (command,) = (re.findall(rf"```{kind}\n(.*?)```", SECTIONS["RL Zoo"], re.DOTALL) for kind in ("yaml", "sh"))
    (tmp_path / "ppo.yml").write_text(settings)
    run(tmp_path, *command.split()[1:], "--n-timesteps", "256", "--eval-freq", "-1", "--log-folder", "logs")
    (model,) = tmp_path.glob("logs/ppo/*/textrl-Recall-4-v0.zip")
    assert model.stat().st_size > 0
