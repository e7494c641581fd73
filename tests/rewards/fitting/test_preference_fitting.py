import math
import warnings
from itertools import permutations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from rewards import Preference, PreferenceRewardModel, Ranking, RewardWarning, fit_preference_model
from rewards.fitting.comparisons import AnnotatorScales, PairRows, RankingRows
from rewards.fitting.losses import bradley_terry_loss, plackett_luce_loss
from rewards.fitting.preference_fitting import _differences
from rewards.fitting.reward_evaluation import JudgedComparisons
from rewards.fitting.scorer_training import fit_scorer
from rewards.models.scorers import TrunkScorer, build_trunk
from rewards.preferences.leak_free_split import hold_out, independent_units
from rewards.utils.intervals import clustered, wilson
from textrl_env.episode import Episode
from textrl_env.tokenizer import FileTokenizer

CPU = torch.device("cpu")
WORDS = [f"w{i}" for i in range(40)]
TINY = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<eos>", *WORDS])}, unk_token="<eos>"))
    backend.normalizer, backend.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    backend.save(str(path))
    return FileTokenizer(path)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_margin_and_labels_by_hand():
    chosen, rejected = torch.tensor([2.0, 0.5, 1.0]), torch.tensor([0.0, 1.0, 1.0])
    label, margin = torch.tensor([1.0, 0.75, 0.5]), torch.tensor([0.5, 0.0, 0.0])
    expected = [
        -math.log(sigmoid(1.5)),
        -0.75 * math.log(sigmoid(-0.5)) - 0.25 * math.log(sigmoid(0.5)),
        math.log(2),
    ]
    assert bradley_terry_loss(chosen, rejected, label=label, margin=margin).item() == pytest.approx(sum(expected) / 3, abs=1e-6)
    ones = bradley_terry_loss(chosen, rejected, label=torch.ones(3))
    assert ones.item() == pytest.approx(bradley_terry_loss(chosen, rejected).item(), abs=1e-7)


def likelihood(scores):
    """The probability of an order, best first, from its definition."""
    weights = np.exp(scores)
    return math.prod(weights[i] / weights[i:].sum() for i in range(len(weights)))


def test_plackett_luce_by_enumerating_orders():
    scores = np.array([0.3, -1.2, 2.0, 0.5])
    losses = []
    for order in permutations(range(4)):
        ranked = torch.tensor(scores[list(order)])[None]
        losses.append(plackett_luce_loss(ranked, torch.ones(1, 4, dtype=torch.bool)).item())
        assert losses[-1] == pytest.approx(-math.log(likelihood(scores[list(order)])), abs=1e-9)
    assert sum(math.exp(-loss) for loss in losses) == pytest.approx(1)


def test_plackett_luce_of_rankings_of_unequal_length():
    rows = [[0.3, -1.0, 2.0], [1.0, 0.0], [-5.0, 5.0, 0.0]]
    scores = torch.full((3, 4), 99.0)  # what stands in the padding must not matter
    mask = torch.zeros(3, 4, dtype=torch.bool)
    for i, row in enumerate(rows):
        scores[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), True
    scores.requires_grad_(True)
    loss = plackett_luce_loss(scores, mask)
    assert loss.item() == pytest.approx(-sum(math.log(likelihood(np.array(row))) for row in rows) / 3, abs=1e-5)
    loss.backward()
    assert scores.grad.isfinite().all() and (scores.grad[~mask] == 0).all()
    # the score of the worst of two: d/ds of log(e^a + e^s) is sigmoid(s - a)
    assert scores.grad[1, 1].item() == pytest.approx(sigmoid(-1.0) / 3, abs=1e-6)
    with pytest.raises(ValueError, match=r"\(B, K\)"):
        plackett_luce_loss(torch.zeros(2), torch.ones(2, dtype=torch.bool))


def test_plackett_luce_of_two_is_bradley_terry():
    scores = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    expected = bradley_terry_loss(scores[:, 0], scores[:, 1])
    assert plackett_luce_loss(scores, torch.ones(9, 2, dtype=torch.bool)).item() == pytest.approx(expected.item(), abs=1e-6)


class Bag(torch.nn.Module):
    """The sum of a weight for each token: what the losses are minimised by can be worked out."""

    def __init__(self, size):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(size))

    def forward(self, ids, mask):
        return (self.weight[ids] * mask).sum(1)


def ids(*tokens):
    return np.array(tokens, np.int64)


@pytest.mark.parametrize(
    ("label", "margin", "gap"),
    [(0.75, None, math.log(3)), (0.75, 1.0, 1 + math.log(3)), (0.5, None, 0.0), (0.9, None, math.log(9))],
)
def test_fitted_gap_is_the_one_worked_out(label, margin, gap):
    # cross-entropy is least where sigmoid(gap - margin) = label
    rows = PairRows([ids(1)] * 8, [ids(2)] * 8, torch.full((8,), label), None if margin is None else torch.full((8,), margin))
    scorer = Bag(4)
    losses = []
    optimizer = torch.optim.Adam(scorer.parameters(), lr=0.05)
    for _ in range(400):
        loss = rows.loss(scorer, range(8), CPU)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert (scorer.weight[1] - scorer.weight[2]).item() == pytest.approx(gap, abs=1e-3)


def test_fit_scorer_pulls_ties_together_and_pushes_pairs_apart():
    rows = PairRows([ids(1)] * 20 + [ids(3)] * 20, [ids(2)] * 40, torch.tensor([1.0] * 20 + [0.5] * 20))
    scorer = Bag(4)
    settings = {"epochs": 150, "batch_size": 8, "learning_rate": 0.05, "weight_decay": 0.0}
    fit_scorer(scorer, rows, rows, generator=torch.Generator().manual_seed(0), **settings)
    weight = scorer.weight
    assert weight[1] - weight[2] > 2 and abs(weight[3] - weight[2]) < 0.2


def test_ranking_rows_by_hand():
    scorer = Bag(4)
    scorer.weight.data = torch.tensor([0.0, 1.0, 2.0, 4.0])
    rows = RankingRows([[ids(3), ids(1), ids(2)], [ids(2), ids(1)]], torch.tensor([0, 1]))
    expected = -(math.log(likelihood(np.array([4.0, 1.0, 2.0]))) + math.log(likelihood(np.array([2.0, 1.0])))) / 2
    accuracy, loss = rows.evaluate(scorer, 2, CPU)
    assert (accuracy, loss) == (3 / 4, pytest.approx(expected, abs=1e-5))  # of 4 pairs, 1 before 2 is wrong
    assert rows.loss(scorer, [0, 1], CPU).item() == pytest.approx(expected, abs=1e-5)
    pairs = rows.pairs()
    assert [(c[0], r[0]) for c, r in zip(pairs.chosen, pairs.rejected, strict=True)] == [(3, 1), (3, 2), (1, 2), (2, 1)]
    assert pairs.group.tolist() == [0, 0, 0, 1] and rows.sizes() == [1, 1]


def test_scales_multiply_score_differences():
    scales = AnnotatorScales(2)
    scales.log_scale.data = torch.tensor([1.5, 0.5])  # centred: 0.5 and -0.5
    scorer = Bag(4)
    scorer.weight.data = torch.tensor([0.0, 1.0, 0.0, 0.0])
    rows = PairRows([ids(1), ids(1)], [ids(2), ids(2)], group=torch.tensor([0, 1]))
    expected = -(math.log(sigmoid(math.exp(0.5))) + math.log(sigmoid(math.exp(-0.5)))) / 2
    assert rows.loss(scorer, [0, 1], CPU, scales).item() == pytest.approx(expected, abs=1e-6)
    assert scales.penalty().item() == pytest.approx(0.25)


def noisy_world(n, scales, seed=0):
    """Pairs of bags of words with a true worth, compared by annotators who heed it more or less."""
    rng = np.random.default_rng(seed)
    worth = rng.normal(0, 1, len(WORDS))
    pairs = []
    for i in range(n):
        a, b = rng.choice(len(WORDS), (2, 3))
        who = int(rng.integers(len(scales)))
        better = rng.random() < sigmoid(scales[who] * (worth[a].sum() - worth[b].sum()))
        texts = ["".join(f" {WORDS[j]}" for j in bag) for bag in ((a, b) if better else (b, a))]
        pairs.append(Preference(f"{i}", *texts, annotator=f"annotator {who}"))
    return pairs, worth


@pytest.mark.slow
def test_annotator_scales_are_recovered_and_make_the_score_truer(tokenizer):
    pairs, worth = noisy_world(4000, [4.0, 0.1])
    settings = {"tokenizer": tokenizer, "trunk": None, "ngram_buckets": 1, "validation": 0.2}
    model, report = fit_preference_model(pairs, scale_by="annotator", **settings)
    ignored, _ = fit_preference_model(pairs, **settings)
    careful, careless = report.annotator_scales["annotator 0"], report.annotator_scales["annotator 1"]
    assert careful * careless == pytest.approx(1)
    assert 10 < careful / careless < 160  # 40 in truth
    truth = [np.corrcoef(worth, m.network.parts["ngrams"].weight[1:41].numpy())[0, 1] for m in (model, ignored)]
    assert truth[0] > truth[1] > 0.8


def test_fit_to_rankings(tokenizer):
    rng = np.random.default_rng(0)
    rankings = []
    for i in range(300):
        best = sorted(rng.choice(len(WORDS), rng.integers(2, 5), replace=False))  # w0 is better than w1 and so on
        rankings.append(Ranking(f"{i}", tuple(f" {WORDS[k]} {i}" for k in best)))
    model, report = fit_preference_model(rankings, tokenizer=tokenizer, trunk=None, ngram_buckets=1)
    assert report.held_out_accuracy > 0.85 and (report.n_train, report.n_held_out) == (270, 30)
    scores = model.score([Episode.from_text("", f" {word}") for word in WORDS])
    assert np.corrcoef(scores, range(len(WORDS)))[0, 1] < -0.9


def test_patience_ends_a_fit_that_no_longer_gets_better(tokenizer):
    rng = np.random.default_rng(0)
    texts = [" " + " ".join(rng.choice(WORDS, 3)) for _ in range(200)]
    noise = [Preference(f"{i}", a, b) for i, (a, b) in enumerate(zip(texts[::2], texts[1::2], strict=True))]
    settings = {"tokenizer": tokenizer, "trunk": TINY, "epochs": 12, "ngram_buckets": 0}
    _, long = fit_preference_model(noise, **settings)
    _, short = fit_preference_model(noise, patience=2, **settings)
    assert len(long.losses["trunk"]) == 12
    assert len(short.losses["trunk"]) == short.best_epochs["trunk"] + 2 < 12
    assert short.losses["trunk"] == long.losses["trunk"][: len(short.losses["trunk"])]


def test_smoothing_keeps_scores_apart_by_less(tokenizer):
    pairs = [Preference(f"{i}", " w1", " w2") for i in range(100)]
    gaps = []
    for smoothing in (0.0, 0.25):
        model, _ = fit_preference_model(pairs, tokenizer=tokenizer, trunk=None, ngram_buckets=1, smoothing=smoothing)
        a, b = model.score([Episode.from_text("", text) for text in (" w1", " w2")])
        gaps.append(a - b)
    assert 0 < gaps[1] < gaps[0] and gaps[1] < math.log(3)


def test_ties_do_not_count_for_the_accuracy(tokenizer):
    pairs = [
        Preference("", *((f" w1 {i}", f" w2 {i}") if i % 2 else (f" w3 {i}", f" w3 w3 {i}")), label=1.0 if i % 2 else 0.5)
        for i in range(200)
    ]
    _, report = fit_preference_model(pairs, tokenizer=tokenizer, trunk=None)
    assert report.held_out_accuracy == report.train_accuracy == 1.0
    assert report.held_out_interval[0] < 0.85  # of about 10 pairs, not 20
    _, report = fit_preference_model([Preference("", f" w1 {i}", f" w2 {i}", 0.5) for i in range(20)], tokenizer=tokenizer, trunk=None)
    assert report.held_out_accuracy == 0.5 and report.held_out_interval == (0.0, 1.0)


@pytest.mark.reports("A blend of n-grams and a transformer heeds soft labels: it is no worse than saying nothing, or than n-grams alone")
def test_blend_of_soft_labels(tokenizer):
    pairs, _ = noisy_world(500, [3.0])
    soft = [Preference(p.prompt, p.chosen, p.rejected, 0.6) for p in pairs]
    settings = {"tokenizer": tokenizer, "ngram_buckets": 64, "epochs": 4, "learning_rate": 0.01, "validation": 0.2}
    _, alone = fit_preference_model(soft, trunk=None, **settings)
    _, blended = fit_preference_model(soft, trunk=TINY, **settings)
    least = -0.6 * math.log(0.6) - 0.4 * math.log(0.4)
    assert least <= blended.held_out_loss < min(math.log(2), alone.held_out_loss + 0.005)


@pytest.mark.reports("Groups that heed the score less count less in the blend of two scorers, as they do in each")
def test_blend_heeds_the_scales_of_groups(tokenizer):
    pairs = PairRows([ids(1), ids(1)], [ids(2), ids(2)], group=torch.tensor([0, 1]))
    scorer, scales = Bag(4), AnnotatorScales(2)
    scorer.weight.data = torch.tensor([0.0, 3.0, 1.0, 0.0])
    scales.log_scale.data = torch.tensor([1.0, -1.0])
    assert _differences(scorer, pairs, CPU, scales).tolist() == pytest.approx([2 * math.e, 2 / math.e])
    assert _differences(scorer, pairs, CPU, None).tolist() == [2.0, 2.0]


@pytest.mark.reports("The held-out accuracy of a reward model is that on texts which it never saw, however often texts recur")
def test_nothing_is_learned_of_the_held_out_texts(tokenizer):
    rng = np.random.default_rng(0)
    texts = [" " + " ".join(rng.choice(WORDS, 6)) for _ in range(300)]
    worth = rng.normal(0, 1, 300)  # of each text, whatever its words: there is nothing to learn but the texts by heart
    drawn = [sorted(rng.choice(300, 2, replace=False), key=worth.__getitem__) for _ in range(1500)]
    pairs = [Preference("Which is better?", texts[b].upper() if i % 3 == 0 else texts[b], texts[a]) for i, (a, b) in enumerate(drawn)]
    with pytest.warns(RewardWarning, match=r"\d+ of 1500 comparisons have a text .* of either side"):
        _, report = fit_preference_model(pairs, tokenizer=tokenizer, trunk=None, validation=0.2)
    assert report.train_accuracy > 0.85  # by heart
    assert report.held_out_interval[0] < 0.5 and report.held_out_accuracy < 0.6
    assert report.n_held_out + report.n_train + report.n_dropped == 1500 and report.n_held_out > 100
    assert str(report.n_dropped) in str(report) and f"of {report.n_held_out} held out" in str(report)


@pytest.mark.reports("Where all comparisons share a text, a fit says that nothing is held out, and shows no accuracy")
def test_where_nothing_can_be_held_out_nothing_is_measured(tokenizer):
    pairs = [Preference("", " w1", f" w2 {i}") for i in range(40)]
    with pytest.warns(RewardWarning, match="nothing is held out: 40 comparisons hang together"):
        _, report = fit_preference_model(pairs, tokenizer=tokenizer, trunk=TINY, epochs=2)
    assert (report.n_train, report.n_held_out, report.held_out_interval, report.temperature) == (40, 0, (0.0, 1.0), 1.0)
    assert math.isnan(report.held_out_accuracy) and math.isnan(report.held_out_loss) and "nothing held out" in str(report)
    assert dict(report.best_epochs) == {"ngrams": 6, "trunk": 2} and dict(report.blend) == {"ngrams": 0.5, "trunk": 0.5}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, meant = fit_preference_model(pairs, tokenizer=tokenizer, trunk=None, validation=0)
    assert meant.n_train == 40 and meant.losses["ngrams"] == report.losses["ngrams"]


@pytest.mark.reports("A fit whose held-out comparisons are too few to tell says so, with the interval")
def test_too_few_held_out_comparisons_are_named(tokenizer):
    pairs = [Preference("", f" w1 {i}", f" w2 {i}") for i in range(20)]
    with pytest.warns(RewardWarning, match=r"does not tell the model from chance: 100.0% \[34.2%, 100.0%\] of 2 comparisons"):
        fit_preference_model(pairs, tokenizer=tokenizer, trunk=None)
    with pytest.warns(RewardWarning, match=r"tells little: 100.0% \[56.6%, 100.0%\] of 5 comparisons"):
        fit_preference_model(pairs, tokenizer=tokenizer, trunk=None, validation=0.25)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_preference_model([Preference("", f" w1 {i}", f" w2 {i}") for i in range(200)], tokenizer=tokenizer, trunk=None)


def test_temperature_and_calibration_of_the_held_out_pairs(tokenizer):
    pairs, _ = noisy_world(1000, [1.0])
    model, report = fit_preference_model(pairs, tokenizer=tokenizer, trunk=None, ngram_buckets=1, seed=3)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(3)).tolist()
    held = [pairs[i] for i in hold_out(pairs, order, 0.1).held]
    assert len(held) == report.n_held_out == 100
    chosen, rejected = (np.array(model.score([Episode.from_text(p.prompt, getattr(p, s)) for p in held])) for s in ("chosen", "rejected"))
    temperatures = [factor * report.temperature for factor in (0.9, 1.0, 1.1)]
    losses = [np.logaddexp(0, (rejected - chosen) / t).mean() for t in temperatures]
    assert min(losses) == losses[1]
    assert report.held_out_accuracy == np.mean((chosen > rejected) + 0.5 * (chosen == rejected))
    assert report.held_out_loss == pytest.approx(np.logaddexp(0, rejected - chosen).mean(), abs=1e-5)
    assert 0 <= report.calibration_error < 0.5


def test_lora_trains_adapters_and_leaves_an_ordinary_model(tokenizer, tmp_path):
    from transformers import AutoConfig, AutoModel

    with torch.random.fork_rng():
        base = AutoModel.from_config(AutoConfig.for_model(**TINY, vocab_size=tokenizer.vocab_size, num_key_value_heads=2))
    base.save_pretrained(tmp_path / "base")
    pairs = [Preference("", f" w1 w2 w3 {i}", f" w3 w2 w1 {i}") for i in range(60)]
    model, report = fit_preference_model(
        pairs, tokenizer=tokenizer, trunk=tmp_path / "base", ngram_buckets=0, lora={"r": 2}, epochs=6, learning_rate=0.02
    )
    assert report.held_out_accuracy == 1.0
    trunk = model.network.parts["trunk"].trunk
    assert set(trunk.state_dict()) == set(base.state_dict())
    changed = {name for name, weight in base.named_parameters() if not torch.equal(weight, trunk.get_parameter(name))}
    assert changed == {name for name, _ in base.named_parameters() if "_proj" in name}
    for name in changed:
        assert torch.linalg.matrix_rank(trunk.get_parameter(name) - base.get_parameter(name), atol=1e-5) <= 2
    model.save(tmp_path / "reward")
    sample = [Episode.from_text(p.prompt, p.chosen) for p in pairs[:5]]
    assert PreferenceRewardModel.load(tmp_path / "reward").score(sample) == model.score(sample)


@pytest.mark.reports("A reward model is not fitted with settings of lora whose saved folder would miss what was trained.")
@pytest.mark.parametrize("setting", [{"modules_to_save": ["embed_tokens"]}, {"bias": "all"}, {"init_lora_weights": "pissa"}])
def test_lora_that_trains_more_than_adapters_is_refused(tokenizer, setting):
    pairs = [Preference(f"{i}", " w1", " w2") for i in range(10)]
    with pytest.raises(ValueError, match=f"lora: {next(iter(setting))}="):
        fit_preference_model(pairs, tokenizer=tokenizer, trunk=TINY, ngram_buckets=0, lora={"r": 2, **setting}, epochs=1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"smoothing": 0.5}, ValueError, "smoothing=0.5"),
        ({"patience": 0}, ValueError, "patience=0"),
        ({"micro_batch_size": -1}, ValueError, "micro_batch_size=-1"),
        ({"patience": 2, "validation": 0}, ValueError, "patience=2 needs held-out comparisons"),
        ({"scale_by": "age"}, ValueError, "scale_by='age'"),
        ({"lora": {"r": 2}}, ValueError, "lora needs a trunk"),
        ({"preferences": [Preference("", "a", "b")] * 10 + [Ranking("", ("a", "b"))]}, TypeError, "mixed"),
        ({"preferences": [Ranking("", ("a", "b"))] * 10, "smoothing": 0.1}, ValueError, "is for pairs"),
    ],
)
def test_options_are_checked(tokenizer, change, error, message):
    settings = {"preferences": [Preference("", " w1", " w2")] * 20, "tokenizer": tokenizer, "trunk": None, **change}
    with pytest.raises(error, match=message):
        fit_preference_model(**settings)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("kind", ["pairs", "rankings"])
def test_micro_batches_add_up_to_the_whole_batch(tokenizer, kind, scaled):
    """Batches of 8 and a last one of 6, of which 3 at a time: in float64, so that only a wrong weight could differ."""
    rng = np.random.default_rng(0)
    texts = [rng.integers(1, 40, size=rng.integers(1, 9)) for _ in range(66)]
    group = torch.tensor([0, 1] * 11)
    if kind == "pairs":
        rows = PairRows(texts[:22], texts[22:44], label=torch.rand(22), margin=torch.rand(22), group=group)
    else:
        rows = RankingRows([texts[3 * i : 3 * i + 2 + i % 2] for i in range(22)], group)
    weights = []
    for size in (0, 3):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            body = build_trunk(TINY, tokenizer.vocab_size, 16).double()
            scorer = TrunkScorer(body, dropout=0.0).double()
            scales = AnnotatorScales(2).double() if scaled else None
        curve, _ = fit_scorer(
            scorer, rows, None, epochs=2, batch_size=8, learning_rate=1e-3, weight_decay=0.01,
            generator=torch.Generator().manual_seed(0), micro_batch_size=size, scales=scales,
        )  # fmt: skip
        weights.append((torch.cat([p.detach().flatten() for p in scorer.parameters()]), curve))
    (whole, curve), (parted, parted_curve) = weights
    torch.testing.assert_close(parted, whole, atol=1e-7, rtol=0)
    assert parted_curve == pytest.approx(curve, abs=1e-9)


def test_the_trunks_rate_suits_its_size_and_adapters(tokenizer, tmp_path):
    """What is fitted by default is what is fitted at the rate that the size gives, to the digit."""
    pairs = [Preference("", f" w1 w2 {i}", f" w2 w1 {i}") for i in range(40)]
    with torch.random.fork_rng():
        build_trunk(TINY, tokenizer.vocab_size, 16).save_pretrained(tmp_path)
    settings = {"tokenizer": tokenizer, "ngram_buckets": 0, "epochs": 1}
    for trunk, lora, rate in ((TINY, None, 1e-3), (TINY, {"r": 2}, 1e-2), (tmp_path, None, 1e-3), (tmp_path, {"r": 2}, 1e-2)):
        default, given, other = (
            fit_preference_model(pairs, trunk=trunk, lora=lora, learning_rate=value, **settings)[1].held_out_loss
            for value in (None, rate, 2 * rate)
        )
        assert default == given != other


def test_the_unit_of_an_accuracy_is_the_prompt():
    prompts, labels = ["p", "q", "p", "q", "r", "p"], [1, 1, 1, 0.5, 1, 1]
    pairs = [Preference(prompt, f"a{i}", f"b{i}", label=label) for i, (prompt, label) in enumerate(zip(prompts, labels, strict=True))]
    judged = JudgedComparisons(pairs, np.array([1, 2, -1, 9, 0, 3.0]), np.zeros(6))
    assert judged.accuracy() == clustered(np.array([2, 1, 0.5]), np.array([3, 1, 1]))  # the tie of q is left out
    assert judged.accuracy([0, 2, 5]) == wilson(2, 3)  # of one prompt, nothing can be said of others


@pytest.mark.reports("The interval of an accuracy counts five people's answers to one pair once, where there are no prompts too")
def test_the_unit_without_prompts():
    pairs = [Preference("", f"a{i}", f"b{i}", annotator=f"w{who}") for i in range(40) for who in range(5)]
    right = np.array([1.0 if i < 24 else -1.0 for i in range(40) for _ in range(5)])
    found = JudgedComparisons(pairs, right, np.zeros(200)).accuracy()
    alone = wilson(24, 40)
    assert found.rate == 0.6 and (found.low, found.high) == pytest.approx((alone.low, alone.high), abs=0.012)  # Student's t for z
    texts = [Preference("", f"{group} {a}", f"{group} {b}") for group in range(9) for a in range(4) for b in range(a)]
    assert len(set(independent_units(texts))) == 9
    assert len(set(independent_units([Preference("", "x", f"y{i // 2}") for i in range(6)]))) == 3  # all have x: those of the same texts


def test_pairs_of_rankings_and_of_prompts_belong_together(tokenizer):
    """Ten held-out rankings of three say as much as ten cases where all is right, their 30 pairs do not."""
    texts = [f"w{i % 9} w{i // 9}" for i in range(120)]
    rankings = [Ranking(f"w{i} ", [text + " w39" * (2 - k) for k, text in enumerate(texts[3 * i : 3 * i + 3])]) for i in range(40)]
    _, report = fit_preference_model(rankings, tokenizer=tokenizer, validation=0.25, epochs=1)
    low, high = report.held_out_interval
    assert report.held_out_accuracy == 1 and high == 1
    z, t = 1.959963984540054, 2.262157163  # of 9 degrees of freedom
    assert low == pytest.approx(1 / (1 + z**2 / (10 * (z / t) ** 2)))
