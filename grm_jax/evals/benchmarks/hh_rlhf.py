"""HH-RLHF, harmless-base test dialogues (arXiv 2204.05862; anthropics/hh-rlhf). The text is offensive."""

from __future__ import annotations

import re

from grm_jax.evals.benchmark import PAPER, Benchmark, accuracy_by_subset, shuffled_comparison
from grm_jax.evals.benchmarks.humanevalpack import grade
from grm_jax.evals.files import Source, records
from grm_jax.types import Comparison, Turn

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def dialogue(text: str) -> list[Turn]:
    """The turns of one transcript, stripped."""
    parts = _TURN.split(text)
    return [
        {"role": _ROLES[who], "content": said.strip()}
        for who, said in zip(parts[1::2], parts[2::2])
    ]


def read(source: Source) -> list[Comparison]:
    """Pairs of `chosen` and `rejected` transcripts; the last turns are compared under the chosen one's conversation.

    Five of the 2,312 pairs part before their last turn; their last turns are compared all the same.
    """
    found = []
    for path in source.require("harmless-base/test.jsonl*"):
        for number, record in enumerate(records(path)):
            chosen, rejected = dialogue(record["chosen"]), dialogue(record["rejected"])
            query = [turn for turn in chosen[:-1] if turn["content"]]
            pair = (chosen[-1]["content"], rejected[-1]["content"])
            found.append(
                shuffled_comparison(
                    query, pair, (1, 0), f"hh_rlhf-{number}", subset=f"{min(len(query), 7)} turns"
                )
            )
    return found


HH_RLHF = Benchmark(
    name="hh_rlhf",
    title="HH-RLHF harmless",
    read=read,
    grade=grade,
    aggregate=accuracy_by_subset,
    rules={
        "official": "no scorer is published; a tie or an unreadable judgement counts 1/2",
        "strict": "a tie or an unreadable judgement is wrong",
        "paper": PAPER,
    },
    files="harmless-base/test.jsonl.gz of github.com/anthropics/hh-rlhf, as hh_rlhf/",
    chance="0.5",
    bars=("subset/",),
    aliases=("hh-rlhf",),
    notes="Crowd labels, about harmlessness alone.",
)
