"""What `textrl train` makes of its settings: used, filled in, or refused with the reason, before any work begins."""

import json
from pathlib import Path

import pytest
import yaml
from transformers import AutoConfig

from agents.algorithms.registry import ALGORITHMS
from agents.cli import train as command
from agents.cli.main import main
from agents.models.loading import load_lm
from agents.training.policy_training import _new
from agents.training.settings import OFFLINE, PolicyTraining
from agents.utils.contents import contents_hash
from agents.utils.run_folder import fingerprint
from tests.slow_cases import slow_but
from textrl_env import make_task

from ..conftest import LLAMA

PAIR = {"prompt": "the", "chosen": " good", "rejected": " bad"}


@pytest.fixture(autouse=True)
def model(tmp_path, monkeypatch):
    """A configuration without weights: nothing can be trained, but how large it is can be told."""
    monkeypatch.chdir(tmp_path)
    load_lm(LLAMA).config.save_pretrained("m")


def goes_on(folder, algo, inputs, *flags):
    """Whether a run that was finished with these inputs is taken as finished; model "m" cannot be trained."""
    made = folder / algo / ("model" if algo in OFFLINE else "policy.zip")
    made.mkdir(parents=True, exist_ok=True)
    record = {"fingerprint": fingerprint(inputs)}
    (folder / "stages.json").write_text(json.dumps({algo: record, f"{algo} began": record}))
    return main(["train", "--algo", algo, "--model", "m", "--eval-texts", "0", "--out", str(folder), *flags]) == 0


def inputs_of(algo, **others):
    data = {"task": "review", "corpus": [], "reward": "vader", "preferences": None}
    return {**data, "model": f"contents {contents_hash('m')}", "algo": algo, "seed": 0, **others}


@pytest.mark.parametrize("algo", slow_but(("ppo", "nlpo", "a2c", "rloo", "online-dpo"), ALGORITHMS))
def test_runs_at_default_settings_go_on_playing(tmp_path, algo):
    rules = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_new_tokens": 0, "precision": "float32", "micro_batch_size": 0}
    rules["eos_token_id"] = make_task("review").tokenizer.eos_token_id
    training = {"beta": None, "kl_target": 8.0, "n_episodes": 128, "batch_size": 32, "learning_rate": 5e-4}
    inputs = inputs_of(algo, rules=rules, held_out=None, stop_at_alarm=False, **training)
    inputs |= {"reference": f"contents {contents_hash('m')}"} if algo == "distill" else {}
    flags = ["--teacher", "m"] if algo == "distill" else []
    assert goes_on(tmp_path, algo, inputs, *flags)
    assert not goes_on(tmp_path, algo, {**inputs, "learning_rate": 3e-4}, *flags)


@pytest.mark.parametrize(
    ("algo", "preferences", "steps", "rate"),
    [
        ("sft", False, 1400, 3e-3), ("sft", True, 400, 3e-4), ("dpo", True, 300, 2e-4), ("ipo", True, 300, 2e-4),
        ("expert-iteration", False, 12, 3e-4),
    ],
)  # fmt: skip
def test_runs_at_default_settings_go_on_without_playing(tmp_path, algo, preferences, steps, rate):
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(PAIR))
    flags = ["--preferences", str(file)] if preferences else []
    given = f"contents {contents_hash(file)}" if preferences else None
    inputs = inputs_of(algo, preferences=given, steps=steps, learning_rate=rate, beta=0.1)
    if algo == "sft" and preferences:
        assert not goes_on(tmp_path / "earlier", algo, inputs, *flags)  # which learned the prompts too
        inputs["train_on_prompts"] = False
    assert goes_on(tmp_path, algo, inputs, *flags)


@pytest.mark.parametrize(("algo", "rate"), [("rloo", 2.6e-4), ("dpo", 1e-4)])
def test_the_default_rate_suits_a_larger_model_and_is_said(tmp_path, capsys, algo, rate):
    """V D + 2 (4 D^2 + 3 D F + 2 D) + D = 7.34 million, whose cube root is 1.94 times that of a million; weights are not read."""
    sizes = {"vocab_size": 4096, "hidden_size": 512, "intermediate_size": 1024, "num_key_value_heads": 2, "tie_word_embeddings": True}
    AutoConfig.for_model(**{**LLAMA, **sizes}).save_pretrained("m")
    (tmp_path / "pairs.jsonl").write_text(json.dumps(PAIR))
    flags = ["--preferences", str(tmp_path / "pairs.jsonl")] if algo == "dpo" else []
    main(["train", "--algo", algo, "--model", "m", "--out", "run", *flags])
    assert f"learning rate {rate:g}, which suits a model of 7,342,592 parameters" in capsys.readouterr().out
    assert yaml.safe_load(Path("run/config.yaml").read_text())["learning_rate"] == rate
    main(["train", "--algo", algo, "--model", "m", "--out", "other", "--learning-rate", "3e-4", *flags])
    assert "learning rate" not in capsys.readouterr().out
    assert yaml.safe_load(Path("other/config.yaml").read_text())["learning_rate"] == 3e-4


@pytest.mark.parametrize("algo", ["sft", "dpo", "ipo", "expert-iteration"])
def test_a_learning_rate_that_equals_a_default_is_used(tmp_path, monkeypatch, algo):
    (tmp_path / "pairs.jsonl").write_text(json.dumps(PAIR))
    flags = ["--preferences", str(tmp_path / "pairs.jsonl")] if algo in ("dpo", "ipo") else []
    used = []

    def learned(algo, run, stage, model, task, data, config, depends_on, whole, passes, before, shard):
        with run.stage(stage, depends_on):
            used.append(config)

    monkeypatch.setattr(command, "learn_offline", learned)
    out = tmp_path / "run"
    assert main(["train", "--algo", algo, "--model", "m", "--eval-texts", "0", "--out", str(out), "--learning-rate", "5e-4", *flags]) == 0
    assert [config.learning_rate for config in used] == [5e-4]
    saved = yaml.safe_load((out / "config.yaml").read_text())
    assert saved["learning_rate"] == 5e-4 and saved["steps"] == used[0].steps and saved["total_tokens"] is None
    assert main(["train", "--config", str(out / "config.yaml"), "--seed", "1"]) == 0  # a run's own settings are settings
    assert used[1].seed == 1 and used[1].steps == used[0].steps
    again = yaml.safe_load((tmp_path / "run-seed-1" / "config.yaml").read_text())
    assert again == {**saved, "seed": 1, "out": str(tmp_path / "run-seed-1")}


SFT = "--learning-rate, --preferences, --seed, --shard, --steps"
PPO = ("--batch-size, --beta, --critic, --eval-every, --held-out, --keep-best, --kl-target, --learning-rate, --min-new-tokens, "
       "--n-episodes, --reference, --seed, --shard, --stop-at-alarm, --temperature, --top-k, --top-p, --total-tokens")  # fmt: skip
RLOO = PPO.replace("--critic, ", "")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("--algo sft --total-tokens 110000", f"leave out --total-tokens, which --algo sft does not use; its settings are {SFT}"),
        ("--algo sft --beta 0.1 --temperature 0.5 --n-episodes 9",
         f"leave out --beta, --n-episodes, --temperature, which --algo sft does not use; its settings are {SFT}"),
        ("--algo ppo --preferences p.jsonl", f"leave out --preferences, which --algo ppo does not use; its settings are {PPO}"),
        ("--steps 5", f"leave out --steps, which --algo ppo does not use; its settings are {PPO}"),
        ("--algo a2c --batch-size 32",
         f"leave out --batch-size, which --algo a2c does not use; its settings are {PPO.replace('--batch-size, ', '')}"),
        ("--algo dapo --kl-target 8",
         f"leave out --kl-target, which --algo dapo does not use; its settings are {RLOO.replace('--kl-target, ', '')}"),
        ("--algo expert-iteration --stop-at-alarm",
         "leave out --stop-at-alarm, which --algo expert-iteration does not use; its settings are --learning-rate, --seed, --steps"),
        ("--beta 0.1 --kl-target 4", "--kl-target 4 steers an adaptive beta, and --beta 0.1 is fixed: leave one of them out"),
        ("--corpus x.txt --task recall", "--task, --corpus: each says what the policy goes on with; leave all but one of them out"),
        ("--prompts p.txt", "--prompts p.txt: pass --model too, a folder, hub id or .gguf file, whose tokenizer reads them"),
        ("--chat --max-new-tokens 9", "--chat, --max-new-tokens: for the file of --prompts, which is not given"),
        ("--algo rloo --critic separate",
         f"leave out --critic, which --algo rloo does not use; its settings are {RLOO}"),
        ("--algo dpo --reference m --preferences p.jsonl",
         f"leave out --reference, which --algo dpo does not use; its settings are --beta, --gamma, --label-smoothing, {SFT}"),
        ("--algo sft --shard", "--shard in one process: there is nobody to hold the other parts; start several with torchrun"),
        ("--lora 8", """--lora 8: no JSON object; write --lora '{"r": 8}'"""),
        ("--algo sft --steps 0", "--steps 0 is not a whole number of at least 1 or null"),
        ("--algo sft --learning-rate 0", "--learning-rate 0.0 is not a number above 0 or null"),
        ("--total-tokens 0", "--total-tokens 0 is not a whole number of at least 1 or null"),
        ("--n-episodes -1", "--n-episodes -1 is not a whole number of at least 1 or null"),
        ("--beta -1", "--beta -1.0 is not a number of at least 0 or null"),
        ("--learning-rate nan", "--learning-rate nan is not a number above 0 or null"),
        ("--algo ipo", "--algo ipo learns from preferences: pass --preferences FILE"),
        ("--held-out vadre", "--held-out vadre: no reward model is called 'vadre' (did you mean 'vader'?); known: "),
    ],
)  # fmt: skip
def test_what_would_be_ignored_is_refused(tmp_path, monkeypatch, capsys, flags, line):
    monkeypatch.setattr(command, "base_policy", None)  # no work begins
    assert main(["train", "--out", str(tmp_path / "run"), *flags.split()]) == 2
    err = capsys.readouterr().err
    assert err == f"error: {line}\n" or (line.endswith("known: ") and err.startswith(f"error: {line}"))
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(("beta", "expected"), [(None, 0.0), (0.25, 0.25)])
def test_a_given_beta_comes_before_that_of_the_algorithm(make_env, beta, expected):
    env = make_env(8, group_size=4)
    algorithm = _new(ALGORITHMS["dapo"], LLAMA, env, PolicyTraining(beta=beta, n_episodes=8, batch_size=8), None, None, {})
    assert algorithm.kl_controller.beta == expected
