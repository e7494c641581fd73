"""Image-text models as LLaVA is built: patches among the tokens, against transformers' own way of placing them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageTextToText

from agents import SFT, TextPPO, TransformerPolicy, generate
from agents.benchmark.performance.architectures import IMAGE_SIDE, architectures, example_images
from agents.models.backbones import backbone_of
from agents.models.loading import load_lm
from agents.models.sequences import PartialTexts, one_action_each
from tests.slow_cases import slow_but
from textrl_env import Prompt

from ..conftest import VOCAB

MODEL = architectures(VOCAB)["llava"]
PATCHES = (IMAGE_SIDE // 6) ** 2
SIGLIP = {
    **MODEL,
    "vision_config": {**MODEL["vision_config"], "model_type": "siglip_vision_model", "vision_use_head": False},
    "vision_feature_select_strategy": "full",  # it has no token of its own before the patches
}
INSIDE = {**MODEL, "image_token_index": 9, "text_config": {**MODEL["text_config"], "vocab_size": VOCAB}}  # a token of the task's tokenizer


def shown(task, *texts):
    prompts = [Prompt(text, image=image) for text, image in zip(texts, example_images(len(texts)), strict=True)]
    return replace(task, prompt_order="sequential", prompts=prompts)


def policy_of(env, model=MODEL, **settings):
    torch.manual_seed(0)
    policy = TransformerPolicy(env.observation_space, env.action_space, lambda _: 1e-3, model=model, **settings)
    policy.set_training_mode(False)
    return policy


def logits_of(policy, obs):
    return policy.get_distribution({key: torch.as_tensor(value) for key, value in obs.items()}).distribution.logits


@pytest.mark.parametrize("model", [MODEL, SIGLIP], ids=["clip", "siglip"])
def test_a_picture_stands_before_the_prompt(make_env, task, tmp_path, model):
    """As transformers' processors expand it: a token for each patch, which the model itself replaces."""
    env = make_env(3, task=shown(task, "1 2", "3", "4 5 6"))
    policy, obs = policy_of(env, model), env.reset()
    ours = logits_of(policy, obs)
    policy.save_pretrained(tmp_path / "saved")
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved").eval()
    pixels = AutoImageProcessor.from_pretrained(tmp_path / "saved")(
        list(obs["image"]), return_tensors="pt", input_data_format="channels_last"
    ).pixel_values
    for row, ids in enumerate(obs["prompt"]):
        text = torch.tensor([[VOCAB] * PATCHES + ids[ids >= 0].tolist()])
        with torch.no_grad():
            logits = theirs(input_ids=text, pixel_values=pixels[row : row + 1]).logits[0, -1, :VOCAB]
        torch.testing.assert_close(logits.log_softmax(-1), ours[row], atol=1e-5, rtol=1e-5)


def test_a_picture_stands_where_the_prompt_says(make_env, task):
    env = make_env(3, task=shown(task, "9 1 2", "3 9", "4 9 6"))
    policy, obs = policy_of(env, INSIDE), env.reset()
    ours, pixels = logits_of(policy, obs), policy.backbone._pixels(torch.as_tensor(obs["image"]))
    for row, ids in enumerate(obs["prompt"]):
        text = [patch for token in ids[ids >= 0].tolist() for patch in [token] * (PATCHES if token == 9 else 1)]
        with torch.no_grad():
            logits = policy.lm(input_ids=torch.tensor([text]), pixel_values=pixels[row : row + 1]).logits[0, -1]
        logits[9] = -torch.inf  # no policy writes it
        torch.testing.assert_close(logits.log_softmax(-1), ours[row].where(ours[row] > -1e4, -torch.inf), atol=1e-5, rtol=1e-5)
    texts = generate(policy, env.core.task.tokenizer, env.core.task.prompts * 20, 12, seed=0)
    assert not any("9" in text.split() for text in texts)


def test_the_same_picture_elsewhere_in_the_prompt_is_read_again():
    """A cache that holds the first tokens of a text may not go on in the middle of a picture."""
    torch.manual_seed(0)
    backbone, image = backbone_of(load_lm(INSIDE)), example_images(1)
    from agents.models.cached_decoder import CachedDecoder

    decoder = CachedDecoder()
    for prompt in ([1, 9, 2, 3], [1, 2, 9, 3], [1, 2, 9], [1, 2, 9, 3, 4], [9, 2], [1, 9, 2, 3]):
        ids = np.full((1, 6), -1)
        ids[0, : len(prompt)] = prompt
        length = np.array([len(prompt)])
        texts = PartialTexts(ids, length, length, image)
        full = backbone.hidden(one_action_each(texts, backbone.device))
        torch.testing.assert_close(decoder.last_hidden(backbone, texts), full, atol=1e-5, rtol=1e-5)


def test_the_encoder_runs_once_a_text(make_env, task):
    env = make_env(3, task=shown(task, "1 2", "3", "4 5 6", "7"))
    policy, seen = policy_of(env), []
    obs = env.reset()
    policy.predict(obs)  # tries whether the cache is exact
    policy.drop_caches()
    tower = policy.lm.base_model.vision_tower
    tower.register_forward_hook(
        lambda module, args, kwargs, out: seen.append(len(kwargs.get("pixel_values", args[:1] and args[0]))), with_kwargs=True
    )
    begun = 3
    for _ in range(12):
        actions, _ = policy.predict(obs)
        before = env.core.prompt_index.copy()
        obs, _, _, _ = env.step(actions)
        begun += int((env.core.prompt_index != before).sum())
    policy.predict(obs)
    assert begun > 3 and sum(seen) == begun


SETTINGS = [{}, {"critic": "separate"}, {"micro_batch_size": 2}, {"lora": {"r": 2}}]


@pytest.mark.parametrize("settings", slow_but((s for s in SETTINGS if "micro_batch_size" not in s), SETTINGS))
def test_training_saving_and_going_on(make_env, task, tmp_path, settings):
    pictures = shown(task, "1 2", "3", "4 5 6")
    kwargs = {"model": MODEL, **settings}
    agent = TextPPO("TransformerPolicy", make_env(3, task=pictures), n_episodes=8, batch_size=4, n_epochs=1, seed=1, policy_kwargs=kwargs)
    before = [p.clone() for p in agent.policy.lm.base_model.vision_tower.parameters()]
    agent.learn(60)
    assert agent.rollout_buffer.stats.num_sequences == 8
    assert any(not torch.equal(a, b) for a, b in zip(before, agent.policy.lm.base_model.vision_tower.parameters(), strict=False))
    agent.save(tmp_path / "agent")
    loaded = TextPPO.load(tmp_path / "agent", env=make_env(3, task=pictures))
    for (name, one), other in zip(agent.policy.state_dict().items(), loaded.policy.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    loaded.learn(20, reset_num_timesteps=False)


def test_pictures_tell_texts_apart(make_env, task):
    """Two prompts that differ in their pictures alone are answered by different numbers after a little training."""
    two = shown(task, "1", "1")
    trainer = SFT(MODEL, two.tokenizer, learning_rate=1e-2, batch_size=2, device="cpu")
    trainer.learn([(two.prompts[0], " 5"), (two.prompts[1], " 6")], 60)
    policy = policy_of(make_env(2, task=two))
    policy.lm.load_state_dict(trainer.lm.state_dict())
    policy.drop_caches()
    assert generate(policy, two.tokenizer, two.prompts, 2, deterministic=True) == [" 5", " 6"]


def test_what_does_not_fit_is_refused(make_env, task):
    with pytest.raises(ValueError, match=r"token 9 stands for the picture.*a prompt holds it 2 times"):
        env = make_env(1, task=shown(task, "9 9"))
        logits_of(policy_of(env, INSIDE), env.reset())
    backbone = backbone_of(load_lm(INSIDE))
    ids, length = np.array([[1, 9]]), np.array([2])
    with pytest.raises(ValueError, match="; a response holds it"):
        backbone.hidden(one_action_each(PartialTexts(ids, length, np.array([1]), example_images(1)), backbone.device))
    with pytest.raises(ValueError, match="these texts came without"):
        backbone.hidden(one_action_each(PartialTexts(ids, length, length), backbone.device))
    room = {**MODEL, "text_config": {**MODEL["text_config"], "max_position_embeddings": 20}}
    with pytest.raises(ValueError, match="the model reads 16 tokens, prompt and response take 17"):
        policy_of(make_env(1, task=replace(shown(task, "1"), max_new_tokens=12, max_prompt_tokens=5)), room)
    with pytest.raises(ValueError, match=r"model_type 'idefics2' has no .*are built as 'llava' is"):
        load_lm({"model_type": "idefics2", "image_token_id": 1, **TINY_IDEFICS})


TINY_IDEFICS = {
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 12,
        "patch_size": 6,
    },
    "perceiver_config": {
        "resampler_n_latents": 2,
        "resampler_depth": 1,
        "resampler_n_heads": 2,
        "resampler_head_dim": 8,
        "num_key_value_heads": 1,
        "hidden_size": 16,
    },
    "text_config": {
        "model_type": "mistral",
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
}
