import gc
import os

import pytest
from filelock import FileLock

gc.disable()  # until everything is imported, see `pytest_collection_finish`
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models, and one worker a core: more threads only spin
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a model that is not there is looked for on the hub, with 20 s of retries without a network


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Return a function that has `make(folder)` called once for all workers of pytest-xdist, and returns the folder."""
    parent = tmp_path_factory.getbasetemp()
    parent = parent.parent if "PYTEST_XDIST_WORKER" in os.environ else parent

    def made(name, make):
        folder = parent / name
        with FileLock(f"{folder}.lock"):
            if not (folder / "made").exists():
                folder.mkdir(exist_ok=True)
                make(folder)
                (folder / "made").touch()
        return folder

    return made


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if mark := item.get_closest_marker("reports"):
            item.user_properties.append(("report", mark.args[0]))  # a marker without its line of description fails here


def pytest_collection_finish() -> None:
    """Have collections of garbage leave out what is imported by now: each training asks for one, and they take a second with it."""
    import hypothesis  # noqa: F401  # asks while it is imported who refers to what, and what is frozen is not told

    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """After `pytest -m reports`, print what each test of a reported fault shows, in a line."""
    if "reports" not in config.option.markexpr:
        return
    outcomes: dict[str, set[str]] = {}
    for outcome in ("passed", "failed", "skipped", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, line in report.user_properties:
                if name == "report":
                    outcomes.setdefault(line, set()).add(outcome)
    terminalreporter.section("faults that were reported, and what holds now")
    for line, seen in sorted(outcomes.items()):
        terminalreporter.write_line(f"{'/'.join(sorted(seen)):8} {line}")
