"""Critiques in all forms that models write, with quotations, thinking and injections in them."""

import numpy as np
import pytest

from grm_jax.evals import measure
from grm_jax.evals.judged import JudgedComparison
from grm_jax.judging import codec, votes
from grm_jax.judging.summary import summarise, unparsed_text
from grm_jax.text import parse
from grm_jax.text.parse import find_box
from grm_jax.training import grpo, rft_data, rollouts
from grm_jax.types import STATUSES, UNPARSED, Comparison

SCORES = "### Scores\n"
OPEN_CODE = "<think>\n```\ncode\n</think>\n"
QUALITY = "### Response 1\nGood.\n\n{}\n\n### Response 2\nBad.\n\n{}"


@pytest.mark.parametrize("title", ["Scores", "Final scores", "Score", "Ratings", "The Final Score"])
@pytest.mark.parametrize(
    "markup",
    ["# {}", "## {}:", "### **{}**", "#### 3. {}", "###### {} ######", "**{}**", "**{}:**", "{}:",
     "3. {}", "(3) {}:", "**3. {}**", "__{}__", "III. {}", "<h3>{}</h3>", "### {} (1-10)",
     "Step 3: {}", "{}\n======", "*{}*", "### {}\r"],
)  # fmt: skip
def test_a_scores_section_decides_alone(markup, title):
    heading = markup.format(title)
    before = "### Analysis\nPerhaps \\boxed{9, 2}.\n\n" + heading
    labelled = f"{before}\nResponse 1: \\boxed{{3}}\nResponse 2: \\boxed{{8}}"
    assert parse(labelled, 2).scores == (3, 8)
    assert parse(f"{before}\n\\boxed{{3, 8}}", 2).scores == (3, 8)
    assert parse(f"{before}\nBoth are fine.", 2).status == "malformed_section"
    assert parse(f"{before}\n\\boxed{{3}}", 2).status == "wrong_count"


@pytest.mark.parametrize(
    "opening, closing",
    [
        ("<think>", "</think>"),
        ("<thinking>\n", "\n</thinking>"),
        ("<Reasoning>", "</Reasoning>"),
        ("<thought>", "</thought>"),
        ("< think >", "</ think >"),
        ("<|begin_of_thought|>", "<|end_of_thought|>"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<seed:think>", "</seed:think>"),
        ("<chain-of-thought>", "</chain-of-thought>"),
        ('<think type="slow">', "</think>"),
        ("[THINK]", "[/THINK]"),
        ("◁think▷", "◁/think▷"),
        ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
        ("analysisWe need this.", "assistantfinal"),
        ("<|channel>thought\n", "<channel|>"),
        ("<unused94>thought\n", "<unused95>"),
    ],
)
def test_scores_in_the_thinking_do_not_count(opening, closing):
    guess = "### Principles\n1. Speed (100%): fast\n\n### Scores\n\\boxed{8, 2}\n"
    verdict = (
        "### Principles\n1. Facts (100%): right\n\n### Analysis\nok\n\n### Scores\n\\boxed{3, 8}"
    )
    thinking = f"{opening}{guess}{closing}"
    for text in (thinking, thinking + "\n\n", thinking + "\nSo much for that."):
        assert parse(text, 2).status == "only_thinking"
    assert parse(opening + guess, 2).status == "unfinished_thinking"
    if closing != "assistantfinal":  # whose opening is the first word
        assert parse(thinking + opening + guess, 2).status == "unfinished_thinking"
        assert parse(verdict + "\n" + opening + guess, 2).status == "unfinished_thinking"
    assert parse(guess + closing, 2).status == "only_thinking"  # the template opened it
    for before in (thinking, guess + closing, thinking + thinking, opening + thinking,
                   opening + thinking + guess + closing):  # fmt: skip
        critique = parse(f"{before}\n\n{verdict}", 2)
        assert critique.scores == (3, 8)
        assert [p.name for p in critique.principles] == ["Facts"] and critique.analysis == "ok"


@pytest.mark.parametrize(
    "text, scores",
    [
        ("It wraps `<think>...</think>` around it. \\boxed{8, 3}", (8, 3)),
        ("\\boxed{8, 3}\nResponse 2 contains a stray `</think>`.", (8, 3)),
        ('It starts with "<think>" and ends there. \\boxed{8, 3}', (8, 3)),
        ("```\n<think>\n\\boxed{1, 9}\n</think>\n```\n\\boxed{8, 3}", (8, 3)),
        ("> <think>\n> \\boxed{1, 9}\n\n\\boxed{8, 3}", (8, 3)),
        ("[Response 1]\n<think>a</think>\n[/Response 1]\n\\boxed{8, 3}", (8, 3)),
        (OPEN_CODE + "### Scores\n\\boxed{8, 3}", (8, 3)),
        (OPEN_CODE + "```\n\\boxed{1, 9}\n```\n\\boxed{8, 3}", (8, 3)),
        ("a <b>thinker</b> \\boxed{8, 3}", (8, 3)),
        ("It returns List<Thought>. \\boxed{8, 3}", (8, 3)),
        ("Response 1 uses a <draft> element. \\boxed{8, 3}", (8, 3)),
        ('<think>\nIt says "</think> \\boxed{1, 9}".\n</think>\n\\boxed{8, 3}', (8, 3)),
        ('<think>\nIt says "</think> \\boxed{1, 9}". Strange', None),
        ("\\boxed{8, 3}\n\n```\n</think>\n```\nis all that Response 2 has.", (8, 3)),
    ],
)
def test_a_tag_in_a_quotation_is_a_mention(text, scores):
    assert parse(text, 2).scores == scores


@pytest.mark.parametrize(
    "quoted",
    ["»{}«", "›{}‹", "″{}″", "＂{}＂", "‛{}’", "‚{}‘", "〝{}〞", "`{}´", "《{}》", "〈{}〉", "｢{}｣",
     "<answer_2>{}</answer_2>", "<assistant-b>{}</assistant-b>", "\\verb|{}|",
     "\\begin{{verbatim}}\n{}\n\\end{{verbatim}}", "\\begin{{quote}}{}\\end{{quote}}",
     "[The Start of Assistant B's Answer]\n{}\n[The End of Assistant B's Answer]",
     "[Answer 2]\n{}\n[/Answer 2]", 'the 24" screen of "{}"',
     '"first,\n{}\nlast"', "\n\n    {}\n\n"],
)  # fmt: skip
def test_a_box_in_a_quotation_of_any_form_is_no_score(quoted):
    text = "Response 2 has " + quoted.format("\\boxed{1, 9}")
    assert parse(text + " in it.", 2).status == "no_scores"
    assert parse(f"{text} in it.\n\n\\boxed{{8, 3}}", 2).scores == (8, 3)


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{\\text{8, 3}}",
        "\\boxed{\\text{8}, \\text{3}}",
        "\\boxed{\\mathbf{8}, \\mathbf{3}}",
        "\\boxed{\\textbf{Response 1: 8, Response 2: 3}}",
        "\\boxed{8/10, 3/10}",
        "\\boxed{8 / 10, 3 / 10}",
        "\\boxed{8 out of 10, 3 out of 10}",
        "\\boxed{\\frac{8}{10}, \\frac{3}{10}}",
        "\\boxed{8, 3}/10",
        "\\boxed{8，3}",
        "\\boxed{８，３}",
        "\\boxed{8、3}",
        "\\boxed{8; 3}",
        "\\boxed{8 and 3}",
        "\\boxed{[8, 3]}",
        "\\boxed{(8, 3)}",
        "\\boxed{\\{8, 3\\}}",
        "\\boxed{\\left[8, 3\\right]}",
        "\\boxed{8,\\ 3}",
        "\\boxed{**8**, **3**}",
        "\\boxed{Response 1: 8, Response 2: 3}",
        "\\boxed{Response 2: 3, Response 1: 8}",
        "\\boxed{\\text{Response 1: } 8, \\text{Response 2: } 3}",
        "\\boxed{1: 8, 2: 3}",
        "\\boxed{s_1 = 8, s_2 = 3}",
        "\\boxed{s_{1}=8, s_{2}=3}",
        "\\boxed{回答1：8，回答2：3}",
        "$\\boxed{8, 3}$",
        "$$\\boxed{8, 3}$$",
        "\\[\n    \\boxed{8, 3}\n\\]",
        "\\boxed {8, 3}",
        "\\boxed{\n8,\n3\n}",
        "\\\\boxed{8, 3}",
        "**\\boxed{8, 3}**",
        "Response 1: \\boxed{8}\nResponse 2: \\boxed{3}",
        "Response 1: \\boxed{8}, Response 2: \\boxed{3}",
        "- **Response 2**: $\\boxed{3}$\n- **Response 1**: $\\boxed{8}$",
        "Score for Response 1: \\boxed{8/10}\nScore for Response 2: \\boxed{3/10}",
        "| Response 1 | \\boxed{8} |\n| Response 2 | \\boxed{3} |",
        "\\boxed{Response 1: 8}\n\\boxed{Response 2: 3}",
        "Perhaps \\boxed{2, 9}.\n\nResponse 1: \\boxed{8}\nResponse 2: \\boxed{3}",
        QUALITY.format("\\boxed{8}", "\\boxed{3}"),
        QUALITY.format("**Score:** \\boxed{8}", "**Score:** \\boxed{3}"),
        QUALITY.format("#### Score\n\\boxed{8}", "#### Score\n\\boxed{3}"),
        QUALITY.format("Score: 8/10", "Score: 3/10"),
        QUALITY.format("> ### Response 2\n\n\\boxed{8}", "\\boxed{3}"),
        QUALITY.replace("###", "##").replace("1", "2", 1).replace("2\nB", "1\nB").format(
            "\\boxed{3}", "\\boxed{8}"
        ),
        "**Response 1**\nGood.\n\\boxed{8}\n\n**Response 2**\nBad.\n\\boxed{3}",
        SCORES + "#### Response 1\n\\boxed{8}\n#### Response 2\n\\boxed{3}",
        SCORES + "\\boxed{8}, \\boxed{3}",
        SCORES + "**Response 1: 8/10**\n**Response 2: 3/10**",
        SCORES + "Response 1: 8\nResponse 2: 3",
        SCORES + "Response 2: 3\nResponse 1: 8",
        SCORES + "Response 1：8\nResponse 2：３",
        SCORES + "1. Response 1: 8 - better than Response 2\n2. Response 2: 3 (wrong)",
        SCORES + "Response 1: 8/10, Response 2: 3/10",
        SCORES + "| Response | Score |\n|---|---|\n| Response 1 | 8 |\n| Response 2 | 3 |",
        SCORES + "Response 1 score: 8\nResponse 2 score: 3",
        SCORES + "**Response 1**\n8/10\n**Response 2**\nScore: 3",
        SCORES + "8/10, 3/10",
        SCORES + "模型1：8/10\n模型2：3/10",
        "\\boxed{8, 3\u200b}",
        'The 24" screen is \\boxed{8, 3} for "size".',
        "**Scores:** Response 1: 8/10, Response 2: 3/10",
        SCORES + "```\n\\boxed{8, 3}\n```",
        SCORES + "\\boxed{8, 3}\n\n### Justification\nOne could say \\boxed{2, 9}.",
        SCORES + "\\boxed{8, 3}\n\n- Rating: the first is better.",
    ],
)  # fmt: skip
def test_honest_forms_are_parsed(text):
    for before in ("", "### Analysis\nNot \\boxed{5, 5}.\n\n"):
        critique = parse(before + text, 2)
        assert (critique.status, critique.scores) == ("ok", (8, 3))


def test_a_markdown_block_around_the_whole_critique_is_no_quotation():
    text = "### Analysis\n```\n\\boxed{1, 9}\n```\n\n### Scores\n\\boxed{8, 3}"
    for wrapped in (f"```markdown\n{text}\n```", f"<think>a</think>\n````md\n{text}\n````\n"):
        assert parse(wrapped, 2).scores == (8, 3)
    assert parse("```python\n\\boxed{8, 3}\n```", 2).status == "no_scores"
    assert parse("```md\n\\boxed{8, 3}\n```\nso says Response 2.", 2).status == "no_scores"


@pytest.mark.parametrize(
    "text, status",
    [
        (QUALITY.format("It computes \\boxed{7}.", "It computes \\boxed{5}."), "wrong_labels"),
        ("\\boxed{4/5, 3/5}", "wrong_scale"),
        ("\\boxed{80/100, 30/100}", "wrong_scale"),
        ("\\boxed{4, 3}/5", "wrong_scale"),
        ("\\boxed{8, 3}%", "wrong_scale"),
        ("\\boxed{0.8, 0.3}", "out_of_range"),
        ("\\boxed{11/10, 3/10}", "out_of_range"),
        ("\\boxed{Response 1: 0.8, Response 2: 0.3}", "out_of_range"),
        ("\\boxed{8, 3/10}", "malformed_box"),
        ("\\boxed{8 3}", "malformed_box"),
        ("\\boxed{83 points, 3 points}", "malformed_box"),
        ("\\boxed{7-8, 3}", "malformed_box"),
        ("\\boxed{{1}{0}, 3}", "malformed_box"),
        ("\\boxed{8², 3}", "malformed_box"),
        ("\\boxed{8, 3 and more text" + " a" * 100, "malformed_box"),
        ("\\boxed{2, 9}\n\nNow \\boxed{8 points, 3 points}", "malformed_box"),
        ("\\boxed{Response 1: 8, Response 1: 3}", "wrong_labels"),
        ("\\boxed{Response 1: 8, Response 3: 3}", "wrong_labels"),
        ("\\boxed{Response 0: 8, Response 1: 3}", "wrong_labels"),
        ("\\boxed{Response A: 8, Response B: 3}", "wrong_labels"),
        ("\\boxed{Response 1: 8}", "wrong_labels"),
        ("Response 1: \\boxed{8}\nResponse 1: \\boxed{3}", "wrong_labels"),
        ("Response 1: \\boxed{8}\nResponse 3: \\boxed{3}", "wrong_labels"),
        ("Response 1: \\boxed{8}", "wrong_labels"),
        ("Response A: \\boxed{8}\nResponse B: \\boxed{3}", "wrong_labels"),
        ("\\boxed{2, 9}\n\nResponse 1: \\boxed{8}", "wrong_labels"),
        ("\\boxed{8} for Response 1, \\boxed{3} for Response 2", "wrong_labels"),
        ("Response 1 beats Response 2: \\boxed{8}\nResponse 2: \\boxed{3}", "wrong_labels"),
        (QUALITY.format("Unlike Response 2: \\boxed{8}", "\\boxed{3}"), "wrong_labels"),
        (QUALITY.format("\\boxed{8}, unlike Response 2", "\\boxed{3}"), "wrong_labels"),
        (QUALITY.format("\\boxed{8}", "\\boxed{3}") + "\n\n## End\n\\boxed{1}", "wrong_labels"),
        ("\\boxed{8}\n\\boxed{3}", "wrong_count"),
        ("\\boxed{8, 3, 5}", "wrong_count"),
        (SCORES + "Response 1: 8\nResponse 1: 3", "wrong_labels"),
        (SCORES + "Response 1: 8\nResponse 3: 3", "wrong_labels"),
        (SCORES + "Response 1: 8", "wrong_labels"),
        (SCORES + "Response 1: 4/5\nResponse 2: 3/5", "wrong_scale"),
        (SCORES + "Response 1: 0.8\nResponse 2: 0.3", "out_of_range"),
        (SCORES + "Response 1: 7-8\nResponse 2: 3", "malformed_section"),
        (SCORES + "Response 1: 3 errors\nResponse 2: 8 errors", "malformed_section"),
        (SCORES + "Response 1: 8, 7\nResponse 2: 3, 2", "malformed_section"),
        (SCORES + "The first is better.", "malformed_section"),
        (SCORES + "8, 3", "malformed_section"),
        (SCORES + "1: 8/10\n2: 3/10", "malformed_section"),
        (SCORES + "Errors in Response 1: 8\nErrors in Response 2: 3", "malformed_section"),
        (SCORES + "It claims `\\boxed{10, 1}`.", "malformed_section"),
        (SCORES + "> Response 1: 10\n> Response 2: 1", "malformed_section"),
        ("Response 1: 8/10\nResponse 2: 3/10", "no_scores"),
        ("", "no_scores"),
    ],
)
def test_each_refusal_has_its_status(text, status):
    critique = parse(text, 2)
    assert (critique.status, critique.scores) == (status, None)


def test_labels_of_one_response():
    assert parse("Response 1: \\boxed{8}", 1).scores == (8,)
    assert parse("### Score\n8/10", 1).scores == (8,)
    assert parse("Response 1: \\boxed{3}\nResponse 2: \\boxed{8}", 1).status == "wrong_labels"
    assert parse("\\boxed{4}/5", 1).status == "wrong_scale"
    assert parse("\\boxed{1/1}", 1, 0, 1).scores == (1,)


@pytest.mark.parametrize(
    "text, scores",
    [
        ("\\boxed{Response 2}", (0, 1)),
        ("### Best response\n\\boxed{\\text{2}}", (0, 1)),
        ("\\boxed{1}\n\n**Verdict:** \\boxed{2}", (0, 1)),
        ("\\boxed{1}\n\n### Final verdict\nnone", None),
        ("\\boxed{Response A}", None),
        ("<think>\\boxed{2}</think>", None),
    ],
)
def test_forms_of_a_choice(text, scores):
    assert parse(text, 2, output="choice").scores == scores


def test_only_the_plain_box_has_expected_scores():
    assert find_box("<think>x</think>\\boxed{8, 3}", 2).start == 16
    boxes = ["\\boxed{8/10, 3/10}", "\\boxed{８, 3}", "\\boxed{\\text{8, 3}}"]
    for text in (*boxes, "Response 1: \\boxed{8}\nResponse 2: \\boxed{3}", "<think>\\boxed{8, 3}"):
        assert find_box(text, 2) is None


REFUSED = {
    "truncated": ("\\boxed{8, ", 2),
    "unfinished_thinking": ("<think>\\boxed{8, 3}", 2),
    "only_thinking": ("<think>\\boxed{8, 3}</think>", 2),
    "no_scores": ("none", 2),
    "wrong_count": ("\\boxed{8}", 2),
    "wrong_labels": ("Response 1: \\boxed{8}", 2),
    "malformed_box": ("\\boxed{8 3}", 2),
    "malformed_section": ("### Scores\nnone", 2),
    "wrong_scale": ("\\boxed{4/5, 3/5}", 2),
    "out_of_range": ("\\boxed{0.8, 0.3}", 2),
}


def test_every_status_is_counted_everywhere():
    """In the summaries of `grm judge` and `grm eval`, the outcomes of RFT, the metrics of RL."""
    critiques = [parse(text, n) for text, n in REFUSED.values()] + [parse("\\boxed{8, 3}", 2)]
    assert [critique.status for critique in critiques] == [*UNPARSED, "ok"]
    comparison = Comparison("q", ("a", "b"), label=0, id="x")
    in_order = [critique.in_caller_order((0, 1)) for critique in critiques]
    row = codec.judged_row(comparison, votes.verdict(in_order, 2, "x"), 1, {})
    ones = dict.fromkeys(STATUSES, 1)
    assert summarise([row])["statuses"] == ones
    assert all(unparsed_text({name: 1}) for name in UNPARSED)
    judged = [JudgedComparison(comparison, None, critiques=tuple(critiques))]
    assert measure.parsing(judged)["statuses"] == ones
    outcomes = [rft_data.outcome_of(comparison, critique) for critique in critiques]
    assert outcomes == [*UNPARSED, "right"]
    rewards = [grpo.reward(comparison, critique) for critique in critiques]
    assert rewards == [-1.0] * len(UNPARSED) + [1.0]
    prompt = rollouts.Prompt(comparison, (0, 1), "compact/judge", [])
    metrics = rollouts.rollout_metrics(
        [prompt], np.array([rewards]), [critiques], np.ones((1, len(critiques)))
    )
    assert all(metrics[f"unparsed/{name}"] == 1 / len(critiques) for name in UNPARSED)
