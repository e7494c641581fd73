"""The steps in CONTRIBUTING.md, followed to the letter on throw-away examples in a copy of the packages."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"```(?:python|text) (\S+)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.S)


def insert_row(path, table, row):
    """Add the row as the first of a table: a dictionary or tuple that is assigned at the top level."""
    text = path.read_text(encoding="utf-8")
    changed, count = re.subn(rf"^({table}\b[^\n]*? = [({{])", lambda m: f"{m[1]}\n    {row}", text, count=1, flags=re.M)
    assert count == 1, f"{path} has no table {table}"
    path.write_text(changed, encoding="utf-8")


def insert_import(path, line):
    text = path.read_text(encoding="utf-8")
    first = re.search(r"^from \.", text, re.M)
    path.write_text(text[: first.start()] + line + text[first.start() :], encoding="utf-8")


@pytest.mark.slow
def test_each_kind_of_addition_is_one_file_and_one_row(tmp_path):
    for name in ("agents", "rewards", "textrl_env"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    checks, kinds = [], []
    for what, code in BLOCKS:
        kind, _, target = what.partition("=")
        kinds.append(kind)
        if kind == "file":
            assert not (tmp_path / target).exists()
            (tmp_path / target).write_text(code, encoding="utf-8")
        elif kind == "row":
            file, table = target.split(":")
            assert len(code.strip().splitlines()) == 1
            insert_row(tmp_path / file, table, code.strip())
        elif kind == "import":
            insert_import(tmp_path / target, code)
        else:
            assert what == "check"
            checks.append(code)
    assert [kinds.count(kind) for kind in ("file", "row", "check")] == [4, 4, 4]
    script = tmp_path / "follow.py"
    script.write_text("\n\n".join(checks) + "\n\nprint(textrl_env.__file__)\n", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(str(tmp_path))
