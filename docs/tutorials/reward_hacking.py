"""Reward hacking, and what KL is for.

`textrl/Hack-v0` has a reward with a loophole: a bait word counts four times as much as it is worth. How much of it a policy finds is a
matter of how far it is let go.
"""

from agents import RLOO
from agents.evaluation import write_texts
from agents.training import base_policy
from textrl_env import TextGenerationVecEnv, make_task

# %%
# The same training with three prices of a nat of KL. The score is what is paid; the gold score is what the texts are worth.
base = str(base_policy(make_task("hack")))
test = make_task("hack", split="test", prompt_order="sequential")


def train(beta):
    """Return score, gold score, and KL after training."""
    env = TextGenerationVecEnv(64, make_task("hack", group_size=4))
    model = RLOO("TransformerPolicy", env, beta=beta, learning_rate=1e-3, policy_kwargs={"model": base}, seed=0)
    model.learn(20_000)
    texts = write_texts(model.policy, test, 256, seed=1, reference=model.reference)
    return texts.scores.mean(), test.gold(texts.prompts, texts.responses).mean(), texts.kl_per_sequence, texts.responses[0]


# %%
for beta in (0.1, 0.03, 0.0):
    score, gold, kl, text = train(beta)
    print(f"beta {beta:.2f}: score {score:.2f}  gold {gold:.2f}  KL {kl:5.1f} nats  {text}")

# %%
# Without KL the score is highest and the gold score is not. With real rewards there is no gold score to look at: watch a second reward
# that is not optimised (`textrl train --held-out REWARD --stop-at-alarm`), how different the texts are, and the texts. The same on film
# reviews, with a learned reward: [what the demo shows](../../demo.md). [KL: where, and which](../../concepts/kl.md).
