"""Forms of a list of principles that a judge may write, and their limits."""

import growth
import pytest

from grm_jax.text import parse, parse_principles, rendering
from grm_jax.types import Principle

LONG = "The response must do all of what the user asks for, in the form that was asked for" + (
    ", and it must not add anything else to it"
)
FORMAT = Principle("Ratio 16:9", 40, "the format")


@pytest.mark.parametrize(
    "line, principle",
    [
        (f"2. {LONG} (50%)", Principle(LONG, 50)),
        (f"2. {LONG} (50%): yes", Principle(LONG, 50, "yes")),
        (f"2. {LONG}: yes (50%)", Principle(LONG, 50, "yes")),
        (f"2. {LONG}: yes", Principle(LONG, None, "yes")),
        (f"2. {LONG * 5} (50%)", Principle(LONG * 5, 50)),
        ("1. Accuracy (Weight: 40): facts", Principle("Accuracy", 40, "facts")),
        ("**Accuracy** [weight = 40/100]: facts", Principle("Accuracy", 40, "facts")),
        ("- Accuracy (weight 0.4) - facts", Principle("Accuracy", 40, "facts")),
        ("1. 正确性（权重：40%）：事实", Principle("正确性", 40, "事实")),
        ("1. Ratio 16:9 (40%): the format", FORMAT),
        ("1. Ratio 16:9: the format (40%)", FORMAT),
        ("1. Voice: its tone (40%): kind", Principle("Voice: its tone", 40, "kind")),
        ("1. Voice: its tone (40%) - kind", Principle("Voice", 40, "its tone - kind")),
        ("#### 1. Accuracy (40%)\nfacts", Principle("Accuracy", 40, "facts")),
        ("### Accuracy (40%)\nfacts", Principle("Accuracy", 40, "facts")),
        ("### Principle 1: Accuracy (40%)\nfacts", Principle("Accuracy", 40, "facts")),
        ("**1. Accuracy (40%)**: facts", Principle("Accuracy", 40, "facts")),
    ],
)
def test_common_forms_of_a_principle(line, principle):
    first = Principle("Tone", 50, "kind")
    assert parse_principles(f"1. Tone (50%): kind\n{line}") == (first, principle)
    assert parse_principles(rendering.principles_text((first, principle))) == (first, principle)


@pytest.mark.parametrize(
    "line", [f"   - about 95% of it. {LONG}", f"{LONG} (50%)", "## 2. Notes: x", f"- {LONG}: yes"]
)
def test_other_lines_state_no_principle(line):
    (principle,) = parse_principles(f"1. Tone (50%): kind\n{line}")
    assert (principle.name, principle.weight) == ("Tone", 50)


END = "\n\n### Analysis\nok\n\n### Scores\n\\boxed{8, 3}"


@pytest.mark.parametrize(
    "principles, names",
    [
        (
            "1. **Accuracy**: facts (30%)\n2. **Analysis**: depth (30%)\n3. **Tone**: kind (40%)",
            "Accuracy Analysis Tone",
        ),
        ("1. Analysis: a (20%)\n2. Comparison: b (20%)", "Analysis Comparison"),
        ("- Tone: kind (70%)\n- **Evaluation**: fair (30%)", "Tone Evaluation"),
    ],
)
def test_a_principle_may_have_the_name_of_a_section(principles, names):
    critique = parse(f"### Principles\n{principles}{END}", 2)
    assert [principle.name for principle in critique.principles] == names.split()
    assert (critique.analysis, critique.scores) == ("ok", (8, 3))


@pytest.mark.parametrize(
    "text",
    [
        "1. Principles: Tone (50%)\n2. Analysis: ok\n3. Scores: \\boxed{8, 3}",
        "1. Tone (50%): x\n\n2. **Analysis**: ok\n3. **Comparison**: ok\n4. Scores: \\boxed{8, 3}",
        "1. Tone (50%): x\n\nok, it wins the main criterion (weight 40).\n\n\\boxed{8, 3}",
        "### Principles\n1. Tone (50%): x\n2. Analysis: ok\n3. Scores: \\boxed{8, 3}",
        "### Principles\n1. Tone (50%): x\n2) Analysis\nok\n3) Scores\n\\boxed{8, 3}",
        "1. Tone (50%): x\nAnalysis: ok\n\\boxed{8, 3} (100%)",
    ],
)
def test_a_numbered_section_is_no_principle(text):
    critique = parse(text, 2)
    assert [principle.name for principle in critique.principles] == ["Tone"]
    assert critique.analysis.startswith("ok")


@pytest.mark.parametrize(
    "repeated",
    [
        "1. a (weight: ", "weight", "weight \t", "(weight 4", "2. Analysis: a\n",
        "1:2", "#### 1. a (5%)\n", "1. Analysis: (3%)\n2. a: b\n", "** ", "# ",
        "1. a: (5%) ", f"1. {LONG}\n", "(5%)",
    ],
)  # fmt: skip
@pytest.mark.parametrize("before", ["", "### Principles\n1. "])
def test_time_is_linear_in_the_length(before, repeated):
    def work(length: int) -> None:
        text = before + repeated * (length // len(repeated))
        parse_principles(text)
        parse(text, 2)

    growth.check_linear(work, 60_000)
