import copy
import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

import rewards
from rewards import Preference, PreferenceRewardModel, fit_preference_model
from rewards.models.scorers import PreferenceNetwork, build_trunk
from textrl_env import make_task
from textrl_env.episode import Episode
from textrl_env.tokenizer import FileTokenizer

SUBJECTS = ["plot", "cast", "script", "music"]
WORDS = ["was", "is", "very", "rather", "and", "the", "a", "of"]
TINY = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
QUICK = {"epochs": 2, "max_tokens": 24}


def planted(n, seed=0):
    # the preferred text says "not bad" or "good", the other "not good" or "bad": single words do not tell them apart
    rng = np.random.default_rng(seed)

    def text(ending):
        filler = " ".join(rng.choice(WORDS, rng.integers(1, 6)))
        return f" {rng.choice(SUBJECTS)} {filler} {ending}"

    endings = [(" good", "not good"), ("not bad", "bad")]
    return [Preference("the", *(text(e.strip()) for e in endings[rng.integers(2)])) for _ in range(n)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([p.prompt + p.chosen for p in planted(300)], trainer)
    backend.save(str(path))
    return FileTokenizer(path)


@pytest.fixture(scope="module")
def fitted(tokenizer):
    return fit_preference_model(planted(400), tokenizer=tokenizer, trunk=TINY, **QUICK)


@pytest.fixture
def model(fitted):
    fitted[0].gain, fitted[0].bias = 1.0, 0.0
    return fitted[0]


def episodes(n=40, seed=5):
    return [Episode.from_text(p.prompt, p.chosen if i % 2 else p.rejected) for i, p in enumerate(planted(n, seed))]


def pair_accuracy(model, preferences):
    chosen = model.score([Episode.from_text(p.prompt, p.chosen) for p in preferences])
    rejected = model.score([Episode.from_text(p.prompt, p.rejected) for p in preferences])
    return np.mean(np.array(chosen) > np.array(rejected))


@pytest.mark.parametrize("parts", [{}, {"trunk": None}, {"ngram_buckets": 0, "epochs": 8, "learning_rate": 3e-3}])
def test_learns_a_planted_preference(tokenizer, parts):
    settings = {"trunk": TINY, **QUICK, **parts}
    model, report = fit_preference_model(planted(800), tokenizer=tokenizer, **settings)
    assert report.held_out_accuracy > 0.95
    assert pair_accuracy(model, planted(200, seed=9)) > 0.95
    assert (report.n_train, report.n_held_out) == (720, 80)
    assert all(len(curve) and curve[-1] < curve[0] for curve in report.losses.values())
    assert set(report.blend) == set(report.losses) == set(report.best_epochs)


def test_batched_scores_equal_scores_one_by_one(model):
    model.normalise(episodes(64))  # unit scale: float32 is good to 2e-7 of a score, and raw scores reach tens
    texts = [*episodes(), Episode.from_text("", ""), Episode.from_text("the" * 9, " plot is very good" * 9)]
    alone = [model.score([e])[0] for e in texts]
    assert model.score(texts) == pytest.approx(alone, abs=1e-6)
    assert model.score(texts[::-1]) == pytest.approx(alone[::-1], abs=1e-6)
    assert all(type(s) is float for s in model.score(texts))
    assert model.score([]) == []


def test_long_texts_lose_their_beginning(model):
    tail = " the plot is very good" * 9
    rows = model.encode([tail, "something else" + tail])
    assert len(rows[0]) == 24 and rows[0][-1] == model.tokenizer.eos_token_id
    assert np.array_equal(*rows)


def test_score_is_the_trunk_by_hand(model):
    # the padded, blended batch against the definition: mean over the hidden states of one unpadded text
    network, text = model.network, "the plot is not good"
    ids = torch.from_numpy(model.encode([text])[0])[None]
    part = network.parts["trunk"]
    with torch.no_grad():
        hidden = part.trunk(input_ids=ids).last_hidden_state[0]
        by_hand = part.head(hidden.mean(0)).item() * network.blend[1].item()
        by_hand += network.parts["ngrams"](ids, torch.ones_like(ids, dtype=torch.bool)).item() * network.blend[0].item()
    assert model.score([Episode.from_text("the", " plot is not good")])[0] == pytest.approx(by_hand, abs=1e-5)


def test_normalise_gives_mean_0_and_variance_1(model):
    sample = episodes(64)
    before = np.array(model.score(sample))
    model.normalise(sample)
    scores = np.array(model.score(sample))
    assert scores.mean() == pytest.approx(0, abs=1e-9) and scores.var() == pytest.approx(1, abs=1e-9)
    assert model.gain == pytest.approx(1 / before.std()) and model.bias == pytest.approx(-before.mean() / before.std())
    model.normalise(sample)  # a second time changes nothing: gain and bias are set, not composed
    assert model.score(sample) == pytest.approx(scores.tolist())


def test_normalise_refuses_too_little(model):
    with pytest.raises(ValueError, match="at least 2"):
        model.normalise(episodes(1))
    with pytest.raises(ValueError, match="all score"):
        model.normalise([Episode.from_text("", "the same")] * 5)


@pytest.mark.parametrize("parts", [{}, {"trunk": None}, {"ngram_buckets": 0}])
def test_save_then_load(tokenizer, tmp_path, parts):
    model, _ = fit_preference_model(planted(40), tokenizer=tokenizer, **{"trunk": TINY, **QUICK, **parts})
    sample = episodes()
    model.normalise(sample)
    model.save(tmp_path / "reward")
    model.save(tmp_path / "reward")  # replaces
    state = torch.get_rng_state()
    loaded = rewards.make("preference", path=tmp_path / "reward", batch_size=7)
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.score(sample) == pytest.approx(model.score(sample), abs=1e-6)
    again = PreferenceRewardModel.load(tmp_path / "reward")
    assert again.score(sample) == model.score(sample)
    assert (again.gain, again.bias, again.max_tokens) == (model.gain, model.bias, 24)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["reward"]
    assert sorted(p.name for p in (tmp_path / "reward").iterdir()) == [
        "model.safetensors",
        "preference.json",
        "tokenizer.json",
    ]


def test_save_does_not_overwrite_other_things(model, tmp_path):
    (tmp_path / "thesis").write_text("years of work")
    for path in (tmp_path, tmp_path / "thesis"):
        with pytest.raises(FileExistsError, match="no reward model"):
            model.save(path)


@pytest.mark.parametrize("name", ["model.safetensors", "preference.json", "tokenizer.json"])
def test_damaged_folders_are_named(model, tmp_path, name):
    model.save(tmp_path / "reward")
    file = tmp_path / "reward" / name
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ValueError, match="reward is a damaged reward model"):
        PreferenceRewardModel.load(tmp_path / "reward")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        PreferenceRewardModel.load(tmp_path / "reward")


@pytest.mark.parametrize(
    "change",
    [{"format": 2}, {"ngram_buckets": 8}, {"gain": None}, {"trunk": {"model_type": "none"}}, {"trunk": {}}],
)
def test_a_config_that_does_not_fit(model, tmp_path, change):
    model.save(tmp_path / "reward")
    file = tmp_path / "reward" / "preference.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match="damaged"):
        PreferenceRewardModel.load(tmp_path / "reward")


def test_loading_runs_no_code(model, tmp_path):
    model.save(tmp_path / "reward")
    trap = tmp_path / "reward" / "trap.py"
    trap.write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\nclass Trap: pass\n")
    file = tmp_path / "reward" / "preference.json"
    config = json.loads(file.read_text())
    config["trunk"] |= {
        "auto_map": {"AutoModel": "trap.Trap", "AutoConfig": "trap.Trap"},
        "attn_implementation": "someone/kernel",
    }
    file.write_text(json.dumps(config))
    PreferenceRewardModel.load(tmp_path / "reward")
    assert not (tmp_path / "sprung").exists()


def test_same_seed_same_model_and_global_generators_untouched(tokenizer):
    def fit(seed):
        return fit_preference_model(planted(40), tokenizer=tokenizer, trunk=TINY, seed=seed, **QUICK)[0].score(episodes())

    torch.manual_seed(1)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = fit(3)
    assert torch.equal(torch.get_rng_state(), state) and np.array_equal(np.random.get_state()[1], numpy_state)
    torch.manual_seed(2)
    assert fit(3) == first
    assert fit(4) != first


def test_trunk_starts_from_a_saved_language_model(tokenizer, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng():
        lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(**TINY, vocab_size=tokenizer.vocab_size, num_key_value_heads=2))
    lm.save_pretrained(tmp_path / "lm")
    model, _ = fit_preference_model(planted(20), tokenizer=tokenizer, trunk=tmp_path / "lm", learning_rate=0.0, dropout=0.5, **QUICK)
    trunk = model.network.parts["trunk"].trunk
    for name, weight in lm.model.named_parameters():
        assert torch.equal(weight, trunk.get_parameter(name))
    with pytest.raises(ValueError, match="exceeds the 2048 positions"):
        fit_preference_model(planted(20), tokenizer=tokenizer, trunk=tmp_path / "lm", max_tokens=4096)


def test_gpt2_and_bert_trunks(tokenizer):
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32}
    for trunk in (
        {"model_type": "gpt2", "bos_token_id": 0, "eos_token_id": 0, **small},
        {"model_type": "bert", "intermediate_size": 16, **small},
    ):
        model, _ = fit_preference_model(planted(20), tokenizer=tokenizer, trunk=trunk, **QUICK)
        sample = episodes(6)
        model.normalise(sample)
        assert model.score(sample) == pytest.approx([model.score([e])[0] for e in sample], abs=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preferences": planted(9)}, r"9 preference\(s\)"),
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"validation": 1.0}, "validation=1.0"),
        ({"trunk": None, "ngram_buckets": 0}, "nothing to fit"),
        ({"trunk": {**TINY, "vocab_size": 10}}, "embedding 10"),
        ({"trunk": {"hidden_size": 8}}, "'model_type'"),
        ({"max_tokens": 1}, "max_tokens=1"),
    ],
)
def test_arguments_are_checked(tokenizer, change, message):
    with pytest.raises(ValueError, match=message):
        fit_preference_model(**{"preferences": planted(20), "tokenizer": tokenizer, "trunk": TINY, **QUICK, **change})


def test_progress_names_the_part(tokenizer):
    seen = []
    fit_preference_model(planted(40), tokenizer=tokenizer, trunk=TINY, progress=lambda *a: seen.append(a), **QUICK)
    assert [a[:3] for a in seen] == [("ngrams", i, 12) for i in range(1, 13)] + [("trunk", i, 4) for i in range(1, 5)]


def test_is_frozen_copies_as_itself_and_prints(model):
    assert copy.deepcopy({"reward": model})["reward"] is model
    assert not model.network.training and not any(p.requires_grad for p in model.network.parameters())
    assert repr(model).startswith("PreferenceRewardModel(ngrams+trunk, ")


def test_bfloat16_changes_the_scores_of_a_transformer_a_little(tmp_path):
    tokenizer = make_task("review").tokenizer
    torch.manual_seed(0)
    trunk = build_trunk(
        {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}, tokenizer.vocab_size, 32
    )
    PreferenceRewardModel(PreferenceNetwork(tokenizer.vocab_size, 64, trunk, 0.0), tokenizer, max_tokens=32).save(tmp_path / "model")
    texts = [Episode.from_text("the plot", f" was {word} .") for word in ("superb", "dull", "moving", "lazy", "charming")]
    exact, half = (np.array(PreferenceRewardModel.load(tmp_path / "model", dtype=d).score(texts)) for d in ("float32", "bfloat16"))
    assert 0 < np.abs(exact - half).max() < 0.05 * exact.std() + 0.02
    with pytest.raises(ValueError, match="int8"):
        PreferenceRewardModel.load(tmp_path / "model", dtype="int8")


def test_a_text_that_comes_again_is_not_read_again():
    tokenizer = make_task("review").tokenizer
    network = PreferenceNetwork(tokenizer.vocab_size, 64, None, 0.0)
    torch.nn.init.normal_(network.parts["ngrams"].weight)
    model, calls = PreferenceRewardModel(network, tokenizer, max_tokens=32), []
    network.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    texts = [Episode.from_text("the plot", text) for text in (" was superb .", " was dull .", " was superb .")]
    first = model.score(texts)
    assert first[0] == first[2] != first[1] and calls == [2]
    model.normalise(texts[:2])  # the scale may change; what was read stands
    assert model.score(texts)[:2] == pytest.approx([1, -1] if first[0] > first[1] else [-1, 1]) and calls == [2]
