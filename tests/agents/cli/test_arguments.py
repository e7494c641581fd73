"""One parser reads rewards on every command."""

import io
import json
import sys

import pytest

from agents.cli.arguments import columns_of, reward_of
from agents.cli.main import main
from rewards import PersonalRewardModel, Preference, fit_preference_model, make
from textrl_env import list_rewards, make_task

KNOWN = ", ".join(list_rewards())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of each kind of saved reward model."""
    folder = tmp_path_factory.mktemp("rewards")
    pairs = [Preference("the film", f" was {good} .", f" was {bad} .") for good in ("superb", "moving") for bad in ("dull", "awful")]
    model, _ = fit_preference_model(pairs * 8, tokenizer=make_task("review").tokenizer, trunk=None)
    model.save(folder / "preference")
    PersonalRewardModel(model, {"kids": (model, (0.5, 0.5))}).save(folder / "personal")
    return folder


def test_what_is_read(saved):
    assert reward_of("length") == "length"
    assert reward_of(' {"name": "length", "target": 4}') == {"name": "length", "target": 4}
    for name in ("preference", "personal"):
        assert reward_of(str(saved / name)) == {"name": name, "path": str(saved / name)}
        assert make(**reward_of(str(saved / name)))


def test_a_folder_called_as_a_reward_hides_it_only_with_a_model_inside(tmp_path, monkeypatch, saved):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "length").mkdir()
    assert reward_of("length") == "length"
    (saved / "preference").rename(tmp_path / "vader")
    assert reward_of("vader") == {"name": "preference", "path": "vader"}
    (tmp_path / "vader").rename(saved / "preference")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vadre", f"no reward model is called 'vadre' (did you mean 'vader'?); known: {KNOWN}"),
        ("runs/none", "there is no such folder; pass one with preference.json or groups.json, a name, or a JSON object"),
        (".", "this folder holds no saved reward model; pass one with preference.json or groups.json, a name, or a JSON object"),
        ('{"name" "length"}', "no JSON object (Expecting ':' delimiter: line 1 column 9 (char 8)); write --held-out '{\"name\": ...}'"),
        ('{"name": "lenght"}', f"no reward model is called 'lenght' (did you mean 'length'?); known: {KNOWN}"),
        ('{"target": 3}', f"no reward model is called None; known: {KNOWN}"),
    ],
)
def test_what_is_not(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as refused:
        reward_of(text, "--held-out")
    assert str(refused.value) == f"--held-out {text}: {message}"


@pytest.mark.parametrize("name", ["preference", "personal"])
def test_commands_take_the_folders(saved, name, tmp_path, monkeypatch, capsys):
    folder = str(saved / name)
    monkeypatch.setattr(sys, "stdin", io.StringIO("was superb .\n\n"))
    assert main(["play", "--seed", "0", "--reward", folder]) == 0
    assert "1 text(s), mean score" in capsys.readouterr().out
    (tmp_path / "texts.jsonl").write_text(json.dumps({"prompt": "the film", "response": " was dull ."}))
    assert main(["reward", "score", folder, str(tmp_path / "texts.jsonl")]) == 0
    assert main(["reward", "score", "nope/x", str(tmp_path / "texts.jsonl")]) == 2
    assert "error: REWARD nope/x: there is no such folder" in capsys.readouterr().err


def test_an_ensemble_that_chooses_nothing(tmp_path, capsys):
    assert main(["feedback", "create", str(tmp_path / "s"), "--samples", "x.jsonl", "--ensemble", "vader", "length"]) == 2
    assert "--ensemble chooses nothing with --choose random" in capsys.readouterr().err


def test_names_of_columns():
    assert columns_of("prompt=instruction, chosen=output_1") == {"prompt": "instruction", "chosen": "output_1"} and columns_of(None) is None
    for wrong in ("prompt", "prompt=", "=a", "prompt=a,prompt=b", ""):
        with pytest.raises(ValueError, match="write prompt=instruction,chosen=output_1"):
            columns_of(wrong)
