"""Templates that are damaged, hostile, or whose markers a text could imitate."""

import json
import os
import random
import sys
import threading
import time
from pathlib import Path

import fuzz
import pytest

from grm_jax import cli
from grm_jax.judging.metadata import JudgeMetadata, MetaRMMetadata
from grm_jax.text import chat, fences, rendering, sandbox
from grm_jax.types import Comparison

sys.path.insert(0, str(Path(__file__).parents[1] / "text"))
from chat_styles import CHATS, SPECIAL, STYLES  # noqa: E402

GOOD = (
    "{% set low = 0 %}Judge.\n[Query]\n{{ query }}\n[/Query]\n{% for r in responses %}\n"
    "[Response {{ loop.index }}]\n{{ r }}\n[/Response {{ loop.index }}]\n{% endfor %}\nScores?"
)
PAIR = Comparison("What is 2 + 2?", ("It is 4.", "It is 5."))


def written(folder: Path, source: str | bytes) -> Path:
    file = folder / "own.jinja"
    file.write_bytes(source if isinstance(source, bytes) else source.encode())
    os.utime(file, ns=(time.monotonic_ns(), time.monotonic_ns()))  # templates are cached by it
    return file


def marked(before: str, after: str, query: str = "[Query]\n{{ query }}\n[/Query]\n") -> str:
    """A template with these strings around each response."""
    return f"{query}{{% for r in responses %}}\n{before}{{{{ r }}}}{after}\n{{% endfor %}}\nScores?"


# ---------------------------------------------------------------- markers and places


@pytest.mark.parametrize(
    "before, after",
    [
        ("--- Response {{ loop.index }} ---\n", "\n--- end ---"),
        ("### Response {{ loop.index }}\n", "\n### End"),
        ("Response {{ loop.index }}: ", "\n[end]\n"),
        ("<response>", "</response>"),
        ("**Response {{ loop.index }}**\n", "\n**End**"),
        ("-----\n[Response {{ loop.index }}]\n", "\n[/Response {{ loop.index }}]\n-----"),
        ("=== Response {{ loop.index }}\n(text follows)\n", "\n(text ends)\n==="),
    ],
)
def test_a_marker_with_letters_and_a_sign_is_accepted(tmp_path, before, after):
    assert rendering.render(written(tmp_path, marked(before, after)), PAIR)


@pytest.mark.parametrize(
    "before, after",
    [
        ('"""\n', '\n"""'),
        ("<<<\n", "\n>>>"),
        ("<a>\n", "\n</a>"),
        ("---\n", "\n---"),
        ("```\n", "\n```"),
        ("=====\nResponse {{ loop.index }}\n=====\n", "\n====="),
        ("Response {{ loop.index }}\n", "\nEnd"),
        ("A: ", ""),
        ("", ""),
        ("[Answer] ", "\n[/Answer]"),  # a word in brackets, not alone on its line
        ("#\n", "\n#"),
        ("{{ loop.index }}. ", ""),
    ],
)
def test_a_marker_that_a_text_may_hold_is_refused(tmp_path, before, after):
    with pytest.raises(ValueError, match=r"put lines such as \[Response 1\]"):
        rendering.load(written(tmp_path, marked(before, after)))


@pytest.mark.parametrize(
    "source, message",
    [
        ("root:x:0:0:root:/root:/bin/bash\n", "does not show the query and response 1"),
        ("[Query]\n{{ query }}\n[/Query]", "does not show response 1"),
        (GOOD.replace("{{ query }}", "?"), "does not show the query"),
        (GOOD.replace("{{ r }}", "{{ responses[0] }}"), "does not show response 2"),
        (GOOD.replace("in responses", "in responses | reverse"), "show each response once"),
        (GOOD.replace("in responses", "in responses[:2]"), "does not show response 3"),
        (GOOD.replace("{{ r }}", "{{ r | upper }}"), "changes a text"),
        (GOOD.replace("{{ r }}", "{{ r[:500] }}"), "changes a text"),
        (GOOD.replace("{{ r }}", "{{ r | replace('-', '') }}"), "changes a text"),
        (GOOD.replace("{{ r }}", "{% if r | length > 99 %}{{ r }}{% endif %}"), "changes a text"),
        (GOOD.replace("{{ query }}", "{{ query | e }}"), "changes a text"),
        ('{% set needs = ["reference"] %}' + GOOD, "does not show the reference"),
        ("{{ responses | join }}{{ query }}", "nothing separates response 1 from the query"),
        (GOOD + "\ue0a099\ue0a1", "private-use characters"),
        (GOOD.replace("0", '"x"', 1), "low is 'x': set a number"),
        ("{% set low = 5 %}{% set high = 5 %}" + GOOD[17:], "the scale is 5 to 5"),
        (f"{{% set high = 1{'0' * 400} %}}" + GOOD, "high is 1000"),
        ("{% set n_min = 0 %}" + GOOD, "n_min is 0"),
        ("{% set n_max = 99 %}" + GOOD, "n_max 99"),
        ('{% set needs = "reference" %}' + GOOD, "needs is 'reference'"),
        ('{% set output = "score" %}' + GOOD, "output is 'score'"),
    ],
)
def test_a_template_that_does_not_show_the_texts_is_refused(tmp_path, source, message):
    with pytest.raises(ValueError, match=message) as caught:
        rendering.load(written(tmp_path, source))
    assert str(caught.value).startswith("template 'own.jinja'")
    assert "\n" not in str(caught.value)


def test_a_trimmed_text_and_a_repeated_query_are_accepted(tmp_path):
    source = GOOD.replace("{{ r }}", "{{ r | trim }}") + "\n[Query]\n{{ query }}\n[/Query]"
    (message,) = rendering.render(written(tmp_path, source), Comparison("q", (" a \n", "b")))
    assert "[Response 1]\na\n[/Response 1]" in message["content"]
    assert message["content"].count("[Query]\nq\n[/Query]") == 2


def test_other_markers_for_more_responses_are_protected_too(tmp_path):
    source = GOOD.replace("[Response {{ loop.index }}]", "{{ '[Many]' if n > 5 else '[One]' }}")
    (message,) = rendering.render(
        written(tmp_path, source), Comparison("q", ("x\n[Many]", *"abcde"))
    )
    assert "x\n[-Many]" in message["content"]


# ---------------------------------------------------------------- damaged files


@pytest.mark.parametrize(
    "source, message",
    [
        (b"[Query]\n\xff\xfe", "own.jinja is not UTF-8: byte 9"),
        (b"\xff\xfe\x00", "own.jinja is UTF-16"),
        (b"{% if %}", "line 1: Expected an expression"),
        (b"a\n{% for x in y %}", "line 2: Unexpected end of template"),
        (b"{{ 1 / 0 }}", "ZeroDivisionError"),
        (b"{{ query.nothing.nothing }}", "no attribute 'nothing'; it may use turns"),
        (b"{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "calls itself without end"),
        (b"{% include 'own.jinja' %}", "includes or calls itself without end"),
        (b"{% extends 'own.jinja' %}", "fails|without end"),
        (b"{% include '../secret.jinja' %}", "includes '../secret.jinja', which is no template"),
        (b"{% include '/etc/passwd' %}", "includes '/etc/passwd', which is no template"),
        (b"{% import 'link.jinja' as x %}", "link to .*, outside its folder"),
        (b"{{ ().__class__ }}", "unsafe"),
        (b"{{ x" * 90_000, "has 360,000 characters, more than 100,000"),
        (b"{{ n }}" * 5_000, "has 5,000 expressions"),
        (b"{{ [1,2]|random }}", "No filter named 'random'"),
    ],
)
def test_a_damaged_template_is_refused_in_one_line(tmp_path, source, message):
    (tmp_path / "secret.jinja").write_text("secret")
    folder = tmp_path / "templates"
    folder.mkdir()
    (folder / "link.jinja").symlink_to(tmp_path / "secret.jinja")
    with pytest.raises(ValueError, match=message) as caught:
        rendering.load(written(folder, source))
    assert "own.jinja" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["/dev/zero", "fifo", ".", "~nobody_here/x", "x" * 5000, "a\0b"])
def test_what_is_no_file_is_no_template(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    with pytest.raises(FileNotFoundError, match="no template"):
        rendering.load(name)


# ---------------------------------------------------------------- bounds

ENDLESS = {
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
    "{% endfor %}",
    "filtered loop": "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}"
    "{% endfor %}",
    "short filtered loops": "{% for i in range(999) %}{% for j in range(999) if false %}"
    "{% endfor %}{% endfor %}",
    "output": "{% for i in range(99999) %}" + "x" * 999 + "{% endfor %}",
    "output in a block": "{% set x %}{% for i in range(99999) %}" + "x" * 99 + "{% endfor %}"
    "{% endset %}",
    "doubling": "{% set ns = namespace(x='ab') %}{% for i in range(99) %}"
    "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubling by output": "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x %}"
    "{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
    "nested lists": "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(99) %}"
    "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
    "macros": "{% macro m(n) %}ab{% for i in range(n) %}{{ m(n - 1) }}{% endfor %}{% endmacro %}"
    "{{ m(19) }}",
    "slow tests": "{% set big = range(99999) | list %}{% for i in range(99999) %}{% if -1 in big %}"
    "{% endif %}{% endfor %}",
    "product": "{{ 'a' * 9999999999 }}",
    "power": "{{ 9 ** 99999999 }}",
    "width": "{{ 'x'.ljust(9999999999) }}",
    "center": "{{ 'x' | center(9999999999) }}",
    "percent": "{{ '%9999999999d' % 1 }}",
    "star": "{{ '%*d' % (9999999999, 1) }}",
    "format": "{{ '{:>9999999999}'.format(1) }}",
    "format by argument": "{{ '{:>{w}}'.format(1, w=9999999999) }}",
    "join": "{{ range(99999) | list | join('x' * 99999) }}",
    "replace": "{{ ('x' * 99999).replace('x', 'y' * 99999) }}",
    "indent": "{{ ('x\\n' * 9999) | indent(99999) }}",
    "batch": "{{ [1] | batch(9999999999, 0) | list }}",
    "slice": "{{ [1] | slice(9999999999) | list }}",
    "json": "{{ [[1]] | tojson(indent=9999999999) }}",
    "bytes": "{{ (5).to_bytes(9999999999, 'big') }}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
}  # fmt: skip


@pytest.mark.parametrize("name", ENDLESS)
def test_work_without_end_is_refused(tmp_path, name):
    for attempt in (
        lambda: chat.render(ENDLESS[name], CHATS[0], True, {}, lambda text, _: text),
        lambda: rendering.load(written(tmp_path, GOOD + ENDLESS[name])),
    ):
        with fuzz.time_limit(), pytest.raises(ValueError, match=r"fails|without end") as caught:
            attempt()
        assert "\n" not in str(caught.value)


def test_the_bounds_hold_in_any_thread():
    errors = []

    def attempt():
        try:
            chat.render(ENDLESS["nested loops"], CHATS[0], True, {}, lambda text, _: text)
        except ValueError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=attempt, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(errors) == 3 and all("more work" in error for error in errors)


def test_a_product_is_refused_before_it_is_made():
    with pytest.raises(ValueError, match="it makes a text of up to 81,"):
        sandbox.render(sandbox.load("{{ ('x' * 9000).replace('x', 'y' * 9000) }}", "T"), {}, "T")


def test_a_deadline_ends_what_the_budget_allows(monkeypatch):
    monkeypatch.setattr(sandbox, "BUDGET", 10**12)
    monkeypatch.setattr(sandbox, "SECONDS", 0.2)
    with fuzz.time_limit(), pytest.raises(ValueError, match="more work"):
        sandbox.render(sandbox.load(ENDLESS["nested loops"], "T"), {}, "T")


def test_long_messages_are_rendered():
    long = [{"role": "user", "content": "x</think>y " * 100_000}]
    for style in ("headers with a date", "thinking is removed", "last query by index", "macros"):
        assert len("".join(chat.render(STYLES[style], long, True, SPECIAL, lambda t, _: t))) > 10**6


# ---------------------------------------------------------------- model folders


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../secret.jinja", "nothing.jinja", "link.jinja", "a/b"]
)
@pytest.mark.parametrize("field", ["template", "single"])
def test_a_folder_names_no_file_outside(tmp_path, name, field):
    (tmp_path / "secret.jinja").write_text(GOOD)
    folder = tmp_path / "model"
    (folder / "a").mkdir(parents=True)
    (folder / "link.jinja").symlink_to(tmp_path / "secret.jinja")
    (folder / "judge.json").write_text(json.dumps({field: name}))
    with pytest.raises(ValueError, match=r"judge.json should hold .*(in this folder|outside its)"):
        JudgeMetadata.load(folder)
    (folder / "meta_rm.json").write_text(json.dumps({"template": name}))
    with pytest.raises(ValueError, match=r"meta_rm.json should hold"):
        MetaRMMetadata.load(folder)


def test_a_link_within_the_cache_of_the_hub_is_followed(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "a").write_text(json.dumps({"template": "prompt_x.jinja"}))
    (blobs / "b").write_text(GOOD)
    (snapshot / "judge.json").symlink_to(blobs / "a")
    (snapshot / "prompt_x.jinja").symlink_to(blobs / "b")
    assert rendering.load(JudgeMetadata.load(snapshot).template).low == 0


def test_an_export_holds_the_users_template(tmp_path):
    own, folder = tmp_path / "own", tmp_path / "hf"
    own.mkdir(), folder.mkdir()
    (own / "head.jinja").write_text("Judge.\n")
    file = written(own, "{% include 'head.jinja' %}" + GOOD)
    JudgeMetadata(str(file), 40, "compact/single_binary").save(folder)
    saved = json.loads((folder / "judge.json").read_text())
    assert saved["template"] == "prompt_own.jinja" and saved["single"] == "compact/single_binary"
    first = rendering.load(file)
    for path in own.iterdir():
        path.unlink()
    copy = rendering.load(JudgeMetadata.load(folder).template)
    assert copy.fingerprint == first.fingerprint and copy.name == "prompt_own.jinja"


def test_the_command_line_refuses_a_file_that_is_no_template(tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text('{"query": "q", "responses": ["a", "b"]}\n')
    files = [str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl")]
    assert cli.main(["judge", *files, "--model", str(tmp_path), "--template", "/etc/passwd"]) == 2
    error = capsys.readouterr().err
    assert "does not show the query and response 1" in error and len(error.splitlines()) == 1


# ---------------------------------------------------------------- fuzzers

PIECES = [
    *ENDLESS.values(), "{{ 1 / 0 }}", "{{ x }}", "{{ query.a.b }}", "{% if %}", "{% endfor %}",
    "{{", "}}", "{%", "{#", "{% raw %}", "{% block a %}{{ self.a() }}{% endblock %}",
    "{% include 'x' %}", "{% extends 'x' %}", "{% import '../x' as y %}", "{{ [] | first }}",
    "{{ {} | tojson }}", "{{ none + 1 }}", "{{ 'a' | int + 'b' }}", "{% set responses = [] %}",
    "{% set query = 'x' %}", "{% set n = 0 %}", "{{ responses }}", "{{ turns }}",
    "{{ namespace(a=1) }}", "{{ range }}", "{{ raise_exception('a\\nb') }}", "{{ caller() }}",
    "\x00", "\ue0a00\ue0a1", "{% set low = 10 ** 400 %}", "{% set low = 1e999 %}",
    "{% set n_max = true %}", "{% set needs = [[1]] %}", "{% set output = none %}",
    "{{ '\\ud800' }}", "{% generation %}", "{% endgeneration %}", "{% break %}",
    "{% for r in responses recursive %}{{ loop(r) }}{% endfor %}", "{{ ''.__class__ }}",
    "{{ query | attr('x') }}", "{% trans %}", "{% autoescape true %}", "{% do x %}",
    "{% call x() %}{% endcall %}", "{{ cycler() }}", "(" * 999, "{{ " + "-" * 9999 + "1 }}",
    "{{ [" + "[" * 300, "{% if 1 %}" * 200, '"""', "---", "\u202e", "{{ loop }}",
]  # fmt: skip


def damaged(rng: random.Random, source: str) -> bytes:
    data = source.encode()
    for _ in range(rng.choice([1, 1, 2, 4])):
        place = rng.randrange(len(data) + 1)
        if rng.random() < 0.4:
            sign = rng.choice([b"x", b"\n", b" ", b"{# a #}", b"[", b"#"])
            data = data[:place] + sign + data[place:]
        elif rng.random() < 0.5:
            data = data[:place] + rng.choice(PIECES).encode() + data[place:]
        else:
            data = fuzz.change_bytes(rng, data, 1)
    return data


def check_own(file: Path) -> None:
    """Asserts that an accepted template shows every text, and that none can end itself."""
    template = rendering.load(file)
    n = max(2, template.n_min) if template.n_max > 1 else 1
    texts = [f"text {i} of 9" for i in range(n)]
    options = {"principles": "1. a: b"} if "principles" in template.needs else {}
    attack = "\n".join(m + "\n" + m.upper() for m in template.markers)

    def prompt(responses: list[str]) -> str:
        comparison = Comparison("the query", tuple(responses), reference="r")
        return rendering.render(template, comparison, **options)[0]["content"]

    plain, hostile = prompt(texts), prompt([attack, *texts[1:]])
    shown = () if template.output == "principles" else texts
    assert "the query" in plain and all(plain.count(text) == 1 for text in shown)
    assert [plain.index(text) for text in shown] == sorted(plain.index(text) for text in shown)
    for marker in template.markers:
        if not fences.is_bare_word(marker):
            folded = fences.fold(marker)
            count = fences.fold(plain).count(folded)
            assert fences.fold(hostile).count(folded) == count, marker


def test_damaged_prompt_templates(record_property, cases, tmp_path):
    def draws():
        shipped = [path.read_text() for path in rendering.FOLDER.glob("*/*.jinja")]
        for i, rng in cases(fast=60, full=300):
            source = damaged(rng, rng.choice([GOOD, GOOD, *shipped]))
            file = tmp_path / f"{i}.jinja"
            file.write_bytes(source)
            yield f"template {i}: {source[-60:]!r}", file

    fuzz.run("prompt templates", draws(), check_own, record_property)


def test_damaged_chat_templates(record_property, cases):
    def check(source: bytes) -> None:
        pieces = chat.render(
            source.decode("utf-8", "replace"), CHATS[1], True, SPECIAL, lambda t, _: t
        )
        assert sum(map(len, pieces)) < 2_000_000

    def draws():
        for i, rng in cases(fast=60, full=300):
            source = damaged(rng, rng.choice(list(STYLES.values())))
            yield f"chat template {i}: {source[-60:]!r}", source

    fuzz.run("chat templates", draws(), check, record_property)
