"""Where texts end: the task says it, and policy, sampler, generation, training and exports all follow."""

import sys

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from agents import DPO, SFT, ExpertIteration, LocalDecoder, SequenceRolloutBuffer, TextPPO, TransformerPolicy, generate, stream
from agents.evaluation.policy_texts import make_policy, write_texts
from agents.generation.generator_process import ServedGenerator
from agents.models.loading import load_lm
from agents.models.sampler import LOG_ZERO, Sampler
from agents.rollouts.reference_kl_wrappers import ReferenceKL
from rewards.preferences.preference import Preference
from textrl_env import FileTokenizer, IntegerTokenizer, Prompt, TextCore, TextGenerationEnv, TextTask, WordTokenizer
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv

from ...textrl_env.test_tokenizer_files import WORDS, backend

LLAMA = {
    "model_type": "llama", "vocab_size": 8, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip
TWO = ["<eos>", "<end>"]  # ids 0 and 4


def task_of(tokenizer=None, text="hello world", **settings):
    return TextTask(FileTokenizer(backend(), TWO) if tokenizer is None else tokenizer, [Prompt(text)], 8, **settings)


def favour(policy, token, by=50.0):
    """Let the policy write `token` wherever it may."""
    with torch.no_grad():
        policy.lm.lm_head.weight.zero_()
        policy.lm.model.norm.weight.fill_(1.0)
        policy.lm.lm_head.weight[token] = by
        policy.lm.model.embed_tokens.weight.fill_(1.0)
    policy.drop_caches()
    return policy


@pytest.mark.reports("A model given as a dict ends its texts where the task's tokenizer does, whatever the architecture's default")
def test_the_task_decides_for_a_model_given_as_a_dict():
    assert AutoConfig.for_model("llama").eos_token_id == 2
    policy = make_policy(task_of(IntegerTokenizer(8, 5), text="1 2"), LLAMA, min_new_tokens=3)
    assert policy.sampler.ends == (5,)
    for token, length in ((5, 3), (2, 8)):  # 5 comes as soon as it may; 2 is an ordinary token, withheld never and no end
        (text,) = generate(favour(policy, token), IntegerTokenizer(8, 5), ["1 2"], 8, seed=0)
        assert len(text.split()) == length


@pytest.mark.reports("A policy withholds, repeats and writes every one of several ends as an end, alike in acting and in training")
def test_all_of_several_ends_are_withheld():
    policy = make_policy(task_of(), LLAMA, min_new_tokens=2, no_repeat_ngram=1)
    assert policy.sampler.ends == (0, 4)
    withheld = policy.sampler.withheld([np.array([1]), np.array([1, 2])], [np.array([1]), np.array([2])])
    out = policy.sampler.apply_rules(torch.zeros(2, 6), torch.from_numpy(withheld)) <= LOG_ZERO / 2
    assert [row.nonzero().flatten().tolist() for row in out] == [[0, 1, 4], [1, 2]]  # 1 and 2 were used
    repeats = Sampler(no_repeat_ngram=1, eos_token_id=[0, 4]).repeats([np.array([1, 4, 0])], [np.array([3])])
    assert repeats.tolist() == [[0], [1]]
    env = TextGenerationVecEnv(4, task=task_of(), reward="length")
    model = TextPPO("TransformerPolicy", env, n_episodes=8, batch_size=8, policy_kwargs={"model": LLAMA, "min_new_tokens": 2})
    model.learn(8)
    assert model.logger.name_to_value["train/clip_fraction"] >= 0


@pytest.mark.reports("generate, stream and evaluation stop at each of several ends")
@pytest.mark.parametrize("end", [0, 4])
def test_writing_stops_at_each_end(end):
    task = task_of(prompt_order="sequential")
    policy = favour(make_policy(task, LLAMA), end)
    assert generate(policy, task.tokenizer, ["hello", "world"], 8) == ["", ""]
    assert list(stream(policy, task.tokenizer, "hello", 8)) == []
    texts = write_texts(policy, task, 3, "length")
    assert (texts.finish_reasons, texts.lengths.tolist()) == (["eos"] * 3, [1] * 3)


@pytest.mark.reports("A model folder that names an end which the task does not know is refused, unless the user confirms the task's")
def test_a_folder_with_more_ends_is_refused(tmp_path):
    lm = load_lm(LLAMA)
    lm.generation_config.eos_token_id = [0, 4]
    lm.save_pretrained(tmp_path)
    one = task_of(FileTokenizer(backend(), "<eos>"))
    with pytest.raises(ValueError, match=r"configuration says that \[4\] ends a text, the task's tokenizer names \[0\] only"):
        make_policy(one, tmp_path)
    assert make_policy(task_of(), tmp_path).sampler.ends == (0, 4)
    assert make_policy(one, tmp_path, eos_token_id=0).sampler.ends == (0,)
    with pytest.raises(ValueError, match=r"eos_token_id=\[4\]: the task's tokenizer ends texts with \[0\]"):
        make_policy(one, tmp_path, eos_token_id=4)
    with pytest.raises(ValueError, match=r"says that \[3\] ends a text"):
        make_policy(one, {**LLAMA, "eos_token_id": [0, 3]})


@pytest.mark.reports("An exported policy stops at the same tokens in transformers, and its folder opens as a tokenizer")
@pytest.mark.parametrize("end", [0, 4])
def test_transformers_generates_the_same_text(tmp_path, end):
    task = task_of()
    policy = make_policy(task, {**LLAMA, "bos_token_id": None})
    policy.save_pretrained(tmp_path)
    for name in ("config", "generation"):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert (loaded.config if name == "config" else loaded.generation_config).eos_token_id == [0, 4]
    favour(policy, end).save_pretrained(tmp_path)
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("hello world", return_tensors="pt").input_ids
    written = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert written[0, 2:].tolist() == [end]
    assert tokenizer.eos_token_id == 0
    assert FileTokenizer(tmp_path).eos_token_ids == (0, 4)
    assert make_policy(task_of(FileTokenizer(tmp_path)), tmp_path).sampler.ends == (0, 4)


@pytest.mark.reports("A checkpoint keeps the ends and the tokenizer: a policy loaded without its environment exports both")
@pytest.mark.parametrize("stock", [False, True])
def test_a_loaded_policy_exports_its_tokenizer(tmp_path, stock):
    env = TextGenerationVecEnv(2, task=task_of(WordTokenizer(["hello", "world", "a", "b", "c", "d", "e"])), reward="length")
    if stock:
        settings = {"rollout_buffer_class": SequenceRolloutBuffer, "n_steps": 4, "batch_size": 2}
        model = PPO(TransformerPolicy, env, policy_kwargs={"model": LLAMA}, **settings)
    else:
        model = TextPPO("TransformerPolicy", env, n_episodes=2, policy_kwargs={"model": LLAMA})
    model.save(tmp_path / "model.zip")
    type(model).load(tmp_path / "model.zip").policy.save_pretrained(tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config.eos_token_id == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("world hello").input_ids == [2, 1]
    other = TextGenerationVecEnv(2, task=task_of(IntegerTokenizer(8, 3), text="1 2"), reward="length")
    with pytest.raises(ValueError, match=r"Action spaces do not match.*\(0,\).*\(3,\)|\(3,\).*\(0,\)"):
        type(model).load(tmp_path / "model.zip", env=other)


@pytest.mark.reports("generate and evaluation refuse a tokenizer that is not the policy's")
def test_another_tokenizer_is_refused():
    policy = make_policy(task_of(IntegerTokenizer(8, 5), text="1"), LLAMA)
    for other in (IntegerTokenizer(8, 3), IntegerTokenizer(7, 5)):
        with pytest.raises(ValueError, match="pass the tokenizer that the policy was made with"):
            generate(policy, other, ["1"], 3)
        with pytest.raises(ValueError, match="pass the tokenizer that the policy was made with"):
            write_texts(policy, TextTask(other, [Prompt("1")], 3, prompt_order="sequential"), 1)


@pytest.mark.reports("SFT, DPO and expert iteration append the tokenizer's first end, and export its ends and the tokenizer")
@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_supervised_training_and_its_exports(tmp_path, lora):
    tokenizer = FileTokenizer(backend(bos=True), ["<end>", "<eos>"])
    sft = SFT(LLAMA, tokenizer, lora=lora)
    rows = sft._encode([("hello", "world"), ("<end>", "<s>")])
    assert [(row.context.tolist(), row.actions.tolist()) for row in rows] == [
        ([5], [1, 2, 4]),
        ([5], [3, 3, 3, 3, 4]),
    ]
    dpo = DPO(LLAMA, tokenizer, lora=lora)
    (pair,) = dpo._encode([Preference("hello", "world", "<eos>")])
    assert [(row.context.tolist(), row.actions.tolist()) for row in pair[:2]] == [([5, 1], [2, 4]), ([5, 1], [3, 3, 4])]
    expert = ExpertIteration(task_of(tokenizer), LLAMA, "length", n=2, n_prompts=2, steps=1, lora=lora)
    for trainer in (sft, dpo, expert.trainer):
        trainer.save(tmp_path)
        assert AutoModelForCausalLM.from_pretrained(tmp_path).generation_config.eos_token_id == [4, 0]
        assert AutoTokenizer.from_pretrained(tmp_path)("hello").input_ids == [5, 1]
        assert FileTokenizer(tmp_path).eos_token_ids == (4, 0)


@pytest.mark.reports("Ids without a token are never drawn, and a model with fewer rows than the largest id is refused")
def test_gaps_and_sizes():
    tokenizer = FileTokenizer(backend({**WORDS, "far": 9}))
    task = task_of(tokenizer)
    with pytest.raises(ValueError, match="the model has 8 tokens, the environment 10"):
        make_policy(task, LLAMA)
    with pytest.raises(ValueError, match="the model has 8 tokens, the tokenizer 10"):
        SFT(LLAMA, tokenizer)
    policy = make_policy(task, {**LLAMA, "vocab_size": 12})  # two rows more than the tokenizer: cut off
    favour(policy, 7)
    with torch.no_grad():
        policy.lm.lm_head.weight[10:] = 50.0
    core_texts = write_texts(policy, task_of(tokenizer, prompt_order="sequential"), 20, "length")
    assert max(core_texts.lengths) <= 8
    obs = {"prompt": torch.tensor([[1, 9]] * 200), "response": torch.full((200, 8), -1)}
    drawn, _, _ = policy(obs)
    assert set(drawn.tolist()) <= {0, 1, 2, 3, 4, 5, 9}


@pytest.mark.reports("A generator, in this process or another, ends its texts at every end of the task")
@pytest.mark.parametrize(
    "generator", [LocalDecoder, pytest.param(lambda: ServedGenerator("local", sys.executable), marks=pytest.mark.slow)]
)
def test_generators_stop_at_each_end(generator):
    generator = generator()
    for end in (0, 4):
        env = TextGenerationVecEnv(4, task=task_of(), reward="length")
        model = TextPPO("TransformerPolicy", env, n_episodes=4, batch_size=4, policy_kwargs={"model": LLAMA, "min_new_tokens": 2})
        favour(model.policy, end)
        model.generator = generator
        model.learn(4)
        assert model.num_timesteps == 4 * 3  # two other tokens first, and then the end
    if isinstance(generator, ServedGenerator):
        generator.close()


@pytest.mark.reports("A reference wrapper's sampler must withhold the environment's own ends")
def test_a_reference_with_other_ends_is_refused():
    env, reference = TextGenerationEnv(task_of(), reward="length"), load_lm(LLAMA)
    with pytest.raises(ValueError, match=r"eos_token_id=0: the environment ends texts with \[0, 4\]"):
        ReferenceKL(env, reference, 0.1, Sampler(min_new_tokens=2, eos_token_id=0))
    ReferenceKL(env, reference, 0.1, Sampler(min_new_tokens=2, eos_token_id=[4, 0]))


@pytest.mark.reports("An environment that replies may speak in special tokens, and what it only spells is text")
def test_replies():
    def turn(reply):
        core = TextCore(task_of(reply=lambda episodes: [reply] * len(episodes), max_turns=2), 1, "length")
        core.restart([0])
        core.step(np.array([4]))
        return core.observe()["response"][0].tolist()

    assert turn("hello <s>") == [4, 1, 3, 3, -1, -1, -1, -1]  # "<" and "s>" are unknown words
    assert turn(Prompt("hello <s>", typed=())) == [4, 1, 5, -1, -1, -1, -1, -1]
