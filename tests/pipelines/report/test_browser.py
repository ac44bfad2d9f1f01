"""The page in a real browser: drawn at the width of a desk and of a phone, without an error, without a scroll bar."""

import json
import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import pytest

from pipelines.report.page import page
from pipelines.report.run import Run
from tests.pipelines.report.written import write_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--virtual-time-budget=5000",
]
DESK, PHONE = 1200, 390

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium"),
]

# What a reader's eye would find, told to the frame around: what sticks out of the page, charts without a size, and what
# the first chart says at its middle.
LOOK = """
addEventListener("load", () => {
  const width = document.documentElement.clientWidth;
  const inside = (one) => one.closest(".scroll") || one.closest("pre");
  const out = [...document.querySelectorAll("body *")].filter((one) =>
    one.getClientRects().length && !inside(one) && (one.getBoundingClientRect().right > width + 0.5 ||
    one.getBoundingClientRect().left < -0.5));
  const plots = [...document.querySelectorAll(".plot")];
  const box = plots.find((one) => one.dataset.from).getBoundingClientRect();
  const first = plots.find((one) => one.dataset.from);
  first.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + box.width / 2 }));
  const sizes = plots.flatMap((one) => [...one.querySelectorAll("path.line, path.dots, rect")]).map((one) =>
    one.getBoundingClientRect());
  parent.postMessage({
    width, wide: document.documentElement.scrollWidth, out: out.map((one) => one.outerHTML.slice(0, 200)),
    plots: plots.length, empty: sizes.filter((one) => one.width + one.height < 1).length,
    tip: first.querySelector(".tip").textContent, scripts: document.scripts.length,
  }, "*");
});
"""
AROUND = """<!DOCTYPE html><title>frames</title><body style="margin:0"><script>
addEventListener("message", (event) => {
  document.body.appendChild(document.createElement("p")).textContent = JSON.stringify(event.data);
});
</script>"""


def browse(folder: Path, file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    command = [BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", *options, file.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    (folder / "report.html").write_bytes(page(Run.open(write_run(folder, steps=3_000))))
    return folder / "report.html"


def test_nothing_sticks_out_and_charts_answer_at_both_widths(report: Path) -> None:
    html = report.read_text()
    watched = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)  # which lets no other script run
    assert watched != html
    (report.parent / "watched.html").write_text(watched.replace("</body>", f"<script>{LOOK}</script></body>"))
    frames = "".join(f'<iframe src="watched.html" width="{width}" height="900"></iframe>' for width in (DESK, PHONE))
    (report.parent / "frames.html").write_text(AROUND + frames)
    dom = browse(report.parent, report.parent / "frames.html", "--dump-dom").stdout
    seen = [json.loads(text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")) for text in said(dom)]
    assert sorted(one["width"] for one in seen) == [PHONE, DESK]
    for one in seen:
        assert (one["wide"], one["out"]) == (one["width"], [])
        assert (one["plots"], one["empty"]) == (8, 0)
        assert re.fullmatch(r"step 1,?\d{3}training loss: [\d.]+ \([\d.]+ to [\d.]+\)held-out loss: [\d.]+", one["tip"])
        assert one["scripts"] == 2  # the page's and the one of this test: text with tags in it made none


def said(dom: str) -> list[str]:
    return re.findall(r"<p>(\{.*?\})</p>", dom)


@pytest.mark.parametrize("width", [DESK, PHONE])
def test_it_is_drawn_without_an_error(report: Path, width: int) -> None:
    shown, picture = report, report.parent / f"{width}.png"
    if width == PHONE:  # a window cannot be as narrow
        shown = report.parent / "phone.html"
        shown.write_text(f'<body style="margin:0"><iframe src="report.html" width="{width}" height="7000"></iframe>')
    done = browse(report.parent, shown, f"--screenshot={picture}", f"--window-size={max(width, 500)},7000")
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert len(set(pixel_rows(picture))) > 500


def pixel_rows(picture: Path) -> list[bytes]:
    """The rows of a PNG as they are packed: those of one colour are the same."""
    content, at, packed, width, height = picture.read_bytes(), 8, b"", 0, 0
    while at < len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        kind, data = content[at + 4 : at + 8], content[at + 8 : at + 8 + size]
        if kind == b"IHDR":
            width, height = struct.unpack(">II", data[:8])
        packed += data if kind == b"IDAT" else b""
        at += size + 12
    pixels = zlib.decompress(packed)
    stride = len(pixels) // height
    assert stride >= width
    return [pixels[row * stride : (row + 1) * stride] for row in range(height)]
