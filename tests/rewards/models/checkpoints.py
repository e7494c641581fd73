"""Small checkpoints of transformers."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    PreTrainedTokenizerFast,
)

from rewards.models.preference_model import PreferenceRewardModel
from rewards.models.scorers import PreferenceNetwork
from textrl_env import make_task

WORDS = [*"abcdefghij", "good", "bad", "film", "the", "was"]
VOCAB = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<eos>", *WORDS])}


def save_tokenizer(path, kind):
    backend = Tokenizer(models.WordLevel(VOCAB, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"eos_token": "<eos>", "unk_token": "[UNK]"}
    if kind == "bert":
        backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
        special |= {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        special.pop("eos_token")
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(path)


def save(path, kind, auto, **kwargs):
    torch.manual_seed(0)
    sizes = {"vocab_size": len(VOCAB)}
    if kind == "bert":
        sizes |= {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        config = BertConfig(max_position_embeddings=24, **sizes, **kwargs)
    else:
        sizes |= {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 24}
        config = GPT2Config(eos_token_id=4, bos_token_id=None, initializer_range=0.4, **sizes, **kwargs)
    model = auto.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # scores that differ visibly
    model.save_pretrained(path)
    save_tokenizer(path, kind)
    return model


def save_constants(folder):
    """Save one model of each kind whose score is the same for every text: 0.25, 1/2, 0.75, -log(20)."""
    for name, kind, auto, kwargs in (
        ("classifier", "bert", AutoModelForSequenceClassification, {"num_labels": 2, "id2label": {0: "bad", 1: "good"}}),
        ("scalar", "gpt2", AutoModelForSequenceClassification, {"num_labels": 1, "pad_token_id": 0}),
        ("lm", "gpt2", AutoModelForCausalLM, {}),
    ):
        model = save(folder / name, kind, auto, **kwargs)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
            if name == "scalar":
                model.transformer.ln_f.bias.fill_(1)
                model.score.weight.fill_(0.75 / model.config.n_embd)
        model.save_pretrained(folder / name)
    save(folder / "encoder", "bert", AutoModel)
    tokenizer = make_task("review").tokenizer
    PreferenceRewardModel(PreferenceNetwork(tokenizer.vocab_size, 16, None, 0.0), tokenizer, max_tokens=16, bias=0.25).save(
        folder / "preference"
    )
