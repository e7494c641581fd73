"""What the documents say of the project is so."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import FancyBboxPatch

from agents.utils.run_tree import RUN_FILES

ROOT = Path(__file__).resolve().parents[1]


def tracked_texts():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in listed:
        if name.endswith((".py", ".pyi", ".md", ".toml", ".j2", ".txt", ".cff", "Makefile")) and (ROOT / name).is_file():
            yield name, (ROOT / name).read_text(encoding="utf-8")


def test_nobody_is_told_to_install_the_other_project_called_textrl():
    """On the public index `textrl` is somebody else's project; ours is `textrl-env`."""
    old = re.compile(r"\btextrl\\?\[[a-z]|pip install (-\S+ )*['\"]?textrl(?!-env)\b")
    install = "pip " + "install "  # in two words, or this file would be found too
    assert old.search(install + "'textrl" + "[feedback]'") and old.search(install + "textrl") and old.search("textrl" + "[lora]")
    assert not old.search(install + "'textrl-env[feedback]'")
    assert not [(name, match[0]) for name, text in tracked_texts() for match in old.finditer(text)]


@pytest.fixture(scope="module")
def picture():
    if sys.version_info < (3, 11):
        pytest.skip("the script reads TOML with tomllib, which Python 3.10 lacks")
    spec = importlib.util.spec_from_file_location("draw_architecture", ROOT / "docs" / "draw_architecture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_shows_the_contracts(picture):
    rooms = picture.layers()
    assert list(rooms) == ["agents", "rewards", "textrl_env"]
    figure = picture.draw(rooms)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    axes = figure.axes[0]
    labels = {text.get_text(): text for text in axes.texts}
    folders = [name for own in rooms.values() for layer in own for name in layer]
    assert {"agents/", "rewards/", "textrl_env/", *folders} <= set(labels)
    boxes = [patch.get_window_extent() for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    assert len(boxes) == len(folders)
    for text in axes.texts:
        if text.get_text() in folders:  # each name lies within one box
            extent = text.get_window_extent(canvas.get_renderer())
            assert sum(box.x0 <= extent.x0 and extent.x1 <= box.x1 and box.y0 <= extent.y0 and extent.y1 <= box.y1 for box in boxes) == 1


def test_the_picture_is_of_contracts_that_may_change(picture, tmp_path):
    toml = tmp_path / "pyproject.toml"
    toml.write_text(
        '[[tool.importlinter.contracts]]\nid = "rooms"\nlayers = ["a"]\n'
        '[[tool.importlinter.contracts]]\nid = "a"\nlayers = ["x | y", "z"]\n'
    )
    assert picture.layers(toml) == {"a": [["x", "y"], ["z"]]}


@pytest.mark.parametrize("room", ["agents", "rewards", "textrl_env"])
def test_every_folder_has_its_line_in_the_architecture(room):
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.split(f"### {room}/")[1].split("###")[0]
    folders = {path.parent.relative_to(ROOT / room).parts[0] for path in (ROOT / room).rglob("__init__.py") if path.parent != ROOT / room}
    assert folders and not [name for name in folders if f"`{name}/`" not in section]


def test_files_that_the_architecture_names_are_there():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:agents|rewards|textrl_env|docs)/[\w/.]+\.\w+)`", text))
    assert len(named) > 8 and not [name for name in named if not (ROOT / name).is_file()]


def reported_faults():
    """Yield file, function and line of description of every test that is marked as one of a reported fault."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = {
            target.id: node.value for node in tree.body if isinstance(node, ast.Assign) for target in node.targets if hasattr(target, "id")
        }
        for node in ast.walk(tree):
            for mark in getattr(node, "decorator_list", []):
                mark = named.get(getattr(mark, "id", ""), mark)
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.reports":
                    yield path.relative_to(ROOT).as_posix(), node.name, ast.literal_eval(mark.args[0])


def test_the_questions_name_all_reported_faults():
    text = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
    linked = {(file, f"test_{name.replace(' ', '_')}") for name, file in re.findall(r"\[([\w ]+)\]\(\.\./(tests/[\w/]+\.py)\)", text)}
    found = list(reported_faults())
    marked = {(file, name) for file, name, _ in found}
    assert len(marked) > 200 and linked == marked
    assert all(line and "\n" not in line for *_, line in found)


def test_the_files_of_a_run_are_those_of_the_table():
    """The table of docs/outcome.md is that which `textrl train` prints and its report shows."""
    rows = re.findall(r"^\| `(.+?)` \| (.+) \|$", (ROOT / "docs" / "outcome.md").read_text(encoding="utf-8"), re.M)
    assert dict(rows) == RUN_FILES
