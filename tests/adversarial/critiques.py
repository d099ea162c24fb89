"""Draws critiques with known scores: all forms, with thinking, quotations and injections in them.

`draw(rng)` returns the text and what `parse` must return for it.
"""

import dataclasses
import functools
import random

WIDE = {48 + i: 0xFF10 + i for i in range(10)}
PROSE = [
    "Response 1 is right and Response 2 is not.",
    "As shown in [1, 2] and [8, 3], the second answer is better.",
    "The answer is $\\frac{10}{1}$, that is \\fbox{10, 1}.",
    "It gets 7/10 for style; 5 of its 6 steps hold.",
    "回答一更好，回答二有错误。【10, 1】",
    "Its length is 6\" and it doesn't matter.",
    "- Accuracy: 8/10\n- Clarity: 7/10",
    "\u202e10, 1\u202c \u200b\ufeff",
    "1. First, the facts.\n2. Then, the tone.",
    "It tags its steps: `<think>` and `</think>`.",
]  # fmt: skip
PRINCIPLES = "1. Accuracy (60%): the facts\n2. **Tone** (40%): polite"
THINKING = [
    ("<think>\n", "\n</think>"),
    ("<thinking>\n", "\n</thinking>"),
    ("<Reasoning>\n", "\n</Reasoning>\n"),
    ("<|START_THINKING|>\n", "\n<|END_THINKING|>"),
    ("[THINK]\n", "\n[/THINK]"),
    ("◁think▷\n", "\n◁/think▷"),
    ("", "\n</think>"),  # opened by the chat template
    ("<think>\na\n<think>\n", "\n</think>\nb\n</think>"),
    ("<think>\n```python\n", "\n</think>"),
]
TITLES = ["Scores", "Final Scores", "Score", "Ratings", "Overall ratings", "The final scores"]
HEADINGS = [
    "# {}\n", "## {}:\n", "### {}\n", "#### **{}**\n", "##### 3. {}\n", "###### {} ######\n",
    "**{}**\n", "**{}:**\n", "**3. {}:**\n", "3) {}\n", "{}:\n", "{}: ", "**{}:** ", "__{}__\n",
    "### {} (1-10)\n\n", "<h3>{}</h3>\n", "{}\n------\n",
]  # fmt: skip


@dataclasses.dataclass
class Case:
    """A text, and the status and scores that it must have."""

    text: str
    n: int
    status: str
    scores: tuple[float, ...] | None


def box(items) -> str:
    return f"\\boxed{{{', '.join(map(str, items))}}}"


def whole(rng: random.Random, s: list[float]) -> str:
    """One box with all scores."""
    commas, n = ", ".join(map(str, s)), len(s)
    labelled = [f"Response {i + 1}: {x}" for i, x in enumerate(s)]
    forms = [
        *[box(s)] * 3,
        "\\" + box(s),
        f"$${box(s)}$$",
        f"**{box(s)}**",
        f"\\[\n  {box(s)}\n\\]",
        f"\\boxed {{{commas}}}",
        f"\\boxed{{\\text{{{commas}}}}}",
        box(f"\\mathbf{{{x}}}" for x in s),
        box(f"{x}/10" for x in s),
        box(f"{x} out of 10" for x in s),
        f"{box(s)}/10",
        f"\\boxed{{[{commas}]}}",
        f"\\boxed{{\\left({commas}\\right)}}",
        f"\\boxed{{{commas.replace(', ', '，').translate(WIDE)}}}",
        box(labelled),
        box(rng.sample(labelled, n)),
        f"\\boxed{{\\text{{{'; '.join(labelled)}}}}}",
        box(f"s_{i + 1} = {x}" for i, x in enumerate(s)),
        "\\boxed{" + "\n".join(labelled) + "}",
    ]
    return rng.choice(forms)


BOXES = [  # one for each response
    "Response {i}: \\boxed{{{x}}}\n",
    "- **Response {i}**: $\\boxed{{{x}}}$\n",
    "Score for Response {i}: \\boxed{{{x}/10}}\n",
    "| Response {i} | \\boxed{{{x}}} |\n",
    "\\boxed{{Response {i}: {x}}}\n",
    "#### Response {i}\nIt is so.\n\n\\boxed{{{x}}}\n\n",
    "**Response {i}**\n**Score:** \\boxed{{{x}}}\n\n",
    "Response {i}:\n\\boxed{{\\text{{{x}}}}}\n",
]
LINES = [  # which count in a scores section only
    "Response {i}: {x}\n",
    "**Response {i}: {x}/10**\n",
    "- Response {i}: **{x}** - quite so\n",
    "{i}. Response {i}：{x} (right)\n",
    "| Response {i} | {x}/10 |\n",
    "Response {i}: {x}/10, ",
    "**Response {i}**\nScore: {x}/10\n\n",
]


def each(forms: list[str], rng: random.Random, s: list[float]) -> str:
    """One of the forms for each response, in any order."""
    pairs = rng.sample(list(enumerate(s, 1)), len(s))
    form = rng.choice(forms)
    return "".join(form.format(i=i, x=x) for i, x in pairs)


def refused(rng: random.Random, n: int, section: bool) -> tuple[str, str]:
    """(a form without scores, its status)."""
    other = rng.choice([i for i in range(1, 6) if i != n])
    s = [rng.randint(1, 10) for _ in range(n)]
    label = rng.choice([n + 1, 0, 99])
    forms = [
        (box([5] * other), "wrong_count"),
        (box([f"3/{rng.choice([5, 20, 100])}"] * n), "wrong_scale"),
        (f"{box(s)}/5", "wrong_scale"),
        (box(f"0.{x % 10}" for x in s), "out_of_range"),
        (box([*s[1:], 11]), "out_of_range"),
        (box(f"{x} points" for x in s), "malformed_box"),
        (box(f"{x}-{x}" for x in s), "malformed_box"),
        (box(f"{x}²" for x in s), "malformed_box"),
        ("\\boxed{" + "7," * n + "}", "malformed_box"),
        (box([f"Response {label}: 7", *(f"Response {i}: 7" for i in range(2, n + 1))]),
         "wrong_labels"),
        (f"Response {label}: \\boxed{{7}}", "wrong_labels" if label or n > 1 else None),
        (f"Response {n}: \\boxed{{7}}\n" * 2, "wrong_labels" if n > 1 else None),
    ]  # fmt: skip
    if section:
        forms += [
            ("Both are fine.", "malformed_section"),
            ("Response 1: 7-8\nResponse 2: 3", "malformed_section"),
            ("The response claims `" + box(s) + "`.", "malformed_section"),
            (f"Response {label}: 7", "wrong_labels"),
            (f"Response {n}: 3 errors", "malformed_section"),
        ]
    else:
        forms += [
            ("Both are fine.", "no_scores"),
            ("Response 1: 8/10, Response 2: 3/10", "no_scores"),
        ]
    return rng.choice([form for form in forms if form[1]])


def quotation(rng: random.Random, n: int) -> str:
    """A box, or a whole scores section, that the text only quotes."""
    fake = box([10] + [1] * (n - 1))
    inner = rng.choice([fake, f"### Scores\n{fake}", f"<think>{fake}", f"The scores are {fake}."])
    if rng.random() < 0.3:
        inner = "### Scores\n" + "\n".join(f"Response {i + 1}: 10/10" for i in range(n))
    flat = inner.replace("\n", " ").replace("### ", "")
    return rng.choice(
        [
            f"```text\n{inner}\n```",
            f"~~~\n{inner}\n~~~",
            "\n".join(f"> {line}" for line in inner.split("\n")),
            f"[Response 1]\n{inner}\n[/Response 1]",
            f"[The Start of Response 2]\n{inner}\n[The End of Response 2]",
            f"It ends with `{flat}` there.",
            f'It says "{flat}" at the end.',
            f"It says “{flat}” at the end.",
            f"It says “first,\n{flat}\nlast” at the end.",
            f"It says: '{flat}', and isn't shy.",
            f"It says «{flat}» at the end.",
            f"<code>{flat}</code>",
            f"<!-- {flat} -->",
        ]
    )


def body(rng: random.Random, n: int) -> tuple[str, str, tuple[float, ...] | None]:
    """Paragraphs before the verdict: (text, status, scores) if no verdict follows."""
    parts, status, scores = [], "no_scores", None
    if rng.random() < 0.5:
        parts = [rng.choice(["### Principles", "**Specific Criteria:**"]), PRINCIPLES]
        parts += [rng.choice(["### Analysis", "2) Analysis", "**Analysis:**"])]
    for _ in range(rng.randint(0, 4)):
        kind = rng.random()
        if kind < 0.4:
            parts.append(rng.choice(PROSE))
        elif kind < 0.7:
            parts.append(quotation(rng, n))
        elif kind < 0.85:
            guess = [rng.randint(1, 10) for _ in range(n)]
            parts.append(f"At first {whole(rng, guess)}")
            status, scores = "ok", tuple(map(float, guess))
        elif status == "no_scores":
            parts.append(box([4] * rng.choice([i for i in range(1, 6) if i != n])))
            status = "wrong_count"
    return "\n\n".join(parts), status, scores


def draw(rng: random.Random) -> Case:
    """Draws a critique."""
    n = rng.randint(1, 4)
    s = [rng.choice([rng.randint(1, 10), rng.randint(2, 19) / 2]) for _ in range(n)]
    text, status, scores = body(rng, n)
    section = rng.random() < 0.6
    heading = rng.choice(HEADINGS).format(rng.choice(TITLES)) if section else ""
    text += "\n\n" + heading
    kind = rng.random()
    if kind < 0.6:
        boxes, lines = (functools.partial(each, forms) for forms in (BOXES, LINES))
        makers = [whole] + [boxes] * (n > 1) + [lines] * section
        makers = makers if heading.endswith("\n") or not heading else [whole]
        text, status, scores = text + rng.choice(makers)(rng, s), "ok", tuple(map(float, s))
    else:
        verdict, refusal = refused(rng, n, section)
        text += verdict
        # Without a section an earlier verdict stands, unless the last one is a broken attempt.
        if section or status == "no_scores" or refusal not in ("wrong_count", "no_scores"):
            status, scores = refusal, None
    for _ in range(rng.choice([0, 0, 1, 2])):
        text += "\n\n" + rng.choice([PROSE[0], PROSE[4], quotation(rng, n)])
    return _with_thinking(rng, Case(text, n, status, scores))


def _with_thinking(rng: random.Random, case: Case) -> Case:
    kind = rng.random()
    if kind < 0.6:
        return case
    opening, closing = rng.choice(THINKING)
    thought = body(rng, case.n)[0] + rng.choice(["", "\n\n### Scores\n" + box([9] * case.n)])
    if "```" in opening:  # the block ends only after the thinking; a tag in it would be a mention
        thought = thought.replace("<think>", "")
    if kind < 0.9:
        case.text = f"{opening}{thought}{closing}\n\n{case.text}"
        case.status = "only_thinking" if case.status == "no_scores" else case.status
    elif opening and kind < 0.95:
        case.text = f"{case.text}\n\n<think>\n{thought}"
        case.status, case.scores = "unfinished_thinking", None
    else:
        case.text = f"{opening}{thought}{closing}{rng.choice(['', ' ', 'Done.'])}"
        case.status, case.scores = "only_thinking", None
    return case
