"""The page's Markdown: what it renders, and that no text becomes markup, however hostile."""

import json
import shutil
import subprocess

import browser
import pytest

from grm_jax.judging import report

needs_node = pytest.mark.skipif(not shutil.which("node"), reason="no node")
needs_browser = pytest.mark.skipif(
    not browser.available(),
    reason="no chromium with chromedriver: apt-get install chromium chromium-driver",
)
P = "p"
# text -> the children of the tree
EXAMPLES = [
    ("plain\ntext", [[P, {}, ["plain\ntext"]]]),
    (
        "*a* **b** ***c*** `d *x*` ~~e~~",
        [
            [
                P,
                {},
                [
                    ["em", {}, ["a"]],
                    " ",
                    ["strong", {}, ["b"]],
                    " ",
                    ["em", {}, [["strong", {}, ["c"]]]],
                    " ",
                    ["code", {}, ["d *x*"]],
                    " ",
                    ["s", {}, ["e"]],
                ],
            ]
        ],
    ),
    ("a_b_c 2 * 3 * 4 \\boxed{7, 3}", [[P, {}, ["a_b_c 2 * 3 * 4 \\boxed{7, 3}"]]]),
    ("## Head", [[P, {"class": "heading h2"}, ["Head"]]]),
    (
        "```py\na = `b`\n\n# c\n```\nend",
        [["pre", {"data-language": "py"}, ["a = `b`\n\n# c"]], [P, {}, ["end"]]],
    ),
    ("~~~\nunclosed <b>", [["pre", {}, ["unclosed <b>"]]]),
    (
        "3. one\n   - in\n4. two",
        [
            [
                "ol",
                {"start": "3"},
                [
                    ["li", {}, [[P, {}, ["one"]], ["ul", {}, [["li", {}, [[P, {}, ["in"]]]]]]]],
                    ["li", {}, [[P, {}, ["two"]]]],
                ],
            ]
        ],
    ),
    ("> a\n> > b", [["blockquote", {}, [[P, {}, ["a"]], ["blockquote", {}, [[P, {}, ["b"]]]]]]]),
    (
        "|a|b|\n|-|-|\n|1|2|",
        [
            [
                "table",
                {},
                [
                    ["tr", {}, [["th", {}, ["a"]], ["th", {}, ["b"]]]],
                    ["tr", {}, [["td", {}, ["1"]], ["td", {}, ["2"]]]],
                ],
            ]
        ],
    ),
    ("---", [["hr", {}, []]]),
    (
        "[x](https://a.b/c)",
        [[P, {}, [["span", {}, [["a", {"href": "https://a.b/c"}, ["x"]], " (https://a.b/c)"]]]]],
    ),
]
# Links that stay text.
BAD_ADDRESSES = [
    "javascript:window.hacked=1",
    "JaVaScRiPt:window.hacked=1",
    "data:text/html,<script>window.hacked=1</script>",
    "vbscript:x",
    "//evil.example",
    "http:evil",
    "file:///etc/passwd",
    "\tjavascript:window.hacked=1",
]
PIECES = [
    *("*a ", "**a ", "***", "`", "``a`", "[", "[a](", "![", "_a ", "> ", "- ", "  - ", "1. ", "#"),
    *("# ", "```", "|", "|-", "a|b\n-|-\n", "\\", "*", "~~a", "http://", "https://a ", "<b>", "\n"),
    *("    x\n", "- a\n  - b\n    - c\n", "> a\n>> b\n", "*a*", "- - - ", "a*b*", "\u2028# "),
    *("[a](http://b) ", "```" + "a" * 50 + "`\n", "<script>", "(", " ", "\t", "a"),
]
LONG = 100_000
HOSTILE = [piece * (LONG // len(piece)) for piece in PIECES] + [
    "#" + " " * LONG + "\u2028x",
    "```" + "a" * LONG + "`",
    "a|b\n|" + "-" * LONG + "x",
    "-" * LONG + "x",
    "https://" + "a" * LONG,
    "\n".join(" " * i + "- x" for i in range(400)),
]


def trees(texts, timeout=120):
    """Returns the tree of each text, as the page's script parses it."""
    script = (report.PAGE / "markdown.js").read_text() + (
        "\nconst texts = JSON.parse(require('fs').readFileSync(0, 'utf8'));"
        "console.log(JSON.stringify(texts.map((text) => markdownTree(text)[2])));"
    )
    run = subprocess.run(
        ["node", "-e", script],
        input=json.dumps(texts).encode(),
        timeout=timeout,
        capture_output=True,
    )
    assert run.returncode == 0, run.stderr.decode()[-2000:]
    return json.loads(run.stdout)


def strings(tree):
    if isinstance(tree, str):
        return [tree]
    return [text for child in tree[2] for text in strings(child)]


def nodes(tree):
    return [] if isinstance(tree, str) else [tree, *(n for child in tree[2] for n in nodes(child))]


@needs_node
def test_examples():
    for (text, expected), tree in zip(EXAMPLES, trees([text for text, _ in EXAMPLES])):
        assert tree == expected, text


@needs_node
def test_the_last_cell_of_a_wide_row_has_the_rest():
    names = [f"c{i}" for i in range(50)]
    ((table,),) = trees(["|".join(names) + "\n-|-\na|b"])
    cells = [strings(cell) for cell in table[2][0][2]]
    assert cells == [[name] for name in names[:39]] + [["|".join(names[39:])]]


@needs_node
def test_links_are_http_or_mail():
    texts = [f"[x]({address}) ![x]({address}) {address}" for address in BAD_ADDRESSES]
    for text, tree in zip(texts, trees(texts)):
        assert [n for n in nodes(["", {}, tree]) if n[0] == "a"] == [], text
        assert "".join(strings(["", {}, tree])).strip() == text.strip()


@needs_node
def test_hostile_texts_of_100_kb_are_parsed_in_linear_time():
    """A quadratic search would take minutes for these; the time limit is of all together."""
    for text, tree in zip(HOSTILE, trees(HOSTILE)):
        kept = "".join(strings(["", {}, tree]))
        letters = sum(text.count(letter) for letter in "abcx")
        shown = sum(kept.count(letter) for letter in "abcx")
        # A link repeats its address, a code block has its language in an attribute.
        assert shown >= letters or "```" in text, text[:20]


@needs_node
def test_texts_keep_their_letters_in_order(seed=0):
    import random

    rng = random.Random(seed)
    texts = ["".join(rng.choice(PIECES) for _ in range(rng.randint(1, 25))) for _ in range(1500)]
    texts = [text for text in texts if "http" not in text and "`" not in text]
    for text, tree in zip(texts, trees(texts)):
        kept = "".join(strings(["", {}, tree]))
        only = lambda value: [c for c in value if c in "abcx<>()"]  # noqa: E731
        expected = [c for c in only(text) if c not in "<>" or "> " not in text]
        assert [c for c in only(kept) if c not in "<>" or "> " not in text] == expected, repr(text)


@needs_browser
def test_hostile_texts_in_the_page(tmp_path):
    attack = "\n\n".join(
        [
            "<script>window.hacked=1</script><img src=x onerror=window.hacked=2>",
            *(f"[click]({address}) ![img]({address})" for address in BAD_ADDRESSES),
            '[mail](mailto:a@b.c) <https://a.b> https://a.b/?q="onclick=window.hacked=3',
            '`<svg onload=window.hacked=4>`\n```html"onclick=x\n<iframe srcdoc=x>\n```',
            "|<b onclick=x>|b|\n|-|-|\n|<script>window.hacked=5</script>|2|",
            ">" * 5000 + " deep " + "- " * 5000 + "*" * 5000,
        ]
    )
    critique = {
        **{"text": attack, "order": [0, 1], "scores": [1.0, 2.0], "status": "ok", "sample": 0},
        **{"meta_score": None, "expected_scores": None, "tokens": 3, "analysis": attack},
        "principles": [{"name": attack, "weight": 50.0, "description": attack}],
    }
    row = {
        **{"id": attack, "line": 1, "n": 2, "label": 1, "scores": [1.0, 2.0], "best": 1},
        **{"tie": False, "votes": {"mean": [1.0, 2.0]}, "vote": "mean", "unparsed": 0},
        **{"kept": None, "critiques": [critique], "reference": attack, "error": None},
        **{"query": [{"role": attack, "content": attack}], "responses": [attack, "x " * LONG]},
        **{"model": attack, "template": attack, "k": 1, "temperature": 0.5, "seed": 0},
        "meta": {attack: "a"},
    }
    rows = [row, row | {"line": 2, "meta": {attack: "b"}}, row | {"line": 3}, row | {"line": 4}]
    path = tmp_path / "page.html"
    path.write_text(report.page(rows, attack, attack))
    with browser.Browser() as window:
        window.open(path)
        window.wait("return document.querySelector('.detail h2') !== null")
        window.click('[data-place="0"]')
        window.press("o")
        window.wait("return document.querySelectorAll('.detail .md').length >= 4")
        assert window.run("return window.hacked === undefined")
        banned = "script, img, iframe, svg:not(.by-k), b, [onclick], [onload], [onerror]"
        assert window.run(f"return document.querySelectorAll('body :is({banned})').length") == 2
        links = window.run(
            "return [...document.querySelectorAll('.md a')].map(a => [a.protocol, a.target, a.rel])"
        )
        assert links
        assert {tuple(link) for link in links} <= {
            (protocol, "_blank", "noopener noreferrer nofollow")
            for protocol in ("https:", "mailto:")
        }
        window.press("m")  # plain text
        assert window.text(".turn .prose")[0] == attack
        assert window.run("return document.querySelectorAll('.md').length") == 0
        assert window.log() == []
        # Should a text become markup after all, the policy still stops its scripts.
        insert = "document.body.insertAdjacentHTML('beforeend', '<p>')"
        assert window.run(f"try {{ {insert} }} catch (e) {{ return e.name }}") == "TypeError"
        window.run(
            "try { document.body.setAttribute('onclick', 'window.hacked = 9') } catch (e) {}"
        )
        window.click("#title")
        assert window.run("return window.hacked === undefined")
