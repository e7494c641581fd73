"""Your own reward.

A reward is a function of texts. Here a small model that writes film reviews learns to please one, and the texts are looked at before
and after: the reward is never the whole story.
"""

from agents import TextPPO, generate
from agents.training import base_policy
from textrl_env import TextGenerationVecEnv, make_task

# %%
# The function is called once for all texts that end at the same step, with lists of prompts and completions. It returns one number for
# each. Columns of the prompts' file (`references`, or any name) are passed too, if it asks for them by name.


def praise(prompts, completions, **columns):
    """Count words of praise, at most three."""
    return [min(3, sum(text.count(word) for word in ("brilliant", "moving", "superb"))) for text in completions]


# %%
# Before a run it is worth asking what is wrong with a reward: constant, random, in love with length, deaf to the prompt. Of these texts the
# longer ones have more praise, and the prompt is not read: both are meant here.
import rewards
from textrl_env import Episode

task = make_task("review")
texts = [Episode.from_text(f"the plot of film {i}", " so" * (3 - i % 3) + " moving" * (i % 3) + " .") for i in range(12)]
print(rewards.check(praise, texts))

# %%
# The policy is a Llama of two layers that learned to write reviews; it is made at first use, in half a minute. `beta` is the price of
# each nat of KL to it.
model = TextPPO(
    "TransformerPolicy",
    TextGenerationVecEnv(32, task, reward=praise),
    beta=0.1,
    policy_kwargs={"model": str(base_policy(task))},
    seed=0,
)


def write():
    """Return what the policy writes now."""
    return generate(model.policy, task.tokenizer, ["the plot of green river", "a friend lent me"], max_new_tokens=24, seed=0)


before = write()
model.learn(20_000)
for old, new in zip(before, write(), strict=True):
    print("before:", old)
    print("after: ", new)

# %%
# How far it went, and at which price:
stats = model.rollout_buffer.stats
print(f"score {stats.score:.2f}, KL {stats.kl_per_sequence:.1f} nats a text")

# %%
# The same from the command line: write the function into `my_reward.py` and run `textrl train --task review --reward
# my_reward.py:praise --beta 0.1 --total-tokens 20000`. Its report compares before and after on held-out prompts.
