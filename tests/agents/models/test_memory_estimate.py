"""The memory estimate: what is stored to the byte, what passes take by hand, and what is said where it does not fit."""

import json
import resource
from dataclasses import replace
from itertools import chain, product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from torch import nn
from torch.profiler import profile

from agents import DPO, RLOO, SFT, ExpertIteration, TextPPO
from agents.algorithms.common import memory_check as footprint
from agents.algorithms.common.memory_check import held, load_of, of_rank, saved_for_backward, sizes_of, supervised_load, supervised_sizes
from agents.algorithms.dpo import Pair
from agents.benchmark.performance import gpu_estimates as paper
from agents.benchmark.performance.architectures import architectures
from agents.distributed.engine import engine_of
from agents.distributed.ranks import Ranks
from agents.models.backbones import backbone_of
from agents.models.loading import load_lm
from agents.models.memory_estimate import GIB, Load, Saved, Sizes, estimate, remedy
from agents.models.sequences import TextRecord, pack
from agents.utils.free_memory import available
from tests.slow_cases import slow_but, slow_where
from textrl_env import IntegerTokenizer, Prompt, TextTask
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv

from ..conftest import EOS, GPT2, LLAMA, VOCAB, sevens

MIB = 2**20
PROMPT, RESPONSE, ROWS = 5, 44, 4  # two blocks of the cache
EXACT = {name: config for name, config in architectures(VOCAB).items() if name in ("llama", "gpt2", "mamba", "t5", "gemma2")}


def make_model(model=LLAMA, made=TextPPO, rows=ROWS, n_episodes=ROWS, group_size=1, **settings):
    prompts = [Prompt("1 2 3 4 5"), Prompt("5 4 3 2 1")]
    task = TextTask(IntegerTokenizer(VOCAB, EOS), prompts, max_new_tokens=RESPONSE, group_size=group_size)
    env = TextGenerationVecEnv(rows, task=task, reward=sevens)
    policy = {"model": model, "min_new_tokens": RESPONSE, **settings.pop("policy_kwargs", {})}
    return made("TransformerPolicy", env, n_episodes=n_episodes, batch_size=2, policy_kwargs=policy, seed=0, device="cpu", **settings)


def size(tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize("name", slow_but(("llama", "t5"), EXACT))
@pytest.mark.parametrize("settings", slow_but([{"critic": "separate"}, {"top_k": 5}], [{}, {"critic": "separate"}, {"top_k": 5}]), ids=str)
def test_stored_bytes_are_those_of_real_tensors(name, settings):
    model = make_model(EXACT[name], policy_kwargs=settings)
    found, caches = {}, model.policy._caches

    def note(local, _):
        found["cache"] = caches["acting"].memory + caches["values"].memory
        return True

    model.learn(1, callback=note)
    made, buffer = model.memory, model.rollout_buffer
    parameters = [p for p in model.policy.parameters() if p.requires_grad]
    assert made.stored["weights"] == size(model.policy.parameters())
    assert made.stored["gradients"] == size(p.grad for p in parameters if p.grad is not None)
    moments = [state[key] for state in model.policy.optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    assert made.stored["optimizer"] == size(moments)
    assert made.stored["reference"] == size(model.reference.parameters())
    assert made.phases["writing"]["cache"] == found["cache"]
    arrays = [*chain(*buffer._steps), *buffer._kept, *(opening[2] for opening in buffer._openings), buffer.episode_starts]
    flat = ("actions", "values", "log_probs", "rewards", "advantages", "returns", "kl", "reference_log_probs")
    arrays += [getattr(buffer, key) for key in flat] + ([buffer.kept] if buffer.kept is not None else [])
    assert made.stored["rollout"] == sum(array.nbytes for array in arrays)
    steps = size(state["step"] for state in model.policy.optimizer.state.values())
    assert held(model) == sum(made.stored.values()) - made.stored["rollout"] + steps


class Small(nn.Module):
    """Four numbers go in, eight come out of a tanh, four leave."""

    vocab_size, hidden_size = VOCAB, 4

    def __init__(self):
        super().__init__()
        self.embedding, self.up, self.down = nn.Embedding(VOCAB, 4), nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, input_ids, positions, mask=None):
        return self.down(torch.tanh(self.up(self.embedding(input_ids))))

    def logits(self, hidden):
        return hidden @ self.embedding.weight.T


def test_what_a_pass_saves_by_hand():
    # of each token: its id (int64), the embedding that `up` reads, the tanh, which it keeps itself and which `down` reads
    assert saved_for_backward(backbone_of(Small()), 40) == Saved(0, 8 + 4 * 4 + 8 * 4, 0)
    assert saved_for_backward(backbone_of(Small()), 3) == Saved(0, 56, 0)


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("eager", [False, True])
def test_short_texts_tell_what_long_ones_save(config, eager):
    model = make_model({**config, **({"attn_implementation": "eager"} if eager else {})})
    backbone, (texts, length) = model.policy.backbone, (3, 48)
    weights = {p.untyped_storage().data_ptr() for p in backbone.lm.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = tensor
        return tensor

    ids = np.ones(24, np.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = backbone._run_trunk(pack([TextRecord(ids, np.ones(25, np.int64), 0)] * texts, "cpu"))
    assert out.requires_grad
    actual = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    saved = sizes_of(model).saved
    assert saved.of(texts, length) == pytest.approx(actual, rel=0.05)
    assert (saved.pair > 0) == eager


MEDIUM = {
    **LLAMA, "vocab_size": 2000, "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": True,
}  # fmt: skip


def peak_of(work):
    """The most that torch's allocator held above what it held before, by its own profiler."""
    with profile(profile_memory=True) as found:
        work()
    with TemporaryDirectory() as folder:
        found.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    memory = sorted((e["ts"], e["args"]["Total Allocated"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    return max(total for _, total, _ in memory) - (memory[0][1] - memory[0][2])


UPDATES = [{}, {"lora": {"r": 8}}, {"gradient_checkpointing": True}, {"lora": {"r": 8}, "micro_batch_size": 4}]


@pytest.mark.parametrize("settings", slow_but((s for s in UPDATES if s != {"lora": {"r": 8}}), UPDATES), ids=str)
def test_an_update_takes_what_the_allocator_counts(settings):
    prompt, response, texts = 16, 32, 16
    task = TextTask(IntegerTokenizer(2000, EOS), [Prompt(" ".join(["1"] * prompt))], max_new_tokens=response, group_size=2)
    env = TextGenerationVecEnv(texts, task=task, reward=sevens)
    kwargs = {"model": MEDIUM, **settings}
    model = RLOO("TransformerPolicy", env, n_episodes=texts, batch_size=texts, policy_kwargs=kwargs, seed=0, device="cpu")
    expected = sum(estimate(sizes_of(model), load_of(model), False).phases["update"].values())
    batch = pack([TextRecord(np.ones(prompt, np.int64), np.full(response, i + 1), 0) for i in range(texts)], "cpu")
    actions = torch.ones(texts * response, dtype=torch.int64)
    model.policy.set_training_mode(True)

    def update():
        model.policy.evaluate_actions(batch, actions)[1].mean().backward()

    update()  # what is allocated once, and gradients, are there
    assert 0.95 < expected / peak_of(update) < 1.2


def test_adapters_need_no_reference_and_little_else():
    full, adapted = (sizes_of(make_model(policy_kwargs=settings)) for settings in ({}, {"lora": {"r": 2}}))
    assert adapted.reference == 0 and full.reference == full.weights - 4 * 17  # the value head is the policy's alone
    assert adapted.trained < full.trained / 2 and adapted.weights > full.weights


# One layer of 8 bytes a token for the backward pass, keys and values of 4; a vocabulary of 10.
SIZES = Sizes(1000, 1000, 900, 2, Saved(0, 8, 0), 1, 2, 4, 0, 0, 1, 10, False, 40, copies=700)
LOAD = Load(texts=6, rows=4, prompt=3, response=6, at_once=2, reference_at_once=4)


def test_items_by_hand():
    made = estimate(SIZES, LOAD, False)
    # two rounds of 6 steps for 4 rows, 26 bytes each; 36 tokens of 36 bytes; 6 prompts of 3 int64
    assert made.stored == {"weights": 1000, "gradients": 1000, "optimizer": 2000, "reference": 900, "rollout": 12 * 4 * 26 + 36 * 36 + 144}
    assert made.phases == {
        "writing": {"cache": 4 * 4 * 32, "copied weights": 700, "a step": 4 * 10 * 24},
        "reference pass": {"reference pass": 12 * 4 * 6 * 10},
        "update": {"activations": 2 * 8 * 8, "logits": 12 * 2 * 6 * 10},
    }
    assert made.needed == sum(made.stored.values()) + 2880
    assert made.later == 960  # all gradients but the head's
    assert made.items["reference pass"] == 2880
    kept = estimate(SIZES, LOAD, True)
    assert kept.total == round(sum(made.stored.values()) + 90 * MIB + 160 + 1.6 * (512 + 960 + 2880 + 128 + 1440) - 960)
    # an update takes the room of copied weights: 700 bytes cost nothing more, of 3700 what is beyond 1.6 * 1568
    assert estimate(replace(SIZES, copies=3700), LOAD, True).total == round(kept.total + 3700 - 1.6 * 1568)
    again = estimate(replace(SIZES, saved=Saved(0, 800, 0)), replace(LOAD, checkpointing=True), True)
    # the layers' inputs, and one layer as it is computed again
    assert again.phases["update"] == {"activations": 2 * 2 * 8, "logits": 2 * 800 * 8}
    others = 512 + 4 * 800 * 3 // 2 + 4 * 800 * 8 // 2  # the cache, a pass over the prompts, and one of the reference
    assert again.total == round(sum(made.stored.values()) + 90 * MIB + 160 + 1.6 * others + 4 * (32 + 12800) - 960)


def test_items_of_a_rank_by_hand():
    sharded = replace(SIZES, shards=3, outside=100, layer=300, sent=0.5)
    made = estimate(sharded, LOAD, False)
    whole = estimate(SIZES, LOAD, False)
    assert made.stored == {**whole.stored, "weights": 334, "gradients": 334, "optimizer": 667, "reference": 300}
    # 100 outside of the layers as they are, 900 and 800 in them as half; outside thrice, a layer of 300 thrice as half and twice as it is
    assert made.phases["writing"] == {**whole.phases["writing"], "whole weights": 100 + 450}
    assert made.phases["reference pass"] == {**whole.phases["reference pass"], "whole weights": 100 + 400}
    assert made.phases["update"] == {**whole.phases["update"], "layers put together": 300 + 450 + 600}
    assert made.later == 334
    fixed = estimate(replace(sharded, trained=8), replace(LOAD, rows=0), False)  # adapters; DPO's reference goes layer by layer
    assert fixed.phases["update"]["layers put together"] == 100 + 450 and "whole weights" not in fixed.phases["reference pass"]
    assert estimate(replace(SIZES, buckets=True), LOAD, False).later == 0


def test_each_of_two_ranks_has_half():
    two = Ranks()
    two.size = 2
    model = make_model(rows=8, n_episodes=6)
    sizes = sizes_of(model)
    model.engine = engine_of(two, True, torch.bfloat16)
    assert load_of(model) == Load(3, 8, PROMPT, RESPONSE, 1, 64, minibatch=1)
    layers = [size(layer.parameters()) for layer in model.policy.lm.model.layers]
    sharded = of_rank(sizes, model.engine, model.policy.lm)
    assert sharded == replace(sizes, shards=2, outside=size(model.policy.lm.parameters()) - sum(layers), layer=layers[0], sent=0.5)
    assert of_rank(sizes, engine_of(two), model.policy.lm) == replace(sizes, buckets=True)
    grouped = make_model(made=RLOO, group_size=2, n_episodes=6)
    grouped.engine = engine_of(two)
    assert load_of(grouped).texts == 4  # two groups of three
    trainer = SFT(LLAMA, IntegerTokenizer(VOCAB, EOS), batch_size=5)
    trainer.engine = engine_of(two)
    load = supervised_load(trainer, [TextRecord(np.ones(2), np.ones(3), 0)] * 5)
    assert (load.texts, load.at_once, load.minibatch) == (3, 3, 3)


def test_expert_iteration_writes_and_learns():
    prompts = [Prompt("1 2 3 4 5"), Prompt("5 4 3 2 1")]
    task = TextTask(IntegerTokenizer(VOCAB, EOS), prompts, max_new_tokens=RESPONSE)
    agent = ExpertIteration(task, LLAMA, sevens, n=3, n_prompts=5, steps=1, batch_size=4, device="cpu")
    memory, lm = agent.learn(1).memory, size(agent.policy.lm.parameters())
    rollout = 15 * RESPONSE * (26 + 36) + 15 * 8 * PROMPT
    assert memory.stored == {"weights": lm, "gradients": lm, "optimizer": 2 * lm, "reference": 0, "rollout": rollout}
    one = sizes_of(make_model())
    assert memory.phases["writing"]["cache"] == 15 * 2 * 32 * one.column  # two blocks
    assert memory.phases["update"]["activations"] == one.saved.of(4, PROMPT + RESPONSE - 1, 4 * (PROMPT + RESPONSE - 1))
    two = Ranks()
    two.size = 2
    agent.trainer.engine = engine_of(two)
    assert footprint.check_imitation(agent).stored["rollout"] == 9 * RESPONSE * (26 + 36) + 9 * 8 * PROMPT  # three prompts


def test_gradients_that_come_later_leave_their_room_to_a_steps_only_pass():
    large = replace(SIZES, saved=Saved(0, 800, 0))
    stored, update = 1000 + 2000 + 900 + 1248 + 1296 + 144, 2 * 800 * 8 + max(1440, 800 * 8)
    one = estimate(large, replace(LOAD, reference_at_once=1), False)
    assert one.needed == stored + 1000 + update - 960
    two = estimate(large, replace(LOAD, reference_at_once=1, minibatch=4), False)  # the second finds the first one's gradients
    assert two.needed == stored + 1000 + update


def test_a_prompt_that_texts_share_is_counted_once_by_hand():
    joined, load = replace(SIZES, saved=Saved(0, 8, 0, 1)), Load(12, 12, 10, 3, 6, 12, minibatch=12, group=3)
    # 4 prompts in the 12 texts, 2 in 6 of them; of a response of 3 tokens 2 are read; 12 keys a text
    assert load.tokens(12, 12) == 4 * 10 + 12 * 2 and load.tokens(6, 12) == 2 * 10 + 6 * 2
    assert estimate(joined, load, False).phases["update"]["activations"] == 8 * 32 + 6 * 12
    assert estimate(SIZES, load, False).phases["update"]["activations"] == 6 * 8 * 12  # a model that reads them side by side
    alone = replace(load, group=1)  # a prompt for each text: joining would spare nothing
    assert estimate(joined, alone, False).phases["update"]["activations"] == 6 * 8 * 12


WIDE = {**LLAMA, "hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 8, "num_key_value_heads": 4}


@pytest.mark.parametrize(("prompt", "response", "group"), [(20, 6, 4), (12, 16, 2), (8, 40, 4)])
def test_what_joined_texts_save_is_foreseen(prompt, response, group):
    backbone = backbone_of(load_lm(WIDE))
    texts = [TextRecord(np.full(prompt, n % (8 // group) + 1), np.full(response, n), 0) for n in range(8)]
    batch = pack(texts, "cpu")
    assert backbone._joined(batch) is not None
    actual = footprint._saved_bytes(backbone, lambda: backbone.hidden(batch))
    load = Load(8, 8, prompt, response, 8, 8, group=group)
    foreseen = saved_for_backward(backbone, prompt + response - 1).of(8, prompt + response - 1, load.tokens(8, 8))
    assert foreseen == pytest.approx(actual, rel=0.06)
    side_by_side = saved_for_backward(backbone, 30)._replace(key=0).of(8, prompt + response - 1)
    assert side_by_side > 1.5 * actual or prompt < response


def in_pairs(texts):
    return [Pair(one, other._replace(context=one.context)) for one, other in zip(texts[::2], texts[1::2], strict=True)]


FIXED = [{}, {"lora": {"r": 8}, "micro_batch_size": 2}, {"gradient_checkpointing": True}]
# what settings change is counted in the same way for both
TRAININGS = slow_where(lambda settings, made: made is SFT and settings != {}, product(FIXED, (SFT, DPO)))


@pytest.mark.parametrize(("settings", "made"), TRAININGS, ids=lambda it: getattr(it, "__name__", str(it)))
def test_trainings_on_fixed_texts_take_what_the_allocator_counts(made, settings):
    if "lora" in settings:
        pytest.importorskip("peft")
    texts = [TextRecord(np.full(8, n), np.full(32, n), 0) for n in range(1, 17)]
    trainer = made(MEDIUM, IntegerTokenizer(2000, EOS), batch_size=8, **settings)
    rows = texts if made is SFT else in_pairs(texts)
    load = supervised_load(trainer, rows)
    per = 1 if made is SFT else 2
    assert (load.at_once, load.minibatch) == (settings.get("micro_batch_size", 8) * per, 8 * per)
    memory = estimate(supervised_sizes(trainer, load.prompt + load.response - 1), load, False)
    assert memory.stored["weights"] == size(trainer.lm.parameters())
    assert memory.stored["reference"] == (memory.stored["weights"] if made is DPO and "lora" not in settings else 0)
    trainer.lm.train()  # or no layer would be computed again
    trainer._mean_loss(rows[:8], backward=True)  # gradients are there
    expected = max(sum(items.values()) for items in memory.phases.values())
    assert 0.9 < expected / peak_of(lambda: trainer._mean_loss(rows[:8], backward=True)) < 1.25


def test_the_longest_texts_of_a_set_count():
    trainer = SFT(LLAMA, IntegerTokenizer(VOCAB, EOS), batch_size=4, micro_batch_size=2)
    rows = [TextRecord(np.ones(n), np.ones(m), 0) for n, m in ((2, 3), (20, 4), (1, 21), (5, 5))]
    load = supervised_load(trainer, rows)  # 12.5 actions a text, of 24 tokens with the padding
    assert (load.prompt + load.response, load.response, load.whole_logits) == (24, 13, True)


def test_a_training_on_fixed_texts_that_cannot_fit_is_refused(monkeypatch):
    monkeypatch.setattr(footprint, "available", lambda device, **_: 0)
    trainer = DPO(MEDIUM, IntegerTokenizer(2000, EOS), batch_size=8)
    rows = in_pairs([TextRecord(np.full(8, n), np.full(32, n), 0) for n in range(1, 17)])
    with pytest.raises(ValueError, match=r"needs about 0\.\d\d GiB and 0\.\d\d are free; .* train adapters \(lora=\{'r': 16\}\)"):
        trainer.learn(rows, 2)
    assert not trainer.losses
    sizes, load = supervised_sizes(trainer, 39), supervised_load(trainer, rows)
    some = sum(estimate(sizes, load, False).stored.values()) + 11 * MIB
    assert remedy(sizes, load, some).endswith("this fits: micro_batch_size=2")
    monkeypatch.setattr(footprint, "available", lambda device, **_: None)
    assert trainer.learn(rows, 1).memory.needed > 0


def test_settings_that_would_fit_are_named():
    big = replace(SIZES, weights=GIB, trained=GIB, reference=GIB, saved=Saved(0, MIB, 0), vocabulary=50_000)
    long = replace(LOAD, texts=64, rows=64, response=1000, at_once=64, reference_at_once=16)
    said = remedy(big, long, 30 * GIB)  # 5 GiB are stored, and a text's activations take 1 GiB
    assert said == "the largest item is activations (62.62 GiB); this fits: micro_batch_size=16"
    assert estimate(big, replace(long, at_once=16), False).needed <= 30 * GIB < estimate(big, replace(long, at_once=32), False).needed
    both = remedy(big, replace(long, reference_at_once=64), 30 * GIB)
    assert both.endswith("micro_batch_size=16, rollout_buffer_kwargs={'reference_batch_size': 32}")
    assert remedy(replace(big, layers=10, saved=Saved(0, 8 * MIB, 0)), long, 8 * GIB).endswith(
        "micro_batch_size=1, gradient_checkpointing=True, rollout_buffer_kwargs={'reference_batch_size': 4}"
    )
    rows = remedy(replace(big, column=MIB), replace(long, at_once=1), 24 * GIB)
    assert rows.startswith("the largest item is cache (64.00 GiB)") and rows.endswith("of 8 rows (textrl train: n_episodes=8)")
    assert remedy(replace(big, saved=Saved(0, 10 * MIB, 0)), long, 6 * GIB).endswith("at a time fits: lower max_new_tokens")


def test_what_is_stored_is_lowered_by_other_models():
    assert "train adapters (policy_kwargs={'lora'" in remedy(replace(SIZES, weights=GIB, trained=GIB), LOAD, 2 * GIB)
    assert remedy(replace(SIZES, weights=GIB), LOAD, MIB).endswith("weights alone are too large: take a smaller model")
    assert remedy(replace(SIZES, vocabulary=80_000), replace(LOAD, texts=900, kept=True), 20 * MIB).endswith("lower n_episodes")


def test_what_cannot_fit_is_refused_before_anything_is_written(monkeypatch, capsys):
    monkeypatch.setattr(footprint, "available", lambda device, **_: 10_000)
    model = make_model()
    with pytest.raises(ValueError, match=r"needs about 0\.\d\d GiB and 0\.00 are free; the largest item is .*"):
        model.learn(1)
    assert model.num_timesteps == 0 and not model.policy.optimizer.state
    made = estimate(sizes_of(model), load_of(model), True)
    monkeypatch.setattr(footprint, "available", lambda device, **_: int(made.total / 0.9) - held(model))
    with pytest.warns(UserWarning, match="memory: about .* free: it may not fit"):
        model.learn(1)
    monkeypatch.setattr(footprint, "available", lambda device, **_: None)
    make_model(verbose=1).learn(1)
    assert "memory: about 0.09 GiB" in capsys.readouterr().out


def test_loads_are_read_off_algorithms():
    load = load_of(make_model(rows=8, policy_kwargs={"micro_batch_size": 1, "gradient_checkpointing": True}))
    assert load == Load(4, 8, PROMPT, RESPONSE, 1, 64, True, False, minibatch=2)
    assert load_of(make_model(policy_kwargs={"top_p": 0.9})).kept
    grouped = make_model(made=RLOO, group_size=2, skip_equal_groups=True, max_sampling_rounds=3)
    assert load_of(grouped).texts == 12 and load_of(grouped).at_once == 2 and load_of(grouped).group == 2


def test_looking_draws_nothing():
    model = make_model()
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    sizes_of(model)
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()
    assert all(p.grad is None for p in model.policy.parameters())


def test_free_memory_is_what_system_and_groups_leave(tmp_path):
    cpu = torch.device("cpu")
    assert available(cpu, tmp_path) is None and available(torch.device("meta")) is None
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:  8000 kB\n")
    assert available(cpu, tmp_path) == 8000 * 1024
    (tmp_path / "proc/self/cgroup").write_text("0::/box/job\n")
    group = tmp_path / "sys/fs/cgroup/box"
    (group / "job").mkdir(parents=True)
    (group / "job/memory.max").write_text("max\n")
    (group / "memory.max").write_text("5000000\n")
    (group / "memory.current").write_text("2000000\n")
    (group / "memory.stat").write_text("anon 1\ninactive_file 300000\n")
    assert available(cpu, tmp_path) == 3_300_000


@pytest.mark.slow
def test_paper_counts_known_models():
    small = paper.paper("124M")
    assert small.parameters == 124_439_808 and small.column == 12 * 2 * 768 * 2
    assert small.saved.pair == 0
    table = paper.tables()
    assert table == paper.tables()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| 7B")]
    assert rows[0][:5] == ["7B", "all", "25.1", "75.3", "25.1"] and rows[0][-1] == "does not fit"
    assert rows[1][1] == "adapters, rank 16" and float(rows[1][5]) > 0
    # of 8 GPUs each holds an eighth; while it writes, 6.48e9 numbers of the layers in bfloat16, and 262e6 outside of them
    assert rows[2][1:5] == ["all, in 8 shards", "3.1", "9.4", "3.1"] and rows[2][-1] != "does not fit"
    whole = 2 * 32 * (4 * 4096**2 + 3 * 4096 * 11_008 + 2 * 4096) + 4 * (2 * 32_000 * 4096 + 4096)
    sizes = paper.sizes_of(paper.paper("7B"), False, 8)
    assert sizes.whole(sizes.weights) == whole


def test_limits_of_the_process_count_and_ranks_share_the_rest(tmp_path, monkeypatch):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemAvailable:       8000 kB\n")
    (tmp_path / "proc/self/status").write_text("Name:\tpython\nVmSize:\t    5000 kB\nVmData:\t    1000 kB\n")
    cpu = torch.device("cpu")
    assert available(cpu, tmp_path) == 8000 * 1024
    assert available(cpu, tmp_path, beside=4) == 2000 * 1024
    limits = {resource.RLIMIT_AS: 9000 * 1024, resource.RLIMIT_DATA: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits[kind], resource.RLIM_INFINITY))
    assert available(cpu, tmp_path) == available(cpu, tmp_path, beside=2) == 4000 * 1024
    limits[resource.RLIMIT_DATA] = 1500 * 1024
    assert available(cpu, tmp_path) == 500 * 1024
