"""What is tried when a model is loaded: that training mode changes nothing, and that logits are what the policy takes them for."""

import copy

import pytest
import torch
from torch import nn

from agents import SFT, SequenceRolloutBuffer, TextPPO
from agents.benchmark.performance.architectures import architectures
from agents.models.backbones import backbone_of
from agents.models.loading import load_lm, num_parameters, save_lm
from agents.models.model_checks import check_model
from agents.models.sequences import TextRecord, pack
from textrl_env import IntegerTokenizer, Prompt, TextTask

from ..conftest import GPT2, LLAMA, VOCAB
from .own_models import Recurrent

ATTENTION = dict(
    vocab_size=VOCAB, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    bos_token_id=None, eos_token_id=0, pad_token_id=None, max_position_embeddings=64,
)  # fmt: skip
BART = architectures(VOCAB)["bart"]
SWITCHED_OFF = {
    "m2m_100": {**BART, "model_type": "m2m_100", "init_std": 0.3},  # layerdrop 0.05 by default
    "bart": {**BART, "encoder_layerdrop": 0.02, "decoder_layerdrop": 0.02, "activation_dropout": 0.01},
    "opt": {**architectures(VOCAB)["opt"], "layerdrop": 0.02},
    "mixtral": {**ATTENTION, "model_type": "mixtral", "num_local_experts": 4, "router_jitter_noise": 0.01, "attention_dropout": 0.01},
}


class SkipsRarely(Recurrent):
    """Leaves a layer out once in ten thousand passes, under a name that says nothing."""

    rate = 1e-4

    def forward(self, input_ids, positions, mask=None):
        hidden = super().forward(input_ids, positions, mask)
        return hidden if not self.training or torch.rand([]) >= self.rate else 2 * hidden


class DrawsInVain(SkipsRarely):
    """Draws a number and does not use it."""

    rate = 0.0


class Normalises(Recurrent):
    """Batch normalisation: in training mode a text's numbers depend on the texts beside it."""

    def __init__(self, vocab_size):
        super().__init__(vocab_size)
        self.norm = nn.BatchNorm1d(16)

    def forward(self, input_ids, positions, mask=None):
        return self.norm(super().forward(input_ids, positions, mask).transpose(1, 2)).transpose(1, 2)


@pytest.mark.reports("Layerdrop, activation dropout and router jitter are off in a policy, whatever the seed.")
@pytest.mark.parametrize("name", SWITCHED_OFF)
@pytest.mark.parametrize("seed", range(3))
def test_what_makes_training_random_is_switched_off(name, seed):
    torch.manual_seed(seed)
    backbone = backbone_of(load_lm(SWITCHED_OFF[name]))
    batch = pack([TextRecord(torch.arange(5).numpy(), torch.arange(6).numpy(), 0)], "cpu")
    with torch.no_grad():
        expected = backbone.hidden(batch)
        backbone.lm.train()
        for _ in range(60):  # a layer that were left out in 2% of the passes would be by now
            torch.testing.assert_close(backbone.hidden(batch), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.reports("A model that is random in training mode, however rarely, is refused with every seed.")
@pytest.mark.parametrize("source", [SkipsRarely, Normalises, {"hidden_dropout": 1e-4}], ids=["rarely", "batch", "falcon"])
def test_what_cannot_be_switched_off_is_refused_with_every_seed(source):
    if isinstance(source, dict):  # reads its configuration in every pass
        model = {**source, "model_type": "falcon", **dict(list(ATTENTION.items())[:1]), "hidden_size": 16, "num_hidden_layers": 2,
                 "num_attention_heads": 2, "bos_token_id": None, "eos_token_id": 0}  # fmt: skip
        reason = f"Falcon.*in its configuration.*{next(iter(source))}"
    else:
        model, reason = {"class": f"{__name__}:{source.__name__}", "vocab_size": VOCAB}, f"{source.__name__} is random in training mode or"
    for seed in range(5):
        torch.manual_seed(seed)
        with pytest.raises(ValueError, match=reason):
            load_lm(model)


@pytest.mark.reports("A model that draws a number and does not use it is accepted, and the generator is left as it was.")
def test_numbers_that_are_drawn_in_vain_do_no_harm():
    for seed in range(3):
        lm = DrawsInVain(VOCAB)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        check_model(backbone_of(lm))
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.reports("Rounding of large logits is no reason to refuse a model.")
@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_rounding_of_large_logits_passes(config):
    lm = load_lm({**config, "tie_word_embeddings": False})
    with torch.no_grad():
        lm.get_output_embeddings().weight.mul_(1e5)
    lm.forward = rounded(lm.forward)
    check_model(backbone_of(lm))


def rounded(forward):
    def call(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = out.logits + 4e-6 * out.logits.abs().max() * torch.randn_like(out.logits)  # as SmolLM2's 1.2e-4 of 29
        return out

    return call


CHANGES = {
    "a cap that fresh weights never reach": lambda logits: 30 * torch.tanh(logits / 30),
    "a scale": lambda logits: 0.97 * logits,
    "a shift of one token": lambda logits: logits + 0.1 * nn.functional.one_hot(torch.tensor(3), VOCAB),
    "a token that is never drawn": lambda logits: logits.index_fill(-1, torch.tensor([5]), -torch.inf),
}


@pytest.mark.reports("A change of the logits after the head is found, however small fresh logits are and however large trained ones.")
@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_what_is_done_to_logits_after_the_head_is_found(name, scale):
    lm = load_lm({**LLAMA, "initializer_range": 0.02})
    with torch.no_grad():
        lm.lm_head.weight.mul_(scale)
    forward = copy.copy(lm.forward)

    def changed(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = CHANGES[name](out.logits)
        return out

    lm.forward = changed
    with pytest.raises(ValueError, match="LlamaForCausalLM changes its logits after the output head"):
        check_model(backbone_of(lm))


LONGROPE = {
    **ATTENTION, "model_type": "phi3", "initializer_range": 0.3, "original_max_position_embeddings": 20,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 10_000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "factor": 3.2,
        "original_max_position_embeddings": 20,
    },
}  # fmt: skip


def at_length(prompt, response):
    return TextTask(IntegerTokenizer(VOCAB, 0), [Prompt(" ".join(["5"] * prompt)), Prompt("7")], max_new_tokens=response)


@pytest.mark.reports("A model whose positions change their scale beyond a length is refused for texts that reach it, and used for others.")
@pytest.mark.parametrize("where", ["policy", "reference", "critic"])
def test_positions_that_depend_on_length(make_env, tmp_path, where):
    save_lm(load_lm(LONGROPE), tmp_path / "longrope")
    made = {
        "policy": {"policy_kwargs": {"model": LONGROPE}},
        "reference": {"policy_kwargs": {"model": LLAMA}, "reference": str(tmp_path / "longrope")},
        "critic": {"policy_kwargs": {"model": LLAMA, "critic": LONGROPE}},
    }[where]
    for prompt, response in ((4, 18), (20, 2)):  # the last of 22 tokens is not read again
        with pytest.raises(ValueError, match=r"a text of 22 tokens otherwise than.*'longrope', 'original_max_position_embeddings': 20"):
            TextPPO("TransformerPolicy", make_env(task=at_length(prompt, response)), **made)
    fits = TextPPO("TransformerPolicy", make_env(task=at_length(4, 17)), n_episodes=12, batch_size=12, n_epochs=1, seed=0, **made)
    fits.learn(100)
    assert abs(fits.logger.name_to_value["policy/approx_kl"]) < 1e-6 and fits.logger.name_to_value["policy/clip_fraction"] == 0


@pytest.mark.reports("Other rescaled positions, which do not depend on length, are used.")
@pytest.mark.parametrize("rope_type", ["linear", "yarn", "llama3", "dynamic"])
def test_positions_that_do_not_depend_on_length(make_env, rope_type):
    extra = {"yarn": {"original_max_position_embeddings": 16}, "llama3": {"original_max_position_embeddings": 16, "low_freq_factor": 1.0,
             "high_freq_factor": 4.0}}  # fmt: skip
    rope = {"rope_type": rope_type, "rope_theta": 10_000.0, "factor": 4.0, **extra.get(rope_type, {})}
    settings = {"policy_kwargs": {"model": {**LLAMA, "rope_parameters": rope}}}
    TextPPO("TransformerPolicy", make_env(task=at_length(4, 60)), **settings)
    with pytest.raises(ValueError, match="the model reads 64 tokens"):  # where dynamic scaling would begin
        TextPPO("TransformerPolicy", make_env(task=at_length(4, 61)), **settings)


@pytest.mark.reports("A module of one's own that is given as reference or to be trained is checked like one that is loaded.")
def test_modules_that_are_passed_are_checked(make_env):
    lm = load_lm(LLAMA)
    forward = lm.forward

    def capped(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = 30 * torch.tanh(out.logits / 30)
        return out

    lm.forward = capped
    env = make_env()
    with pytest.raises(ValueError, match="changes its logits after the output head"):
        SequenceRolloutBuffer(8, env.observation_space, env.action_space, reference=lm)
    with pytest.raises(ValueError, match="changes its logits after the output head"):
        SFT(lm, IntegerTokenizer(VOCAB, 0))
    del lm.forward
    lm.train()
    SFT(lm, IntegerTokenizer(VOCAB, 0))
    assert lm.training and not lm.lm_head._forward_hooks  # left as it was


@pytest.mark.reports("Mixed precision is not taken for a model that reads by length.")
@pytest.mark.parametrize("lora", [None, {"r": 2}], ids=["copied", "adapters"])
def test_mixed_precision_is_rounding(make_env, lora):
    settings = {"model": LLAMA, "precision": "bfloat16", "lora": lora}
    agent = TextPPO("TransformerPolicy", make_env(task=at_length(6, 50)), n_episodes=6, batch_size=6, n_epochs=1, policy_kwargs=settings)
    agent.learn(20)
    assert agent.logger.name_to_value["policy/clip_fraction"] == 0


@pytest.mark.parametrize("name", ["llama", "tied", "t5", "own"])
def test_the_size_is_told_without_weights(tmp_path, name):
    t5 = {
        "model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": VOCAB,
        "decoder_start_token_id": 0,
    }  # fmt: skip
    own = {"class": "agents.evaluation.exact_optimum:Table", "vocab_size": 3, "length": 3}
    source = {"llama": LLAMA, "tied": {**LLAMA, "tie_word_embeddings": True}, "t5": t5, "own": own}[name]
    state = torch.get_rng_state()
    lm = load_lm(source)
    expected = sum(parameter.numel() for parameter in lm.parameters())
    torch.set_rng_state(state)
    assert num_parameters(source) == expected
    if name != "own":
        lm.config.save_pretrained(tmp_path)
        assert num_parameters(tmp_path) == expected
    assert torch.equal(torch.get_rng_state(), state)
