"""A task whose prompts have pictures, from the command line: train, go on, evaluate, generate, and the page of the run."""

import base64
import contextlib
import html
import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText

from agents.cli.main import main
from textrl_env import make_task

from .test_trained_run import few_steps

SIZES = ["--n-episodes", "16", "--batch-size", "8", "--eval-texts", "8"]


@pytest.mark.slow
def test_a_run_with_pictures(tmp_path, capsys):
    folder = tmp_path / "run"
    with few_steps(5, tmp_path):
        assert main(["train", "--task", "caption-1", "--reward", "exact_match", "--total-tokens", "60", "--out", str(folder), *SIZES]) == 0
        tokens = [int(row.split(",")[2]) for row in (folder / "ppo" / "curve.csv").read_text().splitlines()[1:]]
        assert main(["train", "--config", str(folder / "config.yaml"), "--total-tokens", "150"]) == 0
        longer = [int(row.split(",")[2]) for row in (folder / "ppo" / "curve.csv").read_text().splitlines()[1:]]
        assert longer[: len(tokens)] == tokens and longer[-1] >= 150 > tokens[-1]  # it went on from where it was
        assert main(["evaluate", str(folder), "--texts", "6"]) == 0
        capsys.readouterr()
        assert main(["generate", str(folder), "picture 0 0 0 7"]) == 0
        assert re.fullmatch(r"picture 0 0 0 7[ a-z0-9]*\n", capsys.readouterr().out)
        assert main(["generate", str(folder), "a dog"]) == 2
        said = capsys.readouterr()
        assert said.out == "" and "prompt 'a dog' names no picture" in " ".join(said.err.split())

        page = (folder / "report.html").read_text()
        python = next(block for block in re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL) if "open_run" in block)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(re.sub(r"<[^>]*>", "", html.unescape(python)), {})
        assert out.getvalue().startswith("[")

    samples = [json.loads(line) for line in (folder / "ppo" / "samples.jsonl").read_text().splitlines()]
    assert all(re.fullmatch(r"picture( \d){4}", row["prompt"]) for row in samples)  # a prompt is the name of its picture
    prompts = make_task("caption-1", split="test").prompts
    addresses = re.findall(r'<img class="shown" src="data:image/png;base64,([^"]*)"', page)
    assert len(addresses) == 8
    for address, prompt in zip(addresses, prompts, strict=False):
        image = Image.open(io.BytesIO(base64.b64decode(address, validate=True)))
        assert image.format == "PNG" and image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), prompt.image)
    rows = [json.loads(line) for line in (folder / "evaluation-ppo.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [prompt.text for prompt in prompts[:6]]
    assert "AutoModelForImageTextToText" in page and "feedback create" not in page
    AutoModelForImageTextToText.from_pretrained(folder / "ppo" / "model")


def test_a_judge_that_sees_no_pictures_is_refused_before_anything_is_asked(tmp_path, capsys):
    reward = json.dumps({"name": "judge", "url": "http://127.0.0.1:9", "model": "none"})
    with few_steps(1, tmp_path):
        assert main(["train", "--task", "caption-1", "--reward", reward, "--total-tokens", "60", "--out", str(tmp_path / "run")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "judge judges responses to their prompts, and cannot see the pictures" in said
