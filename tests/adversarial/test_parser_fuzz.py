"""Fuzzers of the critique parser: generated critiques, random fragments, long texts."""

import itertools
import random

import critiques
import fuzz
import growth
from hypothesis import HealthCheck, given, settings, strategies as st

from grm_jax.text import parse
from grm_jax.text.parse import find_box
from grm_jax.types import STATUSES

SETTINGS = settings(
    max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


def check_critique(case: critiques.Case) -> None:
    """The verdict is the expected one, whatever is quoted after it or thought before it."""
    text, n = case.text, case.n
    critique = parse(text, n)
    assert (critique.status, critique.scores) == (case.status, case.scores), repr(text)
    assert parse(text, n, finish="length").scores in (critique.scores, None), repr(text)
    rng = random.Random(text)
    if critique.scores is not None:
        box = find_box(text, n)
        assert box is None or box.values == critique.scores, repr(text)
        assert parse(f"{text}\n\n{critiques.quotation(rng, n)}", n).scores == critique.scores
    if critique.status != "no_scores":
        thought = critiques.body(rng, n)[0].replace("<think>", "").replace("</think>", "")
        thinking = f"<think>\n{thought}\n### Scores\n{critiques.box([9] * n)}\n</think>\n"
        assert parse(thinking + text, n).scores == critique.scores, repr(thinking + text)


@SETTINGS
@given(st.randoms(use_true_random=False))
def test_generated_critiques(rng):
    check_critique(critiques.draw(rng))


def test_many_generated_critiques(record_property, cases):
    draws = ((f"critique {i}", critiques.draw(rng)) for i, rng in cases(2000, 100_000))
    fuzz.run("critiques", draws, check_critique, record_property)


FRAGMENTS = (
    "\\boxed{", "\\boxed{10, 1}", "\\\\boxed{3}", "\\boxed{8/10}", "\\boxed{Response 1: 8}", "}",
    "{", "```\n", "~~~", "`", '"', "'", "“", "”", "> ", "\n", "\n\n", "    ", "### Scores\n",
    "**Scores:** ", "# a\n", "Analysis:\n", "### Response 1\n", "Response 1: 8\n",
    "Response 2: 3/10\n", "Score: 8/10\n", "[Response 1]", "[/Response 1]", "1. a (50%): b\n",
    "<think>", "</think>", "<code>", "</code>", "<!--", "-->", "<|channel|>final", "analysisWe",
    "assistantfinal", "%", "(", "\\", "٧", "７", "，", "\ud800", "\x00", "\u2028", "9" * 400, ", ",
    "8", "10", " and ", "/10", "$", "*", "|",
)  # fmt: skip


def fragments(rng: random.Random) -> tuple[str, int]:
    texts = [
        rng.choice(FRAGMENTS) if rng.random() < 0.8 else chr(rng.randrange(0x110000))
        for _ in range(rng.randint(0, 40))
    ]
    return "".join(texts), rng.randint(1, 3)


def check_fragments(value: tuple[str, int]) -> None:
    """No text raises, and none has scores if all of it is thinking, or all of it is quoted."""
    text, n = value
    for output in ("scores", "choice"):
        for finish in (None, "length"):
            critique = parse(text, n, output=output, finish=finish)
            assert critique.status in STATUSES
            assert (critique.scores is not None) == (critique.status == "ok")
            assert critique.scores is None or len(critique.scores) == n
    for sign in ("</", "<|", "-->", "channel", "final", "unused", "thinking."):
        text = text.replace(sign, "")
    assert parse(f"<think>{text}", n).status == "unfinished_thinking", repr(text)
    assert parse(f"<think>{text}\n\n</think>", n).scores is None, repr(text)
    assert parse(f"{text}\n\n</think>", n).scores is None, repr(text)
    quoted = "\n".join(f"> {line}" for line in text.splitlines())
    assert parse(quoted, n).scores is None, repr(quoted)
    fenced = f"~~~~~~~~~~~~\n{text.replace('~', '')}\n~~~~~~~~~~~~\nSo it goes."
    assert parse(fenced, n).scores is None, repr(fenced)


def test_random_fragments(record_property, cases):
    draws = ((f"text {i}", fragments(rng)) for i, rng in cases(400, 20_000))
    fuzz.run("fragments", draws, check_fragments, record_property)


SIGNS = (
    "\\{}`~>#*_=-\"“”„«»‹›「」『』‘’'</|[]():：,，;.09９aRé分%$&+!?【】◁▷＜⟨•–— "
    "\t\n\r\u200b\u3000\u2028\x00"
)
REPEATED = (
    *SIGNS, "\\boxed{8}", "\\boxed{8, 3}", "\\boxed{\\text{", "\\frac{8}{10}", "` `` ", "``a''",
    "> a\n", "- > a\n", "1. a (5%): b\n", "1. a: b\n", "a\n", "[ ", "[Response 1][/Response 1]",
    "<think>", "</think>", "<think", "<code></code>", "<!-- ", "Scores ", "Scores:\n",
    "### Response 1\n", "**Response 1**\n", "Response 1: 8\n", "Response 1: 8, ", "Response ",
    "Score: 8/10\n", "8/10\n", "### Response 1\nScore: \\boxed{3}\n", "### Analysis\n",
    "\n\n    \\boxed{8}\n", '"a\n', "“a\n", "'a ", "```\n", "1, ", "(1) ", "and ",
    "| Response 1 | 8 |\n", "the score of ", "\\boxed{" + " " * 50,
)  # fmt: skip
BEFORE = ("", "\\boxed{", "### Scores\n", "### Principles\n1. a (5%): b\n", "<think>", '"')


def check_long(pair: tuple[str, str]) -> None:
    before, repeated = pair
    text = lambda length: before + repeated * (length // len(repeated))
    growth.check_linear(lambda length: parse(text(length), 2), 100_000)


def test_time_is_linear_in_the_length(record_property, cases):
    pairs = list(itertools.product(BEFORE, REPEATED))
    random.Random(0).shuffle(pairs)
    draws = ((repr(pairs[i]), pairs[i]) for i, _ in cases(60, len(pairs)))
    fuzz.run("repeated", draws, check_long, record_property)
