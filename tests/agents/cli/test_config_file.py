"""`--config FILE`: what is wrong is one line, and what is right is what the file says."""

import dataclasses
from pathlib import Path
from pkgutil import resolve_name

import pytest
import yaml

from agents.cli.main import COMMANDS, main, resolve
from agents.cli.train_flags import NAMES, Train
from textrl_env.utils.files import plain

KINDS = {command: resolve_name(f"agents.{flags}") for command, (flags, *_) in COMMANDS.items()}
EVERY = ", ".join(sorted(field.name for field in dataclasses.fields(Train)))


@pytest.mark.parametrize(
    ("command", "content", "line"),
    [
        ("train", "algo: nope", f"algo: 'nope' is not one of {', '.join(NAMES)}"),
        ("train", "algo: rlo", f"algo: 'rlo' is not one of {', '.join(NAMES)} (did you mean 'rloo'?)"),
        ("train", "corpus: data.txt", "corpus: 'data.txt' is not a list, each entry a path, such as [data.txt]"),
        ("train", "corpus: [1]", "corpus: [1] is not a list, each entry a path"),
        ("train", "stop_at_alarm: 'no'", "stop_at_alarm: 'no' is not true or false"),
        ("train", "stop_at_alarm: 1", "stop_at_alarm: 1 is not true or false"),
        ("train", "total_tokens: abc", "total_tokens: 'abc' is not a whole number of at least 1 or null"),
        ("train", "total_tokens: '5'", "total_tokens: '5' is not a whole number of at least 1 or null"),
        ("train", "seed: true", "seed: True is not a whole number from 0 to 4294967295"),
        ("train", "seed:", "seed: None is not a whole number from 0 to 4294967295"),
        ("train", "learning_rate: fast", "learning_rate: 'fast' is not a number above 0 or null"),
        ("train", "reward: {name: length}", "reward: {'name': 'length'} is not text"),
        ("train", "out: 3", "out: 3 is not a path or null"),
        ("train", "total-tokens: 3", f"unknown settings total-tokens (did you mean 'total_tokens'?); known: {EVERY}"),
        ("train", "", "expected settings as 'name: value', one a line"),
        ("train", "a: [", "no YAML: while parsing a flow node expected the node content, but found '<stream end>' in "
         '"<unicode string>", line 1, column 5: a: [ ^'),
        ("loop", "annotators: people", "annotators: 'people' is not a list, each entry text, such as [people]"),
        ("bench", "limit: soon", "limit: 'soon' is not a number above 0"),
        ("feedback create", "scrub: yes please", "scrub: 'yes please' is not true or false"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_line(tmp_path, capsys, command, content, line):
    file = tmp_path / "run.yaml"
    file.write_text(content)
    assert main([*command.split(), "--config", str(file)]) == 2
    assert capsys.readouterr().err == f"error: --config {file}: {line}\n"


def test_no_file(tmp_path, capsys):
    assert main(["train", "--config", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: --config {tmp_path}: no such file\n"
    (tmp_path / "latin.yaml").write_bytes(b"model: caf\xe9")
    assert main(["train", "--config", str(tmp_path / "latin.yaml")]) == 2
    assert "latin.yaml: no YAML: 'utf-8' codec" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "value"), [("1e-3", 0.001), ("1E3", 1000.0), ("2", 2.0), ("0.5", 0.5), ("'3e-4'", 0.0003)])
def test_numbers_as_people_write_them(tmp_path, text, value):
    (tmp_path / "run.yaml").write_text(f"learning_rate: {text}\ntemperature: {text}\nmodel: '1e-3'\n")
    config = resolve(Train, ["--config", str(tmp_path / "run.yaml")])
    assert (config.learning_rate, config.temperature, config.model) == (value, value, "1e-3") and type(config.temperature) is float


def test_flags_come_after_the_file(tmp_path):
    (tmp_path / "run.yaml").write_text("seed: 3\ncorpus: [a.txt, b.txt]\nout: runs/x\nbatch_size: null\nalgo: grpo\n")
    config = resolve(Train, ["--seed", "4", "--config", str(tmp_path / "run.yaml"), "--top-k", "5"])
    assert config == Train(algo="grpo", corpus=(Path("a.txt"), Path("b.txt")), out=Path("runs/x"), seed=4, top_k=5)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_of_every_command(tmp_path, command):
    """The defaults as a file give the defaults; a mapping, which no setting is, is refused by name."""
    kind, file = KINDS[command], tmp_path / "run.yaml"
    defaults = plain(dataclasses.asdict(kind()))
    file.write_text(yaml.safe_dump(defaults))
    assert resolve(kind, ["--config", str(file)]) == kind()
    for name in defaults:
        file.write_text(yaml.safe_dump({name: {"a": 1}}))
        with pytest.raises(ValueError, match=rf"run\.yaml: {name}: {{'a': 1}} is not "):
            resolve(kind, ["--config", str(file)])
