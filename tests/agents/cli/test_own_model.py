"""`textrl train --model MODEL --prompts FILE --reward REWARD`: a model, prompts and a reward of one's own."""

import csv
import json
import shutil

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from agents.cli.main import main
from agents.training.trained_run import open_run
from rewards import Preference, write_preferences
from tests.slow_cases import slow_but
from textrl_env import Episode
from textrl_env.prompts.encoding import encode_prompts
from textrl_env.prompts.reader import split_of_text

ENDS = [257, 258]
TEMPLATE = "<s>{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<end>{% endfor %}[assistant] "


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A chat model: tokens are bytes, prompts begin with `<s>`, and both `<end>` and `</s>` end a text."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "chat"
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = LlamaConfig(vocab_size=259, max_position_embeddings=128, initializer_range=0.3, bos_token_id=256, eos_token_id=258, **size)
    lm = LlamaForCausalLM(config)
    lm.generation_config.eos_token_id = ENDS
    lm.save_pretrained(folder)
    made = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(["<s>", "<end>", "</s>"])  # ids 256 to 258
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    made.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<end>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def prompts(tmp_path):
    lines = [f"film {i}" for i in range(30)]
    (tmp_path / "p.txt").write_text("\n".join(lines))
    (tmp_path / "q.csv").write_text("question,answer\n" + "".join(f"{i} is,{i}\n" for i in range(30)))
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps({"prompt": [{"role": "user", "content": line}]}) + "\n" for line in lines))
    return tmp_path


def train(*flags, algo="rloo", tokens=60):
    playing = ["--n-episodes", "4", "--total-tokens", str(tokens)] if algo not in ("sft", "dpo", "ipo", "expert-iteration") else []
    return main(["train", "--algo", algo, *map(str, flags), "--max-new-tokens", "4", *playing])


def logits_of(lm, ids):
    with torch.no_grad():
        return lm(torch.tensor([ids])).logits


@pytest.mark.parametrize("lora", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_was_trained_goes_on_elsewhere(model, prompts, tmp_path, capsys, lora):
    out = tmp_path / "run"
    flags = ["--model", model, "--prompts", prompts / "p.txt", "--reward", "length", "--out", out, "--batch-size", "4"]
    assert train(*flags, *(["--lora", '{"r": 2}'] if lora else [])) == 0
    run = open_run(out)
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(out / "rloo" / "model"), AutoTokenizer.from_pretrained(out / "rloo" / "model")
    ids = list(range(60, 90))
    assert torch.allclose(logits_of(theirs, ids), logits_of(run.policy.lm, ids), atol=1e-5)
    assert not torch.allclose(logits_of(theirs, ids), logits_of(AutoModelForCausalLM.from_pretrained(model), ids), atol=1e-5)
    assert theirs.generation_config.eos_token_id == ENDS == list(run.task.eos_token_ids)
    assert tokenizer("ab").input_ids[0] == 256 and tokenizer.eos_token == "<end>"
    asked = [{"role": "user", "content": "ab"}]
    assert tokenizer.apply_chat_template(asked, tokenize=False) == "<s>[user] ab<end>[assistant] "
    assert {p.text for p in run.task.prompts} == {f"film {i}" for i in range(30) if split_of_text(f"film {i}") == "test"}
    assert run.task.prompt_ids[0][0] == 256 and (run.task.max_new_tokens, run.first) == (4, str(model))
    capsys.readouterr()
    assert main(["evaluate", str(out), "--texts", "6"]) == main(["generate", str(out), "film", "--max-new-tokens", "3"]) == 0
    assert "texts after training" in capsys.readouterr().out
    assert main(["train", "--algo", "sft", "--model", str(out / "rloo" / "model"), "--prompts", str(prompts / "q.csv"), "--columns",
                 "prompt=question", "--references", "answer", "--steps", "2", "--out", str(tmp_path / "on")]) == 0  # fmt: skip


def test_the_run_depends_on_what_is_in_the_files(model, prompts, tmp_path, capsys):
    out, own = tmp_path / "run", tmp_path / "model"
    shutil.copytree(model, own)
    flags = ["--model", own, "--prompts", prompts / "p.txt", "--reward", "length", "--out", out, "--batch-size", "4", "--eval-texts", "0"]
    assert train(*flags) == 0
    first = (out / "rloo" / "policy.zip").read_bytes()
    assert train(*flags) == 0 and (out / "rloo" / "policy.zip").read_bytes() == first  # nothing to do
    assert train(*flags, tokens=120) == 0 and len((out / "rloo" / "curve.csv").read_text().splitlines()) > 5
    settings = yaml.safe_load((out / "config.yaml").read_text())
    assert (settings["prompts"], settings["task"], settings["max_new_tokens"]) == (str(prompts / "p.txt"), None, 4)
    assert main(["train", "--config", str(out / "config.yaml")]) == 0
    capsys.readouterr()
    with (prompts / "p.txt").open("a") as file:
        file.write("\nanother")
    assert train(*flags, tokens=120) == 2
    assert "holds a run with other inputs (task:" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("file", "flags"), [("p.txt", ["--chat"]), ("chat.jsonl", []), ("p.txt", ["--add-bos", "False"])])
def test_chats_and_beginnings(model, prompts, tmp_path, file, flags):
    out = tmp_path / "run"
    assert train("--model", model, "--prompts", prompts / file, "--out", out, "--batch-size", "4", "--stop-strings", "x", "y", *flags) == 0
    task = open_run(out).task
    begins = [int(ids[0] == 256) + int(256 in ids[1:]) for ids in task.prompt_ids]
    assert begins == [0 if "False" in flags else 1] * len(begins) and list(task.stop_strings) == ["x", "y"]
    assert all(p.text.startswith("film" if "False" in flags else "<s>[user] film") for p in task.prompts)


@pytest.mark.parametrize("algo", slow_but(["sft", "expert-iteration"], ["ppo", "sft", "dpo", "ipo", "expert-iteration"]))
def test_other_algorithms_take_the_same_flags(model, prompts, tmp_path, capsys, algo):
    write_preferences(tmp_path / "pairs.jsonl", [Preference(f"film {i}", " good", " bad") for i in range(30)])
    flags = {
        "ppo": ["--batch-size", "4", "--critic", "separate", "--reference", model],
        "sft": ["--references", "answer", "--columns", "prompt=question", "--steps", "2"],
        "expert-iteration": ["--steps", "1"],
    }.get(algo, ["--preferences", tmp_path / "pairs.jsonl", "--steps", "2"])
    file = prompts / ("q.csv" if algo == "sft" else "p.txt")
    out = tmp_path / "run"
    assert train("--model", model, "--prompts", file, "--lora", '{"r": 2}', "--out", out, *flags, algo=algo) == 0
    told = capsys.readouterr().out
    assert "prompts train" in told and ("comparisons are left out: their prompts evaluate" in told) == (algo in ("dpo", "ipo"))
    theirs = AutoModelForCausalLM.from_pretrained(out / algo / "model")
    assert theirs.generation_config.eos_token_id == ENDS and not list((out / algo / "model").glob("adapter*"))
    assert main(["generate", str(out), "film"]) == 0


@pytest.mark.slow
def test_a_student_learns_from_a_larger_teacher(model, prompts, tmp_path, capsys):
    """From the command line: the plan, the outcome by KL to the teacher, more tokens, evaluation, and what is refused."""
    torch.manual_seed(1)
    teacher, out = tmp_path / "teacher", tmp_path / "run"
    shutil.copytree(model, teacher)
    config = LlamaConfig.from_pretrained(model)
    config.update({"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3})
    LlamaForCausalLM(config).save_pretrained(teacher)
    flags = ["--model", model, "--prompts", prompts / "p.txt", "--reward", "length", "--out", out, "--learning-rate", "1e-2"]
    flags += ["--batch-size", "4", "--eval-texts", "40"]
    assert train(*flags, algo="distill") == 2
    assert "--algo distill learns from a teacher: pass --teacher MODEL" in " ".join(capsys.readouterr().err.split())
    flags += ["--teacher", teacher]
    assert train(*flags, algo="rloo") == 2 and "leave out --teacher" in capsys.readouterr().err
    assert train(*flags, "--reference", model, algo="distill") == 2 and "leave out --reference" in capsys.readouterr().err
    assert (
        train(*flags, "--dry-run", algo="distill", tokens=2000) == 0 and "teacher    llama, 3 layers, width 32" in capsys.readouterr().out
    )
    assert train(*flags, algo="distill", tokens=2000) == 0
    told, found = " ".join(capsys.readouterr().out.split()), json.loads((out / "outcome.json").read_text())
    assert found["verdict"] in told and found["verdict"].startswith("The KL to the teacher fell from ")
    rows = [json.loads(line) for line in (out / "texts-before.jsonl").read_text().splitlines()]
    ours, theirs = (AutoModelForCausalLM.from_pretrained(folder) for folder in (model, teacher))
    row = next(row for row in rows if row["finish_reason"] == "length" and row["response"].isascii() and len(row["response"]) == 4)
    ids = AutoTokenizer.from_pretrained(model)(row["prompt"] + row["response"]).input_ids
    one, two = (logits_of(lm, ids).log_softmax(-1)[0, range(len(ids) - 5, len(ids) - 1), ids[-4:]].sum().item() for lm in (ours, theirs))
    assert row["kl"] == pytest.approx(one - two, abs=1e-3)
    assert found["before"]["kl_per_sequence"] - found["after"]["kl_per_sequence"] == pytest.approx(-found["change"]["kl"][0])
    assert "from the teacher, whom it learned from" in (out / "report.html").read_text()
    assert main(["evaluate", str(out), "--texts", "20"]) == 0 and "KL to the teacher fell" in " ".join(capsys.readouterr().out.split())
    assert train(*flags, algo="distill", tokens=2400) == 0 and "goes on at 2," in capsys.readouterr().out
    shutil.copy(model / "model.safetensors", teacher / "other.safetensors")
    assert train(*flags, algo="distill", tokens=2400) == 2
    assert "holds a run with other inputs (reference:" in " ".join(capsys.readouterr().err.split())


def test_references_reach_the_reward(model, prompts, tmp_path):
    table = [
        "--model",
        model,
        "--prompts",
        prompts / "q.csv",
        "--columns",
        "prompt=question",
        "--batch-size",
        "4",
        "--out",
        tmp_path / "run",
    ]
    assert train(*table, "--references", "answer", "--reward", "rouge") == 0
    assert open_run(tmp_path / "run").task.prompts[0].references


def test_what_stands_in_the_way_is_named(model, prompts, tmp_path, capsys):
    def told(*flags):
        assert train(*flags, "--out", tmp_path / "run") == 2
        return " ".join(capsys.readouterr().err.split())

    bare, small = tmp_path / "bare", tmp_path / "small"
    shutil.copytree(model, bare)
    (bare / "tokenizer.json").unlink()
    assert f"no tokenizer file at {bare}" in told("--model", bare, "--prompts", prompts / "p.txt")
    shutil.copytree(model, small)
    lm = AutoModelForCausalLM.from_pretrained(model)
    lm.resize_token_embeddings(250)
    lm.save_pretrained(small)
    assert "the model has 250 tokens, the environment 259" in told("--model", small, "--prompts", prompts / "p.txt")
    assert main(["train", "--model", str(model), "--out", str(tmp_path / "other")]) == 2
    assert "or pass --prompts FILE: they are read with the tokenizer of --model" in " ".join(capsys.readouterr().err.split())
    assert "max_prompt_tokens=3" in told("--model", model, "--prompts", prompts / "p.txt", "--max-prompt-tokens", "3")
    flags = ["--model", model, "--prompts", prompts / "p.txt", "--eval-every", "1", "--keep-best"]
    assert "this task has no judgement of its own; choose score" in told(*flags, "gold")
    assert "--test-prompts: there are no validation prompts" in told(*flags, "score", "--test-prompts", prompts / "q.csv")
    assert "compares with references" in told("--model", model, "--prompts", prompts / "p.txt", "--reward", "rouge")


def test_a_reward_fitted_elsewhere_plays_no_film_reviews(tmp_path, capsys):
    (tmp_path / "reward").mkdir()
    (tmp_path / "reward" / "preference.json").write_text("{}")
    assert main(["train", "--reward", str(tmp_path / "reward"), "--out", str(tmp_path / "run")]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "was fitted to texts of its own" in told and "pass --prompts FILE with --model, --corpus FILE, or --task review" in told


@pytest.mark.reports("Another --columns is another run: a mapping that was corrected trains anew")
def test_a_run_depends_on_its_columns(model, tmp_path, capsys):
    (tmp_path / "ab.csv").write_text("q,one,two\n" + "".join(f"film {i}, good, bad\n" for i in range(12)))
    (tmp_path / "p.csv").write_text("q,one,two\n" + "".join(f"book {i},,\n" for i in range(30)))
    flags = ["--model", model, "--prompts", tmp_path / "p.csv", "--preferences", tmp_path / "ab.csv", "--steps", "1"]
    flags += ["--out", tmp_path / "run"]
    assert train(*flags, "--columns", "prompt=q,chosen=two,rejected=one", "--eval-texts", "0", algo="dpo") == 0
    assert train(*flags, "--columns", "prompt=q,chosen=two,rejected=one", "--eval-texts", "0", algo="dpo") == 0
    capsys.readouterr()
    assert train(*flags, "--columns", "prompt=q,chosen=one,rejected=two", "--eval-texts", "0", algo="dpo") == 2
    assert "columns: prompt=q,chosen=two,rejected=one then, prompt=q,chosen=one,rejected=two now" in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.reports("Comparisons beside prompts that are messages are refused, since those of test prompts could not be left out")
def test_comparisons_beside_messages(model, prompts, tmp_path, capsys):
    write_preferences(tmp_path / "pairs.jsonl", [Preference(f"film {i}", " good", " bad") for i in range(30)])
    flags = ["--model", model, "--prompts", prompts / "chat.jsonl", "--preferences", tmp_path / "pairs.jsonl", "--out", tmp_path / "run"]
    for algo in ("dpo", "sft"):
        assert train(*flags, "--steps", "1", algo=algo) == 2
        assert "holds messages, which go through the chat template, and --preferences are" in " ".join(capsys.readouterr().err.split())


@pytest.mark.reports("textrl train --algo sft learns responses and not prompts, which are cut as --over-long says")
def test_what_sft_learns(model, prompts, tmp_path, monkeypatch):
    learned = {}

    def learn(trainer, texts, *args, **kwargs):
        learned.update(texts=texts, targets=trainer.num_targets(texts))
        raise KeyboardInterrupt

    monkeypatch.setattr("agents.SFT.learn", learn)
    flags = ["--model", model, "--prompts", prompts / "q.csv", "--columns", "prompt=question", "--references", "answer", "--steps", "1"]
    assert train(*flags, "--over-long", "left", "--max-prompt-tokens", "3", "--out", tmp_path / "run", algo="sft") != 0
    assert {prompt.text for prompt, _ in learned["texts"]} == {"is"}  # and <s> before it
    assert learned["targets"] == sum(len(answer) + 1 for _, answer in learned["texts"])  # a byte is a token; and the end


@pytest.mark.reports("A held-out reward sees references and columns, as the reward does")
def test_a_held_out_reward_sees_what_the_reward_sees(model, prompts, tmp_path, capsys):
    code = "def right(prompts, completions, references):\n    return [float(p == f'{r[0]} is') for p, r in zip(prompts, references)]\n"
    (tmp_path / "mine.py").write_text(code)
    flags = ["--model", model, "--prompts", prompts / "q.csv", "--columns", "prompt=question", "--batch-size", "4", "--eval-texts", "4"]
    flags += ["--reward", "length", "--out", tmp_path / "run"]
    assert train(*flags, "--held-out", "exact_match") == 2
    assert "compares with references" in " ".join(capsys.readouterr().err.split())
    flags += ["--references", "answer", "--held-out", f"{tmp_path / 'mine.py'}:right", "--overwrite"]
    assert train(*flags) == 0
    with (tmp_path / "run" / "rloo" / "reward_hacking.csv").open() as file:
        assert {float(row["held_out"]) for row in csv.DictReader(file)} == {1.0}
    found = json.loads((tmp_path / "run" / "outcome.json").read_text())
    assert found["after"]["held_out"] == found["before"]["held_out"] == 1.0


@pytest.mark.reports("textrl generate puts what you say through the chat template of the run, and ends texts as the run does")
def test_generate_writes_what_the_run_writes(model, prompts, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    flags = ["--model", model, "--prompts", prompts / "p.txt", "--chat", "--stop-strings", "x", "--batch-size", "4", "--eval-texts", "4"]
    assert train(*flags, "--out", out) == 0
    report = (out / "report.html").read_text()
    assert "textrl generate" in report and "what you say to it" in report and "**run.writing" in report
    seen = []

    def play(policy, tokenizer, rows, limit, reward, **rules):
        seen.append((rows, limit, rules))
        return [(Episode.from_text(row.text, " fine"), 0.0) for row in rows]

    monkeypatch.setattr("agents.generation.text_generation.play_prompts", play)
    (tmp_path / "more.jsonl").write_text(json.dumps({"prompt": [{"role": "user", "content": "film 2"}]}) + "\n")
    assert main(["generate", str(out), "film 1", "<s>", "--file", str(tmp_path / "more.jsonl")]) == 0
    ((rows, limit, rules),) = seen
    task = open_run(out).task
    assert rows[0].text == "<s>[user] film 1<end>[assistant] " and rows[0].typed == ()
    assert limit == 4 and list(rules["stop_strings"]) == ["x"]
    assert rows[1].typed == ((10, 13),)  # typed by a person: text
    assert rows[2].text == "<s>[user] film 2<end>[assistant] "
    assert encode_prompts(task.tokenizer, [rows[0]])[0][0] == encode_prompts(task.tokenizer, [task.prompts[0]])[0][0] == 256
