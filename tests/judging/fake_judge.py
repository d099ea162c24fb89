"""A judge whose critiques are written by a function: the real tokenizer, templates, parser and votes around no model at all."""

import re

import numpy as np

from grm_jax.data.world.vocabulary import vocabulary_path
from grm_jax.judging.judge import Judge
from grm_jax.sampling import Completion
from grm_jax.text import tokenizer as tokenizers

RESPONSE = re.compile(r"\[Response (\d+)\]\n(.*?)\n\[/Response \1\]", re.DOTALL)


def well_formed(scores, analysis="One is better than the other.") -> str:
    return (
        "### Principles\n1. Accuracy (60%): the facts are right\n2. Clarity (40%): easy to follow\n\n"
        f"### Analysis\n{analysis}\n\n### Scores\n\\boxed{{{', '.join(map(str, scores))}}}"
    )


def words() -> tokenizers.Tokenizer:
    return tokenizers.load(vocabulary_path())


def completion(request, sample, ids, finish="stop", error=None) -> Completion:
    nothing = np.zeros(0, np.float32)
    return Completion(request, sample, np.array(ids, np.int32), nothing, nothing, finish, error)


def fake_sampler(tokenizer, write, seen=None, finish="stop"):
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
                yield completion(index, sample, ids, finish)

    return run


def fake_judge(write, **options) -> Judge:
    """A Judge around `write`; options: those of Judge, and seen and finish of the sampler."""
    tokenizer = options.pop("tokenizer", None) or words()
    sampler = fake_sampler(
        tokenizer, write, options.pop("seen", None), options.pop("finish", "stop")
    )
    return Judge(tokenizer, sampler, **{"template": "compact", **options})


def by_length(responses, key) -> str:
    """A judge that likes long responses, with a little noise from the row's key."""
    noise = hash(key) % 2
    return well_formed([min(10, max(1, len(text) % 9 + 1 + noise)) for text in responses])


def first_wins(responses, key) -> str:
    """A judge with nothing but position bias."""
    return well_formed([9] + [4] * (len(responses) - 1))
