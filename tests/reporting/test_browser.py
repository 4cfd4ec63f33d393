"""The page of results in a browser: it draws at the width of a phone and of a desk, in light and dark."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import helpers_findings
import numpy as np
import pytest
from helpers_records import HARM, by_arm, fill, small
from PIL import Image

from bn_vuln.experiments import catalog
from bn_vuln.records import Flag
from bn_vuln.reporting import audit_page
from bn_vuln.reporting import pages as report
from bn_vuln.reporting.aggregate import aggregate

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
    "--virtual-time-budget=3000",
]  # fmt: skip
PHONE, DESK = (390, 844), (1280, 900)
DARK = "--blink-settings=preferredColorScheme=0"
RESULTS = Path(__file__).parents[2] / "results" / "paper"

# Of the page in each frame: its width, that of its content, and how many boxes scroll inside themselves.
MEASURE = """<script>addEventListener("load", () => {
  const measure = frame => {
    const root = frame.contentDocument.documentElement;
    const wide = [...root.querySelectorAll("*")].filter(e => e.clientWidth && e.scrollWidth > e.clientWidth + 1);
    const inside = wide.filter(e => getComputedStyle(e).overflowX === "auto").length;
    return [root.clientWidth, root.scrollWidth, inside];
  };
  document.title = JSON.stringify([...document.querySelectorAll("iframe")].map(measure));
});</script>"""

# Of the page in each frame: how many cells of differences there are, and how many of them are not inside the window.
DIFFERENCES = """<script>addEventListener("load", () => {
  const measure = frame => {
    const cells = [...frame.contentDocument.querySelectorAll("tr.difference td")].map(e => e.getBoundingClientRect());
    return [cells.length, cells.filter(r => !r.width || r.left < 0 || r.right > frame.clientWidth).length];
  };
  document.title = JSON.stringify([...document.querySelectorAll("iframe")].map(measure));
});</script>"""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")


def browse(page: Path, *options: str, size: tuple[int, int] = DESK) -> str:
    """Open a page; what the browser prints."""
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={page.parent / 'browser'}", f"--window-size={size[0]},{size[1]}"]
    done = subprocess.run([*command, *options, page.as_uri()], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def framed(page: str, size: tuple[int, int]) -> str:
    """A page in a frame of exactly that size: windows are never narrower than 500 pixels."""
    width, height = size
    style = f"display: block; border: 0; width: {width}px; height: {height}px"
    return f'<iframe style="{style}" srcdoc="{html.escape(page)}"></iframe>'


def written(folder: Path, content: str) -> Path:
    """A file with frames; a script stands here, outside of them, since our pages have none."""
    path = folder / "frames.html"
    path.write_text(f'<!doctype html><meta charset="utf-8"><body style="margin:0">{content}')
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two experiments with wide tables, long names and flags, one of them with figures."""
    root = tmp_path_factory.mktemp("page")
    flags = [Flag(check=18, name="f", value=1.0, message="a_long_word_" * 12 + " and some more")]
    columns = {"clean": "clean", "bim": "BIM, eps .1, in standardized units, without a box"}
    wide = small(table={"rows": ["data.width"], "columns": columns}, cost={"quick": "4 min"}, notes=["x" * 120])
    fill(root, wide, by_arm(HARM), flags=lambda cell, name: flags)
    fill(root, small(name="other", title="Another " + "o" * 60, scale="quick"), by_arm({}))
    (path,) = report.write(root)
    return path.read_text()


@pytest.mark.parametrize(("size", "options"), [(PHONE, [DARK]), (DESK, [])])
def test_the_page_is_drawn_in_the_colours_asked_for(
    page: str, tmp_path: Path, size: tuple[int, int], options: list[str]
) -> None:
    target = tmp_path / "page.png"
    browse(written(tmp_path, framed(page, size)), f"--screenshot={target}", *options, size=size)
    with Image.open(target) as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.shape == size[::-1]
    assert len(np.unique(pixels)) > 10
    assert bool(np.median(pixels) < 100) is (DARK in options)


def test_only_tables_and_figures_scroll_sideways(page: str, tmp_path: Path) -> None:
    published = report.html([aggregate(catalog.experiment(name), RESULTS) for name in ("table1", "table13_settings")])
    pages, sizes = (page, published), (PHONE, DESK)
    frames = [framed(text, size) for text in pages for size in sizes]
    dom = browse(written(tmp_path, "".join([*frames, MEASURE])), "--dump-dom")
    found = json.loads(html.unescape(re.findall("<title>(.*?)</title>", dom)[0]))
    widths = [size[0] for _ in pages for size in sizes]
    assert [(client, scroll) for client, scroll, _ in found] == [(width, width) for width in widths]
    assert [inside > 0 for _, _, inside in found][::2] == [True, True]  # on the phone


@pytest.mark.parametrize("size", [PHONE, DESK])
def test_only_the_table_of_layers_scrolls_on_the_page_of_an_audit(size: tuple[int, int], tmp_path: Path) -> None:
    pages = [audit_page.html(make(), None) for make in helpers_findings.CASES.values()]
    dom = browse(written(tmp_path, "".join([*(framed(text, size) for text in pages), MEASURE])), "--dump-dom")
    found = json.loads(html.unescape(re.findall("<title>(.*?)</title>", dom)[-1]))
    assert [(client, scroll) for client, scroll, _ in found] == [(size[0], size[0])] * len(pages)
    assert max(inside for *_, inside in found) <= 1


def test_differences_are_in_sight_on_a_phone(page: str, tmp_path: Path) -> None:
    dom = browse(written(tmp_path, framed(page, PHONE) + DIFFERENCES), "--dump-dom")
    ((cells, hidden),) = json.loads(html.unescape(re.findall("<title>(.*?)</title>", dom)[0]))
    assert cells >= 5
    assert hidden == 0
