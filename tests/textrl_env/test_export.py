"""Tasks for the trainers of other libraries."""

import pytest

from textrl_env import FileTokenizer, Prompt, TextTask, export, make_task
from textrl_env.reward_model import RewardError
from textrl_env.utils.train_tokenizer import train_tokenizer

BYTES = FileTokenizer(train_tokenizer((), 258))


def of(**settings):
    prompts = [Prompt("2 + 2 =", references=("4",)), Prompt("1 + 2 =", references=("3",), metadata={"level": 2})]
    return TextTask(BYTES, prompts, 4, **settings)


def test_trl_finds_each_text_scored_with_its_own_prompt():
    data, (score,) = export.trl(of(reward="exact_match"))
    assert data.to_list() == [{"prompt": "2 + 2 =", "prompt_id": 0}, {"prompt": "1 + 2 =", "prompt_id": 1}]
    assert score(["3", "3", "4"], prompt_id=[0, 1, 0], prompts=["", "", ""], completion_ids=[[1], [1], [1]]) == [0.0, 1.0, 1.0]


def test_trl_takes_another_reward_and_logs_it_by_its_name():
    def weighted(completions, level, **_):
        return [len(text) * (weight or 10) for text, weight in zip(completions, level, strict=True)]

    _, (score,) = export.trl(of(), reward=weighted)
    assert score(["abc", "ab"], prompt_id=[1, 0]) == [6.0, 20.0]
    assert export.trl(of(), reward="exact_match")[1][0].__name__ == "exact_match"


def test_trl_refuses_what_its_trainer_would_leave_out():
    for name, value in {
        "stop_strings": ["!"],
        "stop_tokens": [5],
        "min_new_tokens": 2,
        "missing_eos_penalty": 1.0,
        "soft_max_tokens": 2,
    }.items():
        with pytest.raises(ValueError, match=f"the task has {name}, which only our environment follows"):
            export.trl(of(**{name: value}))
    with pytest.raises(ValueError, match="the task has prompt_weights, which"):
        export.trl(of(prompt_order="weighted", prompt_weights=[1, 3]))
    for name in ("score_steps", "score_turns"):
        dense = type("Dense", (), {"score": lambda self, episodes: [0.0], name: lambda self, episodes: [0.0]})()
        for task, reward in ((of(reward=dense), None), (of(), dense)):
            with pytest.raises(ValueError, match=f"the task has a reward with {name}, which"):
                export.trl(task, reward)
    with pytest.raises(ValueError, match="reply"):
        export.trl(make_task("calculator-1"))
    with pytest.raises(ValueError, match="pictures"):
        export.trl(make_task("caption-1"))


def test_trl_meets_a_wrong_score_with_the_text():
    _, (score,) = export.trl(of(), reward=lambda completions, **_: [float("nan")] * len(completions))
    with pytest.raises(RewardError, match="abc"):
        score(["abc"], prompt_id=[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # TRL and what it imports have theirs
def test_trl_trains_two_steps(tmp_path):
    trl = pytest.importorskip("trl", reason="TRL is not among the packages of the tests: install it into an environment of its own")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from agents.training import base_policy

    task = make_task("recall")
    folder = base_policy(task)
    data, rewards = export.trl(task)
    settings = trl.GRPOConfig(
        str(tmp_path), max_steps=2, per_device_train_batch_size=8, num_generations=4, max_completion_length=task.max_new_tokens,
        use_cpu=True, report_to=[], logging_steps=1, bf16=False, save_strategy="no",
    )  # fmt: skip
    trainer = trl.GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(folder), rewards, args=settings, train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(folder),
    )  # fmt: skip
    trainer.train()
    logged = [line for line in trainer.state.log_history if "reward" in line]
    assert len(logged) == 2
    assert all(line[f"rewards/{rewards[0].__name__}/mean"] == pytest.approx(line["reward"]) for line in logged)
