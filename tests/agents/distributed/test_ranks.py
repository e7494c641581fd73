"""Several processes train one policy: the same numbers as one, and no way to end in silence."""

import csv
import functools
import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from agents import OnlineDPO, TextPolicyGradient, TextPPO
from agents.algorithms.registry import ALGORITHMS, on_ranks
from agents.distributed.launcher import check_launcher
from agents.distributed.process_group import ranks
from tests.slow_cases import slow_but

from ..conftest import LLAMA
from .launch import QUIET, ROOT, found_by, run, torchrun
from .ranked import CASES, COMMON, FLAT, LATER, ROLLOUTS, learn, make, make_env

PAGE = (ROOT / "docs" / "parallel.md").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def two_ranks_later(made_once):
    return made_once("two-ranks-later", lambda folder: run(torchrun("tests.agents.distributed.ranked", "later", folder)))


@pytest.fixture
def exact(request):
    return lambda case: found_by(request.getfixturevalue("two_ranks_later" if case in LATER else "two_ranks"), case)


@functools.cache
def learned_alone(case, inputs):
    """Return what `learn` gives in one process, the weights before, and the model; `inputs` are pickled, to be kept for both engines."""
    model = make(case)
    begun = {name: value.clone() for name, value in model.policy.state_dict().items()}
    return *learn(model, *pickle.loads(inputs)), begun, model


def joined(parts):
    """Return rollouts as one process would hold them: the texts of the first rank, then those of the next."""
    rollouts = []
    for ranks_own in zip(*parts, strict=True):
        first = ranks_own[0]
        offsets = np.cumsum([0, *(length for own in ranks_own for length in np.diff(own["_offsets"]))])
        flat = {name: None if first[name] is None else np.concatenate([own[name] for own in ranks_own]) for name in FLAT}
        segments = [segment for own in ranks_own for segment in own["segments"]]
        before = np.cumsum([0, *(len(own["segments"]) for own in ranks_own)])
        trained = np.concatenate([own["trained"] + start for own, start in zip(ranks_own, before, strict=False)])
        kept = {name: first[name] for name in ("sampler", "autocast", "stats", "full")}
        infos = [info for own in ranks_own for info in own["infos"]]
        rollouts.append({**kept, **flat, "_offsets": offsets, "segments": segments, "infos": infos, "trained": trained})
    return rollouts


def joined_minibatches(recorded, parts):
    """Return which texts of joined rollouts make up each minibatch that ranks took together, epoch after epoch."""
    taken = []
    for epoch in zip(*parts, strict=True):
        number = epoch[0][0]
        starts = np.cumsum([0, *(len(own[number]["segments"]) for own in recorded)])
        minibatches = zip(*(drawn for _, drawn in epoch), strict=True)
        taken.append((number, [np.concatenate([one + start for one, start in zip(own, starts, strict=False)]) for own in minibatches]))
    return taken


@pytest.mark.parametrize("shard", [False, True], ids=["ddp", "fsdp"])
@pytest.mark.parametrize("case", slow_but((case for case in CASES if case not in LATER), CASES))
def test_two_ranks_are_one_process_on_the_joined_batch(exact, case, shard):
    found = exact(case)
    recorded = [rank[0] for rank in found]
    (first, logged, steps, first_taken), (second, second_logged, second_steps, second_taken) = (rank[1 + shard] for rank in found)
    taken = joined_minibatches(recorded, (first_taken, second_taken))
    weights, alone_logged, alone_steps, _, begun, alone = learned_alone(case, pickle.dumps((joined(recorded), taken)))
    assert steps == second_steps == alone_steps
    assert {"a2c": 1, "maskable": 8}.get(case, 4) * ROLLOUTS == steps or "stop" in case or case in ("again", "pairs")
    near = (
        1e-6 if CASES[case][1].get("whiten_advantages") or case in ("plus", "gdpo") else 1e-10
    )  # float32 of a mean that was added up otherwise
    assert first.keys() == weights.keys()
    assert max(float((first[name] - weights[name]).abs().max()) for name in weights) <= near
    assert max(float((weights[name] - begun[name]).abs().max()) for name in weights) > 0.005
    if not shard:
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert logged == pytest.approx(second_logged)
    if alone.__class__ in (TextPolicyGradient, OnlineDPO):  # of SB3's own numbers, the mean over ranks is logged
        assert logged.keys() == alone_logged.keys()
        for name, value in logged.items():  # the largest ratio, here e^3, has the differences of all updates in its exponent
            near = 1e-4 if name == "policy/ratio_max" else 1e-5
            assert value == pytest.approx(alone_logged[name], abs=1e-6, rel=near), name
        assert alone_logged["policy/grad_norm"] > alone.max_grad_norm
    lengths = {len(text.context) + text.steps.stop - text.steps.start for rank in recorded for text in rank[0]["segments"]}
    assert len(lengths) > 3


@pytest.mark.parametrize("case", ["ppo_stop", "stop"])
def test_early_stop_is_agreed_on(exact, case):
    for shard in (False, True):
        (*_, steps, _), (*_, other, _) = (rank[1 + shard] for rank in exact(case))
        assert steps == other < ROLLOUTS * CASES[case][1]["n_epochs"] * 4


def test_rounds_of_sampling_are_agreed_on(exact):
    parts = [rank[0] for rank in exact("again")]
    sizes = [[len(rollout["segments"]) for rollout in part] for part in parts]
    assert len({*sizes[0], *sizes[1]}) > 1 and sizes[0] != sizes[1]
    trained = [[len(rollout["trained"]) for rollout in part] for part in parts]
    assert trained[0] == sizes[0]  # recorded before an update chooses
    assert all(size % 4 == 0 for size in (*sizes[0], *sizes[1]))


def test_each_rank_holds_its_own_texts_only(exact):
    for case in ("ppo", "rloo", "full"):
        for theirs, own in zip(*(rank[0] for rank in exact(case)), strict=True):
            assert len(theirs["segments"]) == len(own["segments"]) == 8
            assert own["stats"].num_sequences == theirs["stats"].num_sequences == 16
            tokens = [len(part["actions"]) for part in (theirs, own)]
            assert own["stats"].num_tokens == theirs["stats"].num_tokens == sum(tokens)
            for name in FLAT:
                assert own[name] is None or len(own[name]) == (8 if name == "scores" else tokens[1])
            assert not own["_kept"] or sum(map(len, own["_kept"])) == tokens[1]


@pytest.mark.parametrize("case", ["ppo", "rloo", pytest.param("plus", marks=pytest.mark.slow), "full"])
def test_the_ranks_rollouts_are_what_one_process_makes_of_all_texts(exact, case):
    recorded = [rank[0] for rank in exact(case)]
    alone = make(case)
    alone._setup_learn(10**6)
    buffer = alone.rollout_buffer
    for pair, together in zip(zip(*recorded, strict=True), joined(recorded), strict=True):
        buffer.reset()
        buffer.n_envs = 32
        length = max(len(own["_steps"]) for own in pair)
        idle = [tuple(np.zeros_like(column) for column in pair[0]["_steps"][0]) for _ in range(length)]
        buffer._steps = [
            tuple(np.concatenate(columns) for columns in zip(*steps, strict=True))
            for steps in zip(*([*own["_steps"], *idle][:length] for own in pair), strict=True)
        ]
        for steps, after in zip(buffer._steps, buffer._steps[1:], strict=False):
            after[2][:] |= steps[5] & ~after[5]  # as SB3's buffer has it, a text that ended is a start after it
        buffer._openings = [(row + 16 * rank, *rest) for rank, own in enumerate(pair) for row, *rest in own["_openings"]]
        if pair[0]["_kept"]:
            none = [pair[0]["_kept"][0][:0]] * length
            buffer._kept = [np.concatenate(both) for both in zip(*([*own["_kept"], *none][:length] for own in pair), strict=True)]
        buffer.sampler, buffer.autocast = pair[0]["sampler"], pair[0]["autocast"]
        buffer.compute_returns_and_advantage(torch.zeros(32), np.ones(32, bool))
        for name in FLAT:
            if together[name] is not None:
                np.testing.assert_allclose(getattr(buffer, name), together[name], rtol=1e-4, atol=2e-5)
        for name, value in vars(buffer.stats).items():
            assert name == "reference_seconds" or value == pytest.approx(getattr(pair[0]["stats"], name), abs=1e-5)
            assert name == "reference_seconds" or getattr(pair[0]["stats"], name) == getattr(pair[1]["stats"], name)
    dealt = [[(s.prompt_id, s.context.tolist()) for s in rollout["segments"]] for rollout in joined(recorded)]
    alone = make(case)
    _, callback = alone._setup_learn(10**6)
    for prompts in dealt:  # other tokens, but the same prompts
        alone.collect_rollouts(alone.env, callback, alone.rollout_buffer, 0)
        assert prompts == [(s.prompt_id, s.context.tolist()) for s in alone.rollout_buffer.segments]


@pytest.mark.parametrize("case", ["gae", "again"])
def test_shards_write_what_whole_weights_write(exact, case):
    for rank in exact(case):
        for whole, sharded in zip(rank[0], rank[3], strict=True):
            for name in FLAT:
                np.testing.assert_array_equal(whole[name], sharded[name])


def test_trained_saved_and_loaded_by_two(two_ranks):
    for name in ("3-False", "None-False", "3-True"):
        first, second = found_by(two_ranks, f"whole-{name}")
        assert first == second
        (held, _, *numbers), (held_by_loaded, same, *of_loaded) = first
        assert held == held_by_loaded and same and numbers == of_loaded  # what was loaded goes on as what was not
        loaded = TextPolicyGradient.load(two_ranks / f"{name}.zip", env=make_env(1), device="cpu")
        written = AutoModelForCausalLM.from_pretrained(two_ranks / f"model-{name}")
        other = TextPolicyGradient.load(two_ranks / f"{name}-later.zip", env=make_env(1), device="cpu")
        for key, value in written.state_dict().items():
            assert torch.equal(other.policy.lm.state_dict()[key], value)
        loaded.learn(200, reset_num_timesteps=False)  # in one process
        assert loaded.num_texts == 16 * loaded.num_rollouts


@pytest.mark.slow
def test_two_ranks_one_two_and_three_go_on_one_after_the_other(tmp_path):
    """No step is lost, each rollout is dealt as to one process, and each update is that of one process on the joined batch."""
    dealt, steps = [], 0
    for number, size in enumerate((2, 1, 2, 3)):
        run(torchrun("tests.agents.distributed.ranked", "leg", tmp_path, size=size))
        found = found_by(tmp_path, f"leg-{number}", size)
        rollouts = joined([rank[0] for rank in found])
        taken = joined_minibatches([rank[0] for rank in found], [rank[1] for rank in found])
        dealt += [[(s.prompt_id, s.context.tolist()) for s in rollout["segments"]] for rollout in rollouts]
        assert [len(rank[0][0]["segments"]) for rank in found] == {1: [16], 2: [8, 8], 3: [5, 5, 6]}[size]
        alone = TextPolicyGradient.load(tmp_path / f"leg-{number}.zip", env=make_env(1), device="cpu") if number else make("gae")
        weights, _, taken_steps, _ = learn(alone, rollouts, taken)
        states = found[0][2]
        assert (
            max(float((states["policy"][name] - value).abs().max()) for name, value in weights.items()) < 5e-6
        )  # of float32 weights, which moved by 0.005 or more
        steps += taken_steps
        (count,) = {float(state["step"]) for state in states["policy.optimizer"]["state"].values()}
        assert count == steps == 8 * (number + 1)
        assert {rank[3] for rank in found} == {32 * (number + 1)}
    alone = make("gae")
    _, callback = alone._setup_learn(10**6)
    for prompts in dealt:
        alone.collect_rollouts(alone.env, callback, alone.rollout_buffer, 0)
        assert prompts == [(s.prompt_id, s.context.tolist()) for s in alone.rollout_buffer.segments]
    assert TextPolicyGradient.load(tmp_path / "leg-4.zip", env=make_env(1), device="cpu").num_rollouts == len(dealt) == 8


def test_what_ranks_cannot_do_is_refused(two_ranks):
    first, second = found_by(two_ranks, "refused")
    assert first == second
    parts = (
        "NLPO trains in one process, and torchrun started 2: its mask",
        "TextTRPO trains in one process, and torchrun started 2: its conjugate gradients",
        "at most 1 processes instead of 2",
        "batch_size=1: each of 2 ranks",
        "micro_batch_size=1 with shards",
        "changes while it scores",
        "rank 1 holds other weights",
    )
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


@pytest.mark.parametrize("algo", ["trpo", "nlpo", "dpo"])
def test_algorithms_of_one_process(algo):
    with pytest.raises(ValueError, match=f"--algo {algo} trains in one process.*ppo, maskable-ppo, a2c, reinforce, .*rloo"):
        on_ranks(algo)


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("ACCELERATE_USE_CPU", "True", "started a single process"),
        ("ACCELERATE_MIXED_PRECISION", "no", "started a single process"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "torch's own engines"),
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


@pytest.mark.slow
def test_one_process_needs_no_accelerate():
    probe = "import sys; sys.modules['accelerate'] = None; import agents.cli.train\n"
    probe += "from agents.distributed.process_group import ranks; assert ranks().size == 1"
    run([sys.executable, "-c", probe], WORLD_SIZE="1")


def test_ppo_of_several_processes_that_was_of_another_class_goes_on(tmp_path):
    """Its class differed once, what it does does not."""
    settings = {"policy_kwargs": {"model": LLAMA}, **COMMON}
    whitened = {"estimator": "gae", "n_epochs": 4, "whiten_advantages": True, "vf_coef": 0.1}
    other = TextPolicyGradient("TransformerPolicy", make_env(1), **settings, **whitened)
    other.learn(300)
    other.save(tmp_path / "other")
    other.learn(300, reset_num_timesteps=False)
    now = TextPPO.load(tmp_path / "other", env=make_env(1), **ALGORITHMS["ppo"].when_loaded)
    now.learn(300, reset_num_timesteps=False)
    for name, value in other.policy.state_dict().items():
        torch.testing.assert_close(now.policy.state_dict()[name], value, atol=1e-6, rtol=1e-5)


def flags(tiny, out, tokens):
    words = "--reward vader --n-episodes 16 --batch-size 8 --total-tokens".split()
    return ["--model", str(tiny), "--out", str(out), *words, str(tokens)]


def rows_of(out):
    file = out / "ppo" / "curve.csv"
    return list(csv.DictReader(file.read_text().splitlines())) if file.is_file() else []


def written(out):
    """Return when the curve was written last; 0: there is none."""
    try:
        return (out / "ppo" / "curve.csv").stat().st_mtime
    except FileNotFoundError:
        return 0


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
    held = TextPPO.load(out / "ppo" / "policy.zip", device="cpu")
    assert held.num_rollouts % 5 == 0 and held.num_rollouts > 0

    process = started([sys.executable, "-m", "agents.cli", "train", *settings], out, 13, log)  # one process: TextPPO
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130

    done = run(torchrun("agents.cli", "train", *settings))
    assert "2 processes train one policy" in done.stdout
    rows = rows_of(out)
    assert [int(row["iteration"]) for row in rows] == list(range(1, len(rows) + 1))
    assert [int(row["texts"]) for row in rows] == [16 * i for i in range(1, len(rows) + 1)]
    tokens = np.array([int(row["tokens"]) for row in rows])
    lengths = np.array([float(row["length"]) for row in rows])
    np.testing.assert_array_equal(np.diff(tokens, prepend=0), (16 * lengths).round())
    assert tokens[-1] >= 9000 > tokens[-2]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the ranks in /proc")
@pytest.mark.parametrize("shard", [[], ["--shard"]], ids=["ddp", "fsdp"])
def test_killed_at_ten_random_moments(tiny, tmp_path, shard):
    """Each time the same command goes on from a checkpoint that is whole, and the next kill hits it somewhere else."""
    out, log, random = tmp_path / "run", tmp_path / "log", np.random.default_rng(0)
    command, saved = torchrun("agents.cli", "train", *flags(tiny, out, 10**6), *shard), 0
    for _ in range(10):
        before = written(out)
        process = started(command, out, saved + 1, log)
        while written(out) in (before, 0):  # rows beyond the checkpoint are from the run before; without one the curve begins anew
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        time.sleep(random.uniform(0, 4))
        rank = int(random.integers(2))
        killed = children(process)[rank]
        os.kill(killed, signal.SIGKILL)
        assert process.wait(60) != 0
        assert f"rank {rank} (process {killed}) is gone; the same command goes on" in " ".join(log.read_text().split())
        policy = out / "ppo" / "policy.zip"
        number = TextPPO.load(policy, device="cpu").num_rollouts if policy.exists() else 0
        assert saved <= number <= len(rows_of(out))
        assert [int(row["iteration"]) for row in rows_of(out)] == list(range(1, len(rows_of(out)) + 1))
        saved = number
    assert saved >= 10


@pytest.mark.slow
def test_a_failure_of_one_rank_is_told_once_and_ends_all(tiny, tmp_path):
    done = run(torchrun("tests.agents.distributed.ranked", *flags(tiny, tmp_path / "run", 9000)), check=False)
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1 and "error: the policy's logits are NaN" in done.stderr
    assert len(rows_of(tmp_path / "run")) == 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the ranks in /proc")
@pytest.mark.parametrize("shard", [[], ["--shard"]], ids=["ddp", "fsdp"])
def test_torchrun_starts_all_again_and_the_run_goes_on_by_itself(tiny, tmp_path, shard):
    out, log = tmp_path / "run", tmp_path / "log"
    command = torchrun("agents.cli", "train", *flags(tiny, out, 9000), *shard, "--overwrite")  # once
    command[command.index("-m", 3) : command.index("-m", 3)] = ["--max-restarts", "2"]
    process = started(command, out, 7, log)
    for rows in (7, 12):
        while len(rows_of(out)) < rows:
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        first = children(process)
        os.kill(first[rows % 2], signal.SIGKILL)
        while not children(process).keys() == {0, 1} or set(children(process).values()) & set(first.values()):
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
    assert process.wait(180) == 0, log.read_text()
    rows = rows_of(out)
    assert [int(row["iteration"]) for row in rows] == list(range(1, len(rows) + 1))
    assert [int(row["texts"]) for row in rows] == [16 * i for i in range(1, len(rows) + 1)]
    assert int(rows[-1]["tokens"]) >= 9000 > int(rows[-2]["tokens"])
    assert TextPPO.load(out / "ppo" / "policy.zip", device="cpu").num_rollouts == len(rows)


@pytest.mark.slow
def test_ctrl_c_ends_all_with_one_message(tiny, tmp_path):
    process = started(torchrun("agents.cli", "train", *flags(tiny, tmp_path / "run", 9000)), tmp_path / "run", 3, tmp_path / "log")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0
    said = (tmp_path / "log").read_text()
    assert said.count("Stopped at ") == 1 and "error:" not in said
    saved = TextPPO.load(tmp_path / "run" / "ppo" / "policy.zip", device="cpu").num_timesteps
    assert saved == int(rows_of(tmp_path / "run")[-1]["tokens"])
    assert f"Stopped at {saved:,} of 9,000 tokens, saved in" in " ".join(said.split())


@pytest.mark.slow
def test_the_command_of_the_documentation(tiny, tmp_path):
    command = re.findall(r"^ +(torchrun .*)$", PAGE, re.MULTILINE)[0]
    _, *words = shlex.split(command)
    done = run([sys.executable, "-m", "torch.distributed.run", *words, *flags(tiny, tmp_path / "run", 800)])
    assert "2 processes train one policy" in done.stdout and "the same command without torchrun" in done.stdout
    assert "the reward" in run([sys.executable, "-m", "agents.cli", "train", *flags(tiny, tmp_path / "run", 800)]).stdout.lower()
    assert [int(row["texts"]) for row in rows_of(tmp_path / "run")] == [16, 32]


@pytest.mark.slow
def test_the_same_command_gives_the_same_run(tiny, tmp_path):
    for name in ("one", "two"):
        run(torchrun("agents.cli", "train", *flags(tiny, tmp_path / name, 3000)))
    one, two = (TextPPO.load(tmp_path / name / "ppo" / "policy.zip", device="cpu") for name in ("one", "two"))
    for name, value in one.policy.state_dict().items():
        assert torch.equal(value, two.policy.state_dict()[name])
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "two")


@pytest.mark.slow
def test_accelerates_own_launcher_is_refused(tiny, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--mixed_precision", "no", "--num_machines", "1"]
    launch += ["--dynamo_backend", "no", "--cpu"]
    done = run([*launch, "-m", "agents.cli", "train", *flags(tiny, tmp_path / "run", 400)], check=False)
    assert done.returncode != 0 and "started a single process" in " ".join((done.stdout + done.stderr).split())
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_errors_are_told_once_and_end_all(tiny, tmp_path):
    for wrong, part in (("--algo nlpo", "--algo nlpo trains in one process"), ("--task chess", "no task is called 'chess'")):
        done = run([*torchrun("agents.cli", "train", *flags(tiny, tmp_path / "run", 400)), *wrong.split()], check=False)
        assert done.returncode != 0 and done.stderr.count("error: ") == 1 and f"error: {part}" in done.stderr
