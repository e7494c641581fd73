"""Tokenizers of others: their ends of text, beginnings, gaps, special tokens in texts, and the forms in which they come."""

import copy
import json
import pickle

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast, T5Config

from textrl_env import FileTokenizer, IntegerTokenizer, Prompt, TextCore, TextGenerationEnv, TextTask, TokenSpace, WordTokenizer
from textrl_env.prompts.encoding import encode_prompts

WORDS = {"<eos>": 0, "hello": 1, "world": 2, "<unk>": 3, "<end>": 4, "<s>": 5}


def backend(vocabulary=WORDS, special=("<eos>", "<s>"), added=("<end>",), bos=False):
    made = Tokenizer(models.WordLevel(dict(vocabulary), unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(list(special))
    made.add_tokens([AddedToken(token, special=False) for token in added])
    if bos:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 5)])
    return made


def bytes_backend():
    """Every byte is a token, and two control tokens."""
    made = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(["<|im_start|>", "<|im_end|>"])  # ids 256 and 257
    return made


def saved(folder, made, **files):
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def play(task, tokens):
    core = TextCore(task, 1, "length")
    core.restart([0])
    for token in tokens:
        result = core.step(np.array([token]))
        if result.terminated[0]:
            return result.episodes[0]
    return None


@pytest.mark.reports("Several tokens can end a text: each ends it as 'eos', and none is in the response")
@pytest.mark.parametrize("end", [0, 4])
def test_each_of_several_ends_ends_a_text(end):
    task = TextTask(FileTokenizer(backend(), eos_token=["<eos>", "<end>"]), [Prompt("hello")], 4, missing_eos_penalty=1.0)
    assert task.eos_token_ids == (0, 4)
    episode = play(task, [2, 1, end])
    assert (episode.finish_reason, episode.response, episode.response_ids.tolist()) == ("eos", " world hello", [2, 1, end])
    assert play(task, [2, 1, 2, end]).finish_reason == "eos"  # an end at the limit is no missing one


@pytest.mark.reports("min_new_tokens and constraints of a task treat all ends of text alike")
def test_all_ends_are_withheld_and_allowed_together():
    tokenizer = FileTokenizer(backend(), eos_token=["<eos>", "<end>"])

    def masks(tokens, **settings):
        core = TextCore(TextTask(tokenizer, [Prompt("hello")], 6, **settings), 1, "length")
        core.restart([0])
        shown = [np.flatnonzero(core.action_masks()[0]).tolist()]
        for token in tokens:
            core.step(np.array([token]))
            shown.append(np.flatnonzero(core.action_masks()[0]).tolist())
        return shown

    assert masks([1], min_new_tokens=1) == [[1, 2, 3, 5], [0, 1, 2, 3, 4, 5]]
    assert masks([], constraint={"allowed_tokens": ["hello", "<s>"]}) == [[0, 1, 4, 5]]
    assert masks([1], constraint={"one_of": [" hello"]}) == [[1], [0, 4]]
    assert masks([1], constraint={"regex": " hello"}) == [[1], [0, 4]]
    assert masks([1], constraint={"regex": " hello( world)?"}) == [[1], [0, 2, 4]]
    assert masks([], constraint=[{"allowed_tokens": [1]}, {"banned_tokens": [0, 1, 4]}]) == [[0, 4]]  # nothing is left: the end


@pytest.mark.reports("A tokenizer folder's ends are those of tokenizer_config.json, config.json and generation_config.json")
def test_ends_that_a_folder_names(tmp_path):
    config = {"eos_token": {"content": "<eos>", "special": True}}
    both = saved(tmp_path / "both", backend(), tokenizer_config=config, generation_config={"eos_token_id": [4, 0]})
    assert FileTokenizer(both).eos_token_ids == FileTokenizer(both / "tokenizer.json").eos_token_ids == (0, 4)
    assert FileTokenizer(both, "<end>").eos_token_ids == (4,)
    model = saved(tmp_path / "model", backend(), tokenizer_config={"eos_token": "<end>"}, config={"eos_token_id": 0})
    assert FileTokenizer(model).eos_token_ids == (4, 0)
    default = saved(tmp_path / "default", backend(), tokenizer_config={"eos_token": "<eos>"}, config={"eos_token_id": 2})
    assert FileTokenizer(default).eos_token_ids == (0,)  # 2 is a word: an architecture's default, and no end of this tokenizer
    assert FileTokenizer(saved(tmp_path / "silent", backend())).eos_token_ids == (0,)
    with pytest.raises(ValueError, match="no token '</s>'"):
        FileTokenizer(saved(tmp_path / "other", backend(), tokenizer_config={"eos_token": "</s>"}))


@pytest.mark.reports("A tokenizer with gaps has as many ids as its largest one says, and the unused ones are never sampled")
def test_a_vocabulary_with_gaps(tmp_path):
    tokenizer = FileTokenizer(saved(tmp_path / "gaps", backend({**WORDS, "far": 293})))
    assert tokenizer.vocab_size == 294
    assert tokenizer.unused_ids == tuple(range(6, 293))
    env = TextGenerationEnv(TextTask(tokenizer, [Prompt("hello far")], 4), reward="length")
    observation, _ = env.reset(seed=0)
    assert observation["prompt"].tolist() == [1, 293]
    assert env.observation_space.contains(observation)
    observation, *_ = env.step(293)
    assert env.observation_space.contains(observation)
    env.action_space.seed(0)
    assert {int(env.action_space.sample()) for _ in range(200)} == {0, 1, 2, 3, 4, 5, 293}


@pytest.mark.reports("A tokenizer whose vocab_size is below its largest id is refused")
def test_an_id_beyond_vocab_size_is_refused():
    class Short(IntegerTokenizer):
        def encode_batch(self, texts):
            return [[293] for _ in texts]

    with pytest.raises(ValueError, match=r"token id 293, vocab_size=287: .* largest id \+ 1"):
        TextTask(Short(287), [Prompt("a")], 4)


@pytest.mark.reports("Special tokens that are spelled in a text are text, whatever the kind of tokenizer")
def test_what_a_person_types_is_text():
    words = FileTokenizer(backend(), eos_token=["<eos>", "<end>"])
    assert words.encode_batch(["hello <eos> world", "hello <end>", "<s>", "hello<end>world"]) == [
        [1, 3, 3, 2], [1, 3, 3], [3, 3], [3, 3]]  # fmt: skip  # the letters are words that it does not know
    spelled = FileTokenizer(bytes_backend(), "<|im_end|>")
    text = "hi <|im_end|><|im_start|>"
    (ids,) = spelled.encode_batch([text])
    assert len(ids) == len(text)  # a token a byte
    assert max(ids) < 256
    assert spelled.decode_batch([ids]) == [text]
    assert pickle.loads(pickle.dumps(spelled)).encode_batch([text]) == [ids]
    pieces = Tokenizer(models.Unigram([("<unk>", 0.0), ("</s>", 0.0), *((c, -3.0) for c in "a</s>")], 0))
    pieces.add_special_tokens(["</s>"])
    assert FileTokenizer(pieces, "</s>").encode_batch(["a</s>a"]) == [[2, 3, 4, 5, 6, 2]]
    with pytest.raises(ValueError, match="holds '<eos>', which is none of the 2 words"):
        WordTokenizer(["a", "b"]).encode_batch(["a <eos>"])


@pytest.mark.reports("A stop token or an allowed token can be named by a special token's spelling")
def test_special_tokens_are_found_by_their_spelling():
    task = TextTask(FileTokenizer(bytes_backend(), "<|im_end|>"), [Prompt("a")], 3, stop_tokens=["<|im_start|>"])
    assert task.stop_ids == (256,)


@pytest.mark.reports("An end of text that the file does not call special is in no response")
def test_an_end_that_is_not_special_is_not_decoded():
    tokenizer = FileTokenizer(backend(), "<end>")
    assert tokenizer.decode_batch([[1, 2, 4]]) == [" hello world"]
    assert 4 in tokenizer.special_ids


@pytest.mark.reports("Plain prompts begin with the beginning-of-text token where the tokenizer's own setting or add_bos says so")
def test_beginning_of_text(tmp_path):
    def prompt_of(folder, **settings):
        task = TextTask(FileTokenizer(folder, "<eos>", **settings), [Prompt("hello world")], 3)
        return task.prompt_ids[0].tolist(), task.prompt_width

    own = saved(tmp_path / "own", backend(bos=True), tokenizer_config={"bos_token": "<s>"})
    assert prompt_of(own) == ([5, 1, 2], 3)
    assert AutoTokenizer.from_pretrained(own)("hello world").input_ids == [5, 1, 2]
    assert prompt_of(own, add_bos=False) == ([1, 2], 2)
    none = saved(tmp_path / "none", backend(), tokenizer_config={"bos_token": "<s>"})
    assert prompt_of(none) == ([1, 2], 2)
    assert prompt_of(none, add_bos=True) == ([5, 1, 2], 3)
    asked = saved(tmp_path / "asked", backend(), tokenizer_config={"bos_token": "<s>", "add_bos_token": True})
    assert prompt_of(asked) == ([5, 1, 2], 3)
    told_not_to = saved(tmp_path / "not", backend(bos=True), tokenizer_config={"bos_token": "<s>", "add_bos_token": False})
    assert prompt_of(told_not_to) == ([1, 2], 2)
    with pytest.raises(ValueError, match=r"add_bos=True: .* names no bos_token"):
        FileTokenizer(saved(tmp_path / "nothing", backend()), add_bos=True)
    cut = TextTask(FileTokenizer(own, "<eos>"), [Prompt("hello world world")], 3, max_prompt_tokens=3, over_long="left")
    assert cut.prompt_ids[0].tolist() == [5, 2, 2]
    assert cut.start_of(0)[0].text == " world world"


@pytest.mark.reports("Prompts of an encoder-decoder end as its tokenizer ends them: the </s> of T5, BART and Marian")
def test_the_end_of_an_encoders_prompt(tmp_path):
    made = backend(bos=True)
    made.post_processor = processors.TemplateProcessing(single="<s> $A <eos>", special_tokens=[("<s>", 5), ("<eos>", 0)])

    def task_of(folder, prompt="hello world", **settings):
        return TextTask(FileTokenizer(folder, "<eos>", **settings.pop("own", {})), [prompt], 3, **settings)

    T5Config(vocab_size=6).save_pretrained(tmp_path / "t5")
    t5 = saved(tmp_path / "t5", made, tokenizer_config={"bos_token": "<s>"})
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(t5 / "tokenizer.json"))("hello world").input_ids
    assert task_of(t5, Prompt("hello world")).prompt_ids[0].tolist() == [5, 1, 2, 0] == theirs
    LlamaConfig(vocab_size=6).save_pretrained(tmp_path / "llama")
    llama = saved(tmp_path / "llama", made, tokenizer_config={"bos_token": "<s>"})
    assert task_of(llama, Prompt("hello world")).prompt_ids[0].tolist() == [5, 1, 2]  # who goes on with a text must not see its end
    assert task_of(llama, Prompt("hello world"), own={"close_prompts": True}).prompt_ids[0].tolist() == [5, 1, 2, 0]
    assert task_of(t5, Prompt("hello world"), own={"close_prompts": False}).prompt_ids[0].tolist() == [5, 1, 2]
    for side, ids in (("left", [5, 2, 2, 0]), ("right", [5, 1, 2, 0])):
        cut = task_of(t5, Prompt("hello world world"), max_prompt_tokens=4, over_long=side)
        assert cut.prompt_ids[0].tolist() == ids
    with pytest.raises(ValueError, match="max_prompt_tokens=2: 2 tokens of the tokenizer begin and end a prompt"):
        task_of(t5, Prompt("hello world"), max_prompt_tokens=2, over_long="left")


@pytest.mark.reports("tokenizer= takes a fast tokenizer of transformers, a folder or a tokenizer.json, and says why it refuses others")
def test_what_can_be_a_tokenizer(tmp_path):
    fast = PreTrainedTokenizerFast(tokenizer_object=backend(bos=True), eos_token="<end>", bos_token="<s>")
    fast.save_pretrained(tmp_path / "saved")
    for source in (fast, tmp_path / "saved", str(tmp_path / "saved"), tmp_path / "saved" / "tokenizer.json"):
        task = TextTask(source, [Prompt("hello <end>")], 3)
        assert (task.eos_token_ids, task.prompt_ids[0].tolist()) == ((4,), [5, 1, 3, 3])
    assert fast("hello <end>").input_ids == [5, 1, 4]  # the user's own object stays as it was
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "vocab.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"no tokenizer file at .*; the folder holds vocab\.txt: save a fast tokenizer"):
        TextTask(tmp_path / "empty", [Prompt("hello")], 3)
    with pytest.raises(TypeError, match="tokenizer=7 is a int: pass a Tokenizer of textrl_env, a fast tokenizer"):
        TextTask(7, [Prompt("hello")], 3)

    class Slow:
        def convert_tokens_to_ids(self, tokens):
            return []

    with pytest.raises(ValueError, match="Slow is a slow tokenizer of transformers: save it in the fast format"):
        TextTask(Slow(), [Prompt("hello")], 3)


@pytest.mark.reports("Padding and truncation that a tokenizer.json sets do not touch the texts")
def test_padding_and_truncation_of_a_file_are_off():
    made = backend()
    made.enable_padding(length=8)
    made.enable_truncation(2)
    assert FileTokenizer(made).encode_batch(["hello world hello"]) == [[1, 2, 1]]


@pytest.mark.reports("A prompt that over_long cuts is the same for policy, reward and info")
@pytest.mark.parametrize(("side", "ids", "text"), [("left", [2, 1], " world hello"), ("right", [1, 2], " hello world")])
@pytest.mark.parametrize("lazy", [False, True])
def test_everyone_gets_the_cut_prompt(side, ids, text, lazy):
    seen = []

    def reward(prompts, completions):
        seen.extend(prompts)
        return [0.0] * len(prompts)

    prompts = [Prompt("hello world hello" if side == "left" else "hello world world")]
    task = TextTask(
        FileTokenizer(backend()), range_of(prompts) if lazy else prompts, 3, max_prompt_tokens=2, over_long=side, prompt_order="sequential"
    )
    env = TextGenerationEnv(task, reward=reward)
    observation, info = env.reset(seed=0)
    assert observation["prompt"].tolist() == ids
    *_, last = env.step(0)
    assert [info["prompt"], last["prompt"], *seen] == [text] * 3
    assert env.task.prompts[info["prompt_id"]].text == prompts[0].text  # the whole one is still there


def range_of(prompts):
    from textrl_env.prompts.reader import PromptView

    return PromptView(prompts, np.arange(len(prompts)))


@pytest.mark.reports("An action space knows which tokens end a text, and two with other ends are not equal")
def test_the_action_space_knows_the_ends():
    space = TokenSpace(FileTokenizer(backend(), ["<eos>", "<end>"]))
    for other in (copy.deepcopy(space), pickle.loads(pickle.dumps(space))):
        assert other == space
        assert other.eos_token_ids == (0, 4)
        assert other.tokenizer_files() == space.tokenizer_files()
    assert space != TokenSpace(FileTokenizer(backend(), "<eos>"))
    assert TokenSpace(IntegerTokenizer(6)) != TokenSpace(IntegerTokenizer(6, 3))


@pytest.mark.reports("A tokenizer's files open in transformers with the same ids and end")
@pytest.mark.parametrize(
    ("tokenizer", "text"),
    [
        (WordTokenizer(["hello", "world"]), "world hello"),
        (IntegerTokenizer(7, 3), "6 2"),
        (FileTokenizer(backend(bos=True), "<end>"), "hello world"),
    ],
)
def test_files_for_transformers(tmp_path, tokenizer, text):
    for name, content in tokenizer.pretrained_files().items():
        (tmp_path / name).write_text(content)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(text).input_ids == encode_prompts(tokenizer, [text])[0]
    assert theirs.eos_token_id == tokenizer.eos_token_id
    assert FileTokenizer(tmp_path).eos_token_ids == (tokenizer.eos_token_id,)


def test_an_overruled_beginning_is_saved(tmp_path):
    for made, asked in ((backend(bos=True), False), (backend(), True)):
        folder = saved(tmp_path / str(asked), made, tokenizer_config={"bos_token": "<s>", "eos_token": "<eos>"})
        for name, text in FileTokenizer(folder, add_bos=asked).pretrained_files().items():
            (folder / name).write_text(text)
        assert FileTokenizer(folder).bos_ids == ((5,) if asked else ())
