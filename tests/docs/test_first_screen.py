"""What the README shows before anybody scrolls."""

import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from ..browsers import browser

ROOT = Path(__file__).resolve().parents[2]
STYLE = (  # GitHub's, in short
    "body { font: 16px/1.5 sans-serif; max-width: 960px; margin: 0 auto; padding: 16px; overflow-wrap: break-word } "
    "img { max-width: 100% } pre, table { display: block; overflow-x: auto } pre { font-size: 85% }"
)


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (400, 860)])
def test_what_it_is_a_picture_and_two_commands(width, height, tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    html = MarkdownIt("commonmark").enable("table").render(text)
    page = tmp_path / "readme.html"
    head = f'<meta charset="utf-8"><base href="{ROOT.as_uri()}/"><meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
    page.write_text(f"<!doctype html>{head}<body>{html}</body>", encoding="utf-8")
    driver = browser(width, height)
    try:
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", dict(width=width, height=height, deviceScaleFactor=1, mobile=False))
        driver.get(page.as_uri())
        bottom = "return document.querySelector('{}').getBoundingClientRect().bottom"
        said, picture, commands = (driver.execute_script(bottom.format(what)) for what in ("p", "img", "pre"))
        loaded = driver.execute_script("return document.querySelector('img').naturalWidth")
        wide = driver.execute_script("return document.documentElement.scrollWidth")
    finally:
        driver.quit()
    assert loaded > 0 and said < picture < commands <= height and wide <= width
    assert [line.split("#")[0].strip() for line in re.search(r"```bash\n(.*?)```", text, re.S)[1].strip().split("\n")] == [
        "make demo",
        "make docs",
    ]
