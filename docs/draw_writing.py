"""Draw `writing.svg`: the same opening, continued before and after training, token by token, with reward and KL; from a real run.

    python docs/draw_writing.py

It takes a minute.  The prompt is the one whose gain in reward is the median of 64 test prompts, so that nobody chose it.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from agents import TextPPO
from agents.evaluation import make_policy, write_texts
from agents.models.sequences import pack
from agents.training import base_policy
from textrl_env import TextGenerationVecEnv, make_task

TOKENS, TEXTS = 20_000, 64
STEP, PAUSE = 0.22, 1.2  # seconds for each token, and after each text
WIDTH, LINE, CHARACTER, LEFT, RIGHT = 560, 26, 8.6, 20, 540  # narrow, so that a phone can show it

STYLE = """
  svg { font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
  .card { fill: #ffffff; stroke: #d0d7de; } .told { fill: #1f2328; } .soft { fill: #59636e; }
  .bar { fill: #8250df; } .track { fill: #eaeef2; }
  .good { fill: #1a7f37; font-weight: 700; } .title { font: 600 15px system-ui, sans-serif; } .small { font: 13px system-ui, sans-serif; }
  .far { fill: #8250df; }
  @media (prefers-color-scheme: dark) {
    .card { fill: #0d1117; stroke: #30363d; } .told { fill: #e6edf3; } .soft { fill: #9198a1; } .track { fill: #21262d; }
    .bar { fill: #a371f7; } .good { fill: #3fb950; } .far { fill: #a371f7; }
  }
"""


class Written(NamedTuple):
    """A text.

    Attributes:
        title: What wrote it.
        prompt: What it goes on with.
        tokens: What each step wrote; a word begins with a space.
        kl: log(pi / pi_ref) of each token, in nats.
        score: The reward.
    """

    title: str
    prompt: str
    tokens: list[str]
    kl: list[float]
    score: float


def praise(prompts, completions):
    """Count words of praise, at most three."""
    return [min(3, sum(text.count(word) for word in ("brilliant", "moving", "superb"))) for text in completions]


def run() -> list[Written]:
    """Train, and return what was written before and after."""
    torch.set_num_threads(1)
    base = str(base_policy(make_task("review")))
    test = make_task("review", split="test", prompt_order="sequential")
    reference = make_policy(test, base)
    model = TextPPO("TransformerPolicy", TextGenerationVecEnv(32, "review", reward=praise), beta=0.1, policy_kwargs={"model": base}, seed=0)
    before = write_texts(reference, test, TEXTS, praise, seed=0)
    model.learn(TOKENS, progress_bar=True)
    after = write_texts(model.policy, test, TEXTS, praise, seed=0)
    chosen = int(np.argsort(after.scores - before.scores, kind="stable")[TEXTS // 2])
    written = []
    for title, policy, texts in (("before training", reference, before), (f"after {TOKENS:,} tokens of PPO", model.policy, after)):
        record = texts.records[chosen]
        batch, actions = pack([record], policy.device), torch.as_tensor(np.asarray(record.actions))
        with torch.no_grad():
            own, other = (one.evaluate_actions(batch, actions)[1] for one in (policy, reference))  # (T,) each
        spelled = [test.tokenizer.decode_batch([[int(token)]])[0] for token in actions]
        written.append(Written(title, texts.prompts[chosen], spelled, (own - other).tolist(), float(texts.scores[chosen])))
    return written


def appears(at: float, until: float, whole: float) -> str:
    """Return an animation that shows an element from `at` to `until` in each round of `whole` seconds."""
    times, values = ["0", f"{at / whole:.4f}"], ["0", "1"]
    if until < whole:
        times.append(f"{until / whole:.4f}")
        values.append("0")
    return (
        f'<animate attributeName="opacity" dur="{whole:.2f}s" repeatCount="indefinite" calcMode="discrete" '
        f'keyTimes="{";".join(times)}" values="{";".join(values)}"/>'
    )


def label(x: float, y: float, kind: str, text: str, more: str = "", inner: str = "") -> str:
    """Return a line of text."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}"{more}>{escape(text)}{inner}</text>'


def word(x: float, y: float, kind: str, text: str, inner: str = "") -> str:
    """Return a word of a fixed width, whatever the reader's font."""
    return label(x, y, kind, text, f' textLength="{len(text) * CHARACTER:.1f}" lengthAdjust="spacingAndGlyphs"', inner)


def bar(y: float, counts: list[tuple[float, float]], whole: float, most: float) -> list[str]:
    """Return the growing bar of KL, which `counts` gives as (second, nats), and its numbers."""
    left, length = LEFT + 165, 170.0
    widths = ";".join(f"{max(0.0, kl) / most * length:.1f}" for _, kl in counts)
    times = ";".join(f"{when / whole:.4f}" for when, _ in counts)
    grows = f'<animate attributeName="width" dur="{whole:.2f}s" repeatCount="indefinite" calcMode="discrete" '
    grows += f'keyTimes="0;{times}" values="0;{widths}"/>'
    box = f'x="{left}" y="{y - 11}" height="10" rx="5"'
    out = [f'<rect class="track" {box} width="{length}"/>', f'<rect class="bar" {box} width="{widths.rpartition(";")[2]}">{grows}</rect>']
    for (when, kl), (until, _) in zip(counts, [*counts[1:], (whole, 0.0)], strict=True):
        hidden = "" if until == whole else ' opacity="0"'
        out.append(label(left + length + 12, y, "small told", f"{abs(kl):.1f} nats", hidden, appears(when, until, whole)))
    return out


def panel(text: Written, at: float, y: float, whole: float, most: float) -> tuple[list[str], float, float]:
    """Return the elements of a text, and the second and the height at which the next one begins."""
    out = [label(LEFT, y, "title told", text.title)]
    x, y, total = float(LEFT), y + LINE + 4, 0.0
    out.append(word(x, y, "soft", text.prompt))
    x += len(text.prompt) * CHARACTER
    counts = []
    for token, kl in zip(text.tokens, text.kl, strict=True):
        total += kl
        if token.startswith(" "):
            x, token = x + CHARACTER, token[1:]
        if x + len(token) * CHARACTER > RIGHT:
            x, y = float(LEFT), y + LINE
        if token:
            out.append(word(x, y, "far" if kl > 1 else "told", token, appears(at, whole, whole)))
            x += len(token) * CHARACTER
        counts.append((at, total))
        at += STEP
    y += LINE + 2
    out += [label(LEFT, y, "small soft", "KL to the model before"), *bar(y, counts, whole, most)]
    out.append(
        label(LEFT + 430, y, f"small {'good' if text.score > 0 else 'soft'}", f"reward {text.score:g}", "", appears(at, whole, whole))
    )
    return out, at + PAUSE, y + LINE + 16


def draw(written: list[Written]) -> str:
    """Return the picture; where nothing moves, its last frame shows."""
    whole = sum(len(text.tokens) * STEP + PAUSE for text in written) + 1.5
    most = max(10.0, *(sum(text.kl) for text in written))
    out, at, y = [], 0.3, 34.0
    for text in written:
        elements, at, y = panel(text, at, y, whole, most)
        out += elements
    out.append(label(LEFT, y - 6, "small soft", "reward: brilliant, moving, superb, at most three, paid when the text ends"))
    out.append(label(LEFT, y + 14, "small soft", "purple: training made the token e times as likely"))
    height = round(y + 32)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">'
    title = "<title>The same opening, continued before and after training</title>"
    card = f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="10"/>'
    return "\n".join([head, title, f"<style>{STYLE}</style>", card, *out, "</svg>"]) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("writing.svg").write_text(draw(run()), encoding="utf-8")
