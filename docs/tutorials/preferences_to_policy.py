"""From preferences to a policy.

The loop of learning from human feedback, with a simulated annotator so that the true taste is known: write pairs of texts, have one
preferred, fit a reward model, train against it, and see whether the *true* score rose too. `textrl demo` does the same at full size.
"""

import numpy as np

from agents import TextPPO
from agents.evaluation import make_policy, write_texts
from agents.training import base_policy
from rewards import Preference, fit_preference_model
from textrl_env import Episode, TextGenerationVecEnv, make_task
from textrl_env.tasks.review.annotator import SimulatedAnnotator

# %%
# Two texts to each of 1,000 openings.
task = make_task("review", prompt_order="sequential")
base = str(base_policy(task))
policy = make_policy(task, base)
first, second = (write_texts(policy, task, 1_000, reward="length", seed=seed) for seed in (1, 2))

# %%
# The annotator says which is better, with noise, as people do. With real people this is a file, or [a study](../../feedback.md).
choices = SimulatedAnnotator(np.random.default_rng(0)).compare(first.prompts, first.responses, second.responses)
pairs = [
    Preference(prompt, *((a, b) if choice == 0 else (b, a)))
    for prompt, a, b, choice in zip(first.prompts, first.responses, second.responses, choices, strict=True)
]
print(pairs[0])

# %%
# A reward model is fitted on the choices alone, and given mean 0 and variance 1 on what the base policy writes.
model, report = fit_preference_model(pairs, tokenizer=task.tokenizer, trunk=None, seed=0)
model.normalise([Episode.from_text(p.prompt, text) for p in pairs for text in (p.chosen, p.rejected)])
print(f"tells held-out pairs apart in {report.held_out_accuracy:.0%} of cases")

# %%
# PPO against the learned score; the gold score judges, and is never trained on.
agent = TextPPO("TransformerPolicy", TextGenerationVecEnv(64, "review", reward=model), beta=0.2, policy_kwargs={"model": base}, seed=0)
agent.learn(30_000)

# %%
test = make_task("review", split="test", prompt_order="sequential")
for name, one in (("base", policy), ("trained", agent.policy)):
    texts = write_texts(one, test, 200, reward=model, seed=3)
    gold = test.gold(texts.prompts, texts.responses).mean()
    print(f"{name:8} learned {texts.scores.mean():+.2f}  gold {gold:+.2f}  {texts.responses[0]}")

# %%
# Without code: `textrl reward report pairs.jsonl --out runs/reward`, then `textrl train --task review --reward runs/reward/reward`. How
# far to trust a reward model, several annotators, rankings: [rewards from preferences](../../how-to/preferences.md). Without a reward
# model: [DPO](../algorithms/DPO.md).
