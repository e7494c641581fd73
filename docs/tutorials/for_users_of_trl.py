"""For users of TRL.

Your reward functions, preference files and model folders work as they are. What differs: rollouts come from an environment,
`batch_size` counts texts of a minibatch, and KL is in the reward unless you say otherwise.
"""

from agents import GRPO
from agents.training import base_policy
from textrl_env import TextGenerationVecEnv, export, make_task

# %%
# A reward function for `GRPOTrainer`: keyword arguments, lists in, a list out. It is passed unchanged; columns of the data set arrive
# by name.


def brief(completions, **kwargs):
    """Reward short reviews."""
    return [-abs(len(completion.split()) - 8) / 8 for completion in completions]


# %%
# `num_generations=4` is the task's `group_size=4`; `per_device_train_batch_size` times steps is `n_episodes`, texts of a rollout.
task = make_task("review", group_size=4)
base = str(base_policy(task))
model = GRPO("TransformerPolicy", TextGenerationVecEnv(64, task, reward=brief), n_episodes=64, policy_kwargs={"model": base}, seed=0)
model.learn(10_000)
print(f"score {model.rollout_buffer.stats.score:.2f}, KL {model.rollout_buffer.stats.kl_per_sequence:.1f} nats a text")
model.policy.save_pretrained("runs/example/grpo")  # a folder for transformers, TRL or vLLM

# %%
# The other way round: a task's prompts and reward for TRL's own trainer, `GRPOTrainer(..., train_dataset=data, reward_funcs=rewards)`.
# Tasks whose turns, constraints, endings, weights or dense rewards TRL would leave out are refused.
data, rewards = export.trl(make_task("recall"))
print(data.column_names, rewards[0](["a completion"], prompt_id=[0]))

# %%
# | in TRL | here |
# | --- | --- |
# | `reward_funcs=[f, g]`, `reward_weights` | `{"name": "sum", "terms": {"f": f, "g": g}, "weights": {...}}` |
# | `AutoModelForSequenceClassification` as reward model | `{"name": "scalar_head", "path": ...}` |
# | `num_generations` | `group_size` of the task |
# | `max_completion_length` | `max_new_tokens` of the task |
# | `beta` (KL in the loss for GRPO) | `beta` with `kl_in="loss"`, the default of `GRPO`; `"reward"` elsewhere |
# | `loss_type="dr_grpo"`, `"dapo"` | `--algo dr-grpo`, `dapo`; `estimator`, `loss_aggregation`, `clip_range_high` |
# | `mask_truncated_completions`, `missing_eos_penalty` | `missing_eos_penalty`, `missing_eos="replace"` of the task |
# | `use_vllm` | `model.generator = VLLMGenerator(...)`, [not yet run with vLLM](../../generation.md) |
# | `peft_config` | `policy_kwargs={"lora": {"r": 8}}` |
# | `DPOTrainer` on `prompt`, `chosen`, `rejected` | `DPO`, or `textrl train --algo dpo --preferences pairs.jsonl` |
# | `SFTTrainer` | `SFT`, or `textrl train --algo sft` |
#
# When TRL is the better choice: [related projects](../../related.md). How fast each is on a CPU, with which critic:
# [speed](../../speed.md).
