"""Tests of the critique parser: generated documents with known scores, random text, fixed cases."""

import os
import re
from pathlib import Path

import growth
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from grm_jax.text import parse, parse_principles
from grm_jax.types import STATUSES, UNPARSED, Principle

# GRM_PARSER_EXAMPLES=100000 runs the full study; the default keeps the suite fast.
EXAMPLES = int(os.environ.get("GRM_PARSER_EXAMPLES", "1500"))
SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
    derandomize=True,
)


def box(scores, slashes="\\"):
    return f"{slashes}boxed{{{', '.join(map(str, scores))}}}"


# Prose in any script, with brackets, fractions, quotation marks and percent signs. Backslashes,
# back-ticks and tildes are added by other strategies only.
PROSE = st.text(
    st.characters(
        blacklist_characters="\\`~\r\n\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029",
        blacklist_categories=("Cs",),
    ),
    max_size=60,
).map(lambda text: text.lstrip(" \t>#*_=-") if re.match(r"[ \t>#*_=-]", text) else text)
LIKE_A_HEADING = re.compile(
    r"(?i)\W*(\d+\W*)?\W*(the\s+)?\w*\s*\w*\s*"
    r"(score|rating|best|principle|criteri|analys|critique|evaluation|comparison)"
)
SENTENCES = [
    "As shown in [1, 2] and [8, 3], the second answer is better.",
    "Response 1 gets 7/10 and Response 2 gets 3/10.",
    "The list [10, 1] is sorted; {10, 1} is a set; (10, 1) is a pair.",
    "The answer is $\\frac{10}{1}$, that is \\fbox{10, 1}.",
    "boxed{10, 1} without a backslash is nothing.",
    "回答一更好，回答二有错误。【10, 1】",
    "Ответ 1 лучше: 10, 1.",
    "الإجابة ١ أفضل من ٢",
    "\u202e10, 1\u202c \u200b\ufeff",
]
PARAGRAPH = st.one_of(
    PROSE.filter(lambda text: not LIKE_A_HEADING.match(text)), st.sampled_from(SENTENCES)
)
PRINCIPLE_HEADINGS = ["### Principles", "**Specific Criteria:**", "1. Principles", "Principles:"]
ANALYSIS_HEADINGS = ["### Analysis", "**Analysis:**", "2) Analysis", "ANALYSIS:"]
SCORE_HEADINGS = ["### Scores\n", "**Final scores:** ", "Scores: ", "3. Ratings\n"]
PRINCIPLES = "1. Accuracy (60%): the facts\n2. **Tone** (40%): polite"
ENDINGS = ["none", "wrong_count", "out_of_range", "cut_box", "cut_before"]


@st.composite
def quotations(draw):
    """A box that the text only quotes."""
    n = draw(st.integers(1, 5))
    fake = box([10] + [1] * (n - 1))
    inner = draw(st.sampled_from([fake, f"### Scores\n{fake}", f"The scores are {fake}."]))
    kind = draw(st.sampled_from(["fence", "tilde", "quote", "echo", "inline", "marks", "curly"]))
    flat = inner.replace("\n", " ").replace("### ", "")
    return {
        "fence": f"```text\n{inner}\n```",
        "tilde": f"~~~\n{inner}\n~~~",
        "quote": "\n".join(f"> {line}" for line in inner.split("\n")),
        "echo": f"[Response 1]\n{inner}\n[/Response 1]",
        "inline": f"Response 1 ends with `{flat}` in it.",
        "marks": f'It says "{flat}" at the end.',
        "curly": f"It says “{flat}” at the end.",
    }[kind]


def decoys(n):
    """Boxes without scores for n responses: (text, its status if no scores follow)."""
    items = ["٧", "५", "7 points", "1e1", "0x7", "1_0", "7 / 10 / 10", "\\sqrt{7}", "7²", "7 8"]
    wrong_counts = [count for count in range(1, 7) if count != n]
    not_numbers = [*(box([item] * n) for item in items), "\\boxed{" + "7," * n + "}"]
    no_digits = [box(["x"] * n), box(["nan"] * n), "\\boxed{}", "\\boxed{,}", "\\boxed[7, 3]"]
    return st.one_of(
        st.sampled_from(wrong_counts).map(lambda count: (box([5] * count), "wrong_count")),
        st.sampled_from(not_numbers).map(lambda text: (text, "malformed_box")),
        st.sampled_from([*no_digits, "\\boxed 7"]).map(lambda text: (text, "no_scores")),
    )


@st.composite
def bodies(draw, n, headings):
    """The text before the final scores: (text, its status, its scores)."""
    paragraphs, status, earlier = [], "no_scores", None
    if headings:
        paragraphs = [
            draw(st.sampled_from(PRINCIPLE_HEADINGS)),
            PRINCIPLES,
            draw(st.sampled_from(ANALYSIS_HEADINGS)),
        ]
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["prose", "prose", "quotation", "decoy", "real"]))
        if kind == "prose":
            paragraphs.append(draw(PARAGRAPH))
        elif kind == "quotation":
            paragraphs.append(draw(quotations()))
        elif kind == "decoy":
            text, refused = draw(decoys(n))
            paragraphs.append(text)
            if refused == "malformed_box" or status == "no_scores":
                status = refused
        else:
            earlier, status = draw(score_lists(n)), "ok"
            paragraphs.append(f"A first guess: {draw(written(earlier))}")
    return "\n\n".join(paragraphs), status, earlier if status == "ok" else None


def written(scores):
    """Forms of a box of scores that have one meaning."""
    commas = ", ".join(map(str, scores))
    wide = "，".join(map(str, scores)).translate({48 + i: 0xFF10 + i for i in range(10)})
    return st.sampled_from(
        [
            *[box(scores)] * 4,
            box([f"{score}/10" for score in scores]),
            box([f"\\text{{{score}}}" for score in scores]),
            box([f"Response {i + 1}: {score}" for i, score in enumerate(scores)]),
            f"\\boxed{{\\mathbf{{{commas}}}}}",
            f"$\\boxed {{[{commas}]}}$",
            f"\\boxed{{{wide}}}",
        ]
    )


def score_lists(n):
    return st.lists(st.integers(1, 10), min_size=n, max_size=n)


@st.composite
def documents(draw):
    """(text, n, finish, expected status, expected scores) of a generated critique."""
    n = draw(st.integers(1, 5))
    headings = draw(st.booleans())
    body, status, earlier = draw(bodies(n, headings))
    slashes = draw(st.sampled_from(["\\", "\\\\"]))
    opening = f"{body}\n\n" + (draw(st.sampled_from(SCORE_HEADINGS)) if headings else "")
    # An unfinished text counts as truncated. In any other text without final scores, the last
    # earlier box with n numbers counts, unless a box follows that cannot be parsed, or a section.
    fallback = (status, None if earlier is None else tuple(map(float, earlier)))

    ending = draw(st.sampled_from(["ok"] * 3 + ENDINGS))
    if ending == "ok":
        scores = draw(score_lists(n))
        tail = draw(st.sampled_from(["", ".", "\n", "**", "\n\nThat is all."]))
        words_follow = not headings and tail == "\n\nThat is all."
        finish = draw(st.sampled_from(["stop", None] if words_follow else ["stop", "length", None]))
        final = draw(st.one_of(st.just(box(scores, slashes)), written(scores)))
        text = opening + final + tail
        return text, n, finish, "ok", tuple(map(float, scores))
    if ending == "out_of_range":
        scores = draw(score_lists(n))
        wrong_score = draw(st.sampled_from([0, 11, -3, 100, 10.5, 0.5, 99999]))
        scores[draw(st.integers(0, n - 1))] = wrong_score
        return opening + box(scores, slashes), n, "stop", "out_of_range", None
    if ending == "none":
        finish = draw(st.sampled_from(["stop", None]))
        return body + "\n\nNothing more.", n, finish, *fallback
    if ending == "wrong_count":
        count = draw(st.sampled_from([count for count in range(1, 7) if count != n]))
        kept = not headings and status != "no_scores"
        expected = fallback if kept else ("wrong_count", None)
        return opening + box([5] * count, slashes), n, "stop", *expected
    if ending == "cut_box":
        complete = box(draw(score_lists(n)), slashes)
        cut = max(draw(st.integers(2, len(complete) - 1)), len(slashes) + 1)
        finish = draw(st.sampled_from(["length", None]))
        return opening + complete[:cut], n, finish, "truncated", None
    return body + "\n\nAnd so the first respon", n, "length", "truncated", None


@SETTINGS
@given(documents())
def test_parses_generated_documents(document):
    text, n, finish, status, scores = document
    critique = parse(text, n, finish=finish)
    assert (critique.status, critique.scores) == (status, scores)
    assert critique.order == tuple(range(n))


FRAGMENTS = [
    "\\boxed{", "\\boxed{10, 1}", "\\\\boxed{3}", "}", "{", "```\n", "`", '"', "> ", "\n", "“",
    "### Scores\n", "Scores:", "Analysis:\n", "[Response 1]", "[/Response 1]", "1. a (50%): b\n",
    "%", "(", "\\", "٧", "７", "\ud800", "\x00", "\u2028", "9" * 400, ", ",
]  # fmt: skip
RANDOM_TEXT = st.lists(
    st.one_of(st.text(max_size=20), st.sampled_from(FRAGMENTS)), max_size=25
).map("".join)
PLAIN_NUMBER = re.compile(r"\s*\+?[0-9]+(\.[0-9]+)?\s*")


@SETTINGS
@given(RANDOM_TEXT, st.integers(1, 4), st.sampled_from(["stop", "length", None]))
def test_random_text_never_raises_and_yields_no_invented_score(text, n, finish):
    critique = parse(text, n, finish=finish)
    assert critique.status in STATUSES
    assert (critique.scores is not None) == (critique.status == "ok")
    if critique.scores is not None:
        assert len(critique.scores) == n and all(1 <= score <= 10 for score in critique.scores)
        boxes = re.findall(r"\\boxed[ \t]*\{([0-9., \t\n+]+)\}", text)
        items = [inner.split(",") for inner in boxes]
        numbers = [list(map(float, row)) for row in items if all(map(PLAIN_NUMBER.fullmatch, row))]
        assert list(critique.scores) in numbers


SECTION = "### Scores\n"
FENCED = "```\n\\boxed{8, 3}\n```"
QUOTED_CLAIM = SECTION + "\\boxed{3, 8}\nIts claim `\\boxed{10, 1}` is ignored."
REMARKS = SECTION + "\\boxed{7}\n\nFurther remarks, without an en"
OTHER_FENCED = "\n```\n\\boxed{1, 3}\n```"


@pytest.mark.parametrize(
    "text, n, finish, status, scores",
    [
        ("\\boxed{8, 3}", 2, "stop", "ok", (8, 3)),
        ("\\boxed{8, 3} and \\boxed{2, 9}", 2, "stop", "ok", (2, 9)),
        ("\\boxed{2, 9} of \\boxed{4}", 2, "stop", "ok", (2, 9)),
        ("\\boxed{\\boxed{8, 3}}", 2, "stop", "ok", (8, 3)),
        (FENCED, 2, "stop", "no_scores", None),
        (SECTION + FENCED, 2, "stop", "ok", (8, 3)),
        (SECTION + FENCED + OTHER_FENCED, 2, "stop", "malformed_section", None),
        (QUOTED_CLAIM, 2, "stop", "ok", (3, 8)),
        ("the answer \\boxed{7} was wrong, so", 1, "length", "truncated", None),
        ("the answer \\boxed{7}", 1, "length", "ok", (7,)),
        (REMARKS, 1, "length", "ok", (7,)),
        ("```\nnever closed \\boxed{10, 1}", 2, "stop", "no_scores", None),
        ("\\boxed{7.5, 3}", 2, "stop", "ok", (7.5, 3)),
        ("\\boxed{8\n, 3}", 2, "stop", "ok", (8, 3)),
        ("", 2, "stop", "no_scores", None),
        ("", 2, "length", "truncated", None),
    ],
)
def test_status_and_scores(text, n, finish, status, scores):
    critique = parse(text, n, finish=finish)
    assert (critique.status, critique.scores) == (status, scores)


@pytest.mark.parametrize(
    "text, status, scores",
    [
        ("\\boxed{1}", "ok", (1,)),
        ("\\boxed{0}", "ok", (0,)),
        ("\\boxed{0.5}", "out_of_range", None),
    ],
)
def test_binary_scale_accepts_only_0_and_1(text, status, scores):
    critique = parse(text, 1, low=0, high=1)
    assert (critique.status, critique.scores) == (status, scores)


@pytest.mark.parametrize(
    "text, status, scores",
    [
        ("### Best\n\\boxed{2}", "ok", (0, 1, 0)),
        ("\\boxed{4}", "out_of_range", None),
        ("\\boxed{1.5}", "out_of_range", None),
        ("\\boxed{1, 2}", "wrong_count", None),
        ("The best response is Response 2: \\boxed{2}", "ok", (0, 1, 0)),
        ("### Response 3\nIt is short.\n\nSo the best is \\boxed{2}", "ok", (0, 1, 0)),
        ("Response 1: \\boxed{42}\nResponse 2: \\boxed{7}\n\nBest: \\boxed{1}", "ok", (1, 0, 0)),
        ("Response 1 gets $\\boxed{42}$.\n\nThe better one is \\boxed{2}", "ok", (0, 1, 0)),
        ("### Best\nResponse 1: \\boxed{2}\nResponse 2: \\boxed{9}", "wrong_labels", None),
        ("Response 1: \\boxed{2}\nResponse 3: \\boxed{1}", "wrong_labels", None),
        ("### Best\nResponse 1: \\boxed{2}", "wrong_labels", None),
        ("The best is Response 3.\n\nScore: \\boxed{2/10}", "wrong_scale", None),
    ],
)
def test_choice_scores_the_chosen_response_1(text, status, scores):
    critique = parse(text, 3, output="choice")
    assert (critique.status, critique.scores) == (status, scores)


FACTS = "the facts are right"


@pytest.mark.parametrize(
    "line, principle",
    [
        (f"1. Accuracy (60%): {FACTS}", Principle("Accuracy", 60, FACTS)),
        (f"- **Accuracy (60%)**: {FACTS}", Principle("Accuracy", 60, FACTS)),
        (f"2) **Accuracy** (Weight: 60%) - {FACTS}", Principle("Accuracy", 60, FACTS)),
        (f"* Accuracy: {FACTS} (60%)", Principle("Accuracy", 60, FACTS)),
        ("Accuracy, weight 12.5%: facts", Principle("Accuracy", 12.5, "facts")),
        (f"1. Accuracy: {FACTS}", Principle("Accuracy", None, FACTS)),
        ("3. 正确性（40%）：事实正确", Principle("正确性", 40, "事实正确")),
        ("- Accuracy – 60% – facts", Principle("Accuracy", 60, "facts")),
        (
            "1. Accuracy: at least 95% of the facts are right (40%)",
            Principle("Accuracy", 40.0, "at least 95% of the facts are right"),
        ),
        ("2. Tone (33.333%): it is kind", Principle("Tone", 33.333, "it is kind")),
        ("- Brevity 30%: short (20%)", Principle("Brevity", 30.0, "short (20%)")),
        (
            "1. Clarity: 30%. The answer is whole (100% of the parts).",
            Principle("Clarity", 30.0, ". The answer is whole (100% of the parts)."),
        ),
    ],
)
def test_parses_a_line_with_a_principle(line, principle):
    assert parse_principles(line) == (principle,)


def test_principles_may_span_lines_and_end_at_the_analysis():
    text = (
        "### Principles\n1. Accuracy (60%): the facts\n   are right\n2. Tone (40%): polite\n\n"
        "### Analysis\n1. Response 1: 50% of it is wrong.\n\n### Scores\n\\boxed{3}"
    )
    critique = parse(text, 1)
    assert critique.principles == (
        Principle("Accuracy", 60, FACTS),
        Principle("Tone", 40, "polite"),
    )
    assert critique.analysis == "1. Response 1: 50% of it is wrong."


# Fragments that would make a backtracking parser slow when they are repeated.
REPEATED = (
    "\\boxed{", "`", "> \n", "1. a (5%) ", '"', "“", "` `` ", "[ ", "Scores ", "1. ",
    "[Response 1]", "# ", "9", " ", "1, ",
)  # fmt: skip


@pytest.mark.parametrize("fragment", REPEATED)
def test_time_is_linear_in_the_length(fragment):
    growth.check_linear(lambda count: parse("\\boxed{" + fragment * count, 2), 60_000)


def test_every_status_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "judging.md").read_text()
    assert re.findall(r"^\| `(\w+)` \| ", page.partition("| status |")[2], re.M) == list(UNPARSED)


@pytest.mark.parametrize(
    "line, scores",
    [
        (r"Response 2, Response 1: \boxed{8, 3}", None),
        (r"**Response B and Response A**: $\boxed{8, 3}$", None),
        (r"Since Response 2 is worse than Response 1: \boxed{8, 3}", (8.0, 3.0)),
        (r"Response 1, Response 2: \boxed{8, 3}", (8.0, 3.0)),
        (r"Response 2 is worse: \boxed{8, 3}", (8.0, 3.0)),
        (r"\boxed{8, 3} for Response 2 and Response 1 respectively", None),
        (r"\boxed{8, 3} (Response 2, Response 1)", None),
        (r"\boxed{8, 3} for Response 1 and Response 2 respectively", (8.0, 3.0)),
        (r"\boxed{8, 3}, because Response 2 repeats Response 1", (8.0, 3.0)),
        ("Response 2, Response 1:\n\\boxed{8, 3}", None),
        ("Response 2 / Response 1\n8/10, 3/10", None),
        ("Response 1 / Response 2\n8/10, 3/10", (8.0, 3.0)),
        ("There is little between Response 2 and Response 1\n\\boxed{8, 3}", (8.0, 3.0)),
        ("Ranking (highest score first): Response 2, Response 1\n\\boxed{6, 8}", (6.0, 8.0)),
        ("Most to least accurate: Response 2, Response 1\n\\boxed{6, 8}", (6.0, 8.0)),
        ("After comparing Response 2 and Response 1:\n\\boxed{3, 8}", (3.0, 8.0)),
        (r"\boxed{7, 7} (Response 2 and Response 1 tie)", (7.0, 7.0)),
        (r"Response 2, Response 1: \boxed{7, 7}", (7.0, 7.0)),
        (r"\boxed{6, 8} — Response 2 and Response 1 differ in accuracy.", (6.0, 8.0)),
    ],
)
def test_a_box_below_labels_in_another_order_gives_no_scores(line, scores):
    critique = parse(f"### Scores\n{line}", 2)
    assert critique.scores == scores
    assert critique.status == ("ok" if scores else "wrong_labels")


@pytest.mark.parametrize("heading", ["Scores for Response {} and Response {}", "Scores ({}, {})"])
def test_a_heading_that_names_the_responses_in_another_order_gives_no_scores(heading):
    names = ("Response 1", "Response 2") if "Response" not in heading else (1, 2)
    swapped, same = heading.format(*reversed(names)), heading.format(*names)
    assert parse(f"### {swapped}\n\\boxed{{8, 3}}", 2).status == "wrong_labels"
    assert parse(f"### {same}\n\\boxed{{8, 3}}", 2).scores == (8.0, 3.0)
