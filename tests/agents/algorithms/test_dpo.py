"""DPO, IPO and best-of-n against numbers worked out apart."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from agents import DPO, best_of_n
from agents.algorithms.common.training_warnings import TrainingWarning
from agents.algorithms.dpo import Pair
from agents.evaluation.best_of import kl_bound
from agents.evaluation.exact_optimum import distributions
from agents.evaluation.policy_texts import make_policy
from agents.models.sequences import TextRecord
from rewards.preferences.preference import Preference, Ranking
from textrl_env import IntegerTokenizer, Prompt, TextTask
from textrl_env.tasks.exact import TokenTree

from ..conftest import LLAMA, VOCAB

PAIRS = [Preference("1 2", " 3 4", " 5"), Preference("7", " 8", " 9 10 11"), Preference("4 4", "", " 6")]


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_the_loss_by_hand(loss):
    trainer = DPO(LLAMA, IntegerTokenizer(VOCAB, 0), beta=0.3, loss=loss, max_new_tokens=3)
    with torch.no_grad():
        for parameter in trainer.lm.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))

    def log_prob(lm, prompt, response):
        ids = [int(t) for t in (prompt + response).split()]
        n = len(prompt.split())
        if len(ids) - n < 3:
            ids.append(0)
        with torch.no_grad():
            table = lm(torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(float(table[t - 1, ids[t]]) for t in range(n, len(ids)))

    expected = []
    for pair in PAIRS:
        ratios = [
            log_prob(trainer.lm, pair.prompt, text) - log_prob(trainer.reference.lm, pair.prompt, text)
            for text in (pair.chosen, pair.rejected)
        ]
        difference = ratios[0] - ratios[1]
        expected.append(math.log1p(math.exp(-0.3 * difference)) if loss == "sigmoid" else (difference - 1 / 0.6) ** 2)
    assert trainer.evaluate(PAIRS) == pytest.approx(np.mean(expected), abs=1e-4)


def test_it_starts_at_log_2_and_leaves_the_reference_alone():
    trainer = DPO(LLAMA, IntegerTokenizer(VOCAB, 0), learning_rate=1e-2)
    before = {name: p.clone() for name, p in trainer.reference.lm.named_parameters()}
    assert trainer.evaluate(PAIRS) == pytest.approx(math.log(2), abs=1e-6)
    trainer.learn(PAIRS, 30)
    assert trainer.losses[-1] < 0.5
    assert all(torch.equal(p, before[name]) for name, p in trainer.reference.lm.named_parameters())


def test_the_note_beside_the_bar_counts_comparisons_that_come_out_right():
    trainer = DPO(LLAMA, IntegerTokenizer(VOCAB, 0), batch_size=3, micro_batch_size=2, learning_rate=0.03)
    trainer.learn(PAIRS, 1)
    trainer.losses.append(trainer._mean_loss(trainer._encode(PAIRS), backward=True))
    assert trainer._note() == f"loss {trainer.losses[-1]:.3g} accuracy 100%"  # one step fits three pairs
    reverse = trainer._encode([Preference(pair.prompt, pair.rejected, pair.chosen) for pair in PAIRS[:1]])
    trainer._loss(reverse)
    assert trainer._note().endswith("accuracy 0%")
    trainer.lm.load_state_dict(trainer.reference.lm.state_dict())
    trainer._loss(reverse)
    assert trainer._note().endswith("accuracy 50%")  # nothing is preferred yet
    trainer.evaluate(PAIRS)
    assert trainer._right == []


def test_with_bradley_terry_preferences_its_optimum_is_that_of_the_kl_regularised_return():
    """The expected gradient over all pairs of texts, as often as the reference writes and the annotator answers so."""
    beta, rng = 0.5, np.random.default_rng(0)
    rewards = rng.normal(size=(3, 3))
    tree = TokenTree(3, 2, lambda texts: rewards[texts[:, 0], texts[:, 1]])
    trainer = DPO(
        {"class": "agents.evaluation.exact_optimum:Table", "vocab_size": 3, "length": 3},
        IntegerTokenizer(3, 0),
        beta=beta,
        max_new_tokens=2,
    )
    reference = distributions(trainer.reference, 1, tree.prefixes, 3)
    _, star = tree.optimum(reference, beta)
    texts = [(0,), *((a, b) for a in (1, 2) for b in (0, 1, 2))]

    def probability(levels, text):
        return math.exp(levels[0][0, text[0]] + (levels[1][text[0] - 1, text[1]] if len(text) > 1 else 0.0))

    def gradient():
        total = torch.zeros_like(trainer.lm.rows.weight)
        for one, two in itertools.product(texts, repeat=2):
            scores = [rewards[text[0], text[1] if len(text) > 1 else 0] for text in (one, two)]
            weight = probability(reference, one) * probability(reference, two) / (1 + math.exp(scores[1] - scores[0]))
            sides = [TextRecord(np.array([1]), np.array(text), 0) for text in (one, two)]
            loss = trainer._loss([Pair(*sides)])
            total += weight * torch.autograd.grad(loss, trainer.lm.rows.weight)[0]
        return total.abs().max()

    assert gradient() > 0.01
    base = 3 + 1
    with torch.no_grad():
        trainer.lm.rows.weight[2] = torch.from_numpy(star[0][0]).float()  # after the prompt, whose digit is 1 + 1
        for token in (1, 2):
            trainer.lm.rows.weight[2 + (token + 1) * base] = torch.from_numpy(star[1][token - 1]).float()
    np.testing.assert_allclose(distributions(trainer.backbone, 1, tree.prefixes, 3)[1], star[1], atol=1e-6)
    assert gradient() < 1e-6


def test_settings():
    with pytest.raises(ValueError, match="beta=0"):
        DPO(LLAMA, IntegerTokenizer(VOCAB, 0), beta=0)
    with pytest.raises(ValueError, match="empty prompt"):
        DPO(LLAMA, IntegerTokenizer(VOCAB, 0)).learn([Preference("", " 1", " 2")], 1)


def trainer_of(**settings):
    return DPO(LLAMA, IntegerTokenizer(VOCAB, 0), learning_rate=1e-2, **settings)


def log_ratio(trainer, chosen, rejected, prompt="1 2"):
    """log(pi / pi_ref) of one response minus that of the other."""
    with torch.no_grad():
        rows = trainer._records(trainer._encode([Preference(prompt, chosen, rejected)]))
        one, two = trainer._log_probs(trainer.backbone, rows) - trainer._log_probs(trainer.reference, rows)
    return float(one - two)


@pytest.mark.reports("DPO and IPO weigh a comparison by its label and, in DPO, offset it by its margin; IPO refuses margins")
@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_labels_and_margins_by_hand(loss):
    trainer = trainer_of(beta=0.3, loss=loss).learn(PAIRS, 5)  # away from the reference
    h = 0.3 * log_ratio(trainer, " 3 4", " 5")
    assert abs(h) > 0.05
    for label, margin in ((1.0, 0.0), (0.8, 0.0), (0.5, 0.0), (1.0, 0.7), (0.8, 0.7)):
        pair = Preference("1 2", " 3 4", " 5", label=label, margin=margin)
        if loss == "ipo":
            expected = (h / 0.3 - (2 * label - 1) / 0.6) ** 2
        else:
            expected = label * math.log1p(math.exp(margin - h)) + (1 - label) * math.log1p(math.exp(h - margin))
        if loss == "ipo" and margin:
            with pytest.raises(ValueError, match="leave margins out"):
                trainer.evaluate([pair])
        else:
            assert trainer.evaluate([pair]) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match="a tie has no margin"):
        trainer_of().learn([Preference("1", " 2", " 3", label=0.5, margin=1.0)], 1)


@pytest.mark.reports("A tie, and a consensus of 80%, are learned as such by DPO and IPO, not as certain wins")
@pytest.mark.parametrize(
    ("label", "loss"), [(0.5, "sigmoid"), pytest.param(0.5, "ipo", marks=pytest.mark.slow), (0.8, "sigmoid"), (0.8, "ipo")]
)
def test_what_is_learned_has_the_probability_of_the_label(loss, label):
    trainer = trainer_of(beta=0.5, loss=loss).learn([Preference("1 2", " 3 4", " 5", label=label)] * 20, 80)
    optimum = (2 * label - 1) / (2 * 0.5) if loss == "ipo" else math.log(label / (1 - label)) / 0.5
    assert log_ratio(trainer, " 3 4", " 5") == pytest.approx(optimum, abs=0.05)


@pytest.mark.reports("Training on texts says how many responses it cuts at the longest that the policy may write")
def test_cut_responses_are_counted_and_get_no_end():
    pairs = [Preference("1", " 2 3 4 5", " 6 7"), Preference("1", " 8 9 1", " 6")]
    trainer = trainer_of(max_new_tokens=3)
    with pytest.warns(TrainingWarning, match=r"1 of 4 responses \(25%\) are longer than max_new_tokens=3 and are cut"):
        trainer.learn(pairs, 1)
    assert trainer.num_cut == 1
    rows = [row.actions.tolist() for row in trainer._records(trainer._encode(pairs))]
    assert rows == [[2, 3, 4], [8, 9, 1], [6, 7, 0], [6, 0]]
    trainer_of(max_new_tokens=4).learn(pairs, 1)  # without a word
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        trainer_of(max_new_tokens=0)


@pytest.mark.reports("Pairs whose responses are equal, or are once cut, are left out of DPO, and their number is said")
def test_pairs_with_nothing_to_choose():
    same, cut, other = Preference("1", " 2", " 2"), Preference("1", " 4 4 5", " 4 4 6"), Preference("1", " 2", " 3")
    trainer = trainer_of(max_new_tokens=2)
    with pytest.warns(TrainingWarning) as warned:
        trainer.learn([same, cut, other], 3)
    assert [str(w.message).split(":")[0] for w in warned] == [
        "2 of 2 responses (100%) are longer than max_new_tokens=2 and are cut there, with no end of text",
        "2 of 3 pairs are left out",
    ]
    assert trainer.losses == trainer_of(max_new_tokens=2).learn([other], 3).losses
    with pytest.raises(ValueError, match="nothing to choose"):
        trainer_of().learn([same, same], 1)


@pytest.mark.reports("What DPO cannot learn from is refused: rankings, chat messages, weights, texts beyond the model's context or end")
@pytest.mark.parametrize(
    ("pairs", "error", "message"),
    [
        ([Ranking("1", (" 2", " 3"))], TypeError, "is a Ranking: pass Preferences"),
        ([("1", " 2", " 3")], TypeError, "is a tuple: pass Preferences"),
        ([Preference([{"role": "user", "content": "1"}], " 2", " 3")], TypeError, "read_preferences renders chat messages"),
        ([Preference("1", " 2", " 3", metadata={"weight": w}) for w in (1, 2)], ValueError, "the column 'weight' differs"),
        ([Preference("1 " * 70, " 2", " 3")], ValueError, "2 of 2 texts are too long for the model, which reads 64 tokens: .*takes 71"),
        ([Preference("1", " 2 0 3", " 3")], ValueError, "response ' 2 0 3' holds the end-of-text token before its end"),
    ],
)  # fmt: skip
def test_what_is_refused(pairs, error, message):
    with pytest.raises(error, match=message):
        trainer_of().learn(pairs, 1)


@pytest.mark.reports("Duplicated comparisons count as often as they are there; annotator, group and equal weights change nothing")
def test_what_counts_how_often():
    one, two = PAIRS[:2]
    trainer = trainer_of(beta=0.3).learn(PAIRS, 5)
    each = [trainer.evaluate([pair]) for pair in (one, two)]
    assert trainer.evaluate([one, one, two]) == pytest.approx((2 * each[0] + each[1]) / 3, abs=1e-5)
    named = replace(one, annotator="ann", group="film", metadata={"weight": 2})
    assert trainer.evaluate([named]) == pytest.approx(each[0], abs=1e-6)


@pytest.mark.reports("A response that already ends with the end of text gets no second one, and an empty one is only that")
def test_ends_of_responses():
    rows = trainer_of()._encode([Preference("1", " 2 0", ""), Preference("1", " 0", " 3")])
    assert [[side.actions.tolist() for side in row[:2]] for row in rows] == [[[2, 0], [0]], [[0], [3, 0]]]


@pytest.mark.reports("DPO on what a policy wrote in a dialogue compares the policy's own tokens, not the replies")
def test_texts_as_a_policy_wrote_them():
    reply = [(2, np.array([9, 9]))]
    pair = Pair(TextRecord(np.array([1]), np.array([3, 4, 5]), 0, reply), TextRecord(np.array([1]), np.array([6]), 0))
    trainer = trainer_of(beta=0.3).learn([pair], 5)
    expected = []
    for lm in (trainer.lm, trainer.reference.lm):
        with torch.no_grad():
            table = lm(torch.tensor([[1, 3, 4, 9, 9, 5]])).logits[0, :, :VOCAB].log_softmax(-1)
        expected.append(float(table[0, 3] + table[1, 4] + table[4, 5] - table[0, 6]))
    assert trainer.evaluate([pair]) == pytest.approx(math.log1p(math.exp(-0.3 * (expected[0] - expected[1]))), abs=1e-5)


def digits(prompts, completions):
    return [float(len(completion)) for completion in completions]


def test_best_of_n():
    tokenizer = IntegerTokenizer(VOCAB, 0)
    task = TextTask(tokenizer, [Prompt("1 2 3")], max_new_tokens=9)
    policy = make_policy(task, LLAMA)
    found = best_of_n(policy, tokenizer, ["1 2 3", "4"], 8, digits, max_new_tokens=9, seed=0)
    assert len(found) == 2 and all(len(best.scores) == 8 and best.score == best.scores.max() for best in found)
    assert found[0].scores.std() > 0
    with pytest.raises(ValueError, match="n=0"):
        best_of_n(policy, tokenizer, ["4"], 0, digits, max_new_tokens=9)


@pytest.mark.reports("Best of n keeps the text that an environment with these settings pays most for, and tells the reward how it ended")
def test_best_of_n_counts_penalties():
    tokenizer, seen = IntegerTokenizer(VOCAB, 0), []

    class Watching:
        def score(self, episodes):
            seen.extend(episodes)
            return [float(len(e.response_ids)) for e in episodes]

    policy = make_policy(TextTask(tokenizer, [Prompt("1 2 3")], max_new_tokens=9), LLAMA)
    for penalty in (0.0, 100.0):
        best = best_of_n(policy, tokenizer, ["1 2 3"] * 4, 16, Watching(), 9, seed=0, missing_eos_penalty=penalty)
        by_response = {e.response: e for e in seen[-64:]}
        reasons = {by_response[one.response].finish_reason for one in best}
        assert reasons == ({"length"} if penalty == 0 else {"eos"})
        lengths = [len(by_response[one.response].response_ids) for one in best]
        assert [one.score for one in best] == lengths and {"eos", "length"} == {e.finish_reason for e in seen}


@pytest.mark.parametrize("n", [1, 2, 4, 16])
def test_the_kl_bound_of_best_of_n_by_enumeration(n):
    """Of a distribution over 40 texts: P(best = i) = F(i)^n - F(i - 1)^n, in the order of scores."""
    p = np.random.default_rng(0).dirichlet(np.full(40, 0.5))
    below = np.concatenate([[0], np.cumsum(p)])
    best = below[1:] ** n - below[:-1] ** n
    kl = float((best * np.log(best / p)).sum())
    assert kl <= kl_bound(n) + 1e-12 and (n == 1 or kl > 0.5 * kl_bound(n))
    if n == 2:  # the formula itself, from all pairs
        pairs = np.zeros(40)
        for i, j in itertools.product(range(40), repeat=2):
            pairs[max(i, j)] += p[i] * p[j]
        np.testing.assert_allclose(best, pairs, atol=1e-12)
