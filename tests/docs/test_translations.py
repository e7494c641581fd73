"""Translations do not fall behind what they translate."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sphinx", reason="Sphinx is not installed: pip install 'textrl-env[docs]'")
from babel.messages.pofile import read_po
from jinja2 import Environment

from docs.generator import tutorials

DOCS = Path(__file__).resolve().parents[2] / "docs"
CATALOGS = {path.relative_to(DOCS / "locales/zh_CN/LC_MESSAGES").with_suffix("").as_posix(): path for path in DOCS.rglob("locales/**/*.po")}
GENERATED = {f"generated/{name}": text for name, text in tutorials.pages().items()}


def read(path):
    with path.open("rb") as file:
        return {message.id: message for message in read_po(file) if message.id}


def extract(pages, folder):
    """Return what there is to translate in each page; of a table of contents its caption."""
    source, captions = folder / "source", {}
    source.mkdir()
    for page in pages:
        text = GENERATED.get(f"{page}.md") or (DOCS / f"{page}.md").read_text(encoding="utf-8")
        (source / page).parent.mkdir(parents=True, exist_ok=True)
        captions[page] = re.findall(r"^:caption: (.+)$", text, re.M)
        (source / f"{page}.md").write_text(re.sub(r"^```\{toctree\}.*?^```$", "", text, flags=re.M | re.S), encoding="utf-8")
    shutil.copy(DOCS / "writing.svg", source)
    (source / "conf.py").write_text('extensions = ["myst_parser"]\ngettext_compact = False\nmyst_heading_anchors = 4\n', encoding="utf-8")
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "gettext", source, folder / "out"]
    subprocess.run(command, check=True, capture_output=True)
    return {page: {*read(folder / "out" / f"{page}.pot"), *captions[page]} for page in pages}


def test_every_string_is_translated_and_none_is_stale(tmp_path):
    assert {"index", "getting-started", "generated/tutorials/preferences_to_policy"} <= set(CATALOGS)
    wanted = extract(CATALOGS, tmp_path)
    for page, path in CATALOGS.items():
        there = read(path)
        assert not [text for text in wanted[page] if text not in there or not there[text].string or there[text].fuzzy]
        assert not [text for text in there if text not in wanted[page]]


@pytest.mark.parametrize("path", CATALOGS.values(), ids=CATALOGS)
def test_a_translation_keeps_links_and_code(path):
    """Where links lead, and what stands in code, is the same in both languages."""
    for text, message in read(path).items():
        for kept in (r"\]\(([^)]+)\)", r"`([^`]+)`"):
            assert sorted(re.findall(kept, text)) == sorted(re.findall(kept, message.string)), text


@pytest.mark.parametrize(("language", "other"), [("en", "zh/how-to/masks.html"), ("zh-CN", "../how-to/masks.html")])
def test_each_language_leads_to_the_other(language, other):
    template = Environment(autoescape=True).from_string((DOCS / "_templates" / "languages.html").read_text(encoding="utf-8"))
    assert f'href="{other}"' in template.render(language=language, pagename="how-to/masks", pathto=lambda path, _: path)
