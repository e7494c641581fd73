"""Models are given the token ids that they were trained on, and paths are paths."""

import shutil

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from agents import DPO, RLOO, SFT, TextPPO, generate
from agents.cli.main import main
from agents.evaluation.policy_texts import make_policy, write_texts
from agents.models.loading import load_lm, save_lm
from rewards import Preference, fit_preference_model
from textrl_env import FileTokenizer, Prompt, TextTask, WordTokenizer, make_reward
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv

from ..conftest import LLAMA

WORDS = [f"w{i}" for i in range(23)]
SAME = pytest.mark.reports(
    "Wherever a model meets a task, the tokenizer in its folder is compared with the task's; the first difference is named."
)
PATHS = pytest.mark.reports("A path that is not there is never looked up on a hub: the message says so, with the nearest name.")


def write_tokenizer(folder, words):
    made = Tokenizer(models.WordLevel({"<eos>": 0, **{word: i + 1 for i, word in enumerate(words)}}, unk_token="<eos>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["<eos>"])
    made.save(str(folder / "tokenizer.json"))


@pytest.fixture
def folders(tmp_path):
    """Models whose tokenizers are: the task's, another one, none."""
    save_lm(load_lm(LLAMA), tmp_path / "none")
    for name, words in {"same": WORDS, "other": [*WORDS[:4], "x", *WORDS[5:]]}.items():
        shutil.copytree(tmp_path / "none", tmp_path / name)
        write_tokenizer(tmp_path / name, words)
    return tmp_path


def task_of(folders, kind):
    tokenizer = WordTokenizer(WORDS) if kind == "words" else FileTokenizer(folders / "same")
    return TextTask(tokenizer, [Prompt("w1 w2"), Prompt("w3")], 5, prompt_order="sequential")


@SAME
@pytest.mark.parametrize("kind", ["words", "file"])
def test_wherever_a_model_meets_a_task(folders, kind):
    task = task_of(folders, kind)
    env, tokenizer, other = TextGenerationVecEnv(4, task=task), task.tokenizer, str(folders / "other")
    pairs = [Preference("w1", " w2", " w3")]
    policy = make_policy(task, folders / "same")

    def made_of(folder):
        yield lambda: make_policy(task, folder)
        yield lambda: TextPPO("TransformerPolicy", env, policy_kwargs={"model": folder})
        yield lambda: RLOO(
            "TransformerPolicy", TextGenerationVecEnv(4, task=task, group_size=4), reference=folder, policy_kwargs={"model": LLAMA}
        )
        yield lambda: SFT(folder, tokenizer)
        yield lambda: DPO(folder, tokenizer)
        yield lambda: DPO(LLAMA, tokenizer, reference=folder)
        yield lambda: write_texts(policy, task, 2, reference=folder)

    for folder in ("same", "none"):
        for make in made_of(str(folders / folder)):
            make()
    for make in made_of(other):
        with pytest.raises(
            ValueError, match=r"(model|reference) .*other has a tokenizer.json of its own, in which id 5 is 'x'; in the task it is 'w4'"
        ):
            make()
    if kind == "file":
        with pytest.raises(ValueError, match=r"trunk .* id 5 is 'x'"):
            fit_preference_model(pairs * 30, tokenizer=tokenizer, trunk=other)


@SAME
def test_a_tokenizer_of_another_size(folders):
    write_tokenizer(folders / "other", [*WORDS, "more"])
    with pytest.raises(ValueError, match="id 24 is 'more'; in the task it is None"):
        make_policy(task_of(folders, "words"), folders / "other")


@SAME
def test_texts_in_tokens_that_are_not_the_policys(folders):
    policy = make_policy(task_of(folders, "file"), folders / "same")
    assert len(generate(policy, FileTokenizer(folders / "same"), ["w1"], 3)) == 1
    with pytest.raises(ValueError, match="id 5 is 'w4'; in the task it is 'x'"):
        generate(policy, FileTokenizer(folders / "other"), ["w1"], 3)
    with pytest.raises(ValueError, match=r"the policy was made for 24 tokens .* the tokenizer has 3"):
        generate(policy, WordTokenizer(["w1", "w2"]), ["w1"], 3)


@PATHS
def test_folders_that_are_not_there(folders, monkeypatch, capsys):
    monkeypatch.chdir(folders)
    for source in ("./saem", folders / "saem", str(folders / "saem")):
        with pytest.raises(FileNotFoundError, match=r"there is no folder .*saem \(did you mean 'same'\?\)"):
            load_lm(source)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_lm({"class": "tests.agents.models.own_models:Bag", "weights": "saem"})
    with pytest.raises(FileNotFoundError, match=r"there is no folder \./saem"):
        make_reward("likelihood", path="./saem")
    with pytest.raises(OSError, match=r"model 'saem': there is no such folder \(did you mean 'same'\?\), and the hub gives none"):
        load_lm("saem")
    assert main(["train", "--model", "./saem", "--out", "run"]) == 2
    assert capsys.readouterr().err.endswith("error: there is no folder ./saem (did you mean 'same'?)\n")


@pytest.mark.reports("Texts longer than a model's context are refused by `sft` and `dpo`, with their number, the first one and the limit.")
def test_texts_that_are_too_long():
    tokenizer = WordTokenizer(WORDS)
    long = " w1" * 64
    with pytest.raises(ValueError, match=r"1 of 2 texts are too long for the model, which reads 64 tokens: ' w2 w1 .*takes 65"):
        SFT(LLAMA, tokenizer).learn([("w2", " w1" * 62), ("w2", long)], 2)
    SFT(LLAMA, tokenizer).learn([("w2", " w1" * 63)], 1)  # the end of text is not read
    with pytest.raises(ValueError, match="1 of 2 texts are too long for the model, which reads 64 tokens"):
        DPO(LLAMA, tokenizer).learn([Preference("w2", " w1", long)], 2)
