"""GGUF files, written here, and the folders that they become."""

import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from agents import TextPPO
from agents.models.loading import load_lm
from textrl_env import FileTokenizer, Prompt, TextGenerationVecEnv, TextTask, WordTokenizer
from textrl_env.tokenizer import check_same_tokens
from textrl_env.utils.model_files import model_folder

gguf = pytest.importorskip("gguf")

HEADS, KV_HEADS, WIDTH = 4, 2, 32
WORDS = ["<unk>", "<s>", "</s>", *sorted({*"abcdefghijklmnopqrstuvwxyz", "Ġ"}), "Ġa", "Ġt"]
MERGES = ["Ġ a", "Ġ t"]


def permuted(weight, heads):
    """Return a query or key weight in the order of GGUF, whose rotary embedding turns neighbours (llama.cpp's `permute`)."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def write(path, model, eos=2):
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, 3, *[1] * (len(WORDS) - 3)])  # 3: control
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(eos)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    parts = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output"}
    parts |= {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    parts |= {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
    for layer in range(config.num_hidden_layers):
        names |= {f"model.layers.{layer}.{ours}.weight": f"blk.{layer}.{theirs}.weight" for ours, theirs in parts.items()}
    for name, tensor in model.state_dict().items():
        weight = tensor.numpy().astype(np.float32)
        if "q_proj" in name or "k_proj" in name:
            weight = permuted(weight, HEADS if "q_proj" in name else KV_HEADS)
        writer.add_tensor(names[name], np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.mark.reports("A GGUF file becomes a folder with the same logits, tokenizer, template and end of text, which can be written again")
def test_a_gguf_file_becomes_a_folder(llama, tmp_path, monkeypatch):
    monkeypatch.setenv("TEXTRL_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "tiny.gguf", llama)
    folder = model_folder(tmp_path / "tiny.gguf")
    assert folder.is_relative_to(tmp_path / "cache") and model_folder(str(tmp_path / "tiny.gguf")) == folder
    again = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, llama(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (again.generation_config.eos_token_id, tokenizer.eos_token_id, len(tokenizer)) == (2, 2, len(WORDS))
    assert tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False) == "ab"
    again.save_pretrained(tmp_path / "written")  # transformers refuses this for what it read from GGUF itself
    write(tmp_path / "tiny.gguf", llama, eos=1)  # other contents under the same name
    assert model_folder(tmp_path / "tiny.gguf") != folder


def test_a_gguf_file_is_a_model_and_a_tokenizer(llama, tmp_path, monkeypatch):
    monkeypatch.setenv("TEXTRL_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "tiny.gguf", llama)
    file = str(tmp_path / "tiny.gguf")
    tokenizer = FileTokenizer(file)
    assert (tokenizer.eos_token_ids, tokenizer.vocab_size) == ((2,), len(WORDS))
    with torch.no_grad():
        assert torch.equal(load_lm(file)(torch.arange(20)[None]).logits, llama(torch.arange(20)[None]).logits)
    task = TextTask(tokenizer, [Prompt("a b c")], 8, reward="length")
    agent = TextPPO("TransformerPolicy", TextGenerationVecEnv(4, task=task), n_episodes=4, batch_size=4, policy_kwargs={"model": file})
    agent.learn(8)
    agent.policy.save_pretrained(tmp_path / "trained")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "trained").generation_config.eos_token_id == 2
    assert AutoTokenizer.from_pretrained(tmp_path / "trained").eos_token_id == 2
    other = TextTask(WordTokenizer(["z", "y", "a"]), [Prompt("a")], 8)
    with pytest.raises(ValueError, match="tokenizer"):
        TextPPO("TransformerPolicy", TextGenerationVecEnv(4, task=other), n_episodes=4, batch_size=4, policy_kwargs={"model": file})


def test_a_model_of_the_hub_without_a_network(llama, tmp_path, monkeypatch):
    monkeypatch.setenv("TEXTRL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    write(tmp_path / "tiny.gguf", llama)
    kept = tmp_path / "hub" / "models--org--tiny"
    shutil.copytree(model_folder(tmp_path / "tiny.gguf"), kept / "snapshots" / "abc")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("abc")
    tokenizer = FileTokenizer("org/tiny")
    assert (tokenizer.eos_token_ids, tokenizer.vocab_size, model_folder("org/tiny")) == ((2,), len(WORDS), kept / "snapshots" / "abc")
    with torch.no_grad():
        assert torch.equal(load_lm("org/tiny")(torch.arange(20)[None]).logits, llama(torch.arange(20)[None]).logits)
    with pytest.raises(ValueError, match="model org/tiny has a tokenizer"):
        check_same_tokens("org/tiny", WordTokenizer(["z", "y", "a"]))
    assert model_folder("org/other") == "org/other"
    with pytest.raises(FileNotFoundError, match=r"no tokenizer file at org/other, and the hub of models, or its cache"):
        FileTokenizer("org/other")


def test_what_is_no_gguf(tmp_path, monkeypatch):
    monkeypatch.setenv("TEXTRL_CACHE", str(tmp_path / "cache"))
    assert model_folder("gpt2") == "gpt2" and model_folder(tmp_path) == tmp_path
    with pytest.raises(FileNotFoundError, match=r"there is no model at .*none\.gguf"):
        model_folder(tmp_path / "none.gguf")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF and nothing else")
    with pytest.raises(ValueError, match=r"bad\.gguf cannot be read as a model"):
        model_folder(tmp_path / "bad.gguf")
    assert not list((tmp_path / "cache").rglob("*bad*"))
