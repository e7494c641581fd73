"""Adapters: the base under them is the reference, and folded in they are the saved model; what breaks either is refused."""

import warnings

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from agents import DPO, SFT, TextPolicyGradient, TextPPO
from agents.models.loading import load_lm, save_lm
from agents.models.lora import adapters_off
from rewards.preferences.preference import Preference
from tests.slow_cases import slow_but
from textrl_env import IntegerTokenizer

from ..conftest import GPT2, LLAMA, VOCAB

pytest.importorskip("peft")

TIED = {**LLAMA, "tie_word_embeddings": True}
EXACT = {
    "all-linear": {"r": 4},
    "dora": {"r": 2, "use_dora": True, "init_lora_weights": "gaussian"},
    "ranks": {"r": 2, "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"layers.0.self_attn.v_proj": 16}, "use_rslora": True},
    "untied head and embeddings": {"r": 2, "target_modules": ["lm_head", "embed_tokens", "up_proj"], "init_lora_weights": "orthogonal"},
    "some layers": {"r": 2, "target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1], "bias": "none", "task_type": "CAUSAL_LM"},
}
REFUSED = {
    "head saved whole": (LLAMA, {"modules_to_save": ["lm_head"]}, "modules_to_save=.*trains or changes more than adapters"),
    "value head saved whole": (LLAMA, {"modules_to_save": ["value_head"]}, "modules_to_save=.*trains or changes more"),
    "all biases": (GPT2, {"bias": "all"}, "bias='all' trains or changes more"),
    "their biases": (GPT2, {"bias": "lora_only"}, "bias='lora_only' trains or changes more"),
    "a bias of their own": (LLAMA, {"lora_bias": True}, "lora_bias=True trains or changes more"),
    "tokens": (LLAMA, {"trainable_token_indices": [1, 2]}, "trainable_token_indices=.*trains or changes more"),
    "parameters": (LLAMA, {"target_parameters": ["q_proj.weight"]}, "target_parameters=.*trains or changes more"),
    "layers twice": (LLAMA, {"layer_replication": [[0, 2], [0, 2]]}, "layer_replication=.*trains or changes more"),
    "tied head": (TIED, {"target_modules": ["lm_head"]}, r"lm_head shares its weight with model\.embed_tokens"),
    "tied embeddings": (GPT2, {"target_modules": ["wte", "c_attn"]}, r"transformer\.wte shares its weight with lm_head"),
    **{first: (LLAMA, {"init_lora_weights": first}, "takes the adapters out of") for first in ("pissa", "pissa_niter_4", "olora", "eva")},
    "a name among others": (LLAMA, {"target_modules": ["q_proj", "q_porj"]}, "target_modules names 'q_porj'"),
    "a name to exclude": (LLAMA, {"exclude_modules": ["nope"]}, "exclude_modules names 'nope'"),
    "a pattern of ranks": (LLAMA, {"rank_pattern": {"c_attn": 4}}, "rank_pattern names 'c_attn'"),
    "a layer": (LLAMA, {"target_modules": ["q_proj"], "layers_to_transform": [0, 9]}, "layers_to_transform names 9"),
    "dropout": (LLAMA, {"lora_dropout": 0.1}, r"lora_dropout=0\.1: dropout is off in a policy"),
}


def train(env, model, lora):
    settings = {"model": model, "lora": {"lora_alpha": 8, **lora}}
    agent = TextPPO(
        "TransformerPolicy", env, n_episodes=6, batch_size=3, n_epochs=2, learning_rate=3e-2, seed=0, policy_kwargs=settings
    )  # fmt: skip
    agent.learn(90)
    return agent


@torch.no_grad()
def log_probs_of(lm, buffer):
    """Of every action of the rollout, by transformers alone."""
    rows = []
    for number, text in enumerate(buffer.segments):
        actions = np.asarray(buffer.actions).flatten()[buffer._offsets[number] : buffer._offsets[number + 1]].astype(np.int64)
        ids = torch.as_tensor(np.concatenate([text.context, actions])[None])
        logits = lm(input_ids=ids).logits[0, len(text.context) - 1 : -1].log_softmax(-1)  # (actions, V)
        rows.append(logits.gather(-1, torch.as_tensor(actions)[:, None]).squeeze(-1))
    return torch.cat(rows)


@pytest.mark.reports("With adapters, KL is measured to the very base model, and the saved folder has the policy's logits in transformers.")
@pytest.mark.parametrize("name", EXACT)
def test_the_base_is_the_reference_and_the_saved_folder_the_policy(make_env, tmp_path, name):
    save_lm(load_lm(LLAMA), tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    env = make_env()
    agent = train(env, str(tmp_path / "base"), EXACT[name])
    buffer = agent.rollout_buffer
    expected = log_probs_of(base, buffer)
    torch.testing.assert_close(torch.as_tensor(buffer.reference_log_probs), expected, atol=1e-5, rtol=0)
    assert (torch.as_tensor(buffer.log_probs).flatten() - expected).abs().max() > 1e-2  # the policy is somewhere else by now
    agent.save(tmp_path / "agent")
    agent.policy.save_pretrained(tmp_path / "folded")
    folded, ids = AutoModelForCausalLM.from_pretrained(tmp_path / "folded"), torch.tensor([[1, 2, 3, 7]])
    loaded = TextPPO.load(tmp_path / "agent", env=env)
    with torch.no_grad():
        torch.testing.assert_close(folded(ids).logits, agent.policy.lm(ids).logits, atol=1e-4, rtol=1e-5)
        assert torch.equal(loaded.policy.lm(ids).logits, agent.policy.lm(ids).logits)
        with adapters_off(loaded.policy.lm):
            assert torch.equal(loaded.policy.lm(ids).logits, base(ids).logits)


@pytest.mark.reports("A setting of lora under which the reference or the saved folder would be wrong is refused with the reason.")
@pytest.mark.parametrize("name", REFUSED)
def test_what_would_change_the_base_is_refused(make_env, name):
    model, lora, reason = REFUSED[name]
    with warnings.catch_warnings(), pytest.raises(ValueError, match=reason):
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")  # peft says so, and goes on
        TextPPO("TransformerPolicy", make_env(), policy_kwargs={"model": model, "lora": {"r": 2, **lora}})


@pytest.mark.reports("An argument that peft.LoraConfig does not have is named, and so is the one that was meant.")
def test_a_wrong_argument_is_named(make_env):
    with pytest.raises(TypeError, match=r"no argument 'lora_alhpa' \(did you mean 'lora_alpha'"):
        TextPPO("TransformerPolicy", make_env(), policy_kwargs={"model": LLAMA, "lora": {"r": 2, "lora_alhpa": 4}})


@pytest.mark.reports("A folder that holds adapters without their base is refused as a model, and the message says what to do.")
def test_a_folder_of_adapters_alone_is_no_model(tmp_path):
    from peft import LoraConfig

    LoraConfig(r=2, base_model_name_or_path="base").save_pretrained(tmp_path / "adapters")
    with pytest.raises(ValueError, match=r"holds adapters without their base model.*merge_and_unload"):
        load_lm(tmp_path / "adapters")


@pytest.mark.reports("A module whose adapters cannot be folded in exactly is not saved as if they could.")
def test_what_cannot_be_folded_in_is_not_saved(tmp_path):
    from peft import LoraConfig, inject_adapter_in_model

    lm = load_lm(LLAMA)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]), lm)
    with pytest.raises(ValueError, match="lm_head was trained beside the adapters"):
        save_lm(lm, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


PAIRS = [Preference("1 2", "3 4", "5"), Preference("7", "8", "9 10 11"), Preference("4 4", "", "6")]
ON_TEXTS = {
    "sft": (lambda model, lora: SFT(model, IntegerTokenizer(VOCAB, 0), learning_rate=3e-2, lora=lora), [("1 2", "3 4"), ("5", "6 7 8")]),
    "dpo": (lambda model, lora: DPO(model, IntegerTokenizer(VOCAB, 0), learning_rate=3e-2, lora=lora), PAIRS),
}


FAST = slow_but(("all-linear", "dora", "untied head and embeddings"), EXACT)  # of a policy all kinds are quick


@pytest.mark.parametrize("lora", FAST)
@pytest.mark.parametrize("name", ON_TEXTS)
def test_training_on_texts_moves_adapters_alone_and_saves_them_folded_in(tmp_path, name, lora):
    make, texts = ON_TEXTS[name]
    trainer = make(LLAMA, EXACT[lora])
    before = {key: parameter.detach().clone() for key, parameter in trainer.lm.named_parameters()}
    trainer.learn(texts, 12)
    moved = {key for key, parameter in trainer.lm.named_parameters() if not torch.equal(parameter, before[key])}
    assert trainer.losses[-1] < trainer.losses[0] - 0.05 and moved and all("lora" in key for key in moved)
    trainer.save(tmp_path)
    folded, ids = AutoModelForCausalLM.from_pretrained(tmp_path), torch.tensor([[1, 2, 3, 7]])
    with torch.no_grad():
        torch.testing.assert_close(folded(ids).logits, trainer.lm(ids).logits, atol=1e-4, rtol=1e-5)
    assert folded.generation_config.eos_token_id == 0


@pytest.mark.parametrize("lora", FAST)
def test_the_reference_of_dpo_is_the_base_under_its_adapters(tmp_path, lora):
    save_lm(load_lm(LLAMA), tmp_path / "base")
    base, tokenizer = str(tmp_path / "base"), IntegerTokenizer(VOCAB, 0)
    settings = {"learning_rate": 1e-2, "lora": EXACT[lora]}
    shared, apart = DPO(base, tokenizer, **settings), DPO(base, tokenizer, reference=base, **settings)
    assert shared.reference.lm is shared.lm and apart.reference.lm is not apart.lm
    for trainer in (shared, apart):
        trainer.learn(PAIRS, 8)
    rows = shared._records(shared._encode(PAIRS))
    with torch.no_grad():
        expected, own = (apart._log_probs(model, rows) for model in (apart.reference, apart.backbone))
        # A head with adapters is asked for logits, a plain one makes them in blocks: the same up to rounding
        atol = 1e-5 if "head" in lora else 0.0
        torch.testing.assert_close(shared._log_probs(shared.reference, rows), expected, atol=atol, rtol=0)
        assert (own - expected).abs().max() > 0.1  # the policy is somewhere else by now
    assert shared.losses == (apart.losses if atol == 0.0 else pytest.approx(apart.losses, abs=1e-4))


@pytest.mark.parametrize("name", [*REFUSED, "unknown"])
def test_training_on_texts_refuses_what_a_policy_refuses(name):
    model, lora, reason = REFUSED.get(name, (LLAMA, {"lora_alhpa": 4}, r"did you mean 'lora_alpha'"))
    for algorithm in (SFT, DPO):
        with warnings.catch_warnings(), pytest.raises((ValueError, TypeError), match=reason):
            warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")
            algorithm(model, IntegerTokenizer(VOCAB, 0), lora={"r": 2, **lora})


@pytest.mark.reports("Adapters that wait for the critic do not learn, whatever looks at the base model under them")
def test_adapters_wait_for_the_critic(make_env):
    agent = TextPolicyGradient(
        "TransformerPolicy", make_env(8), estimator="gae", critic_warmup=5, kl_in="loss", kl_estimator="full", beta=0.1, learning_rate=1e-2,
        n_episodes=8, batch_size=4, n_epochs=2, policy_kwargs={"model": LLAMA, "lora": {"r": 2, "target_modules": ["q_proj"]}},
    )  # fmt: skip
    before = {name: value.clone() for name, value in agent.policy.state_dict().items()}
    agent.learn(1)
    moved = {name.split(".")[0] for name, value in agent.policy.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"value_head"} and any(parameter.requires_grad for parameter in agent.policy.lm.parameters())
