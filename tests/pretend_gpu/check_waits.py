"""How often writing and learning stop the host of a GPU: a wait or a copy more than there must be fails here."""

import pytest

from agents import RLOO, TextPPO
from agents.rollouts.collect import play_episodes
from textrl_env import IntegerTokenizer, Prompt, TextTask
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv

from ..agents.conftest import EOS, LLAMA, VOCAB, sevens

RULES = {"top_p": 0.9, "no_repeat_ngram": 2, "min_new_tokens": 3, "banned_tokens": (5,)}
T5 = dict(
    model_type="t5", vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=1, pad_token_id=1
)
POLICIES = {
    "plain": {},
    "rules": RULES,
    "adapters": {"lora": {"r": 2}},
    "a critic of its own": {"critic": "separate"},
    "an encoder": {"model": T5},
}


def make(algorithm, device, policy, n_episodes=16, group_size=1, **settings):
    prompts = [Prompt("1 2 3"), Prompt("4"), Prompt("5 6 7 8 9 10")]
    task = TextTask(IntegerTokenizer(VOCAB, EOS), prompts, max_new_tokens=9, group_size=group_size)
    env = TextGenerationVecEnv(16, task=task, reward=sevens)
    env.seed(3)
    policy = {"model": LLAMA, **policy}
    return algorithm("TransformerPolicy", env, n_episodes=n_episodes, batch_size=8, policy_kwargs=policy, seed=0, device=device, **settings)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_a_step_takes_one_copy_up_and_one_down(pretend_gpu, count_waits, policy):
    """While texts end and others begin: 40 in 16 rows."""
    agent = make(TextPPO, pretend_gpu, policy)
    for _ in play_episodes(agent.policy, agent.env, agent.rollout_buffer, 16):  # at first use it is tried whether caches are right
        pass
    steps, number = play_episodes(agent.policy, agent.env, agent.rollout_buffer, 40), 0
    while True:
        with count_waits() as counter:
            played = next(steps, None)
        if played is None:
            break  # here the rollout was fetched
        # transformers asks besides whether an encoder's mask holds everywhere
        waits = sum(n for (_, line), n in counter.waits.items() if "encoder_decoder.py" not in line)
        assert (waits, counter.copies.total()) == (1, 1), counter.table()
        number += 1
    assert number > 10


@pytest.mark.parametrize(
    ("algorithm", "policy", "settings"),
    [
        (TextPPO, {}, {}),
        (TextPPO, RULES, {}),
        (TextPPO, {"lora": {"r": 2}}, {}),
        (TextPPO, {"critic": "separate"}, {}),
        (RLOO, {}, {"group_size": 4}),
        (RLOO, RULES, {"group_size": 4, "kl_in": "loss", "kl_estimator": "k3"}),
    ],
)
def test_a_minibatch_takes_three_waits_and_copies_of_our_own(pretend_gpu, count_waits, algorithm, policy, settings):
    agent = make(algorithm, pretend_gpu, policy, n_epochs=3, **settings)
    agent.learn(1)
    with count_waits() as counter:
        agent.train()  # the same rollout again, 6 minibatches
    # Of these one is transformers', in each trunk, and norms of gradients are fetched once
    assert counter.own == 3 * 6 + 6 * ("critic" in policy) + (algorithm is RLOO), counter.table(6)
