"""What drew the tokens of a rollout: numbers of its mismatch by hand, weights against it, and the exact update that they give back."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch

from agents import GRPO, RLOO, LocalDecoder, Response, TextA2C, TextMaskablePPO, TextPPO, TextTRPO
from agents.algorithms.common.training_warnings import TrainingWarning
from agents.benchmark.studies.sampler_mismatch import UNCAPPED, Arm, Tempered, expected_update, fixed_point, texts_of
from agents.distributed.ranks import Ranks
from agents.models.log_probs import action_log_probs
from agents.models.sequences import TextRecord, pack
from agents.rollouts.sampler_mismatch import ImportanceSampling
from tests.slow_cases import slow_but
from textrl_env import IntegerTokenizer, Prompt, TextTask
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv
from textrl_env.tasks.exact import ExactTask, smooth

from ..conftest import LLAMA, sevens

LOG_RATIOS = np.log([1.5, 0.5, 4.0, 0.25, 1.0, 0.9])  # of texts of 2, 1 and 3 tokens, whose products are .75, 4 and .225
OFFSETS = np.array([0, 2, 3, 6])


@pytest.mark.parametrize(
    ("mode", "expected", "clipped"),
    [
        ("token_truncate", [1.5, 0.5, 2.0, 0.3, 1.0, 0.9], 2 / 6),
        ("token_mask", [1.5, 0.5, 0.0, 0.0, 1.0, 0.9], 2 / 6),
        ("sequence_truncate", [0.75, 0.75, 2.0, 0.3, 0.3, 0.3], 2 / 3),
        ("sequence_mask", [0.75, 0.75, 0.0, 0.0, 0.0, 0.0], 2 / 3),
        (None, None, 2 / 6),
    ],
)
def test_weights_by_hand(mode, expected, clipped):
    mismatch, weights = ImportanceSampling(mode, 0.3, 2.0).compare(LOG_RATIOS, OFFSETS, Ranks())
    assert mismatch.share_clipped == pytest.approx(clipped)
    if expected is None:
        assert weights is None and mismatch.effective == 1
        return
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    used = np.array(expected)[[0, 2, 3]] if mode.startswith("sequence") else np.array(expected)
    assert mismatch.effective == pytest.approx(used.sum() ** 2 / (len(used) * (used**2).sum()))


def test_numbers_by_hand():
    mismatch, _ = ImportanceSampling().compare(LOG_RATIOS, OFFSETS, Ranks())
    tokens, texts = [1.5, 0.5, 4.0, 0.25, 1.0, 0.9], [0.75, 4.0, 0.225]
    assert mismatch.kl == pytest.approx(-np.log(1.5 * 0.5 * 4 * 0.25 * 0.9) / 6)
    assert mismatch.kl_k3 == pytest.approx(np.mean([w - 1 - np.log(w) for w in tokens]))
    assert mismatch.effective_tokens == pytest.approx(sum(tokens) ** 2 / (6 * sum(w * w for w in tokens)))
    assert mismatch.effective_texts == pytest.approx(sum(texts) ** 2 / (3 * sum(w * w for w in texts)))
    assert mismatch.largest_log_ratio == pytest.approx(np.log(4))
    assert mismatch.sums.mean == pytest.approx(np.mean(tokens))
    assert mismatch.sums == pytest.approx((6, sum(tokens) - 6, sum((w - 1) ** 2 for w in tokens), 3.0))


def test_weights_that_overflow():
    mismatch, weights = ImportanceSampling("sequence_mask").compare(np.array([900.0, -800.0, 0.0]), np.array([0, 1, 2, 3]), Ranks())
    np.testing.assert_array_equal(weights, [0, 0, 1])
    assert all(np.isfinite(value) for value in (mismatch.kl, mismatch.effective_texts, *mismatch.sums))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"importance_sampling_mode": "tis"}, "must be one of token_truncate, token_mask, sequence_truncate, sequence_mask"),
        ({"importance_sampling_clip_max": 0.0}, "0 <= clip_min < clip_max"),
        ({"importance_sampling_clip_min": -0.1}, "0 <= clip_min < clip_max"),
        ({"importance_sampling_clip_min": 3.0}, "0 <= clip_min < clip_max"),
        ({"importance_sampling_clip_max": float("nan")}, "0 <= clip_min < clip_max"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense(make_env, arguments, told):
    with pytest.raises(ValueError, match=told):
        make(TextPPO, make_env(), rollout_buffer_kwargs=arguments)


def make(algorithm, env, **settings):
    policy = "MaskableTransformerPolicy" if algorithm is TextMaskablePPO else "TransformerPolicy"
    arguments = {"n_episodes": 16, "learning_rate": 1e-4, "seed": 0, "device": "cpu", "policy_kwargs": {"model": LLAMA}, **settings}
    return algorithm(policy, env, **arguments)


@pytest.fixture
def grouped(task):
    env = TextGenerationVecEnv(16, task=dataclasses.replace(task, group_size=4), reward=sevens)
    env.seed(3)
    return env


def corrects(mode, **limits):
    return {"importance_sampling_mode": mode, **{f"importance_sampling_{name}": value for name, value in limits.items()}}


@pytest.mark.parametrize("algorithm", [TextPPO, TextA2C, TextTRPO, TextMaskablePPO, RLOO, GRPO])
def test_every_algorithm_learns_from_weighted_advantages(grouped, algorithm):
    """Weights against log-probabilities by transformers; the first ratio stays that of the policy to itself."""
    agent = make(algorithm, grouped, rollout_buffer_kwargs=corrects("sequence_truncate", clip_max=1.5))
    agent.generator = Tempered(0.8)
    weighted = {}
    told = agent.rollout_buffer.samples

    def remember(indices):
        weighted["samples"] = told(indices)
        return weighted["samples"]

    agent.rollout_buffer.samples = remember
    lm = {name: value.clone() for name, value in agent.policy.lm.state_dict().items()}
    agent.learn(1, log_interval=9)  # nothing is dumped, so that the log keeps the rollout's numbers
    buffer, log = agent.rollout_buffer, agent.logger.name_to_value
    agent.policy.lm.load_state_dict(lm)
    ratios = []
    for segment, start, stop in zip(buffer.segments, buffer._offsets, buffer._offsets[1:], strict=False):
        ids = buffer.actions[start:stop]
        with torch.no_grad():
            logits = agent.policy.lm(torch.tensor([[*segment.context, *ids]])).logits[0, len(segment.context) - 1 : -1].double()
        ratios.append((logits.log_softmax(-1) - (logits / 0.8).log_softmax(-1))[range(len(ids)), ids].numpy())
    weights = np.concatenate([np.full(len(of), min(np.exp(of.sum()), 1.5)) for of in ratios])
    np.testing.assert_allclose(buffer.importance_weights, weights, rtol=1e-3)
    assert weights.min() < 0.5 and (weights == 1.5).any()
    assert log["generator/kl"] == pytest.approx(-np.concatenate(ratios).mean(), abs=1e-4) and log["generator/kl"] > 0.001
    assert log["generator/largest_log_ratio"] == pytest.approx(np.abs(np.concatenate(ratios)).max(), abs=1e-4)
    assert log["generator/share_clipped"] == np.mean([of.sum() > np.log(1.5) for of in ratios])
    samples = told(np.arange(len(buffer.segments)))
    np.testing.assert_allclose(samples.advantages, buffer.advantages * buffer.importance_weights, rtol=1e-6)
    np.testing.assert_array_equal(samples.old_log_prob, buffer.log_probs)
    assert weighted["samples"].importance_weight is not None  # what train() got


def test_without_a_generator_or_its_log_probs(make_env):
    class Mute(LocalDecoder):
        def generate(self, request):
            return [response.tokens for response in super().generate(request)]

    agent = make(TextPPO, make_env(), rollout_buffer_kwargs=corrects("token_truncate"))
    with pytest.raises(ValueError, match="and the policy writes itself: leave it out"):
        agent.learn(1)
    agent.generator = Mute()
    with pytest.raises(ValueError, match="and the generator returned tokens without log-probabilities"):
        agent.learn(1)
    agent = make(TextPPO, make_env())
    agent.generator = Mute()
    with pytest.warns(TrainingWarning, match="off-policy by an unknown amount"):
        agent.learn(1, log_interval=9)
    assert "generator/kl" not in agent.logger.name_to_value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent.learn(1)


class Shifted(LocalDecoder):
    """Its log-probabilities are wrong by a constant."""

    def __init__(self, by):
        self.by = by

    def generate(self, request):
        return [Response(one.tokens, one.log_probs - self.by) for one in super().generate(request)]


@pytest.mark.parametrize(("by", "told"), [(0.05, r"is 1\.0513.*all were 0.05 nats too low"), (0.002, r"is 1\.0020.*0.002 nats too low")])
def test_log_probs_that_are_wrong_by_a_constant_are_found_out(make_env, by, told):
    agent = make(TextPPO, make_env())
    agent.generator = Shifted(by)
    with pytest.warns(TrainingWarning, match=told):
        agent.learn(1)


@pytest.mark.parametrize("temperature", slow_but([0.6, 1.0], [0.6, 0.9, 1.0, 1.5]))
def test_right_log_probs_of_another_temperature_are_left_in_peace(make_env, temperature):
    agent = make(TextPPO, make_env())
    agent.generator = Tempered(temperature)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):
            agent.learn(1, reset_num_timesteps=False)
    assert agent.health.drawn.number > 300


def test_the_mean_weight_against_chance():
    """Known distributions over 1,000 tokens: 0.1 nats are found in ten rollouts of 2,000 tokens, and nothing where nothing is wrong."""
    rng = np.random.default_rng(0)
    for temperature in (0.5, 0.8, 1.0, 2.0):
        policy = rng.normal(size=1000) * 2
        drawn = policy / temperature
        policy, drawn = (logits - np.log(np.exp(logits).sum()) for logits in (policy, drawn))
        for _ in range(20):
            right = wrong = None
            for _ in range(10):
                tokens = rng.choice(1000, size=2000, p=np.exp(drawn))
                told = [
                    ImportanceSampling().compare((policy - drawn)[tokens] - by, np.array([0, 2000]), Ranks())[0].sums for by in (0, 0.1)
                ]
                right, wrong = (sums.joined(before) for sums, before in zip(told, (right, wrong), strict=True))
                assert not right.is_off
            assert right.number == 20_000
            assert wrong.is_off or temperature == 0.5  # where few tokens have most of the weight, it takes more of them


TINY = ExactTask("Tiny", smooth, 4, 3)
TABLE = {"class": "agents.evaluation.exact_optimum:Table", "vocab_size": 4, "length": 4}


class Everything(LocalDecoder):
    """Writes every text there is once, as if it had drawn them at a temperature."""

    def __init__(self, temperature):
        self.temperature = temperature

    def generate(self, request):
        texts, backbone = texts_of(TINY.tree(0)), self.backbone
        sampler = dataclasses.replace(request.sampler, temperature=self.temperature)
        written = []
        for ids in np.split(texts.tokens, texts.offsets[1:-1]):
            batch = pack([TextRecord(request.prompts[0], ids, 0)], "cpu", sampler=sampler)
            with torch.no_grad():
                told, _ = action_log_probs(backbone, backbone.hidden(batch), batch, torch.from_numpy(ids), sampler, 4)
            written.append(Response(ids, told.numpy()))
        return written


def tiny_reward(prompts, completions):
    return TINY.rewards(0, np.array([([*map(int, c.split())] + [0] * 3)[:3] for c in completions])).tolist()


def gradient(temperature, mode, **settings):
    """Return the gradient of the expected loss with respect to the table, by the real buffer and loss, and the agent.

    Each text's loss counts as often as the generator would write the text.
    """
    number = len(texts_of(TINY.tree(0)).scores)
    task = TextTask(IntegerTokenizer(4, 0), [Prompt("1")], 3, group_size=number)
    agent = RLOO(
        "TransformerPolicy", TextGenerationVecEnv(number, task=task, reward=tiny_reward), n_episodes=number, batch_size=number, beta=0.3,
        seed=0, device="cpu", policy_kwargs={"model": TABLE}, rollout_buffer_kwargs=corrects(mode, clip_max=UNCAPPED), learning_rate=1e-30,
        loss_aggregation="budget", **settings,
    )  # fmt: skip
    rows = agent.policy.lm.rows.weight
    with torch.no_grad():  # away from the reference
        rows.add_(torch.randn(rows.shape, generator=torch.Generator().manual_seed(1)))
    agent.generator = Everything(temperature)
    agent.learn(1)
    buffer = agent.rollout_buffer
    starts = buffer._offsets[:-1]
    shares = np.exp(np.add.reduceat(buffer._flat(np.stack(buffer._drawn)), starts))  # (M,)
    assert shares.sum() == pytest.approx(1, abs=1e-5)
    returns = np.add.reduceat(buffer.rewards, starts)
    centred = returns - shares @ returns  # less the mean of a group's other texts, as it is expected
    buffer.set_advantages(np.repeat(centred, np.diff(buffer._offsets)).astype(np.float32))
    losses = [agent._loss(buffer.samples(np.array([index])))[0] for index in range(number)]
    (found,) = torch.autograd.grad(sum(share * loss for share, loss in zip(shares, losses, strict=True)), rows)
    return 3 * found.double(), agent  # "budget" divides by the longest text


def exact_gradient(agent, beta):
    """Return that of the KL-regularised return with respect to the table, summed over all texts."""
    texts, rows = texts_of(TINY.tree(0)), agent.policy.lm.rows.weight
    objective = 0.0
    for text, score in zip(np.split(texts.tokens, texts.offsets[1:-1]), texts.scores, strict=True):
        ids = torch.tensor([[1, *text]])
        own, theirs = (
            model(ids, torch.arange(len(text) + 1)[None])[0, :-1].double().log_softmax(-1)[range(len(text)), text].sum()
            for model in (agent.policy.lm, agent.rollout_buffer.reference.lm)
        )
        objective = objective + own.exp() * (score - beta * (own - theirs))
    return torch.autograd.grad(objective, rows)[0].double()


@pytest.mark.parametrize(
    "settings",
    [{}, {"kl_estimator": "full"}, {"kl_in": "loss", "kl_estimator": "k3"}, {"ent_coef": 0.1}],
    ids=["k1", "full", "loss", "entropy"],
)
def test_weights_of_texts_give_back_the_exact_update(settings):
    """Corrected, the expected update of a rollout that another temperature wrote is that of a rollout that the policy wrote."""
    expected, _ = gradient(1.0, "sequence_truncate", **settings)
    corrected, agent = gradient(0.6, "sequence_truncate", **settings)
    torch.testing.assert_close(corrected, expected, atol=2e-6, rtol=1e-5)
    for mode in (None, "token_truncate"):  # the latter corrects one choice, and what follows stays the generator's
        assert (gradient(0.6, mode, **settings)[0] - expected).abs().max() > 0.005
    if settings in ({}, {"kl_estimator": "full"}):
        torch.testing.assert_close(corrected, -exact_gradient(agent, 0.3), atol=2e-6, rtol=1e-5)


def test_the_study_sums_what_the_library_does():
    """Its expected update against that of the real buffer and loss, and its fixed points against the known optimum."""
    tree, texts = TINY.tree(0), texts_of(TINY.tree(0))
    index = [sum((token + 1) * 5**at for at, token in enumerate([1, *prefix])) for level in tree.prefixes for prefix in level]  # of Table
    for name, mode in (("none", None), ("sequence_truncate, no cap", "sequence_truncate")):
        found, agent = gradient(0.6, mode)
        logits, reference = (
            backbone.lm.rows.weight.detach().double()[index].log_softmax(-1).numpy()
            for backbone in (agent.policy.backbone, agent.rollout_buffer.reference)
        )
        update, visits = expected_update(logits, reference, texts, Arm("k1", 0.6, name), 0.3)
        np.testing.assert_allclose(update, -found[index], atol=1e-5)
        assert visits[0] == pytest.approx(1) and np.abs(update).max() > 0.02
    levels = np.split(reference, [1, 4])
    best, optimum = tree.optimum(levels, 0.3)
    for arm in (Arm("full", 1.0, "none"), Arm("full", 1.5, "sequence_truncate, no cap"), Arm("k1", 0.7, "none")):  # the last is immune
        (end,) = fixed_point([reference], [texts], arm, 0.3)
        np.testing.assert_allclose(np.exp(end), np.exp(np.concatenate(optimum)), atol=1e-5)  # weights are float32
    (biased,) = fixed_point([reference], [texts], Arm("full", 1.5, "none"), 0.3)
    assert best - tree.evaluate(np.split(biased, [1, 4]), levels, 0.3).objective > 0.001


def test_weights_that_leave_nothing_are_warned_of(make_env):
    agent = make(TextPPO, make_env(), rollout_buffer_kwargs=corrects("token_mask", clip_min=1.5))
    agent.generator = LocalDecoder()
    with pytest.warns(TrainingWarning, match=r"an effective sample of 0\.0% of a rollout"):
        agent.learn(1, log_interval=9)
    assert agent.logger.name_to_value["generator/effective_weights"] == 0
    assert agent.logger.name_to_value["generator/share_clipped"] == 1


def test_settings_survive_a_checkpoint(make_env, tmp_path):
    agent = make(TextPPO, make_env(), rollout_buffer_kwargs=corrects("token_mask", clip_min=0.5, clip_max=5.0))
    agent.generator = Tempered(0.9)
    agent.learn(1)
    agent.save(tmp_path / "agent")
    loaded = TextPPO.load(tmp_path / "agent", env=make_env(), device="cpu")
    assert loaded.rollout_buffer._correction == ImportanceSampling("token_mask", 0.5, 5.0)
