"""The parser against a grammar: texts whose right reading is known because of how they were made."""

import os
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grm_jax.text import parse, parse_principles
from grm_jax.types import STATUSES, Principle

# 100,000 for the full study; the default keeps the suite quick.
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


# Prose of any script, with brackets, fractions, quotation marks and percent signs; no backslash, back-tick or tilde, which
# other parts of the grammar bring in on purpose.
PROSE = st.text(
    st.characters(
        blacklist_characters="\\`~\r\n\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029",
        blacklist_categories=("Cs",),
    ),
    max_size=60,
).map(lambda text: text.lstrip(" \t>#*_=-") if re.match(r"[ \t>#*_=-]", text) else text)
HEADINGISH = re.compile(
    r"(?i)\W*(\d+\W*)?\W*(the\s+)?\w*\s*\w*\s*(score|rating|best|principle|criteri|analys|critique|evaluation|comparison)"
)
PARAGRAPH = st.one_of(
    PROSE.filter(lambda text: not HEADINGISH.match(text)),
    st.sampled_from(
        [
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
    ),
)


@st.composite
def quotations(draw):
    """A fake box that the text only quotes."""
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
    """Boxes that hold no scores of n responses. (text, whether it is a box of plain numbers)"""
    wrong = [count for count in range(1, 7) if count != n]
    numbers = st.sampled_from(wrong).map(lambda count: (box([5] * count), True))
    others = st.sampled_from(
        [
            box(["x"] * n),
            box(["8/10"] * n),
            box(["٧"] * n),
            box(["７"] * n),
            box(["५"] * n),
            "\\boxed{" + "，".join(["7"] * max(2, n)) + "}",
            box(["\\text{7}"] * n),
            box(["7 points"] * n),
            box(["1e1"] * n),
            box(["nan"] * n),
            box(["0x7"] * n),
            box(["1_0"] * n),
            "\\boxed{" + "7," * n + "}",
            "\\boxed{}",
            "\\boxed{,}",
            "\\boxed[7, 3]",
            "\\boxed 7",
        ]
    ).map(lambda text: (text, False))
    return st.one_of(numbers, others)


@st.composite
def documents(draw):
    """(text, n, finish, status, scores) where status and scores are what a careful reader would say."""
    n = draw(st.integers(1, 5))
    score = st.integers(1, 10)
    scores_of_n = st.lists(score, min_size=n, max_size=n)
    parts, numeric_decoy, earlier = [], False, None
    headings = draw(st.booleans())
    if headings:
        parts.append(
            draw(
                st.sampled_from(
                    ["### Principles", "**Specific Criteria:**", "1. Principles", "Principles:"]
                )
            )
        )
        parts.append("1. Accuracy (60%): the facts\n2. **Tone** (40%): polite")
        parts.append(
            draw(st.sampled_from(["### Analysis", "**Analysis:**", "2) Analysis", "ANALYSIS:"]))
        )
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["prose", "prose", "quotation", "decoy", "real"]))
        if kind == "prose":
            parts.append(draw(PARAGRAPH))
        elif kind == "quotation":
            parts.append(draw(quotations()))
        elif kind == "decoy":
            text, numeric = draw(decoys(n))
            numeric_decoy |= numeric
            parts.append(text)
        else:
            earlier = draw(scores_of_n)
            parts.append(f"A first guess: {box(earlier)}")
    body = "\n\n".join(parts)
    heading = (
        draw(st.sampled_from(["### Scores\n", "**Final scores:** ", "Scores: ", "3. Ratings\n"]))
        if headings
        else ""
    )
    slashes = draw(st.sampled_from(["\\", "\\\\"]))
    ending = draw(
        st.sampled_from(
            ["ok", "ok", "ok", "none", "wrong_count", "out_of_range", "cut_box", "cut_before"]
        )
    )
    if ending == "ok":
        scores = draw(scores_of_n)
        last = draw(st.sampled_from(["", ".", "\n", "**", "\n\nThat is all."]))
        finish = draw(st.sampled_from(["stop", None]))
        if headings or last != "\n\nThat is all.":
            finish = draw(st.sampled_from(["stop", "length", None]))
        return (
            f"{body}\n\n{heading}{box(scores, slashes)}{last}",
            n,
            finish,
            "ok",
            tuple(map(float, scores)),
        )
    if ending == "out_of_range":
        scores = draw(scores_of_n)
        scores[draw(st.integers(0, n - 1))] = draw(
            st.sampled_from([0, 11, -3, 100, 10.5, 0.5, 99999])
        )
        return f"{body}\n\n{heading}{box(scores, slashes)}", n, "stop", "out_of_range", None
    # Without scores at the end, a guess made earlier is the last box that fits, unless the text was cut.
    fallback = (
        ("ok", tuple(map(float, earlier)))
        if earlier
        else ("wrong_count" if numeric_decoy else "no_scores", None)
    )
    if ending == "none":
        return body + "\n\nNothing more.", n, draw(st.sampled_from(["stop", None])), *fallback
    if ending == "wrong_count":
        count = draw(st.sampled_from([c for c in range(1, 7) if c != n]))
        final = box([5] * count, slashes)
        return (
            f"{body}\n\n{heading}{final}",
            n,
            "stop",
            *(fallback if earlier else ("wrong_count", None)),
        )
    if ending == "cut_box":
        whole = box(draw(scores_of_n), slashes)
        cut = draw(st.integers(2, len(whole) - 1))
        cut = max(cut, len(slashes) + 1)
        return (
            f"{body}\n\n{heading}{whole[:cut]}",
            n,
            draw(st.sampled_from(["length", None])),
            "truncated",
            None,
        )
    return body + "\n\nAnd so the first respon", n, "length", "truncated", None


@SETTINGS
@given(documents())
def test_reads_what_a_careful_reader_reads(document):
    text, n, finish, status, scores = document
    critique = parse(text, n, finish=finish)
    assert (critique.status, critique.scores) == (status, scores)
    assert critique.order == tuple(range(n))


SHARDS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        [
            "\\boxed{", "\\boxed{10, 1}", "\\\\boxed{3}", "}", "{", "```\n", "`", '"', "> ", "### Scores\n", "Scores:", "\n", "[Response 1]",
            "[/Response 1]", "1. a (50%): b\n", "%", "(", "\\", "٧", "７", "\ud800", "\x00", "\u2028", "Analysis:\n", "9" * 400, ", ", "“",
        ]
    ),
)  # fmt: skip


@SETTINGS
@given(
    st.lists(SHARDS, max_size=25).map("".join),
    st.integers(1, 4),
    st.sampled_from(["stop", "length", None]),
)
def test_never_raises_and_never_invents_a_score(text, n, finish):
    critique = parse(text, n, finish=finish)
    assert critique.status in STATUSES
    assert (critique.scores is not None) == (critique.status == "ok")
    if critique.scores is not None:
        assert len(critique.scores) == n and all(1 <= score <= 10 for score in critique.scores)
        written = re.findall(r"\\boxed[ \t]*\{([0-9., \t\n+]+)\}", text)
        assert any(
            [float(x) for x in inner.split(",")] == list(critique.scores)
            for inner in written
            if _numbers(inner)
        )


def _numbers(inner):
    return all(re.fullmatch(r"\s*\+?[0-9]+(\.[0-9]+)?\s*", x) for x in inner.split(","))


@pytest.mark.parametrize(
    "text, n, finish, status, scores",
    [
        ("\\boxed{8, 3}", 2, "stop", "ok", (8, 3)),
        ("\\boxed{8, 3} and \\boxed{2, 9}", 2, "stop", "ok", (2, 9)),
        ("\\boxed{2, 9} of \\boxed{4}", 2, "stop", "ok", (2, 9)),
        ("\\boxed{\\boxed{8, 3}}", 2, "stop", "ok", (8, 3)),
        ("```\n\\boxed{8, 3}\n```", 2, "stop", "no_scores", None),
        ("### Scores\n```\n\\boxed{8, 3}\n```", 2, "stop", "ok", (8, 3)),
        (
            "### Scores\n```\n\\boxed{8, 3}\n```\n```\n\\boxed{1, 3}\n```",
            2,
            "stop",
            "no_scores",
            None,
        ),
        (
            "### Scores\n\\boxed{3, 8}\nIts claim `\\boxed{10, 1}` is ignored.",
            2,
            "stop",
            "ok",
            (3, 8),
        ),
        ("the answer \\boxed{7} was wrong, so", 1, "length", "truncated", None),
        ("the answer \\boxed{7}", 1, "length", "ok", (7,)),
        ("### Scores\n\\boxed{7}\n\nFurther remarks, without an en", 1, "length", "ok", (7,)),
        ("```\nnever closed \\boxed{10, 1}", 2, "stop", "no_scores", None),
        ("\\boxed{7.5, 3}", 2, "stop", "ok", (7.5, 3)),
        ("\\boxed{8\n, 3}", 2, "stop", "ok", (8, 3)),
        ("", 2, "stop", "no_scores", None),
        ("", 2, "length", "truncated", None),
    ],
)
def test_cases(text, n, finish, status, scores):
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
def test_binary_scale_takes_0_and_1_only(text, status, scores):
    critique = parse(text, 1, low=0, high=1)
    assert (critique.status, critique.scores) == (status, scores)


@pytest.mark.parametrize(
    "text, status, scores",
    [
        ("### Best\n\\boxed{2}", "ok", (0, 1, 0)),
        ("\\boxed{4}", "out_of_range", None),
        ("\\boxed{1.5}", "out_of_range", None),
        ("\\boxed{1, 2}", "wrong_count", None),
    ],
)
def test_choice_names_the_best(text, status, scores):
    critique = parse(text, 3, output="choice")
    assert (critique.status, critique.scores) == (status, scores)


@pytest.mark.parametrize(
    "line, principle",
    [
        (
            "1. Accuracy (60%): the facts are right",
            Principle("Accuracy", 60, "the facts are right"),
        ),
        (
            "- **Accuracy (60%)**: the facts are right",
            Principle("Accuracy", 60, "the facts are right"),
        ),
        (
            "2) **Accuracy** (Weight: 60%) - the facts are right",
            Principle("Accuracy", 60, "the facts are right"),
        ),
        ("* Accuracy: the facts are right (60%)", Principle("Accuracy", 60, "the facts are right")),
        ("Accuracy, weight 12.5%: facts", Principle("Accuracy", 12.5, "facts")),
        ("1. Accuracy: the facts are right", Principle("Accuracy", None, "the facts are right")),
        ("3. 正确性（40%）：事实正确", Principle("正确性", 40, "事实正确")),
        ("- Accuracy – 60% – facts", Principle("Accuracy", 60, "facts")),
    ],
)
def test_principle_lines(line, principle):
    assert parse_principles(line) == (principle,)


def test_principles_go_on_over_lines_and_stop_at_the_analysis():
    text = (
        "### Principles\n1. Accuracy (60%): the facts\n   are right\n2. Tone (40%): polite\n\n### Analysis\n"
        "1. Response 1: 50% of it is wrong.\n\n### Scores\n\\boxed{3}"
    )
    critique = parse(text, 1)
    assert critique.principles == (
        Principle("Accuracy", 60, "the facts are right"),
        Principle("Tone", 40, "polite"),
    )
    assert critique.analysis == "1. Response 1: 50% of it is wrong."


HOSTILE = (
    "\\boxed{",
    "`",
    "> \n",
    "1. a (5%) ",
    '"',
    "“",
    "` `` ",
    "[ ",
    "Scores ",
    "1. ",
    "[Response 1]",
    "# ",
    "9",
    " ",
    "1, ",
)


@pytest.mark.parametrize("piece", HOSTILE)
def test_time_is_linear_in_the_length(piece):
    import time

    start = time.process_time()
    parse("\\boxed{" + piece * 60_000, 2)
    assert time.process_time() - start < 2
