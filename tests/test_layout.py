"""The layout's limits: how deep imports go, and how large folders, files and classes may grow."""

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {"agents": 11, "rewards": 5, "textrl_env": 7}  # levels of folders that import from each other
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def levels(edges):
    """Return the number of nodes on the longest path."""

    def depth(node, above=()):
        assert node not in above, f"a circle: {' -> '.join((*above, node))}"
        return 1 + max((depth(below, (*above, node)) for below in edges.get(node, ())), default=0)

    return max(map(depth, edges), default=0)


def test_levels_of_a_small_graph():
    assert levels({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == 3
    with pytest.raises(AssertionError, match="a circle: a -> b -> a"):
        levels({"a": {"b"}, "b": {"a"}})


@pytest.mark.parametrize(("room", "most"), ROOMS.items())
def test_folders_import_from_few_levels(room, most):
    grimp = pytest.importorskip("grimp", reason="grimp comes with import-linter: pip install 'textrl-env[dev]'")
    graph = grimp.build_graph(room, exclude_type_checking_imports=True, cache_dir=None)
    edges = {}
    for module in graph.modules:
        for other in graph.find_modules_directly_imported_by(module):
            a, b = (".".join(name.split(".")[:2]) for name in (module, other))
            if a != b:
                edges.setdefault(a, set()).add(b)
    assert 1 < levels(edges) <= most


def test_no_folder_holds_more_than_sixteen_modules():
    count = Counter(path.parent.relative_to(ROOT) for path in FILES if path.name != "__init__.py")
    assert sum(count.values()) > 200
    assert not {str(folder): number for folder, number in count.items() if number > 16}


def test_no_file_is_longer_than_400_lines_and_no_class_has_more_than_25_methods():
    long, large = {}, {}
    for path in FILES:
        source = path.read_text(encoding="utf-8")
        if source.count("\n") > 400:
            long[str(path.relative_to(ROOT))] = source.count("\n")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                methods = sum(isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) for child in node.body)
                if methods > 25:
                    large[node.name] = methods
    assert not long and not large
