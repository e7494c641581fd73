"""One training script, five kinds of reward: what changes is one string.

    python examples/swap_reward.py prepare    # a classifier and a preference model, in seconds
    textrl reward serve vader &
    python examples/swap_reward.py train --reward REWARD

where REWARD is one of

    vader                                                                              a rule
    chrf                                                                               a metric
    '{"name": "classifier", "path": "runs/swap/classifier", "label": "positive"}'      a classifier
    runs/swap/preference                                                               a preference model
    '{"name": "http", "url": "http://127.0.0.1:8900/score"}'                           a server
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import tyro
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from agents import TextPPO
from agents.cli.arguments import reward_of
from rewards import Preference, fit_preference_model
from textrl_env import FileTokenizer, Prompt, TextTask
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv

NOUNS = ("plot", "cast", "score", "ending")
GOOD = ("superb", "moving", "brilliant", "charming")
BAD = ("dull", "awkward", "lazy", "hollow")


@dataclass(frozen=True)
class Prepare:
    """Make the models that two of the rewards need; takes seconds.

    Attributes:
        out: Where they go.
    """

    out: Path = Path("runs/swap")


@dataclass(frozen=True)
class Train:
    """Train a small policy from scratch by PPO.

    Attributes:
        reward: As `textrl train --reward` takes it.
        tokens: Tokens to train on.
        seed: Of everything random.
    """

    reward: str = "vader"
    tokens: int = 8_000
    seed: int = 0


def make() -> TextTask:
    """Return the task: three words after an opening, with one good ending as reference."""
    words = ["<eos>", "the", *NOUNS, "was", *GOOD, *BAD, "."]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<eos>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    prompts = [Prompt(f"the {noun}", references=(f"was {good} .",)) for noun, good in zip(NOUNS, GOOD, strict=True)]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        backend.save(str(path))
        return TextTask(FileTokenizer(path, eos_token="<eos>"), prompts, max_new_tokens=4)


def prepare(config: Prepare) -> None:
    """Fit a classifier and a preference model on a few sentences."""
    rng, tokenizer = random.Random(0), make().tokenizer
    sentences = [(f"the {noun} was {word} .", int(word in GOOD)) for noun in NOUNS for word in GOOD + BAD]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend, eos_token=tokenizer.eos_token, pad_token=tokenizer.eos_token)
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    names = {0: "negative", 1: "positive"}
    model = BertForSequenceClassification(BertConfig(vocab_size=tokenizer.vocab_size, id2label=names, **size))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(60):
        batch = rng.sample(sentences, 16)
        inputs = fast([text for text, _ in batch], return_tensors="pt", padding=True, return_token_type_ids=False)
        model(**inputs, labels=torch.tensor([label for _, label in batch])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(config.out / "classifier")
    fast.save_pretrained(config.out / "classifier")
    pairs = [Preference(prompt.text, f" was {good} .", f" was {bad} .") for prompt in make().prompts for good in GOOD for bad in BAD]
    fit_preference_model(pairs, tokenizer=tokenizer, trunk=None)[0].save(config.out / "preference")


def train(config: Train) -> tuple[float, float]:
    """Train, and return the mean score of the first and of the last texts."""
    env = TextGenerationVecEnv(64, task=make(), reward=reward_of(config.reward))
    env.seed(config.seed)
    llama = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    model = TextPPO("TransformerPolicy", env, n_episodes=128, batch_size=32, learning_rate=3e-3, beta=0.0, seed=config.seed,
                    policy_kwargs={"model": llama}, device="cpu")  # fmt: skip
    scores = []

    def note(local, _):
        scores.extend(info["score"] for info in local.get("infos", ()) if "score" in info)
        return True

    model.learn(config.tokens, callback=note)
    first, last = (sum(part) / len(part) for part in (scores[:128], scores[-128:]))
    print(f"{config.reward}: {first:.3f} -> {last:.3f}")
    return first, last


if __name__ == "__main__":
    chosen = tyro.cli(Prepare | Train)
    prepare(chosen) if isinstance(chosen, Prepare) else train(chosen)
