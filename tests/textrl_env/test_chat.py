import pickle
import re

import pytest

from textrl_env import Prompt
from textrl_env.chat import ChatTemplate, chat_template
from textrl_env.prompts.reader import read_prompts

CHATML = """{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""
# What templates of the hub do: blocks on lines of their own, tools asked for, roles checked, JSON, loop controls, masks.
BUSY = """{{ bos_token }}
{% if tools is not none %}TOOLS{% endif %}
{% set ns = namespace(seen=0) %}
{% for message in messages %}
    {% if message.role not in ('system', 'user', 'assistant') %}
        {{ raise_exception('unknown role ' + message.role) }}
    {% endif %}
    {% if message.role == 'system' %}{% continue %}{% endif %}
    {% set ns.seen = ns.seen + 1 %}
    {% if message.role == 'assistant' %}
    {% generation %}{% set inner = 'x' %}{{ message.content | trim }}{{ inner }}{{ eos_token }}{% endgeneration %}{{ inner is defined }}
    {% else %}
[{{ message.role | upper }}] {{ {'said': message.content, 'is': '<é>'} | tojson }} {{ message | tojson(indent=2) }}
    {% endif %}
{% endfor %}
{{ ns.seen }} {{ unk_token }} {{ pad_token is defined }}
{% if add_generation_prompt %}>>> {% endif %}"""
CHATS = [
    [{"role": "user", "content": "hello <b>"}],
    [{"role": "system", "content": "be brief"}, {"role": "user", "content": " größe? "}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": " b "}, {"role": "user", "content": "c\nd"}],
]


def saved_tokenizer(folder, template):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.mark.parametrize("template", [CHATML, BUSY])
def test_rendering_equals_transformers(template, tmp_path):
    tokenizer = saved_tokenizer(tmp_path, template)
    ours = chat_template(str(tmp_path))
    for chat in CHATS:
        assert ours(chat) == tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert chat_template(template)(CHATS[0]).endswith(("assistant\n", ">>> "))
    assert pickle.loads(pickle.dumps(ours))(CHATS[2]) == ours(CHATS[2])


def test_chatml_by_hand():
    rendered = chat_template(CHATML)(CHATS[1])
    assert rendered == "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\n größe? <|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("several", ["", '[{{"name": "rag", "template": "R"}}, {{"name": "default", "template": {0}}}]'])
def test_templates_inside_the_configuration(several, tmp_path):
    one = '"{{ bos_token }}{{ messages[0].content }}{{ add_bos_token }}"'
    template = several.format(one) if several else one
    config = f'{{"bos_token": {{"content": "<s>", "lstrip": false}}, "add_bos_token": true, "chat_template": {template}}}'
    (tmp_path / "tokenizer_config.json").write_text(config)
    assert chat_template(tmp_path)(CHATS[0]) == "<s>hello <b>"


def test_rows_of_messages_are_rendered():
    rows = [{"prompt": chat, "k": i} for i, chat in enumerate(CHATS)]
    prompts = read_prompts(rows, template=chat_template(CHATML))
    assert prompts[1] == Prompt(chat_template(CHATML)(CHATS[1]), (), {"k": 1})


def test_rows_and_template_must_fit():
    with pytest.raises(ValueError, match=r"prompts\[0\]: column 'prompt' holds messages: pass template="):
        read_prompts([{"prompt": CHATS[0]}])
    with pytest.raises(ValueError, match=r"column 'prompt' is a text, but template= renders messages"):
        read_prompts(["a"], template=chat_template(CHATML))
    with pytest.raises(ValueError, match=r"a text is needed, or a list of messages"):
        read_prompts([{"prompt": [{"from": "user"}]}], template=chat_template(CHATML))
    with pytest.raises(ValueError, match=r"prompts\[0\]: the template failed: TemplateError: unknown role tool"):
        read_prompts([{"prompt": [{"role": "tool", "content": "a"}]}], template=chat_template(BUSY))
    with pytest.raises(ValueError, match="is empty"):
        read_prompts([{"prompt": CHATS[0]}], template=ChatTemplate("{{ '' }}"))


@pytest.mark.parametrize(
    "attack",
    ["{{ messages.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ raise_exception.__globals__['json'] }}", "{{ ''.__class__() }}"],
)
def test_the_sandbox_holds(attack):
    from jinja2.exceptions import SecurityError

    with pytest.raises(SecurityError):
        chat_template(attack)(list(CHATS[0]))


def test_what_is_no_template_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"no tokenizer_config.json in {tmp_path}")):
        chat_template(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ValueError, match="has no default chat template: pass a Jinja template"):
        chat_template(tmp_path)
    with pytest.raises(ValueError, match=r"the chat template does not parse: .* in line 2"):
        chat_template("\n{% for x in %}")
