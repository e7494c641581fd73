"""Modules that are named by strings are there: a move that forgets one fails here and not in a user's run."""

import ast
import re
from importlib import import_module
from pathlib import Path

import gymnasium
import pytest

import textrl_env
from agents.algorithms.registry import ALGORITHMS
from agents.cli.main import COMMANDS
from textrl_env.tasks import registry
from textrl_env.tasks.ladders import factories

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("agents", "rewards", "textrl_env")
DOTTED = rf"(?:{'|'.join(ROOMS)})(?:\.\w+)+(?::\w+)?"


def strings_in_code():
    """Return every constant string of the product and the examples that names a module, or says how to run one, by file."""
    named = {}
    for path in sorted(path for folder in (*ROOMS, "examples") for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                whole = re.findall(rf"^{DOTTED}$", node.value)
                for name in whole or re.findall(rf"python -m ({DOTTED})", node.value):
                    named.setdefault(name, path.relative_to(ROOT))
    return named


def strings_in_project():
    """Return what pyproject.toml names: the console script, warnings, packages with data, contracts."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return {name: "pyproject.toml" for name in re.findall(rf'(?<=[":])({DOTTED})(?=["])', text)}


def find(name):
    """Import `module:attribute`, `module` or `module.attribute`, and return it."""
    module, _, attribute = name.partition(":")
    if not attribute:
        try:
            return import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
        module, _, attribute = module.rpartition(".")
    return getattr(import_module(module), attribute)


def test_the_walk_finds_what_is_known_to_be_named():
    code, project = strings_in_code(), strings_in_project()
    assert {
        "rewards.rules.text_rules:VaderReward",  # a reward
        "textrl_env.tasks.review.task:review_task",  # a task
        "textrl_env.envs.env:TextGenerationEnv",  # an entry point of Gymnasium
        "agents.benchmark.run_job",  # what processes load first
        "agents.benchmark.performance.speed_contenders",  # run with -m
        "agents.benchmark.studies.exact_tasks",  # said to be run with -m
    } <= set(code)
    assert {"textrl_env.__main__:main", "textrl_env.reward_warnings.RewardWarning", "agents.reports", "agents.benchmark.studies"} <= set(
        project
    )
    with pytest.raises(ModuleNotFoundError):
        find("agents.no_such.module")
    with pytest.raises(AttributeError):
        find("agents.cli:no_such_name")


@pytest.mark.parametrize("name", sorted({**strings_in_code(), **strings_in_project()}))
def test_what_a_string_names_is_there(name):
    try:
        find(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ROOMS:
            raise
        pytest.skip(f"{name} needs {error.name}")


def test_tables_whose_strings_are_put_together_name_what_is_there():
    paths = [path for path, _ in factories().values()] + [path for path, *_ in registry._TABLE.values()]
    assert len(paths) > 20
    for path in paths:
        assert callable(find(path))
    for algorithm in ALGORITHMS.values():
        assert algorithm.made.__name__ == algorithm.name


def test_commands_have_their_configuration_and_function():
    for flags, function, _ in COMMANDS.values():
        assert callable(find(f"agents.{flags}")) and callable(find(f"agents.{function}"))


def test_environments_have_their_entry_points():
    assert textrl_env
    specs = [spec for spec in gymnasium.registry.values() if spec.id.startswith("textrl/")]
    assert len(specs) > 20
    for path in {path for spec in specs for path in (spec.entry_point, spec.vector_entry_point)}:
        assert callable(find(path))


def test_names_that_packages_load_lazily_are_there():
    stubs = [path.parent for room in ROOMS for path in (ROOT / room).rglob("__init__.pyi")]
    assert len(stubs) > 5
    for folder in stubs:
        package = import_module(".".join(folder.relative_to(ROOT).parts))
        for name in package.__all__:
            assert getattr(package, name) is not None


@pytest.mark.parametrize("stub", sorted(str(path.relative_to(ROOT)) for room in ROOMS for path in (ROOT / room).rglob("__init__.pyi")))
def test_no_exported_name_is_that_of_a_file_beside_it(stub):
    """Importing the file would put the module in the name's place: `rewards.preferences.agreement` was a function, or a module."""
    names = re.findall(r"^from \S+ import \w+ as (\w+)$", (ROOT / stub).read_text(encoding="utf-8"), re.M)
    beside = {path.stem for path in (ROOT / stub).parent.iterdir()}
    assert names and not beside & set(names)
