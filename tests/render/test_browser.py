"""What a browser makes of the pages: nothing is cut off at any width, in light and dark; all is legible."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from mimbench.render import index, write_all
from tests.render.sample import CONTEXT, make_table

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTHS = (320, 360, 480, 640, 820, 821, 960, 1110, 1440, 2560)
SCHEMES = {"dark": 0, "light": 1}  # Blink's numbers
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--allow-file-access-from-files",
    "--virtual-time-budget=20000",
)
LONG = {
    "label": "Ours, with a label that is as long as a sentence and_one_word_" + "without_an_end_" * 12,
    "row_note": "a note with " + "unbreakable" * 20,
    "metric": "A metric whose title takes several lines of a narrow column, top-1",
    "note": "A note with an address, https://example.org/" + "path/" * 60,
    "claim": "Ours beats MAE by a claim that goes on and on " + "and_on_" * 30,
    "failure": "RuntimeError: " + "/a/path/" * 50,
}
MEASURE = Path(__file__).with_name("measure.html")


NAMES = ("ours/main.html", "ours/wide.html", "leaderboard.html", "index.html")
KINDS = {
    "page_too_wide": "the page is wider than its window",
    "no_scroll_bar": "an element is wider than its box and has no scroll bar",
    "unnamed_region": "what scrolls has no name for a screen reader, or no focus for the keyboard",
    "cut": "text is cut off, or runs over its neighbour",
    "faint": "text has too little contrast",
    "requests": "the page asks for something, or runs a script",
}


def test_nothing_is_cut_off_at_any_width(workspace: Path, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"THE PAGES ARE NOT MEASURED: none of {', '.join(BROWSERS)} is installed")
    frames = [frame for scheme in SCHEMES for frame in measure(browser, pages(workspace), scheme, tmp_path)]
    assert len(frames) == len(NAMES) * len(WIDTHS) * len(SCHEMES)
    problems = [
        f"{frame['page']} at {frame['width']} px, {frame['scheme']}: {told}: {problem}"
        for kind, told in KINDS.items()
        for frame in frames
        for problem in frame[kind]
    ]
    assert not problems, "\n".join(problems[:40])
    # The measurement sees both: tables in a scroll container, and tables that need none.
    scrolls = {(frame["page"], frame["width"]): frame["scrolls"] for frame in frames}
    assert scrolls["ours/wide.html", 960] and not scrolls["ours/main.html", 1110]
    assert not scrolls["index.html", 360], "on a phone the tables are stacked"


def pages(home: Path) -> Path:
    """Reports with tables of one and twelve seeds, three and eight metrics, a leaderboard and the index."""
    out = home / "reports" / "out"
    long = make_table(metrics=8, seeds=12, broken=True, cost=True, texts=LONG)
    write_all(make_table(metrics=3, seeds=1), out / "ours", "main", CONTEXT)
    write_all(long, out / "ours", "wide", CONTEXT)
    write_all(make_table(metrics=5, seeds=2, texts={"title": "Leaderboard"}), out, "leaderboard", CONTEXT)
    index.write(out)
    return out


def measure(browser: str, out: Path, scheme: str, tmp_path: Path) -> list[dict[str, Any]]:
    """What `measure.html` finds for each page and width, in the light or the dark scheme."""
    harness = out / "measure.html"
    asked = json.dumps({"pages": NAMES, "widths": WIDTHS})
    harness.write_text(MEASURE.read_text(encoding="utf-8").replace("ASKED", asked), encoding="utf-8")
    options = [
        f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
        f"--user-data-dir={tmp_path / scheme}",
    ]
    command = [browser, *QUIET, *options, "--dump-dom", harness.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    result = re.search('<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert result and result[1], f"the browser measured nothing: {done.stderr[-2000:]}"
    frames = json.loads(unescape(result[1]))
    assert isinstance(frames, list), frames
    assert all(frame["dark"] == (scheme == "dark") for frame in frames)
    return [{**frame, "scheme": scheme} for frame in frames]
