"""Each way to go wrong is named, once, and a sound training is left in peace."""

import warnings

import numpy as np
import pytest

from agents import TextPPO
from agents.algorithms.common.training_warnings import RolloutSymptoms, TrainingChecks, TrainingWarning

from ..conftest import LLAMA, sevens

RNG = np.random.default_rng(0)
SOUND = RolloutSymptoms(RNG.normal(0.3, 1, 64), RNG.normal(size=64), 2.0, 58, 0.02)


@pytest.mark.parametrize(
    ("symptom", "message"),
    [
        ({"kl": RNG.normal(-2, 1, 64)}, "KL to the reference is -"),
        ({"entropy": 0.1}, "from 2.00 to 0.10 nats"),
        ({"approx_kl": 0.9}, "moved the policy by 0.9"),
        ({"scores": np.ones(64)}, "all 64 texts of a rollout scored 1"),
        ({"finished": 13}, "from 91% to 20%"),
        ({"cut": "top_p=0.9"}, "top_p=0.9: KL compares the two models on the tokens that the policy keeps"),
    ],
)
def test_each_cause_is_named_once(symptom, message):
    health = TrainingChecks()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        health.check(SOUND)
        health.check(SOUND._replace(kl=RNG.normal(0, 1, 64)))  # noise around 0 is no negative KL
    with pytest.warns(TrainingWarning, match=message):
        health.check(SOUND._replace(**symptom))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        health.check(SOUND._replace(**symptom))


@pytest.mark.reports("A fall in the share of texts that end is warned of only where chance does not explain it")
def test_chance_is_no_fall():
    few = SOUND._replace(kl=SOUND.kl[:16], scores=SOUND.scores[:16], finished=10)
    for finished, warned in ((3, False), (1, False), (0, True)):  # of 16; the interval of 10/16 - 1/16 begins at 0.24, of - 0/16 at 0.31
        health = TrainingChecks()
        health.check(few)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            health.check(few._replace(finished=finished))
        assert bool(caught) == warned


@pytest.mark.reports("A cut such as top_p in training is warned of, since KL does not see what it cuts")
def test_a_cut_hides_the_price_of_collapse(make_env):
    def warned(beta, **rules):
        policy = {"model": LLAMA, **rules}
        agent = TextPPO("TransformerPolicy", make_env(), n_episodes=12, batch_size=6, seed=0, beta=beta, policy_kwargs=policy)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            agent.learn(1)
        return [str(w.message) for w in caught if "keeps a single token pays nothing" in str(w.message)]

    assert len(warned(0.1, top_p=0.8)) == 1 and warned(0.1, top_k=3)[0].startswith("top_k=3: ")
    assert warned(0.1, top_k=1)[0].startswith("top_k=1: ")
    assert not warned(0.1) and not warned(0.0, top_p=0.8) and not warned(0.1, temperature=0.7)


def test_in_training(make_env, tmp_path):
    def make(reward):
        return TextPPO("TransformerPolicy", make_env(reward=reward), n_episodes=16, batch_size=8, seed=0, policy_kwargs={"model": LLAMA})

    with warnings.catch_warnings():
        warnings.simplefilter("error", TrainingWarning)
        agent = make(sevens)
        agent.learn(100)
        agent.save(tmp_path / "agent")
        TextPPO.load(tmp_path / "agent", env=make_env()).learn(30)
    with pytest.warns(TrainingWarning, match="scored 0.5"):
        make(lambda completions: [0.5] * len(completions)).learn(30)
