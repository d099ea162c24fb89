"""The report page: one self-contained file, texts stay texts; tested in a headless browser."""

import base64
import json
import random
import re
import shutil
import subprocess
import zlib

import browser
import pytest
from fake_judge import fake_judge, first_wins, well_formed

from grm_jax.judging import report, summary
from grm_jax.judging.codec import read_judged_rows
from grm_jax.judging.options import Options
from grm_jax.judging.run import RunConfig, judge_file

ATTACK = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>\u2028"
    "<!-- @SCRIPT@ @DATA@"
)
ROWS = [
    {
        "query": f"Question {i} about {'eggs' if i % 2 else 'tea'}?",
        "responses": [f"answer {i} {ATTACK}", "another " * (i + 1), "third"][: 2 + i % 2],
        "label": 1,
        "id": f"row-{i}",
    }
    for i in range(70)
]
ROWS[3]["query"] = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "Bye?"},
]


class Meta:
    name = "meta@1"

    def __call__(self, critiques):
        return [random.Random(str((order, text))).gauss(0, 1) for _, order, text in critiques]


def write(responses, key):
    rng = random.Random(str(key))
    if rng.random() < 0.2:
        return f"No scores, but {ATTACK}"
    return well_formed(
        [rng.randint(1, 10) for _ in responses], analysis=f"The analysis says {ATTACK}"
    )


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    text = (
        "".join(json.dumps(row) + "\n" for row in ROWS)
        + '{"broken <script>window.hacked = 3</script>\n'
    )
    (folder / "in.jsonl").write_text(text)
    judge = fake_judge(write, meta_rm=Meta(), name=f"model{ATTACK}@1")
    judge_file(
        judge, folder / "in.jsonl", folder / "out.jsonl", Options(k=6), RunConfig(progress=False)
    )
    return folder


@pytest.fixture(scope="module")
def page(judged):
    assert (
        report.main(
            [str(judged / "out.jsonl"), "-o", str(judged / "report.html"), "--title", f"T {ATTACK}"]
        )
        == 0
    )
    return judged / "report.html"


def details_of(data):
    """Returns the texts of the rows of a page's JSON, from its compressed parts."""
    parts = [json.loads(zlib.decompress(base64.b64decode(p))) for p in json.loads(data)["parts"]]
    return [detail for part in parts for detail in part]


def test_the_page_is_self_contained(page):
    text = page.read_text()
    assert not re.search(
        r"""(?:src|href)=["'](?!#|data:,)""",
        re.sub(r'<script type="application/json".*?</script>', "", text),
    )
    assert len(re.findall(r"<script", text, re.IGNORECASE)) == 2
    assert text.count("</script>") == 2
    data = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL
    ).group(1)
    assert "<" not in data and "\u2028" not in data
    assert details_of(data)[0]["responses"][0].endswith(ATTACK)
    assert "window.hacked" not in text.replace(data, "").replace("&lt;", "<").split("<style>")[1]


def test_the_rates_by_hand(judged):
    rows = list(read_judged_rows(judged / "out.jsonl"))
    rates = summary.summarise(rows)
    critiques = [critique for row in rows for critique in row["critiques"]]
    right = [row for row in rows if not row["error"] and row["best"] == 1]
    assert rates["errors"] == 1 and rates["comparisons"] == 70 and rates["labelled"] == 70
    assert rates["accuracy"] == pytest.approx(len(right) / 70)
    assert rates["chance"] == pytest.approx((35 / 2 + 35 / 3) / 70)
    assert rates["parsed"] == pytest.approx(
        sum(c["status"] == "ok" for c in critiques) / len(critiques)
    )
    curve = summary.accuracy_by_k(rows)
    assert [point["k"] for point in curve] == [1, 2, 3, 4, 5, 6]
    assert curve[-1]["credit"] == pytest.approx(rates["tie_credit"])


def test_the_vote_over_all_k_is_the_verdict(judged):
    for row in read_judged_rows(judged / "out.jsonl"):
        if not row["error"]:
            last = summary.votes_by_k(row)[-1]
            assert (last["best"], last["kept"], last["scores"]) == (
                row["best"],
                row["kept"],
                row["scores"],
            )


def test_flips_and_first_wins_of_pure_position_bias(tmp_path):
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:10]))
    judge_file(
        fake_judge(first_wins),
        tmp_path / "in.jsonl",
        tmp_path / "out.jsonl",
        Options(k=6),
        RunConfig(progress=False),
    )
    rates = summary.summarise(read_judged_rows(tmp_path / "out.jsonl"))
    assert (rates["flips"], rates["first_place"], rates["ties"], rates["tie_credit"]) == (
        1,
        1,
        1,
        pytest.approx((5 / 2 + 5 / 3) / 10),
    )


def test_bad_input_is_refused(tmp_path, capsys):
    (tmp_path / "x.jsonl").write_text('{"id": 1}\n')
    assert report.main([str(tmp_path / "x.jsonl"), "-o", str(tmp_path / "r.html")]) == 2
    assert "line 1 is not a row of `grm judge`" in capsys.readouterr().err
    assert report.main([str(tmp_path / "none.jsonl"), "-o", str(tmp_path / "r.html")]) == 2
    assert "none.jsonl: give the OUT of grm judge" in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


def test_an_empty_file_gives_a_page(tmp_path):
    (tmp_path / "x.jsonl").write_text("")
    assert report.main([str(tmp_path / "x.jsonl"), "--out", str(tmp_path / "r.html")]) == 0


@pytest.mark.skipif(not shutil.which("node"), reason="no node")
@pytest.mark.parametrize("name", report.SCRIPTS)
def test_the_scripts_are_valid_javascript(name):
    subprocess.run(["node", "--check", str(report.PAGE / name)], check=True)


# --- in a browser ---

needs_browser = pytest.mark.skipif(
    not browser.available(),
    reason="no chromium with chromedriver: apt-get install chromium chromium-driver",
)


@pytest.fixture(scope="module")
def desktop(page):
    with browser.Browser(1280, 900) as window:
        window.open(page)
        yield window


@needs_browser
def test_texts_stay_texts(desktop):
    desktop.click('[data-place="0"]')
    desktop.press("o")
    assert desktop.run("return window.hacked === undefined")
    assert ATTACK.split("\u2028")[0] in desktop.text(".card .prose")[0]
    assert desktop.run("return document.querySelectorAll('img, .detail script').length") == 0
    assert desktop.log() == []
    assert desktop.run("return document.title").startswith("T </script>")


@needs_browser
def test_search_filter_and_sort(desktop):
    assert desktop.text("#count") == ["71 comparisons"]
    desktop.press("Escape", "/", *"eggs row-1")
    assert desktop.text("#count")[0] == "6 of 71 comparisons"  # row-1, 11, 13, ... 19
    desktop.run(
        "const s = document.getElementById('search');"
        "s.value = ''; s.dispatchEvent(new Event('input')); s.blur()"
    )
    choose = (
        "const s = document.getElementById(arguments[0]);"
        "s.value = arguments[1]; s.dispatchEvent(new Event('change'))"
    )
    desktop.run(choose, "filter", "error")
    assert desktop.text("#list .badge") == ["error"] and "not JSON" in desktop.text(".error")[0]
    desktop.run(choose, "filter", "tie")
    assert set(desktop.text("#list .badge")) <= {"tie"}
    desktop.run(choose, "filter", "all")
    desktop.run(choose, "sort", "clear")
    margins = [
        sorted(map(float, text.split(" : ")))[-2:] for text in desktop.text("#list .nums")[:2]
    ]
    assert margins[0][1] - margins[0][0] >= margins[1][1] - margins[1][0]
    desktop.run(choose, "sort", "line")
    assert len(desktop.text("#list .item")) == 60
    desktop.click(".more")
    assert len(desktop.text("#list .item")) == 71


@needs_browser
def test_keyboard_alone(desktop):
    desktop.click('[data-place="0"]')
    desktop.press("j", "j", "ArrowDown", "k")
    assert desktop.text('[aria-current="true"] .line span:first-child') == ["row-2"]
    assert desktop.text(".head h2") == ["Comparison row-2"]
    assert desktop.run("return document.activeElement.dataset.place") == "2"
    opened = "return [...document.querySelectorAll('details.critique')].filter(d => d.open).length"
    assert desktop.run(opened) == 1
    desktop.press("o")
    assert desktop.run(opened) == 6
    desktop.press("?")
    assert desktop.run("return document.getElementById('keys').open")
    desktop.press("Escape")
    before = desktop.run("return document.documentElement.dataset.theme")
    desktop.press("t")
    assert desktop.run("return document.documentElement.dataset.theme") != before
    desktop.press("t")


@needs_browser
def test_a_comparison_shows_all_its_parts(desktop):
    desktop.click('[data-place="3"]')
    row = next(row for row in map(json.loads, open(desktop_rows(desktop))) if row["id"] == "row-3")
    assert desktop.text(".turn .who") == ["user", "assistant", "user"]
    assert len(desktop.text(".card")) == 3
    kept = [
        text
        for text in desktop.text("details.critique summary .badge")
        if text in ("kept", "not kept")
    ]
    assert [text == "kept" for text in kept] == [i in row["kept"] for i in range(6)]
    assert desktop.run("return document.querySelectorAll('.by-k polyline').length") == 3
    desktop.press("Escape", "o")
    widths = desktop.run(
        "return [...document.querySelectorAll('.principle .bar i')].map(i => i.style.width)"
    )
    assert widths[:2] == ["60%", "40%"]


def desktop_rows(window):
    return window.run("return location.pathname").replace("report.html", "out.jsonl")


# The lowest contrast ratio (WCAG 2) of any visible text, and its element.
CONTRAST = """
const rgb = (c) => c.match(/[0-9.]+/g).map(Number);
const linear = (v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
const light = (c) => {
  const [r, g, b] = rgb(c).map(linear);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (e) => {
  for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor;
    if (rgb(c)[3] !== 0) return c;
  }
  return "rgb(255, 255, 255)";
};
let worst = [99, ""];
for (const e of document.querySelectorAll("body *")) {
  const hasText = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  if (!e.offsetParent || !hasText) continue;
  const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  if (ratio < worst[0]) worst = [ratio, e.className + " " + e.textContent.slice(0, 30)];
}
return worst;
"""


@needs_browser
@pytest.mark.parametrize("width, dark", [(1280, False), (1280, True), (390, False), (390, True)])
def test_fits_the_window_with_enough_contrast(page, width, dark):
    with browser.Browser(width, 844, dark) as window:
        window.open(page)
        assert window.run("return document.documentElement.dataset.theme") == (
            "dark" if dark else "light"
        )
        for step in ("list", "comparison"):
            if step == "comparison":
                window.click('[data-place="1"]')
                window.press("o")
            assert window.run("return document.documentElement.scrollWidth <= innerWidth"), step
            ratio, where = window.run(CONTRAST)
            assert ratio >= 4.5, where
        if width < 500:
            assert (
                window.run("return getComputedStyle(document.querySelector('.side')).display")
                == "none"
            )
            window.click(".back")
            assert (
                window.run("return getComputedStyle(document.querySelector('.side')).display")
                != "none"
            )
