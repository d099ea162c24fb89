"""A judge whose critiques are written by a function: the real tokenizer, templates, parser and votes around no model at all."""

import dataclasses
import re

import numpy as np

from grm_jax.data.world.vocabulary import vocabulary_path
from grm_jax.judging.judge import Judge
from grm_jax.text import tokenizer as tokenizers

RESPONSE = re.compile(r"\[Response (\d+)\]\n(.*?)\n\[/Response \1\]", re.DOTALL)


@dataclasses.dataclass
class FakeRow:
    request_index: int
    sample_index: int
    tokens: np.ndarray
    finish: str = "stop"
    error: str | None = None


def well_formed(scores, analysis="One is better than the other.") -> str:
    return (
        "### Principles\n1. Accuracy (60%): the facts are right\n2. Clarity (40%): easy to follow\n\n"
        f"### Analysis\n{analysis}\n\n### Scores\n\\boxed{{{', '.join(map(str, scores))}}}"
    )


def words() -> tokenizers.Tokenizer:
    return tokenizers.load(vocabulary_path())


def fake_runner(tokenizer, write, seen=None, finish="stop"):
    """Rows whose text is write(responses in prompt order, key), key = (item, sample, seed). seen: collects the prompts."""

    def run(requests):
        for index, request in enumerate(requests):
            prompt = tokenizer.decode(request.prompt)
            if seen is not None:
                seen.append(prompt)
            responses = [text for _, text in RESPONSE.findall(prompt)]
            for sample in range(request.k):
                text = write(responses, (request.item, sample, request.seed))
                ids = tokenizer.encode(text) + [tokenizer.eos_id] * (finish == "stop")
                yield FakeRow(index, sample, np.array(ids, np.int32), finish)

    return run


def fake_judge(write, **options) -> Judge:
    """A Judge around `write`; options: those of Judge, and seen and finish of the runner."""
    tokenizer = options.pop("tokenizer", None) or words()
    runner = fake_runner(tokenizer, write, options.pop("seen", None), options.pop("finish", "stop"))
    return Judge(tokenizer, runner, **{"template": "compact", **options})


def by_length(responses, key) -> str:
    """A judge that likes long responses, with a little noise from the row's key."""
    noise = hash(key) % 2
    return well_formed([min(10, max(1, len(text) % 9 + 1 + noise)) for text in responses])


def first_wins(responses, key) -> str:
    """A judge with nothing but position bias."""
    return well_formed([9] + [4] * (len(responses) - 1))
