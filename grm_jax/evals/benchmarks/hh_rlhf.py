"""HH-RLHF, harmless-base test dialogues (arXiv 2204.05862; anthropics/hh-rlhf). Offensive text."""

import re
from collections.abc import Iterator

from grm_jax.data.comparisons import placed
from grm_jax.evals import benchmark as bm
from grm_jax.evals.files import Source, records
from grm_jax.types import Comparison, Turn

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def parse_dialogue(text: str) -> list[Turn]:
    """Splits a transcript into its turns, stripped."""
    pieces = _TURN.split(text)
    return [
        {"role": _ROLES[speaker], "content": content.strip()}
        for speaker, content in zip(pieces[1::2], pieces[2::2])
    ]


def read(source: Source) -> Iterator[Comparison]:
    """Reads `chosen` and `rejected` transcripts; compares the last turns under the chosen dialogue.

    5 of the 2,312 pairs already differ before their last turn; they are compared the same way.
    """
    for path in source.require("harmless-base/test.jsonl*"):
        for number, record in enumerate(records(path)):
            chosen, rejected = parse_dialogue(record["chosen"]), parse_dialogue(record["rejected"])
            query = [turn for turn in chosen[:-1] if turn["content"]]
            pair = (chosen[-1]["content"], rejected[-1]["content"])
            meta = {"subset": f"{min(len(query), 7)} turns"}
            yield placed(Comparison(query, pair, None, 0, f"hh_rlhf-{number}", meta))


HH_RLHF = bm.Benchmark(
    name="hh_rlhf",
    title="HH-RLHF harmless",
    order=150,
    read=read,
    grade=bm.grade_credit,
    aggregate=bm.accuracy_by_subset,
    headline="accuracy",
    rules=bm.CREDIT_RULES,
    files="harmless-base/test.jsonl.gz of github.com/anthropics/hh-rlhf, as hh_rlhf/",
    chance="0.5",
    bars=("subset/",),
    aliases=("hh-rlhf",),
    notes="Crowd labels, about harmlessness alone.",
)
