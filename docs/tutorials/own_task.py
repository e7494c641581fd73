"""Your own task.

A task is a tokenizer, prompts, and how texts end. This one asks for the next numbers: after `3 4`, write `5 6`. The policy starts from
fresh weights, and the reward is all that it is told.
"""

from agents import RLOO, generate
from textrl_env import IntegerTokenizer, Prompt, TextGenerationVecEnv, TextTask

# %%
# Tokens are the numbers 0 to 15, and 0 ends a text. Prompts carry what the reward needs as `references`.
prompts = [Prompt(f"{n} {n + 1}", references=(f"{n + 2} {n + 3}",)) for n in range(1, 10)]
task = TextTask(IntegerTokenizer(16, eos_token_id=0), prompts, max_new_tokens=4, group_size=4)


def next_numbers(prompts, completions, references):
    """Share of the two numbers that stand in their places; less for each that is too many."""
    scores = []
    for completion, (wanted,) in zip(completions, references, strict=True):
        written, right = completion.split(), wanted.split()
        scores.append(sum(a == b for a, b in zip(written, right, strict=False)) / 2 - 0.1 * max(len(written) - 2, 0))
    return scores


# %%
# RLOO compares the four texts that `group_size` deals to each prompt. Fresh weights have nothing worth staying near: `beta` is 0.
llama = {
    "model_type": "llama",
    "vocab_size": 16,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
model = RLOO(
    "TransformerPolicy",
    TextGenerationVecEnv(64, task, reward=next_numbers),
    beta=0.0,
    ent_coef=0.02,
    learning_rate=3e-3,
    n_episodes=128,
    policy_kwargs={"model": llama},
    seed=0,
)
for _ in range(4):
    model.learn(8_000, reset_num_timesteps=False)
    print(f"{model.num_timesteps:6,} tokens: score {model.rollout_buffer.stats.score:.2f}")

# %%
print(generate(model.policy, task.tokenizer, ["3 4", "8 9"], max_new_tokens=4, deterministic=True))

# %%
# Prompts from a file, chat templates, splits: [prompts](../../how-to/prompts.md). Masks, dialogues and rewards of steps are settings of
# the task too: [the environment](../../how-to/environment.md). A task that ships with the packages is one file and one row:
# [contributing](../project/contributing.md).
