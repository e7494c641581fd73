"""Calls in the agent's text: how they are read, made, timed and answered; the calculator; the task that needs it."""

import json
import pickle
import time
from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from textrl_env import ChatTemplate, Episode, FileTokenizer, Prompt, TextCore, TextTask, WordTokenizer, make_task
from textrl_env.tasks.diagnostic import calculator as task_module
from textrl_env.tasks.tools import Call, Lookup, Tools, calculator, call_in
from textrl_env.utils.train_tokenizer import train_tokenizer

CHATML = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b


def sleep(seconds: str) -> str:
    time.sleep(float(seconds))
    return "awake"


def boom(text: str) -> str:
    raise OSError(f"no {text}")


def said(tools, text, start=0):
    return tools([replace(Episode.from_text("q", text), turn_start=start)])[0]


class TestCalls:
    @pytest.mark.parametrize(
        ("turn", "call"),
        [
            ("so [calculator 3 * (4 + 5)]", Call("calculator", "3 * (4 + 5)")),
            (" [ calculator 3 * 4 ]\n", Call("calculator", "3 * 4")),
            ('[add {"a": 3, "b": 4}]', Call("add", {"a": 3, "b": 4})),
            ("[add {a}]", Call("add", "{a}")),
            ("[now]", Call("now", "")),
            ('x <tool_call>\n{"name": "add", "arguments": {"a": 3}}\n</tool_call>', Call("add", {"a": 3})),
            ('<tool_call>{"name": "add", "arguments": "{\\"a\\": 3}"}', Call("add", {"a": 3})),
            ('<|python_tag|>{"name": "add", "parameters": {"a": 3}}', Call("add", {"a": 3})),
            ('[TOOL_CALLS] [{"name": "add", "arguments": {"a": 3}}]', Call("add", {"a": 3})),
            ("an array [1, 2]", None),
            ("[calculator 3] and more", None),
            ("{}", None),
            ("", None),
        ],
    )
    def test_forms(self, turn, call):
        assert call_in(turn) == call

    def test_a_tagged_call_that_is_no_json_is_an_error(self):
        assert call_in("<tool_call>add(3)</tool_call>").error
        assert said(Tools([add]), "<tool_call>add(3)</tool_call>").startswith("\nerror: what stands in <tool_call>")


class TestTools:
    def test_results_and_errors_are_text(self):
        tools = Tools([add, boom, calculator, Lookup({"tin": "47"}, "price")])
        assert said(tools, '[add {"a": 3, "b": 4}]') == "\n7\n"
        assert said(tools, "[calculator 2 ** 10]") == "\n1024\n"
        assert said(tools, "[price tin]") == "\n47\n"
        assert said(tools, "[price oak]") == "\nerror: KeyError: 'oak'\n"
        assert said(tools, "[boom file]") == "\nerror: OSError: no file\n"
        assert said(tools, '[add {"c": 3}]').startswith("\nerror: TypeError: add() got an unexpected keyword argument 'c'")
        assert said(tools, "[ad 3]") == "\nerror: there is no tool 'ad' (did you mean 'add'?); there are: add, boom, calculator, price\n"
        assert said(tools, "[__import__ os]").startswith("\nerror: there is no tool")
        assert said(tools, "no call") is None

    def test_only_the_last_turn_is_read(self):
        text = '<tool_call>{"name": "add", "arguments": {"a": 3}}</tool_call>\n4\n'
        assert said(Tools([add]), text) == "\n4\n"
        assert said(Tools([add]), f"{text}it is 4", start=len(text)) is None

    def test_a_call_that_hangs_is_answered_in_time_and_eight_of_them_stop_the_run(self):
        tools = Tools([sleep], seconds=0.02)
        began = time.perf_counter()
        for _ in range(8):
            assert said(tools, "[sleep 3]") == "\nerror: sleep took more than 0.02 s\n"
        assert time.perf_counter() - began < 2
        with pytest.raises(RuntimeError, match=r"8 calls of sleep still run after their 0.02 s"):
            said(tools, "[sleep 0]")

    def test_pickled_with_a_call_still_running(self):
        tools = Tools([sleep], seconds=0.02)
        said(tools, "[sleep 1]")
        assert said(pickle.loads(pickle.dumps(tools)), "[sleep 0]") == "\nawake\n"

    def test_schemas_are_those_of_transformers(self):
        def weigh(name: str, grams: float = 1.0) -> str:
            """Weigh a thing.

            Args:
                name: Which.
                grams: How much.
            """
            return name

        theirs = pytest.importorskip("transformers.utils").get_json_schema(weigh)["function"]["parameters"]
        for kind in theirs["properties"].values():
            del kind["description"]
        own = Tools([weigh]).schemas()[0]
        assert own["type"] == "function" and own["function"]["name"] == "weigh" and own["function"]["parameters"] == theirs

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            (([],), ValueError, "at least one"),
            (([add, add],), ValueError, "name of its own"),
            (([lambda x: x],), TypeError, "no lambdas"),
            (([add], 0), ValueError, "seconds=0"),
            (([add], 1.0, str, None, "</s>"), ValueError, "there is no template"),
        ],
    )
    def test_what_cannot_be_used_is_refused(self, arguments, error, message):
        with pytest.raises(error, match=message):
            Tools(*arguments)


class TestInAnEnvironment:
    def test_results_are_context_and_never_actions(self):
        words = ["[", "]", "add", "1", "2", "3", "done", "."]
        tokenizer = WordTokenizer(words)

        def total(text: str) -> int:
            return sum(map(int, text.split()))

        total.__name__ = "add"
        tools = Tools([total], write=lambda result, failed: f" {result}")
        task = TextTask(tokenizer, [Prompt("1")], 12, reply=tools, stop_tokens=["]", "."], reward=lambda prompts, completions: [1.0])
        core = TextCore(task, 1)
        core.restart([0])
        for word in ("[", "add", "1", "2", "]", "done", "."):
            result = core.step(np.array([words.index(word) + 1]))
        episode = result.episodes[0]
        assert episode.response == " [ add 1 2 ] 3 done ." and episode.finish_reason == "task"
        assert episode.action_mask.tolist() == [True] * 5 + [False] + [True] * 2

    def test_the_chat_templates_own_form(self, tmp_path):
        """The whole text is what transformers' `apply_chat_template` writes for the same messages; a result cannot forge a turn."""
        backend = train_tokenizer((), 258)
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
        backend.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", "chat_template": CHATML}))
        tokenizer = FileTokenizer(tmp_path)

        def echo(text: str) -> str:
            """Say it again."""
            return f"{text}<|im_end|>"

        template = ChatTemplate(CHATML)
        tools = Tools([echo], template=template, ends_with="<|im_end|>")
        messages = [{"role": "user", "content": "call it"}]
        prompt = Prompt(replace(template, tools=tools.schemas())(messages), typed=())
        task = TextTask(tokenizer, [prompt], 400, reply=tools, reward=lambda prompts, completions: [1.0])
        core = TextCore(task, 1)
        core.restart([0])
        call = '<tool_call>{"name": "echo", "arguments": {"text": "hi"}}</tool_call>'
        own = [*tokenizer.encode_template(call, ()), tokenizer.eos_token_id]
        for token in own:
            core.step(np.array([token]))
        core.step(np.array([tokenizer.encode_template("ok", ())[-1]]))
        result = core.step(np.array([tokenizer.eos_token_id]))
        episode = result.episodes[0]
        turn = "\n<|im_start|>tool\nhi<|im_end|><|im_end|>\n<|im_start|>assistant\n"
        shown = tokenizer.spell(episode.response_ids[len(own) : np.flatnonzero(~episode.action_mask)[-1] + 1].tolist())
        assert shown == turn
        environments = episode.response_ids[~episode.action_mask].tolist()
        assert environments.count(tokenizer.eos_token_id) == 1  # the template's; the one in the result is letters

    @pytest.mark.parametrize("close", [3, 4])
    def test_a_token_that_closes_a_call_may_hold_more(self, close):
        words = {"<eos>": 0, "[calculator": 1, "Ġ6*7": 2, "]": 3, "].": 4, "q": 5, "Ċ": 6, "4": 7, "2": 8}
        backend = Backend(models.BPE(vocab=words, merges=[], ignore_merges=True))
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        task = TextTask(FileTokenizer(backend), [Prompt("q")], 30, reply=Tools([calculator]), stop_strings=["]"], max_turns=3)
        core = TextCore(task, 1, "length")
        core.restart([0])
        for token in (1, 2, close):
            result = core.step(np.array([token]))
        assert not result.terminated[0]
        assert core.text(0)[1] == f"[calculator 6*7{list(words)[close]}\n42\n"


class TestCalculator:
    @pytest.mark.parametrize(
        ("expression", "value"),
        [("3 * (4 + 5)", "27"), ("7 / 2", "3.5"), ("4 / 2", "2"), ("-7 // 2", "-4"), ("7 % 4", "3"), ("2 ** -1", "0.5"), ("1e3", "1000"),
         ("24691357802 / 2", "12345678901"), ("12345678901 * 1.0", "12345678901"), ("100000000000.0 + 1", "100000000001"),
         ("0.1 + 0.2", "0.3"), ("1 / 3", "0.333333333333333"), ("-9 / 3", "-3"), ("1e20", "1e+20")],
    )  # fmt: skip
    def test_value(self, expression, value):
        assert calculator(expression) == value

    @pytest.mark.parametrize(
        "expression",
        [
            "9 ** 9 ** 9 ** 9", "10 ** 29 * 100", "(-8) ** 0.5", "__import__('os')", "a", "'a' * 9", "[1]", "1 if 1 else 2", "1 < 2",
            "True",            "(lambda: 1)()", "1e999", "1 << 99", "x := 3", "", "3 +", "1" * 201, "(" * 150 + "1" + ")" * 49, "1j",
        ],
    )  # fmt: skip
    def test_refused(self, expression):
        with pytest.raises(ValueError):
            calculator(expression)

    def test_division_by_zero(self):
        with pytest.raises(ZeroDivisionError):
            calculator("1 / 0")


class TestTask:
    def test_product_needs_prices(self):
        assert task_module.product("4 7 * 8 3") == "3 9 0 1"
        cost = int(task_module.price("tin oak sea"))
        assert task_module.product("tin oak sea * 8 3") == " ".join(str(cost * 83))

    def test_score(self):
        texts = [
            "answer 3 9 0 1 .",
            "[ calculate 1 ] 1 answer 3 9 0 1 .",
            "answer 3 9 0 1",
            "answer 3 9 0 2 .",
            "answer 0 3 9 0 1 .",
            "3 9 0 1 .",
            "",
        ]
        assert task_module.gold(["4 7 * 8 3"] * 7, texts).tolist() == [1, 1, 0, 0, 0, 0, 0]

    def test_prices_differ_evenly(self):
        prices = [
            int(task_module.price(f"{a} {b} {c}")) for a in task_module.FILLERS for b in task_module.FILLERS for c in task_module.FILLERS
        ]
        assert 12 <= min(prices) and max(prices) <= 99 and len(set(prices)) > 80

    @pytest.mark.parametrize("size", ["1", "2", "3"])
    def test_calling_through_the_environment_reaches_the_optimum(self, size):
        task = make_task(f"calculator-{size}", split="test", prompt_order="sequential")
        words, core = task.tokenizer.words, TextCore(task, 1)
        for prompt in task.prompts[:5]:
            core.restart([0])

            def write(text, core=core):
                for word in text.split():
                    result = core.step(np.array([words.index(word)]))
                return result

            factors = []
            for part in prompt.text.split(" * "):
                if not part[0].isdigit():
                    write(f"[ price {part} ]")
                    part = core.text(0)[1].rpartition("]")[2].strip()
                factors.append(part)
            write(f"[ calculate {' * '.join(factors)} ]")
            result = write(f"answer {core.text(0)[1].rpartition(']')[2]} .")
            assert result.scores[0] == task.optimum == 1
            assert (~result.episodes[0].action_mask).sum() > 2

    def test_what_is_no_call_and_no_product_is_told_so(self):
        task = make_task("calculator-2")
        for call in ("[ price tin ]", "[ calculate tin ]", "[ answer 3 ]", "[ calculate 3 * ]"):
            assert task.reply([Episode.from_text("4 7 * 8 3", f" {call}")]) == [" error"]

    def test_three_in_ten_of_the_corpus_call(self):
        pairs = make_task("calculator-2").recipe.corpus()
        assert np.mean([bool(task_module.calls_in(response)) for _, response in pairs]) == pytest.approx(0.3, abs=0.03)
