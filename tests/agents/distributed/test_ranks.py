"""Several processes train one policy: the same numbers as one, and no way to end in silence."""

import copy
import csv
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from agents import TextPolicyGradient, TextPPO
from agents.algorithms.registry import ALGORITHMS, on_ranks
from agents.distributed.launcher import check_launcher
from agents.distributed.process_group import ranks
from agents.models.loading import load_lm, save_lm
from agents.rollouts.merge_ranks import RankRecording, merge
from textrl_env import make_task

from . import stepped
from .launch import QUIET, ROOT, found_by, run, torchrun
from .ranked import CASES, COMMON, ROLLOUTS, learn, make, make_env

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """A folder with what two processes found, all tasks in turn: to start them takes longer than most tasks."""
    folder = tmp_path_factory.mktemp("two")
    run(torchrun("tests.agents.distributed.ranked", folder))
    return folder


@pytest.fixture
def exact(two_ranks):
    return lambda case: found_by(two_ranks, case)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_are_one_process_on_the_joined_batch(exact, case):
    (rollouts, first, logged, steps), (_, second, second_logged, second_steps) = exact(case)
    alone = make(case)
    begun = {name: value.clone() for name, value in alone.policy.state_dict().items()}
    weights, alone_logged, alone_steps = learn(alone, rollouts)
    assert steps == second_steps == alone_steps
    assert case in ("stop", "again") or steps == 20
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert max(float((first[name] - weights[name]).abs().max()) for name in weights) <= 1e-10
    assert max(float((weights[name] - begun[name]).abs().max()) for name in weights) > 0.005
    assert logged == pytest.approx(alone_logged, abs=1e-6) and logged == second_logged
    assert alone_logged["policy/grad_norm"] > alone.max_grad_norm
    lengths = {len(text.context) + text.steps.stop - text.steps.start for text in rollouts[0]["segments"]}
    assert len(lengths) > 4


def test_early_stop_is_agreed_on(exact):
    (*_, steps), (*_, other) = exact("stop")
    assert steps == other < ROLLOUTS * CASES["stop"]["n_epochs"] * 4


def test_rounds_of_sampling_are_agreed_on(exact):
    rollouts = exact("again")[0][0]
    assert len({len(rollout["segments"]) for rollout in rollouts}) > 1
    assert all(len(rollout["segments"]) % 4 == 0 for rollout in rollouts)


def test_the_joined_rollout_is_what_one_process_records(exact):
    for case in ("gae", "rloo"):
        for theirs, own in zip(*(parts[0] for parts in exact(case)), strict=True):
            for name in ("actions", "rewards", "values", "log_probs", "advantages", "returns", "kl", "scores", "_offsets"):
                np.testing.assert_array_equal(theirs[name], own[name])
        alone = make(case)
        _, callback = alone._setup_learn(10**6)
        for rollout in exact(case)[0][0]:  # other tokens, but the same prompts
            alone.collect_rollouts(alone.env, callback, alone.rollout_buffer, 0)
            dealt = [[s.context.tolist() for s in segments] for segments in (rollout["segments"], alone.rollout_buffer.segments)]
            assert dealt[0] == dealt[1]


@pytest.mark.parametrize("size", [2, 3])
def test_a_step_of_several_is_one_on_the_sum_of_their_gradients(request, tmp_path, size, monkeypatch):
    folder = tmp_path if size == 3 else request.getfixturevalue("two_ranks")
    if size == 3:
        run(torchrun("tests.agents.distributed.stepped", folder, size=3))
    monkeypatch.setattr(stepped, "ranks", lambda: SimpleNamespace(size=size))
    parameters = stepped.parameters_of()
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    expected = []
    for number in range(4):
        for i, parameter in enumerate(parameters):
            parts = [stepped.gradient_of(rank, number, i) for rank in range(size)]
            parameter.grad = sum(part for part in parts if part is not None) if i != 2 else None
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.5)
        assert norm > 1.5
        optimizer.step()
        expected.append((float(norm), [p.detach().clone() for p in parameters], copy.deepcopy(optimizer.state_dict()["state"])))
    results = found_by(folder, "steps", size)
    for found, said, left_over in results:
        assert not left_over
        assert found["nowhere"] == "NoneType"
        if Path("/dev/shm").is_dir():
            assert found["shm"] == "SharedStep"
            assert "Counts keeps seen=1 of a parameter, and several processes share tensors only: choose" in said
        for name, number in (key for key in found if isinstance(key, tuple)):
            torch.testing.assert_close(found[name, number], expected[number], rtol=2e-6, atol=1e-7)
            torch.testing.assert_close(found[name, number], results[0][0][name, number], rtol=0, atol=0)


def test_joining_gives_back_what_was_cut_apart():
    rng = np.random.default_rng(0)
    lengths = np.array([3, 6, 2, 4])  # steps of four rows; the third and the fourth are idle in the end
    live = np.arange(6)[:, None] < lengths
    starts = np.arange(6)[:, None] == np.where(np.arange(4) == 1, 0, lengths)
    starts[0] = True
    columns = [rng.normal(size=(6, 4)) * live, rng.normal(size=(6, 4)) * live, starts, live]
    openings = [(row, 0, np.array([row]), 0) for row in range(4)]
    kept = np.arange(lengths.sum())[:, None]

    def part(rows):
        steps = lengths[rows].max()
        idle = np.zeros((steps, 1))  # a row that plays no text
        cut = [np.concatenate([idle.astype(c.dtype), c[:steps, rows]], 1) for c in columns]
        span = slice(lengths[: rows[0]].sum(), lengths[: rows[-1] + 1].sum())
        ended = np.concatenate([[False], lengths[rows] == steps])
        own = [(row - rows[0] + 1, *rest) for row, *rest in openings if row in rows]
        return RankRecording(cut, ended, own, {2: [(1, np.array([7]))]}, kept[span]).without_idle_rows()

    whole = merge([part([0, 1]), part([2, 3])])
    for joined, column in zip(whole.columns, columns, strict=True):
        np.testing.assert_array_equal(joined, column)
    assert whole.ended.tolist() == [False, True, False, False]
    assert [(row, context.tolist()) for row, _, context, _ in whole.openings] == [(row, [row]) for row in range(4)]
    assert sorted(whole.replies) == [1, 3]
    np.testing.assert_array_equal(whole.kept, kept)


def test_trained_saved_and_loaded_by_two(two_ranks):
    for seed in (3, None):
        first, second = found_by(two_ranks, f"whole-{seed}")
        assert first == second
        assert first[0] == first[1]  # what was loaded goes on as what was not
    loaded = TextPolicyGradient.load(two_ranks / "3.zip", env=make_env(1), device="cpu")
    loaded.learn(200, reset_num_timesteps=False)  # in one process
    assert loaded.num_texts == 16 * loaded.num_rollouts


def test_what_ranks_cannot_do_is_refused(two_ranks):
    first, second = found_by(two_ranks, "refused")
    assert first == second and len(first) == 4
    parts = ("TextPPO trains in one process", "at most 1 processes instead of 2", "changes while it scores", "rank 1 holds other weights")
    for said, part in zip(first, parts, strict=True):
        assert part in said


def test_a_loss_that_is_no_number_stops_all(two_ranks):
    assert [(two_ranks / f"broken-{rank}").read_text() for rank in (0, 1)] == [
        "loss is NaN or infinite on rank 1: lower learning_rate or max_grad_norm"
    ] * 2


def test_one_rank_stops_all(two_ranks):
    for found in found_by(two_ranks, "stopped"):
        assert found == [(2, 32), (2, 32), {"length": "too long"}]
    assert (two_ranks / "watch" / "alarms.txt").read_text() == "length: too long\n"
    assert len((two_ranks / "watch" / "reward_hacking.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize("algo", ["a2c", "trpo", "nlpo", "maskable-ppo", "dpo"])
def test_algorithms_of_one_process(algo):
    with pytest.raises(ValueError, match=f"--algo {algo} trains in one process.*ppo, reinforce, .*rloo"):
        on_ranks(algo)


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("ACCELERATE_USE_CPU", "True", "started a single process"),
        ("ACCELERATE_MIXED_PRECISION", "no", "started a single process"),
        ("ACCELERATE_USE_FSDP", "true", "models are not split over ranks"),
    ],
)
def test_launchers_that_do_less_than_they_were_asked_for(monkeypatch, name, value, part):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=rf"{part}.*torchrun --nproc-per-node N -m agents\.cli train"):
        check_launcher()


def test_without_accelerate_the_extra_is_named(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    ranks.cache_clear()
    with pytest.raises(ImportError, match=r"pip install 'textrl-env\[scale\]'"):
        ranks()


def test_one_process_needs_no_accelerate():
    probe = "import sys; sys.modules['accelerate'] = None; import agents.cli.train\n"
    probe += "from agents.distributed.process_group import ranks; assert ranks().size == 1"
    run([sys.executable, "-c", probe], WORLD_SIZE="1")


def test_ppo_goes_from_one_process_to_several_and_back(tmp_path):
    """Its class differs, what it does not."""
    settings = {name: value for name, value in COMMON.items() if name != "seed"}
    one = TextPPO("TransformerPolicy", make_env(1), policy_kwargs={"model": make("gae").policy.architecture()["model"]}, seed=3, **settings)
    one.learn(300)
    one.save(tmp_path / "one")
    one.learn(300, reset_num_timesteps=False)
    other = TextPolicyGradient.load(tmp_path / "one", env=make_env(1), **on_ranks("ppo").when_loaded)
    other.save(tmp_path / "other")
    other.learn(300, reset_num_timesteps=False)
    back = TextPPO.load(tmp_path / "other", env=make_env(1), **ALGORITHMS["ppo"].when_loaded)
    back.learn(300, reset_num_timesteps=False)
    for name, value in one.policy.state_dict().items():
        torch.testing.assert_close(other.policy.state_dict()[name], value, atol=1e-6, rtol=1e-5)
        assert torch.equal(back.policy.state_dict()[name], value)


@pytest.fixture
def tiny(tmp_path):
    """A model with the tokens of film reviews and 16 dimensions."""
    eos = make_task("review").tokenizer.eos_token_id
    torch.manual_seed(0)
    save_lm(
        load_lm({
            "model_type": "llama", "vocab_size": 4096, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": eos,
        }),
        tmp_path / "tiny",
    )  # fmt: skip
    return tmp_path / "tiny"


def flags(tiny, out, tokens):
    words = "--reward vader --n-episodes 16 --batch-size 8 --total-tokens".split()
    return ["--model", str(tiny), "--out", str(out), *words, str(tokens)]


def rows_of(out):
    file = out / "ppo" / "curve.csv"
    return list(csv.DictReader(file.read_text().splitlines())) if file.is_file() else []


def started(command, out, rows, log):
    """Start a run; return it once its curve has that many rows."""
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **QUIET}, start_new_session=True
        )
    limit = time.monotonic() + 180
    while len(rows_of(out)) < rows:
        assert process.poll() is None and time.monotonic() < limit, log.read_text()
        time.sleep(0.05)
    return process


def children(process):
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1]) == process.pid:
                rank = [e for e in (folder / "environ").read_bytes().split(b"\0") if e.startswith(b"RANK=")]
                found[int(rank[0].removeprefix(b"RANK="))] = int(folder.name)
        except (OSError, IndexError):
            continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the ranks in /proc")
def test_a_rank_is_killed_and_the_run_goes_on_with_one_and_with_two(tiny, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    settings = flags(tiny, out, 9000)
    process = started(torchrun("agents.cli", "train", *settings), out, 7, log)
    killed = children(process)[1]
    os.kill(killed, signal.SIGKILL)
    assert process.wait(60) != 0
    assert f"rank 1 (process {killed}) is gone; the same command goes on from the last checkpoint" in " ".join(log.read_text().split())
    held = TextPolicyGradient.load(out / "ppo" / "policy.zip", device="cpu")
    assert held.num_rollouts % 5 == 0 and held.num_rollouts > 0

    process = started([sys.executable, "-m", "agents.cli", "train", *settings], out, 13, log)  # one process: TextPPO
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130

    done = run(torchrun("agents.cli", "train", *settings))
    assert "--algo ppo: TextPolicyGradient(estimator='gae')" in " ".join(done.stdout.split())
    rows = rows_of(out)
    assert [int(row["iteration"]) for row in rows] == list(range(1, len(rows) + 1))
    assert [int(row["texts"]) for row in rows] == [16 * i for i in range(1, len(rows) + 1)]
    tokens = np.array([int(row["tokens"]) for row in rows])
    lengths = np.array([float(row["length"]) for row in rows])
    np.testing.assert_array_equal(np.diff(tokens, prepend=0), (16 * lengths).round())
    assert tokens[-1] >= 9000 > tokens[-2]


def test_a_failure_of_one_rank_is_told_once_and_ends_all(tiny, tmp_path):
    done = run(torchrun("tests.agents.distributed.ranked", "failing", *flags(tiny, tmp_path / "run", 9000)), check=False)
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1 and "error: the policy's logits are NaN" in done.stderr
    assert len(rows_of(tmp_path / "run")) == 1


@pytest.mark.slow
def test_ctrl_c_ends_all_with_one_message(tiny, tmp_path):
    process = started(torchrun("agents.cli", "train", *flags(tiny, tmp_path / "run", 9000)), tmp_path / "run", 3, tmp_path / "log")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0
    said = (tmp_path / "log").read_text()
    assert said.count("Stopped at ") == 1 and "error:" not in said
    saved = TextPolicyGradient.load(tmp_path / "run" / "ppo" / "policy.zip", device="cpu").num_timesteps
    assert saved == int(rows_of(tmp_path / "run")[-1]["tokens"])
    assert f"Stopped at {saved:,} of 9,000 tokens, saved in" in " ".join(said.split())


@pytest.mark.slow
def test_the_readmes_command(tiny, tmp_path):
    (command,) = re.findall(
        r"^torchrun .*$", README[README.index("### More than one process") : README.index("### Algorithms")], re.MULTILINE
    )
    _, *words = shlex.split(command)
    done = run([sys.executable, "-m", "torch.distributed.run", *words, *flags(tiny, tmp_path / "run", 800)])
    assert "2 processes train one policy" in done.stdout and "the same command without torchrun" in done.stdout
    assert "the reward" in run([sys.executable, "-m", "agents.cli", "train", *flags(tiny, tmp_path / "run", 800)]).stdout.lower()
    assert [int(row["texts"]) for row in rows_of(tmp_path / "run")] == [16, 32]


@pytest.mark.slow
def test_the_same_command_gives_the_same_run(tiny, tmp_path):
    for name in ("one", "two"):
        run(torchrun("agents.cli", "train", *flags(tiny, tmp_path / name, 3000)))
    one, two = (TextPolicyGradient.load(tmp_path / name / "ppo" / "policy.zip", device="cpu") for name in ("one", "two"))
    for name, value in one.policy.state_dict().items():
        assert torch.equal(value, two.policy.state_dict()[name])
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "two")


@pytest.mark.slow
def test_accelerates_own_launcher_is_refused(tiny, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--mixed_precision", "no", "--num_machines", "1"]
    launch += ["--dynamo_backend", "no"]
    for flag, part in (("--cpu", "started a single process"), ("--use_fsdp", "models are not split over ranks")):
        done = run([*launch, flag, "-m", "agents.cli", "train", *flags(tiny, tmp_path / "run", 400)], check=False)
        assert done.returncode != 0 and part in " ".join((done.stdout + done.stderr).split())
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_errors_are_told_once_and_end_all(tiny, tmp_path):
    for wrong, part in (("--algo nlpo", "--algo nlpo trains in one process"), ("--task chess", "no task is called 'chess'")):
        done = run([*torchrun("agents.cli", "train", *flags(tiny, tmp_path / "run", 400)), *wrong.split()], check=False)
        assert done.returncode != 0 and done.stderr.count("error: ") == 1 and f"error: {part}" in done.stderr
