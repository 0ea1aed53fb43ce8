"""The page in a real browser, headless Chromium, on a desk and a phone: nothing said, fetched or too wide."""

import functools
import http.server
import json
import re
import shutil
import subprocess
import threading

import pytest

from hina_kohya.watch import page, run
from tests.support import run_folders as runs

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")]

WIDTHS = (1280, 390)
# One page beside the report's own origin, which may look into it: frames are as wide as windows would be.
PROBE = """<!doctype html><body>%s<pre id="answer"></pre><script>
const look = frame => {
  const own = frame.contentDocument, width = frame.clientWidth;
  const outside = [...own.querySelectorAll("body *")].filter(each => {
    if (each.closest(".scroll, .strip, svg") || each.closest("details:not([open]) > :not(summary)")) return false;
    const box = each.getBoundingClientRect();
    return box.width && box.right > width + 1;
  });
  const pictures = [...own.querySelectorAll("figure svg")].filter(each => each.getBoundingClientRect().width);
  return {
    width: own.documentElement.scrollWidth,
    outside: outside.map(each => each.tagName + "." + each.className),
    requests: frame.contentWindow.performance.getEntriesByType("resource").map(each => each.name),
    pictures: pictures.map(each => each.getBoundingClientRect().width / each.viewBox.baseVal.width),
    letters: Math.min(...pictures.flatMap(each => [...each.querySelectorAll("text")].map(
      text => parseFloat(own.defaultView.getComputedStyle(text).fontSize) *
              each.getBoundingClientRect().width / each.viewBox.baseVal.width))),
    broken: [...own.images].filter(each => each.naturalWidth === 0).length,
    images: own.images.length,
    paper: own.defaultView.getComputedStyle(own.body).backgroundColor,
    ink: own.defaultView.getComputedStyle(own.body).color,
  };
};
addEventListener("load", () => {
  for (const frame of document.querySelectorAll("iframe"))
    for (const each of frame.contentDocument.querySelectorAll("details")) each.open = frame.dataset.open === "1";
  document.getElementById("answer").textContent =
    JSON.stringify([...document.querySelectorAll("iframe")].map(look));
});
</script>"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def browse(folder, *flags, opened=0):
    """What the probe saw of folder/report.html at each width, and what the browser said on its console."""
    frames = "".join(
        f'<iframe src="report.html" data-open="{opened}" style="border:0;width:{width}px;height:900px"></iframe>'
        for width in WIDTHS
    )
    (folder / "probe.html").write_text(PROBE % frames, encoding="utf-8")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
               "--window-size=1400,1000", "--virtual-time-budget=5000",
               "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
               f"--user-data-dir={folder / 'profile'}", *flags, "--dump-dom",
               f"http://127.0.0.1:{server.server_port}/probe.html"]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    finally:
        server.shutdown()
        server.server_close()
    answer = re.search(r'<pre id="answer">(.*?)</pre>', done.stdout, re.DOTALL)
    assert answer, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line and "favicon" not in line]
    return json.loads(answer[1].replace("&gt;", ">").replace("&amp;", "&")), console


def written(tmp_path, *folders):
    page.write(tmp_path / "report.html", [run.read(run.Request(folder)) for folder in folders])
    return tmp_path


@pytest.fixture(scope="module")
def long_names(tmp_path_factory):
    """A run whose every name is longer than a phone is wide."""
    folder = tmp_path_factory.mktemp("long") / ("folder" * 30)
    word = "word_without_a_gap" * 12
    more = {f"norm/{word}_{number}": number + 1.0 for number in range(12)} | {f"few/{word}": 1.0}
    runs.whole(folder, rates=(word,), more=lambda step: more)
    runs.adapter(folder / "last.safetensors", 200, names=[f"{word}.{n}.{word}" for n in range(40)], ss_output_name=word,
                 ss_network_args=json.dumps({word: word}), ss_training_comment=word)  # fmt: skip
    (folder / "run.toml").write_text(f'output_name = "{word}"\nnetwork_args = ["{word}={word}"]')
    return folder


@pytest.mark.parametrize("opened", [0, 1])
@pytest.mark.parametrize("which", ["one", "two", "long"])
def test_the_page_in_a_browser(cat, long_names, tmp_path, which, opened):
    folders = {"one": [cat], "two": [cat, cat], "long": [long_names, cat]}[which]
    seen, console = browse(written(tmp_path, *folders), opened=opened)
    assert console == []
    for look, width in zip(seen, WIDTHS, strict=True):
        assert look["width"] <= width
        assert look["outside"] == []
        assert look["requests"] == []
        assert look["broken"] == 0
        assert look["images"] >= 6
        assert len(look["pictures"]) >= 4
        assert look["letters"] >= 9  # pixels, on a phone too


def test_dark_is_dark(cat, tmp_path):
    light, _ = browse(written(tmp_path, cat))
    dark, console = browse(tmp_path, "--blink-settings=preferredColorScheme=0")
    brightness = [
        sum(map(int, re.findall(r"\d+", look[0][what]))) for look in (light, dark) for what in ("paper", "ink")
    ]
    paper, ink, dark_paper, dark_ink = brightness  # sums of three colours
    assert paper - ink > 500
    assert dark_ink - dark_paper > 500
    assert console == []


def test_a_page_that_breaks_the_rules_is_seen(tmp_path):
    """The probe itself."""
    bad = '<!doctype html><body><div style="width:2000px">x</div><img src="http://example.invalid/x.png">'
    (tmp_path / "report.html").write_text(bad + "<script>console.error('said')</script>")
    seen, console = browse(tmp_path)
    assert all(look["width"] == 2000 + 8 and look["outside"] and look["broken"] == 1 for look in seen)
    assert all(look["requests"] == ["http://example.invalid/x.png"] for look in seen)
    assert any("said" in line for line in console)
