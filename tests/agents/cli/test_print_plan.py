"""What `textrl train` says before it trains, and `--dry-run`, which stops there."""

import io
import json

import pytest
import torch
from rich.console import Console

from agents import TextPPO
from agents.cli.main import main
from agents.cli.print_plan import print_plan
from agents.models.loading import load_lm, save_lm
from agents.models.memory_estimate import GIB, MemoryEstimate
from agents.training.first_texts import Sample
from agents.training.run_plan import ModelFacts, RunPlan, TokenFacts
from textrl_env import make_task


@pytest.fixture
def command(tmp_path, monkeypatch):
    tokenizer = make_task("recall").tokenizer
    config = {
        "model_type": "llama", "vocab_size": tokenizer.vocab_size, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 128, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id,
        "initializer_range": 0.3,
    }  # fmt: skip
    torch.manual_seed(1)
    save_lm(load_lm(config), tmp_path / "lm")
    monkeypatch.chdir(tmp_path)
    return ["train", "--task", "recall", "--model", str(tmp_path / "lm"), "--out", str(tmp_path / "run")]


def run(capsys, *command):
    assert main(list(command)) in (None, 0), capsys.readouterr().err
    return capsys.readouterr().out


def names(out):
    return [line.split()[0] for line in out.splitlines() if line[:1].strip()]


def test_a_dry_run_leaves_nothing_and_the_run_after_it_is_as_without(command, tmp_path, capsys):
    playing = [*command, "--reward", "length", "--total-tokens", "300", "--n-episodes", "16", "--batch-size", "8"]
    before = sorted(tmp_path.iterdir())
    out = run(capsys, *playing, "--dry-run")
    assert names(out)[:9] == ["starts", "learning", "model", "tokenizer", "prompts", "samples", "memory", "iteration", "run"]
    assert "1 layers, width 16" in out and out.rstrip().endswith("--dry-run: nothing was trained or written")
    assert sorted(tmp_path.iterdir()) == before
    first = run(capsys, *playing)
    assert names(first)[:8] == names(out)[:8]
    assert "goes on" not in first
    more = [*playing[:-5], "600", *playing[-4:]]
    dry = run(capsys, *more, "--dry-run")
    assert f"{tmp_path / 'run'} holds a run, which would go on" in dry
    tokens = TextPPO.load(tmp_path / "run/ppo/policy.zip", device="cpu").num_timesteps
    again = run(capsys, *more)
    assert f"goes on at {tokens:,}, {600 - tokens:,} more to go" in again and "\nsamples  " not in again


def test_trainings_that_do_not_play_show_their_rows(command, tmp_path, capsys):
    one, two, three = make_task("recall").tokenizer.words[1:4]
    rows = [{"prompt": one, "chosen": f" {two}", "rejected": f" {three}"}, {"prompt": two, "chosen": f" {three}", "rejected": f" {one}"}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = run(capsys, *command, "--algo", "dpo", "--preferences", str(tmp_path / "pairs.jsonl"), "--steps", "4", "--dry-run")
    assert names(out)[:8] == ["starts", "learning", "model", "tokenizer", "texts", "memory", "step", "run"]
    assert " GiB free" in " ".join(out.split()) and not (tmp_path / "run").exists()
    assert f"1 ' {one} {two}'" in out and f"4 ' {two} {one}'" in out
    assert "4 steps, 32.0 times over the texts" in " ".join(out.split())


def test_what_is_said_fits_80_columns():
    estimate = MemoryEstimate({"weights": GIB}, {"update": {"activations": GIB}}, False)
    plan = RunPlan(
        ModelFacts({"kind": "llama", "layers": 30, "width": 576, "vocabulary": 49_152}, 137_000_000, 2_400_000, "float32", "cuda:1"),
        TokenFacts(49_152, {2: "<|im_end|>", 0: "<|endoftext|>"}, {1: "<|im_start|>"}),
        ["<|im_start|>user\nThe film [bold]was[/bold]", "x" * 500],
        [Sample("The film", " good", 0.4404, True)],
        (estimate, 20 * GIB),
        {"writing": 9.83, "update": 12.2},
        3,
        27,
        32,
        20_000,
    )
    file = io.StringIO()
    print_plan(plan, Console(file=file, width=80))
    lines = file.getvalue().splitlines()
    said = " ".join(file.getvalue().split())
    assert max(len(line.rstrip()) for line in lines) <= 80 and len(lines) < 20
    for part in (
        "llama, 30 layers, width 576, vocabulary 49,152: 137.0 M parameters, 2.4 M of them trained, float32 on cuda:1",
        "49,152 tokens; texts end with 2 <|im_end|> or 0 <|endoftext|>; prompts begin with 1 <|im_start|>",
        r"1 '<|im_start|>user\nThe film [bold]was[/bold]'",
        "+0.44 ' good'",
        "about 2.00 GiB (weights 1.00, update 1.00) of 20.0 GiB free",
        "about 22 s for 32 texts (writing 9.8 s, update 12 s), estimated from 3 texts that were timed",
        "about 27 iterations, 20,000 tokens, 0:10 (hours:minutes)",
    ):
        assert part in said
