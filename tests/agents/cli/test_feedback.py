"""`textrl feedback` from the first item to the last export, as a user types it."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from agents.cli.main import main
from agents.utils.folder_lock import only_process_in
from rewards import read_preferences
from rewards.feedback.encryption import Keys
from rewards.feedback.store import FeedbackStore
from rewards.feedback.study import key_file


def answer_all(folder):
    """Make a study of pairs of two policies' texts, and have three annotators answer, of whom one is careless."""
    for name, word in (("new", "moving"), ("old", "dull")):
        rows = ({"prompt": f"the film {i}", "response": f" was {word} {'so ' * (i % 3)}."} for i in range(40))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = [f"{name}={folder / name}.jsonl" for name in ("new", "old")]
    create = ["feedback", "create", str(folder / "study"), "--samples", *samples, "--pairs", "40", "--overlap", "3", "--choose", "balanced"]
    with redirect_stdout(StringIO()) as out:
        assert main(create) == 0
    assert "40 items added" in " ".join(out.getvalue().split())
    store = FeedbackStore(folder / "study")
    for name in ("ann", "bob", "cem"):
        who = store.enter(name)
        while (shown := store.ask(who)) is not None:
            better = "ab"[shown.item.sources.index("new")]
            wrong = "b" if better == "a" else "a"
            number = int(shown.item.prompt.split()[-1])
            choice = (better if number % 2 else wrong) if name == "cem" else better if number % 10 else wrong
            store.answer(who, shown.ticket, {"choice": choice}, {"reason": "because"})
    store.close()


@pytest.fixture(scope="session")
def answered(made_once):
    return made_once("feedback-study", answer_all)


@pytest.fixture
def study(answered, tmp_path):
    """A copy of an answered study, with its keys beside it."""
    shutil.copytree(answered, tmp_path, dirs_exist_ok=True)
    return tmp_path / "study"


def test_report(study, capsys):
    assert main(["feedback", "report", str(study)]) == 0
    out = capsys.readouterr().out
    facts = json.loads((study / "report.json").read_text())
    assert facts["answers"] >= 120 and facts["items"] == 40 and "Krippendorff's alpha" in out
    assert [s["player"] for s in facts["sources"]] == ["new", "old"] and facts["sources"][0]["low"] > 0
    accuracy = {p["name"]: p["accuracy"] for p in facts["people"]}
    keys = Keys.load(key_file(study))
    assert accuracy[keys.name("ann")] > 0.9 > 0.65 > accuracy[keys.name("cem")]
    page = (study / "report.html").read_text()
    assert "Annotators" in page and f"Beware of {keys.name('cem')}" in page and "<script" not in page


def test_exports_are_read_by_the_rest(study, tmp_path, capsys):
    assert main(["feedback", "export", str(study), "--out", str(tmp_path / "p.jsonl")]) == 0
    pairs = read_preferences(tmp_path / "p.jsonl")
    assert len(pairs) == 120 and {p.annotator for p in pairs} == {Keys.load(key_file(study)).name(n) for n in ("ann", "bob", "cem")}
    assert main(["feedback", "export", str(study), "--consensus", "--out", str(tmp_path / "c.jsonl")]) == 0
    merged = read_preferences(tmp_path / "c.jsonl")
    assert len(merged) == 40 and sum("moving" in p.chosen for p in merged) == 36 and all(p.label > 0.8 for p in merged)
    assert main(["reward", "report", str(tmp_path / "p.jsonl"), "--out", str(tmp_path / "r"), "--test", "0.3"]) == 0
    for form, name in (("answers", "a.jsonl"), ("label-studio", "l.json")):
        assert main(["feedback", "export", str(study), "--format", form, "--out", str(tmp_path / name)]) == 0
        other = tmp_path / f"other-{form}"
        (tmp_path / "one.jsonl").write_text('{"prompt": "p", "responses": ["x", "y"]}\n')
        assert main(["feedback", "create", str(other), "--items", str(tmp_path / "one.jsonl")]) == 0
        capsys.readouterr()
        assert main(["feedback", "import", str(other), str(tmp_path / name)]) == 0
        assert "answers added" in capsys.readouterr().out
        store = FeedbackStore(other)
        assert len([a for a in store.answers() if a.turn == 0]) == 120 and len(store.items()) == 41
        store.close()


def test_keys_and_people_go(study, capsys):
    before = key_file(study).read_text()
    with only_process_in(study):
        assert main(["feedback", "rotate", str(study)]) == 2 and "is in use by process" in capsys.readouterr().err
    assert key_file(study).read_text() == before
    assert main(["feedback", "rotate", str(study)]) == 0 and key_file(study).read_text() != before
    assert main(["feedback", "forget", str(study), "cem"]) == 0 and "deleted" in capsys.readouterr().out
    assert main(["feedback", "forget", str(study), "cem"]) == 2 and "nobody" in capsys.readouterr().err
    store = FeedbackStore(study)
    assert len({a.annotator for a in store.answers()}) == 2
    store.close()
    assert main(["feedback", "log", str(study)]) == 0 and "forget" in capsys.readouterr().out
    key_file(study).write_text(before)
    assert main(["feedback", "report", str(study)]) == 2 and "keys do not fit" in capsys.readouterr().err


def test_a_server_for_others_wants_its_token(study, tmp_path):
    (tmp_path / "log").touch()
    with open(tmp_path / "log", "w") as log:
        command = [sys.executable, "-m", "agents.cli", "feedback", "serve", str(study), "--host", "0.0.0.0", "--port", "0"]
        server = subprocess.Popen(
            command, cwd=Path(__file__).parents[3], stdout=log, stderr=log, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )
    try:
        deadline = time.monotonic() + 60
        while not (found := re.search(r"http://0\.0\.0\.0:(\d+)/\?token=(\S+)", (tmp_path / "log").read_text())):
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        address = f"http://{socket.gethostbyname(socket.gethostname())}:{found[1]}"
        for path in ("/", "/question", "/static/feedback.js", "/?token=x"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(address + path, timeout=30)
            assert refused.value.code == 403 and b"the film" not in refused.value.read()
        with urllib.request.urlopen(f"{address}/?token={found[2]}", timeout=30) as reply:
            assert reply.status == 200 and b"Name or code" in reply.read()
    finally:
        server.kill()
        server.wait()


def test_names_from_elsewhere_become_pseudonyms(study, tmp_path, capsys):
    task = {
        "data": {"prompt": "p", "response_a": "x", "response_b": "y"},
        "annotations": [
            {"completed_by": {"id": 7, "email": "ann@x.org"}, "result": [{"type": "pairwise", "value": {"selected": "right"}}]}
        ],
    }
    (tmp_path / "ls.json").write_text(json.dumps([task]))
    assert main(["feedback", "import", str(study), str(tmp_path / "ls.json")]) == 0
    store = FeedbackStore(study)
    (answer,) = (a for a in store.answers() if a.item.prompt == "p")
    assert answer.value == {"choice": "b"} and answer.annotator == store.keys.name("7")
    store.close()


def test_errors_are_told(tmp_path, capsys):
    def fails(*words):
        assert main(["feedback", *map(str, words)]) == 2
        return capsys.readouterr().err.replace("\n", " ").replace("  ", " ")

    assert "textrl feedback create" in fails("serve", tmp_path / "none")
    assert "nothing to ask about" in fails("create", tmp_path / "s")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "p"\n')
    assert "line 1" in fails("create", tmp_path / "s", "--items", tmp_path / "bad.jsonl")
    (tmp_path / "one.jsonl").write_text('{"prompt": "p", "response": "x"}\n')
    assert "shows 2" in fails("create", tmp_path / "s", "--items", tmp_path / "one.jsonl")
    assert main(["feedback", "create", str(tmp_path / "t"), "--items", str(tmp_path / "one.jsonl"), "--kind", "rating"]) == 0
    assert "no answers yet" in fails("report", tmp_path / "t")
    (tmp_path / "x.json").write_text("{")
    assert "no JSON" in fails("import", tmp_path / "t", tmp_path / "x.json")
