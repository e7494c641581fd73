"""A policy that reads pictures: the encoder runs once a text, what cannot see pictures is refused, and what is saved keeps the encoder."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageTextToText

from agents import SFT, TextPPO, TransformerPolicy, generate
from agents.benchmark.performance.architectures import IMAGE_SIDE, architectures, example_images
from agents.models.loading import load_lm, save_lm
from agents.rollouts.collect_generated import check_can_follow
from agents.rollouts.reference_kl_wrappers import ReferenceKLVecEnv
from tests.slow_cases import slow_but
from textrl_env import Prompt

from ..conftest import GPT2, LLAMA, VOCAB

MODEL = architectures(VOCAB)["vision-encoder-decoder"]


@pytest.fixture
def shown(task):
    return replace(
        task, prompt_order="sequential", prompts=[replace(p, image=i) for p, i in zip(task.prompts, example_images(3), strict=True)]
    )


@pytest.fixture
def env(make_env, shown):
    return make_env(3, task=shown)


def policy_of(env, **settings):
    policy = TransformerPolicy(env.observation_space, env.action_space, lambda _: 1e-3, **{"model": MODEL, **settings})
    policy.set_training_mode(False)
    return policy


def ppo(env, **settings):
    settings = {"n_episodes": 8, "batch_size": 4, "n_epochs": 1, "seed": 1, **settings}
    return TextPPO("TransformerPolicy", env, **{**settings, "policy_kwargs": {"model": MODEL, **settings.get("policy_kwargs", {})}})


def test_the_encoder_runs_when_texts_begin_and_not_again(env):
    policy, seen = policy_of(env), []
    obs = env.reset()
    policy.predict(obs)  # tries whether the cache is exact
    policy.drop_caches()
    policy.lm.encoder.register_forward_hook(lambda module, args, kwargs, out: seen.append(len(out.last_hidden_state)), with_kwargs=True)
    begun = 3
    for _ in range(12):
        actions, _ = policy.predict(obs)
        before = env.core.prompt_index.copy()
        obs, _, _, _ = env.step(actions)
        begun += int((env.core.prompt_index != before).sum())  # a row that gets its prompt again has it in the cache
    policy.predict(obs)
    assert begun > 3
    assert sum(seen) == begun  # prompts come in turn, so that no two rows begin with the same one


def test_other_pictures_change_what_is_written_and_the_same_do_not(env):
    policy, obs = policy_of(env), env.reset()
    tensors = {key: torch.as_tensor(value) for key, value in obs.items()}
    log_probs = policy.get_distribution(tensors).distribution.logits
    turned = {**tensors, "image": tensors["image"].permute(0, 3, 1, 2)}  # as Stable-Baselines3's algorithms turn it
    assert torch.equal(policy.get_distribution(turned).distribution.logits, log_probs)
    other = {**tensors, "image": tensors["image"].flip(0)}
    assert (policy.get_distribution(other).distribution.logits - log_probs).abs().max() > 0.01


def test_pixels_are_what_the_processor_of_transformers_makes(env, tmp_path):
    policy, obs = policy_of(env), env.reset()
    policy.save_pretrained(tmp_path / "saved")
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved").eval()
    processor = AutoImageProcessor.from_pretrained(tmp_path / "saved")
    pixels = processor(list(obs["image"]), return_tensors="pt", input_data_format="channels_last").pixel_values
    expected = policy.get_distribution({key: torch.as_tensor(value) for key, value in obs.items()}).distribution.logits
    for row, ids in enumerate(obs["prompt"]):
        with torch.no_grad():
            logits = theirs(pixel_values=pixels[row : row + 1], decoder_input_ids=torch.as_tensor(ids[ids >= 0])[None]).logits[0, -1]
        torch.testing.assert_close(logits.log_softmax(-1), expected[row], atol=1e-5, rtol=1e-5)


def test_the_scaling_of_a_processor_is_read_and_kept(env, tmp_path):
    save_lm(load_lm(MODEL), tmp_path / "first")
    file = tmp_path / "first" / "preprocessor_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}))
    policy = policy_of(env, model=str(tmp_path / "first"))
    pixels = policy.backbone._pixels(torch.full((1, IMAGE_SIDE, IMAGE_SIDE, 3), 51, dtype=torch.uint8))  # 0.2
    torch.testing.assert_close(pixels[0, :, 0, 0], torch.tensor([-1.0, -1.0, -1.0]))
    policy.save_pretrained(tmp_path / "second")
    assert json.loads((tmp_path / "second" / "preprocessor_config.json").read_text())["image_mean"] == [0.4, 0.5, 0.6]
    file.write_text(json.dumps({**settings, "rescale_factor": 1.0}))
    with pytest.raises(ValueError, match="does not divide pixels by 255"):
        load_lm(tmp_path / "first")


SETTINGS = [{}, {"critic": "separate"}, {"micro_batch_size": 2}, {"lora": {"r": 2, "target_modules": ["c_attn"]}}, {"lora": {"r": 2}}]


@pytest.mark.parametrize("settings", slow_but(SETTINGS[1:], SETTINGS))
def test_training_saving_and_going_on(env, make_env, shown, tmp_path, settings):
    agent = ppo(env, policy_kwargs=settings)
    before = [p.clone() for p in agent.policy.lm.encoder.parameters()]
    agent.learn(60)
    assert agent.rollout_buffer.segments[0].image.shape == (IMAGE_SIDE, IMAGE_SIDE, 3)
    assert agent.rollout_buffer.stats.num_sequences == 8
    samples = agent.rollout_buffer.samples(np.arange(8))
    assert samples.observations.images.shape == (8, IMAGE_SIDE, IMAGE_SIDE, 3)  # once a text, not once a token
    moved = any(not torch.equal(a, b) for a, b in zip(before, agent.policy.lm.encoder.parameters(), strict=False))
    assert moved is ("target_modules" not in settings.get("lora", {}))  # by default adapters are in the encoder too
    agent.save(tmp_path / "agent")
    loaded = TextPPO.load(tmp_path / "agent", env=make_env(3, task=shown))
    for (name, one), other in zip(agent.policy.state_dict().items(), loaded.policy.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    loaded.learn(20, reset_num_timesteps=False)


def test_what_cannot_see_pictures_is_refused(env, make_env, shown):
    with pytest.raises(ValueError, match=r"pictures of shape \(12, 12, 3\), and LlamaForCausalLM reads text only"):
        policy_of(env, model=LLAMA)
    with pytest.raises(ValueError, match="VisionEncoderDecoderModel reads pictures, and the task's prompts have none"):
        policy_of(make_env())
    small = replace(shown, prompts=[Prompt("1", image=np.zeros((6, 12, 3), np.uint8))])
    with pytest.raises(ValueError, match=r"shape \(6, 12, 3\), the model's encoder reads \(12, 12, 3\): resize them"):
        policy_of(make_env(task=small))
    with pytest.raises(ValueError, match="the reference does not fit: the task's prompts have pictures"):
        ReferenceKLVecEnv(env, GPT2, 0.1)
    with pytest.raises(ValueError, match="and LlamaForSequenceClassification reads text only"):
        policy_of(env, critic=LLAMA)
    with pytest.raises(ValueError, match="a generator cannot follow the prompts' pictures"):
        check_can_follow(policy_of(env), env.core)
    with pytest.raises(ValueError, match="these texts came without"):
        SFT(MODEL, shown.tokenizer).learn([("1 2", " 3")], 1)
    with pytest.raises(ValueError, match="16 of 32 texts have a picture"):
        SFT(MODEL, shown.tokenizer).learn([(shown.prompts[0], " 3"), ("1 2", " 3")], 1)


def test_a_model_that_does_without_pictures_says_so(env):
    uniform = policy_of(env, model={"class": "agents.policies.uniform:Uniform", "vocab_size": VOCAB})
    obs = env.reset()
    assert "image" in obs
    log_probs = uniform.get_distribution({key: torch.as_tensor(value) for key, value in obs.items()}).distribution.logits
    assert torch.allclose(log_probs, torch.full_like(log_probs, -np.log(VOCAB)))  # each token is as likely


def test_generating_and_imitating_with_pictures(env, shown):
    policy = policy_of(env)
    texts = generate(policy, shown.tokenizer, shown.prompts, 4, deterministic=True)
    assert texts == [generate(policy, shown.tokenizer, [prompt], 4, deterministic=True)[0] for prompt in shown.prompts]
    same = [replace(shown.prompts[0], text="1", image=image) for image in example_images(2)]
    trainer = SFT(MODEL, shown.tokenizer, learning_rate=1e-2, batch_size=2, device="cpu")
    trainer.learn([(same[0], " 5"), (same[1], " 6")], 60)  # only the picture tells them apart
    policy.lm.load_state_dict(trainer.lm.state_dict())
    policy.drop_caches()
    assert generate(policy, shown.tokenizer, same, 2, deterministic=True) == [" 5", " 6"]


def test_adapters_of_both_parts_are_folded_into_the_weights(env, tmp_path):
    """The encoder's layers are of torch, the decoder's are GPT-2's transposed ones."""
    agent = ppo(env, policy_kwargs={"lora": {"r": 2}}, learning_rate=0.05)
    obs = {key: torch.as_tensor(value) for key, value in env.reset().items()}
    first = agent.policy.get_distribution(obs).distribution.logits
    agent.learn(60)
    agent.policy.save_pretrained(tmp_path / "saved")
    adapted = agent.policy.get_distribution(obs).distribution.logits
    whole = policy_of(env, model=str(tmp_path / "saved")).get_distribution(obs).distribution.logits
    torch.testing.assert_close(whole, adapted, atol=1e-5, rtol=1e-5)
    assert (adapted - first).abs().max() > 0.01
