"""The report page in a headless browser: links, reload, back button, filters, two runs, touch."""

import html
import json

import browser
import pytest
from fake_judge import fake_judge, well_formed

from grm_jax.judging import report
from grm_jax.judging.codec import read_judged_rows
from grm_jax.judging.options import Options
from grm_jax.judging.run import RunConfig, judge_file

pytestmark = pytest.mark.skipif(
    not browser.available(),
    reason="no chromium with chromedriver: apt-get install chromium chromium-driver",
)
SUBSETS = ("maths", "chat & more")
# The better response is marked, so that the judges below are right or wrong as planned.
ROWS = [
    {
        "query": f"Question {i}?",
        "responses": ["worse", f"better {i}"],
        "label": 1,
        "id": f"row/{i}?" if i == 7 else f"row-{i}",
        "meta": {"subset": SUBSETS[i % 2]},
    }
    for i in range(12)
]
ROWS += [{"query": "A question that is too long. " * 4000, "responses": ["a", "b"], "id": "long"}]
WRONG_A, WRONG_B = {0, 1}, {1, 2, 3}
OPENED = "return [...document.querySelectorAll('details.critique')].map(d => d.open)"
HEADING = "return document.querySelector('.detail h2').textContent === arguments[0]"


def judge_but(wrong):
    """Returns a judge that is wrong on the rows of these numbers."""

    def write(responses, key):
        number = next(int(text.split()[1]) for text in responses if text.startswith("better"))
        best, worst = (2, 8) if number in wrong else (8, 2)
        return well_formed([best if text.startswith("better") else worst for text in responses])

    return fake_judge(write, context=4096)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    source = folder / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, wrong in {"a": WRONG_A, "b": WRONG_B}.items():
        output = folder / f"{name}.jsonl"
        judge_file(judge_but(wrong), source, output, Options(k=2), RunConfig(progress=False))
    for name, rows in {"one": ["a"], "two": ["a", "b"]}.items():
        paths = [str(folder / f"{row}.jsonl") for row in rows]
        assert report.main([*paths, "-o", str(folder / f"{name}.html")]) == 0
    return folder


@pytest.fixture(scope="module")
def desktop():
    with browser.Browser(1280, 900) as window:
        yield window
        assert window.log() == []


def hash_of(window):
    return window.run("return location.hash")


def choose(window, name, value):
    window.run(
        "const s = document.getElementById(arguments[0]);"
        "s.value = arguments[1]; s.dispatchEvent(new Event('change'))",
        *(name, value),
    )


def open_page(window, path, hash=""):
    window.open("/blank")  # so that an address that differs in its end only loads the page
    window.open(f"{path}{hash}")
    window.wait("return document.querySelector('.detail h2') !== null")


def test_a_link_opens_a_comparison_and_a_list(pages, desktop):
    open_page(desktop, pages / "one.html", "#row-3")
    assert desktop.wait(HEADING, "Comparison row-3")
    assert desktop.text('.list [aria-current="true"] .id') == ["row-3"]
    open_page(desktop, pages / "one.html", "#row%2F7%3F?filter=right&by=subset&value=chat+%26+more")
    assert desktop.wait(HEADING, "Comparison row/7?")
    assert desktop.text("#list .id") == ["row-3", "row-5", "row/7?", "row-9", "row-11"]
    open_page(desktop, pages / "one.html", "#?filter=wrong")
    assert desktop.text("#list .id") == ["row-0", "row-1"]
    assert desktop.text(".detail h2")[0] == "Overview"
    open_page(desktop, pages / "one.html", "#row-99?filter=nonsense&sort=__proto__&%E0%A4%A=%")
    assert desktop.text(".detail p")[0] == "No comparison row-99 in this page."
    assert len(desktop.text("#list .id")) == 13


def test_the_link_of_a_comparison_is_its_address(pages, desktop):
    open_page(desktop, pages / "one.html", "#row%2F7%3F")
    desktop.wait(HEADING, "Comparison row/7?")
    href = desktop.run("return document.querySelector('.head a').getAttribute('href')")
    assert href == "#row%2F7%3F"


def test_a_reload_keeps_comparison_list_critiques_and_colours(pages, desktop):
    open_page(desktop, pages / "one.html")
    choose(desktop, "filter", "right")
    desktop.press("j", "j", "o", "t")
    theme = desktop.run("return document.documentElement.dataset.theme")
    assert desktop.run(OPENED) == [True, True]
    before = hash_of(desktop)
    desktop.wait("return history.state.open && history.state.open.length === 2")
    desktop.reload()
    desktop.wait("return document.querySelectorAll('details.critique').length")
    assert hash_of(desktop) == before
    assert desktop.text(".head h2") == ["Comparison row-4"]
    assert desktop.run("return document.getElementById('filter').value") == "right"
    assert desktop.run(OPENED) == [True, True]
    assert desktop.run("return document.documentElement.dataset.theme") == theme
    desktop.press("t")


def test_the_back_button_returns_to_what_was_shown(pages, desktop):
    open_page(desktop, pages / "one.html")
    desktop.click('[data-place="2"]')
    desktop.click('[data-place="5"]')
    choose(desktop, "filter", "wrong")
    assert desktop.text(".head h2") == ["Comparison row-0"]
    desktop.back()
    assert desktop.wait(HEADING, "Comparison row-5")
    assert desktop.run("return document.getElementById('filter').value") == "all"
    desktop.press("j", "j", "j")  # one entry for all steps
    assert desktop.text(".head h2") == ["Comparison row-8"]
    desktop.back()
    assert desktop.wait(HEADING, "Comparison row-5")
    desktop.back()
    assert desktop.wait(HEADING, "Comparison row-2")
    desktop.back()
    assert desktop.wait(HEADING, "Overview")
    desktop.forward()
    assert desktop.wait(HEADING, "Comparison row-2")


def test_the_overview_breaks_down_by_subset_and_filters(pages, desktop):
    open_page(desktop, pages / "one.html")
    cells = desktop.text(".groups td")
    # chat & more: row 1 is wrong; maths: row 0. Columns: comparisons, accuracy, ties, parse rate.
    assert cells[:8] == ["6", "83.3%", "0.0%", "100.0%"] * 2
    assert desktop.text(".tile .value")[:2] == ["12", "83.3%"]
    assert all(desktop.text(".tile .note"))
    assert desktop.text(".groups .link")[:2] == ["chat & more", "maths"]
    desktop.click(".groups tbody tr:nth-child(2) .link")
    assert desktop.run("return document.getElementById('group').selectedOptions[0].text") == (
        "subset: maths"
    )
    assert desktop.text("#list .id") == [f"row-{i}" for i in range(0, 12, 2)]
    assert hash_of(desktop) == "#row-0?by=subset&value=maths"


def test_an_error_row_shows_its_query(pages, desktop):
    open_page(desktop, pages / "one.html", "#long")
    desktop.wait(HEADING, "Comparison long")
    assert "context of 4,096" in desktop.text(".error")[0]
    assert desktop.text(".turn")[0].startswith("user\n\nA question that is too long.")


def test_search_reads_all_texts_and_is_in_the_address(pages, desktop):
    open_page(desktop, pages / "one.html")
    desktop.press("/", *"better 11")
    desktop.wait("return document.querySelectorAll('#list .item').length === 1")
    assert hash_of(desktop) == "#row-11?q=better+11"
    desktop.reload()
    desktop.wait("return document.querySelectorAll('#list .item').length === 1")
    assert desktop.run("return document.getElementById('search').value") == "better 11"


def test_two_runs_side_by_side(pages, desktop):
    open_page(desktop, pages / "two.html")
    tiles = dict(zip(desktop.text(".tile dt"), desktop.text(".tile .value")))
    assert tiles["pairs"] == "12"
    assert tiles["agreement"] == "75.0%"  # 0, 2 and 3 changed
    assert tiles["B − A"] == "−8.3 points"
    assert tiles["gained, lost"] == "1, 2"
    assert tiles["accuracy of the pairs"] == "83.3% → 75.0%"
    expected = {"changed": ["row-0", "row-2", "row-3"], "gained": ["row-0"]}
    expected |= {"lost": ["row-2", "row-3"], "missing": [], "error": ["long"]}
    expected |= {"wrong": ["row-0", "row-1", "row-2", "row-3"]}
    for name, ids in expected.items():
        choose(desktop, "filter", name)
        assert desktop.text("#list .id") == ids
    open_page(desktop, pages / "two.html", "#row-2?filter=changed")
    desktop.wait(HEADING, "Comparison row-2")
    assert desktop.text(".head .badge") == ["A right", "B wrong"]
    assert desktop.text(".card .score") == ["A\n4", "B\n16\nchosen", "A\n16\nchosen", "B\n4"]
    assert desktop.text(".run-side > h3") == ["A: a.jsonl", "B: b.jsonl"] * 2
    assert len(desktop.text("details.critique")) == 4


def test_touch_alone_on_a_phone(pages):
    with browser.Browser(390, 844) as phone:
        open_page(phone, pages / "two.html")
        visible = "return document.querySelector(arguments[0]).offsetParent !== null"
        assert phone.run(visible, ".side") and not phone.run(visible, ".detail")
        phone.tap("#overview")
        phone.wait("return location.hash === '#?view=overview'")
        assert phone.run(visible, ".tile .note") and not phone.run(visible, ".side")
        phone.tap(".back")
        phone.wait("return location.hash === ''")
        assert phone.run(visible, ".side")
        phone.tap('[data-place="4"]')
        assert phone.wait(HEADING, "Comparison row-4")
        phone.tap("details.critique:last-of-type > summary")
        phone.wait("return document.querySelectorAll('details.critique[open]').length === 3")
        phone.back()
        phone.wait("return document.querySelector('.side').offsetParent !== null")
        phone.forward()
        assert phone.wait(HEADING, "Comparison row-4")
        assert phone.run("return document.documentElement.scrollWidth <= innerWidth")
        assert phone.log() == []


def test_the_keyboard_skips_the_list_and_shows_its_focus(pages, desktop):
    open_page(desktop, pages / "one.html", "#row-3")
    desktop.press("Tab")
    assert desktop.run("return document.activeElement.id") == "skip"
    box = "return document.activeElement.getBoundingClientRect().left"
    assert desktop.run(box) >= 0
    desktop.press("Enter")
    assert desktop.run("return document.activeElement.id") == "detail"
    assert hash_of(desktop) == "#row-3"
    for _ in range(3):
        desktop.press("Tab")
        outline = "return getComputedStyle(document.activeElement).outlineStyle"
        assert desktop.run(outline) != "none"
    desktop.press("h")
    assert desktop.wait(HEADING, "Overview")


def test_every_control_and_landmark_has_a_name(pages, desktop):
    open_page(desktop, pages / "two.html", "#row-2")
    nameless = desktop.run(
        "return [...document.querySelectorAll('button, input, select, a, [role=img], nav')]"
        ".filter(e => !(e.getAttribute('aria-label') || e.textContent.trim()))"
        ".map(e => e.outerHTML.slice(0, 99))"
    )
    assert nameless == []
    for landmark in ("header", "nav", "main", "[role=search]"):
        assert desktop.run(f"return document.querySelectorAll('{landmark}').length") >= 1
    assert desktop.run("return document.querySelectorAll('[title]').length") == 0  # no hover needed


def test_a_page_of_examples_opens_at_the_first_one(pages, desktop):
    rows = list(read_judged_rows(pages / "a.jsonl"))[3:6]
    text = report.page(rows, "Examples", are_examples=True)
    (pages / "examples.html").write_text(text)
    open_page(desktop, pages / "examples.html")
    assert desktop.wait(HEADING, "Comparison row-3")
    assert desktop.run("return document.getElementById('overview').offsetParent === null")
    desktop.press("j", "h")
    assert desktop.text(".head h2") == ["Comparison row-4"]
    # Inside another page it has no address of its own, and works.
    outer = f'<iframe width=1000 height=700 srcdoc="{html.escape(text)}"></iframe>'
    (pages / "outer.html").write_text(outer)
    desktop.open(pages / "outer.html")
    desktop.enter_frame("iframe")
    assert desktop.wait(HEADING, "Comparison row-3")
    desktop.click('[data-place="1"]')
    desktop.press("j")
    assert desktop.text(".head h2") == ["Comparison row-5"]
